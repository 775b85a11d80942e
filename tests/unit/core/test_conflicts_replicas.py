"""Conflicts in a cluster: arbiters and losing writers on replicas, and conflicts of a history that was cut off."""

from __future__ import annotations

from typing import Any

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.core.conflicts import ledger
from nun.core.proposals import repeats
from nun.core.proposals.outbox import decode_item, items_of_entries
from nun.errors import BadRequest, ConflictPending, NoPrimary, VersionConflict
from nun.position import Position
from tests.support.conflicts import entries, notices, states, value_of
from tests.support.core_driver import DrivenClient
from tests.support.replicas import EPOCH, Cluster, NodeDriver
from tests.unit.core.test_items import LOCAL, keep_outbox
from tests.unit.core.test_replicas import ask, reply_to, write


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster(2)
    made.database(strategy="arbiter")
    return made


def put(
    cluster: Cluster, client: DrivenClient, key: str, value: str, base: int | None = None
) -> Any:
    """A write through any node, and its reply."""
    number = write(client, m.SET, 1, key, value, None if base is None else [m.ON_BASE, base, False])
    cluster.forward()
    cluster.carry()
    return reply_to(client, number)


def conflict(cluster: Cluster, loser: DrivenClient) -> int:
    """Two writers on two nodes, made on one record; the op id of the loser's."""
    winner = cluster.primary.client()
    base = put(cluster, winner, "k", "old").op_id
    put(cluster, winner, "k", "first", base)
    reply = put(cluster, loser, "k", "second", base)
    assert reply.status == ConflictPending.code
    return int(reply.result[1][b"conflict"])


def asked(cluster: Cluster, client: DrivenClient, kind: int, *arguments: Any) -> Any:
    number = write(client, kind, *arguments)
    cluster.forward()
    cluster.carry()
    return client.reply_to(number)


def claim(cluster: Cluster, client: DrivenClient, arbiter: bytes = b"a1") -> Any:
    reply = asked(cluster, client, m.CLAIM, 1, arbiter, 5_000, 10_000)
    return None if reply is None else reply.value()


def resolve(cluster: Cluster, client: DrivenClient, offer: Any, value: str) -> Any:
    attempt, key, _, shown, _, found, _ = offer
    op_ids = [entry[0] for entry in found]
    return asked(cluster, client, m.RESOLVE, 1, key, m.SET, value, shown, op_ids, attempt)


def same_everywhere(cluster: Cluster) -> None:
    first, *others = [
        {number: table.records for number, table in node.core.tables.items()}
        for node in cluster.nodes
    ]
    assert all(other == first for other in others)


def test_two_writers_on_two_nodes_and_the_arbiter_on_the_third(cluster: Cluster) -> None:
    one, two = cluster.replicas
    loser = one.client()
    conflict(cluster, loser)
    arbiter = two.client()
    offer = claim(cluster, arbiter)
    assert [entry[2] for entry in offer[5]] == [b"second"]
    assert resolve(cluster, arbiter, offer, "both").value() == [3, 0]
    assert [value_of(node, b"k") for node in cluster.nodes] == [b"both"] * 3
    assert [states(node) for node in cluster.nodes] == [[("second", "resolved")]] * 3
    assert notices(loser) == [("resolved", b"second")]
    same_everywhere(cluster)


def test_an_arbiter_that_leaves_a_replica_loses_its_claim_at_once(cluster: Cluster) -> None:
    one, two = cluster.replicas
    conflict(cluster, one.client())
    arbiter = two.client()
    assert claim(cluster, arbiter, b"a1") is not None
    other = one.client()
    waiting = write(other, m.CLAIM, 1, b"a2", 5_000, 10_000)
    cluster.forward()
    assert other.reply_to(waiting) is None
    two.receive((arbiter.peer, [m.BYE, arbiter.token, 0]))
    cluster.forward()
    cluster.carry()
    assert reply_to(other, waiting).value()[1] == b"k"


def test_a_claim_waits_at_the_primary_for_a_conflict_to_come(cluster: Cluster) -> None:
    one, two = cluster.replicas
    arbiter = two.client()
    waiting = write(arbiter, m.CLAIM, 1, b"a1", 5_000, 10_000)
    cluster.forward()
    assert arbiter.reply_to(waiting) is None
    conflict(cluster, one.client())
    assert reply_to(arbiter, waiting).value()[1] == b"k"


