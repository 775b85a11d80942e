"""Local writes, items decided late, the ledger, outcomes and waiting: a primary and a replica's network process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.core.proposals import repeats
from nun.core.proposals.outbox import Item, Operation, decode_item, encode_item, items_of_entries
from nun.core.proposals.tentative import PROPOSED_BYTES_MAX
from nun.errors import (
    BadRequest,
    LevelNotReached,
    NotANumber,
    OutcomeExpired,
    PermissionDenied,
    VersionConflict,
    WireError,
)
from nun.limits import VERSION_MAX
from nun.position import NOTHING, Position
from tests.support.core_driver import DrivenClient
from tests.support.replicas import Cluster, NodeDriver
from tests.unit.core.test_replicas import ask, error_of, reply_to, write

LOCAL = (m.ACK_LOCAL, 1_000)
CLIENT = b"whose"


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.database()
    return made


def keep_outbox(node: NodeDriver) -> None:
    """The storage writer of a replica makes its outbox durable."""
    node.core.outbox_durable(node.core.tentative._following - 1, node.now_ns)
    node.perform()


def value_of(node: NodeDriver, key: bytes) -> bytes | None:
    packed = node.core.tables[1].records.get(key)
    return None if packed is None or not record.is_live(packed) else record.value_of(packed)


def item(number: int, *operations: Operation, kind: int = m.SET, atomic: bool = False) -> bytes:
    return encode_item(
        Item(CLIENT, number, 0, b"d", kind, atomic, list(operations), 1_700_000_000_000, 0, NOTHING)
    )


def decide(
    node: NodeDriver,
    outbox_number: int,
    data: bytes,
    previous: int | None = None,
    verdict: int = repeats.LATER,
    seen: Position | None = None,
    origin: int = 2,
) -> None:
    """An item of node 2 comes to the primary."""
    before = outbox_number - 1 if previous is None else previous
    body = pack((before, outbox_number, verdict, seen or node.core.state.position, data))
    node.hear(pm.PROPOSALS, [[origin, outbox_number, body]])
    node.sync()


def ledger(node: NodeDriver) -> list[dict[str, Any]]:
    keys = [key for key in node.core.tables[1].records if key.startswith(b"$conflicts_")]
    return [json.loads(value_of(node, key) or b"") for key in sorted(keys)]


def stamp(node: NodeDriver, count: int = 1) -> int:
    return node.core.stream.clock.reserve(node.unix_ms, count)


# Taking


def test_a_local_write_is_shown_once_it_is_in_the_outbox(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    number = write(client, m.SET, 1, "a", "1", None, level=LOCAL)
    read = ask(client, m.GET, 1, "a")
    assert client.reply_to(number) is None
    assert client.reply_to(read) is None, "a crash could take it back"
    keep_outbox(replica)
    reply = reply_to(client, number)
    assert (reply.status, reply.result, reply.position) == (0, 1, None)
    assert record.value_of(reply_to(client, read).result) == b"1"
    assert value_of(cluster.primary, b"a") is None


def pages(client: DrivenClient, pattern: str, limit: int) -> list[list[bytes]]:
    found, after = [], None
    while not found or after is not None:
        page, after = reply_to(client, ask(client, m.KEYS, 1, pattern, limit, after)).result
        found.append(page)
    return found


def test_keys_are_listed_as_they_are_shown(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    with_them = cluster.primary.client()
    for key in ("b", "d", "f", "x"):
        write(with_them, m.SET, 1, key, "1", None)
    cluster.carry()
    client = replica.client()
    assert pages(client, "*", 100) == [[b"b", b"d", b"f", b"x"]]
    for kind, *arguments in [
        (m.SET, 1, "a", "1", None),
        (m.INCREMENT, 1, "e", 2),
        (m.REMOVE, 1, "d", None),
        (m.SET, 1, "gone", "1", None),
        (m.REMOVE, 1, "gone", None),
        (m.SET, 1, "y", "1", None),
    ]:
        write(client, kind, *arguments, level=LOCAL)
    early = ask(client, m.KEYS, 1, "*", 100, None)
    assert client.reply_to(early) is None, "a crash could take it back"
    keep_outbox(replica)
    shown = [b"a", b"b", b"e", b"f", b"x", b"y"]
    assert reply_to(client, early).result == [shown, None]
    for limit in range(1, 8):
        by_pages = pages(client, "*", limit)
        assert [key for page in by_pages for key in page] == shown
        assert max(map(len, by_pages)) <= limit
    assert pages(client, "e", 100) == [[b"e"]]
    assert pages(client, "g*", 100) == [[]]
    assert pages(cluster.primary.client(), "*", 100) == [[b"b", b"d", b"f", b"x"]]


def test_local_writes_build_on_what_is_shown(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    for kind, *arguments in [
        (m.SET, 1, "n", "5", None),
        (m.INCREMENT, 1, "n", 2),
        (m.SET, 1, "a", "1", None),
        (m.REMOVE, 1, "a", None),
        (m.SET_MANY, 1, pack([["x", "y"], ["1", "2"]])),
        (m.BATCH, 1, True, bytes([m.SET, m.INCREMENT]), pack([["x", "n"], ["3", 1]]), None),
    ]:
        write(client, kind, *arguments, level=LOCAL)
    keep_outbox(replica)
    many = reply_to(client, ask(client, m.GET_MANY, 1, ["n", "a", "x", "y"])).result
    shown = [
        None if one is None or not record.is_live(one) else record.value_of(one) for one in many
    ]
    assert shown == [b"8", None, b"3", b"2"]
    cluster.forward()
    cluster.carry()
    cluster.carry()
    assert [value_of(cluster.primary, key) for key in (b"n", b"a", b"x", b"y")] == shown
    assert ledger(cluster.primary) == []
    assert not replica.core.tentative.shown
    assert len(replica.core.tentative) == 0, "decided and settled: it has left the outbox"


@pytest.mark.parametrize(
    ("kind", "arguments", "error"),
    [
        (m.SET, (1, "$sys", "1", None), BadRequest),
        (m.SET, (1, "a", "2", [m.ON_BASE, 0, False]), VersionConflict),
        (m.SET, (1, "a", "2", [m.IF_VERSION, 9, False]), VersionConflict),
        (m.INCREMENT, (1, "a", 1), NotANumber),
        (m.SET, (1, "a", 5, None), BadRequest),
        (m.BATCH, (1, False, bytes([m.GET]), pack([["a"], [None]]), None), BadRequest),
    ],
)
def test_a_local_write_that_cannot_be_is_refused_at_once(
    cluster: Cluster, kind: int, arguments: Any, error: type[Exception]
) -> None:
    (replica,) = cluster.replicas
    write(cluster.primary.client(), m.SET, 1, "a", "text", None)
    cluster.carry()
    client = replica.client()
    number = write(client, kind, *arguments, level=LOCAL)
    assert error_of(client, number) == error.code  # type: ignore[attr-defined]
    assert len(replica.core.tentative) == 0


def test_a_repeated_local_write_is_taken_once(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    number = client.next_number()
    peer, message = client.message(number, m.INCREMENT, 1, "n", 1)
    message[3] = [message[3], *LOCAL]
    for _ in range(2):
        replica.receive((peer, list(message)))
    keep_outbox(replica)
    assert len(replica.core.tentative) == 1
    cluster.forward()
    cluster.carry()
    assert value_of(cluster.primary, b"n") == b"1"


def test_an_item_that_was_lost_is_proposed_again_and_counts_once(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    write(client, m.INCREMENT, 1, "n", 1, level=LOCAL)
    write(client, m.INCREMENT, 1, "n", 1, level=LOCAL)
    keep_outbox(replica)
    replica.told(pm.PROPOSE)  # lost
    for _ in range(2):
        replica.hear(pm.PRIMARY_IS, "node1", "tcp://node1")
        cluster.forward()
    cluster.carry()
    assert value_of(cluster.primary, b"n") == b"2"


def test_a_long_outbox_is_proposed_as_far_as_may_be_under_way(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    for _ in range(5):
        write(client, m.SET, 1, "a", "x" * (PROPOSED_BYTES_MAX // 2 - 1_000), None, level=LOCAL)
        keep_outbox(replica)
    proposed = [body for _, bodies in replica.told(pm.PROPOSE) for body in bodies]
    assert len(proposed) == 3
    replica.hear(pm.PRIMARY_IS, "node1", "tcp://node1")
    proposed = [body for _, bodies in replica.told(pm.PROPOSE) for body in bodies]
    assert len(proposed) == 3, "those that may have been lost"
    cluster.primary.hear(pm.PROPOSALS, [[2, ticket, body] for ticket, body in proposed])
    cluster.carry()
    cluster.carry()
    assert len(replica.core.tentative) == 2, "three are settled"
    cluster.forward()
    cluster.carry()
    cluster.carry()
    assert len(replica.core.tentative) == 0
    assert cluster.primary.core.state.outboxes == {2: 5}
    assert ledger(cluster.primary) == []


# Deciding


def test_a_late_plain_set_is_judged_by_what_it_was_made_on(cluster: Cluster) -> None:
    primary = cluster.primary
    client = primary.client()
    first = reply_to(client, _synced(primary, write(client, m.SET, 1, "a", "1", None)))
    _synced(primary, write(client, m.SET, 1, "a", "2", None))
    late = stamp(primary)
    decide(primary, 1, item(1, Operation(m.SET, b"a", b"late", first.op_id or 0, late)))
    assert value_of(primary, b"a") == b"2"
    (entry,) = ledger(primary)
    assert (entry["state"], entry["value"], entry["op_id"]) == ("refused", "late", late)
    assert entry["current"]["value"] == "2"
    assert primary.core.state.notices[CLIENT].keys() == {late}


def _synced(node: NodeDriver, number: int) -> int:
    node.sync()
    return number


def test_an_item_that_was_accepted_keeps_its_op_id(cluster: Cluster) -> None:
    primary = cluster.primary
    op_id = stamp(primary)
    decide(primary, 1, item(1, Operation(m.SET, b"a", b"1", 0, op_id)))
    assert record.op_id_of(primary.core.tables[1].records[b"a"]) == op_id
    row = primary.core.state.clients[CLIENT].rows[1]
    assert (row.status, row.op_id, row.result) == (0, op_id, 1)
    decide(primary, 2, item(1, Operation(m.SET, b"a", b"again", op_id, stamp(primary))))
    assert value_of(primary, b"a") == b"1", "its request was decided before"
    assert primary.core.state.outboxes == {2: 2}


@pytest.mark.parametrize("strategy", ["none", "newer"])
def test_a_write_keeps_the_version_that_it_was_shown_with(strategy: str) -> None:
    """`set-safe k 9` makes version 10 where it is taken; the writer may come back with that."""
    cluster = Cluster()
    cluster.database(strategy=strategy)
    (replica,) = cluster.replicas
    client = replica.client()
    told = []
    for condition in ([m.ON_VERSION, 9, False], None, [m.ON_VERSION, 20, False]):
        told.append(write(client, m.SET, 1, "a", "1", condition, level=LOCAL))
    told.append(write(client, m.BATCH, 1, False, bytes([m.SET, m.REMOVE]), pack([["a", "b"], ["2", None]]),
                      {0: [m.ON_VERSION, 30, False], 1: [m.ON_VERSION, 5, False]}, level=LOCAL))  # fmt: skip
    keep_outbox(replica)
    assert [reply_to(client, one).result for one in told] == [10, 11, 21, [31, 6]]
    cluster.forward()
    cluster.carry()
    cluster.carry()
    for node in (cluster.primary, replica):
        records = node.core.tables[1].records
        assert [record.version_of(records[key]) for key in (b"a", b"b")] == [31, 6]
    assert ledger(cluster.primary) == []


def test_a_write_whose_base_is_gone_makes_no_version(cluster: Cluster) -> None:
    primary = cluster.primary
    first = stamp(primary, 2)
    decide(primary, 1, item(1, Operation(m.SET, b"a", b"1", 0, first)))
    decide(primary, 2, item(2, Operation(m.SET, b"a", b"late", 0, first + TICK, 50)))
    assert record.version_of(primary.core.tables[1].records[b"a"]) == 1
    assert [entry["state"] for entry in ledger(primary)] == ["refused"]


def test_items_are_taken_in_order_without_a_hole(cluster: Cluster) -> None:
    primary = cluster.primary
    third = item(3, Operation(m.INCREMENT, b"n", 100, 0, stamp(primary)), kind=m.INCREMENT)
    first = item(1, Operation(m.INCREMENT, b"n", 1, 0, stamp(primary)), kind=m.INCREMENT)
    decide(primary, 1, first)
    decide(primary, 3, third)
    assert (value_of(primary, b"n"), primary.core.state.outboxes) == (b"1", {2: 1})
    decide(primary, 3, third, previous=1)
    decide(primary, 1, first)
    assert (value_of(primary, b"n"), primary.core.state.outboxes) == (b"101", {2: 3})


def test_an_atomic_item_is_done_whole_or_recorded_whole(cluster: Cluster) -> None:
    primary = cluster.primary
    client = primary.client()
    _synced(primary, write(client, m.SET, 1, "a", "1", None))
    first = stamp(primary, 2)
    operations = [
        Operation(m.SET, b"b", b"new", 0, first),
        Operation(m.SET, b"a", b"stale", 0, first + TICK),
    ]
    decide(primary, 1, item(1, *operations, kind=m.BATCH, atomic=True))
    assert value_of(primary, b"b") is None
    assert [entry["value"] for entry in ledger(primary)] == ["stale", "new"]


def test_what_comes_for_a_dropped_database_is_told_with_its_value(cluster: Cluster) -> None:
    primary = cluster.primary
    _synced(primary, write(primary.client(), m.DROP_DATABASE, "d"))
    op_id = stamp(primary)
    decide(primary, 1, item(1, Operation(m.SET, b"a", b"kept", 0, op_id)))
    notice = unpack(primary.core.state.notices[CLIENT][op_id])
    assert (notice[b"value"], notice[b"reason"]) == (b"kept", b"its database is gone")


def test_what_is_no_item_changes_nothing(cluster: Cluster) -> None:
    before = cluster.primary.core.state.dump()
    for bad in (b"", b"\xc1", pack([1]), pack(list(range(11)))):
        cluster.primary.hear(
            pm.PROPOSALS, [[2, 1, pack((0, 1, repeats.LATER, Position(1, 1, 1, 1), bad))]]
        )
        cluster.primary.sync()
    after = cluster.primary.core.state.dump()
    assert after[:-1] == before[:-1]
    with pytest.raises(WireError):
        decode_item(pack([1]))
    fields = unpack(item(1, Operation(m.SET, b"a", b"1", 0, TICK, 7)))
    assert fields[-1] == {0: 7}
    for versions in ({1: 7}, {-1: 7}, {0: 0}, {0: VERSION_MAX + 1}, {0: "7"}, {"0": 7}, [7], None):
        with pytest.raises(WireError):
            decode_item(pack([*fields[:-1], versions]))
    for decided_at in ({}, None, [1, 1, 1, 9], [[1, 1, 1]], [[1, 1, 1, "9"]], [[1, 1, 1, 9]] * 9):
        with pytest.raises(WireError):
            decode_item(pack([*fields, decided_at]))
    with pytest.raises(WireError):
        decode_item(pack([*fields, [[1, 1, 1, 9]], 1]))


# Cut writes


def test_client_writes_of_cut_entries_come_back_as_items() -> None:
    position = Position(1, 1, 1, 1)
    heads = record.heads([record.ABSENT, record.live(3, 77, b"")])
    entries = [
        (
            position,
            [
                [fx.MEMBERS, {}, 2],
                [fx.PUT, 1, TICK, 1, 0, b"a", b"1"],
                [fx.OUTCOME, CLIENT, 1, 0, 0, TICK, 1],
                [fx.INCREMENTED, 1, 2 * TICK, 2, 5, b"n", b"9", 4],
                [fx.OUTCOME, CLIENT, 2, 0, 0, 2 * TICK, [2, 9]],
                [fx.OUTCOME, CLIENT, 3, 0, VersionConflict.code, 0, [b"no", b"a"]],
                [fx.DROP, 1, [b"old"]],
            ],
        ),
        (
            position._replace(seq=2),
            [
                [fx.PUTS, 1, 3 * TICK, heads, pack([["x", "y"], ["1", "2"]])],
                [fx.OUTCOME, CLIENT, 4, 0, 0, 3 * TICK, True],
                [fx.TOMBSTONE, 1, 5 * TICK, 2, TICK, b"a"],
                [fx.OUTCOME, CLIENT, 5, 0, 0, 5 * TICK, 2],
            ],
        ),
    ]
    found = [decode_item(one) for one in items_of_entries(entries, {1: "d"}, NOTHING)]
    assert [(one.number, one.kind) for one in found] == [
        (1, m.SET),
        (2, m.INCREMENT),
        (4, m.SET_MANY),
        (5, m.REMOVE),
    ]
    assert [one for item in found for one in item.operations] == [
        Operation(m.SET, b"a", b"1", 0, TICK, 1),
        Operation(m.INCREMENT, b"n", 4, 5, 2 * TICK),
        Operation(m.SET, b"x", b"1", 0, 3 * TICK),
        Operation(m.SET, b"y", b"2", 77, 4 * TICK),
        Operation(m.REMOVE, b"a", None, TICK, 5 * TICK, 2),
    ]
    assert {one.database for one in found} == {b"d"}
    first, last = (position,), (position._replace(seq=2),)
    assert [one.decided_at for one in found] == [first, first, last, last]


# Being told


def notices(client: DrivenClient) -> list[int]:
    sent = client.driver.sent
    mine = [message for peer, message in sent if peer == client.peer and message[0] == m.OUTCOME]
    client.driver.sent = [one for one in sent if one[1][0] != m.OUTCOME]
    return [message[1] for message in mine]


def test_a_losing_writer_is_told_on_any_node_until_it_has_seen_it(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    primary = cluster.primary
    write(primary.client(), m.SET, 1, "a", "1", None)
    cluster.carry()
    waiting = replica.client(client_id=CLIENT)
    assert error_of(waiting, ask(waiting, m.OUTCOMES)) == 0
    op_id = stamp(primary)
    decide(primary, 1, item(10_000, Operation(m.SET, b"a", b"late", 0, op_id)))
    assert notices(waiting) == []
    cluster.carry()
    assert notices(waiting) == [op_id]
    again = primary.client(client_id=CLIENT)
    ask(again, m.OUTCOMES)
    assert notices(again) == [op_id], "it comes until it was seen"
    seen = write(again, m.OUTCOMES_SEEN, [op_id])
    cluster.carry()
    assert reply_to(again, seen).status == 0
    assert CLIENT not in replica.core.state.notices
    last = replica.client(client_id=CLIENT)
    ask(last, m.OUTCOMES)
    assert notices(last) == []


@pytest.mark.parametrize("value", [b"x" * 50_000, b"\xff" * 50_000, "ü".encode() * 5_000])
def test_the_state_holds_no_large_value_twice_and_its_writer_gets_it_whole(
    cluster: Cluster, value: bytes
) -> None:
    (replica,) = cluster.replicas
    primary = cluster.primary
    write(primary.client(), m.SET, 1, "a", value[::-1], None)
    cluster.carry()
    waiting = replica.client(client_id=CLIENT)
    ask(waiting, m.OUTCOMES)
    op_id = stamp(primary)
    decide(primary, 1, item(1, Operation(m.SET, b"a", value, 0, op_id)))
    cluster.carry()
    ask(primary.client(client_id=CLIENT), m.OUTCOMES)
    for node in (replica, primary):
        assert len(node.core.state.notices[CLIENT][op_id]) < 500
        (message,) = [message for _, message in node.sent if message[0] == m.OUTCOME]
        told = unpack(message[2])
        assert told[b"value"] == value
        assert record.value_of(told[b"current"]) == value[::-1]


def test_waiting_for_a_request_gives_what_it_came_to(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    taken = write(client, m.INCREMENT, 1, "n", 3, level=LOCAL)
    keep_outbox(replica)
    waits = ask(client, m.WAIT, taken, m.ACK_PRIMARY, 9_000, None)
    assert client.reply_to(waits) is None
    cluster.forward()
    cluster.carry()
    assert reply_to(client, waits).result == [1, 3]
    assert reply_to(client, ask(client, m.WAIT, taken, m.ACK_PRIMARY, 9_000, None)).result == [1, 3]


def test_waiting_for_what_is_no_longer_remembered_needs_its_position(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    first = write(client, m.SET, 1, "a", "1", None)
    cluster.forward()
    cluster.carry()
    position = reply_to(client, first).position
    assert position is not None
    client.floor = client.number + 1
    write(client, m.SET, 1, "a", "2", None)
    cluster.forward()
    cluster.carry()
    assert first not in replica.core.state.clients[client.client_id].rows
    reply = reply_to(client, ask(client, m.WAIT, first, m.ACK_PRIMARY, 9_000, position))
    assert (reply.status, reply.result, reply.position) == (0, True, position)
    number = ask(client, m.WAIT, first, m.ACK_PRIMARY, 9_000, None)
    assert error_of(client, number) == OutcomeExpired.code
    cut = [*position[:2], 9, position[3]]
    assert error_of(client, ask(client, m.WAIT, first, 0, 9_000, cut)) == LevelNotReached.code
    bad = ask(client, m.WAIT, first, 0, 9_000, [1, 2])
    assert error_of(client, bad) == BadRequest.code


def test_local_writes_drop_the_rows_that_their_client_is_done_with(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    for _ in range(5):
        client.floor = client.number + 1
        write(client, m.INCREMENT, 1, "n", 1, level=LOCAL)
    keep_outbox(replica)
    cluster.forward()
    cluster.carry()
    assert value_of(cluster.primary, b"n") == b"5"
    assert len(cluster.primary.core.state.clients[client.client_id].rows) == 1


def test_the_ledger_is_read_by_who_may_read_the_key_and_written_by_nobody(cluster: Cluster) -> None:
    primary = cluster.primary
    admin = primary.client()
    for user, text in ((b"ann", b"r a*"), (b"bob", b"rw b*")):
        write(admin, m.CREATE_USER, "d", user, "secret")
        write(admin, m.SET_PERMISSIONS, "d", user, text)
    primary.work_on_secrets()
    write(admin, m.SET, 1, "a", "1", None)
    primary.sync()
    op_id = stamp(primary)
    decide(primary, 1, item(1, Operation(m.SET, b"a", b"late", 0, op_id)))
    entry = b"$conflicts_a_%d" % op_id

    def as_user(name: str) -> DrivenClient:
        client = primary.client(None)
        primary.core.sessions[client.peer].admin = False
        used = ask(client, m.USE, "d", name, "secret")
        primary.work_on_secrets()
        assert error_of(client, used) == 0
        return client

    ann, bob = as_user("ann"), as_user("bob")
    assert reply_to(ann, ask(ann, m.GET, 1, entry)).result is not None
    assert error_of(bob, ask(bob, m.GET, 1, entry)) == PermissionDenied.code
    assert error_of(admin, write(admin, m.SET, 1, entry, "x", None)) == BadRequest.code


def test_a_batch_decided_kind_by_kind_that_is_cut_off_keeps_deltas_bases_and_order() -> None:
    kinds = bytes([m.INCREMENT, m.GET, m.SET, m.INCREMENT])
    heads = record.pack_head(4, 77)
    deltas, sums = record.pack_integers([2, 3]), record.pack_integers([7, 10])
    effects: list[fx.Effect] = [
        [fx.PUTS, 1, 9 * TICK, bytes(12), pack([[b"s"], [b"v"]])],
        [fx.SUMS, 1, 10 * TICK, heads, [b"n", b"n"], deltas, sums],
        [fx.OUTCOME, CLIENT, 5, 0, 0, 9 * TICK, {m.BATCH: kinds, m.SET: bytes(12)}],
    ]
    (found,) = items_of_entries([(Position(1, 1, 1, 9), effects)], {1: "d"}, NOTHING)
    assert decode_item(found).operations == [
        Operation(m.INCREMENT, b"n", 2, 77, 10 * TICK),
        Operation(m.SET, b"s", b"v", 0, 9 * TICK),
        Operation(m.INCREMENT, b"n", 3, 10 * TICK, 11 * TICK),
    ]
    assert decode_item(found).kind == m.BATCH


def test_a_retry_of_a_batch_that_was_decided_anew_is_answered_in_the_order_it_had(
    cluster: Cluster,
) -> None:
    primary = cluster.primary
    write(primary.client(), m.SET, 1, b"n", b"5", None)
    primary.sync()
    client = primary.client(client_id=CLIENT)
    number = client.next_number()
    first = stamp(primary, 2)
    operations = [
        Operation(m.INCREMENT, b"n", 2, 0, first),
        Operation(m.SET, b"s", b"v", 0, first + TICK),
    ]
    decide(primary, 1, item(number, *operations, kind=m.BATCH))
    payload = pack([[b"n", b"g", b"s"], [2, None, b"v"]])
    kinds = bytes([m.INCREMENT, m.GET, m.SET])
    reply = client.write(m.BATCH, 1, False, kinds, payload, None, number=number)
    assert reply.value() == [[2, 7], None, 1]
