"""Where an entry stands: the epoch it was decided in and its number in the one stream of entries.

`seq` is contiguous, one per entry, and goes on across epochs; an epoch is (reign, node number, start), compared in that
order. The text form is `reign.node.start:seq`, as in `1.1.3:42`.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_TEXT = re.compile(r"(\d{1,10})\.(\d{1,4})\.(\d{1,10}):(\d{1,19})\Z", re.ASCII)


class Epoch(NamedTuple):
    """One uninterrupted rule of one primary; no two nodes ever form the same, none is reused."""

    reign: int
    node: int
    start: int

    def __str__(self) -> str:
        return f"{self.reign}.{self.node}.{self.start}"


class Position(NamedTuple):
    """An entry's place; positions compare by epoch first, then by seq."""

    reign: int
    node: int
    start: int
    seq: int

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.reign, self.node, self.start)

    def __str__(self) -> str:
        return f"{self.reign}.{self.node}.{self.start}:{self.seq}"

    @classmethod
    def at(cls, epoch: Epoch, seq: int) -> Position:
        return cls(*epoch, seq)

    @classmethod
    def parse(cls, text: str) -> Position:
        """Reads the text form back. Raises ValueError that shows what was expected."""
        match = _TEXT.match(text)
        if match is None:
            raise ValueError(f"{text!r} is not a position such as '1.1.3:42'")
        return cls(*(int(part) for part in match.groups()))


NOTHING: Final = Position(0, 0, 0, 0)
"""Before the first entry."""
