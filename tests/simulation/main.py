"""The command line of the simulator: `bin/nun-sim SEED`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

from tests.simulation.conflicts import ConflictSimulation
from tests.simulation.dropping import DroppingSimulation
from tests.simulation.forcing import forced
from tests.simulation.forgetting import forgetful
from tests.simulation.simulation import STEPS, Simulation, run
from tests.simulation.wiping import WipingSimulation

_TRACED = 10**7  # lines: all of them


class Life(NamedTuple):
    """What one seed came to, as text: nothing else goes from one process to another."""

    seed: int
    line: str
    trace: str
    told: str
    error: str | None


def live(seed: int, chosen: argparse.Namespace) -> Life:
    """One seed."""
    kind: type[Simulation] = ConflictSimulation if chosen.conflicts else Simulation
    if chosen.wipes:
        kind = WipingSimulation
    if chosen.drops:
        kind = DroppingSimulation
    if chosen.forced:
        kind = forced(kind)
    if chosen.forgets:
        kind = forgetful(kind)
    keep = _TRACED if chosen.trace else 4_000
    began = time.monotonic()
    result = run(seed, chosen.nodes, chosen.steps, keep, kind)
    took = time.monotonic() - began
    world = result.simulation.world
    failed = result.error is not None
    trace = result.trace(_TRACED if chosen.trace else 60) if chosen.trace or failed else ""
    line = (
        f"seed {seed}: {'FAILED' if failed else 'ok'}, {len(result.simulation.nodes)} nodes, "
        f"{world.now / 1e9:.1f} s in {took:.2f} s, {world.happened} events, trace {result.digest:08x}"
    )
    told = ", ".join(f"{name} {count}" for name, count in sorted(result.tally.items()))
    return Life(seed, line, trace, told, str(result.error) if failed else None)


def lives(chosen: argparse.Namespace) -> Iterator[Life]:
    """All that are wanted, in order."""
    seeds = range(chosen.seed, chosen.seed + chosen.count)
    one = partial(live, chosen=chosen)
    if chosen.jobs == 1:
        yield from map(one, seeds)
        return
    with ProcessPoolExecutor(chosen.jobs) as pool:
        yield from pool.map(one, seeds)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="nun-sim",
        description="Runs seeded simulations of a cluster: the real cores on a simulated network, disk and clock.",
    )
    parser.add_argument("seed", type=int, help="which life")
    parser.add_argument("--count", type=int, default=1, help="this seed and the ones after it")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time")
    parser.add_argument("--nodes", type=int, help="how many nodes; by default the seed says")
    parser.add_argument("--steps", type=int, default=STEPS, help="how many faults")
    parser.add_argument("--conflicts", action="store_true", help="a life with conflicts")
    parser.add_argument("--drops", action="store_true", help="as that, and databases come and go")
    parser.add_argument("--wipes", action="store_true", help="a life in which disks are lost")
    parser.add_argument("--forced", action="store_true", help="and many promotions are forced")
    parser.add_argument(
        "--forgets", action="store_true", help="as any of these, and requests are forgotten early"
    )
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--quiet", action="store_true", help="print only what fails")
    chosen = parser.parse_args(arguments)
    kinds = ("conflicts", "drops", "wipes", "forced")
    how = "".join(f" --{kind}" for kind in kinds if getattr(chosen, kind))
    failed: list[Life] = []
    began = time.monotonic()
    for life in lives(chosen):
        if life.trace and (chosen.trace or not chosen.quiet):
            print(life.trace)
        if life.error is not None or not chosen.quiet:
            print(life.line, flush=True)
        if life.error is not None:
            failed.append(life)
            print(f"{life.error}\nagain: bin/nun-sim {life.seed}{how} --trace", flush=True)
        elif chosen.count == 1:
            print(life.told)
    if chosen.count > 1:
        minutes = (time.monotonic() - began) / 60
        rate = f"{chosen.count} seeds, {chosen.count / minutes:.0f} a minute"
        print(f"{rate}: {len(failed)} failed", *(life.seed for life in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
