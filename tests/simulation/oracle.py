"""What must hold in every run, checked while it runs and at its end. It sees every disk and every client at once.

Names of promises are those of the design: P1 nothing acknowledged vanishes, P2 durable is durable, P3 nothing is shown
that a restart takes back, P4 one order, P5 one primary an epoch, P6 complete watches, P7 the ledger balances; and
every request takes effect at most once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.core.proposals.outbox import decode_item
from nun.position import NOTHING, Epoch, Position
from storage.copying import was_taken
from storage.oplog import LogReader
from tests.simulation.process import Failed


@dataclass
class Change:
    """One change of one key, as an entry has it."""

    position: Position
    database: int
    key: bytes
    op_id: int
    replaced: int | None  # None: not told
    value: bytes | None  # None: removed
    delta: int | None = None
    made: bool = False  # by the primary itself: an entry of the ledger, what a resolution came to


def changes_of(position: Position, effects: list[fx.Effect]) -> list[Change]:
    """Every change of a key in an entry, in order."""
    found: list[Change] = []
    for effect in effects:
        kind = effect[0]
        if kind == fx.PUT:
            _, database, op_id, _, replaced, key, value = effect
            found.append(Change(position, database, key, op_id, replaced, value))
        elif kind == fx.INCREMENTED:
            _, database, op_id, _, replaced, key, value, delta = effect
            found.append(Change(position, database, key, op_id, replaced, value, delta))
        elif kind == fx.TOMBSTONE:
            _, database, op_id, _, replaced, key = effect
            found.append(Change(position, database, key, op_id, replaced, None))
        elif kind == fx.PUTS:
            _, database, first, heads, payload = effect
            keys, values = fx.keys_and_values(payload)
            for i, (key, value) in enumerate(zip(keys, values, strict=True)):
                replaced = op_id_of(heads[12 * i : 12 * i + 12])
                found.append(Change(position, database, key, first + i * TICK, replaced, value))
        elif kind == fx.RECORDS:
            _, database, _, keys, records, replaced_heads = effect
            for i, (key, packed) in enumerate(zip(keys, records, strict=True)):
                replaced = op_id_of(replaced_heads[12 * i : 12 * i + 12])
                found.append(
                    Change(position, database, key, op_id_of(packed), replaced, value_in(packed))
                )
        elif kind == fx.SUMS:
            _, database, first, heads, keys, deltas, sums = effect
            latest = dict(zip(dict.fromkeys(keys), record.op_ids_of_heads(heads), strict=True))
            added = zip(
                keys, record.unpack_integers(deltas), record.unpack_integers(sums), strict=True
            )
            for i, (key, delta, total) in enumerate(added):
                replaced, latest[key] = latest[key], first + i * TICK
                value = b"%d" % total
                found.append(Change(position, database, key, latest[key], replaced, value, delta))
        elif kind == fx.SIGNED:
            _, database, key, packed, replaced, _, delta = effect
            op_id = op_id_of(packed)
            found.append(Change(position, database, key, op_id, replaced, value_in(packed), delta))
        elif kind == fx.MADE and not effect[5]:
            _, database, _, keys, records, _ = effect
            for key, packed in zip(keys, records, strict=True):
                op_id, value = op_id_of(packed), value_in(packed)
                found.append(Change(position, database, key, op_id, None, value, None, True))
    return found


def changes_of_items(position: Position, effects: Iterable[fx.Effect]) -> list[Change]:
    """Those of an entry that were decided for an outbox: an OUTBOX comes next to the outcome of their request."""
    found: list[Change] = []
    decided: list[fx.Effect] = []
    following: list[fx.Effect] = []
    for effect in effects:
        if effect[0] == fx.OUTCOME:
            decided, following = following, []
        elif effect[0] == fx.OUTBOX:
            found += changes_of(position, [*decided, *following])
            decided, following = [], []
        else:
            following.append(effect)
    return found


op_id_of = record.op_id_of


def value_in(packed: bytes) -> bytes | None:
    """The value of a record, None where it has none."""
    return record.value_of(packed) if record.is_live(packed) else None


@dataclass
class Disk:
    """What one node's disk holds, as far as the oracle has been told."""

    log: dict[int, Position] = field(default_factory=dict)
    last: int = 0
    announced: int = 0  # durable up to here, its writer said


