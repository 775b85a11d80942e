"""kill -9 at random moments under load, again and again: nothing acknowledged is lost, nothing is counted twice."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import nun
from tests.support.history import (
    PATIENCE_S,
    CompareAndSet,
    Increments,
    OwnKeys,
    Progress,
    Reader,
    Worker,
    patiently,
)
from tests.support.node import ADMIN, Node, seeded, wait_until

pytestmark = pytest.mark.process

# Small, so that the log rotates and snapshots run while processes die.
SETTINGS: dict[str, dict[str, Any]] = {
    "storage": {
        "fsync": "always",
        "segment_bytes": 64 * 1024,
        "oplog_bytes": 256 * 1024,
        "snapshot_interval_s": 1,
        "snapshot_log_bytes": 128 * 1024,
    },
}
CHILD_DEATHS_MAX = (
    4  # the supervisor gives up when children die more than five times within a minute
)


def victims(source: random.Random, cycles: int) -> Iterator[str]:
    """Whom to kill, cycle by cycle: children only as often as one supervisor heals."""
    deaths = 0
    for _ in range(cycles):
        victim = source.choice(["writer", "network", "supervisor", "node"])
        if victim in ("writer", "network") and deaths == CHILD_DEATHS_MAX:
            victim = "node"
        deaths = deaths + 1 if victim in ("writer", "network") else 0
        yield victim


def crash_again_and_again(node: Node, source: random.Random, cycles: int) -> None:
    with nun.Client(node.address, **ADMIN) as client:
        client.create_database("crash", token="t")
    progress = Progress()

    def worker(kind: Callable[..., Worker], *first: Any) -> Any:
        return kind(*first, node.address, "t", progress, source.randrange(2**32))

    own = [worker(OwnKeys, "a"), worker(OwnKeys, "b")]
    counting = [worker(Increments), worker(Increments)]
    comparing = [worker(CompareAndSet), worker(CompareAndSet)]
    workers: list[Worker] = [*own, *counting, *comparing, worker(Reader)]
    for each in workers:
        each.start()
    try:
        for victim in victims(source, cycles):
            progress.wait_for(source.randrange(1, 60))
            # On a slow machine some might have no turn at all between one kill and the next.
            wait_until(
                lambda: progress.failed or not any(each.starves for each in workers),
                "everybody to get something done",
                PATIENCE_S,
            )
            if progress.failed:
                break
            node.kill(victim)
            if victim in ("writer", "network"):
                node.wait_ready()
            else:
                node.restart()
    finally:
        for each in workers:
            each.halt.set()
        for each in workers:
            each.join(90)
    for each in workers:
        assert not each.is_alive(), f"{each!r} hangs"
        each.check()
    check_what_is_held(node, own, counting, comparing)
    assert node.stop() == 0, node.tail()
    node.restart()
    check_what_is_held(node, own, counting, comparing)


def check_what_is_held(
    node: Node,
    own: list[OwnKeys],
    counting: list[Increments],
    comparing: list[CompareAndSet],
) -> None:
    with nun.Client(node.address, **ADMIN) as client:
        database = client.database("crash", token="t")
        for worker in own:
            worker.compare(database)
        for name, workers in (("counter", counting), ("shared", comparing)):
            unknown = sum(each.unknown for each in workers)
            for key in (f"{name}:{index}" for index in range(3)):
                done = sum(each.done.get(key, 0) for each in workers)
                entry = patiently(lambda key=key: database.get(key))
                found = (0, 0) if entry is None else (int(entry.value), entry.version)
                assert done <= found[0] <= done + unknown, f"{key}: {found}, done {done}"
                assert found[1] == found[0], f"{key}: value and version {found} must agree"
        assert sum(each.unknown for each in counting + comparing) == 0, "retries must settle it"


def test_50_crashes_lose_nothing_and_repeat_nothing(start_node: Callable[..., Node]) -> None:
    crash_again_and_again(start_node(SETTINGS), seeded("crash"), cycles=50)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_1000_crashes_lose_nothing_and_repeat_nothing(start_node: Callable[..., Node]) -> None:
    crash_again_and_again(start_node(SETTINGS), seeded("crash"), cycles=1000)


def test_children_die_with_the_supervisor(start_node: Callable[..., Node]) -> None:
    node = start_node()
    before = node.pids()
    assert set(before) == {"supervisor", "writer", "network", "conflicts"}
    node.kill("supervisor")  # waits until no process holds the log pipe
    node.restart()
    assert not set(before.values()) & set(node.pids().values())


def test_a_dead_conflict_manager_is_started_alone(start_node: Callable[..., Node]) -> None:
    node = start_node()
    before = node.pids()
    mark = node.mark()
    node.kill("conflicts")
    node.wait_log("restarting", mark)
    wait_until(lambda: "conflicts" in node.pids(), "the conflict manager")
    after = node.pids()
    assert after.pop("conflicts") != before.pop("conflicts")
    assert after == before


def test_a_dead_child_is_healed_and_the_group_is_new(start_node: Callable[..., Node]) -> None:
    node = start_node()
    for victim in ("writer", "network"):
        before = node.pids()
        node.kill(victim)
        node.wait_ready()
        after = node.pids()
        assert after["supervisor"] == before["supervisor"]
        assert after["writer"] != before["writer"]
        assert after["network"] != before["network"]


def test_a_node_whose_children_keep_dying_stops_with_a_message(
    start_node: Callable[..., Node],
) -> None:
    node = start_node()
    for _ in range(5):
        node.kill("writer")
        node.wait_ready()
    node.kill("network")
    assert node.wait_exit() == 4
    assert "Traceback" not in node.tail()


@pytest.mark.parametrize("kind", ["values", "keys"])
def test_a_crash_in_the_middle_of_a_first_snapshot(
    start_node: Callable[..., Node], kind: str
) -> None:
    """The files are half written and no snapshot was ever complete: the log has all of it."""
    node = start_node({"storage": {"snapshot_interval_s": 0}})
    written = {f"k{i}": f"{i}:" + "x" * 300 for i in range(60_000)}
    with nun.Client(node.address, **ADMIN, timeout=5.0) as client:
        client.create_database("crash", token="t")
        client.database("crash", token="t").set_many(written)

        def snapshot() -> None:
            with contextlib.suppress(nun.NunError):
                client.snapshot(["crash"])

        thread = threading.Thread(target=snapshot)
        thread.start()
        wait_until(lambda: half_written(node, kind), f"the file of {kind} to be begun")
        node.kill("node")
        client.close()
        thread.join()
    node.restart()
    with nun.Client(node.address, **ADMIN) as client:
        database = client.database("crash", token="t")
        keys = list(written)
        entries = database.get_many(keys)
        assert [entry and entry.value for entry in entries] == list(written.values())
        assert {entry.version for entry in entries} == {1}
        assert len(database.keys("", limit=100_000)) == len(written)


def half_written(node: Node, kind: str) -> bool:
    return any(path.stat().st_size > 0 for path in node.data_dir.glob(f"crash-nun.data.{kind}*"))
