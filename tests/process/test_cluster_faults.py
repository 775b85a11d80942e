"""Random faults of a real cluster under load: processes die or stand still, nodes are cut off, the primary changes.

Every write asks for the disks of a majority, so no change of primary without force may lose one: increments are counted
exactly once, and what one writer wrote last is there, on every node.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import nun
from tests.support.cluster import Cluster
from tests.support.history import Increments, Progress, Worker, patiently
from tests.support.node import CHILDREN, seeded, wait_until

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

PATIENCE_S = 60.0
CHILD_DEATHS_MAX = 4  # of one supervisor; it gives up at more than five within a minute
SETTINGS: dict[str, dict[str, Any]] = {
    "storage": {
        "segment_bytes": 64 * 1024,
        "oplog_bytes": 512 * 1024,
        "snapshot_interval_s": 1,
        "snapshot_log_bytes": 128 * 1024,
    },
    "replication": {"ack": "majority"},
}


class Counts(Worker):
    """Writes ever larger numbers to a key of its own."""

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.key = name
        self.last = 0

    def step(self, database: Any) -> None:
        self.last += 1
        patiently(lambda: database.set(self.key, str(self.last)))


class Faults:
    """Does one random thing after another to a cluster, each healed before the next."""

    def __init__(self, cluster: Cluster, source: random.Random) -> None:
        self.cluster = cluster
        self.source = source
        self.deaths: Counter[int] = Counter()
        self.done: list[str] = []

    def under(
        self, workers: Sequence[Worker], progress: Progress, faults: int, steps_max: int
    ) -> None:
        """Does so many things while these work, at most so many of their steps apart; all of them end well."""
        for worker in workers:
            worker.start()
        try:
            for _ in range(faults):
                progress.wait_for(self.source.randrange(5, steps_max))
                if progress.failed:
                    break
                self.next()
            progress.wait_for(50)
        finally:
            self.cluster.heal()
            for worker in workers:
                worker.halt.set()
            for worker in workers:
                worker.join(90)
        for worker in workers:
            assert not worker.is_alive(), f"{worker!r} hangs after {self.done}"
            worker.check()

    def next(self) -> None:
        fault = self.source.choice(
            [
                self.kill_child,
                self.kill_child,
                self.kill_node,
                self.stall,
                self.cut_off,
                self.hand_over,
            ]
        )
        number = self.source.randrange(1, len(self.cluster.nodes) + 1)
        self.done.append(f"{fault.__name__} node{number}")
        print(self.done[-1], flush=True)
        fault(number)
        self.whole()

    def kill_child(self, number: int) -> None:
        if self.deaths[number] == CHILD_DEATHS_MAX:
            self.kill_node(number)
            return
        self.deaths[number] += 1
        self.cluster.nodes[number - 1].kill(self.source.choice(CHILDREN))

    def kill_node(self, number: int) -> None:
        self.deaths[number] = 0
        node = self.cluster.nodes[number - 1]
        node.kill(self.source.choice(["node", "supervisor"]))
        if self.source.random() < 0.5 and self.primary() is None:
            self.promote(number % len(self.cluster.nodes) + 1)
        node.launch()

    def stall(self, number: int) -> None:
        """Longer than any patience of the nodes for each other, or not."""
        node, victim = self.cluster.nodes[number - 1], self.source.choice(CHILDREN)
        node.pause(victim)
        threading.Event().wait(self.source.choice([0.2, 1.0, 3.0]))
        node.resume(victim)

    def cut_off(self, number: int) -> None:
        self.cluster.isolate(number)
        threading.Event().wait(self.source.choice([0.2, 2.0]))
        if self.source.random() < 0.5:
            self.promote(number % len(self.cluster.nodes) + 1)
        self.cluster.heal()

    def hand_over(self, number: int) -> None:
        self.promote(number)

    def promote(self, number: int) -> None:
        """It may be refused: then everything goes on as it was."""
        with contextlib.suppress(nun.NunError), self.cluster.client(number - 1) as client:
            client.promote(f"node{number}", timeout=PATIENCE_S)

    def primary(self) -> int | None:
        return next((i for i, role in enumerate(self.roles()) if role == "primary"), None)

    def roles(self) -> list[str]:
        roles = []
        for index in range(len(self.cluster.nodes)):
            role = "away"
            with (
                contextlib.suppress(nun.NunError),
                self.cluster.client(index, timeout=0.5) as client,
            ):
                role = client.status()["role"]
            roles.append(role)
        return roles

    def whole(self) -> None:
        """Waits until there is one primary and everybody else follows it; makes one when nobody is."""

        def found() -> bool:
            return sorted(self.roles()) == ["primary", "replica", "replica"]

        try:
            wait_until(found, "one primary and two replicas", PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; roles {self.roles()} after {self.done}") from None


def live_through(tmp_path: Path, source: random.Random, faults: int) -> None:
    progress = Progress()
    with Cluster(tmp_path, settings=SETTINGS, proxied=True) as cluster:
        with cluster.client(0) as client:
            client.create_database("crash", token="t", ack="all")
        counting: list[Increments] = []
        writing: list[Counts] = []
        for index in range(3):
            addresses: Any = [
                node.address for node in cluster.nodes[index:] + cluster.nodes[:index]
            ]
            counting.append(Increments(addresses, "t", progress, source.randrange(2**32)))
            writing.append(
                Counts(f"last{index}", addresses, "t", progress, source.randrange(2**32))
            )
        workers: list[Worker] = [*counting, *writing]
        harm = Faults(cluster, source)
        harm.under(workers, progress, faults, 100)
        assert sum(worker.unknown for worker in workers) == 0, "asked again, all is known"
        cluster.wait_same()
        for index in range(3):
            with cluster.client(index) as client:
                database = client.database("crash", token="t")
                for key in (f"counter:{number}" for number in range(3)):
                    done = sum(each.done.get(key, 0) for each in counting)
                    entry = database.get(key)
                    found = 0 if entry is None else int(entry.value)
                    assert found == done, f"node{index + 1}: {key} after {harm.done}"
                for each in writing:
                    assert database.get(each.key).value == str(each.last), each.key


def test_a_cluster_lives_through_faults(tmp_path: Path) -> None:
    live_through(tmp_path, seeded("faults"), 8)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_cluster_lives_through_many_faults(tmp_path: Path) -> None:
    live_through(tmp_path, seeded("faults"), 150)
