"""Items: client writes that were taken or acknowledged where they were not finally decided.

An item is one request as msgpack

    [client id, request number, floor, database name, kind, atomic, kinds, keys, arguments, bases, op ids, at, since]

kind: of the request (SET, REMOVE, INCREMENT, SET_MANY, BATCH, CREATE_DATABASE); for each operation: its kind, key,
value or delta, `base` (the op id of the record that it replaced where it was taken, 0 where the key was absent) and op
id. `at` is the Unix time in milliseconds when it was stamped, less the origin's measured offset.
`since` is a position: of the history up to there the node that made the item knew that it had not decided the request.

Items of a node are numbered. They are made of what `local` writes left, and of what a change of primary cut off: the
client writes above the common entry, in log order. What the primary had made itself is not proposed again.

I1  An item carries what its request had: request id, op ids, bases. Whoever decides it stamps nothing anew.
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
from nun.position import Position

_CHANGES: Final = (fx.PUT, fx.TOMBSTONE, fx.INCREMENTED, fx.PUTS, fx.RECORDS, fx.SUMS)
_SINGLE: Final = {fx.PUT: m.SET, fx.TOMBSTONE: m.REMOVE, fx.INCREMENTED: m.INCREMENT}


class Operation(NamedTuple):
    """One operation of an item."""

    kind: int
    key: bytes
    argument: Any
    base: int
    op_id: int


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
    since: Position

    @property
    def op_id(self) -> int:
        """Of its first operation, 0 where it has none."""
        return self.operations[0].op_id if self.operations else 0


def encode_item(item: Item) -> bytes:
    """The bytes of an item."""
    columns = [list(column) for column in zip(*item.operations, strict=True)] or [[]] * 5
    kinds, keys, arguments, bases, op_ids = columns
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
            op_ids,
            item.at_ms,
            item.since,
        )
    )


def decode_item(data: bytes) -> Item:
    """Reads `encode_item` back. Raises WireError."""
    match unpack(data):
        case [
            bytes() as client_id, int() as number, int() as floor, bytes() as database, int() as kind, bool() as atomic,
            bytes() as kinds, list() as keys, list() as arguments, list() as bases, list() as op_ids, int() as at_ms,
            [int(), int(), int(), int()] as since,
        ] if len(kinds) == len(keys) == len(arguments) == len(bases) == len(op_ids):  # fmt: skip
            operations = list(map(Operation, kinds, keys, arguments, bases, op_ids))
            return Item(
                client_id,
                number,
                floor,
                database,
                kind,
                atomic,
                operations,
                at_ms,
                Position(*since),
            )
    raise WireError("expected an item of an outbox")


def items_of_entries(
    entries: Iterable[tuple[Position, list[fx.Effect]]], names: Mapping[int, str], common: Position
) -> list[bytes]:
    """The client writes of entries that were cut off, in their order.

    Args:
        names: the databases by number, as the history with these entries has them.
        common: the last position before them.
    """
    items = []
    for _, effects in entries:
        before: list[fx.Effect] = []
        for effect in effects:
            if effect[0] != fx.OUTCOME:
                before.append(effect)
                continue
            item = _item_of(before, effect, names, common)
            before = []
            if item is not None:
                items.append(encode_item(item))
    return items


def _item_of(
    effects: list[fx.Effect], outcome: fx.Effect, names: Mapping[int, str], common: Position
) -> Item | None:
    """The request that these effects were the outcome of; None where it changed nothing."""
    _, client_id, number, floor, status, _, result = outcome
    operations: list[Operation] = []
    database = 0
    created = False
    kind = m.BATCH
    writes = 0
    for effect in effects:
        if effect[0] == fx.DATABASE:
            created = True
            database = effect[1]
        elif effect[0] in _CHANGES:
            database = effect[1]
            writes += 1
            operations += _operations(effect)
            kind = m.SET_MANY if effect[0] == fx.PUTS else _SINGLE.get(effect[0], m.BATCH)
    if status or not operations:
        return None
    if writes > 1 and not created:
        kind = m.BATCH
    at_ms = unix_ms_of(operations[0].op_id)
    if isinstance(result, dict):
        operations = _in_order(result[m.BATCH], operations)
    name = names.get(database, "").encode()
    kind = m.CREATE_DATABASE if created else kind
    # Whether a batch was atomic is not in the log: all or nothing keeps the promise of those that were.
    return Item(client_id, number, floor, name, kind, kind == m.BATCH, operations, at_ms, common)


def _in_order(kinds: bytes, operations: list[Operation]) -> list[Operation]:
    """The writes of a batch that was decided kind by kind, in the order in which its client made them."""
    by_kind = {
        kind: iter([operation for operation in operations if operation.kind == kind])
        for kind in (m.SET, m.INCREMENT)
    }
    return [next(by_kind[kind]) for kind in kinds if kind in by_kind]


def _operations(effect: fx.Effect) -> list[Operation]:
    kind = effect[0]
    if kind == fx.PUT:
        _, _, op_id, _, replaced, key, value = effect
        return [Operation(m.SET, key, value, replaced, op_id)]
    if kind == fx.INCREMENTED:
        _, _, op_id, _, replaced, key, _, delta = effect
        return [Operation(m.INCREMENT, key, delta, replaced, op_id)]
    if kind == fx.TOMBSTONE:
        _, _, op_id, _, replaced, key = effect
        return [Operation(m.REMOVE, key, None, replaced, op_id)]
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
        Operation(m.SET, key, record.value_of(packed), base, record.op_id_of(packed))
        if record.is_live(packed)
        else Operation(m.REMOVE, key, None, base, record.op_id_of(packed))
        for key, packed, base in zip(keys, records, bases, strict=True)
    ]
