"""Messages without end are ended; whoever sends whole messages is left alone. On real sockets of this process."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from actors import floods, sockets
from actors.floods import Cut, FloodGuard
from nun.limits import KIB, MIB
from tests.support import zmtp

BOUND = 24 * MIB
WHOLE = 16 * MIB  # smaller than the bound by more than the kernel holds of a connection
SUSPECT = 1 * MIB
PATIENCE_S = 20.0
PART = zmtp.frame(bytes(64 * KIB), zmtp.MORE)

pytestmark = pytest.mark.skipif(
    not FloodGuard(0).available, reason="this system does not count what a connection receives"
)


class Door:
    """A socket for clients and its guard, turned by hand."""

    def __init__(self, context: Any, curve_secret_key: str = "") -> None:
        self.socket = sockets.client_requests(context, "tcp://127.0.0.1:*", curve_secret_key)
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.now_ns = 0
        self.resident = 1
        self.guard = FloodGuard(
            sockets.port_of(self.socket), BOUND, SUSPECT, resident_bytes=lambda: self.resident
        )
        self.cuts: list[Cut] = []
        self.watched = 0

    def look(self, seconds: float = 11.0) -> list[Cut]:
        """One beat, so much later."""
        self.now_ns += int(seconds * 1e9)
        cut = self.guard.look(self.now_ns)
        self.cuts += cut
        self.watched += self.guard.watching
        return cut

    def take(self, at_most: int = 1_000_000) -> int:
        """Takes what has arrived."""
        count = 0
        while count < at_most:
            received = sockets.receive_request_from(self.socket)
            if received is None:
                self.guard.turn_ended(count, emptied=True)
                return count
            self.guard.told(received[2])
            count += 1
        self.guard.turn_ended(count, emptied=False)
        return count


@pytest.fixture
def context() -> Iterator[Any]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def door(context: Any) -> Iterator[Door]:
    door = Door(context)
    yield door
    door.socket.close(0)


def received(at_least: int) -> None:
    """Waits until the kernel has counted so much on one of this process's connections that were accepted."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for name in os.listdir("/proc/self/fd"):
            if (floods.bytes_received(int(name)) or 0) >= at_least:
                return
        time.sleep(0.001)
    raise AssertionError(f"{at_least} bytes did not arrive")


def is_open(peer: socket.socket) -> bool:
    peer.settimeout(0.2)
    try:
        while peer.recv(4096):
            pass
    except TimeoutError:
        return True
    except ConnectionError:
        pass
    return False


def flood(peer: socket.socket, size: int) -> int:
    """Sends parts of a message of at least this size and no end of it; returns how much went out."""
    sent = 0
    while sent < size:
        peer.sendall(PART)
        sent += len(PART)
    return sent


def test_a_message_without_end_is_ended(door: Door) -> None:
    with zmtp.greeted(door.address) as peer:
        door.look()
        sent = flood(peer, 2 * SUSPECT)
        received(sent)
        assert door.look() == []
        assert door.guard.watching
        assert not door.guard.judging
        sent += flood(peer, BOUND + SUSPECT)
        received(sent)
        deadline = time.monotonic() + PATIENCE_S
        while not door.cuts and time.monotonic() < deadline:
            assert door.take() == 0
            door.look()
        own = peer.getsockname()
        assert [cut.address for cut in door.cuts] == [f"{own[0]}:{own[1]}"]
        assert BOUND < door.cuts[0].unfinished_bytes <= sent
        assert not is_open(peer)
    assert not door.guard.watching


def test_no_verdict_before_everything_that_waits_was_taken(door: Door) -> None:
    with zmtp.greeted(door.address) as peer:
        sent = flood(peer, 2 * SUSPECT)
        received(sent)
        door.look()
        received(sent + flood(peer, BOUND + SUSPECT))
        deadline = time.monotonic() + PATIENCE_S
        while not door.guard.judging and time.monotonic() < deadline:
            door.look()
        for _ in range(20):
            assert door.look() == []
        door.take(0)
        assert door.look() == []
        door.take()
        assert len(door.look()) == 1


