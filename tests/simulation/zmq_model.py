"""ZeroMQ as libzmq is, as far as a node depends on it: sockets, connections, and what each kind loses.

A connection is two channels. Each delivers in order, some time later.

    XPUB     sends to each connection whose subscriptions match, and drops without a word when a pipe is at its
             high-water mark; a subscription is a message that takes its time, so what is sent before is lost
    SUB      sends its subscriptions in the order they were made; after a reconnect all of them in sorted order
    ROUTER   sends to the connection of that routing id; to nobody's: EHOSTUNREACH (MANDATORY) or dropped;
             HANDOVER lets a new connection take the id
    DEALER   queues while it is not connected (unless IMMEDIATE); when a connection breaks, the first part of what was
             under way is lost, the rest waits for the next connection

I1  Within a connection nothing is reordered, doubled or damaged.
I2  What a dead process had sent arrives up to some point, and then nothing more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq

from tests.simulation.world import MS, World

RECONNECT_MS: Final = 100
_MORE: Final = int(zmq.SNDMORE)
Frames = tuple[bytes, ...]


class Frame:
    """What a receive without copying returns."""

    __slots__ = ("bytes", "more")

    def __init__(self, data: bytes, more: bool) -> None:
        self.bytes = data
        self.more = more

    def get(self, name: Any) -> Any:
        """What libzmq tells of where it came from: a host, of no use to anybody here."""
        return "10.0.0.1" if name == "Peer-Address" else -1


class Wires:
    """The network between hosts, and every bound address.

    Attributes:
        blocked: pairs (from, to) of hosts between which nothing passes.
        slow_ns: extra delay of pairs.
        hwm: at most so many messages wait in a pipe of an XPUB, whatever the socket says.
        drop: the share of what an XPUB sends that is dropped, as at its high-water mark.
        hushed: pairs (publisher, subscriber) of hosts between which an XPUB drops all.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.blocked: set[tuple[str, str]] = set()
        self.slow_ns: dict[tuple[str, str], int] = {}
        self.hwm = 10**9
        self.drop = 0.0
        self.hushed: set[tuple[str, str]] = set()
        self.bound: dict[str, Socket] = {}
        self.waiting: dict[str, list[Connector]] = {}  # by the address that they want
        self.connections: list[Connection] = []
        self.taps: list[Callable[[Connection, bool, Frames], None]] = []
        self._routing_ids = 0

    def delay_ns(self, source: str, target: str) -> int:
        world = self.world
        if source == target:
            return world.between(10_000, 80_000)
        extra = self.slow_ns.get((source, target), 0)
        base = world.between(100_000, 600_000)
        if extra:
            base += world.between(extra // 2, extra)
        return base

    def fresh_routing_id(self) -> bytes:
        self._routing_ids += 1
        return b"\0%04d" % self._routing_ids

    def block(self, source: str, target: str, notice_ns: tuple[int, int]) -> None:
        """Nothing passes any more in this direction; connections break once one of the sides notices."""
        self.blocked.add((source, target))
        hosts = {source, target}
        for connection in self.connections:
            if connection.hosts == hosts:
                self.world.after(
                    self.world.between(*notice_ns),
                    lambda connection=connection: self._noticed(connection),
                )

    def _noticed(self, connection: Connection) -> None:
        first, second = connection.upward.source, connection.upward.target
        if connection.open and ((first, second) in self.blocked or (second, first) in self.blocked):
            connection.end("link")

    def unblock(self, source: str, target: str) -> None:
        self.blocked.discard((source, target))
        for connection in self.connections:
            if connection.hosts == {source, target}:
                connection.upward.resume()
                connection.downward.resume()
        for connectors in list(self.waiting.values()):
            for connector in list(connectors):
                connector.soon()

    def reset_connections(self, first: str, second: str) -> None:
        """Every connection between two hosts breaks at once."""
        for connection in list(self.connections):
            if connection.hosts == {first, second}:
                connection.end("reset")

    def passes(self, first: str, second: str) -> bool:
        return (first, second) not in self.blocked and (second, first) not in self.blocked


class Channel:
    """One direction of a connection."""

    __slots__ = (
        "base",
        "connection",
        "due",
        "queue",
        "receiver",
        "scheduled",
        "source",
        "target",
        "unread",
        "up",
        "wires",
    )

    def __init__(
        self, wires: Wires, connection: Connection, source: str, receiver: Socket, up: bool
    ) -> None:
        self.wires = wires
        self.connection = connection
        self.source = source
        self.target = receiver.host
        self.receiver = receiver
        self.up = up
        self.queue: deque[tuple[int, Frames]] = deque()
        self.unread = 0  # delivered to the socket, not yet received by its process
        self.due = 0
        self.base = -1
        self.scheduled = False

    def send(self, frames: Frames, begins: int) -> None:
        """Puts a message under way, at a time that may lie a little ahead."""
        if begins != self.base:  # what is sent in one go arrives in one go
            self.base = begins
            due = begins + self.wires.delay_ns(self.source, self.target)
            self.due = max(due, self.due)
        self.queue.append((self.due, frames))
        if not self.scheduled:
            self.scheduled = True
            self.wires.world.at(self.due, self.deliver)

    def deliver(self) -> None:
        self.scheduled = False
        if self.source != self.target and (self.source, self.target) in self.wires.blocked:
            return
        now = self.wires.world.now
        queue = self.queue
        while queue and queue[0][0] <= now:
            _, frames = queue.popleft()
            self.receiver.arrived(self, frames)
        if queue:
            self.scheduled = True
            self.wires.world.at(queue[0][0], self.deliver)

    def resume(self) -> None:
        if self.queue and not self.scheduled:
            self.scheduled = True
            self.wires.world.after(self.wires.delay_ns(self.source, self.target), self.deliver)


class Connection:
    """Two sockets that talk: `connector`'s and the bound one's."""

    def __init__(self, wires: Wires, connector: Connector, bound: Socket) -> None:
        self.wires = wires
        self.connector = connector
        self.bound = bound
        self.open = True
        near = connector.socket
        self.ends = (near.host, bound.host)
        self.hosts = {*self.ends}
        self.upward = Channel(wires, self, near.host, bound, True)
        self.downward = Channel(wires, self, bound.host, near, False)
        self.topics: list[bytes] = []  # an XPUB's view of what the other side has subscribed
        self.peer = near.routing_id  # a ROUTER's name for the other side
        wires.connections.append(self)

    def end(self, why: str, dead: Socket | None = None) -> None:
        """The connection breaks. What a dead side had sent still arrives in part; else some of what was under way."""
        if not self.open:
            return
        self.open = False
        self.wires.connections.remove(self)
        world = self.wires.world
        world.note("broke", why, self.connector.socket.label, self.bound.label)
        kept: list[Frames] = []
        for channel in (self.upward, self.downward):
            sender = self.connector.socket if channel.up else self.bound
            arrives = 0
            if sender is dead and channel.queue and self.wires.passes(*self.ends):
                arrives = world.between(0, len(channel.queue))
            under_way = [channel.queue.popleft() for _ in range(len(channel.queue))]
            channel.queue.extend(under_way[:arrives])
            if sender is not dead and channel.up and under_way:
                lost = world.between(0, len(under_way))
                kept = [frames for _, frames in under_way[lost:]]
            if channel.queue and not channel.scheduled:
                channel.resume()
        self.bound.lost(self)
        self.connector.lost(kept)


class Connector:
    """The connecting end: tries until there is somebody, and again when the connection breaks."""

    def __init__(self, socket: Socket, address: str) -> None:
        self.socket = socket
        self.address = address
        self.connection: Connection | None = None
        self.before: Connection | None = None
        self.kept: deque[Frames] = deque()  # what waits for the connection
        self.closed = False
        self.trying = False
        self.connected_once = False
        self.early = set(socket.topics)
        self.soon(first=True)

    def soon(self, first: bool = False) -> None:
        if self.trying or self.closed or self.connection is not None:
            return
        self.trying = True
        world = self.socket.wires.world
        pause = 0 if first else world.between(0, self.socket.reconnect_ns)
        world.after(pause + world.between(50_000, 300_000), self._try)

    def _try(self) -> None:
        self.trying = False
        if self.closed:
            return
        wires = self.socket.wires
        if self.before is not None and self.before.downward.queue:
            if not wires.passes(*self.before.ends):
                self.before.downward.queue.clear()
            self.soon()  # the last connection has not been read to its end
            return
        bound = wires.bound.get(self.address)
        if bound is None or not wires.passes(self.socket.host, bound.host):
            waiting = wires.waiting.setdefault(self.address, [])
            if self not in waiting:
                waiting.append(self)
            return
        waiting = wires.waiting.get(self.address, [])
        if self in waiting:
            waiting.remove(self)
        connection = self.connection = Connection(wires, self, bound)
        wires.world.note("connected", self.socket.label, bound.label)
        bound.accepted(connection)
        socket = self.socket
        if socket.kind == zmq.SUB:
            # Those made before `connect` lie in a tree, the later ones followed one by one.
            first = [topic for topic in socket.topics if topic not in self.early]
            again = sorted(socket.topics) if self.connected_once else sorted(self.early) + first
            for i, topic in enumerate(again):  # each a message of its own
                connection.upward.send((b"\x01" + topic,), wires.world.now + i)
        kept, self.kept = self.kept, deque()
        for frames in kept:
            connection.upward.send(frames, wires.world.now)
        self.connected_once = True
        if socket.on_connected is not None:
            socket.on_connected()

    def lost(self, kept: list[Frames]) -> None:
        self.before, self.connection = self.connection, None
        if self.closed:
            return
        if self.socket.kind == zmq.DEALER and not self.socket.options.get(zmq.IMMEDIATE):
            self.kept.extend(kept)
        if self.socket.on_broken is not None:
            self.socket.on_broken()
        self.soon()

    def close(self) -> None:
        self.closed = True
        for connectors in self.socket.wires.waiting.values():
            if self in connectors:
                connectors.remove(self)
        if self.connection is not None:
            self.connection.end("closed", self.socket)


class Context:
    """In place of zmq.Context: makes the sockets of one process."""

    def __init__(self, wires: Wires, process: Any) -> None:
        self.wires = wires
        self.process = process
        self.sockets: list[Socket] = []

    def socket(self, kind: int) -> Socket:
        socket = Socket(self.wires, self.process, kind)
        self.sockets.append(socket)
        return socket

    def destroy(self, linger: int | None = None) -> None:
        del linger
        for socket in self.sockets:
            socket.close()
        self.sockets.clear()


class Socket:
    """One socket of a process (anything with `host`, `label` and `wake`, and `ahead`: ns by which it is busy)."""

    def __init__(self, wires: Wires, process: Any, kind: int) -> None:
        self.wires = wires
        self.process = process
        self.host: str = process.host
        self.kind = int(kind)
        self.label = f"{process.label}:{zmq.SocketType(kind).name}"
        self.options: dict[int, Any] = {}
        self.routing_id = b""
        self.reconnect_ns = RECONNECT_MS * MS
        self.topics: list[bytes] = []
        self.connectors: list[Connector] = []
        self.connections: list[Connection] = []  # of a bound socket, in order of arrival
        self.addresses: list[str] = []
        self.inbox: deque[tuple[Channel | None, Frames]] = deque()
        self.on_connected: Callable[[], Any] | None = None
        self.on_broken: Callable[[], Any] | None = None
        self.watched = False
        self.closed = False
        self._by_id: dict[bytes, Connection] = {}
        self._begun: list[bytes] = []  # the frames of a message that is being sent
        self._rest: list[bytes] = []  # the frames of a message that is being received, last first
        self._next_dealer = 0

    # Options and addresses

    def setsockopt(self, option: int, value: Any) -> None:
        option = int(option)
        if option == zmq.SUBSCRIBE:
            topic = value.encode() if isinstance(value, str) else value
            self.topics.append(topic)
            self._up((b"\x01" + topic,))
        elif option == zmq.UNSUBSCRIBE:
            topic = value.encode() if isinstance(value, str) else value
            self.topics.remove(topic)
            self._up((b"\x00" + topic,))
        elif option == zmq.ROUTING_ID:
            self.routing_id = value
        elif option == zmq.RECONNECT_IVL:
            self.reconnect_ns = value * MS
        self.options[option] = value

    set = setsockopt

    def getsockopt(self, option: int) -> Any:
        if option == zmq.LAST_ENDPOINT:
            return self.addresses[-1].encode()
        return self.options[int(option)]

    get = getsockopt

    def subscribe(self, topic: bytes) -> None:
        self.setsockopt(zmq.SUBSCRIBE, topic)

    def unsubscribe(self, topic: bytes) -> None:
        self.setsockopt(zmq.UNSUBSCRIBE, topic)

    def bind(self, address: str) -> None:
        if address in self.wires.bound:
            raise zmq.ZMQError(zmq.EADDRINUSE)
        self.wires.bound[address] = self
        self.addresses.append(address)
        for connector in list(self.wires.waiting.get(address, ())):
            connector.soon()

    def unbind(self, address: str) -> None:
        self.addresses.remove(address)
        del self.wires.bound[address]

    def connect(self, address: str) -> None:
        if not self.routing_id:
            self.routing_id = self.wires.fresh_routing_id()
        self.connectors.append(Connector(self, address))

    def disconnect(self, address: str) -> None:
        for connector in [each for each in self.connectors if each.address == address]:
            self.connectors.remove(connector)
            connector.close()

    def close(self, linger: int | None = None) -> None:
        del linger
        if self.closed:
            return
        self.closed = True
        self.inbox.clear()
        for address in self.addresses:
            if self.wires.bound.get(address) is self:
                del self.wires.bound[address]
        for connector in self.connectors:
            connector.close()
        for connection in list(self.connections):
            connection.end("closed", self)

    @property
    def connected(self) -> bool:
        return any(connector.connection is not None for connector in self.connectors)

    # What happens to connections

    def accepted(self, connection: Connection) -> None:
        self.connections.append(connection)
        if self.kind != zmq.ROUTER:
            return
        old = self._by_id.get(connection.peer)
        if old is not None:
            if not self.options.get(zmq.ROUTER_HANDOVER):
                connection.peer = b""  # the newcomer gets no name: nothing from or to it
                return
            old.end("handed over")
        self._by_id[connection.peer] = connection

    def lost(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
        if self._by_id.get(connection.peer) is connection:
            del self._by_id[connection.peer]

    def arrived(self, channel: Channel, frames: Frames) -> None:
        """A message has come over a connection."""
        if self.closed:
            return
        if self.kind == zmq.XPUB:
            if not self._subscription(channel.connection, frames[0]):
                return
        elif self.kind == zmq.ROUTER:
            connection = channel.connection
            if self._by_id.get(connection.peer, connection) is not connection:
                return  # another one has taken its name
            frames = (channel.connection.peer, *frames)
        elif self.kind == zmq.SUB and not any(map(frames[0].startswith, self.topics)):
            return
        channel.unread += 1
        self.inbox.append((channel, frames))
        for tap in self.wires.taps:
            tap(channel.connection, channel.up, frames)
        connection = channel.connection
        sender = connection.connector.socket if channel.up else connection.bound
        self.wires.world.note_frame("got", (sender.label, self.label), frames[-1])
        self.process.wake()

    def _subscription(self, connection: Connection, frame: bytes) -> bool:
        topic = frame[1:]
        if frame[:1] == b"\x01":
            known = any(topic in each.topics for each in self.connections)
            connection.topics.append(topic)
            return bool(self.options.get(zmq.XPUB_VERBOSE)) or not known
        if topic in connection.topics:
            connection.topics.remove(topic)
        return True

    # Sending and receiving

    def send(self, data: bytes, flags: int = 0, copy: bool = True) -> None:
        del copy
        if self.closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        data = bytes(data)
        mandatory = self.kind == zmq.ROUTER and self.options.get(zmq.ROUTER_MANDATORY)
        if mandatory and not self._begun and data not in self._by_id:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        self._begun.append(data)
        if int(flags) & _MORE:
            return
        frames, self._begun = tuple(self._begun), []
        begins = self.wires.world.now + self.process.ahead
        if self.kind == zmq.XPUB:
            self._publish(frames, begins)
        elif self.kind == zmq.ROUTER:
            connection = self._by_id.get(frames[0])
            if connection is not None:
                connection.downward.send(frames[1:], begins)
        else:
            self._up(frames)

    def send_multipart(self, parts: Any, flags: int = 0, copy: bool = True) -> None:
        del copy
        for part in parts[:-1]:
            self.send(part, int(flags) | _MORE)
        self.send(parts[-1], flags)

    def _up(self, frames: Frames) -> None:
        begins = self.wires.world.now + self.process.ahead
        for connector in self.connectors:
            if connector.connection is not None:
                connector.connection.upward.send(frames, begins)
            elif self.kind == zmq.DEALER:
                if self.options.get(zmq.IMMEDIATE):
                    raise zmq.Again
                bound = self.options.get(zmq.SNDHWM, 1000)
                if bound and len(connector.kept) >= bound:
                    raise zmq.Again
                connector.kept.append(frames)

    def _publish(self, frames: Frames, begins: int) -> None:
        wires = self.wires
        bound = min(self.options.get(zmq.SNDHWM, 1000) or 10**9, wires.hwm)
        for connection in self.connections:
            if not any(map(frames[0].startswith, connection.topics)):
                continue
            channel = connection.downward
            full = len(channel.queue) + channel.unread >= bound
            full = full or (channel.source, channel.target) in wires.hushed
            if full or (wires.drop and wires.world.chance(wires.drop)):
                wires.world.note("dropped", self.label, channel.receiver.label)
                continue
            channel.send(frames, begins)

    def recv(self, flags: int = 0, copy: bool = True) -> Any:
        del flags
        if not self._rest:
            if not self.inbox:
                raise zmq.Again
            channel, frames = self.inbox.popleft()
            if channel is not None:
                channel.unread -= 1
            self._rest = list(reversed(frames))
        data = self._rest.pop()
        return data if copy else Frame(data, bool(self._rest))

    def recv_multipart(self, flags: int = 0, copy: bool = True) -> list[Any]:
        parts = [self.recv(flags, copy)]
        while self._rest:
            parts.append(self.recv(flags, copy))
        return parts

    def poll(self, timeout: int = 0) -> int:
        del timeout
        return int(zmq.POLLIN) if self.inbox else 0


def receive(socket: Socket, flags: int = 0, copy: bool = True) -> Any:
    """In place of the compiled `Socket.recv`."""
    return socket.recv(flags, copy)


def send(socket: Socket, data: bytes, flags: int = 0, copy: bool = True) -> None:
    """In place of the compiled `Socket.send`."""
    socket.send(data, flags, copy)


def poll(sources: Sequence[tuple[Socket, int]], timeout: int) -> list[tuple[Socket, int]]:
    """In place of the compiled `zmq_poll`, by one who does not wait and wants to read."""
    assert timeout == 0
    return [(socket, int(zmq.POLLIN)) for socket, _ in sources if socket.poll()]
