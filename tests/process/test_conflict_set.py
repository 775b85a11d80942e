"""The set test with conflicts: everybody adds elements of their own to shared sets, and an arbiter merges.

Writers on all nodes, at every ack level, read a set and write it with one element more, made on what they read; whoever
comes second is in conflict, and waits. An arbiter on each node answers with the union. Rounds of dying processes,
partitions and changes of primary. At the end every element that was acknowledged (ConflictPending says so too: it is
kept) is in its set, or an open entry of the ledger has it; and the ledger balances on every node.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import nun
from tests.process.test_cluster_faults import Faults
from tests.support.cluster import Cluster
from tests.support.history import Progress, Worker, patiently
from tests.support.node import ADMIN, seeded, wait_until

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

SETS = 8
PACE_S = 0.02
KEPT_MAX = 400  # elements of one set, or they grow to megabytes
LEVELS = ("local", "primary", "majority", "all")


def elements(value: str | None) -> set[str]:
    return set() if not value else set(value.split(" "))


def union(conflict: Any) -> str:
    """What the arbiters answer."""
    sides = [side.value for side in (conflict.current, conflict.proposed) if side is not None]
    return " ".join(sorted(set().union(*map(elements, sides))))


class Adds(Worker):
    """Adds elements to sets, each time on what it read, and never looks back."""

    def __init__(self, name: str, ack: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.element = name
        self.ack = ack
        self.count = 0
        self.pending = 0
        self.acked: list[tuple[str, str]] = []  # set, element

    def step(self, database: Any) -> None:
        if self.halt.wait(PACE_S):
            return
        self.count += 1
        key = f"set{self.random.randrange(SETS)}.{self.count // KEPT_MAX}"
        element = f"{self.element}.{self.count}"
        entry = patiently(lambda: database.get(key))
        value = element if entry is None else f"{entry.value} {element}"
        try:
            patiently(lambda: database.set(key, value, base=entry, ack=self.ack))
        except nun.ConflictPending:
            self.pending += 1
        self.acked.append((key, element))


class Arbiter(Worker):
    """Merges whatever is in conflict."""

    def run(self) -> None:
        try:
            with nun.Client(self.address, **ADMIN, timeout=30.0) as client:
                database = patiently(lambda: client.database("crash", token=self.token))
                with database.arbiter(union, background=True, lease=2.0, poll=0.5) as arbiter:
                    self.halt.wait()
                self.resolved = arbiter.resolved
        except BaseException as error:
            self.failure = error
            self.progress.made(failed=True)


def merge_through(tmp_path: Path, source: random.Random, rounds: int) -> None:
    progress = Progress()
    with Cluster(tmp_path, proxied=True) as cluster:
        with cluster.client(0) as client:
            client.create_database("crash", token="t", strategy="arbiter", ack="all")
        writers: list[Adds] = []
        arbiters: list[Arbiter] = []
        for index in range(3):
            nodes = cluster.nodes[index:] + cluster.nodes[:index]
            addresses: Any = [node.address for node in nodes]
            for ack in LEVELS:
                seed = source.randrange(2**32)
                writers.append(Adds(f"{ack}{index}", ack, addresses, "t", progress, seed))
            arbiters.append(Arbiter(addresses, "t", progress, 0))
        harm = Faults(cluster, source)
        harm.under([*writers, *arbiters], progress, rounds, 100)
        cluster.wait_decided()
        cluster.wait_same()
        balance = [ledger_of(cluster, index) for index in range(3)]
        assert balance[0] == balance[1] == balance[2], f"after {harm.done}"
        counts = balance[0]
        assert counts["opened"] == sum(
            counts[state] for state in ("open", "resolved", "decided", "expired", "refused")
        )
        with cluster.client(1) as client:
            database = client.database("crash", token="t")
            held = {key: elements(database.get(key).value) for key in database.keys("set*")}
            for conflict in database.conflicts(state="open"):
                held.setdefault(conflict.key, set()).update(elements(conflict.proposed.value))
        lost = [
            (key, element)
            for writer in writers
            for key, element in writer.acked
            if element not in held.get(key, ())
        ]
        assert lost == [], f"acknowledged and lost, after {harm.done}"
        acked = sum(len(writer.acked) for writer in writers)
        pending = sum(writer.pending for writer in writers)
        print(f"{acked} elements acknowledged, {pending} of them in conflict; ledger {counts}")
        assert pending, "nothing was in conflict"


def ledger_of(cluster: Cluster, index: int) -> dict[str, int]:
    """What a node says of its ledger."""
    with cluster.client(index) as client:

        def told() -> Any:
            return client.status()["conflicts"]["ledger"]

        found: dict[str, int] = wait_until(told, "the ledger")
        return found


def test_no_element_is_lost_while_an_arbiter_merges(tmp_path: Path) -> None:
    merge_through(tmp_path, seeded("conflict set"), 10)


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_no_element_is_lost_in_200_rounds(tmp_path: Path) -> None:
    merge_through(tmp_path, seeded("conflict set"), 200)