def test_with_others_that_never_pause_the_verdict_comes_all_the_same(
    door: Door, context: Any
) -> None:
    busy = context.socket(zmq.DEALER)
    busy.linger = 0
    busy.connect(door.address)
    with zmtp.greeted(door.address) as peer:
        received(flood(peer, 2 * SUSPECT))
        door.look()
        received(flood(peer, BOUND + SUSPECT))
        deadline = time.monotonic() + PATIENCE_S
        while not door.cuts and time.monotonic() < deadline:
            for _ in range(200):
                busy.send(b"x")
            taken = 0
            while taken < 150:  # never until none is left
                assert door.socket.poll(5_000)
                taken += door.take(1)
            door.look()
        assert len(door.cuts) == 1
    busy.close(0)


@pytest.mark.parametrize("parts", [1, 3])
def test_whole_messages_are_never_too_much(door: Door, context: Any, parts: int) -> None:
    """However many of them, however the looks fall, and however many wait untaken."""
    client = context.socket(zmq.DEALER)
    client.linger = 0
    client.connect(door.address)
    message = [bytes(WHOLE // parts)] * parts

    def send() -> None:
        for _ in range(30):
            client.send_multipart(message)

    sender = threading.Thread(target=send)
    sender.start()
    taken = turns = 0
    try:
        while taken < 30:
            turns += 1
            if turns % 7 == 0:  # at times nothing is taken, and much waits
                assert door.socket.poll(int(PATIENCE_S * 1000))
                taken += door.take(3)
            assert door.look() == []
    finally:
        sender.join(PATIENCE_S)
        client.close(0)


def test_a_large_message_that_comes_slowly_is_waited_for(door: Door) -> None:
    body = bytes(WHOLE)
    with zmtp.greeted(door.address) as peer:
        for _ in range(3):
            data = memoryview(zmtp.frame(body))
            for at in range(0, len(data), MIB):
                peer.sendall(data[at : at + MIB])
                door.take()
                assert door.look() == []
        deadline = time.monotonic() + PATIENCE_S
        while door.guard.watching and time.monotonic() < deadline:
            door.take()
            assert door.look() == []
        assert not door.guard.watching
        assert is_open(peer)


def test_a_flood_over_curve_is_ended(context: Any) -> None:
    server_key, server_secret = zmq.curve_keypair()
    door = Door(context, server_secret.decode())
    client = context.socket(zmq.DEALER)
    client.linger = 0
    client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
    client.curve_serverkey = server_key
    client.connect(door.address)
    client.send(b"hello")
    assert door.socket.poll(int(PATIENCE_S * 1000))
    door.take()
    client.send_multipart([bytes(MIB)] * (6 * BOUND // MIB))
    deadline = time.monotonic() + PATIENCE_S
    while not door.cuts and time.monotonic() < deadline:
        assert door.take() == 0, "the message came to an end: the guard was too slow"
        door.look()
    client.close(0)
    door.socket.close(0)
    assert len(door.cuts) == 1


def test_a_connection_to_another_port_is_not_ours_to_end(door: Door) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as peer,
    ):
        other, _ = listener.accept()
        with other:
            sender = threading.Thread(target=peer.sendall, args=(bytes(BOUND * 2),))
            sender.start()
            left = BOUND * 2
            while left:
                left -= len(other.recv(MIB))
                door.take()
                assert door.look() == []
            sender.join(PATIENCE_S)
            for _ in range(3):
                door.take()
                assert door.look() == []
            peer.sendall(b"still there")
            assert other.recv(100) == b"still there"


def test_it_counts_when_memory_grows_and_seldom_otherwise(door: Door) -> None:
    with zmtp.greeted(door.address) as peer:
        door.look(1.0)
        received(flood(peer, 2 * SUSPECT))
        door.look(0.1)
        assert not door.guard.watching
        door.resident += floods.GROWTH_BYTES - 1
        door.look(0.1)
        assert not door.guard.watching
        door.resident += 1
        door.guard.rest(door.now_ns, door.now_ns + 10_000_000)  # the last one took 10 ms
        door.look(0.1)
        assert not door.guard.watching, "counting takes too large a part of the time"
        door.look(0.11)
        assert door.guard.watching
