"""What the storage writer does for the replicator: promises, the identity, the cut of the log, held and copied files.

I1  KEPT without an error means: it is on disk.
I2  After a cut or a copy this process writes nothing more: the node goes on from disk, in new processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors import sockets
from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core.history import common_seq
from nun.core.proposals.outbox import items_of_entries
from nun.core.state import NodeState
from nun.errors import StorageError
from nun.position import NOTHING, Epoch, Position
from storage import copying
from storage.directory import Identity
from storage.disk import Disk
from storage.manifest import read_state
from storage.oplog import LogReader
from storage.outbox import Outbox
from storage.recovery import entries

if TYPE_CHECKING:
    from actors.writer import Writer


class Keeping:
    """The writer's end of its channel with the replicator.

    Attributes:
        settled: what a majority has on disk, as the replicator said; snapshots hold no more.
        outbox: what this node has taken and the primary has not settled.
        copy: the copy that is being received: its id, and how much of each file is here.
        held: whether files and log are to stay as they are, for somebody who copies them.
    """

    def __init__(self, writer: Writer, identity: Identity) -> None:
        self._writer = writer
        self._identity = identity
        self._held_until = 0.0
        self._outdated = ""  # why what is in memory is no longer what is on disk
        self.copy = copying.in_progress(writer.directory.disk)
        self.outbox = Outbox(writer.directory.disk)
        self.settled = writer.snapshots.position
        self._socket = sockets.replica_acks_dealer(writer.child.context, writer.child.run_dir)
        writer.loop.on_readable(self._socket, self._readable)
        self._tell_state()

    @property
    def held(self) -> bool:
        return time.monotonic() < self._held_until

    def tell(self, message: tuple[Any, ...]) -> None:
        """Sends a message to the replicator."""
        sockets.send_frame(self._socket, pack(message))

    def _tell_state(self) -> None:
        writer, identity = self._writer, self._identity
        # The files of one database may be ahead of the position that all of them have.
        files = writer.last_of_files()
        self.tell(
            (
                pm.WRITER_STATE,
                identity.cluster_id or None,
                identity.node,
                identity.start,
                identity.directory,
                identity.promise,
                writer.commit.stored,
                self._first_seq(),
                writer.snapshots.position if files is None else files.seq,
                self.copy,
            )
        )

    def _first_seq(self) -> int:
        """From where on the log is all that another node needs: not from its beginning, where files came first."""
        writer = self._writer
        return max(writer.oplog.first_seq, 2 if writer.snapshots.from_nundb else 0)

    def _readable(self) -> bool:
        while (frame := sockets.receive_frame(self._socket)) is not None:
            self._hear(unpack(frame))
        return True

    def _hear(self, message: list[Any]) -> None:
        writer = self._writer
        disk = writer.directory.disk
        match message:
            case [m.ENTRIES, list() as frames]:
                writer.take(frames)
            case [pm.SETTLED, seq]:
                self.settled = max(seq, self.settled)
            case [pm.FENCE, epoch, first_seq]:
                self._fence(Epoch(*epoch), first_seq)
            case [pm.ASK_WRITER_STATE]:
                self._asked()
            case [pm.KEEP_PROMISE, ticket, reign, number]:
                self._keep(ticket, lambda: self._promise(reign, number))
            case [pm.BECOME, ticket, cluster_id, number]:
                self._keep(ticket, lambda: self._become(cluster_id, number))
            case [pm.HOLD, ticket, seconds]:
                self._hold(ticket, seconds)
            case [pm.COPY_BEGIN, ticket, copy_id, _, files]:
                listed = [(name.decode(), size) for name, size in files]
                self._keep(ticket, lambda: copying.begin(disk, copy_id, listed))
            case [pm.COPY_DATA, ticket, file, offset, data]:
                self._keep(ticket, lambda: copying.put(disk, file.decode(), offset, data))
            case [pm.COPY_END, ticket]:
                self._keep(ticket, self._end_copy)
            case [pm.COPY_DROP, ticket]:
                self._keep(ticket, self._drop_copy)
            case [pm.CUT, ticket, common, epoch]:
                self._keep(ticket, lambda: self._cut(common, Epoch(*epoch)))

    def _asked(self) -> None:
        """A replicator has just started. The one before it may have died before it heard what it was to restart for."""
        if self._outdated:
            self._writer.child.ask_restart(self._outdated)
        else:
            self._tell_state()

    def _fence(self, epoch: Epoch, first_seq: int) -> None:
        """Keeps older epochs out from here on. What came in before and should not have is cut after a start anew."""
        writer = self._writer
        writer.commit.fence.set(epoch, first_seq)
        last = writer.commit.received
        if last is not None and last.seq >= first_seq and last.epoch < epoch:
            writer.child.ask_restart(f"{last} is not of the history that is followed, {epoch}")

    def _keep(self, ticket: int, work: Callable[[], None]) -> None:
        """Does it, and says what became of it. A sync that failed ends the process, as everywhere."""
        try:
            work()
        except StorageError as error:
            self.tell((pm.KEPT, ticket, str(error)))
        else:
            self.tell((pm.KEPT, ticket, None))

    def keep_items(self, items: list[tuple[int, bytes]]) -> None:
        """Makes items of the outbox durable, and says so; after a lost one the others wait until it comes again."""
        following = self.outbox.following
        fresh: list[tuple[int, bytes]] = []
        for number, item in items:
            if number == following + len(fresh):
                fresh.append((number, item))
        self.outbox.append(fresh)
        self._writer.tell((pm.OUTBOX_DURABLE, self.outbox.following - 1))

    def _hold(self, ticket: int, seconds: float) -> None:
        """Keeps files and log as they are for a while; they are made complete before that, if they were not held."""
        if self.held:
            self._tell_held(ticket, seconds)
        else:
            self._writer.snapshotting.ask(None, False, lambda *_: self._tell_held(ticket, seconds))

    def _tell_held(self, ticket: int, seconds: float) -> None:
        """Of files that are not there, since a snapshot found no room, none are held: the next who asks has another."""
        writer = self._writer
        copy_id, files = copying.files_of(writer.directory.disk)
        if files:
            self._held_until = time.monotonic() + seconds
        self.tell((pm.HELD, ticket, copy_id, writer.snapshots.position, files))

    def _promise(self, reign: int, number: int) -> None:
        self._identity = self._writer.directory.keep_promise(reign, number)

    def _become(self, cluster_id: bytes, number: int) -> None:
        new = not self._identity.node
        self._identity = self._writer.directory.become(cluster_id, number)
        if new:
            self._writer.tell_recovered(self._identity)

    def _cut(self, common: int, epoch: Epoch) -> None:
        """Client writes above the common entry go to the outbox, and only then from the log (P1).

        What was handed down above it and has not come to the disk is forgotten with this process.
        """
        writer = self._writer
        writer.commit.fence.set(epoch, common + 1)
        last_seq = writer.make_durable()
        writer.loop.forget(writer.stream)
        if last_seq <= common:
            return
        state, names = state_at(writer.directory.disk, last_seq)
        count = self._propose_again(state, names, common, last_seq)
        if common and writer.oplog.first_seq > common:
            copying.begin_log_anew(writer.directory.disk)
        writer.oplog.truncate_after(common)
        self._outdated = f"the log was cut back to {common}"
        writer.log.warning("cut", common=common, last=last_seq, proposed_again=count)

    def _end_copy(self) -> None:
        copying.end(self._writer.directory.disk, self._give_up_for)
        self._outdated = "a copy has taken the place of files and log"

    def _drop_copy(self) -> None:
        copying.drop(self._writer.directory.disk)
        self._outdated = "the copy that was begun is not to be had any more"

    def _give_up_for(self, brought: NodeState) -> None:
        """Client writes of the log that a copy does not bring go to the outbox, before it takes the place of all (P1).

        Where the copy is of the same history, and ends earlier, they are recognised as done.
        """
        writer = self._writer
        last_seq = writer.make_durable()
        writer.loop.forget(writer.stream)
        if not writer.oplog.first_seq:
            return
        state, names = state_at(writer.directory.disk, last_seq)
        there = 0 if brought.position is None else brought.position.seq
        common = common_seq(state.epochs, last_seq, brought.epochs, there)
        if last_seq <= common:
            return
        first = max(common + 1, writer.oplog.first_seq)
        count = self._propose_again(state, names, first - 1, last_seq)
        writer.log.warning(
            "given_up_for_a_copy",
            common=common,
            first=first,
            last=last_seq,
            proposed_again=count,
        )

    def _propose_again(
        self, state: NodeState, names: dict[int, str], common: int, last_seq: int
    ) -> int:
        """Makes the client writes of the log above `common` items of the outbox, durably; how many they are."""
        epoch_there = state.epoch_of(common)
        end = NOTHING if epoch_there is None else Position.at(epoch_there, common)
        reader = LogReader(self._writer.directory.disk)
        items = items_of_entries(entries(reader, common + 1, last_seq), names, end)
        self.outbox.add(items)
        return len(items)


def state_at(disk: Disk, last_seq: int) -> tuple[NodeState, dict[int, str]]:
    """What files and log hold up to an entry, but for the records; and all databases that there were on the way.

    One that was dropped may be there still in the history that is followed from now on; or it is made again there, for
    that it was made is proposed again, though one entry made and dropped it.
    """
    found = read_state(disk)
    state = NodeState() if found is None else found[0]
    names = {number: info.name for number, info in state.databases.items()}
    files_seq = 0 if state.position is None else state.position.seq
    for position, effects in entries(LogReader(disk), files_seq + 1, last_seq):
        names |= {one[1]: one[2].decode() for one in effects if one[0] == fx.DATABASE}
        state.apply(position, effects)
    return state, names
