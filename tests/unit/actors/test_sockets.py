"""Sockets: each option has the effect that it is there for; frames go in and out unharmed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import zmq

from actors import sockets
from actors.sockets import Sent
from nun import messages as m
from nun.codec import pack
from nun.limits import MESSAGE_BYTES_MAX, UNREAD_MESSAGES_MAX

PATIENCE_MS = 5_000
SILENCE_MS = 150


class KeepingContext(zmq.Context[Any]):
    """Keeps its sockets until the end of the test, whatever variables they were in."""

    kept: ClassVar[list[Any]] = []

    def socket(self, *arguments: Any, **options: Any) -> Any:
        made = super().socket(*arguments, **options)
        self.kept.append(made)
        return made


@pytest.fixture
def context() -> Iterator[Any]:
    context = KeepingContext()
    yield context
    context.destroy(linger=0)
    KeepingContext.kept.clear()


@pytest.fixture
def clients(context: Any) -> Any:
    """The node's socket for clients, on a free port."""
    # A port of the system's choice; configuration does not offer that to operators.
    return sockets.client_requests(context, "tcp://127.0.0.1:*")


def client_of(context: Any, server: Any, routing_id: bytes = b"", **options: Any) -> Any:
    client = context.socket(zmq.DEALER)
    client.linger = 0
    if routing_id:
        client.routing_id = routing_id
    for name, value in options.items():
        setattr(client, name, value)
    client.connect(server.getsockopt_string(zmq.LAST_ENDPOINT))
    return client


def request_on(server: Any) -> tuple[bytes, bytes | None]:
    assert server.poll(PATIENCE_MS), "nothing came"
    received = sockets.receive_request(server)
    assert received is not None
    return received


def test_a_request_and_its_reply(context: Any, clients: Any) -> None:
    assert sockets.receive_request(clients) is None
    client = client_of(context, clients)
    for body in (b"", b"x", b"y" * 300_000):
        client.send(body)
        peer, found = request_on(clients)
        assert found == body
        assert sockets.send_reply(clients, peer, body[::-1]) is Sent.SENT
        assert client.recv() == body[::-1]


@pytest.mark.parametrize("receive", [sockets.receive_request, sockets.receive_request_from])
def test_the_address_is_told_of_those_who_greet(context: Any, clients: Any, receive: Any) -> None:
    client = client_of(context, clients, b"greeter")
    origins: dict[bytes, str] = {}
    client.send(pack([m.PING, 1, 2, None]))
    assert clients.poll(PATIENCE_MS)
    assert receive(clients, origins)[:2] == (b"greeter", pack([m.PING, 1, 2, None]))
    assert origins == {}
    hello = pack([m.HELLO, m.PROTOCOL_VERSION, 1, b"id", None, None, None])
    client.send(hello)
    assert clients.poll(PATIENCE_MS)
    assert receive(clients, origins)[:2] == (b"greeter", hello)
    assert origins == {b"greeter": "127.0.0.1"}


def test_a_large_reply_goes_without_a_copy_and_unharmed(context: Any, clients: Any) -> None:
    client = client_of(context, clients)
    client.send(b"x")
    peer, _ = request_on(clients)
    body = bytes(range(256)) * 8192
    for _ in range(3):
        assert sockets.send_reply(clients, peer, body) is Sent.SENT
    assert [client.recv() for _ in range(3)] == [body] * 3


@pytest.mark.parametrize("parts", [[b"a", b"b"], [b"", b"body"], [b"victim", b"forged", b"x"]])
def test_a_message_of_several_frames_is_told_as_malformed_and_nothing_else_is_lost(
    context: Any, clients: Any, parts: list[bytes]
) -> None:
    """What follows must not be read as another's routing id and request."""
    client = client_of(context, clients, b"honest")
    client.send_multipart(parts)
    client.send(b"whole")
    assert request_on(clients) == (b"honest", None)
    assert request_on(clients) == (b"honest", b"whole")
    assert sockets.receive_request(clients) is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 40])
