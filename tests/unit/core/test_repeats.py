"""Items whose client has gone on: what tells them from repeats when the row is gone."""

from __future__ import annotations

from typing import Any

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.proposals import repeats
from nun.core.proposals.outbox import (
    Item,
    Operation,
    encode_item,
)
from nun.core.proposals.repeats import DONE, LATER, OPEN, REFUSED, UNKNOWN, Held, Repeats
from nun.core.state import NodeState
from nun.errors import ConflictPending, OutcomeExpired, VersionConflict
from nun.position import NOTHING, Epoch, Position
from tests.support.replicas import Cluster, NodeDriver
from tests.unit.core.test_items import decide, keep_outbox, ledger, stamp, value_of
from tests.unit.core.test_replicas import error_of, reply_to, write

CLIENT = b"whose"
LOCAL = (m.ACK_LOCAL, 1_000)


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.database()
    return made


def increment(
    cluster: Cluster, number: int, delta: int = 1, since: Position = NOTHING
) -> tuple[bytes, int]:
    op_id = stamp(cluster.primary)
    operation = Operation(m.INCREMENT, b"n", delta, 0, op_id)
    return encode_item(
        Item(CLIENT, number, 0, b"d", m.INCREMENT, False, [operation], 0, 0, since)
    ), op_id


def go_on(node: NodeDriver, number: int) -> None:
    """The client is seen to have every answer below this number."""
    client = node.client(client_id=CLIENT)
    client.number = number - 1
    client.floor = number
    assert write(client, m.SET, 1, "other", "1", None) == number
    node.sync()


def test_an_increment_whose_client_has_gone_on_is_added_when_its_node_has_seen_all(
    cluster: Cluster,
) -> None:
    primary = cluster.primary
    go_on(primary, 9)
    data, _ = increment(cluster, 3)
    decide(primary, 1, data, verdict=OPEN)
    assert (value_of(primary, b"n"), ledger(primary)) == (b"1", [])


def test_a_repeat_whose_row_is_gone_is_known_by_its_node(cluster: Cluster) -> None:
    primary = cluster.primary
    data, _ = increment(cluster, 3)
    decide(primary, 1, data)
    go_on(primary, 9)
    assert 3 not in primary.core.state.clients[CLIENT].rows
    decide(primary, 2, data, verdict=DONE)
    assert (value_of(primary, b"n"), ledger(primary)) == (b"1", [])
    assert primary.core.state.outboxes == {2: 2}


def test_an_item_waits_until_its_node_has_seen_the_entry_that_raised_the_floor(
    cluster: Cluster,
) -> None:
    primary = cluster.primary
    go_on(primary, 9)
    data, _ = increment(cluster, 3)
    decide(primary, 1, data, verdict=LATER)
    assert (value_of(primary, b"n"), primary.core.state.outboxes) == (None, {})
    decide(primary, 1, data, verdict=OPEN)
    assert (value_of(primary, b"n"), primary.core.state.outboxes) == (b"1", {2: 1})


def test_what_nobody_can_tell_from_a_repeat_goes_to_the_ledger(cluster: Cluster) -> None:
    primary = cluster.primary
    go_on(primary, 9)
    data, op_id = increment(cluster, 3)
    decide(primary, 1, data, verdict=UNKNOWN)
    assert value_of(primary, b"n") is None
    assert [entry["op_id"] for entry in ledger(primary)] == [op_id]


def test_what_nobody_can_tell_from_a_repeat_has_one_entry(cluster: Cluster) -> None:
    """The ledger tells of what it has, be it under the op id with which its client asked again."""
    primary = cluster.primary
    base = refused(cluster, 3)
    decide(primary, 1, same_set(cluster, 3, base))
    [entry] = ledger(primary)
    go_on(primary, 9)
    operations = [
        Operation(m.SET, b"a", b"mine", base, stamp(primary)),
        Operation(m.SET, b"b", b"mine", 0, stamp(primary)),
    ]
    item = Item(CLIENT, 3, 0, b"d", m.BATCH, False, operations, 0, 0, NOTHING)
    for outbox_number in (2, 3):
        decide(primary, outbox_number, encode_item(item), verdict=UNKNOWN)
    told = {entry["key"]: entry["op_id"] for entry in ledger(primary)}
    assert told == {"a": entry["op_id"], "b": operations[1].op_id}
    assert [*primary.core.state.notices[CLIENT]] == [*told.values()]


