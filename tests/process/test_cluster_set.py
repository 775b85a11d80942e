"""The set test: every write adds an element of its own to a set, made on the value that was read.

Rounds of changes of primary: planned, after the primary died, away from one that lives on cut off and acknowledges. An
element that was acknowledged at "majority" is in its set at the end. One that was acknowledged at "primary" is in its
set, or an entry of the ledger has the value that it was written with.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import nun
from tests.process.test_cluster_faults import Faults
from tests.support.cluster import Cluster
from tests.support.history import Progress, Worker, patiently
from tests.support.node import seeded

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

SETS = 12
PACE_S = 0.05  # of each writer, or the sets grow to megabytes


class Adds(Worker):
    """Adds elements to sets, under optimistic retry."""

    def __init__(self, name: str, ack: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.element = name
        self.ack = ack
        self.count = 0
        self.acked: list[tuple[str, str]] = []  # set, element

    def step(self, database: Any) -> None:
        while not self.halt.wait(PACE_S) and not self.add(database):
            pass

    def add(self, database: Any) -> bool:
        """One try; whether the element is in."""
        self.count += 1
        key = f"set{self.random.randrange(SETS)}"
        element = f"{self.element}.{self.count}"
        entry = patiently(lambda: database.get(key))
        value = element if entry is None else f"{entry.value} {element}"
        try:
            patiently(lambda: database.set(key, value, base=entry, ack=self.ack))
        except nun.VersionConflict:
            return False
        self.acked.append((key, element))
        return True


class Changes(Faults):
    """Changes of primary."""

    def __init__(self, cluster: Cluster, source: random.Random, alone: Adds) -> None:
        super().__init__(cluster, source)
        self.alone = alone

    def next(self) -> None:
        primary = self.primary()
        assert primary is not None
        successor = (primary + self.source.choice([1, 2])) % 3 + 1
        change = self.source.choice([self.planned, self.dead, self.alive])
        self.done.append(f"{change.__name__} node{primary + 1} -> node{successor}")
        print(self.done[-1], flush=True)
        change(primary + 1, successor)
        self.whole()

    def planned(self, _: int, successor: int) -> None:
        self.promote(successor)

    def dead(self, primary: int, successor: int) -> None:
        self.cluster.nodes[primary - 1].kill("node")
        self.promote(successor)
        self.cluster.nodes[primary - 1].launch()

    def alive(self, primary: int, successor: int) -> None:
        """It goes on alone and acknowledges, while another is made primary."""
        self.cluster.isolate(primary)
        with self.cluster.client(primary - 1) as client:
            database = client.database("crash", token="t")
            for _ in range(self.source.randrange(1, 10)):
                self.alone.add(database)
        self.promote(successor)
        self.cluster.heal()


def add_through(tmp_path: Path, source: random.Random, rounds: int) -> None:
    progress = Progress()
    with Cluster(tmp_path, proxied=True) as cluster:
        with cluster.client(0) as client:
            client.create_database("crash", token="t", ack="all")
        workers = []
        for index in range(3):
            nodes = cluster.nodes[index:] + cluster.nodes[:index]
            addresses: Any = [node.address for node in nodes]
            for ack in ("primary", "majority"):
                seed = source.randrange(2**32)
                workers.append(Adds(f"{ack[0]}{index}", ack, addresses, "t", progress, seed))
        alone = Adds("alone", "primary", "", "t", progress, source.randrange(2**32))
        changes = Changes(cluster, source, alone)
        changes.under(workers, progress, rounds, 30)
        cluster.wait_decided()
        cluster.wait_same()
        with cluster.client(2) as client:
            database = client.database("crash", token="t")
            sets = {key: database.get(key).value.split(" ") for key in database.keys("set*")}
            ledger = [
                json.loads(database.get(key).value)["value"].split(" ")
                for key in database.keys("$conflicts_*")
            ]
        assert all(len(values) == len(set(values)) for values in sets.values()), "one is in twice"
        kept = {element for values in [*sets.values(), *ledger] for element in values}
        for worker in [*workers, alone]:
            lost = [
                element
                for key, element in worker.acked
                if element not in (sets[key] if worker.ack == "majority" else kept)
            ]
            assert lost == [], f"acknowledged at {worker.ack}, after {changes.done}"
        acked = sum(len(worker.acked) for worker in [*workers, alone])
        print(f"{acked} elements acknowledged, {len(ledger)} entries in the ledger")


def test_no_element_is_lost_by_a_change_of_primary(tmp_path: Path) -> None:
    add_through(tmp_path, seeded("set"), 5)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_no_element_is_lost_by_100_changes_of_primary(tmp_path: Path) -> None:
    add_through(tmp_path, seeded("set"), 100)
