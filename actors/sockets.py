"""Every socket of a node and every option that matters, in one place; and frames in and out of them, fast.

    client requests   network                 ROUTER, TCP; and ipc, for this node's own gateway
    op stream         network -> writer       XPUB / SUB, ipc
    op acks           network <-> writer, replicator, conflict manager      ROUTER / DEALER, ipc
    control           supervisor <-> child    ROUTER / DEALER, ipc
    replica stream    replicator -> writer, network     XPUB / SUB, ipc
    replica acks      replicator <-> writer             ROUTER / DEALER, ipc
    node stream       replicator -> other nodes'        XPUB / SUB, TCP
    node requests     replicator <-> other nodes'       ROUTER / DEALER, TCP

*Client requests.* `MANDATORY`: a reply that cannot go is noticed. No `HANDOVER`: nobody takes the routing id of a
living peer. `SNDHWM`, `RCVHWM`: messages that one client may leave unread. `MAXMSGSIZE`: a larger frame ends the
link (a message of many frames is bounded by actors/floods.py). `HEARTBEAT_*`: half-open links end. CURVE when there
is a key; then who does not know the node's public key gets no word.

*Op stream.* `XPUB_VERBOSE`: every subscription is seen, which proves that its subscriber is there. What waits for a
writer that stands still is bounded in bytes, by the network process (PENDING_BYTES_MAX). Its beats are not, so
there is a mark in messages too, far above what a living writer leaves waiting; beyond it XPUB drops, and the writer
asks for what it missed.

*Node stream.* As the op stream; what a slow replica leaves waiting is bounded by the mark of its own connection, beyond
which XPUB drops: the replica then fetches from the log. The subscriber of a node that was started anew
subscribes again by itself, in sorted order: the marker's topic is the last.

*Node requests.* A node's name is its routing id, so that it can be answered whenever there is something to say;
`HANDOVER` gives it back to a node that was started anew. `HEARTBEAT_*` as for clients, but sooner.

*Op acks, control.* `MANDATORY`, and `HANDOVER`: a restarted process takes its place back. No high-water mark: what
goes here answers what came, which is bounded, and a lost last ack would be missed for ever.

`IMMEDIATE` stays off: what is sent before the other process has bound its socket waits for it. `LINGER` is short,
so that no process hangs at its end on a peer that is gone. ZeroMQ is not trusted to deliver: positions, beats and
acks are the protocol.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import zmq
from zmq.backend import Socket as _Raw
from zmq.backend import zmq_poll

from nun.limits import (
    MESSAGE_BYTES_MAX,
    NODE_MESSAGES_MAX,
    NODE_STREAM_MESSAGES_MAX,
    OP_STREAM_MESSAGES_MAX,
    UNREAD_MESSAGES_MAX,
)
from nun.messages import HELLO_BEGINS

WRITER_ID: Final = b"writer"  # the writer's routing id on the ack channel
REPLICATOR_ID: Final = b"replicator"
MANAGER_ID: Final = b"conflicts"
NODES_DOMAIN: Final = b"nodes"  # of whom actors/admission.py is asked
_LINGER_MS: Final = 500
_RECONNECT_MS: Final = 500
_NODE_HEARTBEAT_MS: Final = 500
_NODE_PATIENCE_MS: Final = 3 * _NODE_HEARTBEAT_MS
_TCP: Final = {
    zmq.MAXMSGSIZE: MESSAGE_BYTES_MAX,
    zmq.HEARTBEAT_IVL: _NODE_HEARTBEAT_MS,
    zmq.HEARTBEAT_TIMEOUT: _NODE_PATIENCE_MS,
    zmq.HEARTBEAT_TTL: _NODE_PATIENCE_MS,
    zmq.CONNECT_TIMEOUT: _NODE_PATIENCE_MS,
}
_HEARTBEAT_MS: Final = 5_000
_HEARTBEAT_PATIENCE_MS: Final = 3 * _HEARTBEAT_MS
_BACKLOG: Final = 1_024  # connections that wait to be accepted
_COPY_BYTES_MAX: Final = 512 * 1024  # larger frames are handed to ZeroMQ without a copy

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

# The methods of the compiled base class: half the cost of those that pyzmq wraps around them.
_recv: Callable[..., Any] = _Raw.recv
_send: Callable[..., Any] = _Raw.send
_poll: Callable[..., Any] = zmq_poll
_NOW: Final = int(zmq.DONTWAIT)
_POLLIN: Final = int(zmq.POLLIN)
_ASKED_MAX: Final = 3
_NOW_MORE: Final = int(zmq.SNDMORE) | int(zmq.DONTWAIT)


class Sent(enum.Enum):
    """What became of a reply."""

    SENT = 1
    GONE = 2  # there is no such peer any more
    FULL = 3  # the peer does not read: its pipe is full


def client_requests(
    context: Context, address: str, curve_secret_key: str = "", run_dir: Path | None = None
) -> Socket:
    """The ROUTER that clients talk to, bound. Raises zmq.ZMQError when the address cannot be had.

    In `run_dir` it also listens to this node's own gateway, in clear: keys count for what is bound after they were set.
    """
    options = {
        zmq.ROUTER_MANDATORY: 1,
        zmq.ROUTER_HANDOVER: 0,
        zmq.SNDHWM: UNREAD_MESSAGES_MAX,
        zmq.RCVHWM: UNREAD_MESSAGES_MAX,
        zmq.MAXMSGSIZE: MESSAGE_BYTES_MAX,
        zmq.HEARTBEAT_IVL: _HEARTBEAT_MS,
        zmq.HEARTBEAT_TIMEOUT: _HEARTBEAT_PATIENCE_MS,
        zmq.HEARTBEAT_TTL: _HEARTBEAT_PATIENCE_MS,
        zmq.BACKLOG: _BACKLOG,
        zmq.IPV6: int("[" in address),
    }
    socket = _made(context, zmq.ROUTER, options)
    if run_dir is not None:
        _bound(socket, gateway_address(run_dir))
    if curve_secret_key:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, curve_secret_key.encode())
    return _bound(socket, address)


def gateway_address(run_dir: Path) -> str:
    """Where this node's own gateway reaches its network process."""
    return _ipc(run_dir, "clients")