def test_a_database_whose_making_may_be_a_repeat_is_left_as_it_is(cluster: Cluster) -> None:
    primary = cluster.primary
    go_on(primary, 9)
    operations = [
        Operation(m.SET, b"$$token", b"t", 0, stamp(primary)),
        Operation(m.CREATE_DATABASE, b"", {}, 0, stamp(primary)),
    ]
    data = encode_item(
        Item(CLIENT, 3, 0, b"d", m.CREATE_DATABASE, False, operations, 0, 0, NOTHING)
    )
    decide(primary, 1, data, verdict=UNKNOWN)
    assert (ledger(primary), primary.core.state.outboxes) == ([], {2: 1})


def test_items_of_two_nodes_for_one_request_are_decided_once(cluster: Cluster) -> None:
    """Both had seen the history up to the same entry, without a decision."""
    primary = cluster.primary
    go_on(primary, 9)
    seen = primary.core.state.position
    data, _ = increment(cluster, 3)
    more, _ = increment(cluster, 4)
    decide(primary, 1, data, verdict=OPEN, seen=seen)
    decide(primary, 2, more, verdict=OPEN, seen=seen)
    decide(primary, 1, data, verdict=OPEN, seen=seen, origin=3)
    assert value_of(primary, b"n") == b"2"
    primary.restart()
    primary.hear(pm.BE_PRIMARY, 1, primary.core.state.position)
    primary.sync()
    decide(primary, 1, data, verdict=OPEN, seen=seen, origin=3)
    assert (value_of(primary, b"n"), primary.core.state.outboxes) == (b"2", {2: 2})
    decide(primary, 1, data, verdict=DONE, origin=3)
    assert (value_of(primary, b"n"), primary.core.state.outboxes) == (b"2", {2: 2, 3: 1})


def test_a_node_that_is_primary_itself_sees_what_it_decided(cluster: Cluster) -> None:
    """It took a request, died, and took it again; promoted, it decides both items."""
    primary = cluster.primary
    known = primary.core.tentative.repeats
    for number in (1, 2):
        known.add(number, Item(CLIENT, 3, 0, b"d", m.INCREMENT, False, [], 0, 0, NOTHING))
    data, _ = increment(cluster, 3)
    decide(primary, 1, data, origin=1)
    known.drop(1)
    assert known.verdict(2) == DONE


def test_what_a_node_saw_of_another_history_counts_for_nothing(cluster: Cluster) -> None:
    primary = cluster.primary
    go_on(primary, 9)
    data, _ = increment(cluster, 3)
    for verdict in (OPEN, DONE, UNKNOWN, LATER):
        decide(primary, 1, data, verdict=verdict, seen=Position(1, 1, 7, 2))
    assert (value_of(primary, b"n"), primary.core.state.outboxes) == (None, {})


def test_a_request_that_is_twice_in_one_outbox_is_open_once() -> None:
    state = state_of((Epoch(1, 1, 1), 1), last=4)
    state.take(state.position, (fx.OUTCOME, CLIENT, 9, 9, 0, 1, 1))  # type: ignore[arg-type]
    known = Repeats(state, Held())
    for number in (1, 2):
        known.add(number, Item(CLIENT, 3, 0, b"d", m.SET, False, [], 0, 0, NOTHING))
    assert [known.verdict(1), known.verdict(2)] == [OPEN, LATER]
    known.drop(1)
    assert known.verdict(2) == OPEN


def test_what_is_known_of_one_of_two_items_for_a_request_goes_for_both() -> None:
    """The decision of the first was cut off, and came into the outbox as the second; the log begins between them."""
    state = state_of((Epoch(1, 1, 1), 1), last=9)
    made = Item(CLIENT, 3, 0, b"d", m.SET, False, [], 0, 0, Position(1, 1, 1, 2))
    items = [(1, encode_item(made)), (2, encode_item(made._replace(since=Position(1, 1, 1, 7))))]
    assert Repeats(state, Held(3, items[:1], 5)).verdict(1) == UNKNOWN
    known = Repeats(state, Held(3, items, 5))
    assert [known.verdict(1), known.verdict(2)] == [OPEN, LATER]


