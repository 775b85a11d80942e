"""Rows 1 to 4: batches of 1,000, closed and with four in flight, against redis-py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from typing import Any, Final

from bench.peers import SPIN_US, Node, Peers, Redis
from bench.report import Aim, Line, at_least
from bench.sampling import Plan, Sample, alternate, per_second, per_second_in_flight
from bench.workload import BATCH, DATABASE, DATABASE_TOKEN, batches, key, value

IN_FLIGHT: Final = 4
AIMED: Final = "spin on"  # the aims speak of a node as it is configured by default
BATCHES: Final = batches()
KEYS_OF: Final = [list(batch) for batch in BATCHES]


class InFlight:
    """An AsyncClient whose event loop runs only while a sample is taken."""

    def __init__(self, node: Node) -> None:
        self.runner = asyncio.Runner()
        self.client = node.async_client()
        self.runner.run(self._open())

    async def _open(self) -> None:
        await self.client.__aenter__()
        self.database: Any = await self.client.database(DATABASE, token=DATABASE_TOKEN)

    async def _close(self) -> None:
        await self.client.__aexit__(None, None, None)

    def close(self) -> None:
        self.runner.run(self._close())
        self.runner.close()

    def sets(self, seconds: float) -> float:
        return self.taken(
            lambda turn: self.database.set_many(BATCHES[turn % len(BATCHES)]), seconds
        )

    def taken(self, request: Callable[[int], Awaitable[Any]], seconds: float) -> float:
        """Keys a second that these requests for whole batches come to."""

        async def work(turn: int) -> int:
            await request(turn)
            return BATCH

        return self.runner.run(per_second_in_flight(work, seconds, IN_FLIGHT))

    def gets(self, seconds: float) -> float:
        async def work(turn: int) -> int:
            entries = await self.database.get_many(KEYS_OF[turn % len(KEYS_OF)])
            return len([entry.value for entry in entries])

        return self.runner.run(per_second_in_flight(work, seconds, IN_FLIGHT))


def _in_flight(peers: Peers, node: Node) -> InFlight:
    client = InFlight(node)
    peers.callback(client.close)
    return client


# Rows 1 and 2 -------------------------------------------------------------------------------------


def durable_sets(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 1."""
    aims = {"closed": at_least(1.5), "x4": at_least(2.5)}
    return _sets(peers, plan, 1, "always", "always", aims)


