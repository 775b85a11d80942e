"""Watches: complete and in order from their start position, or honest about it (P6).

A watch is in one of three states:

    live      it has been sent everything durable; new entries are matched as they become durable
    behind    it has events up to (next_seq, skip) and is served from the log, at its own pace, while it has credit
    copying   its position was compacted: it is being told the whole state as it was at one position, then `current`

           credit used up, or started from a position
    live  ------------------------------------------->  behind  --- position not in the log --->  copying
      ^                                                  |  ^                                        |
      +--------- reached the durable end ----------------+  +---------- `current` sent --------------+

I1  A live watch has been sent every matching event of every durable entry above its start, once, in order.
I2  Nothing is sent to a watch without credit; what one message costs may take the credit below zero, no further.
I3  A behind watch holds no events in memory; a copying one holds references to records, for at most STATE_COPIES_MAX
    watches at a time, and gives its place up when it grants no credit for a while.
I4  Watches of the same scope, key and rights share one encoding of each event: the tenth costs one small message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.keyspace import Table
from nun.core.requests.access import GUARDED_PREFIX, Rights
from nun.core.stream import PendingEntry, Stream
from nun.errors import NoSuchDatabase, RequestError, to_wire
from nun.limits import EVENTS_BYTES_MAX, STATE_COPIES_MAX, WATCH_CREDIT_BYTES_MAX
from nun.messages import (
    EVENT_COMPACTED,
    EVENT_CURRENT,
    EVENT_REMOVED,
    EVENT_SET,
    EVENTS,
    IN_CONFLICT,
    WATCH_ALL,
    WATCH_ENDED,
    WATCH_KEY,
    WATCH_PREFIX,
)
from nun.position import Epoch, Position

COPY_STALL_NS: Final = 10_000_000_000
_EVENT_BYTES: Final = 40  # an event beside its key and value, about

Event = list[Any]
Send = Callable[[bytes, bytes], None]


class Body:
    """The msgpack body of one message of events, and where its first event stands."""

    __slots__ = ("data", "first_seq", "skip")

    def __init__(self, epoch: Epoch, events: Sequence[Event], skip: int) -> None:
        self.data = pack((epoch, events))
        self.first_seq: int = events[0][5]
        self.skip = skip


class Watch:
    """One watch of one session."""

    __slots__ = (
        "copy",
        "credit",
        "group",
        "live",
        "next_seq",
        "number",
        "peer",
        "reading",
        "session_token",
        "skip",
        "stalled_ns",
    )

    def __init__(self, number: int, peer: bytes, session_token: int, credit: int) -> None:
        self.number = number
        self.peer = peer
        self.session_token = session_token
        self.credit = credit
        self.live = False
        self.next_seq = 0
        self.skip = 0  # events of `next_seq` already sent
        self.reading = False
        self.copy: StateCopy | None = None
        self.stalled_ns = 0
        self.group: Group


class StateCopy:
    """The state of what a watch looks at, as it was when entry `seq` had been applied."""

    __slots__ = ("at", "epoch", "items", "seq")

    def __init__(self, epoch: Epoch, seq: int, items: list[tuple[bytes, bytes]]) -> None:
        self.epoch = epoch
        self.seq = seq
        self.items = items
        self.at = 0


class Group:
    """All watches that look at the same thing with the same rights."""

    __slots__ = ("database", "key", "members", "rights", "scope", "size")

    def __init__(self, database: int, scope: int, key: bytes, rights: Rights) -> None:
        self.database = database
        self.scope = scope
        self.key = key
        self.rights = rights
        self.members: list[Watch] = []  # the live ones
        self.size = 0

    def sees(self, key: bytes) -> bool:
        if self.scope == WATCH_KEY:
            matches = key == self.key
        elif self.scope == WATCH_PREFIX:
            matches = key.startswith(self.key)
        else:
            matches = True
        return matches and self.may_see(key)

    def may_see(self, key: bytes) -> bool:
        rights = self.rights
        if rights.everything and not key.startswith(GUARDED_PREFIX):
            return True
        return rights.allows("r", key)

    def events(self, seq: int, changes: Iterable[fx.RecordChange]) -> list[Event]:
        """The events of one entry that this group sees, in order."""
        found: list[Event] = []
        for change in changes:
            if change.database != self.database or change.silent:
                continue
            keys = change.keys
            if self.scope == WATCH_KEY and self.key not in keys:
                continue
            for key, packed in zip(keys, change.records, strict=True):
                if packed is not None and self.sees(key):
                    found.append(event_of(key, packed, seq))
        return found


class DatabaseGroups:
    """The groups of one database; those of single keys are found by key, so that many of them cost nothing."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, bytes, int], Group] = {}
        self._by_key: dict[bytes, list[Group]] = {}
        self._wide: list[Group] = []
        self._database = 0

    def join(self, group_key: tuple[int, int, bytes, Rights]) -> Group:
        """The group of this database, scope, key and rights, made when it is the first."""
        self._database, scope, key, rights = group_key
        group = self._groups.get((scope, key, id(rights)))
        if group is None:
            group = self._groups[scope, key, id(rights)] = Group(*group_key)
            if scope == WATCH_KEY:
                self._by_key.setdefault(key, []).append(group)
            else:
                self._wide.append(group)
        return group

    def leave(self, group: Group) -> bool:
        """Drops an empty group; True when it was the last."""
        del self._groups[group.scope, group.key, id(group.rights)]
        if group.scope == WATCH_KEY:
            groups = self._by_key[group.key]
            groups.remove(group)
            if not groups:
                del self._by_key[group.key]
        else:
            self._wide.remove(group)
        return not self._groups

    def concerned(self, released: Sequence[PendingEntry]) -> list[Group]:
        """The groups with live members that may see something of these entries."""
        touched = [
            change.keys
            for entry in released
            for change in entry.changes
            if change.database == self._database
        ]
        if not touched:
            return []
        found = list(self._wide)
        by_key = self._by_key
        if by_key:
            hit = {key for keys in touched for key in by_key.keys() & set(keys)}
            for key in sorted(hit):  # a set of bytes has another order in each process
                found += by_key[key]
        return [group for group in found if group.members]