def test_a_client_that_was_forgotten_cannot_ask_again() -> None:
    state = state_of((Epoch(1, 1, 1), 1), last=4)
    operation = Operation(m.SET, b"a", b"1", 0, 50)
    known = Repeats(state, Held())
    known.add(1, Item(CLIENT, 3, 0, b"d", m.SET, False, [operation], 0, 0, NOTHING))
    assert known.verdict(1) == LATER
    state.forget([CLIENT], 50)
    assert known.verdict(1) == OPEN


def test_a_client_that_moves_to_another_node_loses_no_local_increment(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    here = replica.client(client_id=CLIENT)
    for _ in range(3):
        write(here, m.INCREMENT, 1, "n", 1, level=LOCAL)
    keep_outbox(replica)
    lost = replica.told(pm.PROPOSE)
    assert lost
    go_on(cluster.primary, here.number + 1)
    replica.hear(pm.PRIMARY_IS, "node1", "tcp://node1")
    cluster.forward()
    assert value_of(cluster.primary, b"n") is None, "it has not seen that the client went on"
    cluster.carry()
    replica.hear(pm.PRIMARY_IS, "node1", "tcp://node1")
    cluster.forward()
    cluster.carry()
    assert value_of(cluster.primary, b"n") == b"3"
    assert ledger(cluster.primary) == []
    assert len(replica.core.tentative) == 0


def test_a_local_write_that_was_decided_elsewhere_is_not_taken_again(cluster: Cluster) -> None:
    (replica,) = cluster.replicas
    elsewhere = cluster.primary.client(client_id=CLIENT)
    number = write(elsewhere, m.INCREMENT, 1, "n", 5)
    cluster.carry()
    decided = reply_to(elsewhere, number)
    here = replica.client(client_id=CLIENT)
    again = _again(here, number, m.INCREMENT, 1, "n", 5)
    reply = reply_to(here, again)
    assert (reply.status, reply.result, reply.op_id) == (0, decided.result, decided.op_id)
    assert len(replica.core.tentative) == 0
    go_on(cluster.primary, number + 5)
    cluster.carry()
    _again(here, number, m.INCREMENT, 1, "n", 5)
    assert error_of(here, number) == OutcomeExpired.code


def _again(client: Any, number: int, kind: int, *arguments: Any) -> int:
    peer, message = client.message(number, kind, *arguments)
    message[3] = [0, *LOCAL]
    client.driver.receive((peer, message))
    return number


# What a node knows of its own items


def state_of(*epochs: tuple[Epoch, int], last: int) -> NodeState:
    state = NodeState()
    state.epochs = list(epochs)
    state.position = Position.at(epochs[-1][0], last)
    return state


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        (Position(1, 1, 1, 7), 7),
        (Position(1, 1, 1, 12), 9),  # its tail was cut
        (Position(1, 2, 1, 30), 9),  # none of that epoch is left, it came after 1.1.1
        (Position(2, 2, 1, 30), 30),
        (NOTHING, 0),
    ],
)
def test_what_an_item_and_this_history_have_in_common(since: Position, expected: int) -> None:
    epochs = [(Epoch(1, 1, 1), 1), (Epoch(2, 2, 1), 10)]
    assert repeats.common_with(since, epochs) == expected


def test_what_came_before_all_that_is_known_is_not_known() -> None:
    assert repeats.common_with(Position(1, 1, 1, 5), [(Epoch(3, 1, 1), 100)]) == -1


def test_a_node_that_starts_knows_what_its_log_decided_since() -> None:
    state = state_of((Epoch(1, 1, 1), 1), (Epoch(2, 2, 1), 10), last=40)
    state.take(state.position, (fx.OUTCOME, CLIENT, 9, 9, 0, 1, 1))  # type: ignore[arg-type]
    items = []
    for number, since in enumerate((12, 30, 31), 1):
        data = Item(CLIENT, number, 0, b"d", m.SET, False, [], 0, 0, Position(2, 2, 1, since))
        items.append((number, encode_item(data)))
    assert repeats.first_unseen(items, state) == 12
    known = Repeats(state, Held(4, items, 20, {(CLIENT, 3): (0, None)}))
    assert [known.verdict(number) for number in (1, 2, 3)] == [UNKNOWN, OPEN, DONE]
    known.add(4, Item(CLIENT, 20, 0, b"d", m.SET, False, [], 0, 0, NOTHING))
    assert known.verdict(4) == LATER
    known.look_at([(fx.OUTCOME, CLIENT, 20, 0, 0, 5, 1)])
    assert known.verdict(4) == DONE
    for number in (1, 2, 3, 4):
        known.drop(number)
    assert len(known) == 0


