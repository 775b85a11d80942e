"""The op stream in the network process: entries are made here or adopted from the primary, kept, and released.

One turn of the loop makes at most one entry. Replies wait in it as data: whatever shows or depends on an entry is
attached to it and goes out when the entry is durable, so the order is right by construction (P3).

I1  Entries are numbered without a hole; at most one is open; a closed one never changes.
I2  `pending` holds every closed entry above `durable_seq`, oldest first, and is bounded in bytes by its owner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from nun.core import effects as fx
from nun.core.clock import Clock
from nun.core.levels import Level
from nun.core.state import NodeState
from nun.position import Epoch, Position

Reply = tuple[bytes, bytes]  # (routing id, frame)


class PendingEntry:
    """An entry that is open, or closed and not yet durable."""

    __slots__ = (
        "_keys",
        "began_ns",
        "changes",
        "effects",
        "frame",
        "leveled",
        "position",
        "replies",
        "seq",
        "to_replicator",
        "writes",
    )

    def __init__(self, position: Position) -> None:
        self.position = position
        self.seq = position.seq
        self.effects: list[fx.Effect] = []
        self.changes: list[fx.RecordChange] = []
        self.replies: list[Reply] = []
        self.leveled: list[tuple[Level, bytes, bytes]] = []  # replies that need more than durable
        self.to_replicator: list[tuple[Any, ...]] = []
        self.writes = 0  # requests that were decided in it; for the metrics, with when that began
        self.began_ns = 0
        self.frame = b""
        self._keys: dict[int, tuple[int, set[bytes]]] = {}

    def touches(self, database: int, keys: Sequence[bytes]) -> bool:
        """Whether this entry changes one of these keys. The set of its keys is made when first asked for."""
        changes = self.changes
        taken, known = self._keys.get(database, (0, None))
        if known is None:
            known = set()
        if taken != len(changes):
            for change in changes[taken:]:
                if change.database == database:
                    known.update(change.keys)
            self._keys[database] = (len(changes), known)
        return not known.isdisjoint(keys)


def later(one: PendingEntry | None, other: PendingEntry | None) -> PendingEntry | None:
    """What depends on two entries waits for the later one."""
    if one is None or other is None:
        return one or other
    return one if one.seq > other.seq else other


class Stream:
    """The newest entries of this node's history.

    Args:
        state: the node's state; effects are taken into it as they are decided.
        clock: stamps op ids.

    Attributes:
        epoch: of the newest entry, or of the one that begins.
        durable_seq: everything up to here is released.
    """

    def __init__(self, state: NodeState, clock: Clock) -> None:
        self.state = state
        self.epoch = state.epochs[-1][0] if state.epochs else Epoch(0, 0, 0)
        self.clock = clock
        self.last_seq = state.position.seq if state.position is not None else 0
        self.durable_seq = self.last_seq
        self.pending: deque[PendingEntry] = deque()
        self.pending_bytes = 0
        self.open: PendingEntry | None = None

    def entry(self) -> PendingEntry:
        """The open entry of this turn."""
        if self.open is None:
            self.open = PendingEntry(Position.at(self.epoch, self.last_seq + 1))
        return self.open

    def adopt(self, position: Position, frame: bytes) -> PendingEntry:
        """Takes in an entry that was decided elsewhere; its effects are the caller's to apply."""
        assert self.open is None
        assert position.seq == self.last_seq + 1
        entry = PendingEntry(position)
        entry.frame = frame
        self.epoch = position.epoch
        self.last_seq = position.seq
        self.pending.append(entry)
        self.pending_bytes += len(frame)
        return entry

    def add(self, effect: fx.Effect) -> PendingEntry:
        """Decides one effect that touches no record: it joins the open entry and is in the state at once."""
        entry = self.open or self.entry()
        entry.effects.append(effect)
        self.state.take(entry.position, effect)
        return entry

    def add_signed(self, effects: Sequence[fx.Effect]) -> None:
        """Decides SIGNED effects in the order of their op ids: the state takes note of the last."""
        entry = self.open or self.entry()
        entry.effects += effects
        self.state.take(entry.position, effects[-1])

    def close(self) -> bytes | None:
        """Ends the turn's entry and returns the frame to publish; None when nothing was decided."""
        entry = self.open
        if entry is None:
            return None
        self.open = None
        entry.frame = fx.encode_entry(entry.position, entry.effects)
        entry.effects = []
        self.last_seq = entry.seq
        self.state.position = entry.position
        self.pending.append(entry)
        self.pending_bytes += len(entry.frame)
        return entry.frame

    def release(self, seq: int) -> list[PendingEntry]:
        """Takes note that everything up to `seq` is durable; returns the entries that became so, in order."""
        released = []
        pending = self.pending
        while pending and pending[0].seq <= seq:
            entry = pending.popleft()
            self.pending_bytes -= len(entry.frame)
            released.append(entry)
        if released:
            self.durable_seq = released[-1].seq
        return released

    def frames_from(self, seq: int) -> list[bytes]:
        """The kept frames from `seq` on, for a subscriber that missed some."""
        return [entry.frame for entry in self.pending if entry.seq >= seq]

    def waits_for(self, database: int, keys: Sequence[bytes]) -> PendingEntry | None:
        """The newest entry, not yet durable, that what these keys hold now depends on."""
        if self.open is not None and self.open.touches(database, keys):
            return self.open
        for entry in reversed(self.pending):
            if entry.touches(database, keys):
                return entry
        return None

    def newest(self) -> PendingEntry | None:
        """The newest entry that is not durable, the open one included."""
        if self.open is not None:
            return self.open
        return self.pending[-1] if self.pending else None

    def at(self, seq: int) -> PendingEntry | None:
        """The entry `seq` while it is not durable."""
        if self.open is not None and self.open.seq == seq:
            return self.open
        if self.pending and seq >= self.pending[0].seq:
            return self.pending[seq - self.pending[0].seq]
        return None

    def describe(self) -> dict[str, Any]:
        return {
            "epoch": str(self.epoch),
            "last": self.last_seq,
            "durable": self.durable_seq,
            "pending_entries": len(self.pending),
            "pending_bytes": self.pending_bytes,
        }