def test_every_node_lists_the_ledger(cluster: Cluster) -> None:
    one, _ = cluster.replicas
    conflict(cluster, one.client())
    for node in cluster.nodes:
        client = node.client()
        found, after = reply_to(client, ask(client, m.CONFLICTS, 1, "open", None, 10, None)).value()
        assert (len(found), after) == (1, None)
        shown = reply_to(client, ask(client, m.GET, 1, "k")).value()
        assert record.is_in_conflict(shown)


@pytest.mark.parametrize("kind", [m.SET, m.REMOVE, m.INCREMENT, m.SET_MANY, m.BATCH])
def test_a_local_write_to_a_key_in_conflict_waits_unseen_and_its_writer_is_told(
    cluster: Cluster, kind: int
) -> None:
    (one, _) = cluster.replicas
    conflict(cluster, cluster.primary.client())
    client = one.client()
    arguments: dict[int, tuple[Any, ...]] = {
        m.SET: ("k", "third", None),
        m.REMOVE: ("k", None),
        m.INCREMENT: ("k", 5),
        m.SET_MANY: (pack([["a", "k"], ["1", "third"]]),),
        m.BATCH: (False, bytes([m.SET, m.SET]), pack([["a", "k"], ["1", "third"]]), None),
    }
    number = write(client, kind, 1, *arguments[kind], level=LOCAL)
    keep_outbox(one)
    told = {m.INCREMENT: [-2, None], m.SET_MANY: [1, -2], m.BATCH: [1, -2]}
    assert reply_to(client, number).value() == told.get(kind, -2)
    read = reply_to(client, ask(client, m.GET, 1, "k")).value()
    assert record.value_of(read) == b"first"
    cluster.forward()
    cluster.carry()
    assert [state for _, state in states(cluster.primary)] == ["open", "open"]
    offer = claim(cluster, client)
    assert resolve(cluster, client, offer, "7").value() == [3, 0]
    assert len(notices(client)) == 1
    assert value_of(one, b"k") == (b"12" if kind == m.INCREMENT else b"7")
    same_everywhere(cluster)


def test_a_local_write_that_lost_its_base_while_it_travelled_is_a_conflict(
    cluster: Cluster,
) -> None:
    one, _ = cluster.replicas
    client = one.client()
    put(cluster, client, "k", "old")
    number = write(client, m.SET, 1, "k", "tentative", None, level=LOCAL)
    keep_outbox(one)
    assert reply_to(client, number).value() == 2
    put(cluster, cluster.primary.client(), "k", "decided first")
    cluster.forward()
    cluster.carry()
    assert states(cluster.primary) == [("tentative", "open")]
    assert value_of(one, b"k") == b"decided first"
    assert cluster.primary.core.state.notices == {}
    arbiter = cluster.primary.client()
    resolve(cluster, arbiter, claim(cluster, arbiter), "merged").value()
    assert notices(client) == [("resolved", b"tentative")]


def test_local_writes_are_refused_at_once_where_nothing_else_can_come_of_them(
    cluster: Cluster,
) -> None:
    one, _ = cluster.replicas
    conflict(cluster, cluster.primary.client())
    client = one.client()
    for condition in ([m.IF_VERSION, 1, False], [m.PLAIN, 0, True], [m.ON_BASE, 5, True]):
        number = write(client, m.SET, 1, "k", "x", condition, level=LOCAL)
        assert reply_to(client, number).status == VersionConflict.code
    batch = write(client, m.BATCH, 1, True, bytes([m.SET]), pack([["k"], ["x"]]), None, level=LOCAL)
    assert reply_to(client, batch).status == VersionConflict.code


def test_a_primary_that_steps_down_refuses_who_waits_for_its_manager(cluster: Cluster) -> None:
    client = cluster.primary.client()
    waiting = write(client, m.CLAIM, 1, b"a1", 5_000, 10_000)
    cluster.primary.hear(pm.BE_REPLICA, None, 0)
    assert reply_to(client, waiting).status == NoPrimary.code
    assert cluster.primary.manager.describe() == {
        "waiting": 0,
        "claimed": 0,
        "arbiters": 0,
        "asking": 0,
    }


def test_a_new_primary_has_the_queues_of_the_ledger(cluster: Cluster) -> None:
    one, _ = cluster.replicas
    conflict(cluster, one.client())
    cluster.primary.hear(pm.BE_REPLICA, None, 0)
    one.hear(pm.BE_PRIMARY, 2, one.core.state.position)
    one.sync()
    client = one.client()
    number = write(client, m.CLAIM, 1, b"a1", 5_000, 10_000)
    one.sync()
    offer = reply_to(client, number).value()
    attempt, key, _, shown, _, found, _ = offer
    op_ids = [entry[0] for entry in found]
    assert client.write(m.RESOLVE, 1, key, m.SET, "x", shown, op_ids, attempt).value() == [3, 0]