def _outcome(state: NodeState, number: int, floor: int, status: int, result: Any = 1) -> None:
    assert state.position is not None
    state.take(state.position, (fx.OUTCOME, CLIENT, number, floor, status, 7, result))


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(0, DONE), (VersionConflict.code, REFUSED), (ConflictPending.code, DONE)],
)
def test_a_node_whose_log_came_with_a_copy_knows_by_the_row(status: int, verdict: int) -> None:
    """Its client asked again, another primary answered, and a copy brought that, but no entries."""
    state = state_of((Epoch(1, 1, 1), 1), last=9)
    _outcome(state, 3, 3, status)
    item = Item(CLIENT, 3, 0, b"d", m.SET, False, [], 0, 0, Position(1, 1, 1, 2))
    known = Repeats(state, Held(2, [(1, encode_item(item))], 9))
    _outcome(state, 8, 8, 0)  # its client goes on, the row is gone
    assert state.row_of(CLIENT, 3) is None
    assert known.verdict(1) == verdict


def test_a_node_whose_log_came_with_a_copy_knows_by_the_row_what_part_was_refused() -> None:
    state = state_of((Epoch(1, 1, 1), 1), last=9)
    _outcome(state, 3, 3, 0, [pack([1, [*REFUSAL[:2], b"o"]])])
    operations = [Operation(*made, 0, 5 + index) for index, made in enumerate((SET, OTHER))]
    since = Position(1, 1, 1, 2)
    item = Item(CLIENT, 3, 0, b"d", m.BATCH, False, operations, 0, 0, since)
    data = encode_item(item)
    known = Repeats(state, Held(2, [(1, data)], 9))
    assert known.judged(1, data) == (REFUSED, encode_item(item._replace(operations=operations[1:])))


def test_where_a_client_had_not_gone_on_its_request_was_not_decided_before() -> None:
    """There would be a row; and from then on its node sees every entry."""
    state = state_of((Epoch(1, 1, 1), 1), last=9)
    _outcome(state, 2, 2, 0)
    item = Item(CLIENT, 3, 0, b"d", m.SET, False, [], 0, 0, Position(1, 1, 1, 2))
    items = [(1, encode_item(item)), (2, encode_item(item._replace(number=1)))]
    known = Repeats(state, Held(3, items, 9))
    assert [known.verdict(1), known.verdict(2)] == [LATER, UNKNOWN]
    _outcome(state, 8, 8, 0)
    assert known.verdict(1) == OPEN
    known.look_at([(fx.OUTCOME, CLIENT, 3, 3, 0, 7, 1)])
    assert known.verdict(1) == DONE


def test_a_record_that_came_late_keeps_what_it_was(cluster: Cluster) -> None:
    primary = cluster.primary
    go_on(primary, 9)
    data, op_id = increment(cluster, 3, 4)
    decide(primary, 1, data, verdict=OPEN)
    assert record.op_id_of(primary.core.tables[1].records[b"n"]) == op_id


# Refused in this history, done in the one that the item comes from


def refused(cluster: Cluster, number: int) -> int:
    """A set that this history refused to a client; the op id of the record that it was made on."""
    primary = cluster.primary
    other = primary.client()
    first = write(other, m.SET, 1, "a", "old", None)
    primary.sync()
    base = reply_to(other, first).op_id
    write(other, m.SET, 1, "a", "new", None)
    primary.sync()
    client = primary.client(client_id=CLIENT)
    client.number, client.floor = number - 1, number
    assert write(client, m.SET, 1, "a", "mine", [m.ON_BASE, base, False]) == number
    primary.sync()
    assert reply_to(client, number).status == VersionConflict.code
    return base


def same_set(cluster: Cluster, number: int, base: int) -> bytes:
    """The item of that set, which another history had accepted under an op id of its own."""
    operation = Operation(m.SET, b"a", b"mine", base, stamp(cluster.primary))
    return encode_item(Item(CLIENT, number, 0, b"d", m.SET, False, [operation], 0, 0, NOTHING))