def op_stream_publisher(context: Context, run_dir: Path) -> Socket:
    """The XPUB that carries this node's entries; a frame `\\x01` is read from it when somebody subscribes."""
    options = {zmq.XPUB_VERBOSE: 1, zmq.SNDHWM: OP_STREAM_MESSAGES_MAX}
    return _bound(_made(context, zmq.XPUB, options), _ipc(run_dir, "op-stream"))


def op_stream_subscriber(context: Context, run_dir: Path) -> Socket:
    """A SUB on everything that this node's network process publishes."""
    socket = _made(context, zmq.SUB, {zmq.RCVHWM: OP_STREAM_MESSAGES_MAX})
    socket.setsockopt(
        zmq.LINGER, 0
    )  # all it could hold back is its subscription, for a publisher that is gone
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(_ipc(run_dir, "op-stream"))
    return socket


def subscribe_to_replica_stream(op_stream: Socket, run_dir: Path) -> None:
    """Has a subscriber of the op stream hear what the replicator hands on too."""
    op_stream.connect(_ipc(run_dir, "replica-stream"))


def replica_stream_subscriber(context: Context, run_dir: Path) -> Socket:
    """A SUB on everything that this node's replicator hands on from the primary."""
    socket = _made(context, zmq.SUB, {zmq.RCVHWM: OP_STREAM_MESSAGES_MAX})
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(_ipc(run_dir, "replica-stream"))
    return socket


def replica_stream_publisher(context: Context, run_dir: Path) -> Socket:
    """The XPUB that hands the primary's entries to this node's writer and network process."""
    options = {zmq.XPUB_VERBOSE: 1, zmq.SNDHWM: OP_STREAM_MESSAGES_MAX}
    return _bound(_made(context, zmq.XPUB, options), _ipc(run_dir, "replica-stream"))


def replica_acks_router(context: Context, run_dir: Path) -> Socket:
    """The replicator's end of its channel with the storage writer."""
    return _router(context, run_dir, "replica-acks")


def replica_acks_dealer(context: Context, run_dir: Path) -> Socket:
    """The storage writer's end of its channel with the replicator."""
    return _dealer(context, run_dir, "replica-acks", WRITER_ID)


def replicator_acks_dealer(context: Context, run_dir: Path) -> Socket:
    """The replicator's end of the network process's ack channel."""
    return _dealer(context, run_dir, "op-acks", REPLICATOR_ID)


def manager_dealer(context: Context, run_dir: Path) -> Socket:
    """The conflict manager's end of the network process's ack channel."""
    return _dealer(context, run_dir, "op-acks", MANAGER_ID)


class Curve(NamedTuple):
    """The keys of a node among nodes; empty: nothing is encrypted."""

    public_key: str = ""
    secret_key: str = ""


