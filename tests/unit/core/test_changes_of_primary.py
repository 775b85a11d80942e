"""What clients are told when another node becomes primary, or when they ask for what is yet to come."""

from __future__ import annotations

from typing import Any

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core import record
from nun.errors import OutcomeExpired
from nun.position import Epoch, Position
from tests.support.replicas import EPOCH, Cluster
from tests.unit.core.test_replicas import ask, error_of, reply_to, state_of, write


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.database()
    return made


def test_a_promoted_replica_sends_once_what_goes_out_with_its_own_proposals(
    cluster: Cluster,
) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    number = write(client, m.INCREMENT, 1, "n", 2)
    watcher = replica.client()
    assert error_of(watcher, ask(watcher, m.WATCH, 1, m.WATCH_KEY, b"n", None, 10_000)) == 0
    replica.hear(pm.BE_PRIMARY, 2, replica.core.state.position)
    replica.sync()
    assert reply_to(client, number).status == 0
    assert len([message for _, message in replica.sent if message[0] == m.EVENTS]) == 1


def test_a_reply_that_speaks_of_an_entry_which_was_cut_off_is_not_given(cluster: Cluster) -> None:
    """The old primary decided and answered it; this node becomes primary without that entry."""
    (replica,) = cluster.replicas
    client = replica.client()
    number = write(client, m.INCREMENT, 1, "n", 2)
    cluster.forward()
    cluster.primary.sync()
    cluster.answer()
    assert client.reply_to(number) is None
    replica.hear(pm.BE_PRIMARY, 2, replica.core.state.position)
    replica.sync()
    reply = reply_to(client, number)
    assert Position(*reply.position).epoch == Epoch(2, 2, 1)
    assert reply.result == [1, 2]
    assert client.reply_to(number) is None


def test_a_greeting_does_not_wait_for_the_level_of_the_request_before_it() -> None:
    cluster = Cluster(replicas=2)
    cluster.database()
    write(cluster.primary.client(), m.SET, 1, "a", "1", None, level=(m.ACK_ALL, 9_000))
    assert cluster.primary.client().token


@pytest.mark.parametrize("kind", [m.CLUSTER, m.PROMOTE])
def test_an_answer_of_the_replicator_does_not_wait_for_the_level_of_the_request_before_it(
    kind: int,
) -> None:
    cluster = Cluster(replicas=2)
    cluster.database()
    primary = cluster.primary
    admin = primary.client()
    number = ask(admin, kind, *((b"node1", False) if kind == m.PROMOTE else ()))
    asked = pm.PROMOTE_ASKED if kind == m.PROMOTE else pm.ASK_CLUSTER
    [[_, ticket, *_]] = [one for one in primary.to_replicator if one[0] == asked]
    write(primary.client(), m.SET, 1, "a", "1", None, level=(m.ACK_ALL, 9_000))
    primary.sync()
    if kind == m.PROMOTE:
        primary.hear(pm.PROMOTED, ticket, 0, b"", {})
    else:
        primary.hear(pm.CLUSTER_IS, ticket, [])
    assert reply_to(admin, number).status == 0


