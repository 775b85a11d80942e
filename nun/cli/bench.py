"""`nun bench`: how many sets and gets a running node answers in a second. bin/bench is the one that compares."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import click

from nun.cli.output import print_table, say_json
from nun.cli.settings import Settings, with_settings
from nun.limits import BATCH_OPERATIONS_MAX, VALUE_BYTES_MAX

_PREFIX: Final = "bench:"


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=3.0,
    show_default=True,
    help="For each line of the table.",
)
@click.option(
    "--clients",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Connections, each with one request in flight.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, BATCH_OPERATIONS_MAX),
    default=1_000,
    show_default=True,
    help="Keys in one request of set_many and get_many.",
)
@click.option(
    "--keys",
    "key_count",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="Different keys; they are removed at the end.",
)
@click.option(
    "--value-bytes", type=click.IntRange(0, VALUE_BYTES_MAX), default=32, show_default=True
)
@with_settings
def bench(settings: Settings, **given: Any) -> None:
    """Measure set, get, set_many and get_many of keys that begin with bench: in the database -d."""
    settings.database_name()
    found = asyncio.run(_bench(settings, **given))
    if settings.json:
        say_json(found)
        return
    columns = ["operations/s", "requests", "p50 ms", "p90 ms", "p99 ms", "max ms"]
    rows = [
        [
            name,
            f"{line['operations_per_s']:,.0f}",
            f"{line['requests']:,}",
            *(f"{line[figure]:.2f}" for figure in ("p50_ms", "p90_ms", "p99_ms", "max_ms")),
        ]
        for name, line in found.items()
    ]
    print_table(None, ["", *columns], rows)


async def _bench(
    settings: Settings, seconds: float, clients: int, batch: int, key_count: int, value_bytes: int
) -> dict[str, dict[str, float]]:
    value = b"x" * value_bytes
    batch = min(batch, key_count)
    connections = [settings.async_client() for _ in range(clients)]
    try:
        databases = [client.database(**settings.database_arguments()) for client in connections]

        def some_key() -> str:
            return f"{_PREFIX}{random.randrange(key_count):08d}"

        def some_keys() -> list[str]:
            first = random.randrange(key_count - batch + 1)
            return [f"{_PREFIX}{number:08d}" for number in range(first, first + batch)]

        async def set_one(database: Any) -> None:
            await database.set(some_key(), value)

        async def get_one(database: Any) -> None:
            await database.get(some_key())

        async def set_some(database: Any) -> None:
            await database.set_many(dict.fromkeys(some_keys(), value))

        async def get_some(database: Any) -> None:
            await database.get_many(some_keys())

        try:
            return {
                "set": await _measure(databases, set_one, seconds, 1),
                "get": await _measure(databases, get_one, seconds, 1),
                f"set_many of {batch:,}": await _measure(databases, set_some, seconds, batch),
                f"get_many of {batch:,}": await _measure(databases, get_some, seconds, batch),
            }
        finally:
            await _clean_up(databases[0])
    finally:
        for client in connections:
            await client.close()


async def _measure(
    databases: list[Any], request: Callable[[Any], Awaitable[None]], seconds: float, size: int
) -> dict[str, float]:
    latencies: list[float] = []
    began = time.perf_counter()
    end = began + seconds

    async def work(database: Any) -> None:
        now = time.perf_counter()
        while now < end:
            await request(database)
            before, now = now, time.perf_counter()
            latencies.append(now - before)

    await asyncio.gather(*(work(database) for database in databases))
    took = time.perf_counter() - began
    latencies.sort()
    count = len(latencies)
    figures = {
        f"p{percent}_ms": 1e3 * latencies[min(count - 1, count * percent // 100)]
        for percent in (50, 90, 99)
    }
    return {
        "operations_per_s": count * size / took,
        "requests": count,
        **figures,
        "max_ms": 1e3 * latencies[-1],
    }


async def _clean_up(database: Any) -> None:
    after = None
    while keys := await database.keys(f"{_PREFIX}*", limit=1_000, after=after):
        after = keys[-1]
        async with database.pipeline() as pipe:
            for key in keys:
                pipe.remove(key)