def memory_sets(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 2."""
    aims = {"closed": at_least(1.25), "x4": at_least(1.8)}
    return _sets(peers, plan, 2, "never", "no AOF", aims)


def _sets(
    peers: Peers, plan: Plan, row: int, fsync: str, appendfsync: str, aims: dict[str, Aim]
) -> Iterator[Line]:
    server = peers.redis(appendfsync)
    variants: dict[str, Sample] = {
        "mset": lambda: _redis_sets(server, plan.seconds),
        "4 msets a pipeline": lambda: _redis_sets_in_flight(server, plan.seconds),
    }
    for spin in SPIN_US:
        node = peers.node(fsync, spin)
        database, lanes = peers.database(node), _in_flight(peers, node)
        variants[f"closed, {spin}"] = lambda database=database: _sets_closed(  # type: ignore[misc]
            database, plan.seconds
        )
        variants[f"x4, {spin}"] = lambda lanes=lanes: lanes.sets(plan.seconds)  # type: ignore[misc]
    yield from _lines(row, f"set_many, fsync={fsync}", "mset", variants, aims, plan)


def _lines(
    row: int,
    what: str,
    peer: str,
    variants: dict[str, Sample],
    aims: dict[str, Aim],
    plan: Plan,
) -> Iterator[Line]:
    """Closed and x4 against one call of the peer at a time, then x4 against its own four."""
    taken = alternate(variants, plan.rounds)
    four = f"4 {peer}s a pipeline"
    for spin in SPIN_US:
        for way in ("closed", "x4"):
            aim = aims[way] if spin == AIMED else None
            name = f"{way}, {spin}"
            yield Line(row, f"{what}, {name}", "keys/s", taken[name], taken[peer], peer, aim)
        name = f"x4, {spin}"
        yield Line(row, f"{what}, {name}", "keys/s", taken[name], taken[four], four)


def _redis_sets(server: Redis, seconds: float) -> float:
    mset = server.client.mset

    def work(turn: int) -> int:
        mset(BATCHES[turn % len(BATCHES)])
        return BATCH

    return per_second(work, seconds)


def _redis_sets_in_flight(server: Redis, seconds: float) -> float:
    def work(turn: int) -> int:
        pipe = server.client.pipeline(transaction=False)
        for place in range(IN_FLIGHT):
            pipe.mset(BATCHES[(turn * IN_FLIGHT + place) % len(BATCHES)])
        return BATCH * len(pipe.execute())

    return per_second(work, seconds)


def _sets_closed(database: Any, seconds: float) -> float:
    set_many = database.set_many

    def work(turn: int) -> int:
        set_many(BATCHES[turn % len(BATCHES)])
        return BATCH

    return per_second(work, seconds)


# Row 3 --------------------------------------------------------------------------------------------


def gets(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 3: all values are read as text on both sides."""
    server = peers.redis("always")
    for batch in BATCHES:
        server.client.mset(batch)
    variants: dict[str, Sample] = {
        "mget": lambda: _redis_gets(server, plan.seconds),
        "4 mgets a pipeline": lambda: _redis_gets_in_flight(server, plan.seconds),
    }
    for spin in SPIN_US:
        node = peers.node("always", spin)
        database, lanes = peers.database(node), _in_flight(peers, node)
        for batch in BATCHES:
            database.set_many(batch)
        variants[f"closed, {spin}"] = lambda database=database: _gets_closed(  # type: ignore[misc]
            database, plan.seconds
        )
        variants[f"x4, {spin}"] = lambda lanes=lanes: lanes.gets(plan.seconds)  # type: ignore[misc]
    aims = {"closed": at_least(1.6), "x4": at_least(3.0)}
    yield from _lines(3, "get_many", "mget", variants, aims, plan)


def _redis_gets(server: Redis, seconds: float) -> float:
    mget = server.client.mget

    def work(turn: int) -> int:
        found: Any = mget(KEYS_OF[turn % len(KEYS_OF)])
        return len(found)

    return per_second(work, seconds)


def _redis_gets_in_flight(server: Redis, seconds: float) -> float:
    def work(turn: int) -> int:
        pipe = server.client.pipeline(transaction=False)
        for place in range(IN_FLIGHT):
            pipe.mget(KEYS_OF[(turn * IN_FLIGHT + place) % len(KEYS_OF)])
        return sum(map(len, pipe.execute()))

    return per_second(work, seconds)


def _gets_closed(database: Any, seconds: float) -> float:
    get_many = database.get_many

    def work(turn: int) -> int:
        return len([entry.value for entry in get_many(KEYS_OF[turn % len(KEYS_OF)])])

    return per_second(work, seconds)


# Row 4 --------------------------------------------------------------------------------------------


def pipelines(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 4: a pipeline of 1,000 single operations; values that were asked for are read."""
    server = peers.redis("always")
    databases = {spin: peers.database(peers.node("always", spin)) for spin in SPIN_US}
    for batch in BATCHES:
        server.client.mset(batch)
        for database in databases.values():
            database.set_many(batch)
    for what, redis_work, nun_work, aim in (
        ("sets", _redis_pipeline_of_sets, _pipeline_of_sets, at_least(6.5)),
        ("sets, gets, increments", _redis_pipeline_mixed, _pipeline_mixed, at_least(5.0)),
    ):
        variants: dict[str, Sample] = {
            "redis": lambda work=redis_work: _timed(work, server.client, plan)  # type: ignore[misc]
        }
        for spin, database in databases.items():
            variants[spin] = lambda work=nun_work, database=database: _timed(  # type: ignore[misc]
                work, database, plan
            )
        taken = alternate(variants, plan.rounds)
        for spin in SPIN_US:
            yield Line(
                4,
                f"pipeline of 1,000 {what}, {spin}",
                "ops/s",
                taken[spin],
                taken["redis"],
                "pipeline",
                aim if spin == AIMED else None,
            )


def _timed(work: Any, target: Any, plan: Plan) -> float:
    return per_second(lambda turn: work(target, BATCHES[turn % len(BATCHES)]), plan.seconds)


def _redis_pipeline_of_sets(client: Any, batch: dict[str, str]) -> int:
    pipe = client.pipeline(transaction=False)
    for name, text in batch.items():
        pipe.set(name, text)
    return len(pipe.execute())


def _pipeline_of_sets(database: Any, batch: dict[str, str]) -> int:
    with database.pipeline() as pipe:
        for name, text in batch.items():
            pipe.set(name, text)
    return len(pipe.results)


_MIXED: Final = [
    (kind, key(number), f"count:{number % 100}", value(number))
    for kind, number in zip(cycle(("set", "get", "increment")), range(BATCH), strict=False)
]


def _redis_pipeline_mixed(client: Any, _: dict[str, str]) -> int:
    pipe = client.pipeline(transaction=False)
    for kind, name, counter, text in _MIXED:
        if kind == "set":
            pipe.set(name, text)
        elif kind == "get":
            pipe.get(name)
        else:
            pipe.incrby(counter, 5)
    return len(pipe.execute())


def _pipeline_mixed(database: Any, _: dict[str, str]) -> int:
    with database.pipeline() as pipe:
        for kind, name, counter, text in _MIXED:
            if kind == "set":
                pipe.set(name, text)
            elif kind == "get":
                pipe.get(name)
            else:
                pipe.increment(counter, 5)
    read = [result.value for result in pipe.results]
    assert len(read) - read.count(None) == BATCH * 2 // 3  # a set has none
    return BATCH
