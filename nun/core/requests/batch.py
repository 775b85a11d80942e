"""Requests for many keys at once.

Plain sets of distinct keys, increments of keys that hold integers, and gets of other keys are decided by column
(batch_columns.py): the heads of what they replace are joined, checked at once and published; the new records
are built and stored by `settle`, while the storage writer is busy. All other batches are decided one operation after
the other by the accept rule and stored at once.

I1  At most one batch is put off, and `settle` comes before anything that looks at a table.
I2  A batch with `atomic` changes all or nothing: what it stored is put back before it is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core import record
from nun.core.accept import (
    INT_MAX,
    INT_MIN,
    Condition,
    base_of,
    check_condition,
    incremented,
    is_refusal,
    next_version,
    refuses,
)
from nun.core.clock import TICK
from nun.core.conflicts.ledger import Write
from nun.core.keyspace import Table
from nun.core.proposals.outbox import ATOMIC
from nun.core.record import ABSENT, HEAD_BYTES, SPECIAL, Signature, is_signed, pack_head
from nun.core.requests.access import Rights
from nun.core.requests.arguments import (
    all_short,
    check_delta,
    check_keys,
    check_managed,
    check_values,
    columns,
)
from nun.core.requests.batch_columns import (
    ByKind,
    Columns,
    Sets,
    Sums,
    by_kind,
    plan,
    plan_sets,
    read,
)
from nun.core.requests.data import LOGGED, RIGHT_OF, Handler
from nun.core.stream import later
from nun.errors import BadRequest, BatchRefused, ConflictPending, VersionConflict
from nun.limits import VERSION_MAX

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.requests.sessions import Session
    from nun.core.state import Row
    from nun.core.stream import PendingEntry

_KNOWN: Final = bytes(RIGHT_OF)
_DIGITS_SURE: Final = 18  # so many digits are surely a 64-bit integer
_SURE_DELTA: Final = 2**62  # adding no more than this to them stays one
_LAST_SIGNED: Final = SPECIAL + VERSION_MAX  # the version word that cannot be counted up

_version_word = struct.Struct("<I").unpack_from


class _PutOff(NamedTuple):
    """A column that is decided and published, and not yet stored."""

    table: Table
    column: Sets | Sums
    first_op_id: int


class BatchRequests:
    """The handlers of SET_MANY and BATCH."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._stream = core.stream
        self.put_off: list[_PutOff] = []

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler)."""
        return {m.SET_MANY: (6, self.set_many), m.BATCH: (9, self.batch)}

    def set_many(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, payload = message
        core = self._core
        table, rights = core.grant(session, database)
        keys, values = columns(payload)
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
                core.data.answer_write(session, number, row, database)
            return
        if self.put_off:
            self.settle()
        distinct = {*keys}
        if b"" in distinct:
            raise BadRequest("a key is a text of at least one byte")
        sets = None
        if len(distinct) == len(keys) and not core.conflicts.signs(database):
            sets = plan_sets(table, keys, values)
        if sets is None:
            kinds = bytes([m.SET]) * len(keys)
            self._decide_batch(session, (number, floor, database, False), kinds, keys, values, None)
            return
        stream = self._stream
        first = core.stamp(session, len(keys)) if keys else 0
        entry = stream.add(sets.effect(database, first, payload))
        core.outcome(session, number, floor, 0, first, True)
        self._put_off(entry, database, _PutOff(table, sets, first))
        core.reply(
            session, number, sets.heads, position=entry.position, op_id=first, waits_for=entry
        )

    def _put_off(self, entry: PendingEntry, database: int, put_off: _PutOff) -> None:
        self.put_off.append(put_off)
        column = put_off.column
        entry.changes.append(fx.RecordChange(database, column.keys, column.new))

    def settle(self) -> None:
        """Builds and stores the records of the batch that was put off."""
        put_off, self.put_off = self.put_off, []
        for table, column, first_op_id in put_off:
            column.store(table, first_op_id)

    def batch(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, atomic, kinds, payload, conditions = message
        core = self._core
        table, rights = core.grant(session, database)
        keys, arguments = columns(payload)
        if type(kinds) is not bytes or len(kinds) != len(keys) or type(atomic) is not bool:
            raise BadRequest("a batch has a boolean `atomic` and one byte of kind an operation")
        unknown = kinds.translate(None, _KNOWN)
        if unknown:
            raise BadRequest(f"operations of a batch are of kinds 4, 6, 7, 8; found {min(unknown)}")
        chosen = by_kind(kinds, keys, arguments)
        self._check_operations(rights, keys, chosen, all_short(payload))
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
        if self.put_off:
            self.settle()
        found: list[bytes | None] = []
        if m.GET in chosen:
            found = read(table, chosen[m.GET][0])
            core.check_reply_size(sum(map(len, filter(None, found))))
        planned = None
        if conditions is None and not core.conflicts.signs(database):
            planned = plan(table, chosen)
        if planned is not None:
            self._take_columns(session, (number, floor, database, atomic), kinds, planned, found)
            return
        self._decide_batch(
            session, (number, floor, database, atomic), kinds, keys, arguments, conditions
        )

    @staticmethod
    def _check_operations(rights: Rights, keys: Sequence[Any], chosen: ByKind, short: bool) -> None:
        joined = check_keys(keys, short)
        if not all(keys):
            raise BadRequest("a key is a text of at least one byte")
        if b"$" in joined:
            for kind, (written, _) in chosen.items():
                if kind != m.GET:
                    for key in written:
                        check_managed(key)
        if m.SET in chosen:
            check_values(chosen[m.SET][1], short)
        if m.INCREMENT in chosen:
            deltas = chosen[m.INCREMENT][1]
            if {*map(type, deltas)} != {int} or min(deltas) < INT_MIN or max(deltas) > INT_MAX:
                for delta in deltas:
                    check_delta(delta)
        if not rights.everything or b"$$" in joined:
            for kind, (named, _) in chosen.items():
                rights.check_many(RIGHT_OF[kind], named, joined)

    def _take_columns(
        self,
        session: Session,
        head: tuple[int, int, int, bool],
        kinds: bytes,
        planned: Columns,
        found: list[bytes | None],
    ) -> None:
        """Publishes what was planned and puts off storing it: first the sets, then the increments.

        `found` is what its gets read: none of their keys is written.
        """
        number, floor, database, atomic = head
        core = self._core
        stream = self._stream
        table, sets, increments = planned
        sets_count = len(sets.keys) if sets is not None else 0
        count = sets_count + (len(increments.keys) if increments is not None else 0)
        first = core.stamp(session, count or 1)
        entry = stream.entry()
        if sets is not None:
            payload = pack((sets.keys, sets.values))
            stream.add(sets.effect(database, first, payload))
            self._put_off(entry, database, _PutOff(table, sets, first))
        if increments is not None:
            first_sum = first + sets_count * TICK
            stream.add(increments.effect(database, first_sum))
            self._put_off(entry, database, _PutOff(table, increments, first_sum))
        told = planned.told()
        # The order of its operations goes into the log too: who decides this batch again answers in that order.
        kept = {ATOMIC: True, m.BATCH: kinds, **told} if atomic else {m.BATCH: kinds, **told}
        core.outcome(session, number, floor, 0, first, kept)
        if found:
            told[m.GET] = found
        core.reply(session, number, told, position=entry.position, op_id=first, waits_for=entry)

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
        at_ms, bound_ms = core.stamped_at(session)
        first = core.stamp(session, len(keys) or 1)
        writer = Write(database, b"", 0, None, 0, first, at_ms, bound_ms, session.client_id, number)
        decided = _Decided(core, writer, atomic)
        decided.run(kinds, keys, arguments, conditions)
        waits_for = stream.waits_for(database, keys) if m.GET in kinds else None
        status = 0
        if atomic and decided.failed:
            decided.put_back()
            status = BatchRefused.code
        decided.flush()
        kept = decided.answers
        if m.GET in kinds:
            kept = [
                None if kind == m.GET else answer for kind, answer in zip(kinds, kept, strict=True)
            ]
        core.outcome(
            session, number, floor, status, first, [pack(kept), *([True] if atomic else ())]
        )
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
            case [bytes() as packed, *_] if row.status in (0, BatchRefused.code):
                answers = unpack(packed)
            case dict() as told if told.get(m.BATCH) == kinds:
                self._tell_columns(session, number, row, database, kinds, keys)
                return
            case _:
                answers = None
        if answers is not None and len(answers) == len(kinds) - kinds.count(m.GET):
            # Decided anew after a change of primary: what was read is not among the answers.
            each = iter(answers)
            answers = [None if kind == m.GET else next(each) for kind in kinds]
        if answers is None or len(answers) != len(kinds):
            raise BadRequest(f"number {number} was used for another kind of request")
        waits_for = None
        if m.GET in kinds and not row.status:
            self.settle()
            records = self._core.tables[database].records
            for index in [index for index, kind in enumerate(kinds) if kind == m.GET]:
                packed_record = records.get(keys[index])
                answers[index] = packed_record if record.is_live(packed_record) else None
            waits_for = self._stream.waits_for(database, keys)
        self._tell_batch(session, number, row, database, answers, True, waits_for)

    def _tell_columns(
        self,
        session: Session,
        number: int,
        row: Row,
        database: int,
        kinds: bytes,
        keys: Sequence[bytes],
    ) -> None:
        told = {
            kind: answer for kind, answer in row.result.items() if kind not in (m.BATCH, ATOMIC)
        }
        waits_for = self._stream.at(row.position.seq)
        if m.GET in kinds:
            self.settle()
            gets, _ = by_kind(kinds, keys, keys)[m.GET]
            told[m.GET] = read(self._core.tables[database], gets)
            waits_for = later(waits_for, self._stream.waits_for(database, gets))
        self._core.reply(
            session,
            number,
            told,
            position=row.position,
            op_id=row.op_id,
            waits_for=waits_for,
        )

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
        waits_for = later(waits_for, self._stream.at(row.position.seq))
        if failed:
            for index in [i for i, answer in enumerate(answers) if is_refusal(answer)]:
                code, text, key = answers[index]
                body, waits_for = self._core.data.told(code, text, key, database, waits_for)
                if code == ConflictPending.code:
                    op_id = body[1]["conflict"] = row.op_id + index * TICK
                    self._core.data.name_conflict(body[1], database, key, op_id)
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


class _Decided:
    """A batch while it is decided, one operation after the other.

    The i-th operation has the op id `first + i * TICK`. Of each, `answers` holds: a version, [version, sum], the record
    that was read, or [code, message, key] of a refusal.

    Args:
        writer: the first operation's op id, when and by whom the batch was made; no key, nothing written.
    """

    def __init__(self, core: NetworkCore, writer: Write, atomic: bool) -> None:
        self._core = core
        self._writer = writer
        self._atomic = atomic
        self._table = core.tables[writer.database]
        self._rules = core.conflicts.rules(writer.database)
        self.keys: list[bytes] = []
        self.records: list[bytes] = []
        self.old: list[bytes] = []
        self._deltas: list[int | None] = []  # of signed records
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
        absent, version_word, pack_new = ABSENT, _version_word, pack_head
        careful = conditions is not None or self._rules.signs
        tail = self._tail_of_all() if conditions is None else b""
        op_id = self._writer.op_id - TICK
        for index, (kind, key, argument) in enumerate(zip(kinds, keys, arguments, strict=True)):
            op_id += TICK
            old = get(key, absent)
            if kind == is_get:
                if old is absent:
                    answer(None)
                else:
                    answer(old if old[3] < 0x80 else record.shown(old))
                continue
            word: int = version_word(old)[0]
            if tail and kind == is_set and is_signed(old) and word < _LAST_SIGNED:
                plain = True
                new = pack_new(word + 1, op_id) + tail + argument
                answer(word + 1 - SPECIAL)
                self._deltas.append(None)
            elif old is absent or word >= VERSION_MAX or careful:
                plain = False
            elif kind == is_set:
                plain = True
                new = pack_new(word + 1, op_id) + argument
                answer(word + 1)
            elif (
                kind == is_increment
                and (digits := old[HEAD_BYTES:]).isdigit()
                and len(digits) <= _DIGITS_SURE
                and -_SURE_DELTA < argument < _SURE_DELTA
            ):
                plain = True
                total = int(digits) + argument
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

    def _tail_of_all(self) -> bytes:
        """What every signed set of this batch has between head and value; empty where that is not the same for all."""
        rules, write = self._rules, self._writer
        if not rules.signs or rules.chains or rules.arbitrates:
            return b""
        signature = Signature(write.at_ms, write.bound_ms, write.client_id, write.request)
        return record.signed_tail(signature)

    def _one(
        self, kind: int, key: bytes, old: bytes, argument: Any, condition: Condition, op_id: int
    ) -> bytes | None:
        """One operation by the accept rule; None when there is nothing to store for it."""
        try:
            version = next_version(key, old, condition)
            total = incremented(key, old, argument) if kind == m.INCREMENT else 0
        except LOGGED as error:
            answer: Any = [error.code, error.message, error.fields.get("key")]
            if isinstance(error, VersionConflict) and not self._atomic and not refuses(condition):
                answer = self._challenge(kind, key, old, argument, condition, op_id, error.message)
            self.failed += is_refusal(answer)
            self.answers.append(answer)
            return None
        if kind == m.REMOVE and not record.is_live(old):
            self.answers.append(version - 1)
            return None
        self.answers.append([version, total] if kind == m.INCREMENT else version)
        value = b"%d" % total if kind == m.INCREMENT else argument
        write = self._writer
        if self._rules.signs:
            write = write._replace(op_id=op_id)
            new = self._core.conflicts.made(self._rules, write, version, value, old)
            self._deltas.append(argument if kind == m.INCREMENT else None)
        elif kind == m.REMOVE:
            new = record.tombstone(version, op_id)
        else:
            new = pack_head(version, op_id) + value
        self._table.replace(key, new)
        return new

    def _challenge(
        self,
        kind: int,
        key: bytes,
        old: bytes,
        argument: Any,
        condition: Condition,
        op_id: int,
        why: str,
    ) -> Any:
        """What the strategy makes of an operation that is refused: a version, or [code, message, key]."""
        self.flush()  # what comes of it must not stand before what was decided earlier
        base = base_of(condition, key, old, self._table)
        write = self._writer._replace(key=key, kind=kind, argument=argument, base=base, op_id=op_id)
        code, answer = self._core.conflicts.challenge(write, old, why)
        return [code, answer, key] if code else answer

    def flush(self) -> None:
        """Puts what was decided so far into the entry."""
        if not self.keys:
            return
        database = self._writer.database
        stream = self._core.stream
        entry = stream.entry()
        keys, records = self.keys[:], self.records[:]  # the entry keeps them
        if self._rules.signs:
            bases = record.op_ids_of_heads(record.heads(self.old))
            made = zip(keys, records, bases, self._deltas, strict=True)
            stream.add_signed(
                [
                    (fx.SIGNED, database, key, new, base, base, delta)
                    for key, new, base, delta in made
                ]
            )
        else:
            last = record.op_id_of(records[-1])
            heads = record.heads(self.old)
            stream.add((fx.RECORDS, database, last, keys, records, heads))
            self._table.replaced(keys, self.old)
        entry.changes.append(fx.RecordChange(database, keys, records))
        self._clear()

    def _clear(self) -> None:
        for column in (self.keys, self.records, self.old, self._deltas):
            column.clear()

    def put_back(self) -> None:
        """Undoes all that was stored, last first; only the refusals remain as answers."""
        for key, old in zip(reversed(self.keys), reversed(self.old), strict=True):
            self._table.replace(key, None if old is ABSENT else old)
        self._clear()
        self.answers = [answer if is_refusal(answer) else None for answer in self.answers]
