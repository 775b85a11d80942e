"""When the storage writer takes snapshots, and how they run beside its commits.

A snapshot (storage/snapshot.py) is a generator: it is given slices in the background of the loop, and its blocking
calls (syncs of the keys and values files) run in a thread. One runs at a time; those that are asked for wait in a
queue.

By themselves snapshots are taken after `snapshot_interval_s`, after `snapshot_log_bytes` of log, and to reclaim a
values file of which more than `reclaim_ratio` is dead.

I1  A snapshot holds nothing that is not durable in the log.
I2  One that found no room is told as failed, and what it left is put in order before the next.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from actors.loop import Loop
from nun.config import StorageConfig
from storage.snapshot import SnapshotReport, Snapshots

RETRY_S: Final = 10.0  # after a snapshot that failed, before the next that nobody asked for
FULL_ERRNOS: Final = (errno.ENOSPC, errno.EDQUOT)

Answer = Callable[[str | None, dict[str, Any]], None]
Work = Generator[Callable[[], None] | None, None, SnapshotReport]


@dataclass
class Job:
    """A snapshot that is to be taken; `answer` gets an error or None, and the report."""

    databases: list[int] | None
    reclaim: bool
    answer: Answer | None = None
    began: float = 0.0
    log_bytes: int = 0
    work: Work | None = field(default=None, repr=False)


class Snapshotting:
    """The snapshots of one storage writer.

    Attributes:
        held_seq: the files hold all entries up to here, durably. While a snapshot runs, its own position runs ahead.
        log_bytes: how much log they do not hold.
        last: what became of the last snapshot.

    Args:
        snapshots: takes them.
        config: when.
        loop: gives the slices.
        threads: for what blocks.
        log: a structlog logger.
        make_durable: makes the log durable as far as it goes; returns its last seq.
        log_bytes: how much log the files do not hold yet.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        config: StorageConfig,
        loop: Loop,
        threads: ThreadPoolExecutor,
        log: Any,
        make_durable: Callable[[], int],
        log_bytes: int,
    ) -> None:
        self.snapshots = snapshots
        self.log_bytes = log_bytes
        self.held_seq = snapshots.position
        self.last: dict[str, Any] = {}
        self._config = config
        self._loop = loop
        self._threads = threads
        self._log = log
        self._make_durable = make_durable
        self._waiting: deque[Job] = deque()
        self._job: Job | None = None
        self._due = time.monotonic() + config.snapshot_interval_s
        self._not_before = 0.0

    def ask(self, databases: list[int] | None, reclaim: bool, answer: Answer) -> None:
        """Somebody wants a snapshot."""
        self._waiting.append(Job(databases, reclaim, answer))
        self._next()

    def appended(self, size: int) -> None:
        """The log has grown."""
        self.log_bytes += size

    def tick(self) -> None:
        """Asks for a snapshot when it is time for one."""
        now = time.monotonic()
        if self._job is not None or self._waiting or now < self._not_before:
            return
        timed = self._config.snapshot_interval_s > 0 and now >= self._due
        if self.log_bytes and (timed or self.log_bytes >= self._config.snapshot_log_bytes):
            self._waiting.append(Job(None, False))
            self._next()

    def describe(self) -> dict[str, Any]:
        """For `status`."""
        return {
            **self.snapshots.describe(),
            "running": self._job is not None,
            "waiting": len(self._waiting),
            "log_bytes_since": self.log_bytes,
        }

    def story(self) -> str:
        """One line about where it stands."""
        return f"running {self._job}, waiting {len(self._waiting)}, last {self.last}"

    def _next(self) -> None:
        if self._job is not None or not self._waiting:
            return
        job = self._job = self._waiting.popleft()
        job.began = time.monotonic()
        job.log_bytes = self.log_bytes
        job.work = self.snapshots.take(job.databases, job.reclaim, self._make_durable())
        self._loop.in_background(self._slice)

    def _slice(self) -> bool:
        """Runs the snapshot up to its next pause; False while it needs no more slices."""
        job = self._job
        assert job is not None
        assert job.work is not None
        try:
            blocking = next(job.work)
        except StopIteration as end:
            self._taken(job, end.value)
        except OSError as error:
            self._failed(job, error)
        else:
            if blocking is None:
                return True
            self._threads.submit(blocking).add_done_callback(
                lambda future: self._loop.call_soon_threadsafe(lambda: self._unblocked(future))
            )
        return False

    def _unblocked(self, future: Future[None]) -> None:
        """A blocking call has returned."""
        assert self._job is not None
        error = future.exception()
        if error is None:
            self._loop.in_background(self._slice)
        elif isinstance(error, OSError):
            self._failed(self._job, error)
        else:
            raise error

    def _taken(self, job: Job, report: SnapshotReport) -> None:
        self.held_seq = self.snapshots.position
        if self.held_seq >= report.seq:  # else some database still needs that log
            self.log_bytes -= job.log_bytes
        told = {**report.describe(), "seconds": round(time.monotonic() - job.began, 4)}
        self.last = {**told, "unix_ms": time.time_ns() // 1_000_000}
        self._log.info("snapshot", **told)
        self._end(job, None, told)
        self._reclaim_what_is_wasted(job)
        self._next()

    def _failed(self, job: Job, error: OSError) -> None:
        """Gives up a snapshot that found no room; anything else that a disk says ends the process."""
        if error.errno not in FULL_ERRNOS:
            raise error
        assert job.work is not None
        job.work.close()
        self.snapshots.open()
        text = f"the snapshot found no room: {error.strerror}"
        self.last = {**self.last, "error": text, "error_unix_ms": time.time_ns() // 1_000_000}
        self._log.error("snapshot_failed", reason=text)
        self._not_before = time.monotonic() + RETRY_S
        self._end(job, text, {})
        self._next()

    def _end(self, job: Job, error: str | None, told: dict[str, Any]) -> None:
        self._job = None
        self._due = time.monotonic() + self._config.snapshot_interval_s
        if job.answer is not None:
            job.answer(error, told)

    def _reclaim_what_is_wasted(self, job: Job) -> None:
        ratio = self._config.reclaim_ratio
        if ratio and not job.reclaim:
            wasted = self.snapshots.wasteful(ratio)
            if wasted:
                self._waiting.append(Job(wasted, True))
