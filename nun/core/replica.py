"""A replica's end of the op stream: entries that the primary decided are applied here, and never decided again.

Frames come from the replicator, which hands them to this process and to the storage writer at once; that may drop some
on the way. What is missing here is read from the node's own log once the storage writer has it.

I1  Entries are adopted in order of seq without a hole, each once, none of an epoch older than the one followed (P5).
I2  What an entry changes is seen at once by what is read here, and shown to clients only when the entry is durable
    here and at the primary (P3): replies and events wait in it as in an entry of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING

from nun.codec import unpack
from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.core.history import Fence
from nun.core.keyspace import Table
from nun.core.record import ABSENT
from nun.core.requests.access import GUARDED_PREFIX
from nun.position import Position

if TYPE_CHECKING:
    from nun.core.network import NetworkCore


class Adopter:
    """Takes in what the primary has decided.

    Attributes:
        fence: keeps out what is of an epoch that is over.
        known_seq: the highest seq that is known to exist.
        reading: whether the log is being read for what is missing.
    """

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self.fence = Fence()
        self.known_seq = 0
        self.reading = False

    def take(self, frames: Sequence[bytes]) -> bool:
        """Adopts what continues this node's history; returns whether anything did.

        Raises:
            WireError: a frame is neither an entry nor a beat.
        """
        stream = self._core.stream
        adopted = False
        for frame in frames:
            kind, position, body = fx.decode_head(frame)
            if not self.fence.passes(position):
                continue
            self.exists(position.seq)
            if kind == fx.ENTRY and position.seq == stream.last_seq + 1:
                self._adopt(position, frame, unpack(body))
                adopted = True
        return adopted

    def exists(self, seq: int) -> None:
        """There are entries up to this one."""
        if seq > self.known_seq:
            self.known_seq = seq

    def missing(self) -> int:
        """The first seq to read from the log, when entries are missing here that the log has; else 0."""
        core = self._core
        first = core.stream.last_seq + 1
        if self.reading or core.strayed or self.known_seq < first or core.local_durable < first:
            return 0
        self.reading = True
        return first

    def _adopt(self, position: Position, frame: bytes, effects: list[fx.Effect]) -> None:
        core = self._core
        entry = core.stream.adopt(position, frame)
        told = False
        for effect in effects:
            kind = effect[0]
            if kind == fx.PUTS:
                entry.changes.append(self._put_many(effect))
            elif kind == fx.DATABASE:
                core.tables.setdefault(effect[1], Table())
            elif kind == fx.DROP_DATABASE:
                core.admin.database_dropped(effect[1])
            elif kind in (fx.EPOCH, fx.MEMBERS):
                told = True
            elif kind == fx.CHECK:
                core.digests.begin(position)
            elif kind == fx.OUTBOX:
                core.tentative.decided(position.seq, effect[1], effect[2])
            elif kind == fx.NOTICE:
                core.outcomes.push(entry, *effect[1:])
            else:
                for change in fx.record_changes((effect,)):
                    self._change(change)
                    entry.changes.append(change)
        core.state.apply(position, effects)
        for effect in effects:
            if effect[0] == fx.DATABASE and effect[1] in core.tables:
                core.conflicts.refresh(effect[1])
        core.stream.clock.observe(core.state.highest_op_id)
        core.outcomes.decided(effects)
        if core.tentative.repeats:
            core.tentative.repeats.look_at(effects)
        if told:
            core.roles.tell_state()

    def _put_many(self, effect: fx.Effect) -> fx.RecordChange:
        _, database, first_op_id, heads, payload = effect
        keys, values = fx.keys_and_values(payload)
        new = record.successors(heads, first_op_id, TICK, values)
        table = self._core.tables.get(database)
        if table is not None:
            table.put_many(keys, new, list(map(table.records.get, keys, repeat(ABSENT))))
        return fx.RecordChange(database, keys, new)

    def _change(self, change: fx.RecordChange) -> None:
        table = self._core.tables.get(change.database)
        if table is None:
            return
        for key, packed in zip(change.keys, change.records, strict=True):
            table.replace(key, packed)
            if key.startswith(GUARDED_PREFIX):
                self._core.rights.key_changed(change.database, key)