@pytest.mark.parametrize("row", ["there", "gone"])
def test_a_write_that_its_old_primary_had_acknowledged_and_this_history_refused_is_kept(
    cluster: Cluster, row: str
) -> None:
    """Its client may have asked both: what it heard first is what it goes by."""
    primary = cluster.primary
    base = refused(cluster, 3)
    verdict = LATER
    if row == "gone":
        go_on(primary, 9)
        verdict = REFUSED
    assert (3 in primary.core.state.clients[CLIENT].rows) == (row == "there")
    for outbox_number in (1, 2):  # and once
        decide(primary, outbox_number, same_set(cluster, 3, base), verdict=verdict)
    assert value_of(primary, b"a") == b"new"
    [entry] = ledger(primary)
    assert (entry["value"], entry["state"], entry["request"]) == ("mine", "refused", 3)
    assert len(primary.core.state.notices[CLIENT]) == 1


def test_a_write_that_this_history_did_is_not_kept_again(cluster: Cluster) -> None:
    primary = cluster.primary
    go_on(primary, 9)
    decide(primary, 1, same_set(cluster, 3, 0), verdict=DONE)
    assert ledger(primary) == []


def test_of_a_batch_what_was_refused_in_this_history_is_kept(cluster: Cluster) -> None:
    primary = cluster.primary
    write(primary.client(), m.SET, 1, "text", "no number", None)
    client = primary.client(client_id=CLIENT)
    kinds = bytes([m.SET, m.INCREMENT])
    number = write(client, m.BATCH, 1, False, kinds, pack([["a", "text"], ["mine", 2]]), None)
    primary.sync()
    operations = [
        Operation(m.SET, b"a", b"mine", 0, stamp(primary)),
        Operation(m.INCREMENT, b"text", 2, 0, stamp(primary)),
    ]
    data = encode_item(Item(CLIENT, number, 0, b"d", m.BATCH, False, operations, 0, 0, NOTHING))
    decide(primary, 1, data)
    [entry] = ledger(primary)
    assert (entry["key"], entry["kind"], entry["value"]) == ("text", "increment", 2)


def test_of_two_refused_writes_of_one_batch_to_one_key_both_are_kept(cluster: Cluster) -> None:
    primary = cluster.primary
    base = refused(cluster, 3)
    operations = [
        Operation(m.SET, b"a", value, base, stamp(primary)) for value in (b"first", b"second")
    ]
    data = encode_item(Item(CLIENT, 3, 0, b"d", m.BATCH, True, operations, 0, 0, NOTHING))
    for outbox_number in (1, 2):  # and once
        decide(primary, outbox_number, data)
    assert [entry["value"] for entry in ledger(primary)] == ["first", "second"]


def test_a_node_sees_which_requests_were_refused(cluster: Cluster) -> None:
    known = Repeats(cluster.primary.core.state, Held())
    for number, status, verdict in (
        (1, 0, DONE),
        (2, VersionConflict.code, REFUSED),
        (3, ConflictPending.code, DONE),  # it waits in this history
    ):
        known.add(number, Item(CLIENT, number, 0, b"d", m.SET, False, [], 0, 0, NOTHING))
        known.look_at([(fx.OUTCOME, CLIENT, number, 0, status, 7, None)])
        assert known.verdict(number) == verdict


# Refused in part


REFUSAL = [VersionConflict.code, "it was made on another", b"s"]
PENDING = [ConflictPending.code, "it waits", b"s"]


def batch(cluster: Cluster, number: int, *made: tuple[int, bytes, Any]) -> Item:
    """The item of a batch that another history had done whole; what it read has its place in it."""
    operations = [
        Operation(kind, b"" if kind == m.GET else key, argument, 0, stamp(cluster.primary))
        for kind, key, argument in made
    ]
    return Item(CLIENT, number, 0, b"d", m.BATCH, False, operations, 0, 0, NOTHING)


