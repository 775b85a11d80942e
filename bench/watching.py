"""A process of watchers: each a client of its own that watches one prefix and reads every event.

    python -m bench.watching ADDRESS WATCHERS

Prints `ready` when the watches are asked for. A set of the key END ends a round: for each new value
of it, one JSON line with the events that all watchers have read since the round before, once all of
them have read that far.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final

import nun
from bench.workload import DATABASE, DATABASE_TOKEN

PREFIX: Final = "hot:"
END: Final = "hot:end"


async def watch(address: str, ended: asyncio.Queue[tuple[str, int]]) -> None:
    """One watcher; notes each end of a round with the events since the last."""
    async with nun.AsyncClient(address) as client:
        database = await client.database(DATABASE, token=DATABASE_TOKEN)
        seen = 0
        last = ""
        async for event in database.watch(f"{PREFIX}*"):
            if event.key != END:
                seen += 1
            elif event.value != last:
                last = event.value
                ended.put_nowait((last, seen))
                seen = 0


async def run(address: str, count: int) -> None:
    ended: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(watch(address, ended))
        print("ready", flush=True)
        while True:
            round_ends = [await ended.get() for _ in range(count)]
            names = {name for name, _ in round_ends}
            if len(names) != 1:
                raise AssertionError(f"watchers are in different rounds: {names}")
            events = sum(seen for _, seen in round_ends)
            print(json.dumps({"round": names.pop(), "events": events}), flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
