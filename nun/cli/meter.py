"""What a user sees of a transfer: a bar on a terminal, bad records, why it waits, and a line at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from nun.cli.journal import Progress
from nun.cli.output import bytes_text, duration_text, say_json, warn
from nun.cli.records import Flaw
from nun.cli.settings import Settings
from nun.errors import NunError


class Meter(contextlib.AbstractContextManager["Meter"]):
    """What the user sees: a bar on a terminal, bad records, why it waits, and a line at the end."""

    def __init__(
        self, what: str, settings: Settings, quiet: bool, total: int | None, progress: Progress
    ) -> None:
        self.progress = progress
        self._what = what
        self._json = settings.json
        self._quiet = quiet
        self._total = total
        self._began = progress
        self._began_at = time.monotonic()
        self._waiting = False
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Meter:
        if not (self._quiet or self._json) and sys.stderr.isatty():
            self._show_bar()
        if self._began.records and not self._quiet:
            self.note(f"going on after {self._began.records:,} records")
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns: list[Any] = [TextColumn(self._what), BarColumn()]
        if self._total is not None:
            columns += [DownloadColumn(binary_units=True), TextColumn("{task.fields[rate]}")]
            columns += [TextColumn("eta"), TimeRemainingColumn()]
        else:
            columns += [TextColumn("{task.fields[rate]}"), TimeElapsedColumn()]
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task(
            self._what, total=self._total, completed=self._began.offset, rate=""
        )

    def move(self, progress: Progress) -> None:
        self.progress = progress
        if self._waiting:
            self._waiting = False
            self.note("the node is back")
        if self._bar is not None:
            rate = f"{progress.records:,} records, {self._rate():,.0f}/s"
            self._bar.update(self._task, completed=progress.offset, rate=rate)

    def _rate(self) -> float:
        took = max(time.monotonic() - self._began_at, 1e-9)
        return (self.progress.records - self._began.records) / took

    def flaw(self, flaw: Flaw) -> None:
        self.note(f"line {flaw.line}: {flaw.reason}")

    def waiting(self, error: NunError, seconds: float) -> None:
        if not self._waiting:
            self._waiting = True
            self.note(f"waiting up to {seconds:.0f} s for the node: {error}")

    def note(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(f"nun: {line}", markup=False, highlight=False)
        else:
            warn(line)

    def summary(self, done: Progress) -> None:
        took = time.monotonic() - self._began_at
        if self._json:
            shown = {
                "records": done.records,
                "bad": done.bad,
                "bytes": done.offset,
                "resumed_after": self._began.records,
                "seconds": round(took, 3),
            }
            if self._what == "import":
                say_json(shown)
            return
        if self._quiet:
            return
        now = done.records - self._began.records
        line = f"{now:,} records ({bytes_text(done.offset - self._began.offset)}) in {duration_text(took)}"
        line += f", {now / max(took, 1e-9):,.0f} records/s"
        if self._began.records:
            line += f"; {done.records:,} in all"
        if done.bad:
            line += f"; {done.bad:,} bad records left out"
        warn(f"{self._what}ed {line}")
