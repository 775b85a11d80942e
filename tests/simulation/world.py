"""Virtual time, one seeded source of chance, the queue of what is to happen, and the trace of what has.

I1  Everything that happens is a call from the queue, in order of (time, order of scheduling): nothing depends on hash
    order, addresses or the machine's clock, so a seed replays exactly.
I2  All chance comes from `rng`, in the order in which it is asked.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final

MS: Final = 1_000_000
SECOND: Final = 1_000_000_000
TRACE_LINES: Final = 4_000


class Event:
    """Something that is to happen; `cancel` sees to it that it does not."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call: Callable[[], Any] | None = call

    def cancel(self) -> None:
        self.call = None


class World:
    """See the module's docstring.

    Attributes:
        now: nanoseconds since the world began.
        current: the process that runs at this moment, if one does.
        digest: a checksum over the trace.
    """

    def __init__(self, seed: int, keep: int = TRACE_LINES) -> None:
        self.seed = seed
        self.now = 0
        self.rng = random.Random(seed)
        self.current: Any = None
        self.digest = seed & 0xFFFFFFFF
        self.trace: deque[tuple[int, str, tuple[Any, ...]]] = deque(maxlen=keep)
        self.happened = 0
        self._at_once = 0
        self._queue: list[tuple[int, int, Event]] = []
        self._order = 0

    def at(self, when: int, call: Callable[[], Any]) -> Event:
        """Has `call` called at that time."""
        event = Event(call)
        self._order += 1
        heapq.heappush(self._queue, (max(when, self.now), self._order, event))
        return event

    def after(self, ns: int, call: Callable[[], Any]) -> Event:
        return self.at(self.now + ns, call)

    def run(self, until: int, done: Callable[[], bool] | None = None) -> bool:
        """Lets things happen until that time, or until `done` says so; returns whether it did."""
        queue = self._queue
        pop = heapq.heappop
        while queue and queue[0][0] <= until:
            when, _, event = pop(queue)
            call = event.call
            if call is None:
                continue
            if when == self.now:
                self._at_once += 1
                assert self._at_once < 100_000, "time stands still"
            else:
                self._at_once = 0
            self.now = when
            self.happened += 1
            call()
            if done is not None and done():
                return True
        self.now = max(self.now, until)
        return False

    # Chance

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high; cheaper than randint."""
        return low + int(self.rng.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    # The trace

    def note(self, kind: str, *what: Any) -> None:
        """Adds a line to the trace. What it holds must print the same in every run."""
        self.trace.append((self.now, kind, what))
        self.digest = zlib.crc32(f"{self.now} {kind} {what!r}".encode(), self.digest)

    def note_frame(self, kind: str, who: Any, frame: bytes) -> None:
        """Adds a message to the trace; it is only made readable when the trace is shown."""
        self.trace.append((self.now, kind, (who, frame)))
        self.digest = zlib.crc32(frame, zlib.crc32(b"%d" % self.now, self.digest))
