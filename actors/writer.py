"""The storage writer: the only process that writes the files of a data directory.

It subscribes to the node's op stream, appends what arrives to the oplog, makes it durable as the policy says, and
says so on the ack channel: one append, one sync, one message a turn, however many entries were waiting
(nun/core/commit.py decides). Snapshots run beside that (actors/snapshotting.py). Its life:

    lock the directory, raise `start`  ->  recover log and files  ->  RECOVERED  ->  SUBSCRIBED: snapshots may begin
    ->  commit  ->  STOP: sync, close, exit 0

In a cluster entries come from the replicator too, and it asks for what only this process may do: keep promises and the
identity, cut the log, take in another node's files (actors/keeping.py).

A full disk is told to the network process, which then refuses writes: when an append found no room (the same
entries are tried again until there is some), and before that, when the log's next segment cannot be made ready.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn

from actors import sockets
from actors.child import EXIT_CANNOT_START, Child, run_child
from actors.keeping import Keeping
from actors.snapshotting import FULL_ERRNOS, Snapshotting
from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core.commit import Commit
from nun.errors import DamagedFile, StorageError
from nun.limits import DRAIN_BYTES_MAX, DRAIN_MESSAGES_MAX
from nun.position import Position
from storage import copying
from storage.directory import DataDirectory, Identity
from storage.manifest import read_state
from storage.oplog import LogReader, Oplog
from storage.snapshot import Snapshots

TICK_S: Final = 0.1
DISK_RETRY_S: Final = 0.5
GARBAGE_S: Final = 10.0
LOG_HAS_ROOM: Final = 0.9  # of what it may hold for members that are away, before writes go on
_THREADS: Final = 2  # a snapshot's syncs, and the next segment of the log


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Writer:
    """The storage writer of one node."""

    def __init__(self, child: Child, directory: DataDirectory) -> None:
        self.child = child
        self.directory = directory
        self.log = child.log
        self.loop = child.loop
        self.loop.story = self.story
        storage = child.config.storage
        self.clustered = bool(child.config.replication.listen)
        identity = directory.begin_start(alone=not self.clustered)
        disk = directory.disk
        if self.clustered and copying.finish(disk):
            self.log.info("copy_taken_over")
        self.snapshots = Snapshots(disk, LogReader(disk))
        self.snapshots.open()
        self.check_place(identity)
        if self.snapshots.finished:
            self.log.info("snapshot_finished", files=self.snapshots.finished)
        self.oplog = self.open_log()
        self.commit = Commit(self.oplog.last, storage.fsync, storage.fsync_interval_ms)
        self.waiting: list[tuple[Position, bytes]] = []  # taken, and the disk had no room for them
        self.log_full = False
        self.full: dict[str, str] = {}  # why the disk counts as full, by what found no room
        self.following = False  # whether the network process has this writer on its stream
        self.making_spare = False
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="disk")
        self.snapshotting = Snapshotting(
            self.snapshots,
            storage,
            self.loop,
            self.threads,
            self.log,
            self.may_snapshot,
            self.log_bytes_behind(),
        )
        self.stream = sockets.op_stream_subscriber(child.context, child.run_dir)
        self.acks = sockets.op_acks_dealer(child.context, child.run_dir)
        self.keeping: Keeping | None = None
        if self.clustered:
            sockets.subscribe_to_replica_stream(self.stream, child.run_dir)
            self.keeping = Keeping(self, identity)
        self.loop.on_readable(self.stream, self.stream_readable)
        self.loop.on_readable(self.acks, self.acks_readable)
        self.loop.every(TICK_S, self.tick)
        if storage.fsync == "interval":
            self.loop.every(storage.fsync_interval_ms / 1_000, self.sync)
        child.on_stop(self.stop)
        self.leave_garbage_alone()
        last = self.oplog.last
        if identity.node and (self.keeping is None or self.keeping.copy is None):
            self.tell_recovered(identity)
        self.log.info(
            "recovered",
            start=identity.start,
            position=None if last is None else str(last),
            log_bytes=self.oplog.size,
        )

    def check_place(self, identity: Identity) -> None:
        """Files of NunDB begin a cluster, they do not join one. Raises StorageError."""
        config = self.child.config
        first = config.replication.primary
        joins = self.clustered and not identity.node and config.node.name != first
        if joins and self.snapshots.from_nundb:
            raise StorageError(
                f"files of NunDB are in the directory of a node that joins a cluster; expected an empty one: start "
                f"{first!r}, the first primary, on them, or import them into a running cluster"
            )

    def tell_recovered(self, identity: Identity) -> None:
        """Lets the network process load."""
        _, number, start, directory, _ = identity
        last = self.oplog.last
        self.tell((m.RECOVERED, identity.cluster_id, number, start, last, directory))

    def open_log(self) -> Oplog:
        """Recovers the log. It must reach as far as the files do, for no snapshot holds what was not durable in it."""
        storage = self.child.config.storage
        oplog = Oplog.open(
            self.directory.disk,
            storage.segment_bytes,
            storage.oplog_bytes,
            damage=storage.damage,
            check_from_seq=self.snapshots.position + 1,
        )
        if oplog.torn_bytes or oplog.moved_aside:
            self.log.warning(
                "log_cut",
                torn_bytes=oplog.torn_bytes,
                moved_aside=oplog.moved_aside,
                damage=oplog.damage,
            )
        files = self.last_of_files()
        last_seq = 0 if oplog.last is None else oplog.last.seq
        if files is not None and files.seq > last_seq:
            if copying.was_taken(self.directory.disk):
                oplog.start_after(files)
                return oplog
            if storage.damage == "refuse":
                raise DamagedFile(
                    "oplog",
                    0,
                    f"the log ends at seq {last_seq}, expected at least {files.seq}, which the files "
                    'hold; storage.damage = "keep-prefix" goes on from the files',
                )
            self.log.warning("log_begins_anew", behind=str(files), log_ended_at=last_seq)
            oplog.start_after(files)
        elif last_seq:
            copying.settled_in(self.directory.disk)
        return oplog

    def last_of_files(self) -> Position | None:
        """The last entry that any of the files holds."""
        found = read_state(self.directory.disk)
        position = None if found is None else found[0].position
        if position is None:
            return None
        databases = self.snapshots.describe()["databases"].values()
        return position._replace(seq=max(position.seq, *(known["seq"] for known in databases), 0))

    def story(self) -> str:
        """One line about where it stands."""
        commit = self.commit
        return (
            f"received {commit.received}, appended {commit.appended}, synced {commit.synced}, "
            f"waiting {len(self.waiting)}, full {self.full}, snapshot {self.snapshotting.story()}"
        )

    def tell(self, message: tuple[Any, ...]) -> None:
        """Sends a message to the network process."""
        sockets.send_frame(self.acks, pack(message))

    # Entries

    def stream_readable(self) -> bool:
        """One turn: drain what was published, append it, sync, announce."""
        frames: list[bytes] = []
        items: list[tuple[int, bytes]] = []
        size = 0
        for frame in sockets.frames(self.stream):
            if fx.is_item(frame):
                items.append(fx.decode_item(frame))
            else:
                frames.append(frame)
            size += len(frame)
            if len(frames) + len(items) >= DRAIN_MESSAGES_MAX or size >= DRAIN_BYTES_MAX:
                break
        if items and self.keeping is not None:
            self.keeping.keep_items(items)
        return self.take(frames) or bool(items)

    def take(self, frames: Sequence[bytes]) -> bool:
        """Appends, syncs and announces what is new in these frames."""
        taken = self.commit.take(frames)
        if taken:
            self.waiting = self.waiting + taken if self.waiting else taken
            if "log" not in self.full:  # else its next try is set
                self.append()
        gap = self.commit.gap(_now_ms())
        if gap is not None:
            self.log.warning("gap", from_seq=gap)
            self.tell((m.GAP, gap))
            if self.keeping is not None:
                self.keeping.tell((m.GAP, gap))
        return bool(taken)

    def append(self) -> None:
        """Appends what waits. When there is no room, this comes again until there is."""
        entries = self.waiting
        try:
            self.oplog.append(entries)
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            self.found_no_room("log", f"the log cannot grow: {error.strerror}")
            self.loop.after(DISK_RETRY_S, self.append)
            return
        self.waiting = []
        self.commit.was_appended(entries[-1][0])
        self.snapshotting.appended(sum(len(frame) for _, frame in entries))
        self.sync()
        self.make_spare_if_wanted()
        if self.full:
            self.found_room("log")

    def sync(self) -> None:
        """Syncs if the policy wants it now, and announces what is durable. A sync that fails ends the process."""
        commit = self.commit
        if commit.wants_sync(_now_ms()):
            self.sync_log()
        durable = commit.durable()
        if durable is not None:
            self.tell((m.DURABLE, *durable))
            if self.keeping is not None:
                self.keeping.tell((m.DURABLE, *durable))
            if self.child.debug:
                self.log.debug("durable", position=str(durable))

    def sync_log(self) -> None:
        appended = self.commit.appended
        self.oplog.sync()
        self.commit.was_synced(appended, _now_ms())

    def make_durable(self) -> int:
        """Whatever the policy, all that was appended is durable after this; returns its last seq."""
        if self.commit.synced != self.commit.appended:
            self.sync_log()
        return 0 if self.commit.synced is None else self.commit.synced.seq

    def may_snapshot(self) -> int:
        """The last entry that a snapshot may hold: durable, and in a cluster settled, so that it is never cut.

        Where files of NunDB came first, other nodes have to be given a snapshot before they can have any entry: the
        first belongs to the files.
        """
        durable = self.make_durable()
        if self.keeping is None:
            return durable
        first = 1 if self.snapshots.from_nundb else 0
        return min(durable, max(self.keeping.settled, first))

    # The network process

    def acks_readable(self) -> bool:
        for frame in sockets.frames(self.acks):
            message = unpack(frame)
            match message:
                case [m.ENTRIES, list() as frames]:
                    self.take(frames)
                case [m.SUBSCRIBED, _]:
                    self.following = True
                case [m.TAKE_SNAPSHOT, ticket, databases, reclaim]:
                    self.snapshotting.ask(databases, reclaim, self.answer(ticket))
                case [pm.OUTBOX_DONE, number] if self.keeping is not None:
                    self.keeping.outbox.done(number)
                case [m.ASK_STORAGE, ticket]:
                    self.tell((m.STORAGE, ticket, self.describe()))
        return True

    def answer(self, ticket: int) -> Callable[[str | None, dict[str, Any]], None]:
        return lambda error, report: self.tell((m.SNAPSHOT_TAKEN, ticket, error, report))

    def describe(self) -> dict[str, Any]:
        """What `status` tells of the files."""
        return {
            "data_dir": str(self.directory.path),
            "fsync": self.commit.policy,
            "oplog": self.oplog.describe(),
            "snapshots": self.snapshotting.describe(),
            "last_snapshot": self.snapshotting.last,
            "disk_full": "; ".join(self.full.values()) or None,
            "disk_free_bytes": self.directory.disk.free_bytes(),
        }

    # Room on the disk

    def found_no_room(self, what: str, text: str) -> None:
        if not self.full:
            self.log.error("disk_full", reason=text)
            self.tell((m.DISK, True, text))
        self.full[what] = text

    def found_room(self, what: str) -> None:
        if self.full.pop(what, None) is not None and not self.full:
            self.log.info("disk_has_room")
            self.tell((m.DISK, False, ""))

    def make_spare_if_wanted(self) -> None:
        """Called after every append: that there is no room must show while the present segment has some."""
        if self.following and self.oplog.wants_spare and not self.making_spare:
            self.make_spare()

    def make_spare(self) -> None:
        """Has the next segment of the log made ready, in a thread."""
        self.making_spare = True
        self.threads.submit(self.oplog.prepare_spare).add_done_callback(
            lambda future: self.loop.call_soon_threadsafe(lambda: self.spare_made(future))
        )

    def spare_made(self, future: Future[None]) -> None:
        error = future.exception()
        if error is None:
            self.making_spare = False
            self.found_room("spare")
        elif isinstance(error, OSError) and error.errno in FULL_ERRNOS:
            self.found_no_room("spare", f"the log's next segment cannot be made: {error.strerror}")
            self.loop.after(DISK_RETRY_S, self.make_spare)
        else:
            raise error

    # Time

    def tick(self) -> None:
        """What is looked at again and again."""
        if not self.following:
            return
        if self.keeping is None or not self.keeping.held:
            self.snapshotting.tick()
            self.oplog.trim(self.snapshotting.held_seq + 1)
        self.make_spare_if_wanted()
        if self.keeping is not None:
            self.watch_unsettled()

    def watch_unsettled(self) -> None:
        """What no majority has must stay in the log: when that is too much, writes have to wait."""
        assert self.keeping is not None
        behind = self.log_bytes_above(self.keeping.settled)
        bound = self.child.config.storage.oplog_bytes
        full = behind > bound * (LOG_HAS_ROOM if self.log_full else 1.0)
        if full != self.log_full:
            self.log_full = full
            self.tell((m.UNSETTLED, full, behind))

    def log_bytes_behind(self) -> int:
        """About how much of the log the files do not hold yet."""
        return self.log_bytes_above(self.snapshots.position)

    def log_bytes_above(self, seq: int) -> int:
        """About how much of the log lies above an entry."""
        last, first = self.oplog.last, self.oplog.first_seq
        if last is None or not first:
            return 0
        behind = max(last.seq - max(seq, first - 1), 0)
        return self.oplog.size * behind // (last.seq - first + 1)

    def leave_garbage_alone(self) -> None:
        """Keeps the collector from walking the whole index of keys: only what is young is looked at, now and then."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self.loop.every(GARBAGE_S, lambda: gc.collect(1))

    # The end

    def stop(self) -> None:
        """Syncs and closes the log. The last snapshot was taken before, on the network process's word."""
        self.stream_readable()
        self.oplog.close()
        self.directory.close()
        self.loop.stop()


def make(child: Child) -> Writer | None:
    """Starts the storage writer, or says why it cannot."""
    directory: DataDirectory | None = None
    try:
        directory = DataDirectory.open(Path(child.config.node.data_dir))
        return Writer(child, directory)
    except StorageError as error:
        child.fail(str(error), EXIT_CANNOT_START)
    except OSError as error:
        found = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        child.fail(
            f"data directory {child.config.node.data_dir!r} cannot be used: {found}",
            EXIT_CANNOT_START,
        )
    if directory is not None:
        directory.close()
    return None


def main() -> NoReturn:
    """The process: see the module's docstring."""
    run_child(make)


if __name__ == "__main__":
    main()
