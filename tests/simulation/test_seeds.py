"""Seeded lives of clusters: none may break a promise, all must come to rest in order.

A failure names its seed; `bin/nun-sim SEED` replays it, `--trace` shows all that happened.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.conflicts import ConflictSimulation
from tests.simulation.dropping import DroppingSimulation
from tests.simulation.forcing import forced
from tests.simulation.forgetting import forgetful
from tests.simulation.simulation import Simulation, run
from tests.simulation.wiping import WipingSimulation
from tests.support.node import ROOT

FAST = 200
LONG = 20_000
_AT_A_TIME = 25

# Seeds that found something in the code of their day, and what. A change of the code makes other lives of them:
# what was found is told as a story too (test_stories.py) where it can be told in a few lines.
FOUND = {
    408: "what a new primary has on disk may be shown, though the old one lost it",
    1: "a replicator that heard of its node's state before its disk's took it for empty",
    4: "what is shown on a replica is durable at the primary",
    8: "a marker lost by the stream was waited for for ever",
    11: "a lower promise was written over a higher one that was being written",
    13: "older entries of the history that is followed were kept out by the fence",
    31: "an item decided before a start stayed in the outbox for ever",
    49: "entries on the disks of a majority without the primary's were called settled, then cut",
    90: "a lost tail of the primary's own stream was never noticed",
    206: "an answer belongs to the node that gave it",
    270: "a candidate went on to reign below an epoch that it had fetched",
    419: "a promise was given before the node knew what it had promised",
    534: "an order to be primary that came too late parted memory from disk",
    9086: "a cut above what had come to the disk was taken for impossible",
    3047: "an answer to an earlier life of a node made it wait for its own disk for ever",
    5747: "a node that was told to begin its old reign again became a candidate before it had",
    5826: "a node became a candidate while it was giving a lower promise",
    439: "items of two nodes for one request were both taken for the first",
    353: "a watch whose last entry was cut off went on as if nothing were missing",
    674: "a node that became primary sent replies and events twice",
    606: "a greeting waited for the ack level of the request before it",
    204: "a reply told of an entry that a change of primary had cut off",
    184: "a primary did not see that it had decided another item of the same request",
    126: "a majority read of one key showed what its node had only taken",
    105: "what read back after a failed sync was taken for durable",
    4785: "a write that was acknowledged in one history and done in another was expected to be lost",
    10104: "what an order to be primary that came too late decided was taken for a part of a later history",
    9137: "a copy on a disk that was not the operating system's could not be ended",
    16432: "a replicator that died before it heard that the log was cut left its node waiting for ever",
    12195: "what was refused, and then cut off by a forced promotion, was not proposed again",
    11057: "what a client had heard and not looked at was taken for told by the node that it went to next",
    5831: "two candidates that could not see each other began the same reign: the later one was taken for a start anew",
    41016: "what was cut off and came back with a copy was refused as too late to be told from a repeat",
}

# As those, of lives with conflicts.
FOUND_WITH_CONFLICTS = {
    909: "after a forced promotion a copy took the place of writes that only its receiver had",
    1211: "a decision that was cut off was refused as a repeat, and then decided",
    1571: "a process whose log no longer held what it had missed read it for ever",
    1995: "a value that a fallback chose was taken for as young as its expiry, once the key was free",
    70484: "the reply to a request of an earlier life of a node was taken for the answer to another client's",
    20260: "a log that was cut back while it was read for a watch was taken for a damaged one",
    1967: "a batch with one write that was decided anew came back as a single write",
    30334: "a request that was decided again, as asked for, was judged by what another node had cut off of it",
    30091: "a node that had taken a copy did not look for the row of a request that it had cut off",
    71234: "an element that somebody had read before it was decided was expected to be in no set while it was open",
    71304: "files of a new primary that ended long before the log here were taken in place of a copy that was gone",
    70563: "an entry that came when the one before it had been cleaned away was taken for a second one of its write",
}


_HOW: dict[type[Simulation], str] = {
    Simulation: "",
    ConflictSimulation: " --conflicts",
    DroppingSimulation: " --drops",
    WipingSimulation: " --wipes",
    forced(Simulation): " --forced",
    forced(ConflictSimulation): " --conflicts --forced",
    forced(DroppingSimulation): " --drops --forced",
    forgetful(ConflictSimulation): " --conflicts --forgets",
}

FOUND_WITH_WIPES = {
    317: "a late answer gave a new directory the number of the one that it had taken the place of",
}

# As those, of lives in which databases come and go.
FOUND_WITH_DROPS = {
    162103: "a node whose log was cut back to where its files end did not start again",
    162305: "a write whose database was gone was told to its writer twice, where two nodes had it",
}


def lives(first: int, count: int, kind: type[Simulation]) -> list[str]:
    """What failed among these seeds."""
    failed = []
    how = _HOW[kind]
    for seed in range(first, first + count):
        result = run(seed, kind=kind)
        if result.error is not None:
            failed.append(f"bin/nun-sim {seed}{how}: {result.error}\n{result.trace(15)}")
    return failed


def run_range(first: int, count: int, kind: type[Simulation] = Simulation) -> None:
    """On all processors: each seed is a world of its own."""
    ranges = range(first, first + count, _AT_A_TIME)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        times = len(ranges)
        found = list(pool.map(lives, ranges, [_AT_A_TIME] * times, [kind] * times))
    check([text for each in found for text in each])


def check(failed: Sequence[str]) -> None:
    assert not failed, f"{len(failed)} seeds failed\n" + "\n\n".join(failed[:3])


def firsts(count: int) -> list[int]:
    """The first seeds of parts of the range, each a test of its own that may run beside the others."""
    return list(range(1, count, _AT_A_TIME))


@pytest.mark.parametrize("first", firsts(FAST))
def test_clusters_keep_their_promises(first: int) -> None:
    check(lives(first, _AT_A_TIME, Simulation))


@pytest.mark.parametrize("first", firsts(FAST))
def test_clusters_with_conflicts_lose_nothing(first: int) -> None:
    check(lives(first, _AT_A_TIME, ConflictSimulation))


@pytest.mark.parametrize("first", firsts(FAST // 4))
def test_clusters_that_lose_disks_keep_their_promises(first: int) -> None:
    check(lives(first, _AT_A_TIME, WipingSimulation))


@pytest.mark.parametrize("first", firsts(FAST // 4))
def test_databases_that_are_dropped_leave_nothing_open(first: int) -> None:
    check(lives(first, _AT_A_TIME, DroppingSimulation))


@pytest.mark.parametrize("kind", [Simulation, ConflictSimulation, DroppingSimulation])
def test_clusters_whose_primaries_are_made_by_force_lose_nothing(kind: type[Simulation]) -> None:
    check(lives(1, _AT_A_TIME, forced(kind)))


@pytest.mark.parametrize("first", [1001, 1076])
def test_clients_that_are_forgotten_are_served_on_and_nothing_is_done_twice(first: int) -> None:
    check(lives(first, _AT_A_TIME, forgetful(ConflictSimulation)))


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_many_clusters_keep_their_promises() -> None:
    run_range(FAST + 1, LONG - FAST)


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_many_clusters_with_conflicts_lose_nothing() -> None:
    run_range(FAST + 1, LONG - FAST, ConflictSimulation)


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_many_clusters_that_lose_disks_keep_their_promises() -> None:
    run_range(FAST // 4 + 1, LONG // 4, WipingSimulation)


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_many_databases_that_are_dropped_leave_nothing_open() -> None:
    run_range(FAST // 4 + 1, LONG // 4, DroppingSimulation)


@pytest.mark.parametrize("seed", [seed for seed in FOUND if seed > FAST])
def test_a_seed_that_found_something(seed: int) -> None:
    result = run(seed)
    assert result.error is None, f"{FOUND[seed]}: {result.error}\n{result.trace(15)}"


@pytest.mark.parametrize("seed", FOUND_WITH_CONFLICTS)
def test_a_seed_with_conflicts_that_found_something(seed: int) -> None:
    result = run(seed, kind=ConflictSimulation)
    assert result.error is None, f"{FOUND_WITH_CONFLICTS[seed]}: {result.error}\n{result.trace(15)}"


@pytest.mark.parametrize("seed", FOUND_WITH_DROPS)
def test_a_seed_with_drops_that_found_something(seed: int) -> None:
    result = run(seed, kind=DroppingSimulation)
    assert result.error is None, f"{FOUND_WITH_DROPS[seed]}: {result.error}\n{result.trace(15)}"


@pytest.mark.parametrize("seed", FOUND_WITH_WIPES)
def test_a_seed_with_wipes_that_found_something(seed: int) -> None:
    result = run(seed, kind=WipingSimulation)
    assert result.error is None, f"{FOUND_WITH_WIPES[seed]}: {result.error}\n{result.trace(15)}"


def test_a_node_on_its_own_keeps_its_promises() -> None:
    for seed in range(40):
        result = run(seed, nodes=1)
        assert result.error is None, f"bin/nun-sim {seed} --nodes 1: {result.error}"


def test_a_seed_replays_exactly() -> None:
    """Neither the order of hashes nor what ran before changes anything."""
    code = (
        "from tests.simulation.simulation import run\n"
        "print([hex(run(seed).digest) for seed in (5, 17)])"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    run(16)
    assert printed[0].strip() == str([hex(run(seed).digest) for seed in (5, 17)])
