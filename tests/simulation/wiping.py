"""A simulated life in which nodes lose their data directories, come back with empty or earlier ones, and join under new
numbers.

A majority protocol bears the loss of a disk only while the other disks have what a majority had, and so does this
life: a directory is lost while nobody else lacks one, a primary is there, and no promise stands that could be
forgotten with it. Writes that no other directory has are lost lawfully, and excused. That a directory was set back
shows at the log's list, which has a later start of it; one that was copied in its last start cannot be told from one
that lost its power, and is spared.
"""

from __future__ import annotations

from typing import Any

from nun.position import Position
from storage.directory import read_identity
from tests.simulation.faults import Faults
from tests.simulation.oracle import Saved
from tests.simulation.simulation import Simulation
from tests.simulation.world import MS
from tests.support.sim_disk import SimDisk


class WipingFaults(Faults):
    """As others; and directories are lost, or set back to a copy that was made before."""

    def __init__(self, simulation: Any) -> None:
        super().__init__(simulation)
        self.kinds += ["wipe", "wipe", "copy", "set_back", "set_back", "set_back"]
        self._copies: dict[str, tuple[SimDisk, Saved]] = {}

    def _some(self) -> Any:
        """The node that the configuration names as the first primary is spared: it would form a cluster of its own."""
        return self.world.rng.choice(list(self.simulation.nodes.values())[1:])

    def _wipe(self) -> None:
        node = self._some()
        if self.simulation.may_be_lost(node):
            node.wipe()
            self._replaced(node, Saved())

    def _copy(self) -> None:
        node = self._some()
        if node.up and node.network is not None and node.disk.capacity is None:
            self._copies[node.name] = (node.disk.kill(), self.simulation.oracle.saved(node.name))

    def _set_back(self) -> None:
        """Where too few starts lie between, there is one more."""
        if not self._copies:
            return
        name = self.world.rng.choice(sorted(self._copies))
        node, copy = self.simulation.nodes[name], self._copies[name]
        identity = read_identity(copy[0])
        if identity is None or not self.simulation.lists_later(name, identity):
            node.restart("one start more")
        elif self.simulation.may_be_lost(node):
            node.set_back(copy[0])
            self._replaced(node, self._copies.pop(node.name)[1])

    def _replaced(self, node: Any, saved: Saved) -> None:
        self.simulation.oracle.replaced(node.name, saved)
        away = self.world.between(50, 1_500) * MS
        self.world.after(away, lambda: None if node.up else node.start())


class WipingSimulation(Simulation):
    """See the module's docstring."""

    faults = WipingFaults

    def __init__(self, seed: int, nodes: int | None = None, keep: int = 4_000) -> None:
        super().__init__(seed, nodes, keep)
        self._lacking: dict[str, Position] = {}  # whose directory was lost: what was settled then

    def lists_later(self, name: str, identity: Any) -> bool:
        """Whether all others know a start of this directory that is later than its next one."""
        lists = [
            each.network.core.state.members.values()
            for each in self.nodes.values()
            if each.name != name and each.network is not None and each.network.core is not None
        ]
        return len(lists) == len(self.nodes) - 1 and all(
            any(
                member.directory == identity.directory and member.start > identity.start + 1
                for member in members
            )
            for members in lists
        )

    def may_be_lost(self, node: Any) -> bool:
        """Whether the cluster can bear the loss of this node's directory now; if so, it is taken for lost."""
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
