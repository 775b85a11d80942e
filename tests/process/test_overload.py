"""Too much for the node: those who do not read, a disk that stands still, a process that stands still. Memory stays
bounded, others are served, and what was promised is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import zmq

import nun
from nun import messages as m
from nun.errors import Overloaded
from nun.limits import MIB
from tests.support.node import ADMIN, Node, wait_until
from tests.support.raw_client import RawClient, connect

pytestmark = pytest.mark.process

SETTINGS: dict[str, dict[str, Any]] = {
    "storage": {"fsync": "always", "snapshot_interval_s": 0},
    "limits": {"unread_bytes_max": 8 * MIB, "pending_bytes_max": 4 * MIB},
}
REQUESTS = 500  # fewer than the messages that may wait in one client's pipe


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    node = start_node(SETTINGS)
    with nun.Client(node.address, **ADMIN) as admin:
        admin.create_database("d", token="t")
    return node


def is_served(node: Node) -> None:
    """Somebody else can still write and read."""
    with nun.Client(node.address, timeout=10.0) as client:
        database = client.database("d", token="t")
        assert database.increment("served").value >= 1
        assert database.get("served") is not None


def test_large_replies_that_nobody_reads_are_bounded(node: Node) -> None:
    with connect(node.address, receive_hwm=1) as deaf:
        deaf.use("d", "t")
        deaf.write(m.SET, 1, "large", bytes(MIB), None).value()
        before = node.resident_bytes("network")
        for _ in range(REQUESTS):
            deaf.send(m.GET, deaf.token, deaf.next_number(), 1, "large")
        is_served(node)
        growth = node.resident_bytes("network") - before
        assert growth < 8 * MIB + 32 * MIB, f"{growth} bytes for replies that nobody reads"
        statuses = set()
        for _ in range(REQUESTS):
            message = deaf.receive(5.0)
            assert message is not None, "each request has an answer"
            statuses.add(message[1] if message[0] == m.RECEIPT else message[0])
        assert statuses == {0, Overloaded.code}


def test_small_replies_that_nobody_reads_are_bounded(node: Node) -> None:
    with connect(node.address, receive_hwm=1) as deaf:
        deaf.use("d", "t")
        deaf.write(m.SET, 1, "small", bytes(3000), None).value()
        before = node.resident_bytes("network")
        deaf.socket.sndtimeo = 2000
        sent = 0
        try:
            for _ in range(100_000):
                deaf.send(m.GET, deaf.token, deaf.next_number(), 1, "small")
                sent += 1
        except zmq.Again:
            pass  # the node took no more of them: a bound as well
        is_served(node)
        growth = node.resident_bytes("network") - before
        assert growth < 64 * MIB, f"{growth} bytes for {sent} small replies that nobody reads"


def test_a_watcher_that_reads_nothing_costs_only_its_credit(node: Node) -> None:
    with connect(node.address, receive_hwm=1) as deaf:
        deaf.use("d", "t")
        for _ in range(5):
            deaf.request(m.WATCH, 1, m.WATCH_ALL, "", None, 4 * MIB).value()
        before = node.resident_bytes("network")
        with nun.Client(node.address) as client:
            database = client.database("d", token="t")
            for number in range(100):
                database.set_many({f"k{i}": bytes(1000) for i in range(1000)})
                assert database.set("last", str(number)).version == number + 1
        growth = node.resident_bytes("network") - before
        assert growth < 5 * 4 * MIB + 48 * MIB, f"{growth} bytes for events that nobody reads"


def test_a_disk_that_stands_still_overloads_and_loses_nothing(node: Node) -> None:
    """400 MB of writes while nothing becomes durable: what is too much is refused at once, the rest is kept."""
    value = bytes(100_000)
    with connect(node.address) as writer, connect(node.address) as reader:
        for client in (writer, reader):
            client.use("d", "t")
        writer.write(m.SET, 1, "other", "held", None).value()
        before = node.resident_bytes("network")
        node.pause("writer")
        numbers: list[int] = []
        statuses: dict[int, int] = {}

        def take_in(until: int) -> None:
            while until not in statuses:
                message = writer.receive(20.0)
                assert message is not None, "no answer although the node is overloaded"
                statuses[message[1]] = message[0]

        for _ in range(10):
            for _ in range(400):
                numbers.append(writer.next_number())
                writer.post(numbers[-1], m.SET, 1, f"k{numbers[-1]}", value, None)
            ping = writer.next_number()
            writer.send(m.PING, writer.token, ping, None)
            take_in(ping)
        early = [statuses[number] for number in numbers if number in statuses]
        assert set(early) == {Overloaded.code}
        assert len(early) > 2500, (
            "beyond pending_bytes_max and what one turn drains, all is refused"
        )
        assert reader.request(m.GET, 1, "other").value()[12:] == b"held"
        growth = node.resident_bytes("network") - before
        assert growth < 320 * MIB, f"{growth} bytes while the disk stands still"
        node.resume("writer")
        for number in numbers:
            take_in(number)
        accepted = {number for number in numbers if statuses[number] == 0}
        assert accepted
        assert writer.write(m.SET, 1, "after", "v", None).status == 0
        node.kill("node")
        node.restart()
    with connect(node.address) as client:
        client.use("d", "t")
        for number in numbers:
            found = client.request(m.GET, 1, f"k{number}").value()
            assert (found is not None) == (number in accepted), number


def test_requests_that_wait_for_a_still_disk_are_bounded(node: Node) -> None:
    """Reads of what is not durable wait; a flood of them must not fill the memory."""
    with connect(node.address) as client:
        client.use("d", "t")
        client.write(m.SET, 1, "hot", "1", None).value()
        node.pause("writer")
        client.post(client.next_number(), m.SET, 1, "hot", "2", None)
        before = node.resident_bytes("network")
        for _ in range(300_000):
            client.send(m.GET, client.token, 7, 1, "hot")
        with connect(node.address) as other:
            assert other.request(m.PING, None).status == 0
        growth = node.resident_bytes("network") - before
        assert growth < 64 * MIB, f"{growth} bytes for reads that wait"
        node.resume("writer")
        with connect(node.address) as other:
            other.use("d", "t")
            assert other.request(m.GET, 1, "hot").value()[12:] == b"2"


def test_a_network_process_that_stands_still_goes_on(node: Node) -> None:
    with nun.Client(node.address, timeout=30.0) as client:
        database = client.database("d", token="t")
        database.set("k", "1")
        with RawClient(node.address) as late:
            node.pause("network")
            late.send(m.HELLO, 1, 1, b"late", None, None, None)
            assert late.receive(0.5) is None
            node.resume("network")
            reply = late.reply_to(1)
            assert reply is not None
            assert reply.status == 0
        assert database.set("k", "2").version == 2


def test_a_client_times_out_with_the_truth_and_may_ask_again(node: Node) -> None:
    with nun.Client(node.address, timeout=1.0) as client:
        database = client.database("d", token="t")
        database.set("n", "1")
        node.pause("writer")
        with pytest.raises(nun.UnknownOutcome) as unknown:
            database.increment("n", 1)
        node.resume("writer")
        assert unknown.value.retry(10.0).value == 2
        assert database.get("n").value == "2"


def test_memory_stays_flat_over_many_clients_that_come_and_go(node: Node) -> None:
    def come_and_go(times: int) -> None:
        for _ in range(times):
            with connect(node.address, None, None) as client:
                client.use("d", "t")
                client.request(m.WATCH, 1, m.WATCH_ALL, "", None, 1000).value()
                client.request(m.BYE).value()

    come_and_go(200)
    before = node.resident_bytes("network")
    come_and_go(1000)
    assert node.resident_bytes("network") - before < 12 * MIB
    with nun.Client(node.address, **ADMIN) as admin:
        wait_until(lambda: admin.status() is not None, "the node to tell its state")
