"""Whatever bytes come on the client port: the node answers afterwards, nothing changed, and it holds no more memory."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
from collections.abc import Callable

import pytest

from nun import messages as m
from nun.codec import pack
from nun.limits import MIB
from tests.support.fuzzing import Fuzz
from tests.support.node import Node, seeded
from tests.support.raw_client import RawClient, connect

pytestmark = pytest.mark.process

MESSAGES = 100_000
BURST = 500  # messages between two looks at the replies; below the sockets' high-water marks
GROWTH_MAX = 24 * MIB


def digest(client: RawClient) -> str:
    """Of all keys and records of the database, the system's own keys included."""
    found = hashlib.sha256()
    after: bytes | None = None
    for pattern in ("", "$"):
        while True:
            keys, after = client.request(m.KEYS, 1, pattern, 1000, after).value()
            records = client.request(m.GET_MANY, 1, keys).value()
            found.update(pack([keys, records]))
            if after is None:
                break
    found.update(pack(client.request(m.DATABASES).value()))
    return found.hexdigest()


def fill(admin: RawClient) -> None:
    admin.write(m.CREATE_DATABASE, "d", "t", {}).value()
    admin.use("d", "t")
    keys = [f"k{i}" for i in range(500)]
    admin.write(m.SET_MANY, 1, pack([keys, [f"value {key}" for key in keys]])).value()
    admin.write(m.INCREMENT, 1, "n", 41).value()
    admin.write(m.CREATE_USER, "d", "reader", "secret").value()
    admin.write(m.SET_PERMISSIONS, "d", "reader", "r *").value()


def open_reader(node: Node) -> RawClient:
    """A session that may read and not write, so that even a good message changes nothing."""
    client = connect(node.address, None, None)
    client.use("d", "secret", "reader")
    return client


def drain(client: RawClient) -> bool:
    """Reads all replies; False when the session has been ended by one of the messages."""
    number = client.next_number() + 2**40
    client.send(m.PING, client.token, number, None)
    reply = client.reply_to(number, 30.0)
    assert reply is not None, "the node does not answer"
    client.events.clear()
    return reply.status == 0


def test_100000_messages_change_nothing(start_node: Callable[..., Node]) -> None:
    node = start_node({"storage": {"fsync": "never", "snapshot_interval_s": 0}})
    fuzz = Fuzz(seeded("fuzz"))
    with contextlib.ExitStack() as stack:
        admin = stack.enter_context(connect(node.address))
        fill(admin)
        before = digest(admin)
        stranger = stack.enter_context(RawClient(node.address))
        reader = stack.enter_context(open_reader(node))
        resident = 0
        for sent in range(0, MESSAGES, BURST):
            for client in (stranger, reader):
                for _ in range(BURST // 2):
                    client.socket.send_multipart(fuzz.frames(client.token))
            drain(stranger)
            if not drain(reader):
                reader = stack.enter_context(open_reader(node))
            if sent == MESSAGES // 4:
                resident = node.resident_bytes("network")
        growth = node.resident_bytes("network") - resident
        assert growth < GROWTH_MAX, f"the network process grew by {growth} bytes"
        assert digest(admin) == before
        assert admin.write(m.INCREMENT, 1, "n", 1).value()[1] == 42
    assert "Traceback" not in "\n".join(node.raw)
    assert node.stop() == 0


# The ZMTP 3 greeting: signature, version 3.1, mechanism NULL, client, filler.
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"


def garbage(source: random.Random) -> bytes:
    """What a peer may write on a bare TCP connection: noise, half greetings, frames that lie about their length."""
    noise = source.randbytes(source.randrange(1, 400))
    match source.randrange(7):
        case 0:
            return noise
        case 1:
            return GREETING[: source.randrange(1, len(GREETING))]
        case 2:
            return GREETING + noise
        case 3:
            return GREETING + READY + b"\x02" + struct.pack(">Q", 2**62) + noise
        case 4:
            return GREETING + READY + b"\x02" + struct.pack(">Q", 100 * MIB) + noise
        case 5:
            return GREETING + READY + b"\x01\xff" * source.randrange(1, 50) + noise
        case _:
            return b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_garbage_on_the_bare_port_harms_nobody(start_node: Callable[..., Node]) -> None:
    node = start_node()
    source = seeded("garbage")
    with connect(node.address) as admin:
        fill(admin)
        before = digest(admin)
        resident = node.resident_bytes("network")
        held = []
        for _ in range(500):
            link = socket.create_connection(("127.0.0.1", node.port), timeout=10)
            try:
                link.sendall(garbage(source))
            except OSError:
                pass  # the node may hang up while it is being insulted
            held.append(link)
            if len(held) > 50:
                held.pop(source.randrange(len(held))).close()
        assert digest(admin) == before
        for link in held:
            link.close()
        assert node.resident_bytes("network") - resident < GROWTH_MAX
    assert node.stop() == 0


def test_a_second_frame_forges_nobody(start_node: Callable[..., Node]) -> None:
    """A message of several frames is no message: what looks like another's routing id in it is not taken for one."""
    node = start_node()
    with connect(node.address, routing_id=b"victim") as victim:
        victim.write(m.CREATE_DATABASE, "d", "t", {}).value()
        victim.use("d", "t")
        with RawClient(node.address) as forger:
            forged = pack([m.SET, victim.token, 99, 0, 1, "k", "forged", None])
            for frames in (
                [b"victim", forged],
                [b"", b"victim", forged],
                [b"x", b"victim", forged],
            ):
                forger.socket.send_multipart(frames)
            assert forger.hello("nun", "nun-pwd").status == 0, "the forger's link still serves"
        assert victim.request(m.GET, 1, "k").value() is None
