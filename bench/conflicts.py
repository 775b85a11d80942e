"""Rows 17 and 18: what a conflict costs, what a queue of many costs, and that writes without conflict pay nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import nun
from bench.batches import BATCHES
from bench.peers import Node, Peers
from bench.report import Line, at_least
from bench.sampling import Plan, Sample, Series, alternate, per_second
from bench.workload import BATCH

ARBITRATED: Final = "arbitrated"
TOKEN: Final = "t"
OPEN: Final = 100_000
PAGE: Final = 100
PATIENCE_S: Final = 300.0


def costs(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 17."""
    node = peers.node("always")
    plain = peers.database(node)
    database = _arbitrated(peers, node)
    variants: dict[str, Sample] = {
        "strategy none": lambda: _sets(plain, plan.seconds),
        "strategy arbiter": lambda: _sets(database, plan.seconds),
    }
    taken = alternate(variants, plan.rounds)
    yield Line(
        17,
        "set_many without conflicts, strategy arbiter",
        "keys/s",
        taken["strategy arbiter"],
        taken["strategy none"],
        "strategy none",
        at_least(0.95),
    )
    conflicts = _Conflicts(database)
    rates = [per_second(conflicts.open_batch, plan.seconds) for _ in range(plan.rounds)]
    yield Line(17, "conflicts opened, 100 a batch", "conflicts/s", Series(tuple(rates)))
    with database.arbiter(_newest, background=True, workers=4) as arbiter:
        began, done = time.perf_counter(), arbiter.resolved
        _wait_until_free(database)
        rate = (arbiter.resolved - done) / (time.perf_counter() - began)
        yield Line(17, "conflicts resolved, 4 workers", "conflicts/s", Series((rate,)))
        told = [conflicts.until_told() for _ in range(max(plan.rounds * 20, 20))]
    for what, times in (
        ("a losing write is told so", [one for one, _ in told]),
        ("... and what became of it, an arbiter being there", [both for _, both in told]),
    ):
        median = sorted(times)[len(times) // 2] * 1e3
        yield Line(17, f"{what}, p50", "ms", Series((median,)))


def queues(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 18."""
    count = min(OPEN, plan.keys)
    node = peers.node("always")
    database = _arbitrated(peers, node)
    conflicts = _Conflicts(database)
    conflicts.prepare(count)
    before = _memory(node)
    conflicts.open_many(count)
    grown = _memory(node) - before
    what = f"{count:,} open conflicts: memory of all processes, each"
    yield Line(18, what, "bytes", Series((grown / count,)))
    pages = []
    for _ in range(plan.rounds):
        began = time.perf_counter()
        found = [one for _, one in zip(range(PAGE), database.conflicts(limit=PAGE), strict=False)]
        pages.append((time.perf_counter() - began) * 1e3)
        assert len(found) == PAGE
    yield Line(18, f"a page of {PAGE} of them", "ms", Series(tuple(pages)))
    node.kill()
    began = time.perf_counter()
    node.start()
    with node.client() as client:
        assert client.status()["conflicts"]["open"] == count
    took = time.perf_counter() - began
    yield Line(18, "start with them", "s", Series((took,)))


def _arbitrated(peers: Peers, node: Node) -> Any:
    client = node.client()
    peers.callback(client.close)
    client.create_database(ARBITRATED, token=TOKEN, strategy="arbiter")
    return client.database(ARBITRATED, token=TOKEN)


def _sets(database: Any, seconds: float) -> float:
    def work(turn: int) -> int:
        database.set_many(BATCHES[turn % len(BATCHES)])
        return BATCH

    return per_second(work, seconds)


def _newest(conflict: Any) -> Any:
    return conflict.proposed.value


def _memory(node: Node) -> int:
    with node.client() as client:
        processes = client.status()["processes"]
    return sum(int(one["rss_bytes"]) for one in processes.values())


def _wait_until_free(database: Any) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while any(True for _ in database.conflicts(limit=1)):
        assert time.monotonic() < give_up, "conflicts stay open"
        time.sleep(0.01)


class _Conflicts:
    """Writes that are made on what has been replaced."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._next = 0

    def prepare(self, count: int) -> list[str]:
        """Keys of two versions, so that a write made on the first is in conflict."""
        keys = [f"c{number:08d}" for number in range(self._next, self._next + count)]
        for first in range(0, count, BATCH):
            for value in ("1", "2"):
                self._database.set_many(dict.fromkeys(keys[first : first + BATCH], value))
        return keys

    def open_batch(self, _turn: int) -> int:
        keys = self.prepare(100)
        self._open(keys)
        self._next += len(keys)
        return len(keys)

    def open_many(self, count: int) -> None:
        for first in range(0, count, BATCH):
            self._open([f"c{number:08d}" for number in range(first, min(first + BATCH, count))])

    def _open(self, keys: list[str]) -> None:
        results: list[Any] = []
        try:
            with self._database.pipeline() as pipe:
                for key in keys:
                    pipe.set(key, "3", version=1)
        except nun.BatchError as error:
            results = list(error.results)
        pending = sum(isinstance(one, nun.ConflictPending) for one in results)
        assert pending == len(keys), f"{pending} of {len(keys)} writes are in conflict"

    def until_told(self) -> tuple[float, float]:
        """Seconds until a losing write is refused, and until its outcome is known."""
        [key] = self.prepare(1)
        self._next += 1
        began = time.perf_counter()
        try:
            self._database.set(key, "3", version=1)
        except nun.ConflictPending as pending:
            refused = time.perf_counter() - began
            pending.wait(PATIENCE_S)
            return refused, time.perf_counter() - began
        raise AssertionError(f"{key} is not in conflict")
