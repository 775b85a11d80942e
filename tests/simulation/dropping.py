"""A simulated life with conflicts: a second database is worked with, dropped with all that is open, and made anew.

What its clients were answered is not held against it, since it may be gone; what its history says is: records,
queues and ledger (model.py), the same on every node (P4), and a notice for everybody whose write waited when it was
dropped (P7).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from nun.client import operations as ops
from nun.client.request import Request
from tests.simulation.arbiters import Arbiter
from tests.simulation.client import Client, outcome
from tests.simulation.conflicting import ConflictWorker, options_of
from tests.simulation.conflicts import ConflictSimulation
from tests.simulation.ledger import check_counts
from tests.simulation.model import Model
from tests.simulation.workload import Write
from tests.simulation.world import MS

OTHER: Final = "e"


class _Aside:
    """What workers and arbiters of the other database see of their simulation: accounts of their own."""

    def __init__(self, simulation: DroppingSimulation) -> None:
        self._simulation = simulation
        self.writes: list[Write] = []
        self.reads: list[Any] = []
        self.tally: Counter[str] = Counter()
        self.acked_resolutions: dict[int, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulation, name)

    def arbitrate(self) -> None:
        """An arbiter comes."""
        if not self._simulation.healed:
            client = self._simulation.other_client()
            self._simulation.arbiters.append(Arbiter(self, client))


class DroppingSimulation(ConflictSimulation):
    """See the module's docstring.

    Attributes:
        dropped: how often the other database was.
    """

    def __init__(self, seed: int, nodes: int | None = None, keep: int = 4_000) -> None:
        super().__init__(seed, nodes, keep)
        self.dropped = 0
        self._aside = _Aside(self)
        self._dropping = False
        self._there = False

    def other_client(self) -> Client:
        """A client of the other database."""
        addresses = [f"tcp://{name}:1" for name in self.names]
        self.world.rng.shuffle(addresses)
        client = Client(self.world, f"o{len(self.clients) + 1}", addresses, OTHER)
        self.clients.append(client)
        return client

    def work(self, levels: list[int | None], clients: int | None = None) -> None:
        super().work(levels, clients)
        self._operator = self.other_client()
        self._make()
        for _ in range(2):
            client = self.other_client()
            self.workers.append(ConflictWorker(self._aside, client, levels))
            client.listen()
        if self.world.chance(0.7):
            self._aside.arbitrate()

    def _make(self) -> None:
        self._ask(ops.create_database(OTHER, "t", options_of(self.world.rng)), self._drop)

    def _drop(self) -> None:
        self._ask(ops.drop_database(OTHER), self._make)

    def _ask(self, request: Request, then: Any) -> None:
        """One after the other, until all is healed; whether it was done shows at the next."""
        if self.healed:
            return
        self._dropping = True

        def answered(request: Request) -> None:
            self._dropping = False
            self.world.note("other database", outcome(request)[0])
            self.world.after(self.world.between(50, 1_500) * MS, then)

        self._operator.ask(request, 4.0, answered)

    def at_rest(self) -> bool:
        return not self._dropping and super().at_rest()

    def check_more(self, model: Model, changes: list[Any], values: dict[str, str]) -> None:
        super().check_more(model, changes, values)
        for info in self.primary().network.core.state.databases.values():  # type: ignore[union-attr]
            check_counts(model, info.number, self.nodes.values())
        self.tally += self._aside.tally
        self.tally["databases dropped"] = len(model.dropped)
        self.tally["open when dropped"] = sum(model.dropped.values())
