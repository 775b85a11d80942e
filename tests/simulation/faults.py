"""What goes wrong in a simulated cluster: one thing after the other, each chosen by chance."""

from __future__ import annotations

from typing import Any, Final

from tests.simulation.world import MS, SECOND


class Faults:
    """Hurts a simulation.

    Args:
        simulation: whose nodes, links and disks.
    """

    def __init__(self, simulation: Any) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.wires = simulation.wires
        rng = self.world.rng
        kinds = [kind for kind, many in _KINDS if len(simulation.nodes) > 1 or not many]
        self.kinds = rng.sample(kinds, rng.randrange(1, len(kinds) + 1))
        if len(simulation.nodes) > 1 and rng.random() < 0.15:  # some promises do not hold then
            self.kinds.append("force")

    def run(self, steps: int) -> None:
        """So many steps, some time apart."""
        for _ in range(steps):
            getattr(self, "_" + self.world.rng.choice(self.kinds))()
            self.simulation.run(self.world.between(10, 250) / 1000)

    def _node(self) -> Any:
        return self.world.rng.choice(list(self.simulation.nodes.values()))

    def _pair(self) -> tuple[str, str]:
        first, second = self.world.rng.sample(self.simulation.names, 2)
        return first, second

    # Processes

    def _kill_process(self) -> None:
        node = self._node()
        if node.processes:
            name = self.world.rng.choice(sorted(node.processes))
            node.died(node.processes[name], "kill -9")

    def _kill_node(self) -> None:
        self._away(self._node(), power=False)

    def _lose_power(self) -> None:
        self._away(self._node(), power=True)

    def _away(self, node: Any, power: bool) -> None:
        if not node.up:
            return
        if power:
            node.lose_power()
        else:
            node.kill("kill -9")
        away = self.world.between(50, 1_500) * MS
        if self.world.chance(0.15):
            away += self.world.between(1, 5) * SECOND
        self.world.after(away, lambda: None if node.up else node.start())

    def _stall(self) -> None:
        node = self._node()
        name = self.world.rng.choice((None, *sorted(node.processes)))
        node.stall(self.world.between(20, 2_500) * MS, name)

    def _crash_at_disk(self) -> None:
        """The writer dies at one of its next calls to the disk, which is done, not done, or torn."""
        node = self._node()
        how = self.world.rng.choice(("done", "not_done", "torn"))
        node.disk.crash_after(self.world.between(1, 12), how)

    def _slow_disk(self) -> None:
        self._node().slow_disk_ns = self.world.rng.choice((2, 2, 50, 400)) * MS

    def _full_disk(self) -> None:
        node = self._node()
        if node.disk.capacity is None:
            node.disk.fill(self.world.between(0, 20_000))
            self.world.after(self.world.between(200, 2_000) * MS, lambda: self._room(node))

    def _failing_sync(self) -> None:
        """The next sync fails, once or twice, and what it covered is not on disk."""
        self._node().fail_syncs(self.world.between(1, 2))

    @staticmethod
    def _room(node: Any) -> None:
        node.disk.capacity = None

    # Links

    def _cut_link(self) -> None:
        first, second = self._pair()
        self._cut(first, second)
        if self.world.chance(0.7):
            self._cut(second, first)

    def _cut(self, source: str, target: str) -> None:
        notice = (self.world.between(1, 50) * MS, self.world.between(60, 3_000) * MS)
        self.wires.block(source, target, notice)
        self.world.note("cut", source, target)
        self.world.after(
            self.world.between(20, 2_000) * MS, lambda: self.wires.unblock(source, target)
        )

    def _isolate(self) -> None:
        """One node is cut off from all others."""
        self._cut_off(self._node().name)

    def _cut_off(self, node: str) -> None:
        for other in self.simulation.names:
            if other != node:
                self._cut(node, other)
                self._cut(other, node)

    def _reset(self) -> None:
        self.wires.reset_connections(*self._pair())

    def _slow_link(self) -> None:
        pair = self._pair()
        if pair in self.wires.slow_ns:
            del self.wires.slow_ns[pair]
        else:
            self.wires.slow_ns[pair] = self.world.between(5, 400) * MS

    def _drop(self) -> None:
        """Op streams lose some of what is sent, as at their high-water marks."""
        self.wires.drop = self.world.rng.choice((0.0, 0.01, 0.1, 0.5))

    def _low_mark(self) -> None:
        self.wires.hwm = self.world.rng.choice((1, 3, 10, 10**9))

    def _nothing(self) -> None:
        pass

    def _promote(self) -> None:
        """An operator makes some node primary."""
        self.simulation.promote(self._node().name, force=False)

    def _force(self) -> None:
        """As that, going on with the promises that can be had."""
        self.simulation.promote(self._node().name, force=True)


_KINDS: Final = (
    ("kill_process", False),
    ("kill_node", False),
    ("lose_power", False),
    ("stall", False),
    ("crash_at_disk", False),
    ("slow_disk", False),
    ("full_disk", False),
    ("failing_sync", False),
    ("nothing", False),
    ("cut_link", True),
    ("isolate", True),
    ("reset", True),
    ("slow_link", True),
    ("drop", False),
    ("low_mark", False),
    ("promote", True),
)
