"""Replicas in the network process: what is adopted, shown, forwarded, and at which ack level it is answered."""

from __future__ import annotations

from typing import Any

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.errors import (
    BadRequest,
    LevelNotReached,
    NoPrimary,
    NoSuchDatabase,
    Overloaded,
    VersionConflict,
)
from nun.position import Epoch, Position
from tests.support.core_driver import DrivenClient
from tests.support.raw_client import Reply
from tests.support.replicas import EPOCH, Cluster, NodeDriver


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.database()
    return made


def state_of(node: NodeDriver) -> Any:
    return {number: dict(table.records) for number, table in node.core.tables.items()}


def ask(client: DrivenClient, kind: int, *arguments: Any) -> int:
    """Sends a read; returns its number."""
    number = client.next_number()
    client.driver.receive((client.peer, [kind, client.token, number, *arguments]))
    return number


def write(client: DrivenClient, kind: int, *arguments: Any, level: Any = None) -> int:
    """Sends a write; returns its number."""
    number = client.next_number()
    peer, message = client.message(number, kind, *arguments)
    if level is not None:
        message[3] = [message[3], *level]
    client.driver.receive((peer, message))
    return number


def reply_to(client: DrivenClient, number: int) -> Reply:
    reply = client.reply_to(number)
    assert reply is not None
    return reply


def error_of(client: DrivenClient, number: int) -> int:
    return reply_to(client, number).status


# Adopting


def test_a_replica_holds_what_the_primary_decided(cluster: Cluster) -> None:
    client = cluster.primary.client()
    for kind, *arguments in [
        (m.SET, 1, "a", "1", None),
        (m.SET_MANY, 1, pack([["b", "c"], ["2", "3"]])),
        (m.REMOVE, 1, "a", None),
        (m.INCREMENT, 1, "n", 5),
        (m.BATCH, 1, False, bytes([m.SET, m.INCREMENT]), pack([["d", "n"], ["x", 2]]), None),
        (m.CREATE_USER, "d", "ann", "secret"),
    ]:
        write(client, kind, *arguments)
    cluster.primary.work_on_secrets()
    cluster.carry()
    (replica,) = cluster.replicas
    assert state_of(replica) == state_of(cluster.primary)
    assert replica.core.state.dump() == cluster.primary.core.state.dump()
    table, other = replica.core.tables[1], cluster.primary.core.tables[1]
    assert (table.live, table.bytes, table.tombstones) == (
        other.live,
        other.bytes,
        other.tombstones,
    )


def test_an_entry_comes_twice_and_counts_once(cluster: Cluster) -> None:
    client = cluster.primary.client()
    write(client, m.INCREMENT, 1, "n", 5)
    cluster.carry()
    (replica,) = cluster.replicas
    before = replica.core.state.position
    replica.entries(*cluster.primary.frames)
    assert replica.core.state.position == before


def test_what_is_missing_is_read_from_the_log_once_it_is_there(cluster: Cluster) -> None:
    client = cluster.primary.client()
    (replica,) = cluster.replicas
    first = len(replica.frames) + 1
    for value in ("1", "2", "3"):
        write(client, m.SET, 1, "a", value, None)
        cluster.primary.sync()
    lost, *rest = cluster.primary.frames[first - 1 :]
    replica.core.entries_received(rest, replica.now_ns, replica.unix_ms)
    replica.perform()
    assert replica.log_reads == []  # the disk does not have it either
    replica.frames += [lost, *rest]
    replica.core.made_durable(len(replica.frames), replica.now_ns)
    replica.perform()
    assert replica.log_reads == [(0, first)]
    assert replica.read_log(100)
    assert state_of(replica) == state_of(cluster.primary)


def test_a_process_that_its_log_has_left_behind_starts_anew_from_disk(cluster: Cluster) -> None:
    """It was not handed some entries, and a snapshot has taken their place before it read them."""
    client = cluster.primary.client()
    (replica,) = cluster.replicas
    for value in ("1", "2", "3"):
        write(client, m.SET, 1, "a", value, None)
        cluster.primary.sync()
    missed = cluster.primary.frames[len(replica.frames) :]
    replica.core.entries_received(missed[1:], replica.now_ns, replica.unix_ms)
    replica.frames += missed
    replica.log_begins = len(replica.frames)
    replica.core.made_durable(len(replica.frames), replica.now_ns)
    replica.perform()
    seq = replica.core.stream.last_seq + 1
    ((watch, first),) = replica.log_reads
    assert (watch, first) == (0, seq)
    replica.core.log_read(0, None)
    out = replica.core.take_output()
    assert out.restart is not None
    assert out.log_reads == []


