"""Group commit: what the storage writer appends, when it syncs, and what it may call durable.

Entries come in over a socket that may drop; they are appended in order of seq, without a hole, and announced as the
fsync policy allows:

    always      durable once a sync that began after the append has returned
    interval    durable once appended; a sync every `interval_ms` while there is something to sync
    never       durable once appended

I1  What is appended continues the log by exactly one seq an entry; an entry of an older epoch is never appended (P5).
I2  `durable` never runs ahead of what was appended, nor, under `always`, of what was synced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nun.core import effects as fx
from nun.position import Position

GAP_PATIENCE_MS: Final = 100


class Commit:
    """The decisions of one storage writer.

    Args:
        last: the last position in the log, None when it is empty.
        policy: "always", "interval" or "never".
        interval_ms: between syncs, for "interval".
    """

    def __init__(self, last: Position | None, policy: str, interval_ms: int) -> None:
        assert policy in ("always", "interval", "never"), policy
        self.policy = policy
        self._interval_ms = interval_ms
        self.received = last
        self.appended = last
        self.synced = last
        self._announced = last
        self._last_sync_ms = 0
        self._gap_asked_ms: int | None = None
        self._missing = False

    @property
    def next_seq(self) -> int:
        """The seq that continues what was received."""
        return self.received.seq + 1 if self.received is not None else 1

    def take(self, frames: Sequence[bytes]) -> list[tuple[Position, bytes]]:
        """Frames of the op stream or of a resend, in order of arrival; returns what is to be appended."""
        taken = []
        for frame in frames:
            kind, position, _ = fx.decode_head(frame)
            if self.received is not None and position.epoch < self.received.epoch:
                continue
            if kind == fx.BEAT:
                self._missing = self._missing or position.seq >= self.next_seq
            elif position.seq == self.next_seq:
                taken.append((position, frame))
                self.received = position
            elif position.seq > self.next_seq:
                self._missing = True
        if taken:
            self._missing = self._missing and taken[-1][0].seq < self.next_seq - 1
        return taken

    def gap(self, now_ms: int) -> int | None:
        """The seq from which entries are to be sent again, when some are missing and were not just asked for."""
        if not self._missing:
            self._gap_asked_ms = None
            return None
        asked = self._gap_asked_ms
        if asked is not None and now_ms - asked < GAP_PATIENCE_MS:
            return None
        self._gap_asked_ms = now_ms
        self._missing = False  # the next beat says so again if need be
        return self.next_seq

    def was_appended(self, position: Position) -> None:
        """Everything up to `position` is in the file."""
        self.appended = position

    def wants_sync(self, now_ms: int) -> bool:
        """Whether a sync is due now."""
        if self.appended == self.synced or self.policy == "never":
            return False
        return self.policy == "always" or now_ms - self._last_sync_ms >= self._interval_ms

    def was_synced(self, position: Position | None, now_ms: int) -> None:
        """A sync that began when `position` was appended has returned."""
        self.synced = position
        self._last_sync_ms = now_ms

    def durable(self) -> Position | None:
        """The position to announce; None when nothing new is durable."""
        position = self.synced if self.policy == "always" else self.appended
        if position == self._announced:
            return None
        self._announced = position
        return position