def test_a_watch_from_an_entry_that_is_yet_to_be_shown_begins_after_it(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    writer = cluster.primary.client()
    for value in ("1", "2"):
        write(writer, m.SET, 1, "a", value, None)
    (_, first), (seq, _) = cluster.primary.published
    watcher = replica.client()
    replica.entries(first)
    assert (
        error_of(watcher, ask(watcher, m.WATCH, 1, m.WATCH_ALL, b"", [*EPOCH, seq - 1], 900)) == 0
    )
    cluster.carry()
    assert replica.read_log(9)
    events = [unpack(message[2])[1] for _, message in replica.sent if message[0] == m.EVENTS]
    assert [event[5] for body in events for event in body] == [seq]


def test_a_majority_read_shows_nothing_tentative(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    write(client, m.SET, 1, "a", "1", None, level=(m.ACK_LOCAL, 1_000))
    number = ask(client, m.GET, 1, "a", [None, True, 1_000])
    assert reply_to(client, number).result is None
    replica.core.outbox_durable(1, replica.now_ns)
    replica.perform()
    number = ask(client, m.GET, 1, "a")
    assert reply_to(client, number).result is not None


@pytest.mark.parametrize("void", [(pm.BE_REPLICA, None, 0), (pm.REPLICATOR_UP,)])
def test_an_order_to_be_primary_that_still_waits_can_be_taken_back(
    cluster: Cluster, void: tuple[Any, ...]
) -> None:
    """And who takes it back is told so at once: nothing was decided that would have to become durable."""
    (replica,) = cluster.replicas
    write(cluster.primary.client(), m.SET, 1, "a", "1", None)
    replica.hear(pm.BE_PRIMARY, 2, Position.at(EPOCH, replica.core.stream.last_seq + 1))
    replica.hear(*void)
    told = replica.told(pm.STEPPED_DOWN)
    position = list(replica.core.state.position)  # type: ignore[arg-type]
    assert told == ([[pm.STEPPED_DOWN, position]] if void[0] == pm.BE_REPLICA else [])
    cluster.primary.sync()
    replica.entries(cluster.primary.frames[-1])
    assert not replica.core.decides
    assert replica.core.state.epochs == cluster.primary.core.state.epochs


def entries_of(cluster: Cluster, *values: str) -> list[bytes]:
    """The primary decides these, one entry each."""
    client = cluster.primary.client()
    for value in values:
        write(client, m.SET, 1, "a", value, None)
        cluster.primary.sync()
    return cluster.primary.frames[-len(values) :]


def test_a_reign_begins_on_top_of_what_a_replicator_handed_down_that_has_died(
    cluster: Cluster,
) -> None:
    """The one that gives the order knows of less: the disk had not got it yet."""
    (replica,) = cluster.replicas
    ordered = replica.core.state.position
    replica.entries(*entries_of(cluster, "1", "2"))
    adopted = replica.core.state.position
    assert ordered is not None
    assert adopted is not None
    assert adopted.seq == ordered.seq + 2
    replica.hear(pm.BE_PRIMARY, 2, ordered)
    replica.sync()
    assert replica.core.decides
    assert replica.core.state.epochs[-1] == (Epoch(2, 2, 1), adopted.seq + 1)
    assert state_of(replica) == state_of(cluster.primary)


def test_a_reign_does_not_begin_on_another_history_than_the_replicator_knows(
    cluster: Cluster,
) -> None:
    """It has fetched an entry of a later epoch in a place where this process has one of its own."""
    (replica,) = cluster.replicas
    replica.entries(*entries_of(cluster, "1"))
    replica.sync()
    last = replica.core.stream.last_seq
    order = pack((pm.BE_PRIMARY, 5, Position(3, 1, 1, last)))
    replica.core.replicator_says(unpack(order), replica.now_ns, replica.unix_ms)
    assert replica.core.take_output().restart is not None
    assert not replica.core.decides
    assert replica.core.state.epochs[-1][0] == EPOCH


@pytest.mark.parametrize("known", [0, 2])
def test_a_reign_begins_after_what_the_own_disk_has_though_it_was_lost_on_the_way_here(
    cluster: Cluster, known: int
) -> None:
    """Whether the order names it or not."""
    (replica,) = cluster.replicas
    before = replica.core.state.position
    assert before is not None
    lost = entries_of(cluster, "1", "2")
    replica.frames += lost
    replica.core.made_durable(before.seq + 2, replica.now_ns)
    replica.hear(pm.BE_PRIMARY, 2, before._replace(seq=before.seq + known))
    assert not replica.core.decides
    assert replica.log_reads == [(0, before.seq + 1)]
    assert replica.read_log(100)
    replica.sync()
    assert replica.core.state.epochs[-1] == (Epoch(2, 2, 1), before.seq + 3)
    assert state_of(replica) == state_of(cluster.primary)


def test_an_order_of_two_replicators_begins_one_epoch(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    ordered = replica.core.state.position
    for _ in range(2):
        replica.told(pm.NODE_STATE)
        replica.hear(pm.BE_PRIMARY, 2, ordered)
        replica.sync()
        [told] = replica.told(pm.NODE_STATE)
        assert (told[4], told[5]) == (pm.ROLE_PRIMARY, [2, 2, 1])
    assert len(replica.core.state.epochs) == 2


def test_what_was_decided_is_not_durable_by_an_entry_of_another_epoch_in_its_place(
    cluster: Cluster,
) -> None:
    (replica,) = cluster.replicas
    replica.hear(pm.BE_PRIMARY, 2, replica.core.state.position)
    seq = replica.core.stream.last_seq
    replica.core.made_durable(seq - 1, replica.now_ns, EPOCH)
    assert replica.core.take_output().restart is None
    replica.core.made_durable(seq, replica.now_ns, EPOCH)
    assert replica.core.take_output().restart is not None
    assert replica.core.local_durable < seq


def test_what_was_decided_here_is_never_mixed_with_what_a_replicator_has_that_does_not_know_of_it(
    cluster: Cluster,
) -> None:
    """The epoch to be followed begins far above: the entries between are those of others."""
    (replica,) = cluster.replicas
    last = replica.core.stream.last_seq
    replica.hear(pm.BE_PRIMARY, 2, replica.core.state.position)
    followed = pack((pm.BE_REPLICA, Epoch(3, 1, 1), last + 5))
    replica.core.replicator_says(unpack(followed), replica.now_ns, replica.unix_ms)
    assert replica.core.take_output().restart is not None
    write(cluster.primary.client(), m.SET, 1, "a", "1", None)
    cluster.primary.sync()
    before = state_of(replica)
    replica.entries(*cluster.primary.frames[-2:])
    assert state_of(replica) == before
    assert not replica.core.decides


def test_what_waited_when_its_node_became_primary_says_that_it_had_been_proposed(
    cluster: Cluster,
) -> None:
    """The old primary had decided it, and has forgotten its client since: nobody can tell what became of it."""
    primary, (replica,) = cluster.primary, cluster.replicas
    client = replica.client()
    number = write(client, m.INCREMENT, 1, "n", 2)
    cluster.forward()
    core = primary.core
    core.stream.add((fx.FORGET, [client.client_id], core.state.highest_op_id))
    core.close()
    primary.perform()
    primary.sync()
    primary.told(pm.DECISIONS)  # the answer is lost
    cluster.carry()
    replica.hear(pm.BE_PRIMARY, 2, replica.core.state.position)
    replica.sync()
    assert reply_to(client, number).status == OutcomeExpired.code
    assert record.value_of(replica.core.tables[1].records[b"n"]) == b"2"