@dataclass
class Saved:
    """What a copy of a data directory holds, as far as the oracle knows; by itself that of an empty one."""

    disk: Disk = field(default_factory=Disk)
    holds: set[Position] = field(default_factory=set)
    tentative: set[int] = field(default_factory=set)


class Oracle:
    """See the module's docstring.

    Attributes:
        entries: the frame of every entry that any disk was given, by position.
        known: every change in them, by op id.
        before: which entry stands before another in whatever history holds it.
        durable: every entry that a node has called durable, by node.
        holds: the same, of its present data directory; `directories` has it by node number.
        excused: op ids of writes that a directory which was wiped was the only one to have.
        settled: the highest position that was called settled; None once a promotion was forced.
    """

    def __init__(self) -> None:
        self.entries: dict[Position, bytes] = {}
        self.known: dict[int, Change] = {}
        self.decoded: dict[Position, list[Change]] = {}
        self.before: dict[Position, Position] = {}
        self.effects: dict[Position, list[fx.Effect]] = {}
        self.disks: dict[str, Disk] = {}
        self.durable: dict[str, set[Position]] = {}
        self.holds: dict[str, set[Position]] = {}
        self.directories: dict[int, set[Position]] = {}
        self.excused: set[int] = set()
        self.numbers: dict[int, str] = {}
        self.tentative: dict[str, set[int]] = {}  # op ids that were durable in a node's outbox
        self.bases: dict[int, int] = {}  # of what was in one: op id -> of the record it was made on
        self.settled: Position | None = None
        self.forced = False
        self.epochs: dict[Epoch, str] = {}
        self.checks = 0

    # What nodes do

    def watch(self, node: Any) -> None:
        """Looks over the shoulder of each process that this node starts."""
        self.disks[node.name] = Disk()
        self.durable[node.name] = set()
        self.holds[node.name] = set()

        def told(what: str, process: Any) -> None:
            if what == "started" and process.actor is not None:
                if process.name == "writer":
                    self._writer_started(node, process.actor)
                elif process.name == "network":
                    self._network_started(node, process.actor)

        node.watchers.append(told)

    def _writer_started(self, node: Any, writer: Any) -> None:
        self._recovered(node, writer)
        oplog, commit = writer.oplog, writer.commit
        disk = self.disks[node.name]
        append, durable = oplog.append, commit.durable

        def appending(entries: Any) -> None:
            before = disk.log.get(disk.last, NOTHING)
            for position, frame in entries:  # it may die on the way, with all of it written
                self._given(node.name, position, bytes(frame), before)
                before = position
            append(entries)
            for position, _ in entries:
                self._appended(node.name, position)

        def announcing() -> Position | None:
            position: Position | None = durable()
            if position is not None:
                self._announced(node.name, position)
            return position

        oplog.append, commit.durable = appending, announcing
        if writer.keeping is not None:
            outbox = writer.keeping.outbox
            put = outbox.append

            def putting(items: Any) -> None:
                put(items)
                for _, data in items:
                    for operation in decode_item(data).operations:
                        self.tentative.setdefault(node.name, set()).add(operation.op_id)
                        self.bases[operation.op_id] = operation.base

            outbox.append = putting
        if hasattr(oplog, "truncate_after"):
            truncate = oplog.truncate_after

            def truncating(seq: int, *args: Any, **named: Any) -> Any:
                disk.announced = min(disk.announced, seq)  # it may die on the way
                found = truncate(seq, *args, **named)
                self._cut(node.name, seq)
                return found

            oplog.truncate_after = truncating
        start_after = oplog.start_after

        def starting_after(position: Position) -> Any:
            found = start_after(position)
            disk.log.clear()
            disk.last = disk.announced = position.seq
            disk.log[position.seq] = position
            return found

        oplog.start_after = starting_after

    def _recovered(self, node: Any, writer: Any) -> None:
        """P2: what was called durable is there after any start, byte by byte."""
        disk = self.disks[node.name]
        reader = LogReader(node.disk)
        last = writer.oplog.last
        if last is None:
            # As below; the copy was made of a node that had nothing settled.
            if disk.announced and not (self.forced and was_taken(node.disk)):
                raise Failed(f"P2: {node.name} had {disk.announced} entries durable and has none")
            disk.log.clear()
            disk.last = disk.announced = 0
            return
        if self.forced and not reader.first_seq():
            # The copy that took the place of it all may be of a node that had less and was made primary by force.
            disk.announced = min(disk.announced, last.seq)
        if last.seq < disk.announced:
            raise Failed(f"P2: {node.name} called {disk.announced} durable, its log ends at {last}")
        log: dict[int, Position] = {}
        seq = writer.oplog.first_seq
        while seq and seq <= last.seq:
            for frame in reader.read(seq, 1 << 20, last.seq):
                frame = bytes(frame)
                _, position, _ = fx.decode_head(frame)
                if self.entries.get(position) != frame:
                    raise Failed(f"P4: {node.name} reads another entry {position} than was decided")
                if seq <= disk.announced and disk.log.get(seq, position) != position:
                    raise Failed(
                        f"P2: {node.name} had {disk.log[seq]} durable, now it is {position}"
                    )
                log[seq] = position
                seq += 1
        known = {seq: position for seq, position in disk.log.items() if seq < min(log, default=0)}
        disk.log = {**known, **log}
        disk.log.setdefault(last.seq, last)
        # What is recovered counts as durable from now on: whatever was not is synced by then.
        disk.last = disk.announced = last.seq
        self._has(node.name, disk.log.values())
        # What a copy was made of is here, though its entries are not.
        self._has(node.name, self.path(NOTHING, last) or ())

    def _has(self, name: str, positions: Iterable[Position]) -> None:
        """These are durable on a node."""
        found = [*positions]
        self.durable[name].update(found)
        self.holds[name].update(found)

    def saved(self, name: str) -> Saved:
        """What a copy of a node's data directory holds that is made now."""
        disk = self.disks[name]
        return Saved(
            Disk(dict(disk.log), disk.last, disk.announced),
            set(self.holds[name]),
            set(self.tentative.get(name, ())),
        )

    def replaced(self, name: str, saved: Saved) -> None:
        """A node, which is down, has another data directory: what only the old one had is lost lawfully (P1)."""
        others = set().union(*(held for other, held in self.holds.items() if other != name))
        for position in self.holds[name] - others - saved.holds:
            self.excused |= {change.op_id for change in self.decoded.get(position, ())}
        self.excused |= self.tentative.get(name, set()) - saved.tentative
        self.tentative[name] = saved.tentative
        self.holds[name] = saved.holds
        self.disks[name] = saved.disk

    def _given(self, name: str, position: Position, frame: bytes, before: Position) -> None:
        if before.seq == position.seq - 1 and self.before.setdefault(position, before) != before:
            raise Failed(
                f"P4: {name} has {before} before {position}, others {self.before[position]}"
            )
        known = self.entries.get(position)
        if known is None:
            self.entries[position] = frame
            self._decode(position, frame)
        elif known != frame:
            raise Failed(f"P4: {name} has another entry at {position} than others")

    def _appended(self, name: str, position: Position) -> None:
        disk = self.disks[name]
        if disk.last and position.seq != disk.last + 1:
            raise Failed(f"P4: {name} appends {position} after seq {disk.last}")
        before = disk.log.get(disk.last)
        if before is not None and position.epoch < before.epoch:
            raise Failed(f"P5: {name} appends {position} after {before}")
        disk.log[position.seq] = position
        disk.last = position.seq

    def _decode(self, position: Position, frame: bytes) -> None:
        _, effects = fx.decode_entry(frame)
        changes = changes_of(position, effects)
        self.effects[position] = effects
        self.decoded[position] = changes
        for change in changes:
            self.known[change.op_id] = change
        epoch = position.epoch
        if epoch not in self.epochs and effects and effects[0][0] != fx.EPOCH:
            raise Failed(f"P5: {position} begins an epoch and does not say so")
        self.epochs.setdefault(epoch, "")

    def _announced(self, name: str, position: Position) -> None:
        disk = self.disks[name]
        if disk.log.get(position.seq) != position:
            raise Failed(
                f"P2: {name} calls {position} durable and has {disk.log.get(position.seq)}"
            )
        self._has(name, [disk.log[seq] for seq in range(disk.announced + 1, position.seq + 1)])
        disk.announced = position.seq

    def _cut(self, name: str, seq: int) -> None:
        disk = self.disks[name]
        if self.settled is not None and seq < self.settled.seq and not self.forced:
            gone = disk.log.get(self.settled.seq)
            if gone == self.settled:
                raise Failed(f"P1: {name} cuts settled {gone} back to seq {seq}")
        for each in [each for each in disk.log if each > seq]:
            del disk.log[each]
        disk.last = min(disk.last, seq)
        disk.announced = min(disk.announced, seq)

    def _network_started(self, node: Any, network: Any) -> None:
        """Looks at what is said to be settled, as soon as there is a core to say it to."""
        recovered = network.recovered

        def recovering(message: Any) -> None:
            recovered(message)
            core = network.core
            if core is None:
                return
            self.numbers[core.number] = node.name
            self.directories[core.number] = self.holds[node.name]
            levels = core.levels
            acked = levels.acked

            def counted(settled: int, replicas: Any, live: int) -> None:
                if core.decides:
                    self._settled(node.name, core, settled)
                acked(settled, replicas, live)

            levels.acked = counted

        network.recovered = recovering

    def _settled(self, name: str, core: Any, seq: int) -> None:
        """Something is said to be on a majority's disks: it must be true, and stay so."""
        if not seq:
            return
        epoch = core.state.epoch_of(seq)
        if epoch is None:
            return
        position = Position.at(epoch, seq)
        top = self.settled
        if top is not None and position <= top:
            return
        # The count may have been made before the newest members were told of.
        lists = [sorted(core.state.members), self._members_at(name, position)]
        if not any(self._majority_has(position, members) for members in lists):
            raise Failed(f"P1: {name} calls {position} settled; not so of members {lists[0]}")
        if top is not None and not self.forced and not core.state.in_history(top):
            raise Failed(f"P1: settled {top} is not in the history of the primary {name}")
        self.settled = position

    def _majority_has(self, position: Position, members: list[int]) -> bool:
        holders = [number for number in members if position in self.directories.get(number, ())]
        return len(holders) >= len(members) // 2 + 1

    def _members_at(self, name: str, position: Position) -> list[int]:
        """The member list as the entry at this position, or the last one before it that tells, has it."""
        log = self.disks[name].log
        for seq in range(position.seq, 0, -1):
            for effect in self.effects.get(log.get(seq, position), ()):
                if effect[0] == fx.EPOCH:
                    return sorted(effect[2])
                if effect[0] == fx.MEMBERS:
                    return sorted(effect[1])
        return []

    # What clients are shown

    def shown(self, nodes: Sequence[str], position: Position | None, what: str) -> None:
        """P3: what a reply stands on is durable where it was given (one of these), and where it was decided."""
        self.checks += 1
        if position is None:
            return
        node = " or ".join(nodes)
        if not any(position in self.durable[each] for each in nodes):
            raise Failed(f"P3: {node} showed {what} of {position}, which it does not have on disk")
        # At the primary: the one that decided it, or one of a later reign that has it in its history.
        primaries = {self.numbers.get(position.node)} | {
            self.numbers.get(epoch.node) for epoch in self.epochs if epoch > position.epoch
        }
        if not any(position in self.durable.get(str(name), ()) for name in primaries):
            raise Failed(f"P3: {node} showed {what} of {position}, not durable at any primary")

    def shown_record(self, node: str, op_id: int, what: str) -> None:
        """P3: what a read shows is durable there, decided or in the outbox."""
        if op_id in self.tentative.get(node, ()):
            return
        change = self.known.get(op_id)
        if change is None:
            raise Failed(f"P3: {node} showed {what} with op id {op_id}, which is on no disk")
        candidates = [each.position for each in (change,) if each.position in self.durable[node]]
        if not candidates and not self._elsewhere(node, op_id):
            raise Failed(f"P3: {node} showed {what} of {change.position}, not on its disk")

    def _elsewhere(self, node: str, op_id: int) -> bool:
        """Whether the same op id was decided again in another epoch and is durable here there."""
        return any(
            change.op_id == op_id
            for position in self.durable[node]
            for change in self.decoded.get(position, ())
        )

    # The end

    def path(self, start: Position, end: Position) -> list[Position] | None:
        """The entries after `start` up to `end`, of the history that `end` is of; None when `start` is not in it."""
        found: list[Position] = []
        position = end
        while position.seq > start.seq:
            found.append(position)
            position = self.before[position]
        return found[::-1] if position == start or not start.seq else None

    def history(self, last: Position) -> list[Position]:
        """All entries of the history that ends with this one, oldest first."""
        return self.path(NOTHING, last) or []
