"""Rows 13 and 14: a primary with two replicas on the same cores, against Redis with two replicas and WAIT.

Ours waits until both replicas have the write on disk; Redis' WAIT until they have it in memory.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from bench.batches import BATCHES, IN_FLIGHT, InFlight
from bench.peers import Node, Peers, Redis
from bench.processes import Unavailable
from bench.report import Line, at_least, at_most
from bench.sampling import Plan, Sample, Series, alternate, per_second
from bench.workload import BATCH, DATABASE, DATABASE_TOKEN, batches, key

REPLICAS: Final = 2
BEAT_MS: Final = 100.0
PROBES: Final = 200
PATIENCE_S: Final = 120.0


def acked_by_all(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 13."""
    server = _redis_with_replicas(peers)
    primary, *_ = peers.cluster("always")
    database = peers.database(primary)
    lanes = _AllInFlight(primary)
    peers.callback(lanes.close)
    variants: dict[str, Sample] = {
        "mset and WAIT 2": lambda: _redis_sets(server, plan.seconds, 1),
        "4 msets and WAIT 2": lambda: _redis_sets(server, plan.seconds, IN_FLIGHT),
        "closed": lambda: _sets(database, plan.seconds),
        "x4": lambda: lanes.sets(plan.seconds),
    }
    taken = alternate(variants, plan.rounds)
    for way, peer, aim in (
        ("closed", "mset and WAIT 2", at_least(1.2)),
        ("x4", "mset and WAIT 2", at_least(1.4)),
        ("x4", "4 msets and WAIT 2", None),
    ):
        what = f"set_many, two replicas, ack=all, {way}"
        yield Line(13, what, "keys/s", taken[way], taken[peer], peer, aim)


class _AllInFlight(InFlight):
    """Sets with four in flight, each answered when all nodes have it on disk."""

    def sets(self, seconds: float) -> float:
        return self.taken(
            lambda turn: self.database.set_many(BATCHES[turn % len(BATCHES)], ack="all"), seconds
        )


def _sets(database: Any, seconds: float) -> float:
    def work(turn: int) -> int:
        database.set_many(BATCHES[turn % len(BATCHES)], ack="all")
        return BATCH

    return per_second(work, seconds)


def _redis_with_replicas(peers: Peers) -> Redis:
    master = peers.redis("always")
    for _ in range(REPLICAS):
        peers.redis("always", replica_of=master.port)
    give_up = time.monotonic() + PATIENCE_S
    while master.client.info("replication")["connected_slaves"] < REPLICAS:
        if time.monotonic() > give_up:
            raise Unavailable("the replicas of Redis do not connect")
        time.sleep(0.05)
    return master


def _redis_sets(server: Redis, seconds: float, count: int) -> float:
    def work(turn: int) -> int:
        pipe = server.client.pipeline(transaction=False)
        for place in range(count):
            pipe.mset(BATCHES[(turn * count + place) % len(BATCHES)])
        pipe.wait(REPLICAS, 0)
        pipe.execute()
        return BATCH * count

    return per_second(work, seconds)


# Row 14 -------------------------------------------------------------------------------------------


def lag_and_catching_up(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 14, and how long a copy of all keys takes and what a replica missed while it was down."""
    nodes = peers.cluster("always")
    primary, replica, _ = nodes
    database = peers.database(primary)
    top = statistics.median(
        per_second(lambda turn: _batch(database, turn), plan.seconds) for _ in range(3)
    )
    lags = [_lag_p99_ms(peers, primary, replica, top / 2, plan) for _ in range(plan.rounds)]
    what = "replication lag p99 at half of top speed"
    yield Line(14, what, "ms", Series(tuple(lags)), aim=at_most(2 * BEAT_MS))
    yield from _catching_up(nodes, plan)


def _batch(database: Any, turn: int) -> int:
    database.set_many(BATCHES[turn % len(BATCHES)])
    return BATCH


def _lag_p99_ms(
    peers: Peers, primary: Node, replica: Node, keys_per_second: float, plan: Plan
) -> float:
    """From the primary's answer to a set until a replica shows it, while batches come at a steady pace."""
    load, probe, reader = peers.database(primary), peers.database(primary), peers.database(replica)
    done = threading.Event()

    def write() -> None:
        pace_s = BATCH / keys_per_second
        due = time.perf_counter()
        turn = 0
        while not done.is_set():
            _batch(load, turn)
            turn += 1
            due += pace_s
            done.wait(max(due - time.perf_counter(), 0))

    writer = threading.Thread(target=write)
    writer.start()
    lags = []
    try:
        for number in range(PROBES):
            result = probe.set("probe", str(number))
            answered = time.perf_counter()
            reader.get("probe", at=result.position)
            lags.append((time.perf_counter() - answered) * 1e3)
            time.sleep(plan.seconds / PROBES)
    finally:
        done.set()
        writer.join()
    return sorted(lags)[int(len(lags) * 0.99)]


def _catching_up(nodes: list[Node], plan: Plan) -> Iterator[Line]:
    primary, _, replica = nodes
    with primary.client() as client:
        database = client.database(DATABASE, token=DATABASE_TOKEN)
        replica.kill()
        for batch in batches(plan.keys, salt=1):
            last = database.set_many(batch)[-1].position
        what = f"a replica that was down catches up {plan.keys:,} keys from the log"
        yield Line(14, what, "s", Series((_seconds_until(replica, last),)))
        client.snapshot([DATABASE], reclaim=True)
        replica.kill()
        shutil.rmtree(replica.data_dir)
        what = f"a new directory gets {plan.keys:,} keys"
        yield Line(14, what, "s", Series((_seconds_until(replica, last),)))


def _seconds_until(node: Node, position: Any) -> float:
    """Starts a node; how long until it shows this position."""
    began = time.perf_counter()
    node.start()
    with node.client() as client:
        database = client.database(DATABASE, token=DATABASE_TOKEN)
        database.get(key(0), at=position, timeout=PATIENCE_S)
    return time.perf_counter() - began
