"""The replicator's core: which node is primary, what it and the others have, and what goes between them.

It owns no data. What it knows of its own node comes from the network process (history, members, role) and the storage
writer (disk, promise); entries pass through as bytes. Its rooms:

    peers       what is known of other nodes          following   a replica's way to the primary's entries
    serving     beats, log and copies for followers   filling     a copy of another node's files
    promotion   promises, and becoming primary        history     what two nodes have in common
    coordinator who is primary                        greeting    presence, clocks, what each node is
    relay       proposals and their decisions     predecessor what an earlier process of this node left behind

I1  Nothing from outside raises past an event: what is no message is counted and dropped (P8).
I2  Whatever was asked is asked again until it is answered or no longer wanted: any message may be lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nun import messages as m
from nun import peer_messages as pm
from nun.core import effects as fx
from nun.core.history import Began, Digest, digest_from, epoch_from, history_from, position_from
from nun.core.replication.cluster_view import ClusterView
from nun.core.replication.coordinator import Coordinator
from nun.core.replication.echoes import Echoes
from nun.core.replication.filling import Filling
from nun.core.replication.following import Following
from nun.core.replication.greeting import Greetings
from nun.core.replication.peers import Peer
from nun.core.replication.predecessor import Predecessor
from nun.core.replication.promotion import Promotion
from nun.core.replication.relay import Relay
from nun.core.replication.serving import Serving
from nun.core.settings import ReplicatorSettings
from nun.errors import WireError
from nun.limits import NODE_NUMBER_MAX, REIGN_MAX
from nun.position import Epoch, Position

_AGAIN_NS: Final = 500_000_000
_STAMP_OLD_US: Final = 10_000_000  # an answer to a greeting that is older tells nothing of clocks
_BAD: Final = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    WireError,
    OverflowError,
)

Kept = Callable[[str | None], None]


@dataclass
class Output:
    """What is to be done."""

    publish: list[tuple[bytes, bytes]] = field(
        default_factory=list
    )  # (topic, frame) for other nodes
    deliver: list[bytes] = field(default_factory=list)  # for this node's writer and network process
    to_network: list[tuple[Any, ...]] = field(default_factory=list)
    to_writer: list[tuple[Any, ...]] = field(default_factory=list)
    to_peers: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    answers: list[tuple[bytes, tuple[Any, ...]]] = field(
        default_factory=list
    )  # (routing id, message)
    follow: tuple[str, str, list[bytes]] | None = None  # (name, publish address, topics in order)
    unfollow: bool = False
    log_reads: list[tuple[int, int, int, int]] = field(
        default_factory=list
    )  # ticket, from, bytes, up to
    copy_reads: list[tuple[int, str, int, int]] = field(
        default_factory=list
    )  # ticket, file, offset, bytes
    restart: str | None = None  # start the node's processes anew from disk, and why
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # for the log


class ReplicatorCore:
    """Decides everything that the replicator does. See the module's docstring.

    Args:
        settings: from the configuration.
        now_ns, unix_us: monotonic and wall-clock time.
        random: gives a fresh 64-bit number each time it is called.
    """

    def __init__(
        self, settings: ReplicatorSettings, now_ns: int, unix_us: int, random: Callable[[], int]
    ) -> None:
        self.settings = settings
        self.now_ns = self.started_ns = now_ns
        self.unix_us = unix_us
        self.random = random
        self.out = Output()
        self.peers = {name: Peer(name, address) for name, address in settings.peers.items()}
        # Of this node: from the storage writer ...
        self.cluster_id = b""
        self.number = 0
        self.start = 0
        self.directory = b""
        self.promise: tuple[int, int] | None = None
        self.first_seq = 0  # of the log; 0: it is empty
        self.durable_seq = 0
        self.copy: tuple[bytes, dict[str, int]] | None = None
        self.disk_known = False
        # ... and from the network process, or what was handed down to it.
        self.role = pm.ROLE_WAITING
        self.history: list[Began] = []
        self.members: dict[int, tuple[str, bytes, int]] = {}
        self.last: Position | None = None
        self.state_known = False
        self.wished: tuple[int, int] | None = None  # the highest promise that is being made durable
        self.may_resume = True  # no role was given yet since this node started
        self.ordered: Epoch | None = None  # the network process may begin it at any moment
        self.digest: Digest | None = None
        self.stepping_down = False
        self.last_leader: Peer | None = None
        self._served_epoch: Epoch | None = None
        self._reachable: str | None = ""
        self.following = Following(self)
        self.filling = Filling(self)
        self.serving = Serving(self)
        self.echoes = Echoes(self)
        self.predecessor = Predecessor(self)
        self.promotion = Promotion(self)
        self.coordinator = Coordinator(self)
        self.greetings = Greetings(self)
        self.relay = Relay(self)
        self.view = ClusterView(self)
        self._tickets = 0
        self._kept: dict[int, Kept] = {}
        self._asked_ns = 0
        self._joining: dict[str, tuple[bytes, bytes]] = {}  # name -> routing id, directory
        self._settled_told = 0
        self._files_seq = 0
        self.progress: deque[tuple[int, int, int]] = deque(maxlen=6_000)  # (seq, bytes, ns)
        self.published_bytes = 0
        self.malformed = 0

    # What this node is

    @property
    def leads(self) -> bool:
        """Whether this node is the primary."""
        return self.role == pm.ROLE_PRIMARY

    @property
    def epoch(self) -> Epoch | None:
        """The epoch of this node's newest entry, None before the first."""
        return self.history[-1][0] if self.history else None

    @property
    def last_seq(self) -> int:
        return 0 if self.last is None else self.last.seq

    @property
    def bound(self) -> tuple[int, int] | None:
        """The highest promise that is kept or being made durable: nothing older is followed, acked or settled."""
        return max((each for each in (self.promise, self.wished) if each is not None), default=None)

    def older(self, epoch: Epoch) -> bool:
        """Whether an epoch is older than what this node has promised itself to."""
        bound = self.bound
        return bound is not None and (epoch.reign, epoch.node) < bound

    @property
    def cut_floor(self) -> int:
        """The lowest seq that this node can be cut back to: its files may hold what is settled."""
        return max(self._settled_told, self._files_seq)

    @property
    def member_names(self) -> list[str]:
        return [name for name, _, _ in self.members.values()]

    def number_of(self, name: str) -> int:
        """A member's number, 0 of who is none."""
        return next((number for number, member in self.members.items() if member[0] == name), 0)

    def was_set_back(self, name: str) -> bool:
        """Whether a peer's directory is an earlier state of the one that is listed: it has less than it once had."""
        peer = self.peers[name]
        listed = self.members.get(self.number_of(name))
        return listed is not None and peer.directory == listed[1] and peer.start < listed[2]

    def position_of(self, seq: int) -> Position | None:
        """The position of an entry of this node's history."""
        epoch = None
        for began, first in self.history:
            if first > seq:
                break
            epoch = began
        return None if epoch is None else Position.at(epoch, seq)

    @property
    def leader(self) -> Peer | None:
        """The peer that is primary in the highest epoch, as far as can be seen now."""
        found: Peer | None = None
        for peer in self.peers.values():
            if not (peer.is_there(self.now_ns) and peer.leads):
                continue
            assert peer.epoch is not None
            if peer.cluster_id != self.cluster_id and self.cluster_id:
                continue
            if self.older(peer.epoch):
                continue
            if found is None or found.epoch is None or peer.epoch > found.epoch:
                found = peer
        return found

    def note(self, event: str, level: str = "info", **fields: Any) -> None:
        """Something for the log."""
        self.out.notes.append((event, {"level": level, **fields}))

    def take_output(self) -> Output:
        """What is to be done now."""
        out, self.out = self.out, Output()
        return out

    def ticket(self, kept: Kept) -> int:
        """A ticket for what the storage writer is asked to keep."""
        self._tickets += 1
        self._kept[self._tickets] = kept
        return self._tickets

    @property
    def keeping(self) -> bool:
        """Whether the storage writer is being waited for."""
        return bool(self._kept)

    def keep_promise(self, promise: tuple[int, int], kept: Kept) -> None:
        """Makes a promise durable. From now on none below it is given."""
        assert self.wished is None or promise >= self.wished, "a promise was forgotten"
        self.wished = promise
        self.may_resume = False

        def done(error: str | None) -> None:
            if error is None:
                self.promise = promise if self.promise is None else max(promise, self.promise)
                self.may_resume = False
            elif self.wished == promise:
                self.wished = self.promise
            kept(error)

        self.out.to_writer.append((pm.KEEP_PROMISE, self.ticket(done), *promise))

    def tell_settled(self, seq: int) -> None:
        """Snapshots may hold entries up to here."""
        if seq > self._settled_told:
            self._settled_told = seq
            self.out.to_writer.append((pm.SETTLED, seq))

    def advance(self, position: Position) -> None:
        """One more entry of this node's history."""
        if not self.history or self.history[-1][0] != position.epoch:
            self.history.append((position.epoch, position.seq))
        self.last = position

    def followed(self, epoch: Epoch, first_seq: int) -> None:
        """The followed node has confirmed this node's history: its entries will come."""
        self.may_resume = False
        self.out.to_network.append((pm.BE_REPLICA, epoch, first_seq))
        self.out.to_writer.append((pm.FENCE, epoch, first_seq))
        self.tell_primary()

    def be_primary(self, reign: int) -> None:
        """Has the network process begin a reign after the last entry."""
        self.following.stop()
        self.ordered = Epoch(reign, self.number, self.start)
        self.out.to_network.append((pm.BE_PRIMARY, reign, self.last))

    def step_down(self) -> None:
        """Has the network process decide nothing more, nor begin what it was ordered to."""
        if not self.stepping_down:
            self.stepping_down = True
            self.note("steps_down", epoch=str(self.ordered or self.epoch))
            self.out.to_network.append((pm.BE_REPLICA, None, 0))

    def refuse(self, peer: bytes, kind: int, ticket: int, code: int, text: str) -> None:
        """Answers a peer that what it asked cannot be."""
        self.out.answers.append((peer, (pm.PEER_REFUSED, self.epoch, kind, ticket, code, text)))

    # Events of this node

    def from_network(self, message: Sequence[Any]) -> None:
        """A message of the network process."""
        match message:
            case [pm.NODE_STATE, cluster_id, number, start, role, epoch, last, history, members]:
                self._node_state(cluster_id, number, start, role, epoch, last, history, members)
            case [pm.STEPPED_DOWN, _]:
                self.stepping_down, self.ordered = False, None
                self.promotion.stepped_down()
            case [pm.DIGEST_IS, at, dict() as digests]:
                self.digest = digest_from([at, digests])
                self.view.compare()
            case [pm.PROPOSE, bodies]:
                self.relay.propose(bodies)
            case [pm.DECISIONS, decisions]:
                self.relay.decided(decisions)
            case [pm.PROMOTE_ASKED, ticket, name, force]:
                self.promotion.asked(b"", ticket, name.decode(), force)
            case [pm.ASK_CLUSTER, ticket]:
                self.out.to_network.append((pm.CLUSTER_IS, ticket, self.view.describe()))
            case [pm.ADMITTED, name, directory, number]:
                peer, asked = self._joining.get(name.decode(), (b"", b""))
                if asked == directory:
                    del self._joining[name.decode()]
                    joined = (pm.JOINED, self.epoch, self.cluster_id, number, directory)
                    self.out.answers.append((peer, joined))

    def _node_state(
        self,
        cluster_id: bytes,
        number: int,
        start: int,
        role: int,
        epoch: Any,
        last: Any,
        history: Any,
        members: Any,
    ) -> None:
        if not self.disk_known:
            return  # how much of that is on disk is not known yet: it is asked for again then
        first = not self.state_known
        self.state_known = True
        was_leading = self.leads
        self.cluster_id, self.number, self.start = cluster_id, number, start
        self.role = role
        self.members = {
            number: (name.decode(), directory, start)
            for number, (name, directory, start) in members.items()
        }
        self.coordinator.listed(0 if last is None else last[3])
        self.serving.listed()
        if first or role == pm.ROLE_PRIMARY or was_leading:
            told = history_from(history)
            position = None if last is None else Position(*last)
            if first and role != pm.ROLE_PRIMARY and position is not None:
                told, position = self.predecessor.left(told, position)
            if first or position is None or position.seq >= self.last_seq:
                self.history = told
                self.last = position
        if role == pm.ROLE_PRIMARY:
            self.may_resume, self.ordered = False, None
            self.coordinator.member = True
            if not was_leading or Epoch(*epoch) != self._served_epoch:
                self._served_epoch = Epoch(*epoch)
                self.serving.began()
                self.promotion.began(Epoch(*epoch))
                self.tell_primary()
        self.coordinator.decide()

    def from_writer(self, message: Sequence[Any]) -> None:
        """A message of the storage writer."""
        match message:
            case [
                pm.WRITER_STATE, cluster_id, number, start, directory, promise, last, first_seq, files_seq, copy
            ]:  # fmt: skip
                self.disk_known = True
                self.cluster_id = cluster_id or b""
                self.number, self.start, self.directory = number, start, directory
                self.promise = None if promise is None else (promise[0], promise[1])
                self.first_seq = first_seq
                self._files_seq = files_seq
                self.durable_seq = 0 if last is None else last[3]
                if copy is not None:
                    self.copy = (copy[0], {name.decode(): size for name, size in copy[1].items()})
                if number and not self.state_known:
                    self.out.to_network.append((pm.REPLICATOR_UP,))
                self.coordinator.decide()
            case [m.DURABLE, *epoch, seq]:
                if seq > self.durable_seq:
                    self.durable_seq = seq
                    self.predecessor.stored(Position.at(Epoch(*epoch), seq))
                    self.first_seq = self.first_seq or 1
                    if self.leads:
                        self.serving.durable()
                    self.following.durable()
                    self.promotion.fetched()
            case [m.GAP, seq]:
                self.serving.gaps += 1
                self.following.gap(seq)
            case [pm.KEPT, ticket, error]:
                kept = self._kept.pop(ticket, None)
                if kept is not None:
                    kept(None if error is None else error.decode())
            case [pm.HELD, ticket, copy_id, _, files]:
                self._kept.pop(ticket, None)
                self.serving.held(copy_id, files)

    def local_frame(self, frame: bytes) -> None:
        """A frame of this node's own op stream: what was decided here goes to the others."""
        if fx.is_item(frame):
            return
        kind, position, _ = fx.decode_head(frame)
        if self.epoch is not None and position.epoch < self.epoch:
            return
        if position.epoch.node != self.number:
            return
        if kind != fx.ENTRY:
            if position.epoch == self.epoch and position.seq > self.last_seq:
                self.last = position  # this process missed the tail; it is in the log
            return
        if position.seq == self.last_seq + 1:
            self.advance(position)
        elif position.seq > self.last_seq:
            self.last = position  # this process missed some; they are in the log
        self.published_bytes += len(frame)
        self.echoes.publish(position, frame)

    # Events of other nodes

    def from_peer(self, name: str, message: Sequence[Any]) -> None:
        """An answer of a peer."""
        peer = self.peers.get(name)
        if peer is None:
            return
        try:
            self._answer_of(peer, message)
        except _BAD:
            self.malformed += 1

    def _answer_of(self, peer: Peer, message: Sequence[Any]) -> None:
        name = peer.name
        match message:
            case [
                pm.GREETED,
                epoch,
                int() as t1,
                int() as t2,
                int() as t3,
                pm.PEER_PROTOCOL_VERSION,
                *about,
            ]:
                if 0 <= self.unix_us - t1 < _STAMP_OLD_US:
                    peer.offsets.add(t1, t2, t3, self.unix_us)
                self.greetings.heard(peer, epoch, about)
            case [pm.GO, epoch, int() as next_seq, int() as first_seq]:
                self.following.go(name, epoch_from(epoch), next_seq, first_seq)
            case [pm.CUT_BACK, epoch, int() as common]:
                self.following.cut_back(name, epoch_from(epoch), common)
            case [pm.COPY_FIRST, _]:
                self.following.copy_first(name)
            case [pm.FETCHED, _, int() as from_seq, list() as frames, int() as durable]:
                self.following.fetched(name, from_seq, frames, durable)
            case [pm.DECIDED, _, list() as replies]:
                self.relay.answered(replies)
            case [pm.PROMISE, _, int() as reign, int() as number, last, _]:
                self.promotion.promised(name, (reign, number), position_from(last))
            case [pm.JOINED, _, bytes() as cluster_id, int() as number, bytes() as directory]:
                self.coordinator.joined(cluster_id, number, directory)
            case [
                pm.HANDED_OVER,
                _,
                int() as ticket,
                int() as status,
                bytes() as text,
                dict() as fields,
            ]:
                self.out.to_network.append((pm.PROMOTED, ticket, status, text, fields))
            case [pm.COPY_FILES, _, bytes() as copy_id, bytes() as cluster_id, list() as files]:
                self.filling.files(name, copy_id, cluster_id, files)
            case [pm.COPY_PART, _, bytes() as copy_id, file, int() as offset, bytes() as data]:
                self.filling.part(name, copy_id, file.decode(), offset, data)
            case [pm.PEER_REFUSED, _, kind, _, code, text]:
                self._refused(peer, kind, code, text.decode("utf-8", "replace"))
            case _:
                self.malformed += 1

    def _refused(self, peer: Peer, kind: int, code: int, text: str) -> None:
        if kind == pm.ASK_PROMISE and code == pm.PEER_PROMISED:
            self.promotion.refused(peer.name, text)
        elif kind == pm.COPY_READ and code == pm.PEER_NO_COPY:
            self.filling.gone(peer.name)
        elif code in (pm.PEER_WRONG_CLUSTER, pm.PEER_WRONG_PROTOCOL) and peer.problem != text:
            peer.problem = text
            self.note("peer_refuses", level="error", peer=peer.name, reason=text)

    def peer_asks(self, routing_id: bytes, message: Sequence[Any]) -> None:
        """A request of another node; its name is its routing id."""
        try:
            name = routing_id.decode()
            self._question(routing_id, name, message)
        except _BAD:
            self.malformed += 1

    def _question(self, peer: bytes, name: str, message: Sequence[Any]) -> None:
        match message:
            case [pm.GREET, epoch, int() as t1, int() as protocol, *about]:
                self.greetings.greeted_by(peer, name, epoch, t1, protocol, about)
            case _ if name not in self.peers:
                self.refuse(
                    peer,
                    message[0],
                    0,
                    pm.PEER_WRONG_CLUSTER,
                    f"{name!r} is not in its configuration",
                )
            case [pm.JOIN, _, bytes() as told, bytes() as directory, int() as start, int() as number] if (
                told == peer and len(directory) == 16 and 0 <= start < 2**32 and 0 <= number <= NODE_NUMBER_MAX
            ):  # fmt: skip
                if self.leads:
                    self._joining[name] = (peer, directory)
                    self.out.to_network.append((pm.ADMIT, told, directory, start, number))
                else:
                    self.refuse(peer, pm.JOIN, 0, pm.PEER_NOT_PRIMARY, "it is not the primary")
            case [pm.STAND, _, last, history, int() as floor]:
                self.serving.stands(peer, name, position_from(last), history_from(history), floor)
            case [pm.ACK, epoch, int() as durable, int() as applied]:
                self.serving.ack(name, epoch_from(epoch), durable, applied)
            case [pm.FETCH, _, int() as from_seq, int() as size]:
                self.serving.fetch(peer, from_seq, size)
            case [pm.FORWARD, _, list() as bodies]:
                self.relay.forwarded(peer, name, bodies)
            case [pm.ASK_PROMISE, _, int() as reign, int() as number] if (
                0 < reign <= REIGN_MAX and 0 < number <= NODE_NUMBER_MAX
            ):
                self.promotion.wanted(peer, (reign, number))
            case [pm.HAND_OVER, _, int() as ticket, bool() as force]:
                self.promotion.asked(peer, ticket, self.settings.name, force)
            case [pm.COPY_ASK, _]:
                self.serving.copy_asked(peer)
            case [pm.COPY_READ, _, bytes() as copy_id, file, int() as offset, int() as size]:
                self.serving.copy_wanted(peer, copy_id, file.decode(), offset, size)
            case _:
                self.malformed += 1

    def stream_received(self, topic: bytes, frame: bytes) -> None:
        """A frame of the followed node's op stream."""
        try:
            self.following.stream_received(topic, frame)
        except _BAD:
            self.malformed += 1

    def subscribed(self, topic: bytes) -> None:
        """Somebody has subscribed to this node's op stream."""
        self.serving.subscribed(topic)

    def log_read(self, ticket: int, frames: list[bytes] | None) -> None:
        """The log was read; None: it does not reach back so far."""
        self.serving.was_read(ticket, frames)

    def copy_read(self, ticket: int, data: bytes | None) -> None:
        """A file of a copy was read; None: it is not held any more."""
        self.serving.was_read(ticket, data)

    def tell_primary(self) -> None:
        """Tells the network process which primary can be reached, when that has changed."""
        name: str | None = None
        address: str | None = None
        source = self.following.source
        if self.leads:
            name, address = self.settings.name, self.settings.client
        elif (
            self.following.confirmed
            and source is not None
            and source.is_there(self.now_ns)
            and source.leads
        ):
            name, address = source.name, source.client
        known = (
            None if name is None else f"{name} {self.epoch if self.leads else self.following.epoch}"
        )
        if known != self._reachable:
            if name is not None and not self.leads:
                self.note("primary_is", primary=name)
            elif name is None and self._reachable:
                last = self._reachable.partition(" ")[0]
                reason = f"none is elected: wait for {last}, or make another the primary with `nun promote NODE`"
                self.note("no_primary", level="warning", last=last, reason=reason)
            self._reachable = known
            self.out.to_network.append((pm.PRIMARY_IS, name, address))

    # Time

    def ticked(self, now_ns: int, unix_us: int) -> None:
        """Time has passed; also called first in every turn."""
        self.now_ns = now_ns
        self.unix_us = unix_us
        if self.greetings.tick():
            self.progress.append((self.last_seq, self.published_bytes, now_ns))
            self.echoes.tick()
            self.out.to_network.append((pm.REPLICATION_IS, self.view.traffic()))
        if now_ns - self._asked_ns > _AGAIN_NS or not self._asked_ns:
            self._asked_ns = now_ns
            if not self.disk_known:
                self.out.to_writer.append((pm.ASK_WRITER_STATE,))
            elif self.number and not self.state_known:
                self.out.to_network.append((pm.REPLICATOR_UP,))
        self.coordinator.decide()
        self.following.tick()
        self.filling.tick()
        self.serving.tick()
        self.predecessor.tick()
        self.promotion.tick()
