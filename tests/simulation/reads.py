"""Reads at a position or at a level, and what they must have shown.

R1  A read at a position of the history that remains shows that entry's value of the key, or a later one.
R2  A majority read shows what no change of primary takes back (P3), and on one node never less than an earlier one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nun.position import Position
from tests.simulation.process import Failed


@dataclass
class Read:
    """One read that asked for more than what is shown now, and its answer; op id 0: there was nothing."""

    client: str
    node: str
    key: str
    at: Position | None
    majority: bool
    began: int
    answered: int
    op_id: int


class _Order:
    """Where each change of a key stands in the history."""

    def __init__(self, history: Iterable[Position], decoded: Any) -> None:
        self.of: dict[tuple[str, int], int] = {}
        self.removed: dict[str, int] = {}  # key -> where it was last removed
        self._changes: dict[str, list[tuple[int, int]]] = {}  # key -> (seq, where)
        where = 0
        for position in history:
            for change in decoded[position]:
                where += 1
                key = change.key.decode()
                self.of[key, change.op_id] = where
                if change.value is None:
                    self.removed[key] = where
                self._changes.setdefault(key, []).append((position.seq, where))

    def at(self, key: str, seq: int) -> int:
        """The newest change of a key up to an entry."""
        found = [where for at, where in self._changes.get(key, ()) if at <= seq]
        return max(found, default=0)


def check_reads(
    reads: Sequence[Read],
    history: list[Position],
    decoded: Any,
    lost: bool,
    unsure: Collection[str] = (),
) -> None:
    """R1 and R2, once all is at rest.

    Args:
        lost: a promotion was forced, so that what was settled may be gone.
        unsure: keys whose removal was shown for a while by the node that took it, and then did not win.
    """
    order = _Order(history, decoded)
    here = set(history)
    seen: dict[tuple[str, str], list[tuple[int, int]]] = {}  # node, key -> (answered, where)
    for read in sorted(reads, key=lambda read: read.began):
        if not read.op_id and not read.majority and read.key in unsure:
            continue
        # Nothing shown: it may be any time before the key was first written, or where it was last removed.
        shown = (
            order.of.get((read.key, read.op_id)) if read.op_id else order.removed.get(read.key, 0)
        )
        if shown is None:
            if read.majority and not lost:
                raise Failed(f"P3: {read} was shown, and no longer stands in the history")
            continue
        if read.at in here and shown < order.at(read.key, read.at.seq):
            raise Failed(f"{read} shows less than that position holds")
        if read.majority and not lost:
            before = seen.setdefault((read.node, read.key), [])
            if any(answered <= read.began and where > shown for answered, where in before):
                raise Failed(f"{read} shows less than an earlier majority read of that node")
            if read.op_id:  # else it is a guess, in favour of the read
                before.append((read.answered, shown))
