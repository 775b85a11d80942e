"""Requests for keys and values: read, decide, and what their retries are told.

Two paths lead to a record. Large batches of plain sets (SET_MANY of distinct keys, none a tombstone) are decided by
column: the heads of what they replace are joined, checked at once, and published together with the client's own bytes;
the new records are built and stored by `settle`, while the storage writer is busy. Everything else is decided one
operation after the other by the accept rule and stored at once.

I1  Whatever reads or decides calls `settle` first, unless nothing is put off: no request sees a table without the
    batches decided before it.
I2  A batch with `atomic` changes all or nothing: what it stored is put back before it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress, repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core import record
from nun.core.accept import (
    INT_MAX,
    INT_MIN,
    Condition,
    check_condition,
    incremented,
    next_version,
)
from nun.core.access import (
    CONNECTIONS_KEY,
    PERMISSION_PREFIX,
    TOKEN_KEY,
    USER_PREFIX,
    Rights,
)
from nun.core.clock import TICK
from nun.core.keyspace import Pattern, Table
from nun.core.record import ABSENT, HEAD_BYTES, pack_head, unpack_head
from nun.errors import (
    BadRequest,
    BatchRefused,
    NotANumber,
    TooLarge,
    VersionConflict,
    WireError,
)
from nun.limits import (
    BATCH_BYTES_MAX,
    BATCH_OPERATIONS_MAX,
    KEY_BYTES_MAX,
    KEYS_PAGE_MAX,
    KEYS_SCAN_MAX,
    VALUE_BYTES_MAX,
    VERSION_MAX,
)

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.sessions import Session
    from nun.core.state import Row
    from nun.core.stream import PendingEntry

_LOGGED: Final = (VersionConflict, NotANumber, BadRequest)  # what the accept rule refuses with
_MANAGED_KEYS: Final = (
    (USER_PREFIX, "create_user"),
    (PERMISSION_PREFIX, "set_permissions"),
    (TOKEN_KEY, "alter_database"),
    (CONNECTIONS_KEY, "nothing: it is computed"),
)
_DIGITS_SURE: Final = HEAD_BYTES + 18  # so many digits are surely a 64-bit integer
_RIGHT_OF: Final = {m.GET: "r", m.SET: "w", m.REMOVE: "x", m.INCREMENT: "i"}

Handler = Callable[["Session", list[Any]], None]


def check_key(key: Any) -> None:
    """Raises BadRequest or TooLarge unless this may be a key."""
    if type(key) is not bytes or not key:
        raise BadRequest("a key is a text of at least one byte")
    if len(key) > KEY_BYTES_MAX and not key.startswith(b"$"):
        raise _too_large("KEY_BYTES_MAX", KEY_BYTES_MAX, len(key), "a key")
    if not key.isascii():
        _check_text(key)


def all_short(payload: bytes) -> bool:
    """Whether surely no text or binary in these msgpack bytes is longer than 255 bytes.

    Longer ones begin with one of four bytes; looking for those is fifty times cheaper than measuring each.
    """
    return not (0xC5 in payload or 0xC6 in payload or 0xDA in payload or 0xDB in payload)


def check_keys(keys: Sequence[Any], short: bool = False) -> bytes:
    """Checks many keys at the cost of a few calls; returns all of them, one after the other.

    Args:
        short: they are known to be no longer than 255 bytes.
    """
    try:
        joined = b"".join(keys)
    except TypeError as error:
        raise BadRequest("a key is a text of at least one byte") from error
    if (len(joined) > KEY_BYTES_MAX and not short) or not joined.isascii():
        longest = max(keys, key=len)
        if len(longest) > KEY_BYTES_MAX:
            check_key(longest)
        if not joined.isascii():
            for key in keys:
                _check_text(key)
    return joined


def check_managed(key: bytes) -> None:
    """Refuses writes to the keys that have a request of their own."""
    for prefix, instead in _MANAGED_KEYS:
        if key.startswith(prefix):
            raise BadRequest(
                f"key {key.decode('utf-8', 'replace')!r} is not written directly; use {instead}"
            )


def _check_text(key: bytes) -> None:
    try:
        key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"a key is UTF-8 text, found {key[:40]!r}") from error


def _check_value(value: Any) -> None:
    if type(value) is not bytes:
        raise BadRequest("a value is text or bytes")
    if len(value) > VALUE_BYTES_MAX:
        raise _too_large("VALUE_BYTES_MAX", VALUE_BYTES_MAX, len(value), "a value")


def _check_delta(delta: Any) -> None:
    if type(delta) is not int or not INT_MIN <= delta <= INT_MAX:
        raise BadRequest(f"an increment is a 64-bit integer, found {delta!r:.40}")


def _too_large(limit: str, bound: int, found: int, what: str) -> TooLarge:
    return TooLarge(
        f"{what} of {found} is above {limit} = {bound}", limit=limit, bound=bound, found=found
    )


def check_values(values: Sequence[Any], short: bool = False) -> None:
    """Checks many values at the cost of a few calls; `short` as in `check_keys`."""
    if short:
        try:
            b"".join(values)  # the cheapest way to find one that is not bytes
        except TypeError as error:
            raise BadRequest("a value is text or bytes") from error
    else:
        for value in values:
            _check_value(value)


class _PutOff(NamedTuple):
    """A batch of plain sets that is decided and published, and not yet stored; `new` is to be filled."""

    table: Table
    keys: Sequence[bytes]
    values: Sequence[bytes]
    old: Sequence[bytes]
    versions: Sequence[int]
    first_op_id: int
    new: list[bytes]


class DataRequests:
    """The handlers of requests for keys and values."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._stream = core.stream
        self._put_off: _PutOff | None = None

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler)."""
        return {
            m.GET: (5, self.get),
            m.GET_MANY: (5, self.get_many),
            m.SET: (8, self.set),
            m.REMOVE: (7, self.remove),
            m.INCREMENT: (7, self.increment),
            m.SET_MANY: (6, self.set_many),
            m.BATCH: (9, self.batch),
            m.KEYS: (7, self.keys),
        }

    # Reading

    def get(self, session: Session, message: list[Any]) -> None:
        _, _, number, database, key = message
        core = self._core
        table, rights = core.grant(session, database)
        if self._put_off:
            self.settle()
        if type(key) is not bytes:
            raise BadRequest("a key is a text of at least one byte")
        if not rights.everything or key[:1] == b"$":
            rights.check("r", key)
            if key == CONNECTIONS_KEY:
                core.reply(session, number, self._connections(database))
                return
        packed = table.records.get(key)
        if packed is not None and packed[3] >= 0x80:
            packed = None
        waits_for = None
        if self._stream.pending or self._stream.open is not None:
            waits_for = self._stream.waits_for(database, (key,))
        core.reply(session, number, packed, waits_for=waits_for)

    def get_many(self, session: Session, message: list[Any]) -> None:
        _, _, number, database, keys = message
        core = self._core
        table, rights = core.grant(session, database)
        if self._put_off:
            self.settle()
        if not isinstance(keys, list) or len(keys) > BATCH_OPERATIONS_MAX:
            raise BadRequest(f"keys are an array of at most {BATCH_OPERATIONS_MAX}")
        joined = check_keys(keys)
        rights.check_many("r", keys, joined)
        records = list(map(table.records.get, keys))
        core.check_reply_size(sum(map(len, filter(None, records))))
        waits_for = None
        if self._stream.pending or self._stream.open is not None:
            waits_for = self._stream.waits_for(database, keys)
        core.reply(session, number, records, waits_for=waits_for)

    def keys(self, session: Session, message: list[Any]) -> None:
        _, _, number, database, pattern, limit, after = message
        core = self._core
        table, rights = core.grant(session, database)
        self.settle()
        if type(pattern) is not bytes or not (after is None or type(after) is bytes):
            raise BadRequest("keys takes a pattern, and a key to go on after or nil")
        if type(limit) is not int or limit < 1:
            raise BadRequest("the limit of keys is a positive integer")
        found, after = table.page(Pattern(pattern), after, min(limit, KEYS_PAGE_MAX), KEYS_SCAN_MAX)
        system = pattern.startswith(b"$") and rights.admin
        if not system:
            found = [key for key in found if not key.startswith(b"$$") and rights.allows("r", key)]
        core.reply(session, number, [found, after], waits_for=self._stream.newest())

    def _connections(self, database: int) -> bytes:
        """The record of `$connections`: how many live sessions have selected this database."""
        count = sum(database in session.grants for session in self._core.sessions.values())
        return record.live(1, 1, b"%d" % count)

    # Writing one key

    def set(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, key, value, condition = message
        _check_value(value)
        self._write(session, (m.SET, number, floor, database, key, value, condition))

    def remove(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, key, condition = message
        self._write(session, (m.REMOVE, number, floor, database, key, None, condition))

    def increment(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, key, delta = message
        _check_delta(delta)
        self._write(session, (m.INCREMENT, number, floor, database, key, delta, None))

    def _write(self, session: Session, request: tuple[Any, ...]) -> None:
        kind, number, floor, database, key, argument, condition = request
        core = self._core
        table, rights = core.grant(session, database)
        check_key(key)
        if not rights.everything or key[:1] == b"$":
            rights.check(_RIGHT_OF[kind], key)
            check_managed(key)
        if condition is not None:
            check_condition(condition)
        row = core.begin_write(session, number, floor)
        if row is not None:
            self._answer_write(session, number, row, database)
            return
        if self._put_off:
            self.settle()
        old = table.records.get(key, ABSENT)
        stream = self._stream
        try:
            version = next_version(key, old, condition)
            total = incremented(key, old, argument) if kind == m.INCREMENT else 0
        except _LOGGED as error:
            core.metrics.errors[type(error).__name__] += 1
            result = [error.message, error.fields.get("key")]
            core.outcome(session, number, floor, error.code, 0, result)
            row = core.state.clients[session.client_id].rows[number]
            self._answer_write(session, number, row, database)
            return
        entry = stream.entry()
        if kind == m.REMOVE and (old is ABSENT or old[3] >= 0x80):
            version, op_id = version - 1, 0  # nothing was there: nothing changes
        else:
            op_id = stream.clock.reserve(core.unix_ms)
            replaced = record.op_id_of(old)
            if kind == m.REMOVE:
                new = record.tombstone(version, op_id)
                stream.add((fx.TOMBSTONE, database, op_id, version, replaced, key))
            else:
                value = argument if kind == m.SET else b"%d" % total
                new = pack_head(version, op_id) + value
                stream.add((fx.PUT, database, op_id, version, replaced, key, value))
            table.replace(key, new)
            entry.changes.append(fx.RecordChange(database, (key,), (new,)))
        answer: Any = version if kind != m.INCREMENT else [version, total]
        core.outcome(session, number, floor, 0, op_id, answer)
        entry.timed.append(("write", core.now_ns, 1))
        core.reply(session, number, answer, position=entry.position, op_id=op_id, waits_for=entry)

    def _answer_write(self, session: Session, number: int, row: Row, database: int) -> None:
        """Tells what became of a single write or SET_MANY; a refusal carries what the key holds now."""
        waits_for = self._stream.at(row.position.seq)
        result = row.result
        if row.status:
            match result:
                case [str() | bytes() as text, None | bytes() as key]:
                    result, waits_for = self._told(row.status, text, key, database, waits_for)
                case _:
                    raise BadRequest(f"number {number} was used for another kind of request")
        self._core.reply(
            session,
            number,
            result,
            status=row.status,
            position=row.position,
            op_id=row.op_id,
            waits_for=waits_for,
        )

    def _told(
        self, code: int, text: Any, key: Any, database: int, waits_for: PendingEntry | None
    ) -> tuple[list[Any], PendingEntry | None]:
        """The body of an error reply for a refusal that was logged, and what it depends on."""
        fields: dict[str, Any] = {} if key is None else {"key": key}
        if code == VersionConflict.code:
            self.settle()
            table = self._core.tables.get(database)
            current = table.records.get(key) if table is not None else None
            fields["current"] = current if record.is_live(current) else None
            waits_for = self._stream.waits_for(database, (key,)) or waits_for
        return [text, fields], waits_for

    # Writing many

    def set_many(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, payload = message
        core = self._core
        table, rights = core.grant(session, database)
        keys, values = self._columns(payload)
        short = all_short(payload)
        joined = check_keys(keys, short)
        if b"$" in joined:
            for key in keys:
                check_managed(key)
        rights.check_many("w", keys, joined)
        check_values(values, short)
        row = core.begin_write(session, number, floor)
        if row is not None:
            if isinstance(row.result, list) and not row.status:
                kinds = bytes([m.SET]) * len(keys)
                self._answer_batch(session, number, row, database, kinds, keys)
            else:
                self._answer_write(session, number, row, database)
            return
        if self._put_off:
            self.settle()
        old = list(map(table.records.get, keys, repeat(ABSENT)))
        heads = record.heads(old)
        versions = record.versions_of_heads(heads)
        distinct = {*keys}
        if b"" in distinct:
            raise BadRequest("a key is a text of at least one byte")
        plain = len(distinct) == len(keys) and max(versions, default=0) < VERSION_MAX
        if not plain:
            kinds = bytes([m.SET]) * len(keys)
            self._decide_batch(session, (number, floor, database, False), kinds, keys, values, None)
            return
        stream = self._stream
        first = stream.clock.reserve(core.unix_ms, len(keys)) if keys else 0
        entry = stream.add((fx.PUTS, database, first, heads, payload))
        core.outcome(session, number, floor, 0, first, True)
        new: list[bytes] = []
        self._put_off = _PutOff(table, keys, values, old, versions, first, new)
        entry.changes.append(fx.RecordChange(database, keys, new))
        entry.timed.append(("write", core.now_ns, 1))
        core.reply(session, number, heads, position=entry.position, op_id=first, waits_for=entry)

    def settle(self) -> None:
        """Builds and stores the records of the batch of sets that was put off."""
        put_off = self._put_off
        if put_off is None:
            return
        self._put_off = None
        table, keys, values, old, versions, first, new = put_off
        op_ids = range(first, first + TICK * len(keys), TICK)
        new += [
            pack_head(version + 1, op_id) + value
            for version, op_id, value in zip(versions, op_ids, values, strict=True)
        ]
        table.put_many(keys, new, old)

    def _columns(self, payload: Any) -> tuple[list[Any], list[Any]]:
        if type(payload) is not bytes:
            raise BadRequest("the payload of a batch is the msgpack bytes of two arrays")
        if len(payload) > BATCH_BYTES_MAX:
            raise _too_large("BATCH_BYTES_MAX", BATCH_BYTES_MAX, len(payload), "a batch")
        try:
            keys, arguments = fx.keys_and_values(payload)
        except WireError as error:
            raise BadRequest(f"the payload of a batch: {error}") from error
        if len(keys) > BATCH_OPERATIONS_MAX:
            raise _too_large("BATCH_OPERATIONS_MAX", BATCH_OPERATIONS_MAX, len(keys), "a batch")
        return keys, arguments

    def batch(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, atomic, kinds, payload, conditions = message
        core = self._core
        _, rights = core.grant(session, database)
        keys, arguments = self._columns(payload)
        if type(kinds) is not bytes or len(kinds) != len(keys) or type(atomic) is not bool:
            raise BadRequest("a batch has a boolean `atomic` and one byte of kind an operation")
        self._check_operations(rights, kinds, keys, arguments, all_short(payload))
        if conditions is not None:
            if not isinstance(conditions, dict):
                raise BadRequest("the conditions of a batch are nil or a map by index")
            for index, condition in conditions.items():
                if type(index) is not int or not 0 <= index < len(keys):
                    raise BadRequest(f"a condition for operation {index!r:.20}, which is not there")
                check_condition(condition)
        row = core.begin_write(session, number, floor)
        if row is not None:
            self._answer_batch(session, number, row, database, kinds, keys)
            return
        if self._put_off:
            self.settle()
        self._decide_batch(
            session, (number, floor, database, atomic), kinds, keys, arguments, conditions
        )

    @staticmethod
    def _check_operations(
        rights: Rights, kinds: bytes, keys: Sequence[Any], arguments: Sequence[Any], short: bool
    ) -> None:
        used = {*kinds}
        unknown = used - _RIGHT_OF.keys()
        if unknown:
            raise BadRequest(f"operations of a batch are of kinds 4, 6, 7, 8; found {min(unknown)}")
        joined = check_keys(keys, short)
        if b"" in keys:
            raise BadRequest("a key is a text of at least one byte")
        if b"$" in joined:
            for kind, key in zip(kinds, keys, strict=True):
                if kind != m.GET:
                    check_managed(key)
        if m.SET in used:
            check_values(list(compress(arguments, map(m.SET.__eq__, kinds))), short)
        if m.INCREMENT in used:
            deltas = list(compress(arguments, map(m.INCREMENT.__eq__, kinds)))
            if {*map(type, deltas)} != {int} or min(deltas) < INT_MIN or max(deltas) > INT_MAX:
                for delta in deltas:
                    _check_delta(delta)
        if not rights.everything or b"$$" in joined:
            for kind in used:
                chosen = list(compress(keys, map(kind.__eq__, kinds)))
                rights.check_many(_RIGHT_OF[kind], chosen, joined)

    def _decide_batch(
        self,
        session: Session,
        head: tuple[int, int, int, bool],
        kinds: bytes,
        keys: Sequence[bytes],
        arguments: Sequence[Any],
        conditions: dict[int, Condition] | None,
    ) -> None:
        """Decides the operations of a batch in order and logs its outcome."""
        number, floor, database, atomic = head
        core = self._core
        stream = self._stream
        first = stream.clock.reserve(core.unix_ms, len(keys) or 1)
        decided = _Decided(core.tables[database], first)
        decided.run(kinds, keys, arguments, conditions)
        waits_for = stream.waits_for(database, keys) if m.GET in kinds else None
        status = 0
        if atomic and decided.failed:
            decided.put_back()
            status = BatchRefused.code
        entry = stream.entry()
        if decided.keys:
            heads = record.heads(decided.old)
            last = record.op_id_of(decided.records[-1])
            stream.add((fx.RECORDS, database, last, decided.keys, decided.records, heads))
            entry.changes.append(fx.RecordChange(database, decided.keys, decided.records))
        kept = decided.answers
        if m.GET in kinds:
            kept = [
                None if kind == m.GET else answer for kind, answer in zip(kinds, kept, strict=True)
            ]
        core.outcome(session, number, floor, status, first, [pack(kept)])
        entry.timed.append(("write", core.now_ns, 1))
        row = core.state.clients[session.client_id].rows[number]
        failed = decided.failed > 0
        self._tell_batch(session, number, row, database, decided.answers, failed, waits_for)

    def _answer_batch(
        self,
        session: Session,
        number: int,
        row: Row,
        database: int,
        kinds: bytes,
        keys: Sequence[bytes],
    ) -> None:
        """Tells a retry what became of each operation; what it reads is read now."""
        match row.result:
            case [bytes() as packed]:
                answers = unpack(packed)
            case _:
                answers = None
        if answers is None or len(answers) != len(kinds):
            raise BadRequest(f"number {number} was used for another kind of request")
        waits_for = None
        if m.GET in kinds:
            self.settle()
            records = self._core.tables[database].records
            for index in [index for index, kind in enumerate(kinds) if kind == m.GET]:
                packed_record = records.get(keys[index])
                answers[index] = packed_record if record.is_live(packed_record) else None
            waits_for = self._stream.waits_for(database, keys)
        self._tell_batch(session, number, row, database, answers, True, waits_for)

    def _tell_batch(
        self,
        session: Session,
        number: int,
        row: Row,
        database: int,
        answers: list[Any],
        failed: bool,
        waits_for: PendingEntry | None,
    ) -> None:
        waits_for = self._stream.at(row.position.seq) or waits_for
        if failed:
            for index in [i for i, answer in enumerate(answers) if _is_refusal(answer)]:
                code, text, key = answers[index]
                body, waits_for = self._told(code, text, key, database, waits_for)
                answers[index] = [code, *body]
        result: Any = answers
        if row.status:
            result = ["the batch was refused: nothing of it was done", {"results": answers}]
        self._core.reply(
            session,
            number,
            result,
            status=row.status,
            position=row.position,
            op_id=row.op_id,
            waits_for=waits_for,
        )


def _is_refusal(answer: Any) -> bool:
    """[code, message, key]; a sum is [version, value]."""
    return isinstance(answer, list) and len(answer) == 3


class _Decided:
    """A batch while it is decided, one operation after the other.

    The i-th operation has the op id `first + i * TICK`. Of each, `answers` holds: a version, [version, sum], the record
    that was read, or [code, message, key] of a refusal.
    """

    def __init__(self, table: Table, first: int) -> None:
        self._table = table
        self.first = first
        self.keys: list[bytes] = []
        self.records: list[bytes] = []
        self.old: list[bytes] = []
        self.answers: list[Any] = []
        self.failed = 0

    def run(
        self,
        kinds: bytes,
        keys: Sequence[bytes],
        arguments: Sequence[Any],
        conditions: dict[int, Condition] | None,
    ) -> None:
        """Decides all operations. The common cases stand here, spelled out; `_one` has the whole rule."""
        records = self._table.records
        get = records.get
        answer = self.answers.append
        changed_key, changed_record = self.keys.append, self.records.append
        replaced = self.old.append
        grown = 0
        is_get, is_set, is_increment = m.GET, m.SET, m.INCREMENT
        absent, unpack_old, pack_new = ABSENT, unpack_head, pack_head
        op_id = self.first - TICK
        for index, (kind, key, argument) in enumerate(zip(kinds, keys, arguments, strict=True)):
            op_id += TICK
            old = get(key, absent)
            if kind == is_get:
                answer(old if old is not absent and old[3] < 0x80 else None)
                continue
            word: int = unpack_old(old)[0]
            if old is absent or word >= VERSION_MAX or conditions is not None:
                plain = False
            elif kind == is_set:
                plain = True
                new = pack_new(word + 1, op_id) + argument
                answer(word + 1)
            elif kind == is_increment and len(old) < _DIGITS_SURE and old[HEAD_BYTES:].isdigit():
                total = int(old[HEAD_BYTES:]) + argument
                plain = INT_MIN <= total <= INT_MAX
                if plain:
                    new = pack_new(word + 1, op_id) + b"%d" % total
                    answer([word + 1, total])
            else:
                plain = False
            if plain:
                records[key] = new
                grown += len(new) - len(old)
            else:
                condition = None if conditions is None else conditions.get(index)
                made = self._one(kind, key, old, argument, condition, op_id)
                if made is None:
                    continue
                new = made
            changed_key(key)
            changed_record(new)
            replaced(old)
        self._table.bytes += grown

    def _one(
        self, kind: int, key: bytes, old: bytes, argument: Any, condition: Condition, op_id: int
    ) -> bytes | None:
        """One operation by the accept rule; None when it changes nothing."""
        try:
            version = next_version(key, old, condition)
            total = incremented(key, old, argument) if kind == m.INCREMENT else 0
        except _LOGGED as error:
            self.failed += 1
            self.answers.append([error.code, error.message, error.fields.get("key")])
            return None
        if kind == m.REMOVE:
            if old is ABSENT or old[3] >= 0x80:
                self.answers.append(version - 1)
                return None
            new = record.tombstone(version, op_id)
            self.answers.append(version)
        elif kind == m.SET:
            new = pack_head(version, op_id) + argument
            self.answers.append(version)
        else:
            new = pack_head(version, op_id) + b"%d" % total
            self.answers.append([version, total])
        self._table.replace(key, new)
        return new

    def put_back(self) -> None:
        """Undoes all that was stored, last first; only the refusals remain as answers."""
        for key, old in zip(reversed(self.keys), reversed(self.old), strict=True):
            self._table.replace(key, None if old is ABSENT else old)
        self.keys, self.records, self.old = [], [], []
        self.answers = [answer if _is_refusal(answer) else None for answer in self.answers]
