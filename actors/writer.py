"""The storage writer: the only process that writes the files of a data directory.

It subscribes to the node's op stream, appends what arrives to the oplog, makes it durable as the policy says, and says so
on the ack channel: one append, one sync, one message a turn, however many entries were waiting. Snapshots are taken in
slices between the commits; their blocking calls run in a thread.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actors import sockets
from actors.child import Child, run_child
from nun import messages as m
from nun.codec import pack, unpack
from nun.core.commit import Commit
from nun.errors import StorageError
from nun.position import Position
from storage.directory import DataDirectory
from storage.oplog import LogReader, Oplog
from storage.snapshot import SnapshotReport, Snapshots

TICK_S: Final = 0.05
DISK_RETRY_S: Final = 0.5
EXIT_CANNOT_START: Final = 3


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Writer:
    """The storage writer of one node."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.log = child.log
        self.loop = child.loop
        storage = child.config.storage
        self.directory = DataDirectory.open(Path(child.config.node.data_dir))
        identity = self.directory.begin_start()
        disk = self.directory.disk
        self.oplog = Oplog.open(
            disk, storage.segment_bytes, storage.oplog_bytes, damage=storage.damage
        )
        if self.oplog.torn_bytes or self.oplog.moved_aside:
            self.log.warning(
                "log_cut", torn_bytes=self.oplog.torn_bytes, moved_aside=self.oplog.moved_aside
            )
        self.snapshots = Snapshots(disk, LogReader(disk))
        self.snapshots.open()
        self.commit = Commit(self.oplog.last, storage.fsync, storage.fsync_interval_ms)
        self.threads = ThreadPoolExecutor(2, thread_name_prefix="disk")
        self.waiting: list[tuple[Position, bytes]] = []  # taken, and not appended: the disk is full
        self.full = False
        self.retry_at = 0.0
        self.making_spare = False
        self.jobs: deque[Job] = deque()
        self.job: Job | None = None
        self.job_blocked = False
        self.last_snapshot: dict[str, Any] = {}
        self.snapshot_due = time.monotonic() + storage.snapshot_interval_s
        self.log_bytes_since_snapshot = 0
        self.network_follows = False
        self.stream = sockets.op_stream_subscriber(child.context, child.run_dir)
        self.acks = sockets.op_acks_dealer(child.context, child.run_dir)
        self.loop.on_readable(self.stream, self.stream_readable)
        self.loop.on_readable(self.acks, self.acks_readable)
        self.loop.every(TICK_S, self.tick)
        child.on_stop(self.stop)
        self.tell(
            (m.RECOVERED, identity.cluster_id, identity.node, identity.start, self.oplog.last)
        )

    def tell(self, message: tuple[Any, ...]) -> None:
        """Sends a message to the network process."""
        sockets.send_frame(self.acks, pack(message))

    # Entries

    def stream_readable(self) -> bool:
        frames = []
        while (frame := sockets.receive_frame(self.stream)) is not None:
            frames.append(frame)
        self.take(frames)
        return True

    def take(self, frames: list[bytes]) -> None:
        """Appends, syncs and announces what is new in these frames."""
        taken = self.commit.take(frames)
        if taken:
            self.waiting += taken
            self.append()
        gap = self.commit.gap(_now_ms())
        if gap is not None:
            self.log.warning("gap", from_seq=gap)
            self.tell((m.GAP, gap))

    def append(self) -> None:
        if not self.waiting or (self.full and time.monotonic() < self.retry_at):
            return
        try:
            self.oplog.append(self.waiting)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.retry_at = time.monotonic() + DISK_RETRY_S
            self.disk_is(True, f"the log cannot grow: {error.strerror}")
            return
        self.disk_is(False, "there is room again")
        self.commit.was_appended(self.waiting[-1][0])
        self.log_bytes_since_snapshot += sum(len(frame) for _, frame in self.waiting)
        self.waiting = []
        self.sync()

    def sync(self) -> None:
        if self.commit.wants_sync(_now_ms()):
            appended = self.commit.appended
            self.oplog.sync()
            self.commit.was_synced(appended, _now_ms())
        durable = self.commit.durable()
        if durable is not None:
            self.tell((m.DURABLE, *durable))

    def disk_is(self, full: bool, text: str) -> None:
        if full != self.full:
            self.full = full
            self.tell((m.DISK, full, text))
            self.log.warning("disk_full" if full else "disk_has_room", detail=text)

    # The network process

    def acks_readable(self) -> bool:
        while (frame := sockets.receive_frame(self.acks)) is not None:
            message = unpack(frame)
            kind = message[0]
            if kind == m.SUBSCRIBED:
                self.network_follows = True
            elif kind == m.ENTRIES:
                self.take(message[1])
            elif kind == m.TAKE_SNAPSHOT:
                _, ticket, databases, reclaim = message
                self.jobs.append(Job(ticket, databases, reclaim))
            elif kind == m.ASK_STORAGE:
                self.tell((m.STORAGE, message[1], self.describe()))
        self.run_jobs()
        return True

    def describe(self) -> dict[str, Any]:
        """What `status` tells of the files."""
        return {
            "fsync": self.commit.policy,
            "oplog": self.oplog.describe(),
            "snapshots": self.snapshots.describe(),
            "last_snapshot": self.last_snapshot,
            "log_bytes_since_snapshot": self.log_bytes_since_snapshot,
            "disk_full": self.full,
            "disk_free_bytes": self.directory.disk.free_bytes(),
        }

    # Snapshots

    def run_jobs(self) -> None:
        """Gives the present snapshot a slice, or begins the next."""
        if self.job is None and self.jobs and self.network_follows:
            self.begin(self.jobs.popleft())
        if self.job is not None and not self.job_blocked:
            self.slice(self.job)

    def begin(self, job: Job) -> None:
        durable = self.commit.synced if self.commit.policy == "always" else self.commit.appended
        if self.commit.policy != "always" and self.commit.appended != self.commit.synced:
            self.oplog.sync()
            self.commit.was_synced(self.commit.appended, _now_ms())
        job.began = time.monotonic()
        job.log_bytes = self.log_bytes_since_snapshot
        job.work = self.snapshots.take(
            job.databases, job.reclaim, durable.seq if durable is not None else 0
        )
        self.job = job

    def slice(self, job: Job) -> None:
        """Runs the snapshot up to its next pause."""
        assert job.work is not None
        try:
            blocking = next(job.work)
        except StopIteration as end:
            self.done(job, end.value, None)
        except OSError as error:
            self.done(job, None, f"the snapshot failed: {error.strerror or error}")
        else:
            if blocking is None:
                self.loop.call_soon_threadsafe(self.run_jobs)
            else:
                self.job_blocked = True
                self.threads.submit(blocking).add_done_callback(self.unblocked)

    def unblocked(self, future: Future[None]) -> None:
        """In a thread: the blocking call of a snapshot has returned."""

        def go_on() -> None:
            self.job_blocked = False
            job = self.job
            error = future.exception()
            if job is None or error is None:
                self.run_jobs()
            elif isinstance(error, OSError):
                self.done(job, None, f"the snapshot failed: {error.strerror or error}")
            else:
                raise error

        self.loop.call_soon_threadsafe(go_on)

    def done(self, job: Job, report: SnapshotReport | None, error: str | None) -> None:
        self.job = None
        seconds = round(time.monotonic() - job.began, 4)
        if report is not None:
            self.log_bytes_since_snapshot -= job.log_bytes
            told = {**report.describe(), "seconds": seconds}
            self.last_snapshot = {**told, "unix_ms": time.time_ns() // 1_000_000}
            self.log.info("snapshot", **told)
            self.oplog.trim(self.snapshots.position + 1)
        else:
            told = {}
            self.last_snapshot = {**self.last_snapshot, "error": error}
            self.log.error("snapshot_failed", reason=error)
            self.snapshots.open()
        if job.ticket is not None:
            self.tell((m.SNAPSHOT_TAKEN, job.ticket, error, told))
        self.snapshot_due = time.monotonic() + self.child.config.storage.snapshot_interval_s
        self.reclaim_when_wasteful()
        self.run_jobs()

    def reclaim_when_wasteful(self) -> None:
        ratio = self.child.config.storage.reclaim_ratio
        wasteful = self.snapshots.wasteful(ratio) if ratio else []
        if wasteful and not self.jobs:
            self.jobs.append(Job(None, wasteful, True))

    # Time

    def tick(self) -> None:
        now = time.monotonic()
        storage = self.child.config.storage
        self.append()
        self.sync()
        if not self.jobs and self.job is None and self.log_bytes_since_snapshot:
            timed = storage.snapshot_interval_s and now >= self.snapshot_due
            if timed or self.log_bytes_since_snapshot >= storage.snapshot_log_bytes:
                self.jobs.append(Job(None, None, False))
        if self.oplog.wants_spare and not self.making_spare and self.network_follows:
            self.making_spare = True
            self.threads.submit(self.oplog.prepare_spare).add_done_callback(self.spare_made)
        self.run_jobs()

    def spare_made(self, future: Future[None]) -> None:
        """In a thread: the next segment of the log is ready, or there is no room for it."""

        def note() -> None:
            self.making_spare = False
            error = future.exception()
            if isinstance(error, OSError):
                self.log.warning("no_spare_segment", reason=error.strerror)
                self.making_spare = True
                self.loop.after(DISK_RETRY_S, self.spare_again)
            elif error is not None:
                raise error

        self.loop.call_soon_threadsafe(note)

    def spare_again(self) -> None:
        self.making_spare = False

    # The end

    def stop(self) -> None:
        """Closes the log behind what was taken; the last snapshot was taken before, on the network process's word."""
        self.take([])
        self.oplog.close()
        self.directory.close()
        self.loop.stop()


@dataclass
class Job:
    """A snapshot that is to be taken: for a client (ticket), or by the writer's own rules."""

    ticket: int | None
    databases: list[int] | None
    reclaim: bool
    work: Generator[Callable[[], None] | None, None, SnapshotReport] | None = None
    began: float = 0.0
    log_bytes: int = 0


def make(child: Child) -> Writer | None:
    """Starts the storage writer, or says why it cannot."""
    try:
        return Writer(child)
    except StorageError as error:
        child.fail(str(error), EXIT_CANNOT_START)
    except OSError as error:
        child.fail(
            f"data directory {child.config.node.data_dir!r} cannot be used: {error}",
            EXIT_CANNOT_START,
        )
    return None


if __name__ == "__main__":
    run_child(make)