def test_a_replica_stamps_writes_by_the_primarys_clock(cluster: Cluster) -> None:
    one, two = cluster.replicas
    cluster.primary.client().write(m.ALTER_DATABASE, "d", None, {"strategy": "newer"})
    cluster.carry()
    one.unix_ms += 400
    one.hear(pm.PRIMARY_AT, EPOCH, 0, 0, 400, 7)
    put(cluster, one.client(), "k", "by a clock that is ahead").value()
    signature = record.signature_of(two.core.tables[1].records[b"k"])
    assert signature is not None
    assert abs(signature.at_ms - cluster.primary.unix_ms) < 50
    assert signature.bound_ms == 7


# A history that was cut off


def cut_off(node: NodeDriver, after: int) -> list[bytes]:
    """The items that a node makes of its entries after this one."""
    found = [fx.decode_entry(frame) for frame in node.frames[after:]]
    common, _ = fx.decode_entry(node.frames[after - 1])
    return items_of_entries(found, {1: "d"}, common)


def decide_all(node: NodeDriver, items: list[bytes], common: Position) -> None:
    """They come to the primary of another history."""
    for number, data in enumerate(items, 1):
        body = pack((number - 1, number, repeats.OPEN, common, data))
        node.hear(pm.PROPOSALS, [[9, number, body]])
        node.sync()


@pytest.mark.parametrize("strategy", ["arbiter", "newer", "older", "none"])
def test_what_an_old_primary_had_acknowledged_comes_back_as_a_conflict_with_both_values(
    strategy: str,
) -> None:
    old, new = Cluster(), Cluster()
    for cluster in (old, new):
        cluster.database(strategy=strategy)
        put(cluster, cluster.primary.client(client_id=b"first"), "k", "common")
    common = old.primary.core.state.position
    assert common is not None
    assert new.primary.frames == old.primary.frames
    writer = old.primary.client(client_id=b"the writer")
    put(old, writer, "k", "acknowledged by the old primary").value()
    new.primary.unix_ms += 5
    put(new, new.primary.client(client_id=b"other"), "k", "of the new history").value()
    decide_all(new.primary, cut_off(old.primary, common.seq), common)
    expected = {
        "arbiter": [("acknowledged by the old primary", "open")],
        "newer": [("acknowledged by the old primary", "decided")],
        "older": [("of the new history", "decided")],
        "none": [("acknowledged by the old primary", "refused")],
    }
    assert states(new.primary) == expected[strategy]
    again = new.primary.client(client_id=b"the writer")
    told = {"newer": "decided", "none": "refused"}.get(strategy)
    assert [state for state, _ in notices(again)] == ([told] if told else [])


def test_conflicts_queues_and_resolutions_of_a_cut_history_come_back() -> None:
    old, new = Cluster(), Cluster()
    for each in (old, new):
        each.database(strategy="arbiter")
        put(each, each.primary.client(client_id=b"first"), "k", "common")
    common = old.primary.core.state.position
    assert common is not None
    base = record.op_id_of(old.primary.core.tables[1].records[b"k"])
    client = old.primary.client(client_id=b"the writer")
    put(old, client, "k", "first", base)
    put(old, client, "k", "second", base)
    asked(old, client, m.INCREMENT, 1, "k", 5)
    offer = claim(old, client)
    assert resolve(old, client, offer, "10").value() == [3, 0]
    put(old, client, "k", "after", record.op_id_of(old.primary.core.tables[1].records[b"k"]))
    put(old, client, "k", "again", base)
    found = cut_off(old.primary, common.seq)
    assert [decode_item(one).kind for one in found] == [
        m.SET,
        m.SET,
        m.INCREMENT,
        m.RESOLVE,
        m.SET,
        m.SET,
    ]
    decide_all(new.primary, found, common)
    assert states(new.primary) == states(old.primary)
    assert value_of(new.primary, b"k") == b"after"
    assert new.primary.core.tables[1].records[b"k"] == old.primary.core.tables[1].records[b"k"]
    assert ledger.count(new.primary.core) == ledger.count(old.primary.core)


