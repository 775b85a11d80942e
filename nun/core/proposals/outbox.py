"""Items: client writes that were taken or acknowledged where they were not finally decided.

An item is one request as msgpack

    [client id, request number, floor, database name, kind, atomic, kinds, keys, arguments, bases, op ids, at, bound,
     since, versions, decided at]

kind: of the request (SET, REMOVE, INCREMENT, SET_MANY, BATCH, CREATE_DATABASE); for each operation: its kind, key,
value or delta, `base` (the op id of the record that it replaced where it was taken, 0 where the key was absent) and op
id. `at` is the Unix time in milliseconds when it was stamped, less the origin's measured offset, and `bound` how far
that may be wrong. A resolution (RESOLVE) has one operation; `op ids` then has those of the entries that it closes after
its own, and its base is the op id of the record that was shown.
`since` is a position: of the history up to there the node that made the item knew that it had not decided the request.

`versions` has, by the index of an operation, the version that it made where it was taken, if that is known and may be
more than one above the version that it replaced. `decided at` has the positions of the entry that it was cut off with
and, newest first, of those that decided it before that, in other histories: one that holds any of them has decided the
request so. Both are left out where there is nothing to say.

An operation of kind GET stands for one of a batch that changed nothing: its argument is the answer it got.
The last operation of a CREATE_DATABASE is of that kind too: it has no key, and the options as its argument.

Items of a node are numbered. They are made of what `local` writes left, and of what a change of primary cut off: the
client writes above the common entry, in log order. What the primary had made itself is not proposed again.

I1  An item carries what its request had: request id, op ids, bases. Whoever decides it stamps nothing anew.
I2  `since` claims nothing that is not known: of what got an entry of the ledger and no outcome, for its request was
    decided before, or may have been, it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK, unix_ms_of
from nun.errors import WireError
from nun.limits import DECIDED_AT_MAX, VERSION_MAX
from nun.position import NOTHING, Position

_CHANGES: Final = (
    fx.PUT,
    fx.TOMBSTONE,
    fx.INCREMENTED,
    fx.PUTS,
    fx.RECORDS,
    fx.SUMS,
    fx.SIGNED,
    fx.LOST,
)
ATOMIC: Final = 0  # in the outcome of a batch decided kind by kind; of others: a second element
_SINGLE: Final = {fx.PUT: m.SET, fx.TOMBSTONE: m.REMOVE, fx.INCREMENTED: m.INCREMENT}


class Operation(NamedTuple):
    """One operation of an item."""

    kind: int
    key: bytes
    argument: Any
    base: int
    op_id: int
    version: int = 0  # that it made; 0: one above that of its base, as far as is known


class Item(NamedTuple):
    """One request."""

    client_id: bytes
    number: int
    floor: int
    database: bytes
    kind: int
    atomic: bool
    operations: list[Operation]
    at_ms: int
    bound_ms: int
    since: Position
    closes: tuple[int, ...] = ()
    decided_at: tuple[Position, ...] = ()

    @property
    def op_id(self) -> int:
        """Of its first operation, 0 where it has none."""
        return self.operations[0].op_id if self.operations else 0


def encode_item(item: Item) -> bytes:
    """The bytes of an item."""
    columns = [list(column) for column in zip(*item.operations, strict=True)] or [[]] * 6
    kinds, keys, arguments, bases, op_ids, made = columns
    versions = {index: version for index, version in enumerate(made) if version}
    more = (versions, item.decided_at) if item.decided_at else (versions,) if versions else ()
    return pack(
        (
            item.client_id,
            item.number,
            item.floor,
            item.database,
            item.kind,
            item.atomic,
            bytes(kinds),
            keys,
            arguments,
            bases,
            [*op_ids, *item.closes],
            item.at_ms,
            item.bound_ms,
            item.since,
            *more,
        )
    )


def decode_item(data: bytes) -> Item:
    """Reads `encode_item` back. Raises WireError."""
    match unpack(data):
        case [
            bytes() as client_id, int() as number, int() as floor, bytes() as database, int() as kind, bool() as atomic,
            bytes() as kinds, list() as keys, list() as arguments, list() as bases, list() as op_ids, int() as at_ms,
            int() as bound_ms, [int(), int(), int(), int()] as since, *more,
        ] if len(kinds) == len(keys) == len(arguments) == len(bases) and (
            len(op_ids) == len(kinds) or (kind == m.RESOLVE and len(op_ids) > len(kinds) == 1)
        ):  # fmt: skip
            closes = tuple(op_ids[len(kinds) :])
            operations = list(map(Operation, kinds, keys, arguments, bases, op_ids))
            decided_at = _with_more(operations, more) if more else ()
            return Item(
                client_id,
                number,
                floor,
                database,
                kind,
                atomic,
                operations,
                at_ms,
                bound_ms,
                Position(*since),
                closes,
                decided_at,
            )
    raise WireError("expected an item of an outbox")


def _with_more(operations: list[Operation], more: list[Any]) -> tuple[Position, ...]:
    """Adds the versions to the operations; where the item was decided, as far as it says so."""
    match more:
        case [dict() as versions, *rest] if all(
            type(index) is int
            and 0 <= index < len(operations)
            and type(version) is int
            and 0 < version <= VERSION_MAX
            for index, version in versions.items()
        ):
            for index, version in versions.items():
                operations[index] = operations[index]._replace(version=version)
            match rest:
                case []:
                    return ()
                case [list() as positions] if len(positions) <= DECIDED_AT_MAX:
                    return tuple(map(_position, positions))
    raise WireError("expected the versions of an item of an outbox, and where it was decided")


def _position(plain: Any) -> Position:
    match plain:
        case [int(), int(), int(), int()]:
            return Position(*plain)
    raise WireError("expected a position in an item of an outbox")


def items_of_entries(
    entries: Iterable[tuple[Position, list[fx.Effect]]], names: Mapping[int, str], common: Position
) -> list[bytes]:
    """The client writes of entries that were cut off, in their order.

    Args:
        names: the databases by number, as the history with these entries has them; of those that these entries make
            they tell themselves, for they may have dropped them too.
        common: the last position before them.
    """
    items = []
    names = dict(names)
    for position, effects in entries:
        before: list[fx.Effect] = []
        for effect in effects:
            if effect[0] == fx.DATABASE:
                names[effect[1]] = _text(effect[2])
            if effect[0] not in (fx.OUTCOME, fx.OUTBOX):
                before.append(effect)
                continue
            if effect[0] == fx.OUTCOME:
                item = _item_of(before, effect, names, common)
            else:
                item = _recorded(before)
            told = [one[1] for one in before if one[0] == fx.DECIDED_AT]
            earlier = map(_position, told[0] if told else ())
            before = []
            if item is not None:
                decided_at = (position, *earlier)[:DECIDED_AT_MAX]
                items.append(encode_item(item._replace(decided_at=decided_at)))
    return items


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _item_of(
    effects: list[fx.Effect], outcome: fx.Effect, names: Mapping[int, str], common: Position
) -> Item | None:
    """The request that these effects were the outcome of; None where it changed nothing."""
    _, client_id, number, floor, status, op_id, result = outcome
    operations: list[Operation] = []
    database = 0
    kind = m.BATCH
    writes = 0
    stamped: tuple[int, int] | None = None
    options: Any = None
    for effect in effects:
        if effect[0] == fx.RESOLVED:
            return _resolution(effect, outcome, names, common)
        if effect[0] == fx.DATABASE:
            kind = m.CREATE_DATABASE
            database = effect[1]
            options = effect[3]
        elif effect[0] in _CHANGES:
            database = effect[1]
            writes += 1
            operations += _operations(effect)
            stamped = stamped or _stamped(effect)
            if kind != m.CREATE_DATABASE:
                kind = m.SET_MANY if effect[0] == fx.PUTS else _kind_of(effect)
    if not operations:
        return None
    batch = not status and isinstance(result, list) and isinstance(result[0], bytes)
    if (writes > 1 or batch) and kind != m.CREATE_DATABASE:
        kind = m.BATCH
    at_ms, bound_ms = stamped or (unix_ms_of(operations[0].op_id), 0)
    if kind == m.CREATE_DATABASE:
        operations.append(Operation(kind, b"", options, 0, operations[0].op_id))
    if isinstance(result, dict):
        operations = _in_order(result[m.BATCH], operations)
    elif batch:
        operations = _with_gaps(unpack(result[0]), op_id, operations)
    if database in names:
        name = names[database].encode()
    else:
        name = _told_of(effects).get(b"database", b"")
    return Item(
        client_id,
        number,
        floor,
        name,
        kind,
        kind == m.BATCH and is_atomic(result),
        operations,
        at_ms,
        bound_ms,
        common,
    )


def _recorded(effects: list[fx.Effect]) -> Item | None:
    """Writes of an item that got entries of the ledger, and no outcome; None where there are none (I2)."""
    told = _told_of(effects)
    if not told:
        return None
    lost = [effect for effect in effects if effect[0] == fx.LOST]
    operations = [operation for effect in lost for operation in _operations(effect)]
    at_ms, bound_ms = lost[0][7:]
    kind = m.BATCH if len(operations) > 1 else operations[0].kind
    # Whether a batch was all or nothing nobody can tell any more: so it is.
    return Item(
        told[b"client_id"],
        told[b"request"],
        0,
        told[b"database"],
        kind,
        kind == m.BATCH,
        operations,
        at_ms,
        bound_ms,
        NOTHING,
    )


def _told_of(effects: list[fx.Effect]) -> dict[bytes, Any]:
    """What the writer was told of writes that were finally refused: it names them; empty where none was."""
    lost = {effect[6] for effect in effects if effect[0] == fx.LOST}
    for effect in effects:
        if effect[0] == fx.NOTICE and effect[2] in lost:
            told: dict[bytes, Any] = unpack(effect[3])
            return told
    return {}


def is_atomic(result: Any) -> bool:
    """Whether the outcome of a batch says that it was all or nothing."""
    if isinstance(result, dict):
        return bool(result.get(ATOMIC))
    return isinstance(result, list) and len(result) > 1


def _resolution(
    effect: fx.Effect, outcome: fx.Effect, names: Mapping[int, str], common: Position
) -> Item:
    """The item of a resolution that was accepted."""
    _, database, key, kind, argument, shown, op_ids, op_id = effect
    _, client_id, number, floor, *_ = outcome
    operation = Operation(kind, key, argument, shown, op_id)
    name = names.get(database, "").encode()
    at_ms = unix_ms_of(op_id)
    return Item(
        client_id,
        number,
        floor,
        name,
        m.RESOLVE,
        False,
        [operation],
        at_ms,
        0,
        common,
        tuple(op_ids),
    )


def _kind_of(effect: fx.Effect) -> int:
    """Which request made this one change."""
    if effect[0] == fx.LOST:
        return int(effect[2])
    if effect[0] == fx.SIGNED:
        if effect[6] is not None:
            return m.INCREMENT
        return m.SET if record.is_live(effect[3]) else m.REMOVE
    return _SINGLE.get(effect[0], m.BATCH)


def _stamped(effect: fx.Effect) -> tuple[int, int] | None:
    """When a write was made, where its effect says so."""
    if effect[0] == fx.LOST:
        return effect[7], effect[8]
    signature = record.signature_of(effect[3]) if effect[0] == fx.SIGNED else None
    return None if signature is None else (signature.at_ms, signature.bound_ms)


def _in_order(kinds: bytes, operations: list[Operation]) -> list[Operation]:
    """The writes of a batch that was decided kind by kind, in the order in which its client made them."""
    by_kind = {
        kind: iter([operation for operation in operations if operation.kind == kind])
        for kind in (m.SET, m.INCREMENT)
    }
    return [next(by_kind[kind]) for kind in kinds if kind in by_kind]


def _with_gaps(answers: list[Any], first: int, operations: list[Operation]) -> list[Operation]:
    """The writes of a batch in their places; what changed nothing stands between them, as a GET with its answer."""
    places = {(operation.op_id - first) // TICK: operation for operation in operations}
    if len(answers) <= len(operations) or not places.keys() <= set(range(len(answers))):
        return operations
    return [
        places.get(i) or Operation(m.GET, b"", answer, 0, first + i * TICK)
        for i, answer in enumerate(answers)
    ]


def _operations(effect: fx.Effect) -> list[Operation]:
    kind = effect[0]
    if kind == fx.PUT:
        _, _, op_id, version, replaced, key, value = effect
        return [Operation(m.SET, key, value, replaced, op_id, version)]
    if kind == fx.INCREMENTED:
        _, _, op_id, _, replaced, key, _, delta = effect
        return [Operation(m.INCREMENT, key, delta, replaced, op_id)]
    if kind == fx.LOST:
        _, _, write, key, argument, base, op_id, _, _ = effect
        return [Operation(write, key, argument, base, op_id)]
    if kind == fx.SIGNED:
        _, _, key, packed, _, base, delta = effect
        write = _kind_of(effect)
        argument = delta if write == m.INCREMENT else record.value_of(packed)
        argument = None if write == m.REMOVE else argument
        version = 0 if write == m.INCREMENT else record.version_of(packed)
        return [Operation(write, key, argument, base, record.op_id_of(packed), version)]
    if kind == fx.TOMBSTONE:
        _, _, op_id, version, replaced, key = effect
        return [Operation(m.REMOVE, key, None, replaced, op_id, version)]
    if kind == fx.PUTS:
        _, _, first, heads, payload = effect
        keys, values = fx.keys_and_values(payload)
        bases = record.op_ids_of_heads(heads)
        op_ids = range(first, first + TICK * len(keys), TICK)
        return [
            Operation(m.SET, key, value, base, op_id)
            for key, value, base, op_id in zip(keys, values, bases, op_ids, strict=True)
        ]
    if kind == fx.SUMS:
        _, _, first, heads, keys, deltas, _ = effect
        latest = dict(zip(dict.fromkeys(keys), record.op_ids_of_heads(heads), strict=True))
        operations = []
        for index, (key, delta) in enumerate(
            zip(keys, record.unpack_integers(deltas), strict=True)
        ):
            base, latest[key] = latest[key], first + index * TICK
            operations.append(Operation(m.INCREMENT, key, delta, base, latest[key]))
        return operations
    _, _, _, keys, records, heads = effect
    bases = record.op_ids_of_heads(heads)
    return [
        Operation(
            m.SET if record.is_live(packed) else m.REMOVE,
            key,
            record.value_of(packed) if record.is_live(packed) else None,
            base,
            record.op_id_of(packed),
            record.version_of(packed),
        )
        for key, packed, base in zip(keys, records, bases, strict=True)
    ]