def test_of_a_batch_whose_client_has_gone_on_its_node_proposes_what_was_refused(
    cluster: Cluster,
) -> None:
    """Its row is gone; the rest was done in this history."""
    primary = cluster.primary
    write(primary.client(), m.SET, 1, "text", "no number", None)
    client = primary.client(client_id=CLIENT)
    client.number, client.floor = 2, 3
    kinds = bytes([m.GET, m.SET, m.INCREMENT])
    payload = pack([["r", "a", "text"], [None, "mine", 2]])
    assert write(client, m.BATCH, 1, False, kinds, payload, None) == 3
    primary.sync()
    outcome = primary.core.state.clients[CLIENT].rows[3]
    go_on(primary, 9)
    item = batch(cluster, 3, (m.GET, b"r", None), (m.SET, b"a", b"mine"), (m.INCREMENT, b"text", 2))
    known = Repeats(primary.core.state, Held())
    known.add(1, item)
    known.look_at([(fx.OUTCOME, CLIENT, 3, 3, outcome.status, 7, outcome.result)])
    verdict, data = known.judged(1, encode_item(item))
    for outbox_number in (1, 2):  # and once
        decide(primary, outbox_number, data, verdict=verdict)
    assert (value_of(primary, b"a"), value_of(primary, b"text")) == (b"mine", b"no number")
    [entry] = ledger(primary)
    assert (entry["key"], entry["value"], entry["op_id"]) == ("text", 2, item.operations[2].op_id)
    assert [*primary.core.state.notices[CLIENT]] == [entry["op_id"]]
    known.drop(1)
    assert len(known) == 0


READ = (m.GET, b"r", None)
NOTHING_DONE = (m.GET, b"x", 4)  # there was nothing to remove in that history
SET = (m.SET, b"s", b"1")
OTHER = (m.SET, b"o", b"1")


@pytest.mark.parametrize(
    ("made", "answers", "refused"),
    [
        ([SET, OTHER], [REFUSAL, 1], [0]),
        ([SET, OTHER], [PENDING, 1], []),  # it waits in this history
        ([SET, OTHER], [1, 1], []),
        ([READ, SET, OTHER], [None, REFUSAL, 1], [1]),
        ([SET, OTHER], [None, REFUSAL, 1], [0]),  # what was read stands in the answers only
        ([READ, SET, NOTHING_DONE], [REFUSAL, 1], [1]),  # or in the item only
        ([NOTHING_DONE, SET], [REFUSAL, REFUSAL], [1]),
        ([SET, OTHER], [1, REFUSAL, [2, 5]], [0]),  # its gaps are lost: the keys tell
        ([SET, OTHER], [None, [1, b"2"]], []),
    ],
)
def test_which_writes_of_a_batch_were_refused(
    cluster: Cluster, made: list[Any], answers: list[Any], refused: list[int]
) -> None:
    item = batch(cluster, 3, *made)
    for result in ([pack(answers)], [pack(answers), True]):
        parts = repeats.parts_of(0, result)
        found = repeats.refused_of(item, parts) if parts else []
        assert found == [item.operations[index] for index in refused]


@pytest.mark.parametrize("result", [True, b"heads", 3, [1, 2], [pack([1, None, [2, 7]])], {8: b""}])
def test_of_a_request_that_was_done_no_part_was_refused(result: Any) -> None:
    assert repeats.parts_of(0, result) == ()


def test_a_node_that_starts_knows_which_part_its_log_refused(cluster: Cluster) -> None:
    item = batch(cluster, 3, SET, OTHER)
    data = encode_item(item)
    held = Held(2, [(1, data)], 0, {(CLIENT, 3): (0, [pack([1, [*REFUSAL[:2], b"o"]])])})
    known = Repeats(cluster.primary.core.state, held)
    reduced = encode_item(item._replace(operations=item.operations[1:]))
    assert known.judged(1, data) == (REFUSED, reduced)


def test_of_two_writes_of_one_batch_to_one_key_one_is_in_the_ledger_already(
    cluster: Cluster,
) -> None:
    """In this history the set had lost its place, and the increment before it found no number."""
    primary = cluster.primary
    item = batch(cluster, 3, (m.INCREMENT, b"a", 2), (m.SET, b"a", b"mine"))
    first = item._replace(operations=item.operations[1:])
    refused(cluster, 2)
    decide(primary, 1, encode_item(first), verdict=OPEN)
    assert [entry["kind"] for entry in ledger(primary)] == ["set"]
    for outbox_number in (2, 3):
        decide(primary, outbox_number, encode_item(item), verdict=REFUSED)
    assert sorted(entry["kind"] for entry in ledger(primary)) == ["increment", "set"]