def test_a_drain_takes_all_that_waits_and_then_ends(context: Any, clients: Any, count: int) -> None:
    client = client_of(context, clients, b"busy")
    bodies = [b"%d" % number for number in range(count)]
    found: list[tuple[bytes, bytes | None]] = []
    for body in bodies:
        client.send(body)
    while len(found) < count:
        assert clients.poll(PATIENCE_MS), "nothing came"
        found += sockets.requests(clients)
    assert found == [(b"busy", body) for body in bodies]
    assert list(sockets.requests(clients)) == []
    client.send(b"later")
    assert request_on(clients) == (b"busy", b"later")


def test_a_drain_of_frames_passes_over_messages_of_several(context: Any) -> None:
    sender, receiver = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    receiver.bind("inproc://frames")
    sender.connect("inproc://frames")
    assert list(sockets.frames(receiver)) == []
    for number in range(6):
        sender.send_multipart([b"two", b"frames"])
        sender.send(b"%d" % number)
    assert list(sockets.frames(receiver)) == [b"%d" % number for number in range(6)]


def test_a_reply_to_nobody_is_noticed(context: Any, clients: Any) -> None:
    assert sockets.send_reply(clients, b"nobody", b"x") is Sent.GONE
    client = client_of(context, clients, b"somebody")
    client.send(b"x")
    request_on(clients)
    client.close(0)
    events = []
    while not events or events[-1] is Sent.SENT:  # until the node has noticed
        events.append(sockets.send_reply(clients, b"somebody", b"x"))
        clients.poll(1)
    assert events[-1] in (Sent.GONE, Sent.FULL)


def test_a_peer_that_does_not_read_fills_its_own_pipe_only(context: Any, clients: Any) -> None:
    lazy = client_of(context, clients, b"lazy", rcvhwm=1, rcvbuf=4096)
    lazy.send(b"x")
    request_on(clients)
    body = bytes(100_000)
    for _ in range(100 * UNREAD_MESSAGES_MAX):
        sent = sockets.send_reply(clients, b"lazy", body)
        if sent is not Sent.SENT:
            break
    assert sent is Sent.FULL
    other = client_of(context, clients, b"other")
    other.send(b"x")
    request_on(clients)
    assert sockets.send_reply(clients, b"other", b"y") is Sent.SENT
    assert other.recv() == b"y"


def test_a_second_peer_cannot_take_the_routing_id_of_a_living_one(
    context: Any, clients: Any
) -> None:
    victim = client_of(context, clients, b"id")
    victim.send(b"victim's")
    assert request_on(clients) == (b"id", b"victim's")
    thief = client_of(context, clients, b"id")
    thief.send(b"thief's")
    assert not clients.poll(SILENCE_MS)
    assert sockets.send_reply(clients, b"id", b"for the victim") is Sent.SENT
    assert victim.recv() == b"for the victim"
    assert not thief.poll(SILENCE_MS)


def test_a_frame_beyond_the_bound_ends_the_link(context: Any, clients: Any) -> None:
    assert clients.maxmsgsize == MESSAGE_BYTES_MAX
    clients.maxmsgsize = 1_000  # counts for binds from now on
    clients.bind("tcp://127.0.0.1:*")
    client = client_of(context, clients)
    monitor = client.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    client.send(b"x" * 1_001)
    assert monitor.poll(PATIENCE_MS)
    assert not clients.poll(0)


def test_an_address_that_is_taken_is_an_error(context: Any, clients: Any) -> None:
    with pytest.raises(zmq.ZMQError) as caught:
        sockets.client_requests(context, clients.getsockopt_string(zmq.LAST_ENDPOINT))
    assert caught.value.errno == zmq.EADDRINUSE


def test_ipv6(context: Any) -> None:
    try:
        server = sockets.client_requests(context, "tcp://[::1]:*")
    except zmq.ZMQError:
        pytest.skip("no IPv6 on this machine")
    client = client_of(context, server, ipv6=1)
    client.send(b"x")
    assert request_on(server)[1] == b"x"


