"""Row 12: ten watchers on one hot prefix, in two processes of five clients each."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, perf_counter
from typing import Any, Final

from bench.peers import SPIN_US, Peers
from bench.processes import Unavailable, Worker
from bench.report import Line, at_least
from bench.sampling import Plan, Sample, alternate
from bench.watching import END, PREFIX
from bench.workload import BATCH, batches

PROCESSES: Final = 2
WATCHERS_EACH: Final = 5
BATCHES_PER_SECOND: Final = 20  # enough for about a second of delivery
READY_TIMEOUT_S: Final = 20.0


def hot_prefix(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 12: from the first write until every watcher has read the last event, none missing."""
    variants: dict[str, Sample] = {}
    for spin in SPIN_US:
        node = peers.node("always", spin)
        database = peers.database(node)
        workers = [
            peers.worker("bench.watching", node.address, str(WATCHERS_EACH))
            for _ in range(PROCESSES)
        ]
        _wait_until_all_watch(database, workers)
        variants[spin] = _sample(database, workers, plan)
    taken = alternate(variants, plan.rounds)
    watchers = PROCESSES * WATCHERS_EACH
    for spin in SPIN_US:
        aim = at_least(100_000) if spin == "spin on" else None
        yield Line(12, f"{watchers} watchers, hot prefix, {spin}", "events/s", taken[spin], aim=aim)


def _wait_until_all_watch(database: Any, workers: list[Worker]) -> None:
    """A watch from now shows no earlier write: writes an end of a round until all have seen it."""
    give_up = monotonic() + READY_TIMEOUT_S
    waiting = list(workers)
    while waiting:
        if monotonic() > give_up:
            raise Unavailable(f"watchers saw nothing for {READY_TIMEOUT_S:.0f} s")
        database.set(END, "round 0")
        waiting = [worker for worker in waiting if not worker.answered(0.05)]
    for worker in workers:
        worker.answer()


def _sample(database: Any, workers: list[Worker], plan: Plan) -> Sample:
    count = max(round(BATCHES_PER_SECOND * plan.seconds), 4)
    hot = [
        {PREFIX + name: text for name, text in batch.items()} for batch in batches(BATCH * count)
    ]
    expected = BATCH * count * WATCHERS_EACH
    rounds = 0

    def sample() -> float:
        nonlocal rounds
        rounds += 1
        start = perf_counter()
        for batch in hot:
            database.set_many(batch)
        database.set(END, f"round {rounds}")
        answers = [worker.answer() for worker in workers]
        took = perf_counter() - start
        if any(answer["events"] != expected for answer in answers):
            raise AssertionError(f"expected {expected} events in each process, got {answers}")
        return expected * len(workers) / took

    return sample
