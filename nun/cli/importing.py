"""Storing a stream of records in a database: in batches, several in flight, again after a lost connection.

Invariants:
    I1  The state that is saved covers exactly the records before `offset`: each is acknowledged, or counted as bad.
    I2  Of two records with the same key, the later one in the file ends as the value. So after a batch failed, every
        batch behind it is sent again, in order, once the failed one is through.
    I3  At most `in_flight` batches are held, each bounded in records and bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nun.cli.journal import Progress
from nun.cli.records import Flaw, Row
from nun.errors import (
    AuthError,
    BatchError,
    ConnectionLost,
    DatabaseExists,
    NoSuchDatabase,
    NunError,
    Overloaded,
    ReadOnly,
    RequestError,
    UnknownOutcome,
)

_PASSING: Final = (ConnectionLost, UnknownOutcome, Overloaded, ReadOnly)
_HOPELESS: Final = (AuthError, NoSuchDatabase, DatabaseExists)
_LONGEST_WAIT_S: Final = 2.0

Send = Callable[[Mapping[bytes, bytes]], Awaitable[object]]


class BadRecordError(NunError):
    """A record that cannot be stored, where bad ones are not to be skipped."""

    def __init__(self, flaw: Flaw) -> None:
        self.flaw = flaw
        super().__init__(f"line {flaw.line}: {flaw.reason}")


@dataclass
class _Batch:
    rows: list[Row] = field(default_factory=list)
    bad: int = 0
    end: int = 0
    line: int = 0  # lines up to the end
    task: asyncio.Task[object] | None = None


@dataclass(frozen=True)
class Pace:
    """How much at a time, and how long to wait for a node that is away."""

    batch_records: int = 1_000
    batch_bytes: int = 1024 * 1024
    in_flight: int = 4
    retry_for_s: float = 60.0
    first_wait_s: float = 0.1


class Importer:
    """One import.

    Args:
        send: stores a batch of records; raises what `set_many` raises.
        rows: the records, from the point where `progress` stands.
        tell_bad: told of every record that cannot be stored.
        tell_progress: told of every state that may be saved.
        tell_waiting: told why and how long it will wait.
    """

    def __init__(
        self,
        send: Send,
        rows: Iterator[Row | Flaw],
        progress: Progress,
        *,
        pace: Pace,
        skip_bad: bool,
        tell_bad: Callable[[Flaw], None],
        tell_progress: Callable[[Progress], None],
        tell_waiting: Callable[[NunError, float], None],
    ) -> None:
        self._send = send
        self._rows = rows
        self.progress = progress
        self._pace = pace
        self._skip_bad = skip_bad
        self._tell_bad = tell_bad
        self._tell_progress = tell_progress
        self._tell_waiting = tell_waiting
        self._window: deque[_Batch] = deque()
        self._ended = False
        self._stopped_by: Flaw | None = None

    async def run(self) -> Progress:
        """Stores all records. Raises BadRecordError, or the error of a node that stays away or says no."""
        try:
            while True:
                self._fill()
                if not self._window:
                    break
                await self._settle_first()
        finally:
            await self._abandon()
        if self._stopped_by is not None:
            raise BadRecordError(self._stopped_by)
        return self.progress

    # Sending ------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while len(self._window) < self._pace.in_flight:
            batch = self._next_batch()
            if batch is None:
                return
            self._window.append(batch)
            self._start(batch)

    def _start(self, batch: _Batch) -> None:
        batch.task = asyncio.ensure_future(self._send_rows(batch.rows))

    async def _send_rows(self, rows: list[Row]) -> object:
        # Of equal keys the dict keeps the last one (I2).
        return await self._send({row.key: row.value for row in rows}) if rows else None

    def _next_batch(self) -> _Batch | None:
        batch = _Batch()
        size = 0
        while not self._ended and len(batch.rows) + batch.bad < self._pace.batch_records:
            row = next(self._rows, None)
            if row is None:
                self._ended = True
                break
            if isinstance(row, Flaw):
                if not self._skip_bad:
                    self._ended, self._stopped_by = True, row
                    break
                self._tell_bad(row)
                batch.bad += 1
            else:
                batch.rows.append(row)
                size += len(row.key) + len(row.value)
            batch.end = row.end
            batch.line = row.last_line
            if size >= self._pace.batch_bytes:
                break
        return batch if batch.rows or batch.bad else None

    # Settling -----------------------------------------------------------------------------------------------------

    async def _settle_first(self) -> None:
        batch = self._window[0]
        assert batch.task is not None
        try:
            await batch.task
        except NunError as error:
            await self._wait_for_the_others()
            await self._mend(batch, error)
            for later in list(self._window)[1:]:  # I2
                self._start(later)
        self._window.popleft()
        stored = len(batch.rows)
        self.progress = replace(
            self.progress,
            offset=batch.end,
            line=batch.line,
            records=self.progress.records + stored,
            bad=self.progress.bad + batch.bad,
        )
        self._tell_progress(self.progress)

    async def _wait_for_the_others(self) -> None:
        tasks = [batch.task for batch in self._window if batch.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _mend(self, batch: _Batch, error: NunError) -> None:
        """Gets a batch through that failed: rows that are refused for good become bad ones."""
        refused: list[tuple[Row, str]] = []
        await self._store(batch.rows, refused, error)
        if not refused:
            return
        refused.sort(key=lambda found: found[0].line)
        flaws = [Flaw(row.line, reason, row.last_line, row.end) for row, reason in refused]
        if not self._skip_bad:
            raise BadRecordError(flaws[0])
        for flaw in flaws:
            self._tell_bad(flaw)
        gone = {row.line for row, _ in refused}
        batch.rows = [row for row in batch.rows if row.line not in gone]
        batch.bad += len(flaws)

    async def _store(
        self, rows: list[Row], refused: list[tuple[Row, str]], error: NunError | None = None
    ) -> None:
        """Stores rows, in halves where the node refuses them, until those are single that it refuses.

        Args:
            error: what the first attempt met, where it was made already.
        """
        if error is None:
            error = await self._attempt(rows)
        error = await self._outlast(rows, error)
        if error is None:
            return
        if isinstance(error, BatchError):
            refused.extend(_refusals(rows, error))
        elif not isinstance(error, RequestError) or isinstance(error, _HOPELESS):
            raise error
        elif len(rows) == 1:
            refused.append((rows[0], str(error)))
        else:
            half = len(rows) // 2
            await self._store(rows[:half], refused)
            await self._store(rows[half:], refused)

    async def _attempt(self, rows: list[Row]) -> NunError | None:
        try:
            await self._send_rows(rows)
        except NunError as error:
            return error
        return None

    async def _outlast(self, rows: list[Row], error: NunError | None) -> NunError | None:
        """Tries again while the node is away or overloaded, for as long as it was told to."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._pace.retry_for_s
        wait = self._pace.first_wait_s
        while isinstance(error, _PASSING):
            if loop.time() + wait > give_up_at:
                raise error
            asked = error.fields.get("retry_after_ms") if isinstance(error, RequestError) else None
            if isinstance(asked, int):
                wait = max(wait, asked / 1000)
            self._tell_waiting(error, give_up_at - loop.time())
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)
            error = await self._attempt(rows)
        return error

    async def _abandon(self) -> None:
        """Leaves no task behind when the run is cut short."""
        for batch in self._window:
            if batch.task is not None:
                batch.task.cancel()
        await self._wait_for_the_others()


def _refusals(rows: list[Row], error: BatchError) -> list[tuple[Row, str]]:
    """The rows whose keys a batch names as refused: its results are in the order of the distinct keys."""
    last: dict[bytes, Row] = {}
    for row in rows:
        last[row.key] = row
    results: list[Any] = list(error.results)
    return [
        (row, str(result))
        for row, result in zip(last.values(), results, strict=False)
        if isinstance(result, NunError)
    ]
