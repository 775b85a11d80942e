"""Deciding items on the primary: writes that were shown or acknowledged before they were decided.

Such a write is judged by the op id of the record that it was made on, whatever its client had said: a week-old plain
set must not erase what it never saw. It keeps its op id, and is never merely refused: what cannot be accepted any more
becomes an entry of the ledger, with its value, and its writer is told. Where that record still holds it keeps the
version that its writer was told, for that may come back as a condition.

I1  Items of a node are decided in order of their numbers, without a hole, each once.
I2  A request that was decided before, by this primary or another of this history, is not decided again. Where its row
    is gone, the node that holds the item says what it has seen of this history; while that is not enough, it waits.
    Where that will never be enough, the write is in the ledger as one that came too late, unless it has an entry; then
    it stays so, whatever another node may know of the request.
I3  A request that this history refused was done in the one that the item comes from, or there were no item: its writer
    may have been told either. So what it wrote gets an entry of the ledger, unless it has one. Of a batch that was
    refused in part, that goes for the part.
I4  What is finally refused is in the log as a write too, be its request decided here or before (LOST): its entry may be
    all that is left of it, and be cut off by a forced promotion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.accept import incremented, is_refusal
from nun.core.conflicts.ledger import lost, write_of
from nun.core.keyspace import Table
from nun.core.proposals.outbox import Item, Operation, decode_item
from nun.core.proposals.repeats import (
    DONE,
    GONE,
    LATER,
    OPEN,
    REFUSED,
    UNKNOWN,
    has_passed,
    is_refused,
    may_decide,
    parts_of,
    refused_of,
)
from nun.core.record import ABSENT
from nun.errors import ClaimLost, NotANumber, VersionConflict
from nun.limits import VERSION_MAX
from nun.position import Position

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.state import DatabaseInfo, Row


REPLACED: Final = "it was made on a record that has been replaced since"


class Items:
    """Decides items."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core

    def decide(
        self,
        origin: int,
        previous: int,
        number: int,
        verdict: int,
        seen: Sequence[int],
        data: bytes,
    ) -> None:
        """Decides item `number` of a node, unless it is decided or the one before it is not. Raises WireError."""
        core = self._core
        last = core.state.outboxes.get(origin, 0)
        if not previous <= last < number:
            return
        item = decode_item(data)
        position = Position(*seen)
        if not core.state.in_history(position):
            return  # its node follows another history still
        if verdict in (OPEN, LATER, UNKNOWN) and self._has_passed(item):
            client = core.state.clients.get(item.client_id)
            if not may_decide(client, origin, verdict, position):
                return  # its node will know when it has seen more
        core.settle()
        core.stream.entry()
        self._decide(item, verdict)
        entry = core.stream.add((fx.OUTBOX, origin, number))
        core.tentative.decided(entry.seq, origin, number)

    def _has_passed(self, item: Item) -> bool:
        return has_passed(self._core.state, (item.client_id, item.number), item.op_id)

    def _decide(self, item: Item, verdict: int) -> None:
        core = self._core
        row = core.state.row_of(item.client_id, item.number)
        info = core.state.database_named(item.database.decode("utf-8", "replace"))
        if row is not None or verdict in (DONE, REFUSED):
            refused = _writes_of(item) if verdict == REFUSED else _refused_in(row, item)
            self._keep(item, refused, None if info is None else info.number)
            return
        if info is None and item.kind == m.CREATE_DATABASE:
            self._create(item)
            return
        highest = max([*item.closes, *(operation.op_id for operation in item.operations)])
        core.stream.clock.observe(highest)
        if self._has_passed(item) and (verdict != OPEN or self._has_entry(item, info)):
            self._came_too_late(item, info)
            return
        if info is None:
            self._refuse_all(item, GONE)
            return
        if item.kind == m.RESOLVE:
            self._resolve(item, info.number)
        else:
            self._apply(item, info.number)

    def _keep(self, item: Item, refused: list[Operation], database: int | None) -> None:
        """Writes that were refused here, and done in a history that is gone (I3)."""
        core = self._core
        if item.kind == m.CREATE_DATABASE or not refused:
            return  # of a database, there is one of that name
        core.stream.clock.observe(max(operation.op_id for operation in item.operations))
        reason = (
            "it was done in a history that is gone, and the same request was refused in this one"
        )
        self._record(item, refused, database, reason)

    def _came_too_late(self, item: Item, info: DatabaseInfo | None) -> None:
        """Writes that nobody can tell from repeats any more (I2)."""
        if item.kind == m.CREATE_DATABASE:
            return  # there is one of that name
        late = _writes_of(item)
        if info is not None:
            table = self._core.tables[info.number]
            late = [one for one in late if not _is_there(table, one)]
        reason = "it came too late to be told from a repeat"
        self._record(item, late, None if info is None else info.number, reason)

    def _has_entry(self, item: Item, info: DatabaseInfo | None) -> bool:
        """Whether a write of a request that nobody decided came too late before, from another node (I2)."""
        if info is None:
            return False
        writes = _writes_of(item)
        return len(self._not_told(item, writes, info.number)) < len(writes)

    def _record(
        self, item: Item, operations: list[Operation], database: int | None, reason: str
    ) -> None:
        """Entries for writes of a request that was decided before, or may have been: it gets no outcome (I4)."""
        untold = self._not_told(item, operations, database)
        for operation in untold:
            self._refuse(item, operation, database, reason)
        if untold and item.decided_at:
            self._core.stream.add((fx.DECIDED_AT, item.decided_at))

    def _not_told(
        self, item: Item, operations: list[Operation], database: int | None
    ) -> list[Operation]:
        """Those without an entry; asked of all before any is written: one batch may write a key twice.

        What is told is all there is of those whose database is gone, be there another one of its name by now.
        """
        told = self._core.state.notices.get(item.client_id, {})
        left = [one for one in operations if one.op_id not in told]
        if database is None:
            return left
        has = self._core.ledger.has_request
        return [one for one in left if not has(write_of(item, one, database))]

    def _refuse(self, item: Item, operation: Operation, database: int | None, reason: str) -> None:
        """Finally, and such that it is proposed again should this history be cut off (I4)."""
        self._core.ledger.refuse(item, operation, database, reason)
        self._core.stream.add(lost(write_of(item, operation, database or 0)))

    def _resolve(self, item: Item, database: int) -> None:
        """A resolution that was accepted in a history that is gone."""
        core = self._core
        [operation] = item.operations
        write = write_of(item, operation, database)
        try:
            done = core.conflicts.resolve(write, operation.base, item.closes, item.client_id.hex())
        except ClaimLost as error:
            self._refuse(item, operation, database, error.message)
            self._outcome(item, ClaimLost.code, [error.message, operation.key])
        else:
            self._outcome(item, 0, list(done))

    def _refuse_all(self, item: Item, reason: str) -> None:
        """Refuses an item whose database is gone."""
        answers: list[Any] = []
        for operation in item.operations:
            if operation.kind == m.GET:
                answers.append(operation.argument)
                continue
            self._refuse(item, operation, None, reason)
            answers.append([VersionConflict.code, reason, operation.key])
        self._answered(item, answers)

    def _create(self, item: Item) -> None:
        """A database that the cut history had: made again, with its token."""
        core = self._core
        number = core.state.next_database
        name = item.database.decode("utf-8", "replace")
        *keys, options = item.operations
        core.stream.add((fx.DATABASE, number, name, options.argument))
        core.tables[number] = Table()
        core.conflicts.refresh(number)
        for operation in keys:
            self._write(item, number, operation, ABSENT, operation.argument)
        self._outcome(item, 0, number)

    def _apply(self, item: Item, database: int) -> None:
        """Accepts what may be accepted, records the rest."""
        core = self._core
        table = core.tables[database]
        answers: list[Any] = []
        reasons: list[tuple[Operation, str]] = []
        if item.atomic:
            reasons = self._reasons(table, item)
        for operation in item.operations:
            if operation.kind == m.CREATE_DATABASE:
                continue  # there is one of that name, with options of its own
            if operation.kind == m.GET:
                answers.append(operation.argument)
                continue
            reason = reasons[0][1] if reasons else self._reason(table, operation)
            old = table.records.get(operation.key, ABSENT)
            if _is_there(table, operation):
                answers.append(record.version_of(old))
            elif not reasons and not reason and self._is_challenge(old, operation):
                write = write_of(item, operation, database)
                code, answer = core.conflicts.challenge(write, old, REPLACED)
                answers.append([code, answer, operation.key] if code else answer)
                if code == VersionConflict.code:
                    core.stream.add(lost(write))
            elif reason or reasons:
                self._refuse(item, operation, database, reason)
                answers.append([VersionConflict.code, reason, operation.key])
            else:
                value = operation.argument
                if operation.kind == m.INCREMENT:
                    value = b"%d" % incremented(operation.key, old, operation.argument)
                version = self._write(item, database, operation, old, value)
                summed = operation.kind == m.INCREMENT
                answers.append([version, int(value)] if summed else version)
        self._answered(item, answers)

    def _answered(self, item: Item, answers: list[Any]) -> None:
        """The outcome of an item, from what became of each of its operations."""
        if item.kind in (m.SET_MANY, m.BATCH):
            self._outcome(item, 0, [pack(answers), *([True] if item.atomic else ())])
        elif is_refusal(answers[0]):
            code, *told = answers[0]
            self._outcome(item, code, told)
        else:
            self._outcome(item, 0, answers[0])

    def _reasons(self, table: Table, item: Item) -> list[tuple[Operation, str]]:
        """Why an atomic batch cannot be accepted. A later operation on a key builds on the earlier one."""
        made: set[bytes] = set()
        reasons = []
        for operation in _writes_of(item):
            if operation.key not in made:
                reason = self._reason(table, operation)
                if not reason and not _is_there(table, operation):
                    old = table.records.get(operation.key, ABSENT)
                    reason = REPLACED if self._is_challenge(old, operation) else ""
                if reason:
                    reasons.append((operation, reason))
            made.add(operation.key)
        return reasons

    @staticmethod
    def _reason(table: Table, operation: Operation) -> str:
        """Why a write cannot be accepted; empty when it can."""
        old = table.records.get(operation.key, ABSENT)
        if record.version_of(old) >= VERSION_MAX:
            return "its version cannot be counted up"
        if operation.kind == m.INCREMENT and not record.is_in_conflict(old):
            try:
                incremented(operation.key, old, operation.argument)
            except NotANumber as error:
                return error.message
            return ""
        return ""

    @staticmethod
    def _is_challenge(old: bytes, operation: Operation) -> bool:
        """Whether it was made on another record than the key holds, or the key is in conflict."""
        if record.is_in_conflict(old):
            return True
        if operation.kind == m.INCREMENT:
            return False
        alive = record.is_live(old)
        return operation.base != record.op_id_of(old) and (bool(operation.base) or alive)

    def _write(
        self, item: Item, database: int, operation: Operation, old: bytes, value: Any
    ) -> int:
        core = self._core
        version = max(record.version_of(old) + 1, operation.version)
        if core.conflicts.signs(database):
            core.conflicts.accept(write_of(item, operation, database), version, value)
            return version
        key, op_id = operation.key, operation.op_id
        replaced = record.op_id_of(old)
        if operation.kind == m.REMOVE:
            new = record.tombstone(version, op_id)
            core.stream.add((fx.TOMBSTONE, database, op_id, version, replaced, key))
        else:
            new = record.live(version, op_id, value)
            effect: fx.Effect = (fx.PUT, database, op_id, version, replaced, key, value)
            if operation.kind == m.INCREMENT:
                delta = operation.argument
                effect = (fx.INCREMENTED, database, op_id, version, replaced, key, value, delta)
            core.stream.add(effect)
        core.tables[database].replace(key, new)
        core.stream.entry().changes.append(fx.RecordChange(database, (key,), (new,)))
        core.rights.key_changed(database, key)
        return version

    def _outcome(self, item: Item, status: int, result: Any) -> None:
        op_id = item.operations[0].op_id
        effect = (fx.OUTCOME, item.client_id, item.number, item.floor, status, op_id, result)
        self._core.tentative.repeats.decided((item.client_id, item.number), status, result)
        if item.decided_at:
            self._core.stream.add((fx.DECIDED_AT, item.decided_at))
        self._core.stream.add(effect)
        self._core.outcomes.decided((effect,))


def _writes_of(item: Item) -> list[Operation]:
    """The operations that are to change something."""
    return [operation for operation in item.operations if operation.kind != m.GET]


def _refused_in(row: Row | None, item: Item) -> list[Operation]:
    """Which writes of an item were refused when its request was decided in this history."""
    if row is None:
        return []
    if is_refused(row.status, row.result):
        return _writes_of(item)
    parts = parts_of(row.status, row.result)
    return refused_of(item, parts) if parts else []


def _is_there(table: Table, operation: Operation) -> bool:
    """Whether the key holds this very write."""
    return record.op_id_of(table.records.get(operation.key, ABSENT)) == operation.op_id
