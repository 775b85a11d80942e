"""The command line of the simulator: `bin/nun-sim SEED`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.simulation.conflicts import ConflictSimulation
from tests.simulation.simulation import STEPS, Simulation, run


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="nun-sim",
        description="Runs seeded simulations of a cluster: the real cores on a simulated network, disk and clock.",
    )
    parser.add_argument("seed", type=int, help="which life")
    parser.add_argument("--count", type=int, default=1, help="this seed and the ones after it")
    parser.add_argument("--nodes", type=int, help="how many nodes; by default the seed says")
    parser.add_argument("--steps", type=int, default=STEPS, help="how many faults")
    parser.add_argument("--conflicts", action="store_true", help="a life with conflicts")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    chosen = parser.parse_args(arguments)
    kind = ConflictSimulation if chosen.conflicts else Simulation
    failed = 0
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        began = time.monotonic()
        result = run(seed, chosen.nodes, chosen.steps, 10**7 if chosen.trace else 4_000, kind)
        took = time.monotonic() - began
        if chosen.trace:
            print(result.trace(10**7))
        elif result.error is not None:
            print(result.trace())
        world = result.simulation.world
        told = ", ".join(f"{name} {count}" for name, count in sorted(result.tally.items()))
        print(
            f"seed {seed}: {'FAILED' if result.error else 'ok'}, {len(result.simulation.nodes)} nodes, "
            f"{world.now / 1e9:.1f} s in {took:.2f} s, {world.happened} events, trace {result.digest:08x}"
        )
        if result.error is not None:
            failed += 1
            how = " --conflicts" if chosen.conflicts else ""
            print(f"{result.error}\nagain: bin/nun-sim {seed}{how} --trace")
        elif chosen.count == 1:
            print(told)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
