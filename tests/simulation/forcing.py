"""A simulated life in which primaries are made by force again and again, while the one before them is cut off or dead.

Of any kind: plain, with conflicts, with databases that are dropped. What a majority had may be cut off then; but every
node comes back in the end and proposes what was cut, so that no acknowledged write is lost (P1), or done twice.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tests.simulation.faults import Faults
from tests.simulation.simulation import Simulation
from tests.simulation.world import MS


class ForcingFaults(Faults):
    """As others, and with forced promotions all along."""

    def __init__(self, simulation: Any) -> None:
        super().__init__(simulation)
        if len(simulation.nodes) > 1:
            often = self.world.rng.choice((1, 3, 6))
            self.kinds += ["force", "isolate", *["take_over"] * often]

    def _take_over(self) -> None:
        """The primary, and sometimes another node, is cut off or dies; one that is left is made primary by force."""
        primary = self.simulation.primary() or self._node()
        gone = [primary, *([self._node()] if self.world.chance(0.3) else [])]
        for node in gone:
            if self.world.chance(0.6):
                self._cut_off(node.name)
            else:
                self._away(node, power=self.world.chance(0.3))
        left = [name for name in self.simulation.names if name not in {each.name for each in gone}]
        if left:
            name = self.world.rng.choice(left)
            soon = self.world.between(0, 600) * MS
            self.world.after(soon, lambda: self._made_primary(name))
            self.simulation.run(self.world.between(0, 1_500) / 1000)  # both may go on meanwhile

    def _made_primary(self, name: str) -> None:
        if not self.simulation.healed:
            self.simulation.promote(name, force=True, at=name)


@cache
def forced(kind: type[Simulation]) -> type[Simulation]:
    """Lives of this kind, with forced promotions."""
    return type(f"Forced{kind.__name__}", (kind,), {"faults": ForcingFaults})
