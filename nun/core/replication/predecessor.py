"""What an earlier replicator of this node handed down before it died.

The replicator may die alone. Network process and storage writer live on, and each may have been handed what the other
has not, or not yet.

I1  This process goes on from what both are known to have. Of the same entries, whatever is handed down again or
    reaches the disk by itself counts once.
I2  What the network process has, the disk gets from there: the primary that it came from may be gone, and no other
    node need have it. Until then this node may lack what it joined with, and be no help to a new primary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from nun import messages as m
from nun import peer_messages as pm
from nun.core import effects as fx
from nun.core.history import Began
from nun.core.replication.following import CUTTING, FILLING
from nun.position import Position

if TYPE_CHECKING:
    from nun.core.replication.replicator import ReplicatorCore

_ASK_AGAIN_NS: Final = 500_000_000


class Predecessor:
    """The entries that an earlier process handed down."""

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core
        self._left: Position | None = None  # the last of them, as the network process has it
        self._asked_ns = 0

    def left(self, history: Sequence[Began], last: Position) -> tuple[list[Began], Position | None]:
        """Takes note of what the network process has; returns as much of it as is on disk."""
        core = self._core
        self._left = last
        self._ask()
        seq = min(last.seq, core.durable_seq)
        known = [began for began in history if began[1] <= seq]
        return known, Position.at(known[-1][0], seq) if known else None

    def stored(self, position: Position) -> None:
        """The disk has entries up to this one: more than this process knows of, where another handed them down."""
        core = self._core
        decided_here = core.leads or core.ordered is not None
        if decided_here or not core.state_known or position.seq <= core.last_seq:
            return
        if position.epoch == core.epoch:
            core.advance(position)
        else:  # where that epoch began, the network process knows
            core.state_known = False
            core.out.to_network.append((pm.REPLICATOR_UP,))

    def tick(self) -> None:
        """Asks again."""
        if self._left is not None and self._core.now_ns - self._asked_ns > _ASK_AGAIN_NS:
            self._ask()

    def _ask(self) -> None:
        """Tells the storage writer how much there is: it asks the network process for what it lacks."""
        core = self._core
        replaced = core.following.state in (CUTTING, FILLING)
        if self._left is None or core.leads or replaced or core.durable_seq >= self._left.seq:
            self._left = None
            return
        self._asked_ns = core.now_ns
        beat = fx.encode_beat(self._left.epoch, self._left.seq)
        core.out.to_writer.append((m.ENTRIES, [beat]))
