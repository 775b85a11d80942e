"""How far another node's clock is from this one's, from four stamps an exchange.

    t1  sent here      t2  received there      t3  answered there      t4  received here

The offset is ((t2 - t1) + (t3 - t4)) / 2; it errs by at most half of the round trip (t4 - t1) - (t3 - t2), when all of
that was spent on one way. Of the last samples the one with the least round trip is believed.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

SAMPLES: Final = 8


class Offset(NamedTuple):
    """Their clock less ours, and how far that may be wrong; microseconds."""

    offset_us: float
    bound_us: float


class Offsets:
    """The offset of one peer's clock."""

    def __init__(self) -> None:
        self._samples: deque[Offset] = deque(maxlen=SAMPLES)

    def add(self, t1: int, t2: int, t3: int, t4: int) -> None:
        """One exchange; stamps in microseconds. One whose round trip is negative is passed over: a clock was set."""
        round_trip = (t4 - t1) - (t3 - t2)
        if round_trip >= 0:
            self._samples.append(Offset(((t2 - t1) + (t3 - t4)) / 2, round_trip / 2))

    @property
    def best(self) -> Offset | None:
        """What is believed; None before the first exchange."""
        return min(self._samples, key=lambda sample: sample.bound_us, default=None)
