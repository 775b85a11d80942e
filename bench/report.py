"""The table, the JSON file and the chart of what was measured."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from bench.sampling import Series


@dataclass(frozen=True)
class Aim:
    """What a figure should be: the ratio to a peer, or, where a row has no peer, our own figure."""

    bound: float
    at_least: bool

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def share(self, value: float) -> float:
        """How far the aim is reached: 1 is exactly, more is better, whichever way it goes."""
        return value / self.bound if self.at_least else self.bound / value


def at_least(bound: float) -> Aim:
    return Aim(bound, at_least=True)


def at_most(bound: float) -> Aim:
    return Aim(bound, at_least=False)


@dataclass(frozen=True)
class Line:
    """One measured line of the table.

    Attributes:
        row: its number in the list of figures; several lines may share one.
        what: what was measured, with the variant (closed, x4, spin off ...).
        unit: of both figures: "keys/s", "us", "ms" ...
        theirs: the peer in the same run, and its name; None where the row has no peer.
        aim: of the ratio, or of our own figure without a peer; None: shown only.
    """

    row: int
    what: str
    unit: str
    ours: Series
    theirs: Series | None = None
    peer: str = ""
    aim: Aim | None = None

    @property
    def judged(self) -> Series:
        """What the aim speaks about."""
        return self.ours if self.theirs is None else self.ours.over(self.theirs)

    @property
    def verdict(self) -> str:
        if self.aim is None:
            return ""
        return "met" if self.aim.met(self.judged.median) else "MISSED"


@dataclass(frozen=True)
class Failure:
    """A row, or the rest of it, that could not be measured."""

    row: int
    reason: str


HEADINGS = ("row", "what", "Nun", "peer", "ratio", "low-high", "aim", "")


def figure(value: float) -> str:
    """Three significant digits, thousands grouped: 1.07, 53.2, 812, 512,000."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        digits = max(len(str(int(abs(value)))) - 3, 0)
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def cells(line: Line) -> tuple[str, ...]:
    """The line as text, one cell for each of HEADINGS."""
    ratio = line.judged
    theirs = "" if line.theirs is None else f"{figure(line.theirs.median)} {line.peer}"
    unit = "" if line.theirs is None else " x"
    aim = ""
    if line.aim is not None:
        sign = ">=" if line.aim.at_least else "<="
        aim = f"{sign} {figure(line.aim.bound)}{unit or ' ' + line.unit}"
    return (
        str(line.row),
        line.what,
        f"{figure(line.ours.median)} {line.unit}",
        theirs,
        f"{ratio.median:.2f} x" if line.theirs is not None else "",
        f"{ratio.low:.2f}-{ratio.high:.2f}"
        if line.theirs is not None
        else f"{figure(ratio.low)}-{figure(ratio.high)}",
        aim,
        line.verdict,
    )


def table(results: Sequence[Line | Failure]) -> str:
    """All lines in order of their rows, then what failed."""
    lines = sorted((r for r in results if isinstance(r, Line)), key=lambda line: line.row)
    body = [HEADINGS, *map(cells, lines)]
    widths = [max(len(row[column]) for row in body) for column in range(len(HEADINGS))]
    numeric = {0, 4, 5}
    text = []
    for row in body:
        padded = [
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        text.append("  ".join(padded).rstrip())
    text.insert(1, "  ".join("-" * width for width in widths))
    failures = [r for r in results if isinstance(r, Failure)]
    if failures:
        text.append("")
        text += [f"row {failure.row} NOT MEASURED: {failure.reason}" for failure in failures]
    aimed = [line for line in lines if line.aim is not None]
    met = sum(line.verdict == "met" for line in aimed)
    text += ["", f"{met} of {len(aimed)} aims met, {len(failures)} not measured"]
    return "\n".join(text)


def machine(directory: Path) -> dict[str, Any]:
    """Where the figures were taken: without it they mean nothing to the next reader."""
    import zmq

    mount = max(
        (
            part
            for part in psutil.disk_partitions(all=True)
            if directory.resolve().is_relative_to(part.mountpoint)
        ),
        key=lambda part: len(part.mountpoint),
        default=None,
    )
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "file_system": mount.fstype if mount else "unknown",
        "python": platform.python_version(),
        "pyzmq": zmq.pyzmq_version(),
        "libzmq": zmq.zmq_version(),
        "load_average": round(psutil.getloadavg()[0], 2),
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def document(results: Iterable[Line | Failure], about: dict[str, Any]) -> dict[str, Any]:
    """All that was measured, as plain values for a JSON file."""
    plain: list[dict[str, Any]] = []
    for result in results:
        if isinstance(result, Failure):
            plain.append({"row": result.row, "failed": result.reason})
            continue
        item: dict[str, Any] = {
            "row": result.row,
            "what": result.what,
            "unit": result.unit,
            "ours": list(result.ours.samples),
            "judged": result.judged.median,
            "spread": result.judged.spread,
        }
        if result.theirs is not None:
            item |= {"peer": result.peer, "theirs": list(result.theirs.samples)}
        if result.aim is not None:
            sign = ">=" if result.aim.at_least else "<="
            item |= {"aim": f"{sign} {result.aim.bound:g}", "met": result.verdict == "met"}
        plain.append(item)
    return {"machine": about, "results": plain}


def write_json(path: Path, results: Iterable[Line | Failure], about: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(results, about), indent=2) + "\n")


@dataclass(frozen=True)
class Bar:
    """One bar of the chart: a line of the table as a share of its aim."""

    label: str
    share: float
    low: float
    high: float
    text: str
    met: bool


def bars(results: Iterable[Line | Failure]) -> list[Bar]:
    """The lines that have an aim, in order of their rows."""
    drawn = []
    for line in sorted((r for r in results if isinstance(r, Line)), key=lambda line: line.row):
        if line.aim is None:
            continue
        judged = line.judged
        low, high = sorted((line.aim.share(judged.low), line.aim.share(judged.high)))
        _, _, ours, _, ratio, _, aim, verdict = cells(line)
        drawn.append(
            Bar(
                label=f"{line.row}  {line.what}",
                share=line.aim.share(judged.median),
                low=low,
                high=high,
                text=f"{ratio or ours}  (aim {aim})",
                met=verdict == "met",
            )
        )
    return drawn


MET_COLOUR: Final = "#0072b2"  # told apart by the colour-blind too
MISSED_COLOUR: Final = "#d55e00"
INK: Final = "#222222"


def write_chart(path: Path, drawn: Sequence[Bar], about: dict[str, Any]) -> None:
    """How far each aim is reached, one bar a line; PNG or SVG by the file's name."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    chart, axes = plt.subplots(figsize=(11, 1.6 + 0.36 * len(drawn)), layout="constrained")
    for place, bar in enumerate(drawn):
        axes.barh(place, bar.share, height=0.62, color=MET_COLOUR if bar.met else MISSED_COLOUR)
        axes.plot((bar.low, bar.high), (place, place), color=INK, linewidth=1.2)
        axes.text(max(bar.high, 1.0) + 0.03, place, bar.text, va="center", fontsize=8)
    axes.axvline(1.0, color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(drawn)), [bar.label for bar in drawn], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max([2.0, *(1.4 * bar.high for bar in drawn)]))
    axes.set_xlabel(
        "share of the aim (1: reached; blue: met, orange: missed; thin line: all rounds)"
    )
    axes.set_title(
        f"Nun against its aims: {about['cpu']}, {about['cores']} cores, {about['file_system']}, "
        f"Python {about['python']}, {about['commit']}",
        fontsize=9,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=150)
    plt.close(chart)