def test_with_a_key_only_those_enter_who_know_the_public_one(context: Any) -> None:
    public, secret = zmq.curve_keypair()
    server = sockets.client_requests(context, "tcp://127.0.0.1:*", secret.decode())

    def client(server_key: bytes | None) -> Any:
        if server_key is None:
            return client_of(context, server)
        own_public, own_secret = zmq.curve_keypair()
        keys = {"curve_serverkey": server_key, "curve_publickey": own_public}
        return client_of(context, server, **keys, curve_secretkey=own_secret)

    client(None).send(b"plain")
    client(zmq.curve_keypair()[0]).send(b"wrong key")
    client(public).send(b"right key")
    assert request_on(server)[1] == b"right key"
    assert not server.poll(SILENCE_MS)


# Between the processes of a node


def test_a_subscription_is_seen_and_what_follows_arrives(context: Any, tmp_path: Path) -> None:
    publisher = sockets.op_stream_publisher(context, tmp_path)
    for _ in range(2):  # VERBOSE: also that of a second, equal subscriber
        subscriber = sockets.op_stream_subscriber(context, tmp_path)
        assert publisher.poll(PATIENCE_MS)
        assert sockets.receive_frame(publisher) == b"\x01"
        assert sockets.receive_frame(publisher) is None
        for body in (b"entry", b"x" * 1_000_000):
            assert sockets.send_frame(publisher, body)
            assert subscriber.poll(PATIENCE_MS)
            assert sockets.receive_frame(subscriber) == body


def test_the_socket_file_of_a_killed_publisher_is_in_nobodys_way(
    context: Any, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "op-stream"))
    publisher = sockets.op_stream_publisher(context, tmp_path)
    sockets.op_stream_subscriber(context, tmp_path)
    assert publisher.poll(PATIENCE_MS)
    assert sockets.receive_frame(publisher) == b"\x01"


def test_acks_wait_for_a_router_that_comes_later(context: Any, tmp_path: Path) -> None:
    writer = sockets.op_acks_dealer(context, tmp_path)
    assert sockets.send_frame(writer, b"recovered")
    router = sockets.op_acks_router(context, tmp_path)
    assert request_on(router) == (sockets.WRITER_ID, b"recovered")
    assert sockets.send_reply(router, sockets.WRITER_ID, b"subscribed") is Sent.SENT
    assert writer.poll(PATIENCE_MS)
    assert sockets.receive_frame(writer) == b"subscribed"


def test_a_restarted_child_takes_its_place_back(context: Any, tmp_path: Path) -> None:
    router = sockets.control_router(context, tmp_path)
    for generation in (b"first", b"second"):
        child = sockets.control_dealer(context, tmp_path, "writer")
        sockets.send_frame(child, generation)
        assert request_on(router) == (b"writer", generation)
        assert sockets.send_reply(router, b"writer", generation) is Sent.SENT
        assert child.poll(PATIENCE_MS)
        assert sockets.receive_frame(child) == generation
    assert sockets.send_reply(router, b"network", b"x") is Sent.GONE


def test_a_message_of_several_frames_is_dropped_where_one_is_expected(
    context: Any, tmp_path: Path
) -> None:
    dealer = sockets.control_dealer(context, tmp_path, "writer")
    router = sockets.control_router(context, tmp_path)
    sockets.send_frame(dealer, b"up")
    peer, _ = request_on(router)
    router.send_multipart([peer, b"two", b"frames"])
    sockets.send_reply(router, peer, b"one")
    # The dealer may hear of the first before the second is there, and has nothing to show for it.
    found = None
    while found is None:
        assert dealer.poll(PATIENCE_MS), "nothing came"
        found = sockets.receive_frame(dealer)
    assert found == b"one"
    assert sockets.receive_frame(dealer) is None


def test_sending_never_waits(context: Any) -> None:
    lonely = context.socket(zmq.PUSH)
    assert not sockets.send_frame(lonely, b"x")