def test_a_lost_tail_shows_by_the_beat(cluster: Cluster) -> None:
    client = cluster.primary.client()
    (replica,) = cluster.replicas
    write(client, m.SET, 1, "a", "1", None)
    cluster.primary.sync()
    replica.frames.append(cluster.primary.frames[-1])  # the writer got it, this process did not
    replica.core.made_durable(len(replica.frames), replica.now_ns)
    replica.perform()
    assert replica.log_reads == []
    replica.entries(fx.encode_beat(EPOCH, len(replica.frames)))
    assert replica.log_reads == [(0, len(replica.frames))]


def test_entries_of_an_epoch_older_than_the_one_followed_are_not_adopted(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    replica.hear(pm.BE_REPLICA, Epoch(2, 3, 1), replica.core.stream.last_seq + 1)
    client = cluster.primary.client()
    write(client, m.SET, 1, "a", "old", None)
    cluster.primary.sync()
    before = state_of(replica)
    replica.entries(cluster.primary.frames[-1])
    assert state_of(replica) == before


def test_a_dropped_database_ends_watches_and_selections_on_the_replica(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    reader = replica.client()
    started = ask(reader, m.WATCH, 1, m.WATCH_ALL, b"", None, 10_000)
    watch = reply_to(reader, started).result
    write(cluster.primary.client(), m.DROP_DATABASE, "d")
    cluster.carry()
    ended = [message for peer, message in replica.sent if message[0] == m.WATCH_ENDED]
    assert [message[1] for message in ended] == [watch]
    assert error_of(reader, ask(reader, m.GET, 1, "a")) == NoSuchDatabase.code


def test_a_changed_token_takes_selections_away_on_the_replica(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    reader = replica.client(None)
    replica.core.sessions[reader.peer].admin = False
    number = ask(reader, m.USE, "d", None, "token")
    replica.work_on_secrets()
    assert error_of(reader, number) == 0
    write(cluster.primary.client(), m.ALTER_DATABASE, "d", "another", {})
    cluster.primary.work_on_secrets()
    cluster.carry()
    assert error_of(reader, ask(reader, m.GET, 1, "a")) != 0


# Showing (P3)


def test_nothing_is_shown_that_is_not_durable_here_and_at_the_primary(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    reader = replica.client()
    started = ask(reader, m.WATCH, 1, m.WATCH_ALL, b"", None, 10_000)
    assert error_of(reader, started) == 0
    write(cluster.primary.client(), m.SET, 1, "a", "1", None)
    (seq, frame) = cluster.primary.published[-1]
    replica.entries(frame)
    asked = ask(reader, m.GET, 1, "a")
    assert reader.reply_to(asked) is None
    replica.sync()
    assert reader.reply_to(asked) is None, "not durable at the primary"
    cluster.primary.sync()
    replica.hear(pm.PRIMARY_AT, EPOCH, seq, 0, 0, 0)
    assert record.value_of(reply_to(reader, asked).result) == b"1"
    events = [message for _, message in replica.sent if message[0] == m.EVENTS]
    assert len(events) == 1


# Forwarding


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (m.SET, (1, "a", "1", None)),
        (m.INCREMENT, (1, "n", 3)),
        (m.SET_MANY, (1, pack([["x", "y"], ["1", "2"]]))),
        (m.BATCH, (1, True, bytes([m.SET, m.GET]), pack([["x", "x"], ["1", None]]), None)),
    ],
)
def test_a_write_on_a_replica_is_decided_by_the_primary_and_read_back_here(
    cluster: Cluster, kind: int, arguments: Any
) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    number = write(client, kind, *arguments)
    cluster.forward()
    assert client.reply_to(number) is None
    cluster.primary.sync()
    cluster.answer()
    assert client.reply_to(number) is None, "not shown here yet: it could not read its own write"
    cluster.carry()
    reply = reply_to(client, number)
    assert reply.status == 0
    assert reply.position == list(cluster.primary.core.state.position)  # type: ignore[arg-type]
    assert reply.op_id % 1024 == 2, "stamped where it was taken"
    assert state_of(replica) == state_of(cluster.primary)


def test_a_forwarded_refusal_comes_back_with_the_current_record(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    write(cluster.primary.client(), m.SET, 1, "a", "1", None)
    cluster.carry()
    client = replica.client()
    number = write(client, m.SET, 1, "a", "2", [m.ON_BASE, 0, False])
    cluster.forward()
    cluster.carry()
    status, _, (_, fields), *_ = reply_to(client, number)
    assert status == VersionConflict.code
    assert record.value_of(fields[b"current"]) == b"1"


def test_administration_is_forwarded(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client(None)
    number = write(client, m.CREATE_DATABASE, "e", "token", {})
    cluster.forward()
    cluster.primary.work_on_secrets()
    cluster.carry()
    assert reply_to(client, number).status == 0
    assert replica.core.state.database_named("e") is not None


def test_rights_are_judged_by_the_user_who_asked(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    admin = cluster.primary.client()
    write(admin, m.CREATE_USER, "d", "ann", "secret")
    write(admin, m.SET_PERMISSIONS, "d", "ann", "rw user:*")
    cluster.primary.work_on_secrets()
    cluster.carry()
    ann = replica.client(None)
    replica.core.sessions[ann.peer].admin = False
    used = ask(ann, m.USE, "d", "ann", "secret")
    replica.work_on_secrets()
    assert error_of(ann, used) == 0
    good = write(ann, m.SET, 1, "user:1", "x", None)
    bad = write(ann, m.SET, 1, "other", "x", None)
    cluster.forward()
    cluster.carry()
    assert reply_to(ann, good).status == 0
    assert reply_to(ann, bad).status != 0
    assert b"other" not in cluster.primary.core.tables[1].records


def test_a_proposal_that_was_lost_is_made_again_and_counts_once(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    number = write(client, m.INCREMENT, 1, "n", 1)
    cluster.forward()
    cluster.primary.sync()
    cluster.primary.told(pm.DECISIONS)  # the answer is lost
    replica.hear(pm.PRIMARY_IS, "node1", "tcp://node1")
    cluster.forward()
    cluster.carry()
    assert reply_to(client, number).result == [1, 1]
    assert record.value_of(cluster.primary.core.tables[1].records[b"n"]) == b"1"


def test_time_alone_makes_an_unanswered_proposal_again(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    write(client, m.SET, 1, "a", "1", None)
    assert len(replica.told(pm.PROPOSE)) == 1
    replica.core.beat(replica.now_ns + 2 * 10**9)
    replica.perform()
    assert len(replica.told(pm.PROPOSE)) == 1


def test_without_a_primary_a_write_waits_a_while_and_is_refused(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    replica.hear(pm.PRIMARY_IS, None, None)
    number = write(client, m.SET, 1, "a", "1", None)
    assert replica.told(pm.PROPOSE) == []
    replica.core.beat(replica.now_ns + 10**9)
    replica.perform()
    assert client.reply_to(number) is None
    replica.core.beat(replica.now_ns + 3 * 10**9)
    replica.perform()
    assert error_of(client, number) == NoPrimary.code


def test_a_node_that_is_no_longer_primary_says_so_to_proposals(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    number = write(client, m.SET, 1, "a", "1", None)
    cluster.primary.hear(pm.BE_REPLICA, None, 0)
    cluster.forward()
    assert client.reply_to(number) is None, "it waits for whoever is primary next"
    replica.hear(pm.BE_PRIMARY, 2, replica.core.state.position)
    replica.sync()
    assert reply_to(client, number).status == 0


def test_a_proposal_that_is_no_proposal_is_refused(cluster: Cluster) -> None:
    cluster.primary.hear(pm.PROPOSALS, [[2, 1, b"\x96\x01\x02\x03\x04\x05\x06"], [2, 2, b"\xc1"]])
    ((_, decisions),) = cluster.primary.told(pm.DECISIONS)
    assert len(decisions) == 2


def test_a_stamp_of_a_clock_that_is_far_ahead_is_refused(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    replica.unix_ms += 60_000
    client = replica.client()
    number = write(client, m.SET, 1, "a", "1", None)
    cluster.forward()
    cluster.carry()
    assert error_of(client, number) == BadRequest.code
    assert b"a" not in cluster.primary.core.tables[1].records


# Levels


def test_levels_wait_for_as_many_disks_as_they_say() -> None:
    cluster = Cluster(replicas=2)
    cluster.database()
    client = cluster.primary.client()
    levels = [m.ACK_PRIMARY, 1, m.ACK_MAJORITY, 2, m.ACK_ALL]
    numbers = [write(client, m.SET, 1, "a", "1", None, level=(level, 9_000)) for level in levels]
    seq = cluster.primary.published[-1][0]
    cluster.primary.sync()

    def answered() -> list[bool]:
        return [client.reply_to(number) is not None for number in numbers]

    assert answered() == [True, False, False, False, False]
    cluster.primary.hear(pm.ACKED, 0, [seq, 0], 2)
    assert answered() == [False, True, False, False, False]
    cluster.primary.hear(pm.ACKED, seq, [seq, 0], 2)
    assert answered() == [False, False, True, False, False]
    cluster.primary.hear(pm.ACKED, seq, [seq, seq], 2)
    assert answered() == [False, False, False, True, True]


def test_a_level_that_is_not_reached_in_time_is_told_and_can_be_asked_for_again() -> None:
    cluster = Cluster(replicas=2)
    cluster.database()
    client = cluster.primary.client()
    number = write(client, m.SET, 1, "a", "1", None, level=(m.ACK_ALL, 500))
    cluster.primary.sync()
    cluster.primary.core.beat(cluster.primary.now_ns + 10**9)
    cluster.primary.perform()
    status, _, (_, fields), position, op_id = reply_to(client, number)
    assert (status, fields[b"level"], fields[b"reached"]) == (LevelNotReached.code, m.ACK_ALL, 0)
    assert position == list(cluster.primary.core.state.position)  # type: ignore[arg-type]
    peer, message = client.message(number, m.SET, 1, "a", "1", None)
    message[3] = [message[3], m.ACK_ALL, 500]
    cluster.primary.receive((peer, message))
    assert client.reply_to(number) is None
    cluster.carry()
    again = reply_to(client, number)
    assert (again.status, again.result, again.op_id) == (0, fields[b"result"], op_id)


def test_a_repeat_that_names_no_level_waits_for_that_of_the_configuration() -> None:
    cluster = Cluster(replicas=2, ack=m.ACK_MAJORITY)
    cluster.database()
    client = cluster.primary.client()
    number = write(client, m.INCREMENT, 1, "n", 1)
    cluster.primary.sync()
    peer, message = client.message(number, m.INCREMENT, 1, "n", 1)
    cluster.primary.receive((peer, message))
    cluster.primary.sync()
    assert client.reply_to(number) is None, "no majority has it"
    cluster.carry()
    assert reply_to(client, number).result == [1, 1]


@pytest.mark.parametrize(
    "level", [(2, 100), (-4, 100), ("majority", 100), (0, -1), (0, 10**12), (0,)]
)
def test_levels_that_cannot_be(cluster: Cluster, level: Any) -> None:
    client = cluster.primary.client()
    number = write(client, m.SET, 1, "a", "1", None, level=level)
    assert error_of(client, number) == BadRequest.code
    assert b"a" not in cluster.primary.core.tables[1].records


def test_a_forwarded_write_waits_for_its_level() -> None:
    cluster = Cluster(replicas=2)
    cluster.database()
    client = cluster.replicas[0].client()
    number = write(client, m.SET, 1, "a", "1", None, level=(m.ACK_ALL, 9_000))
    cluster.forward()
    cluster.primary.sync()
    cluster.answer()
    assert client.reply_to(number) is None
    cluster.carry()
    assert reply_to(client, number).status == 0


def test_too_few_replicas_mean_no_writes() -> None:
    cluster = Cluster(min_replicas=1)
    client = cluster.primary.client(None)
    cluster.primary.hear(pm.ACKED, 0, [0], 0)
    number = write(client, m.CREATE_DATABASE, "e", "token", {})
    assert error_of(client, number) == Overloaded.code


# Reads


def test_a_majority_read_shows_what_is_settled() -> None:
    cluster = Cluster(replicas=2)
    cluster.database()
    client = cluster.primary.client()
    write(client, m.SET, 1, "a", "1", None)
    cluster.primary.sync()
    number = ask(client, m.GET, 1, "a", [None, True, 9_000])
    assert client.reply_to(number) is None
    cluster.carry()
    assert record.value_of(reply_to(client, number).result) == b"1"


def test_a_read_at_a_position_waits_for_it(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    reader = replica.client()
    write(cluster.primary.client(), m.SET, 1, "a", "1", None)
    cluster.primary.sync()
    position = list(cluster.primary.core.state.position)  # type: ignore[arg-type]
    number = ask(reader, m.GET, 1, "a", [position, False, 9_000])
    assert reader.reply_to(number) is None
    cluster.carry()
    assert record.value_of(reply_to(reader, number).result) == b"1"


def test_a_disk_that_is_ahead_shows_nothing_that_was_not_adopted(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    reader = replica.client()
    writer = replica.client()
    written = write(writer, m.SET, 1, "b", "2", None)
    cluster.forward()
    write(cluster.primary.client(), m.SET, 1, "a", "1", None)
    cluster.primary.sync()
    cluster.answer()
    position = list(cluster.primary.core.state.position)  # type: ignore[arg-type]
    number = ask(reader, m.GET, 1, "a", [position, False, 9_000])
    first, last = cluster.primary.frames[-2:]
    replica.frames += [first, last]  # the storage writer has both, this process only the first
    replica.core.entries_received([first], replica.now_ns, replica.unix_ms)
    replica.hear(pm.PRIMARY_AT, EPOCH, len(replica.frames), 0, 0, 0)
    replica.core.made_durable(len(replica.frames), replica.now_ns)
    replica.perform()
    assert reply_to(writer, written).status == 0
    assert reader.reply_to(number) is None
    replica.core.entries_received([last], replica.now_ns, replica.unix_ms)
    replica.perform()
    assert record.value_of(reply_to(reader, number).result) == b"1"


def test_a_read_at_a_position_gives_up_in_time(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    reader = replica.client()
    far = Position.at(EPOCH, 10_000)
    number = ask(reader, m.GET, 1, "a", [list(far), False, 100])
    replica.core.beat(replica.now_ns + 10**9)
    replica.perform()
    assert error_of(reader, number) == LevelNotReached.code


def test_a_position_of_another_history_is_refused(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    reader = replica.client()
    number = ask(reader, m.GET, 1, "a", [[1, 7, 1, 2], False, 100])
    assert error_of(reader, number) == BadRequest.code


# Roles


def test_a_node_that_steps_down_says_so_when_all_is_durable(cluster: Cluster) -> None:
    write(cluster.primary.client(), m.SET, 1, "a", "1", None)
    cluster.primary.hear(pm.BE_REPLICA, None, 0)
    assert cluster.primary.told(pm.STEPPED_DOWN) == []
    cluster.primary.sync()
    ((_, position),) = cluster.primary.told(pm.STEPPED_DOWN)
    assert position == list(cluster.primary.core.state.position)  # type: ignore[arg-type]


def test_a_promoted_replica_decides_what_its_clients_wait_for(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    client = replica.client()
    number = write(client, m.INCREMENT, 1, "n", 2)
    replica.hear(pm.BE_PRIMARY, 2, replica.core.state.position)
    replica.sync()
    assert reply_to(client, number).result == [1, 2]
    assert replica.core.state.epochs[-1][0] == Epoch(2, 2, 1)


def test_a_request_that_the_old_primary_decided_is_answered_the_same_by_the_new_one(
    cluster: Cluster,
) -> None:
    (replica,) = cluster.replicas
    client = cluster.primary.client()
    number = write(client, m.INCREMENT, 1, "n", 2)
    cluster.carry()
    first = reply_to(client, number)
    replica.hear(pm.BE_PRIMARY, 2, replica.core.state.position)
    replica.sync()
    moved = DrivenClient(replica, b"elsewhere", 1, client.client_id)
    replica.receive(moved.message(number, m.INCREMENT, 1, "n", 2))
    again = reply_to(moved, number)
    assert (again.result, again.position, again.op_id) == (
        first.result,
        first.position,
        first.op_id,
    )


def test_an_epoch_is_never_begun_twice(cluster: Cluster) -> None:
    with pytest.raises(AssertionError, match="is not new"):
        cluster.primary.core.roles.be_primary(1)


# Members


def test_a_directory_that_is_wiped_or_set_back_gets_a_number_that_nobody_had(
    cluster: Cluster,
) -> None:
    primary = cluster.primary

    def number_of(directory: bytes, start: int) -> int:
        primary.hear(pm.ADMIT, "node2", directory, start, 2)
        primary.sync()
        ((_, _, _, number),) = primary.told(pm.ADMITTED)
        return int(number)

    known = b"\x02" * 16
    primary.told(pm.ADMITTED)
    assert number_of(known, 1) == 2  # asked again
    assert number_of(known, 5) == 2
    assert number_of(known, 4) == 3, "set back"
    assert number_of(b"w" * 16, 1) == 4, "wiped"
    assert {number: member.name for number, member in primary.core.state.members.items()} == {
        1: "node1",
        4: "node2",
    }