def node_stream_publisher(context: Context, address: str, curve: Curve) -> Socket:
    """The XPUB that other nodes' replicators subscribe to. Raises zmq.ZMQError when the address cannot be had."""
    options = {zmq.XPUB_VERBOSE: 1, zmq.SNDHWM: NODE_STREAM_MESSAGES_MAX, **_TCP}
    return _bound(_curve_server(_made(context, zmq.XPUB, options), curve), address)


def node_stream_subscriber(
    context: Context, address: str, topics: Sequence[bytes], curve: Curve, server_key: str
) -> Socket:
    """A SUB on another node's stream, with these topics in this order."""
    options = {zmq.RCVHWM: NODE_STREAM_MESSAGES_MAX, zmq.RECONNECT_IVL_MAX: _RECONNECT_MS, **_TCP}
    socket = _curve_client(_made(context, zmq.SUB, options), curve, server_key)
    socket.setsockopt(zmq.LINGER, 0)
    for topic in topics:
        socket.setsockopt(zmq.SUBSCRIBE, topic)
    socket.connect(address)
    return socket


def node_requests_router(context: Context, address: str, curve: Curve) -> Socket:
    """The ROUTER that other nodes ask. Raises zmq.ZMQError when the address cannot be had."""
    options = {
        zmq.ROUTER_MANDATORY: 1,
        zmq.ROUTER_HANDOVER: 1,
        zmq.SNDHWM: NODE_MESSAGES_MAX,
        zmq.RCVHWM: NODE_MESSAGES_MAX,
        **_TCP,
    }
    return _bound(_curve_server(_made(context, zmq.ROUTER, options), curve), address)


def node_requests_dealer(
    context: Context, address: str, name: str, curve: Curve, server_key: str
) -> Socket:
    """The DEALER that asks one other node; nothing is queued for a node that is not there."""
    options = {
        zmq.SNDHWM: NODE_MESSAGES_MAX,
        zmq.RCVHWM: NODE_MESSAGES_MAX,
        zmq.IMMEDIATE: 1,
        zmq.RECONNECT_IVL_MAX: _RECONNECT_MS,
        **_TCP,
    }
    socket = _curve_client(_made(context, zmq.DEALER, options), curve, server_key)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTING_ID, name.encode())
    socket.connect(address)
    return socket


def _curve_server(socket: Socket, curve: Curve) -> Socket:
    if curve.secret_key:
        socket.setsockopt(zmq.ZAP_DOMAIN, NODES_DOMAIN)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret_key.encode())
    return socket


def _curve_client(socket: Socket, curve: Curve, server_key: str) -> Socket:
    if curve.secret_key:
        socket.setsockopt(zmq.CURVE_SERVERKEY, server_key.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public_key.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret_key.encode())
    return socket


def op_acks_router(context: Context, run_dir: Path) -> Socket:
    """The network process's end of the ack channel."""
    return _router(context, run_dir, "op-acks")


def op_acks_dealer(context: Context, run_dir: Path) -> Socket:
    """The storage writer's end of the ack channel."""
    return _dealer(context, run_dir, "op-acks", WRITER_ID)


def control_router(context: Context, run_dir: Path) -> Socket:
    """The supervisor's end of the control channel."""
    return _router(context, run_dir, "control")


def control_dealer(context: Context, run_dir: Path, name: str) -> Socket:
    """A child's end of the control channel; its name is its routing id."""
    return _dealer(context, run_dir, "control", name.encode())


def _made(context: Context, kind: int, options: Mapping[Any, int]) -> Socket:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, _LINGER_MS)
    for option, value in options.items():
        socket.setsockopt(option, value)
    return socket


def _bound(socket: Socket, address: str) -> Socket:
    try:
        socket.bind(address)
    except zmq.ZMQError:
        socket.close(0)
        raise
    return socket


def port_of(socket: Socket) -> int:
    """The TCP port that a socket is bound to."""
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])


def _ipc(run_dir: Path, name: str) -> str:
    return f"ipc://{run_dir / name}"


def _router(context: Context, run_dir: Path, name: str) -> Socket:
    options = {zmq.ROUTER_MANDATORY: 1, zmq.ROUTER_HANDOVER: 1, zmq.SNDHWM: 0, zmq.RCVHWM: 0}
    return _bound(_made(context, zmq.ROUTER, options), _ipc(run_dir, name))


def _dealer(context: Context, run_dir: Path, name: str, routing_id: bytes) -> Socket:
    socket = _made(context, zmq.DEALER, {zmq.SNDHWM: 0, zmq.RCVHWM: 0})
    socket.setsockopt(zmq.ROUTING_ID, routing_id)
    socket.connect(_ipc(run_dir, name))
    return socket


