"""What a node does for those who follow it: marker, beats, parts of its log, copies; and it counts their disks.

Settled is the highest seq that a majority of the members has on disk, this node included. Only acks of this very epoch
count, and only from where it began: what an older epoch left on a few disks may still be cut.

I1  Settled never goes down within an epoch.
I2  What is served from the log is durable here; one encoding serves live and from the log: the entry's own bytes.
I3  Nobody who follows costs memory here: parts are read when they are asked for, as large as asked for within a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nun import peer_messages as pm
from nun.core import effects as fx
from nun.core.history import Began, common_seq
from nun.position import Epoch, Position

if TYPE_CHECKING:
    from nun.core.replication.replicator import ReplicatorCore

HOLD_S: Final = 60
READS_MAX: Final = 64  # reads of log and files that are under way
LIVE_NS: Final = 1_000_000_000  # a replica is live while its acks are no older
_BEAT_SOON_NS: Final = 5_000_000


class Acked:
    """How far one member's disk is, as it last said in this epoch."""

    __slots__ = ("applied", "at_ns", "durable", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.durable = 0
        self.applied = 0
        self.at_ns: int | None = None


class Serving:
    """The followed end.

    Attributes:
        settled: on a primary.
    """

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core
        self.settled = 0
        self._acked: dict[str, Acked] = {}
        self._told: tuple[Any, ...] = ()
        self._beat_ns = 0
        self._beat_wanted = False
        self._tickets = 0
        self._reads: dict[int, Callable[[Any], None]] = {}
        self._held: tuple[bytes, list[Any]] | None = None  # the copy that is held: id, files
        self._held_ns = 0
        self._wants_copy: list[bytes] = []  # routing ids
        self.gaps = 0

    # The stream

    def subscribed(self, topic: bytes) -> None:
        """Somebody has subscribed; a marker is answered on this very socket, after all that was sent before."""
        core = self._core
        if topic.startswith(pm.TOPIC_MARKER) and core.epoch is not None:
            core.out.publish.append((topic, fx.encode_marker(core.epoch, core.last_seq)))

    def began(self) -> None:
        """An epoch of this node's own has begun."""
        self._acked.clear()
        self.settled = 0
        self._told = ()
        self.count()

    def beat(self) -> None:
        """Says how far this primary is, when it is time or something has changed."""
        core = self._core
        if not core.leads or core.epoch is None:
            return
        wait_ns = _BEAT_SOON_NS if self._beat_wanted else core.settings.beat_ms * 1_000_000
        if core.now_ns - self._beat_ns >= wait_ns:
            self._beat_ns = core.now_ns
            self._beat_wanted = False
            beat = fx.encode_peer_beat(core.epoch, core.last_seq, core.durable_seq, self.settled)
            core.out.publish.append((pm.TOPIC_BEAT, beat))

    # Acks

    def ack(self, name: str, epoch: Epoch, durable: int, applied: int) -> None:
        """A member says how far its disk is, in the history that this node confirmed to it."""
        core = self._core
        if not core.leads or epoch != core.epoch or name not in core.member_names:
            return
        acked = self._acked.setdefault(name, Acked(core.number_of(name)))
        acked.at_ns = core.now_ns
        acked.applied = max(applied, acked.applied)
        if durable > acked.durable:
            acked.durable = min(durable, core.last_seq)
            self.count()

    def listed(self) -> None:
        """The member list was told: of a directory that has taken the place of another's nothing is known yet."""
        for name in list(self._acked):
            if self._acked[name].number != self._core.number_of(name):
                del self._acked[name]

    def acked_of(self, name: str) -> Acked | None:
        return self._acked.get(name)

    def count(self) -> None:
        """Counts disks anew, and tells who wants to know."""
        core = self._core
        if not core.leads or core.epoch is None or core.older(core.epoch):
            return  # what it promised may have been told already: nothing more is settled in its reign
        others = [name for name in core.member_names if name != core.settings.name]
        first = core.history[-1][1]
        known = {name: acked.durable for name, acked in self._acked.items()}
        replicas = sorted((known.get(name, 0) for name in others), reverse=True)
        disks = sorted([core.durable_seq, *replicas], reverse=True)
        # Its own disk is among them: a primary that starts anew goes on from that in the same reign.
        majority = min(disks[len(disks) // 2], core.durable_seq)
        if majority >= first and majority > self.settled:
            self.settled = majority
            core.tell_settled(majority)
            self._beat_wanted = True
        live = sum(
            acked.at_ns is not None and core.now_ns - acked.at_ns < LIVE_NS
            for name, acked in self._acked.items()
            if name in others
        )
        told = (self.settled, replicas, live)
        if told != self._told:
            self._told = told
            core.out.to_network.append((pm.ACKED, *told))

    def durable(self) -> None:
        """This node's own disk has more: replicas show nothing before they know that, so they are told at once."""
        self.count()
        self._beat_ns = 0
        self.beat()

    # Where somebody stands

    def stands(
        self, peer: bytes, name: str, last: Position | None, theirs: list[Began], floor: int
    ) -> None:
        """Compares histories: go on, cut back, or take a copy."""
        core = self._core
        if not core.leads and (core.promise is None or core.number_of(name) != core.promise[1]):
            core.refuse(peer, pm.STAND, 0, pm.PEER_NOT_PRIMARY, "it is not the primary")
            return
        if core.epoch is None:
            core.refuse(peer, pm.STAND, 0, pm.PEER_BUSY, "it has no entries yet")
            return
        last_seq = 0 if last is None else last.seq
        common = common_seq(core.history, core.last_seq, theirs, last_seq)
        reaches = common == core.last_seq or core.first_seq <= common + 1
        if not reaches or (common < last_seq and common < floor):
            answer: tuple[Any, ...] = (pm.COPY_FIRST, core.epoch)
        elif common == last_seq:
            answer = (pm.GO, core.epoch, common + 1, core.history[-1][1])
        else:
            answer = (pm.CUT_BACK, core.epoch, common)
        core.note("stands", level="debug", peer=name, last=last_seq, answer=answer[0])
        core.out.answers.append((peer, answer))

    # The log

    def fetch(self, peer: bytes, from_seq: int, size: int) -> None:
        """Reads a part of the log for somebody."""
        core = self._core
        epoch, durable = core.epoch, core.durable_seq
        if from_seq > durable:
            core.out.answers.append((peer, (pm.FETCHED, epoch, from_seq, [], durable)))
            return

        def read(frames: list[bytes] | None) -> None:
            if frames is None:
                core.first_seq = max(core.first_seq, from_seq + 1)
                core.out.answers.append((peer, (pm.COPY_FIRST, epoch)))
            else:
                core.out.answers.append(
                    (peer, (pm.FETCHED, epoch, from_seq, frames, core.durable_seq))
                )

        ticket = self._reading(peer, pm.FETCH, read)
        if ticket:
            size = min(max(size, 1), core.settings.fetch_bytes)
            core.out.log_reads.append((ticket, from_seq, size, durable))

    def _reading(self, peer: bytes, kind: int, read: Callable[[Any], None]) -> int:
        """A ticket for a read that is about to be made; 0 when too many are."""
        if len(self._reads) >= READS_MAX:
            self._core.refuse(peer, kind, 0, pm.PEER_BUSY, "too many reads are under way")
            return 0
        self._tickets += 1
        self._reads[self._tickets] = read
        return self._tickets

    def was_read(self, ticket: int, found: Any) -> None:
        """A read was made."""
        read = self._reads.pop(ticket, None)
        if read is not None:
            read(found)

    # Copies

    def copy_asked(self, peer: bytes) -> None:
        """Somebody wants a copy: the files are held as they are."""
        core = self._core
        if peer not in self._wants_copy:
            self._wants_copy.append(peer)
        core.out.to_writer.append((pm.HOLD, core.ticket(lambda _: None), HOLD_S))

    def held(self, copy_id: bytes, files: list[Any]) -> None:
        """The storage writer holds its files."""
        core = self._core
        self._held = (copy_id, files)
        self._held_ns = core.now_ns
        for peer in self._wants_copy:
            if files:
                told = (pm.COPY_FILES, core.epoch, copy_id, core.cluster_id, files)
                core.out.answers.append((peer, told))
            else:
                core.refuse(peer, pm.COPY_ASK, 0, pm.PEER_BUSY, "there is no snapshot yet")
        self._wants_copy.clear()

    def copy_wanted(self, peer: bytes, copy_id: bytes, file: str, offset: int, size: int) -> None:
        """Reads a part of a file that is held."""
        core = self._core
        if self._held is None or self._held[0] != copy_id:
            core.refuse(peer, pm.COPY_READ, 0, pm.PEER_NO_COPY, "that copy is not held")
            return
        if file not in [_text(name) for name, _ in self._held[1]] or offset < 0:
            core.refuse(peer, pm.COPY_READ, 0, pm.PEER_NO_COPY, "there is no such file in the copy")
            return
        if core.now_ns - self._held_ns > HOLD_S * 10**9 // 4:
            self._held_ns = core.now_ns
            core.out.to_writer.append((pm.HOLD, core.ticket(lambda _: None), HOLD_S))

        def read(data: bytes | None) -> None:
            if data is None:
                core.refuse(peer, pm.COPY_READ, 0, pm.PEER_NO_COPY, "that copy is not held")
            else:
                part = (pm.COPY_PART, core.epoch, copy_id, file, offset, data)
                core.out.answers.append((peer, part))

        ticket = self._reading(peer, pm.COPY_READ, read)
        if ticket:
            size = min(max(size, 1), core.settings.fetch_bytes)
            core.out.copy_reads.append((ticket, file, offset, size))

    # Time

    def tick(self) -> None:
        """Beats; counts who is live."""
        self.beat()
        self.count()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