def event_of(key: bytes, packed: bytes, seq: int) -> Event:
    """[kind, key, value, version, op id, seq] of a record that entry `seq` made."""
    version, op_id = record.unpack_head(packed)
    if version < record.SPECIAL:
        return [EVENT_SET, key, packed[record.HEAD_BYTES :], version, op_id, seq]
    if record.is_live(packed):
        shown = IN_CONFLICT if record.is_in_conflict(packed) else version & ~record.SPECIAL
        return [EVENT_SET, key, record.value_of(packed), shown, op_id, seq]
    return [EVENT_REMOVED, key, None, version & ~record.SPECIAL, op_id, seq]


def _epoch_of(entry: PendingEntry) -> Epoch:
    return entry.position.epoch


def bodies(epoch: Epoch, events: Sequence[Event], skip: int = 0) -> Iterator[Body]:
    """Cuts events (of one epoch, in order) into messages; `skip` of the first entry's were sent before."""
    start = size = 0
    index = skip  # of the event within its entry
    first_index = skip
    for i, event in enumerate(events):
        if i and event[5] != events[i - 1][5]:
            index = 0
        cost = _EVENT_BYTES + len(event[1] or b"") + len(event[2] or b"")
        if size >= EVENTS_BYTES_MAX // 2 and size + cost > EVENTS_BYTES_MAX:
            yield Body(epoch, events[start:i], first_index)
            start, size, first_index = i, 0, index
        size += cost
        index += 1
    if start < len(events):
        yield Body(epoch, events[start:], first_index)