def test_a_batch_of_a_cut_history_is_answered_as_it_was_in_all_places() -> None:
    """One of it changed something, the others were refused, read, and found nothing to remove."""
    old, new = Cluster(), Cluster()
    for each in (old, new):
        each.database(strategy="arbiter")
        put(each, each.primary.client(client_id=b"first"), "k", "common")
    common = old.primary.core.state.position
    assert common is not None
    kinds = bytes([m.SET, m.GET, m.REMOVE, m.SET])
    payload = pack([["k", "k", "gone", "k"], ["refused", None, None, "waits"]])
    conditions = {0: [m.ON_BASE, 99, True], 3: [m.ON_BASE, 99, False]}
    batch = (m.BATCH, 1, False, kinds, payload, conditions)
    client = old.primary.client(client_id=b"the writer")
    before = client.write(*batch)
    first = before.op_id
    assert first is not None
    assert [type(each) for each in before.value()] == [list, bytes, int, list]
    decide_all(new.primary, cut_off(old.primary, common.seq), common)
    again = new.primary.client(client_id=b"the writer")
    after = again.write(*batch, number=before.number)
    assert (after.op_id, len(after.value())) == (first, 4)
    refused, _, removed, waits = after.value()
    assert (refused[0], removed, waits[0]) == (VersionConflict.code, 0, ConflictPending.code)
    assert waits[2][b"conflict"] == first + 3 * TICK
    assert states(new.primary) == [("waits", "open")]


def test_a_number_that_had_another_kind_of_request_is_no_answer_of_a_batch() -> None:
    cluster = Cluster()
    cluster.database(strategy="none")
    client = cluster.primary.client(client_id=b"the writer")
    refused = put(cluster, client, "k", "v", 99)
    assert refused.status == VersionConflict.code
    cluster.primary.restart()  # its text comes as bytes from the disk
    cluster.primary.hear(pm.BE_PRIMARY, 1, cluster.primary.core.state.position)
    cluster.primary.hear(pm.ACKED, 1, [], 1)
    cluster.primary.sync()
    again = cluster.primary.client(client_id=b"the writer")
    payload = pack([["k", "l"], ["1", "2"]])
    reply = again.write(
        m.BATCH, 1, True, bytes([m.SET, m.SET]), payload, None, number=refused.number
    )
    assert reply.status == BadRequest.code


def test_a_resolution_whose_conflict_looks_different_now_goes_to_the_ledger() -> None:
    old, new = Cluster(), Cluster()
    for each in (old, new):
        each.database(strategy="arbiter")
        client = each.primary.client(client_id=b"first")
        base = put(each, client, "k", "common").op_id
        put(each, client, "k", "first", base)
        put(each, client, "k", "second", base)
    common = old.primary.core.state.position
    assert common is not None
    arbiter = old.primary.client(client_id=b"an arbiter")
    resolve(old, arbiter, claim(old, arbiter), "merged in the old history").value()
    other = new.primary.client(client_id=b"another")
    resolve(new, other, claim(new, other), "merged in the new one").value()
    decide_all(new.primary, cut_off(old.primary, common.seq), common)
    assert value_of(new.primary, b"k") == b"merged in the new one"
    assert states(new.primary) == [
        ("second", "resolved"),
        ("merged in the old history", "refused"),
    ]
    again = new.primary.client(client_id=b"an arbiter")
    assert notices(again) == [("refused", b"merged in the old history")]


def test_a_database_comes_back_with_its_options() -> None:
    old, new = Cluster(), Cluster()
    common = old.primary.core.state.position
    assert common is not None
    old.database(strategy="newer", prefixes={"a": "arbiter"}, conflict_timeout_s=3)
    decide_all(new.primary, cut_off(old.primary, common.seq), common)
    assert new.primary.core.state.databases[1].options == {
        "strategy": "newer",
        "prefixes": {"a": "arbiter"},
        "conflict_timeout_s": 3,
    }


def test_entries_of_signed_writes_come_back_as_they_were() -> None:
    old, new = Cluster(), Cluster()
    for each in (old, new):
        each.database(strategy="newer")
    common = old.primary.core.state.position
    assert common is not None
    client = old.primary.client(client_id=b"the writer")
    put(old, client, "k", "1")
    asked(old, client, m.INCREMENT, 1, "k", 4)
    asked(old, client, m.REMOVE, 1, "k", None)
    asked(
        old,
        client,
        m.BATCH,
        1,
        True,
        bytes([m.SET, m.INCREMENT]),
        pack([["a", "n"], ["1", 2]]),
        None,
    )
    decide_all(new.primary, cut_off(old.primary, common.seq), common)
    assert entries(new.primary) == []
    assert new.primary.core.tables[1].records == old.primary.core.tables[1].records
