"""Replicator cores of a few nodes, with the simplest thing in place of everything around them.

In place of the storage writer: a list that is durable at once, unless `hold` keeps its answers back. In place of the
network process: what begins epochs, decides entries and admits members when it is told to. Between the nodes: queues
that lose what a test says they lose. Time moves only in `Cluster.run`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core.history import Fence
from nun.core.replication.replicator import Output, ReplicatorCore
from nun.core.settings import ReplicatorSettings
from nun.position import Epoch, Position

TICK_MS = 20
MS = 1_000_000


def plain(message: Any) -> Any:
    """A message as it arrives on the other side."""
    return unpack(pack(message))


class FakeNode:
    """One node: the core under test, and stand-ins for its disk, its storage writer and its network process.

    Attributes:
        log: what is on disk, from `first_seq` on.
        promise, cluster_id, number, start: what the directory knows.
        copy: what has come of a copy, (copy id, file -> bytes); then its network process starts only with all of it.
        hold: kinds of messages of this node's own processes that do not arrive until `release`.
        told: what the core said to the network process, decoded.
        kept: what the core said to the storage writer.
        writer_misses: whether what is handed down gets lost on its way to the storage writer.
        restarts: why the processes were started anew.
    """

    def __init__(self, cluster: Cluster, index: int) -> None:
        self.cluster = cluster
        self.name = f"node{index}"
        self.directory = bytes([index]) * 16
        self.log: list[tuple[Position, bytes]] = []
        self.first_seq = 1
        self.files_seq = 0
        self.cluster_id = b""
        self.number = 0
        self.start = 0
        self.promise: tuple[int, int] | None = None
        self.copy: Any = None
        self.clock_us = 0  # how far its clock is ahead
        self.hold: set[int] = set()
        self.notes: list[tuple[str, dict[str, Any]]] = []  # what was logged
        self.held: list[tuple[str, Any]] = []
        self.restarts: list[str] = []
        self.writer_misses = False
        self.up = False
        self.start_processes()

    # Life

    def start_processes(self) -> None:
        """Starts everything anew from disk."""
        self.up = True
        self.start += 1
        self.fence = Fence()
        self.role = pm.ROLE_WAITING
        self.history: list[tuple[Epoch, int]] = []
        self.members: dict[int, Any] = {}
        self.last: Position | None = None
        self.told: list[Any] = []
        self.kept: list[Any] = []
        self.held.clear()
        self.handed: list[bytes] = []  # what was handed down since
        for position, frame in self.log:
            self._apply(position, frame)
        self.start_replicator()

    def start_replicator(self) -> None:
        """It alone: network process and storage writer go on where they are."""
        cluster = self.cluster
        self.source: str | None = None
        self.topics: list[bytes] = []
        others = {name: f"tcp://{name}" for name in cluster.names if name != self.name}
        settings = ReplicatorSettings(
            self.name,
            "node1",
            others,
            f"pub://{self.name}",
            f"cli://{self.name}",
            **cluster.options,
        )
        self.core = ReplicatorCore(settings, cluster.now_ns, cluster.unix_us(self), cluster.chance)

    def stop(self) -> None:
        self.up = False
        self.topics = []

    @property
    def last_seq(self) -> int:
        return self.log[-1][0].seq if self.log else self.first_seq - 1

    def wipe(self) -> None:
        """An empty directory in place of this one."""
        self.log.clear()
        self.first_seq, self.start, self.number = 1, 0, 0
        self.cluster_id, self.promise = b"", None
        self.directory = bytes(reversed(self.directory[:-1])) + b"w"

    # What stands for the network process

    def _apply(self, position: Position, frame: bytes) -> None:
        for effect in fx.decode_entry(frame)[1]:
            if effect[0] == fx.EPOCH:
                self.history.append((position.epoch, position.seq))
                self.members = effect[2]
            elif effect[0] == fx.MEMBERS:
                self.members = effect[1]
        self.last = position

    def decide(self, *effects: Any, lost: bool = False) -> Position:
        """The network process of a primary decides an entry."""
        assert self.role == pm.ROLE_PRIMARY, self.role
        seq = 1 if self.last is None else self.last.seq + 1
        position = Position.at(self.epoch, seq)
        frame = fx.encode_entry(position, effects or ((fx.SEEN, b"c", seq),))
        self._apply(position, frame)
        self.write([frame])
        if not lost:
            self.core.local_frame(frame)
        return position

    def tell_state(self) -> None:
        history = [[*epoch, first] for epoch, first in self.history]
        epoch = self.history[-1][0] if self.history else None
        state = (
            pm.NODE_STATE,
            self.cluster_id,
            self.number,
            self.start,
            self.role,
            epoch,
            self.last,
        )
        self.say("network", (*state, history, self.members))

    def _hear_network(self, message: Any) -> None:
        self.told.append(message)
        match message:
            case [pm.REPLICATOR_UP]:
                self.tell_state()
            case [pm.BE_PRIMARY, reign, after]:
                assert after == (None if self.last is None else list(self.last))
                self.epoch = Epoch(reign, self.number, self.start)
                assert not self.history or self.epoch > self.history[-1][0], "an epoch began twice"
                self.role = pm.ROLE_PRIMARY
                me = [self.name, self.directory, self.start]
                self.decide((fx.EPOCH, self.cluster_id, {**self.members, self.number: me}, 9))
                self.tell_state()
            case [pm.BE_REPLICA, epoch, _]:
                assert epoch is None or self.role != pm.ROLE_PRIMARY, "it decides, and is to follow"
                self.role = pm.ROLE_WAITING if epoch is None else pm.ROLE_REPLICA
                self.tell_state()
                if epoch is None:
                    self.say("network", (pm.STEPPED_DOWN, self.last))
            case [pm.ADMIT, name, directory, start, _] if self.role == pm.ROLE_PRIMARY:
                number = next((n for n, (known, *_) in self.members.items() if known == name), 0)
                if number and self.members[number][1] != directory:
                    del self.members[number]
                    number = 0
                number = number or self.cluster.next_number(self.members)
                if self.members.get(number) != [name, directory, start]:
                    members = {**self.members, number: [name, directory, start]}
                    self.decide((fx.MEMBERS, members, number + 1))
                    self.tell_state()
                self.say("network", (pm.ADMITTED, name, directory, number))

    # What stands for the storage writer

    def write(self, frames: list[bytes]) -> None:
        """Appends what continues the log, and says so."""
        for frame in frames:
            kind, position, _ = fx.decode_head(frame)
            fits = kind == fx.ENTRY and position.seq == self.last_seq + 1
            if fits and self.fence.passes(position):
                self.log.append((position, frame))
        if self.log:
            self.say("writer", (m.DURABLE, *self.log[-1][0]))

    def _hear_writer(self, message: Any) -> None:
        self.kept.append(message)
        match message:
            case [pm.ASK_WRITER_STATE]:
                last = self.log[-1][0] if self.log else None
                state = (
                    pm.WRITER_STATE,
                    self.cluster_id or None,
                    self.number,
                    self.start,
                    self.directory,
                )
                first = self.first_seq if self.log else 0
                self.say("writer", (*state, self.promise, last, first, self.files_seq, self.copy))
            case [m.ENTRIES, frames]:
                self.write(frames)
                if fx.decode_head(frames[-1])[1].seq > self.last_seq:
                    self.write(self.handed)  # the network process sends it again
            case [pm.KEEP_PROMISE, ticket, reign, number]:
                assert self.promise is None or (reign, number) >= self.promise, "a lower promise"
                self.promise = (reign, number)
                self.say("writer", (pm.KEPT, ticket, None))
            case [pm.BECOME, ticket, cluster_id, number]:
                self.cluster_id, self.number = cluster_id, number
                self.say("writer", (pm.KEPT, ticket, None))
            case [pm.FENCE, epoch, first_seq]:
                self.fence.set(Epoch(*epoch), first_seq)
            case [pm.CUT, ticket, common, _]:
                self.log = [item for item in self.log if item[0].seq <= common]
                self.say("writer", (pm.KEPT, ticket, None))
            case [pm.COPY_DROP, ticket]:
                self.copy = None
                self.say("writer", (pm.KEPT, ticket, None))

    # Between them and the core

    def say(self, who: str, message: Any) -> None:
        """Something for the core, now or when it is released."""
        if message[0] in self.hold:
            self.held.append((who, message))
        elif who == "writer":
            self.core.from_writer(plain(message))
        else:
            self.core.from_network(plain(message))

    def release(self) -> None:
        """What was held back arrives."""
        self.hold.clear()
        held, self.held = self.held, []
        for who, message in held:
            self.say(who, message)

    def perform(self) -> bool:
        """Does what the core wants; whether that was anything."""
        out = self.core.take_output()
        if out == Output():
            return False
        cluster = self.cluster
        if out.unfollow:
            self.source, self.topics = None, []
        if out.follow is not None:
            self.source, _, self.topics = out.follow
            for topic in self.topics:
                cluster.subscribe(self, topic)
        self.notes += out.notes
        for message in out.to_network:
            self._hear_network(plain(message))
        for message in out.to_writer:
            self._hear_writer(plain(message))
        for frame in out.deliver:
            kind, position, _ = fx.decode_head(frame)
            if kind == fx.ENTRY:
                assert self.last is None or position.seq == self.last.seq + 1, "a hole"
                members = self.members
                self._apply(position, frame)
                if self.members is not members:
                    self.tell_state()
        self.handed += out.deliver
        if out.deliver and not self.writer_misses:
            self.write(out.deliver)
        for topic, frame in out.publish:
            cluster.publish(self, topic, frame)
        for name, message in out.to_peers:
            cluster.send(self.name, name, False, message)
        for routing_id, message in out.answers:
            cluster.send(self.name, routing_id.decode(), True, message)
        for ticket, first, size, up_to in out.log_reads:
            self.core.log_read(ticket, self._read(first, size, up_to))
        if out.restart is not None:
            self.restarts.append(out.restart)
            self.start_processes()
        return True

    def _read(self, first: int, size: int, up_to: int) -> list[bytes] | None:
        if first < self.first_seq:
            return None
        found: list[bytes] = []
        for position, frame in self.log:
            if first <= position.seq <= up_to and (not found or sum(map(len, found)) < size):
                found.append(frame)
        return found

    def settled(self) -> int:
        return self.core.serving.settled


class Cluster:
    """Nodes, and what lies between them.

    Attributes:
        loses: says of (from, to, message or (topic, frame)) whether it gets lost.
        sent: every message that went from node to node, lost or not.
    """

    def __init__(self, nodes: int = 3, **options: Any) -> None:
        self.now_ns = 1_000 * MS
        self.names = [f"node{index}" for index in range(1, nodes + 1)]
        self.options = options
        self.loses: Callable[[str, str, Any], bool] = lambda *_: False
        self.apart: set[frozenset[str]] = set()
        self.sent: list[tuple[str, str, Any]] = []
        self._chance = 0
        self._number = 0
        self._way: list[Callable[[], None]] = []
        self.nodes = {name: FakeNode(self, at) for at, name in enumerate(self.names, 1)}

    def __getitem__(self, index: int) -> FakeNode:
        return self.nodes[f"node{index}"]

    def chance(self) -> int:
        self._chance += 1
        return self._chance

    def next_number(self, members: dict[int, Any]) -> int:
        self._number = max(self._number, *members) + 1
        return self._number

    def unix_us(self, node: FakeNode) -> int:
        return 1_700_000_000_000_000 + self.now_ns // 1_000 + node.clock_us

    @property
    def primaries(self) -> list[str]:
        return [n.name for n in self.nodes.values() if n.up and n.role == pm.ROLE_PRIMARY]

    # The network

    def part(self, one: int, other: int) -> None:
        """Nothing goes between two nodes."""
        self.apart.add(frozenset((f"node{one}", f"node{other}")))

    def heal(self) -> None:
        """Everything goes again; subscriptions are made anew, as the library does by itself."""
        self.apart.clear()
        for node in self.nodes.values():
            if node.up:
                for topic in node.topics:
                    self.subscribe(node, topic)
        self.settle()

    def _arrives(self, sender: str, receiver: str, what: Any) -> bool:
        self.sent.append((sender, receiver, what))
        joined = frozenset((sender, receiver)) not in self.apart
        return joined and self.nodes[receiver].up and not self.loses(sender, receiver, what)

    def send(self, sender: str, receiver: str, answer: bool, message: Any) -> None:
        message = plain(message)

        def arrive() -> None:
            if self._arrives(sender, receiver, message):
                core = self.nodes[receiver].core
                if answer:
                    core.from_peer(sender, message)
                else:
                    core.peer_asks(sender.encode(), message)

        self._way.append(arrive)

    def subscribe(self, node: FakeNode, topic: bytes) -> None:
        source = node.source
        assert source is not None

        def arrive() -> None:
            if self._arrives(node.name, source, ("subscribe", topic)):
                self.nodes[source].core.subscribed(topic)

        self._way.append(arrive)

    def publish(self, sender: FakeNode, topic: bytes, frame: bytes) -> None:
        for node in self.nodes.values():
            if node.up and node.source == sender.name and topic.startswith(tuple(node.topics)):
                self._way.append(lambda node=node: self._bring(sender.name, node, topic, frame))  # type: ignore[misc]

    def _bring(self, sender: str, node: FakeNode, topic: bytes, frame: bytes) -> None:
        if node.source == sender and self._arrives(sender, node.name, (topic, frame)):
            node.core.stream_received(topic, frame)

    def settle(self) -> None:
        """Until nothing is on its way."""
        for _ in range(10_000):
            moved = [node.perform() for node in self.nodes.values() if node.up]
            way, self._way = self._way, []
            for arrive in way:
                arrive()
            if not any(moved) and not way:
                return
        raise AssertionError("nodes talk without end")

    def run(self, seconds: float = 0.0, until: Callable[[], Any] | None = None) -> None:
        """Time passes; fails when `until` does not come true in it."""
        end = self.now_ns + int(seconds * 1_000) * MS
        while self.now_ns < end:
            self.now_ns += TICK_MS * MS
            for node in self.nodes.values():
                if node.up:
                    node.core.ticked(self.now_ns, self.unix_us(node))
            self.settle()
            if until is not None and until():
                return
        assert until is None, "it did not come true in time"

    # Common steps

    def form(self) -> Cluster:
        """All nodes up, node1 primary, the others live."""
        self.run(10, lambda: self.is_quiet(1))
        return self

    def is_quiet(self, primary: int) -> bool:
        """Whether this node is the only primary and all that are up have what it has."""
        lead = self[primary]
        up = [node for node in self.nodes.values() if node.up]
        return (
            self.primaries == [lead.name]
            and len(lead.members) >= len(up)
            and all(n.core.following.state == "live" for n in up if n is not lead)
            and all(n.log and n.log[-1] == lead.log[-1] for n in up)
            and lead.settled() == lead.last_seq
        )

    def promote(self, index: int, force: bool = False) -> None:
        node = self[index]
        node.core.from_network([pm.PROMOTE_ASKED, 77, node.name.encode(), force])
        self.settle()

    def promoted(self, index: int) -> Any:
        """The answer to `promote`, None before it."""
        answers = [told for told in self[index].told if told[0] == pm.PROMOTED]
        return answers[-1] if answers else None

    def messages(self, kind: int) -> list[tuple[str, str, Any]]:
        return [item for item in self.sent if item[2][0] == kind]
