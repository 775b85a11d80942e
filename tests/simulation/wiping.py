"""A simulated life in which nodes lose their data directories, come back with empty ones, and join under new numbers.

A majority protocol bears the loss of a disk only while the other disks have what a majority had, and so does this
life: a directory is wiped while nobody else lacks one, a primary is there, and no promise stands that could be
forgotten with it. Writes that no other directory has are lost lawfully, and excused.
"""

from __future__ import annotations

from typing import Any

from nun.position import Position
from tests.simulation.faults import Faults
from tests.simulation.simulation import Simulation
from tests.simulation.world import MS


class WipingFaults(Faults):
    """As others, and wipes."""

    def __init__(self, simulation: Any) -> None:
        super().__init__(simulation)
        self.kinds += ["wipe", "wipe"]

    def _wipe(self) -> None:
        """The node that the configuration names as the first primary is spared: it would form a cluster of its own."""
        node = self.world.rng.choice(list(self.simulation.nodes.values())[1:])
        if not self.simulation.may_be_wiped(node):
            return
        node.wipe()
        self.simulation.oracle.wiped(node.name)
        self.world.after(
            self.world.between(50, 1_500) * MS, lambda: None if node.up else node.start()
        )


class WipingSimulation(Simulation):
    """See the module's docstring."""

    faults = WipingFaults

    def __init__(self, seed: int, nodes: int | None = None, keep: int = 4_000) -> None:
        super().__init__(seed, nodes, keep)
        self._lacking: dict[str, Position] = {}  # wiped: what was settled then

    def may_be_wiped(self, node: Any) -> bool:
        """Whether the cluster can bear it now."""
        primary = self.primary()
        if primary is None or primary is node or self.promise_stands() or self._candidates():
            return False
        core = primary.network.core
        if sorted(member.name for member in core.state.members.values()) != sorted(self.names):
            return False
        back = all(settled in self.oracle.holds[name] for name, settled in self._lacking.items())
        settled = self.oracle.settled
        if not back or settled is None or settled not in self.oracle.holds[primary.name]:
            return False
        self._lacking[node.name] = settled
        return True

    def _candidates(self) -> bool:
        cores = [node.replicator.core for node in self.nodes.values() if node.replicator]
        return any(core.promotion.running or core.keeping for core in cores)
