"""Group commit: what the storage writer appends, when it syncs, and what it may call durable.

Entries come in over a socket that may drop, and a second time on request; they are appended in order of seq, without
a hole, and announced as the fsync policy allows:

    always      durable once a sync that began after the append has returned
    interval    durable once appended; a sync every `interval_ms` while there is something to sync
    never       durable once appended

One turn: `take` what has come in, append what it returns, `was_appended`; sync if `wants_sync`, `was_synced`; announce
what `durable` returns; ask for what `gap` says. Where the disk has no room, the owner keeps what `take` returned and
appends it later: nothing is called durable meanwhile.

Entries come from this node's own network process, or from the primary by way of the replicator. `fence` keeps out what
an older primary, or this node as one, had decided and the followed history has not.

I1  What is appended continues the log by exactly one seq an entry; an entry of an older epoch is never appended (P5).
I2  announced <= appended <= received and synced <= appended; under `always`, announced <= synced.
I3  Each position is announced at most once, and in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nun.core import effects as fx
from nun.core.history import Fence
from nun.position import Position

GAP_PATIENCE_MS: Final = 100
POLICIES: Final = ("always", "interval", "never")


class Commit:
    """The decisions of one storage writer.

    Attributes:
        fence: keeps out what is of an epoch that is over.
        received, appended, synced: how far each has come; None: nowhere, in an empty log.

    Args:
        last: the last position in the log, None when it is empty; all up to it is synced.
        policy: "always", "interval" or "never".
        interval_ms: between syncs, for "interval".
    """

    def __init__(self, last: Position | None, policy: str, interval_ms: int) -> None:
        assert policy in POLICIES, policy
        self.policy = policy
        self._interval_ms = interval_ms
        self.received = last
        self.appended = last
        self.synced = last
        self._announced = last
        self._last_sync_ms: int | None = None
        self._known_seq = self.next_seq - 1  # the highest that is known to exist
        self._gap_asked_ms: int | None = None
        self.fence = Fence()

    @property
    def next_seq(self) -> int:
        """The seq that continues what was received."""
        return self.received.seq + 1 if self.received is not None else 1

    def take(self, frames: Sequence[bytes]) -> list[tuple[Position, bytes]]:
        """Frames of the op stream or of a resend, in order of arrival; returns what is to be appended.

        Entries that are here already, and whatever is of an older epoch, are passed over.

        Raises:
            WireError: a frame is neither an entry nor a beat.
        """
        taken = []
        received = self.received
        expected = self.next_seq
        for frame in frames:
            kind, position, _ = fx.decode_head(frame)
            seq = position.seq
            if seq < expected or (received is not None and position < received):
                continue
            if not self.fence.passes(position):
                continue
            if seq == expected and kind == fx.ENTRY:
                taken.append((position, frame))
                received = position
                expected += 1
            elif seq > self._known_seq:
                self._known_seq = seq
        self.received = received
        return taken

    def gap(self, now_ms: int) -> int | None:
        """The seq from which entries are to be sent again, when some are missing and were not just asked for."""
        if self._known_seq < self.next_seq:
            self._gap_asked_ms = None
            return None
        asked = self._gap_asked_ms
        if asked is not None and now_ms - asked < GAP_PATIENCE_MS:
            return None
        self._gap_asked_ms = now_ms
        return self.next_seq

    def was_appended(self, position: Position) -> None:
        """Everything up to `position` is in the file."""
        assert self.appended is None or position > self.appended
        assert self.received is not None
        assert position <= self.received
        self.appended = position

    def wants_sync(self, now_ms: int) -> bool:
        """Whether a sync is due now."""
        if self.appended == self.synced or self.policy == "never":
            return False
        last = self._last_sync_ms
        return self.policy == "always" or last is None or now_ms - last >= self._interval_ms

    def was_synced(self, position: Position | None, now_ms: int) -> None:
        """A sync that began when `position` was appended has returned."""
        assert position is None or (self.appended is not None and position <= self.appended)
        if position is not None and (self.synced is None or position > self.synced):
            self.synced = position
        self._last_sync_ms = now_ms

    @property
    def stored(self) -> Position | None:
        """How far the log counts as durable: what the policy promises, and no more."""
        return self.synced if self.policy == "always" else self.appended

    def durable(self) -> Position | None:
        """The position to announce; None when nothing new is durable."""
        position = self.stored
        if position == self._announced:
            return None
        self._announced = position
        return position
