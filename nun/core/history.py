"""Where each epoch began: what two nodes have in common.

An entry is known by its position. Two histories that hold an entry of the same epoch and seq hold the same entries
before it, since an epoch has one primary, who went on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nun.position import Epoch, Position

Began = tuple[Epoch, int]  # an epoch and the seq of its first entry


class Fence:
    """Keeps out entries of a history that is over: from where an epoch begins on, whatever is older than it.

    Entries before that are older by right: a node that was away gets them too.
    """

    __slots__ = ("epoch", "first_seq")

    def __init__(self) -> None:
        self.epoch = Epoch(0, 0, 0)
        self.first_seq = 0

    def set(self, epoch: Epoch, first_seq: int) -> None:
        """This epoch is followed now; it begins at that entry. A fence is never taken back."""
        if epoch > self.epoch:
            self.epoch, self.first_seq = epoch, first_seq

    def passes(self, position: Position) -> bool:
        """Whether an entry or beat at this position may belong to the history that is followed."""
        return position.epoch >= self.epoch or position.seq < self.first_seq


def _counts(plain: Any) -> Any:
    if not all(type(part) is int and 0 <= part < 2**63 for part in plain):
        raise ValueError("expected numbers from 0 up")
    return plain


def epoch_from(plain: Any) -> Epoch:
    """An epoch as it comes in a message. Raises ValueError or TypeError."""
    return Epoch(*_counts(plain))


def position_from(plain: Any) -> Position | None:
    """A position as it comes in a message; nil is none. Raises ValueError or TypeError."""
    return None if plain is None else Position(*_counts(plain))


def promise_from(plain: Any) -> tuple[int, int]:
    """A promise as it comes in a message. Raises ValueError or TypeError."""
    reign, number = _counts(plain)
    return reign, number


Digest = tuple[Position, dict[str, str]]  # where it was made; of each database, by name


def digest_from(plain: Any) -> Digest:
    """Digests as they come in a message. Raises ValueError or TypeError."""
    at, texts = plain
    position = position_from(at)
    if position is None:
        raise ValueError("expected where the digests were made")
    return position, {name.decode(): text.decode() for name, text in texts.items()}


def history_from(plain: Any) -> list[Began]:
    """A history as it comes in a message. Raises ValueError or TypeError."""
    found = [
        (Epoch(reign, node, start), first) for reign, node, start, first in map(_counts, plain)
    ]
    if found != sorted(found, key=lambda began: (began[1], began[0])):
        raise ValueError("a history is in order")
    return found


def plain_history(history: Sequence[Began]) -> list[list[int]]:
    """A history as it goes into a message."""
    return [[*epoch, first] for epoch, first in history]


def common_seq(
    mine: Sequence[Began], my_last: int, theirs: Sequence[Began], their_last: int
) -> int:
    """The highest seq up to which two histories are the same; 0 when they share nothing."""
    ends = dict(_ends(mine, my_last))
    shared = [min(end, ends[began]) for began, end in _ends(theirs, their_last) if began in ends]
    return max(shared, default=0)


def _ends(history: Sequence[Began], last: int) -> list[tuple[Began, int]]:
    """Each epoch with the seq of its last entry."""
    firsts = [first for _, first in history[1:]]
    return (
        [
            (began, end)
            for began, end in zip(history, [*(first - 1 for first in firsts), last], strict=True)
            if end >= began[1]
        ]
        if history
        else []
    )


def holds(history: Sequence[Began], last: int, position: Position) -> bool:
    """Whether a history that ends at `last` has an entry at this position."""
    epoch = None
    for began, first in history:
        if first > position.seq:
            break
        epoch = began
    return position.seq <= last and epoch == position.epoch
