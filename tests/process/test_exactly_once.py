"""A request whose reply was lost is sent again under its number: it takes effect once and gets the first answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nun import messages as m
from nun.codec import pack
from nun.errors import BatchRefused, NotANumber, OutcomeExpired, VersionConflict
from tests.support.node import Node, seeded, wait_until
from tests.support.raw_client import RawClient, Reply, connect

pytestmark = pytest.mark.process

Clients = Callable[..., RawClient]


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    node = start_node({"storage": {"fsync": "always", "snapshot_interval_s": 0}})
    with connect(node.address) as admin:
        admin.write(m.CREATE_DATABASE, "d", "t", {}).value()
    return node


@pytest.fixture
def clients(node: Node) -> Iterator[Clients]:
    """A function that connects a client (a known one again, by its id and birth) with the database selected."""
    opened: list[RawClient] = []

    def client(known: RawClient | None = None) -> RawClient:
        new = RawClient(node.address)
        opened.append(new)
        if known is None:
            new.hello("nun", "nun-pwd").value()
        else:
            new.number = known.number
            new.hello("nun", "nun-pwd", known.client_id, known.born).value()
            new.floor = known.floor
        assert new.use("d", "t") == 1
        return new

    yield client
    for each in opened:
        each.close()


def value_of(client: RawClient, key: str) -> bytes | None:
    packed = client.request(m.GET, 1, key).value()
    return None if packed is None else packed[12:]


def batch(atomic: bool, *operations: tuple[int, str, Any]) -> tuple[Any, ...]:
    kinds = bytes(kind for kind, _, _ in operations)
    payload = pack([[key for _, key, _ in operations], [value for _, _, value in operations]])
    return (m.BATCH, 1, atomic, kinds, payload, None)


# A write of every kind: (what to send, what it does to the counter "n" when it is done once)
WRITES: dict[str, tuple[Any, ...]] = {
    "increment": (m.INCREMENT, 1, "n", 5),
    "set": (m.SET, 1, "n", "7", None),
    "set if version 1": (m.SET, 1, "n", "7", [m.IF_VERSION, 1, False]),
    "remove": (m.REMOVE, 1, "n", None),
    "set_many": (m.SET_MANY, 1, pack([["n", "x"], ["7", "y"]])),
    "batch": batch(False, (m.INCREMENT, "n", 5), (m.SET, "x", "y")),
    "batch with a failure": batch(False, (m.INCREMENT, "n", 5), (m.INCREMENT, "text", 1)),
    "atomic batch": batch(True, (m.INCREMENT, "n", 5), (m.SET, "x", "y")),
}
# Writes that the accept rule refuses, as long as "n" is at version 1.
REFUSED: dict[str, tuple[tuple[Any, ...], int]] = {
    "set if version 2": ((m.SET, 1, "n", "7", [m.IF_VERSION, 2, False]), VersionConflict.code),
    "set if absent": ((m.SET, 1, "n", "7", [m.ON_BASE, 0, False]), VersionConflict.code),
    "increment of a text": ((m.INCREMENT, 1, "text", 1), NotANumber.code),
    "atomic batch": (
        batch(True, (m.SET, "n", "8"), (m.INCREMENT, "text", 1)),
        BatchRefused.code,
    ),
}


def set_up(client: RawClient) -> None:
    client.write(m.SET, 1, "n", "1", None).value()
    client.write(m.SET, 1, "text", "no number", None).value()


@pytest.mark.parametrize("what", WRITES)
def test_a_repeated_number_gets_the_first_answer(clients: Clients, what: str) -> None:
    client, other = clients(), clients()
    set_up(client)
    number = client.next_number()
    first = client.resend(number, *WRITES[what])
    assert first.status == 0
    after = value_of(client, "n")
    assert client.resend(number, *WRITES[what]) == first
    assert value_of(client, "n") == after
    other.write(m.SET, 1, "n", "100", None).value()
    assert client.resend(number, *WRITES[what]) == first
    assert value_of(client, "n") == b"100"


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_stays_a_refusal(clients: Clients, what: str) -> None:
    client, other = clients(), clients()
    set_up(client)
    request, code = REFUSED[what]
    number = client.next_number()
    first = client.resend(number, *request)
    assert first.status == code
    other.write(m.SET, 1, "text", "5", None).value()
    other.write(m.REMOVE, 1, "n", None).value()  # now version 2, and absent
    again = client.resend(number, *request)
    assert (again.status, again.op_id) == (code, first.op_id)
    assert value_of(client, "n") is None
    assert value_of(client, "text") == b"5"


def test_replies_that_are_lost_on_purpose(clients: Clients) -> None:
    """Every number is sent one to three times, in bursts, over connections that are dropped unread."""
    source = seeded("lost replies")
    client = clients()
    expected = 0
    for _ in range(20):
        first = client.number + 1
        for _ in range(source.randrange(1, 30)):
            number = client.next_number()
            for _ in range(source.randrange(1, 4)):
                client.post(number, m.INCREMENT, 1, "n", 1)
            expected += 1
        last = client.number
        if source.random() < 0.5:
            # Nothing says how far the dropped connection got: the new one sends all of them again.
            lost, client = client, clients(client)
            client.number = max(client.number, last)
            for number in range(first, last):
                client.post(number, m.INCREMENT, 1, "n", 1)
            lost.close()
        assert client.resend(last, m.INCREMENT, 1, "n", 1).value()[1] == expected
    assert value_of(client, "n") == str(expected).encode()


@pytest.mark.parametrize("how", ["node", "writer", "network", "stop"])
def test_the_first_answer_survives_a_restart(clients: Clients, node: Node, how: str) -> None:
    client = clients()
    set_up(client)
    first: dict[int, tuple[tuple[Any, ...], Reply]] = {}
    for request in [*WRITES.values(), *(request for request, _ in REFUSED.values())]:
        number = client.next_number()
        first[number] = (request, client.resend(number, *request))
    before = value_of(client, "n")
    if how == "stop":
        assert node.stop() == 0
        node.restart()
    elif how == "node":
        node.kill(how)
        node.restart()
    else:
        node.kill(how)
        node.wait_ready()
    again = clients(client)
    for number, (request, reply) in first.items():
        repeated = again.resend(number, *request)
        assert (repeated.status, repeated.op_id) == (reply.status, reply.op_id), request
        if reply.status == 0:
            assert repeated == reply
    assert value_of(again, "n") == before


def test_below_the_floor_is_expired_and_never_done_again(clients: Clients, node: Node) -> None:
    client = clients()
    number = client.next_number()
    client.resend(number, m.INCREMENT, 1, "n", 1).value()
    client.floor = client.number + 1
    client.write(m.INCREMENT, 1, "n", 1).value()
    assert client.resend(number, m.INCREMENT, 1, "n", 1).status == OutcomeExpired.code
    node.kill("node")
    node.restart()
    again = clients(client)
    assert again.resend(number, m.INCREMENT, 1, "n", 1).status == OutcomeExpired.code
    assert value_of(again, "n") == b"2"


def test_two_clients_may_use_the_same_numbers(clients: Clients) -> None:
    one, two = clients(), clients()
    number = max(one.number, two.number) + 1
    one.number = two.number = number
    assert one.resend(number, m.INCREMENT, 1, "n", 1).value()[1] == 1
    assert two.resend(number, m.INCREMENT, 1, "n", 1).value()[1] == 2
    assert one.resend(number, m.INCREMENT, 1, "n", 1).value()[1] == 1


def test_a_forgotten_client_gets_expired_and_no_second_execution(
    start_node: Callable[..., Node],
) -> None:
    node = start_node({"limits": {"request_rows_bytes_max": 65536}})
    with connect(node.address) as old:
        old.write(m.CREATE_DATABASE, "d", "t", {}).value()
        old.use("d", "t")
        number = old.next_number()
        old.resend(number, m.INCREMENT, 1, "n", 1).value()
        for index in range(300):
            with connect(node.address) as other:
                other.use("d", "t")
                other.write(m.INCREMENT, 1, f"other{index}", 1).value()

        def forgotten() -> bool:
            again = old.resend(number, m.INCREMENT, 1, "n", 1)
            assert again.status == OutcomeExpired.code or again.value()[1] == 1
            return again.status != 0

        wait_until(forgotten, "the oldest client to be forgotten")
        node.kill("node")
        node.restart()
        with RawClient(node.address) as again:
            again.number = old.number
            again.hello("nun", "nun-pwd", old.client_id, old.born).value()
            again.use("d", "t")
            assert again.resend(number, m.INCREMENT, 1, "n", 1).status == OutcomeExpired.code
            assert value_of(again, "n") == b"1"


def test_no_answer_is_given_before_the_write_is_durable(clients: Clients, node: Node) -> None:
    """P3: first tries, retries, refusals that depend on it and reads all wait for the disk."""
    client, other = clients(), clients()
    set_up(client)
    node.pause("writer")
    number, refused = client.next_number(), client.next_number()
    client.post(number, m.INCREMENT, 1, "n", 1)
    client.post(number, m.INCREMENT, 1, "n", 1)
    client.post(refused, m.SET, 1, "n", "9", [m.IF_VERSION, 1, False])
    reading = other.next_number()
    other.send(m.GET, other.token, reading, 1, "n")
    ping = other.next_number()
    other.send(m.PING, other.token, ping, 0)
    assert client.receive(0.5) is None, "an answer came before the write was durable"
    early = other.receive(0.5)
    assert early is None or early[1] == ping, f"the read was answered too early: {early}"
    node.resume("writer")
    first = client.reply_to(number)
    assert first is not None
    assert first.value() == [2, 2]
    assert client.reply_to(number) == first
    refusal = client.reply_to(refused)
    assert refusal is not None
    assert refusal.status == VersionConflict.code
    read = other.reply_to(reading)
    assert read is not None
    assert read.value()[12:] == b"2"


def test_a_write_that_was_not_durable_at_the_crash_is_done_once_by_its_retry(
    clients: Clients, node: Node
) -> None:
    client = clients()
    set_up(client)
    node.pause("writer")
    number = client.next_number()
    client.post(number, m.INCREMENT, 1, "n", 1)
    assert client.receive(0.3) is None
    node.kill("node")
    node.restart()
    again = clients(client)
    assert again.resend(number, m.INCREMENT, 1, "n", 1).value()[1] == 2
    assert again.resend(number, m.INCREMENT, 1, "n", 1).value()[1] == 2
    assert value_of(again, "n") == b"2"