class Watches:
    """All watches of a node.

    Args:
        stream: to know what is durable and what is in the history.
        tables: by database number, to copy state from; settled whenever a method here is called.
        send: takes (routing id, frame).
    """

    def __init__(self, stream: Stream, tables: dict[int, Table], send: Send) -> None:
        self._stream = stream
        self._tables = tables
        self._send = send
        self._groups: dict[int, DatabaseGroups] = {}
        self._watches: dict[int, Watch] = {}
        self._wants_copy: dict[int, Watch] = {}
        self._copying: dict[int, Watch] = {}
        self._ahead: dict[
            int, Watch
        ] = {}  # they start after an entry that is yet to become durable
        self._next_number = 1
        self.reads: list[
            tuple[int, int]
        ] = []  # (watch, first seq wanted): the log is to be read for them
        self.sent_events = 0

    def __len__(self) -> int:
        return len(self._watches)

    # Beginning and ending

    def begin(
        self,
        peer: bytes,
        session_token: int,
        group_key: tuple[int, int, bytes, Rights],
        since: Position | None,
        credit: int,
    ) -> Watch:
        """Starts a watch. It gets nothing before `start` is called."""
        database = group_key[0]
        watch = Watch(self._next_number, peer, session_token, credit)
        self._next_number += 1
        group = self._groups.setdefault(database, DatabaseGroups()).join(group_key)
        group.size += 1
        watch.group = group
        self._watches[watch.number] = watch
        watch.next_seq = self._stream.durable_seq + 1 if since is None else since.seq + 1
        return watch

    def start(self, watch: Watch, since: Position | None) -> None:
        """Begins to serve: from now, or from just after `since`."""
        if since is None:
            self._go_live(watch)
        elif self._stream.state.in_history(since) or since.seq == 0:
            self._go_on(watch)
        else:
            self.compacted(watch.number)

    def end(self, number: int) -> bool:
        """Forgets a watch; False when there is none of this number."""
        watch = self._watches.pop(number, None)
        if watch is None:
            return False
        self._wants_copy.pop(number, None)
        self._copying.pop(number, None)
        self._ahead.pop(number, None)
        group = watch.group
        if watch.live:
            group.members.remove(watch)
        group.size -= 1
        if not group.size and self._groups[group.database].leave(group):
            del self._groups[group.database]
        return True

    def end_database(self, database: int, name: str) -> list[Watch]:
        """Ends all watches of a database that was dropped, and tells their clients."""
        ended = [watch for watch in self._watches.values() if watch.group.database == database]
        self.end_all(ended, NoSuchDatabase(f"database {name!r} was dropped", database=name))
        return ended

    def end_all(self, watches: Iterable[Watch], why: RequestError) -> None:
        """Ends watches, and tells their clients why."""
        code, (message, fields) = to_wire(why)
        for watch in watches:
            self._send(watch.peer, pack((WATCH_ENDED, watch.number, code, message, fields)))
            self.end(watch.number)

    # Serving

    def feed(self, released: Sequence[PendingEntry]) -> None:
        """Gives the live watches what has just become durable."""
        if not self._groups:
            return
        for groups in list(self._groups.values()):
            for group in groups.concerned(released):
                for epoch, entries in groupby(released, key=_epoch_of):
                    events: list[Event] = []
                    for entry in entries:
                        events += group.events(entry.seq, entry.changes)
                    if events:
                        self._deliver(group, epoch, events)
        for watch in list(self._copying.values()):
            self._copy_on(watch)
        for watch in list(self._ahead.values()):
            del self._ahead[watch.number]
            self._go_on(watch)

    def _deliver(self, group: Group, epoch: Epoch, events: list[Event]) -> None:
        for body in bodies(epoch, events):
            for watch in list(group.members):
                if watch.credit > 0:
                    self._send_body(watch, body.data)
                else:
                    self._fall_behind(watch, body.first_seq, body.skip)
        self.sent_events += len(events) * len(group.members)

    def credit(self, number: int, size: int, now_ns: int) -> None:
        """A watcher has read this many bytes more."""
        watch = self._watches.get(number)
        if watch is None:
            return
        watch.credit = min(watch.credit + size, WATCH_CREDIT_BYTES_MAX)
        watch.stalled_ns = now_ns
        if watch.copy is not None:
            self._copy_on(watch)
        elif not watch.live:
            self._go_on(watch)

    def log_read(self, number: int, frames: Sequence[bytes]) -> None:
        """The log was read for a watch that is behind."""
        watch = self._watches.get(number)
        if watch is None or not watch.reading:
            return None
        watch.reading = False
        events: list[Event] = []
        epoch: Epoch | None = None
        for frame in frames:
            position, effects = fx.decode_entry(frame)
            if position.seq < watch.next_seq:
                continue
            if epoch is not None and position.epoch != epoch:
                if not self._send_events(watch, epoch, events):
                    return None
                events = []
            epoch = position.epoch
            events += watch.group.events(position.seq, fx.record_changes(effects))
            last_seq = position.seq
        if epoch is None:
            return self._go_on(watch) if frames else None
        if self._send_events(watch, epoch, events):
            watch.next_seq, watch.skip = last_seq + 1, 0
            self._go_on(watch)
        return None

    def _send_events(self, watch: Watch, epoch: Epoch, events: list[Event]) -> bool:
        """Sends what credit allows; False when it ran out, with the watch's place noted."""
        skip = watch.skip if events and events[0][5] == watch.next_seq else 0
        for body in bodies(epoch, events[skip:], skip):
            if watch.credit <= 0:
                watch.next_seq, watch.skip = body.first_seq, body.skip
                return False
            self._send_body(watch, body.data)
        self.sent_events += len(events) - skip
        watch.skip = 0
        return True

    def _go_on(self, watch: Watch) -> None:
        """Decides what a watch that is behind needs next; one that waits for a copy needs nothing else."""
        if watch.number in self._wants_copy:
            return
        if watch.next_seq > self._stream.durable_seq + 1:
            self._ahead[watch.number] = watch
        elif watch.next_seq > self._stream.durable_seq:
            self._go_live(watch)
        elif watch.credit > 0 and not watch.reading:
            watch.reading = True
            self.reads.append((watch.number, watch.next_seq))

    def _go_live(self, watch: Watch) -> None:
        watch.live = True
        watch.group.members.append(watch)

    def _fall_behind(self, watch: Watch, seq: int, skip: int) -> None:
        watch.live = False
        watch.group.members.remove(watch)
        watch.next_seq, watch.skip = seq, skip

    def _send_body(self, watch: Watch, body: bytes) -> None:
        watch.credit -= len(body)
        self._send(watch.peer, pack((EVENTS, watch.number, body)))

    # Compaction: the whole state instead of events

    def compacted(self, number: int) -> None:
        """The position of a watch is not in this node's history, or no longer in its log."""
        watch = self._watches.get(number)
        if watch is None:
            return
        watch.reading = False
        self._tell(watch, self._stream.epoch, EVENT_COMPACTED, self._stream.durable_seq)
        self._wants_copy[number] = watch
        self.begin_copies()

    def begin_copies(self) -> None:
        """Gives waiting watches their copy while there is room."""
        while self._wants_copy and len(self._copying) < STATE_COPIES_MAX:
            watch = self._wants_copy.pop(next(iter(self._wants_copy)))
            watch.copy = self._copy_of(watch.group)
            self._copying[watch.number] = watch
            self._copy_on(watch)

    def _copy_of(self, group: Group) -> StateCopy:
        table = self._tables.get(group.database)
        records = table.records if table is not None else {}
        items: list[tuple[bytes, bytes]]
        if group.scope == WATCH_KEY:
            items = [(group.key, records[group.key])] if group.key in records else []
        elif group.scope == WATCH_PREFIX:
            items = [item for item in records.items() if item[0].startswith(group.key)]
        else:
            assert group.scope == WATCH_ALL
            items = list(records.items())
        entry = self._stream.open
        seq = entry.seq if entry is not None else self._stream.last_seq
        return StateCopy(self._stream.epoch, seq, items)

    def _copy_on(self, watch: Watch) -> None:
        """Tells more of the state, once it is durable and while there is credit."""
        copy = watch.copy
        assert copy is not None
        if copy.seq > self._stream.durable_seq:
            return
        while copy.at < len(copy.items) and watch.credit > 0:
            events: list[Event] = []
            size = 0
            while copy.at < len(copy.items) and size < EVENTS_BYTES_MAX:
                key, packed = copy.items[copy.at]
                copy.at += 1
                if record.is_live(packed) and watch.group.may_see(key):
                    events.append(event_of(key, packed, copy.seq))
                    size += _EVENT_BYTES + len(key) + len(packed)
            for body in bodies(copy.epoch, events):
                self._send_body(watch, body.data)
        if copy.at == len(copy.items) and watch.credit > 0:
            self._tell(watch, copy.epoch, EVENT_CURRENT, copy.seq)
            watch.copy = None
            del self._copying[watch.number]
            watch.next_seq, watch.skip = copy.seq + 1, 0
            self._go_on(watch)
            self.begin_copies()

    def _tell(self, watch: Watch, epoch: Epoch, kind: int, seq: int) -> None:
        self._send_body(watch, pack((epoch, [[kind, None, None, 0, 0, seq]])))

    def tick(self, now_ns: int) -> None:
        """Takes the place of copies that nobody reads, to give it to others."""
        for watch in list(self._copying.values()):
            if watch.credit > 0 or not watch.stalled_ns:
                watch.stalled_ns = now_ns
            elif now_ns - watch.stalled_ns > COPY_STALL_NS and self._wants_copy:
                watch.copy = None
                del self._copying[watch.number]
                self._tell(watch, self._stream.epoch, EVENT_COMPACTED, self._stream.durable_seq)
                self._wants_copy[watch.number] = watch
        self.begin_copies()
