"""Conflicts as the primary decides them: writes that the accept rule refuses, queues of keys in conflict, resolutions.

    a write is refused --- none --------------------------> VersionConflict
                       |-- newer, older: the one wins, the other gets an entry of the ledger
                       +-- arbiter --> the key goes in conflict; the write is the first of its queue
    a write to a key in conflict, of any kind -----------> joins its queue
    a resolution, an expiry ------------------------------> closes the first so many of the queue; increments that come
                                                            next are added; when none is left the key is free again

Which strategy refuses a write is the database's choice (strategies.py); what stays of it is the ledger's (ledger.py);
who resolves, and when, is the conflict manager's (arbitration.py, manager.py).

I1  A key is in conflict exactly while its queue is not empty; the queue is its open entries, in order of arrival.
I2  A resolution names the entries that it closes, from the oldest on, and the op id of the record it was shown. If any
    of it has changed, it is refused and changes nothing: nothing is closed twice, and nothing unseen is closed.
    An expiry closes what is due now, by the stamps of the entries themselves.
I3  Queues are bounded, in entries and bytes; writes that were acknowledged before are let in all the same.
I4  Only the primary has queues; a node that becomes primary makes them from the ledger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nun import messages as m
from nun.core import effects as fx
from nun.core import record
from nun.core.accept import Condition, incremented, refuses
from nun.core.clock import unix_ms_of
from nun.core.conflicts import ledger
from nun.core.conflicts.ledger import Write
from nun.core.conflicts.ledger_keys import entry_key, key_and_op_id
from nun.core.conflicts.queues import Open, Queue
from nun.core.conflicts.strategies import (
    ARBITER,
    KEEP,
    NEWER,
    NONE,
    OLDER,
    REJECT,
    Rules,
    Stamp,
    judge,
    rules_of,
    stamp_of,
)
from nun.core.record import ABSENT, UNKNOWN_BASE, Signature
from nun.errors import (
    BadRequest,
    ClaimLost,
    ConflictPending,
    NotANumber,
    Overloaded,
    VersionConflict,
)
from nun.limits import VERSION_MAX

if TYPE_CHECKING:
    from nun.core.network import NetworkCore

Answer = tuple[int, Any]  # (status, version | [version, sum] | text)


class Conflicts:
    """See the module's docstring.

    Attributes:
        queues: database -> key -> queue.
        arbiters: database -> how many are connected, as the conflict manager last said.
    """

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._settings = core.settings.conflicts
        self._rules: dict[int, Rules] = {}
        self.queues: dict[int, dict[bytes, Queue]] = {}
        self.arbiters: dict[int, int] = {}
        self._closed: deque[tuple[int, int, bytes]] = deque()  # (ms, database, entry)
        self._open = 0
        self._bytes = 0
        for number in core.state.databases:
            self.refresh(number)

    # Options

    def refresh(self, database: int) -> None:
        """A database was made, or its options changed."""
        info = self._core.state.databases[database]
        rules = rules_of(info.options, self._settings.defaults)
        self._rules[database] = rules
        self._core.tables[database].keep_bases(rules.arbitrates)

    def rules(self, database: int) -> Rules:
        return self._rules[database]

    def takes(self, database: int, key: bytes, old: bytes, condition: Condition) -> bool:
        """Whether a write that the accept rule refuses may be more than refused here."""
        if refuses(condition):
            return False
        return record.is_in_conflict(old) or self._rules[database].of(key) != NONE

    def signs(self, database: int) -> bool:
        """Whether the records of a database are signed."""
        return self._rules[database].signs

    # Queues

    def begin(self) -> None:
        """This node decides from now on: makes the queues from the ledger."""
        self.queues, self._open, self._bytes = {}, 0, 0
        closed: list[tuple[int, int, bytes]] = []
        for number, table in self._core.tables.items():
            found: dict[bytes, dict[int, Open]] = {}
            after: dict[bytes, dict[int, int]] = {}
            for place in table.ledger:
                packed = table.records[place]
                head = ledger.head_of(packed)
                if head is None:
                    continue
                state, kind, previous = head
                stamped_ms = unix_ms_of(record.op_id_of(packed))
                if state != ledger.OPEN:
                    closed.append((stamped_ms, number, place))
                    continue
                key, op_id = key_and_op_id(place)
                found.setdefault(key, {})[op_id] = Open(op_id, kind, stamped_ms, len(packed))
                after.setdefault(key, {})[previous] = op_id
            for key, entries in found.items():
                self._rebuild(number, key, entries, after[key])
        self._closed = deque(sorted(closed))
        self._core.arbitration.began()

    def end(self) -> None:
        """This node decides nothing more."""
        self.queues, self._open, self._bytes = {}, 0, 0
        self._closed.clear()
        self._core.arbitration.ended()

    def _rebuild(
        self, number: int, key: bytes, entries: dict[int, Open], after: dict[int, int]
    ) -> None:
        """One queue, in the order in which each entry names the one before it."""
        queue = self.queues.setdefault(number, {})[key] = Queue()
        records = self._core.tables[number].records
        previous = next(one for one in after if one not in entries)
        while previous in after:
            previous = after[previous]
            self._add(queue, entries[previous])
            base = ledger.base_in(records[entry_key(key, previous)])
            if base:
                queue.bases[base] = previous
        assert len(queue.entries) == len(entries), f"the queue of {key!r} is not one chain"

    def _add(self, queue: Queue, entry: Open) -> None:
        queue.add(entry)
        self._open += 1
        self._bytes += entry.size

    def queue_of(self, database: int, key: bytes) -> Queue | None:
        return self.queues.get(database, {}).get(key)

    def deadline_ms(self, database: int, opened_ms: int) -> int:
        """Until when an entry waits (Unix ms); 0: for ever."""
        timeout_ms = self._rules[database].timeout_ms
        return opened_ms + timeout_ms if timeout_ms else 0

    # Writes that are refused

    def made(
        self, rules: Rules, write: Write, version: int, value: bytes | None, old: bytes
    ) -> bytes:
        """The record that a write makes: signed where the database's strategies need it."""
        if not rules.signs:
            if value is None:
                return record.tombstone(version, write.op_id)
            return record.live(version, write.op_id, value)
        ancestors: tuple[tuple[int, int], ...] = ()
        if old is not ABSENT and rules.of(write.key) == OLDER:
            before = stamp_of(old)
            known = record.signature_of(old)
            ancestors = ((before.op_id, before.at_ms), *(known.ancestors if known else ()))
        signature = Signature(
            write.at_ms,
            write.bound_ms,
            write.client_id,
            write.request,
            ancestors[: record.ANCESTORS_MAX],
        )
        return record.signed(version, write.op_id, signature, value)

    def accept(self, write: Write, version: int, value: bytes | None) -> None:
        """Stores what the accept rule has let in, where records are signed; `value` is what it came to."""
        core = self._core
        table = core.tables[write.database]
        old = table.records.get(write.key, ABSENT)
        new = self.made(self._rules[write.database], write, version, value, old)
        delta = write.argument if write.kind == m.INCREMENT else None
        replaced = record.op_id_of(old)
        core.stream.add((fx.SIGNED, write.database, write.key, new, replaced, write.base, delta))
        table.replace(write.key, new)
        core.stream.entry().changes.append(fx.RecordChange(write.database, (write.key,), (new,)))

    def challenge(self, write: Write, old: bytes, why: str) -> Answer:
        """What becomes of a write that the accept rule refuses, or whose key is in conflict.

        Returns:
            (0, version) where it wins all the same; else the code of an error and its text.
        """
        if write.late and self._core.ledger.has(write.database, write.key, write.op_id):
            queue = self.queue_of(write.database, write.key)
            waits = queue is not None and any(one.op_id == write.op_id for one in queue.entries)
            return (ConflictPending if waits else VersionConflict).code, "the ledger has it already"
        if record.is_in_conflict(old):
            return self._join(write, old)
        rules = self._rules[write.database]
        strategy = rules.of(write.key)
        close = False
        if strategy in (NEWER, OLDER):
            stamp = Stamp(write.at_ms, write.bound_ms, write.op_id)
            wins, close = judge(strategy, stamp, write.base, old)
            if close and rules.close_calls == ARBITER:
                strategy = ARBITER
            elif wins:
                return self._displace(write, old, strategy, close)
        if strategy == ARBITER:
            return self._open_conflict(rules, write, old, close)
        if strategy == NONE:
            if write.late:
                self._core.ledger.close_at_once(write, ledger.REFUSED, why, old)
            return VersionConflict.code, why
        text = f"{why}; the {'later' if strategy == NEWER else 'earlier'} write stays"
        self._core.ledger.close_at_once(
            write, ledger.DECIDED, text, old, close_call=close, decider=strategy
        )
        return VersionConflict.code, text

    def _displace(self, write: Write, old: bytes, strategy: str, close: bool) -> Answer:
        """The write wins over a record that it has not seen: that one's writer is told."""
        core = self._core
        table = core.tables[write.database]
        version = record.version_of(old) + 1
        if version > VERSION_MAX:
            return BadRequest.code, f"version {version - 1} cannot be counted up"
        new = self.made(self._rules[write.database], write, version, write.argument, old)
        replaced = record.op_id_of(old)
        core.stream.add((fx.SIGNED, write.database, write.key, new, replaced, write.base, None))
        table.replace(write.key, new)
        core.stream.entry().changes.append(fx.RecordChange(write.database, (write.key,), (new,)))
        when = "later" if strategy == NEWER else "earlier"
        self._tell_displaced(
            write.database,
            write.key,
            old,
            new,
            f"a write that was made {when}, and had not seen this one, took its place",
            strategy,
            close_call=close,
        )
        return 0, version

    def _tell_displaced(
        self,
        database: int,
        key: bytes,
        old: bytes,
        new: bytes,
        reason: str,
        decider: str,
        *,
        close_call: bool = False,
    ) -> None:
        """A record gave way to one that was written without having seen it: the ledger keeps it, its writer is told."""
        replaced = record.op_id_of(old)
        if not replaced:
            return
        signature = record.signature_of(old)
        alive = record.is_live(old)
        stamp = stamp_of(old)
        loser = Write(
            database,
            key,
            m.SET if alive else m.REMOVE,
            record.value_of(old) if alive else None,
            signature.ancestors[0][0] if signature and signature.ancestors else UNKNOWN_BASE,
            replaced,
            stamp.at_ms,
            stamp.bound_ms,
            signature.client_id if signature else b"",
            signature.request if signature else 0,
            late=True,
        )
        self._core.ledger.close_at_once(
            loser, ledger.DECIDED, reason, new, close_call=close_call, decider=decider
        )

    def _open_conflict(self, rules: Rules, write: Write, old: bytes, close: bool) -> Answer:
        core = self._core
        if record.version_of(old) >= VERSION_MAX:
            return BadRequest.code, f"version {record.version_of(old)} cannot be counted up"
        if not write.late:
            if rules.no_arbiter == REJECT and not self.arbiters.get(write.database):
                return VersionConflict.code, "it is in conflict, and no arbiter is connected"
            full = self._full()
            if full:
                return Overloaded.code, full
        table = core.tables[write.database]
        new = record.in_conflict(old)
        op_id = record.op_id_of(old)
        core.stream.add((fx.MADE, write.database, op_id, [write.key], [new], True))
        table.replace(write.key, new)
        core.stream.entry().changes.append(
            fx.RecordChange(write.database, (write.key,), (new,), True)
        )
        queue = self.queues.setdefault(write.database, {})[write.key] = Queue()
        return self._enqueue(queue, write, old, close)

    def _join(self, write: Write, old: bytes) -> Answer:
        """The key is in conflict: the write waits behind those that are there."""
        queue = self.queues[write.database][write.key]
        if not write.late:
            full = self._full() or self._queue_full(queue)
            if full:
                return Overloaded.code, full
        return self._enqueue(queue, write, record.beneath(old), False)

    def _full(self) -> str:
        settings = self._settings
        if self._open >= settings.conflicts_max:
            return f"{self._open} conflicts are open: conflicts_max = {settings.conflicts_max}"
        if self._bytes >= settings.bytes_max:
            return f"open conflicts hold {self._bytes} bytes: bytes_max = {settings.bytes_max}"
        return ""

    def _queue_full(self, queue: Queue) -> str:
        settings = self._settings
        count = len(queue.entries)
        if count >= settings.per_key_max:
            return f"{count} writes wait for the key: per_key_max = {settings.per_key_max}"
        if queue.bytes >= settings.per_key_bytes_max:
            return f"{queue.bytes} bytes wait for the key: per_key_bytes_max = {settings.per_key_bytes_max}"
        return ""

    def _enqueue(self, queue: Queue, write: Write, current: bytes, close: bool) -> Answer:
        core = self._core
        database, key = write.database, write.key
        previous = queue.entries[-1].op_id if queue.entries else 0
        entry = ledger.entry_of(write, core.state.databases[database].name, ledger.OPEN, previous)
        if not previous:
            entry["current"] = ledger.shown_record(current)
        if write.base not in (0, UNKNOWN_BASE) and write.base not in queue.bases:
            base = core.tables[database].base_of(key, write.base)
            if base is None and record.op_id_of(current) == write.base:
                base = current
            if base is not None:
                entry["base_value"] = ledger.shown_record(base)
                queue.bases[write.base] = write.op_id
        entry["opened"] = core.unix_ms
        if close:
            entry["close_call"] = True
        size = core.ledger.put(database, [entry_key(key, write.op_id)], [entry])
        core.stream.add(ledger.lost(write))
        self._add(queue, Open(write.op_id, write.kind, core.unix_ms, size))
        count = len(queue.entries)
        if count == self._settings.per_key_warn:
            shown = key.decode("utf-8", "replace")
            core.out.notes.append(("conflict_queue_long", {"key": shown, "entries": count}))
        core.arbitration.changed(database, key, queue, closed=False)
        shown = key.decode("utf-8", "replace")
        text = f"key {shown!r} is in conflict: the write is kept as conflict {write.op_id}"
        return ConflictPending.code, text

    # Closing

    def check_named(
        self, database: int, key: bytes, shown: int, op_ids: Sequence[int]
    ) -> tuple[Queue, bytes]:
        """The queue, and what the key holds, if both are still what was shown. Raises ClaimLost."""
        queue = self.queue_of(database, key)
        text = f"key {key.decode('utf-8', 'replace')!r}"
        if queue is None:
            raise ClaimLost(f"{text} is not in conflict", key=key)
        held = self._core.tables[database].records[key]
        absent = not shown and not record.is_live(held)
        if record.op_id_of(held) != shown and not absent:
            raise ClaimLost(f"{text}: what it holds has changed since it was shown", key=key)
        first = [entry.op_id for entry in queue.shown[: len(op_ids)]]
        if not op_ids or first != list(op_ids):
            raise ClaimLost(
                f"{text}: expected its open entries from the oldest on, {first}, found {list(op_ids)}",
                key=key,
            )
        return queue, held

    def resolve(
        self, resolution: Write, shown: int, op_ids: Sequence[int], decider: str
    ) -> tuple[int, int]:
        """Closes entries with a value, or a removal. Returns (version, entries that are left). Raises ClaimLost."""
        database, key = resolution.database, resolution.key
        queue, held = self.check_named(database, key, shown, op_ids)
        kind, argument = resolution.kind, resolution.argument
        self._core.stream.add(
            (fx.RESOLVED, database, key, kind, argument, shown, list(op_ids), resolution.op_id)
        )
        closed = [
            (entry, ledger.RESOLVED, "an arbiter resolved it")
            for entry in queue.entries[: len(op_ids)]
        ]
        return self._close(queue, held, resolution, argument, closed, decider)

    def expire(self, database: int, key: bytes) -> bool:
        """Ends what has waited too long, by the database's fallback; whether any of it was due."""
        core = self._core
        queue = self.queue_of(database, key)
        rules = self._rules.get(database)
        if queue is None or rules is None or not rules.timeout_ms:
            return False
        due = []
        for one in queue.entries:
            if one.opened_ms + rules.timeout_ms > core.unix_ms:
                break
            due.append(one)
        if not due:
            return False
        held = core.tables[database].records[key]
        beneath = record.beneath(held)
        value: bytes | None = record.value_of(beneath) if record.is_live(beneath) else None
        best = stamp_of(beneath)
        winner: Write | None = None
        closed: list[tuple[Open, str, str]] = []
        reason = f"nobody resolved it in time: fallback {rules.fallback}"
        for one in due:
            write = ledger.write_in(database, core.ledger.read(database, key, one.op_id))
            if one.kind == m.INCREMENT:
                value, failed = _added(key, value, write.argument)
                closed.append((one, ledger.REFUSED if failed else ledger.EXPIRED, failed or reason))
                continue
            stamp = Stamp(write.at_ms, write.bound_ms, write.op_id)
            if rules.fallback != KEEP and (
                (stamp.at_ms, stamp.op_id) > (best.at_ms, best.op_id)
            ) == (rules.fallback == NEWER):
                value, best, winner = write.argument, stamp, write
            closed.append((one, ledger.EXPIRED, reason))
        op_id = core.stream.clock.reserve(core.unix_ms)
        # What waits still is compared with the write whose value this is, not with when it was decided.
        made = Write(database, key, m.SET, None, 0, op_id, best.at_ms, best.bound_ms, b"", 0)
        self._close(queue, held, made, value, closed, "timeout")
        if winner is not None and winner.base != record.op_id_of(beneath) and _has_writer(beneath):
            text = f"nobody resolved a conflict with it in time: fallback {rules.fallback}"
            new = core.tables[database].records[key]
            self._tell_displaced(database, key, beneath, new, text, "timeout")
        return True

    def _close(
        self,
        queue: Queue,
        held: bytes,
        by: Write,
        value: bytes | None,
        closed: list[tuple[Open, str, str]],
        decider: str,
    ) -> tuple[int, int]:
        """Stores the value and closes these entries, and the increments that follow them."""
        core = self._core
        database, key = by.database, by.key
        beneath = record.beneath(held)
        version = record.version_of(beneath)
        for one in queue.entries[len(closed) :]:
            if one.kind != m.INCREMENT:
                break
            delta = core.ledger.read(database, key, one.op_id)["value"]
            value, failed = _added(key, value, delta)
            closed.append((one, ledger.REFUSED if failed else ledger.RESOLVED, failed or "added"))
        left = queue.entries[len(closed) :]
        rules = self._rules[database]
        rules = rules._replace(signs=rules.signs or not by.client_id)
        final = self.made(rules, by, version if left else version + 1, value, beneath)
        new = record.in_conflict(final) if left else final
        core.stream.add((fx.MADE, database, by.op_id, [key], [new], False))
        core.tables[database].replace(key, new)
        core.stream.entry().changes.append(fx.RecordChange(database, (key,), (new,)))
        self._record_closed(database, key, closed, by, new, decider)
        queue.entries = left
        sizes = sum(one.size for one, _, _ in closed)
        queue.bytes -= sizes
        self._bytes -= sizes
        self._open -= len(closed)
        if not left:
            del self.queues[database][key]
        core.arbitration.changed(database, key, queue, closed=True)
        return (version if left else version + 1), len(left)

    def _record_closed(
        self,
        database: int,
        key: bytes,
        closed: Sequence[tuple[Open, str, str]],
        by: Write,
        new: bytes,
        decider: str,
    ) -> None:
        """Writes what became of entries into the ledger, and tells their writers."""
        core = self._core
        places, entries = [], []
        for one, state, reason in closed:
            entry = core.ledger.read(database, key, one.op_id)
            assert state in ledger.LIFE[entry["state"]].values(), f"{entry['state']} -> {state}"
            entry["state"] = state
            entry["decided"] = core.unix_ms
            entry["reason"], entry["decider"] = reason, decider
            entry["result"] = by.op_id
            places.append(entry_key(key, one.op_id))
            entries.append(entry)
            self._closed.append((core.unix_ms, database, places[-1]))
        core.ledger.put(database, places, entries)
        for entry in entries:
            core.ledger.tell(ledger.write_in(database, entry), entry, new)

    def database_dropped(self, database: int) -> None:
        """A database is about to go: whoever waits in a queue of it is told, with the value."""
        core = self._core
        for key, queue in self.queues.pop(database, {}).items():
            for one in queue.entries:
                entry = core.ledger.read(database, key, one.op_id)
                entry.update(
                    state=ledger.REFUSED, reason="its database was dropped", decided=core.unix_ms
                )
                core.ledger.tell_without_entry(ledger.write_in(database, entry), entry)
            self._open -= len(queue.entries)
            self._bytes -= queue.bytes
            queue.entries = []
            core.arbitration.changed(database, key, queue, closed=True)
        self._rules.pop(database, None)

    # Cleaning

    def clean(self, most: int) -> None:
        """Removes entries that were closed longer ago than is kept, so many at once."""
        core = self._core
        until_ms = core.unix_ms - int(self._settings.resolved_retention_s * 1_000)
        gone: dict[int, list[bytes]] = {}
        while self._closed and self._closed[0][0] < until_ms and most:
            _, database, place = self._closed.popleft()
            most -= 1
            table = core.tables.get(database)
            if table is not None and record.is_live(table.records.get(place)):
                gone.setdefault(database, []).append(place)
        for database, places in gone.items():
            table = core.tables[database]
            stamp = core.stream.clock.reserve(core.unix_ms, len(places))
            new = [
                record.tombstone(record.version_of(table.records[place]) + 1, stamp)
                for place in places
            ]
            core.stream.add((fx.MADE, database, stamp, places, new, False))
            for place, packed in zip(places, new, strict=True):
                table.replace(place, packed)
            core.stream.entry().changes.append(fx.RecordChange(database, places, new))

    def closed_now(self, database: int, place: bytes) -> None:
        """An entry was made that is closed already."""
        self._closed.append((self._core.unix_ms, database, place))

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "open": self._open,
            "open_bytes": self._bytes,
            "keys": sum(map(len, self.queues.values())),
            "arbiters": sum(self.arbiters.values()),
        }


def _has_writer(packed: bytes) -> bool:
    """Whether a record is a write of somebody's; what an expiry made has its writes in the ledger already."""
    signature = record.signature_of(packed)
    return signature is None or bool(signature.client_id)


def _added(key: bytes, value: bytes | None, delta: int) -> tuple[bytes | None, str]:
    """The sum of a value and an increment; why not, where there is none."""
    old = ABSENT if value is None else record.live(1, 1, value)
    try:
        return b"%d" % incremented(key, old, delta), ""
    except NotANumber as error:
        return value, error.message
