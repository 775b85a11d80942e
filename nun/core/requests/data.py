"""Requests for single keys, and reads: decide, store, and what retries are told.

Single writes are decided by the accept rule and stored at once; batches are in nun/core/requests/batch.py.

I1  Whatever reads or decides has the batch that was put off stored first: no request sees a table without what was
    decided before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun.core import effects as fx
from nun.core import record
from nun.core.accept import base_of, check_condition, incremented, next_version, refuses
from nun.core.conflicts.ledger import Write
from nun.core.keyspace import Pattern
from nun.core.record import ABSENT, pack_head
from nun.core.requests.access import CONNECTIONS_KEY
from nun.core.requests.arguments import (
    check_delta,
    check_key,
    check_keys,
    check_managed,
    check_value,
)
from nun.core.stream import later
from nun.errors import (
    BadRequest,
    ConflictPending,
    NotANumber,
    Overloaded,
    RequestError,
    VersionConflict,
    from_wire,
)
from nun.limits import BATCH_OPERATIONS_MAX, KEYS_PAGE_MAX, KEYS_SCAN_MAX, VERSION_MAX

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.requests.sessions import Session
    from nun.core.state import Row
    from nun.core.stream import PendingEntry

LOGGED: Final = (VersionConflict, NotANumber, BadRequest)  # what the accept rule refuses with
RIGHT_OF: Final = {m.GET: "r", m.SET: "w", m.REMOVE: "x", m.INCREMENT: "i"}

Handler = Callable[["Session", list[Any]], None]


class DataRequests:
    """The handlers of requests for keys and values."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._stream = core.stream

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler)."""
        return {
            m.GET: (5, self.get),
            m.GET_MANY: (5, self.get_many),
            m.SET: (8, self.set),
            m.REMOVE: (7, self.remove),
            m.INCREMENT: (7, self.increment),
            m.KEYS: (7, self.keys),
        }

    # Reading

    def get(self, session: Session, message: list[Any]) -> None:
        _, _, number, database, key = message
        core = self._core
        table, rights = core.grant(session, database)
        if core.batches.put_off:
            core.settle()
        if type(key) is not bytes:
            raise BadRequest("a key is a text of at least one byte")
        if not rights.everything or key[:1] == b"$":
            rights.check("r", key)
            if key == CONNECTIONS_KEY:
                core.reply(session, number, self._connections(database))
                return
        packed = table.records.get(key)
        tentative = None
        if core.tentative.shown and core.level is None:
            tentative = core.tentative.record_of(database, key)
            packed = packed if tentative is None else tentative
        if packed is not None and packed[3] >= 0x80:
            packed = record.shown(packed)
        if tentative is not None:
            core.tentative.reply(session, number, database, (key,), packed)
            return
        waits_for = None
        if self._stream.pending or self._stream.open is not None:
            waits_for = self._stream.waits_for(database, (key,))
        core.reply(session, number, packed, waits_for=waits_for)

    def get_many(self, session: Session, message: list[Any]) -> None:
        _, _, number, database, keys = message
        core = self._core
        table, rights = core.grant(session, database)
        if core.batches.put_off:
            core.settle()
        if not isinstance(keys, list) or len(keys) > BATCH_OPERATIONS_MAX:
            raise BadRequest(f"keys are an array of at most {BATCH_OPERATIONS_MAX}")
        joined = check_keys(keys)
        rights.check_many("r", keys, joined)
        records = list(map(table.records.get, keys))
        if table.special:
            records = list(map(record.shown, records))
        if core.tentative.shown and core.level is None:
            shown = [core.tentative.record_of(database, key) for key in keys]
            if any(shown):
                both = zip(shown, records, strict=True)
                records = [committed if own is None else own for own, committed in both]
                core.tentative.reply(session, number, database, keys, records)
                return
        core.check_reply_size(sum(map(len, filter(None, records))))
        waits_for = None
        if self._stream.pending or self._stream.open is not None:
            waits_for = self._stream.waits_for(database, keys)
        core.reply(session, number, records, waits_for=waits_for)

    def keys(self, session: Session, message: list[Any]) -> None:
        _, _, number, database, pattern, limit, after = message
        core = self._core
        table, rights = core.grant(session, database)
        core.settle()
        if type(pattern) is not bytes or not (after is None or type(after) is bytes):
            raise BadRequest("keys takes a pattern, and a key to go on after or nil")
        if type(limit) is not int or limit < 1:
            raise BadRequest("the limit of keys is a positive integer")
        wanted, limit = Pattern(pattern), min(limit, KEYS_PAGE_MAX)
        page = table.page(wanted, after, limit, KEYS_SCAN_MAX)
        own: Collection[bytes] = ()
        if core.tentative.shown:
            page, own = core.tentative.page_of(database, wanted, after, limit, page)
        found, after = page
        system = pattern.startswith(b"$") and rights.admin
        if not system:
            found = [key for key in found if not key.startswith(b"$$") and rights.allows("r", key)]
        if own:
            core.tentative.reply(session, number, database, own, [found, after])
            return
        core.reply(session, number, [found, after], waits_for=self._stream.newest())

    def _connections(self, database: int) -> bytes:
        """The record of `$connections`: how many live sessions have selected this database."""
        count = sum(database in session.grants for session in self._core.sessions.values())
        return record.live(1, 1, b"%d" % count)

    # Writing one key

    def set(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, key, value, condition = message
        check_value(value)
        self._write(session, (m.SET, number, floor, database, key, value, condition))

    def remove(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, key, condition = message
        self._write(session, (m.REMOVE, number, floor, database, key, None, condition))

    def increment(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, key, delta = message
        check_delta(delta)
        self._write(session, (m.INCREMENT, number, floor, database, key, delta, None))

    def _write(self, session: Session, request: tuple[Any, ...]) -> None:
        kind, number, floor, database, key, argument, condition = request
        core = self._core
        table, rights = core.grant(session, database)
        check_key(key)
        if not rights.everything or key[:1] == b"$":
            rights.check(RIGHT_OF[kind], key)
            check_managed(key)
        if condition is not None:
            check_condition(condition)
        row = core.begin_write(session, number, floor)
        if row is not None:
            self.answer_write(session, number, row, database)
            return
        if core.batches.put_off:
            core.settle()
        old = table.records.get(key, ABSENT)
        stream = self._stream
        word, replaced = record.unpack_head(old)
        try:
            if condition is None and word < VERSION_MAX:  # nothing to compare it with, and no
                version = word + 1  # tombstone or key in conflict: nearly always
            else:
                version = next_version(key, old, condition)
            total = incremented(key, old, argument) if kind == m.INCREMENT else 0
        except LOGGED as error:
            self._refused(session, request, old, error)
            return
        if core.conflicts.signs(database):
            self._write_signed(session, request, old, version, total)
            return
        entry = stream.entry()
        if kind == m.REMOVE and (old is ABSENT or old[3] >= 0x80):
            version, op_id = version - 1, 0  # nothing was there: nothing changes
        else:
            op_id = core.stamp(session)
            if kind == m.REMOVE:
                new = record.tombstone(version, op_id)
                stream.add((fx.TOMBSTONE, database, op_id, version, replaced, key))
            else:
                value = argument if kind == m.SET else b"%d" % total
                new = pack_head(version, op_id) + value
                effect: fx.Effect = (fx.PUT, database, op_id, version, replaced, key, value)
                if kind == m.INCREMENT:
                    effect = (fx.INCREMENTED, *effect[1:], argument)
                stream.add(effect)
            table.replace(key, new)
            entry.changes.append(fx.RecordChange(database, (key,), (new,)))
        answer: Any = version if kind != m.INCREMENT else [version, total]
        core.outcome(session, number, floor, 0, op_id, answer)
        core.reply(session, number, answer, position=entry.position, op_id=op_id, waits_for=entry)

    def _refused(
        self, session: Session, request: tuple[Any, ...], old: bytes, error: RequestError
    ) -> None:
        """The accept rule refuses a write: the database's strategy says what becomes of it."""
        kind, number, floor, database, key, argument, condition = request
        core = self._core
        code: int = error.code
        answer: Any = error.message
        op_id = 0
        if isinstance(error, VersionConflict) and not refuses(condition):
            at_ms, bound_ms = core.stamped_at(session)
            op_id = core.stamp(session)
            base = base_of(condition, key, old, core.tables[database])
            write = Write(
                database,
                key,
                kind,
                argument,
                base,
                op_id,
                at_ms,
                bound_ms,
                session.client_id,
                number,
            )
            code, answer = core.conflicts.challenge(write, old, error.message)
        if code == Overloaded.code:  # nothing was decided: it may come again
            raise Overloaded(answer, limit="conflicts", retry_after_ms=1_000)
        if code:
            core.metrics.errors[type(from_wire(code, "", {})).__name__] += 1
            answer = [answer, key if op_id else error.fields.get("key")]
        core.outcome(session, number, floor, code, op_id, answer)
        row = core.state.clients[session.client_id].rows[number]
        self.answer_write(session, number, row, database)

    def _write_signed(
        self, session: Session, request: tuple[Any, ...], old: bytes, version: int, total: int
    ) -> None:
        """An accepted write where records say whose they are."""
        kind, number, floor, database, key, argument, _ = request
        core = self._core
        op_id = 0
        if kind == m.REMOVE and not record.is_live(old):
            version -= 1  # nothing was there: nothing changes
        else:
            at_ms, bound_ms = core.stamped_at(session)
            op_id = core.stamp(session)
            base = record.op_id_of(old)
            write = Write(
                database,
                key,
                kind,
                argument,
                base,
                op_id,
                at_ms,
                bound_ms,
                session.client_id,
                number,
            )
            core.conflicts.accept(
                write, version, b"%d" % total if kind == m.INCREMENT else argument
            )
        answer: Any = version if kind != m.INCREMENT else [version, total]
        entry = core.outcome(session, number, floor, 0, op_id, answer)
        core.reply(session, number, answer, position=entry.position, op_id=op_id, waits_for=entry)

    def answer_write(self, session: Session, number: int, row: Row, database: int) -> None:
        """Tells what became of a single write or SET_MANY; a refusal carries what the key holds now."""
        waits_for = self._stream.at(row.position.seq)
        result = row.result
        if row.status:
            match result:
                case [str() | bytes() as text, None | bytes() as key]:
                    result, waits_for = self.told(row.status, text, key, database, waits_for)
                    if row.status == ConflictPending.code:
                        result[1]["conflict"] = (
                            row.op_id
                        )  # its entry may have been cleaned away since
                    if row.op_id and key is not None:
                        self.name_conflict(result[1], database, key, row.op_id)
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

    def name_conflict(self, fields: dict[str, Any], database: int, key: bytes, op_id: int) -> None:
        """Adds to a refusal which entry of the ledger is about it, if one is, and on which record it was made."""
        if self._core.ledger.has(database, key, op_id):
            fields["conflict"] = op_id
            fields["base"] = self._core.ledger.read(database, key, op_id)["base"]

    def told(
        self, code: int, text: Any, key: Any, database: int, waits_for: PendingEntry | None
    ) -> tuple[list[Any], PendingEntry | None]:
        """The body of an error reply for a refusal that was logged, and what it depends on."""
        fields: dict[str, Any] = {} if key is None else {"key": key}
        if code in (VersionConflict.code, ConflictPending.code):
            self._core.settle()
            table = self._core.tables.get(database)
            current = table.records.get(key) if table is not None else None
            fields["current"] = record.shown(current)
            waits_for = later(waits_for, self._stream.waits_for(database, (key,)))
        return [text, fields], waits_for
