"""Messages without end: memory stays bounded, the link is cut, others are served; who sends much and whole is not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import zmq

import nun
from nun import messages as m
from nun.codec import pack
from nun.errors import Overloaded
from nun.limits import KIB, MIB, UNFINISHED_BYTES_MAX
from tests.support import zmtp
from tests.support.node import ADMIN, Node, wait_until
from tests.support.raw_client import connect

pytestmark = pytest.mark.process

FLOOD_BYTES = 8 * UNFINISHED_BYTES_MAX  # far more than is let in


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    node = start_node({"storage": {"fsync": "never", "snapshot_interval_s": 0}})
    with nun.Client(node.address, **ADMIN) as admin:
        admin.create_database("d", token="t")
    return node


def pour(peer: socket.socket, part: bytes, taken: list[int]) -> None:
    """Sends this part again and again until the node ends the connection; adds how much it took to `taken`."""
    sent = 0
    try:
        while sent < FLOOD_BYTES:
            sent += peer.send(part)
    except ConnectionError:
        taken.append(sent)
        return
    raise AssertionError(f"the node took {sent} bytes of one message")


def test_a_message_without_end_is_cut_and_others_are_served_meanwhile(node: Node) -> None:
    part = zmtp.frame(bytes(256 * KIB), zmtp.MORE)
    left = []  # what the process holds after each flood
    with nun.Client(node.address, timeout=10.0) as client:
        database = client.database("d", token="t")
        database.set("served", "0")
        for _ in range(3):
            before = highest = node.resident_bytes("network")
            taken: list[int] = []
            served = database.get("served").value  # type: ignore[union-attr]
            with zmtp.greeted(node.address) as peer:
                own = peer.getsockname()
                flood = threading.Thread(target=pour, args=(peer, part, taken))
                flood.start()
                count = int(served)
                while flood.is_alive():
                    count += 1
                    assert database.increment("served").value == count
                    highest = max(highest, node.resident_bytes("network"))
                flood.join()
            line = node.wait_log("flood_cut", peer=f"{own[0]}:{own[1]}")
            assert UNFINISHED_BYTES_MAX < line["bytes"] <= taken[0]
            assert count > int(served) + 5
            # Beyond the bound is what comes between two looks, at the speed of the loopback interface.
            assert highest - before < 5 * UNFINISHED_BYTES_MAX, f"grew by {highest - before} bytes"
            left.append(node.resident_bytes("network"))
        assert database.get("served") is not None
    with nun.Client(node.address, **ADMIN) as admin:
        assert admin.status()["floods"] == 3
    wait_until(
        lambda: node.resident_bytes("network") < max(left[0], left[1]) + 32 * MIB,
        "what was buffered to be free again",
    )


def test_a_client_of_many_large_whole_batches_is_not_cut(node: Node) -> None:
    """As large as they may be, as fast as they go, more at once than the node may hold pending."""
    payload = pack([["a", "b", "c", "d"], [bytes(15 * MIB)] * 4])
    with connect(node.address, None, None) as client:
        database = client.use("d", "t")
        mark = node.mark()
        numbers = [client.next_number() for _ in range(12)]
        body: list[Any] = []
        for number in numbers:
            body = [m.SET_MANY, client.token, number, number, database, payload]
            client.socket.send(pack(body), copy=False)
        replies = {}
        while len(replies) < len(numbers):
            message = client.receive(60.0)
            assert message is not None, "no answer: the link was cut"
            if message[0] < m.PROBE:
                replies[message[1]] = message[0]
        statuses = set(replies.values())
        assert 0 in statuses
        assert statuses <= {0, Overloaded.code}
        assert client.request(m.GET, database, "d").status == 0
    assert not [line for line in node.lines[mark:] if line["event"] == "flood_cut"]


def test_a_flood_over_curve_is_cut(start_node: Callable[..., Node]) -> None:
    server_key, secret = zmq.curve_keypair()
    node = start_node(
        {
            "security": {
                "curve_secret_key": secret.decode(),
                "curve_public_key": server_key.decode(),
            }
        }
    )
    own = zmq.curve_keypair()
    before = node.resident_bytes("network")
    with connect(node.address, curve=(server_key, *own)) as client:
        client.socket.send_multipart([bytes(MIB)] * (FLOOD_BYTES // MIB), copy=False)
        line = node.wait_log("flood_cut")
        assert line["bytes"] < FLOOD_BYTES
        assert node.resident_bytes("network") - before < 5 * UNFINISHED_BYTES_MAX
    with connect(node.address, curve=(server_key, *own)) as client:
        assert client.request(m.STATUS).status == 0
