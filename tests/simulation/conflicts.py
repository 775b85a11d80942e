"""A simulated life with conflicts: strategies and options by chance, arbiters of all kinds, and what must hold then."""

from __future__ import annotations

from collections import Counter
from typing import Any

from nun.client import operations as ops
from nun.config import ConflictsConfig
from nun.core import effects as fx
from tests.simulation.arbiters import Arbiter, Claims, check_merged
from tests.simulation.client import outcome
from tests.simulation.conflicting import ConflictWorker, check_bases, check_sets, options_of
from tests.simulation.ledger import doubtful
from tests.simulation.model import Model
from tests.simulation.oracle import changes_of_items
from tests.simulation.process import Failed
from tests.simulation.simulation import DATABASE, Simulation
from tests.simulation.world import MS


class ConflictSimulation(Simulation):
    """See the module's docstring.

    Attributes:
        acked_resolutions: op id -> key, of those that were accepted.
        drains: whether an arbiter comes in the end who resolves all that is open.
    """

    worker = ConflictWorker

    def __init__(self, seed: int, nodes: int | None = None, keep: int = 4_000) -> None:
        self.claims = Claims()
        self.arbiters: list[Arbiter] = []
        self.acked_resolutions: dict[int, bytes] = {}
        super().__init__(seed, nodes, keep)
        rng = self.world.rng
        self.options = options_of(rng)
        self.drains = rng.random() < 0.7
        self._arbiters_max = rng.choice((0, 1, 1, 2, 3))
        for node in self.nodes.values():
            self.claims.watch(node)

    def conflicts_config(self) -> ConflictsConfig:
        rng = self.world.rng
        return ConflictsConfig(
            resolved_retention_s=rng.choice((1.5, 3600.0)),
            per_key_max=rng.choice((3, 10_000)),
            per_key_warn=2,
        )

    def work(self, levels: list[int | None], clients: int | None = None) -> None:
        super().work(levels, clients)
        for _ in range(self._arbiters_max):
            self.world.after(self.world.between(0, 2_000) * MS, self.arbitrate)
        if self.world.chance(0.3):
            self.world.after(self.world.between(500, 4_000) * MS, self._alter)

    def arbitrate(self) -> None:
        """An arbiter comes."""
        if not self.healed:
            self.arbiters.append(Arbiter(self, self.client(only=self.world.chance(0.3))))

    def _alter(self) -> None:
        """The database's options change while it is used."""
        options = options_of(self.world.rng)
        client = self.client()
        self.world.note("alter", str(options))

        def answered(request: Any) -> None:
            self.world.note("altered", outcome(request)[0])
            self.world.after(0, client.close)

        client.ask(ops.alter_database(DATABASE, None, options), 5.0, answered)

    def heal(self) -> None:
        super().heal()
        for arbiter in self.arbiters:
            arbiter.stopping = True
        if self.drains:
            self.arbiters.append(Arbiter(self, self.client(), well_behaved=True))

    def at_rest(self) -> bool:
        return super().at_rest() and not (self.drains and self._open())

    def _open(self) -> int:
        primary = self.primary()
        if primary is None:
            return 0
        core = primary.network.core
        info = core.state.database_named(DATABASE)
        return 0 if info is None else len(core.conflicts.queues.get(info.number, ()))

    def describe(self) -> str:
        managers = [
            f"{node.name} {node.manager.core.describe()}"
            for node in self.nodes.values()
            if node.manager is not None
        ]
        return super().describe() + f"\n  {self.options}, {self._open()} open, {managers}"

    def check_more(self, model: Model, changes: list[Any], values: dict[str, str]) -> None:
        told = {entry["op_id"] for entry in model.entries.values()}
        known = {change.op_id for change in changes}
        for op_id, key in self.acked_resolutions.items():
            if op_id not in known and op_id not in told:
                raise Failed(f"P1: resolution {op_id} of {key!r} was acknowledged and is lost")
        check_merged(model, [arbiter.client.name for arbiter in self.arbiters])
        history = self.oracle.history(self.primary().network.core.state.position)  # type: ignore[union-attr]
        # Not of what was cut off on one node, and decided here as what it was: a request that its node had open still.
        bases = {
            change.op_id: self.oracle.bases[change.op_id]
            for position in history
            for change in changes_of_items(position, self.oracle.effects[position])
            if change.op_id in self.oracle.bases
        }
        check_bases(self.writes, changes, bases, told)
        done = {
            (effect[1], effect[2]): effect[5]
            for position in history
            for effect in self.oracle.effects[position]
            if effect[0] == fx.OUTCOME
        }
        check_sets(self.writes, model, values, done, doubtful(model))
        states = Counter(f"entry {entry['state']}" for entry in model.entries.values())
        self.tally += states
