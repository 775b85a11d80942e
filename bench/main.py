"""The command behind bin/bench: measures the rows that were asked for and shows them."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from bench.peers import Peers
from bench.processes import ROOT, Unavailable
from bench.report import Failure, Line, bars, machine, table, write_chart, write_json
from bench.sampling import Plan

Row = Callable[[Peers, Plan], Iterator[Line]]

# Named, not imported: a group that cannot be imported is a failing row, and the others go on.
ROWS: Final = {
    1: ("batches", "durable_sets"),
    2: ("batches", "memory_sets"),
    3: ("batches", "gets"),
    4: ("batches", "pipelines"),
    5: ("round_trips", "single_get"),
    6: ("round_trips", "durable_set"),
    7: ("many_clients", "fifty_clients"),
    8: ("storage", "small_snapshot"),
    9: ("storage", "incremental_snapshot"),
    10: ("storage", "start"),
    11: ("storage", "memory"),
    12: ("watchers", "hot_prefix"),
    13: ("replicas", "acked_by_all"),
    14: ("replicas", "lag_and_catching_up"),
    15: ("gateway", "http_batches"),
    16: ("gateway", "websockets"),
    17: ("conflicts", "costs"),
    18: ("conflicts", "queues"),
    19: ("gateway", "transports"),
    20: ("crowds", "many_connections"),
}
MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs")
PROFILE: Final = """\
To see where a node spends its time, attach py-spy to one of its processes while a row runs:

    python3 -m venv /tmp/py-spy && /tmp/py-spy/bin/pip install py-spy
    bin/bench --rows 1 --seconds 20 --rounds 1        # prints the pids: supervisor, network, writer
    /tmp/py-spy/bin/py-spy top --pid PID              # live
    /tmp/py-spy/bin/py-spy record --pid PID --duration 10 --rate 500 --native --idle -o network.svg

`network` decides and holds the keys, `writer` logs and syncs. Without --native the time within
ZeroMQ shows as the Python call above it. py-spy slows the process down while it looks: use it to see
shares, never figures. It needs the right to trace: root, or the same user and
kernel.yama.ptrace_scope=0.
"""


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bin/bench",
        description="Measures Nun against Redis and a bare ZeroMQ echo; see docs/BENCHMARKS.md.",
    )
    parser.add_argument("--rows", type=rows, default=list(ROWS), help="such as 1,3,7 or 1-4")
    parser.add_argument("--seconds", type=positive, help="per sample (1; 0.2 with --quick)")
    parser.add_argument("--rounds", type=int, help="samples of each variant (5; 3 with --quick)")
    parser.add_argument(
        "--quick", action="store_true", help="short samples, a tenth of the keys: a first look only"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all samples, for machines")
    parser.add_argument(
        "--chart",
        type=Path,
        metavar="FILE",
        default=ROOT / "bench/results/bench.png",
        help="PNG or SVG by its name (default: bench/results/bench.png)",
    )
    parser.add_argument(
        "--dir", type=Path, help="where the temporary directory is made: the disk to measure"
    )
    parser.add_argument(
        "--profile", action="store_true", help="how to attach a profiler; then ends"
    )
    options = parser.parse_args(given)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    if options.chart.suffix not in (".png", ".svg"):
        parser.error("--chart: a name that ends in .png or .svg")
    return options


def rows(text: str) -> list[int]:
    """The rows of `1,3,7` or `1-4,12`, in order."""
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{part!r} is neither a row nor a range such as 1-4")
        chosen |= set(range(int(first), int(last or first) + 1))
    unknown = sorted(chosen - set(ROWS))
    if unknown or not chosen:
        raise argparse.ArgumentTypeError(f"rows are 1 to {max(ROWS)}, not {unknown or text}")
    return sorted(chosen)


def positive(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 3600:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def plan_of(options: argparse.Namespace) -> Plan:
    plan = Plan.quick() if options.quick else Plan()
    return Plan(
        seconds=options.seconds or plan.seconds,
        rounds=options.rounds or plan.rounds,
        keys=plan.keys,
    )


def measure(row: int, place: Path | None, plan: Plan, results: list[Line | Failure]) -> None:
    """Adds all lines of one row; what fails says so in place of the lines that are missing."""
    group, name = ROWS[row]
    print(f"bench: row {row}, {name.replace('_', ' ')} ...", file=sys.stderr)
    try:
        function: Row = getattr(importlib.import_module(f"bench.{group}"), name)
        with Peers(place) as peers:
            for line in function(peers, plan):
                results.append(line)
    except Unavailable as error:
        print(f"bench: ROW {row} SKIPPED: {error}", file=sys.stderr)
        results.append(Failure(row, str(error)))
    except Exception as error:  # one row's failure is no reason to lose the others
        traceback.print_exc()
        results.append(Failure(row, f"{type(error).__name__}: {error}"))


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(given: Sequence[str] | None = None) -> int:
    """Exit status: 0 all rows were measured (aims met or not), 1 some were not, 130 interrupted."""
    options = arguments(sys.argv[1:] if given is None else given)
    if options.profile:
        print(PROFILE)
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    plan = plan_of(options)
    with Peers(options.dir) as peers:
        about = machine(peers.directory)
    if about["file_system"] in MEMORY_FILE_SYSTEMS:
        print(
            f"bench: {about['file_system']} keeps nothing, so durable rows measure no disk; "
            "name a directory on one with --dir",
            file=sys.stderr,
        )
    results: list[Line | Failure] = []
    interrupted = False
    try:
        for row in options.rows:
            measure(row, options.dir, plan, results)
    except KeyboardInterrupt:
        interrupted = True
        print("bench: interrupted; what was measured so far:", file=sys.stderr)
    print(", ".join(f"{name} {found}" for name, found in about.items()))
    print(f"{plan.rounds} rounds of {plan.seconds:g} s, variants in turn\n")
    print(table(results))
    if options.json:
        write_json(options.json, results, about)
    drawn = bars(results)
    if drawn:
        write_chart(options.chart, drawn, about)
        print(f"chart: {options.chart}")
    if interrupted:
        return 130
    return 1 if any(isinstance(result, Failure) for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