# Frames. Nothing here waits. To find a queue empty by receiving costs a zmq.Again (3 us), so after each of the first
# few messages of a drain it is asked (1 us) whether another one is there; a longer drain pays for one zmq.Again.


def requests(
    socket: Socket, origins: dict[bytes, str] | None = None
) -> Iterator[tuple[bytes, bytes | None]]:
    """What waits at a ROUTER, as (routing id, body), until nothing does.

    The body is None when the message did not have exactly two frames; what else it had is dropped. `.more` is always
    looked at: reading two frames blindly would let a peer send its third as another's routing id. In `origins` goes
    the address that a HELLO came from: it costs what several other steps cost together, and is of interest only then.
    """
    asked = [(socket, _POLLIN)]
    asking = _ASKED_MAX
    while True:
        try:
            peer = _recv(socket, _NOW)
        except zmq.Again:
            return
        frame = _recv(socket, 0, False)
        if frame.more:
            _drop_rest(socket)
            yield peer, None
        else:
            body = frame.bytes
            if origins is not None and body.startswith(HELLO_BEGINS):
                origins[peer] = _property(frame, "Peer-Address", "")
            yield peer, body
        if asking:
            asking -= 1
            if not _poll(asked, 0):
                return


def receive_request(
    socket: Socket, origins: dict[bytes, str] | None = None
) -> tuple[bytes, bytes | None] | None:
    """The next of `requests`; None when none waits."""
    return next(requests(socket, origins), None)


def receive_request_from(
    socket: Socket, origins: dict[bytes, str] | None = None
) -> tuple[bytes, bytes | None, int] | None:
    """As receive_request, and the file descriptor of the connection, -1 when ZeroMQ does not tell."""
    try:
        peer = _recv(socket, _NOW)
    except zmq.Again:
        return None
    frame = _recv(socket, 0, False)
    descriptor = _property(frame, zmq.SRCFD, -1)
    if frame.more:
        _drop_rest(socket)
        return peer, None, descriptor
    body = frame.bytes
    if body[:2] == HELLO_BEGINS and origins is not None:
        origins[peer] = _property(frame, "Peer-Address", "")
    return peer, body, descriptor


def _property(frame: Any, name: Any, unknown: Any) -> Any:
    """What ZeroMQ tells of where a frame came from: nothing of a peer that speaks ZMTP 2 or older."""
    try:
        return frame.get(name)
    except zmq.ZMQError:
        return unknown


def frames(socket: Socket) -> Iterator[bytes]:
    """What waits at a socket whose messages have one frame, until nothing does; messages of several are dropped."""
    asked = [(socket, _POLLIN)]
    asking = _ASKED_MAX
    while True:
        try:
            frame = _recv(socket, _NOW, False)
        except zmq.Again:
            return
        if frame.more:
            _drop_rest(socket)
        else:
            yield frame.bytes
        if asking:
            asking -= 1
            if not _poll(asked, 0):
                return


def receive_frame(socket: Socket) -> bytes | None:
    """The next of `frames`; None when none waits."""
    return next(frames(socket), None)


def _drop_rest(socket: Socket) -> None:
    while _recv(socket, 0, False).more:
        pass


def send_reply(socket: Socket, peer: bytes, body: bytes) -> Sent:
    """Sends one frame to one peer of a ROUTER."""
    try:
        _send(socket, peer, _NOW_MORE)
    except zmq.Again:
        return Sent.FULL
    except zmq.ZMQError as error:
        if error.errno == zmq.EHOSTUNREACH:
            return Sent.GONE
        raise
    # The rest of a message that has begun always goes: the high-water mark counts whole messages.
    _send(socket, body, _NOW, len(body) <= _COPY_BYTES_MAX)
    return Sent.SENT


def receive_topic(socket: Socket) -> tuple[bytes, bytes] | None:
    """The next (topic, frame) of a SUB on another node's stream; None when none waits."""
    while True:
        try:
            topic = _recv(socket, _NOW, False)
        except zmq.Again:
            return None
        if not topic.more:
            continue
        frame = _recv(socket, 0, False)
        if frame.more:
            _drop_rest(socket)
            continue
        return topic.bytes, frame.bytes


def send_topic(socket: Socket, topic: bytes, frame: bytes) -> None:
    """Publishes a frame under a topic."""
    _send(socket, topic, _NOW_MORE)
    _send(socket, frame, _NOW, len(frame) <= _COPY_BYTES_MAX)


def send_frame(socket: Socket, frame: bytes) -> bool:
    """Sends one frame; False when it could not be queued."""
    try:
        _send(socket, frame, _NOW, len(frame) <= _COPY_BYTES_MAX)
    except zmq.Again:
        return False
    return True
