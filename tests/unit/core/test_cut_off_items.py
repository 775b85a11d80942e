"""Items that a forced promotion cut off: those that are in this history again, by a copy, and what had been refused."""

from __future__ import annotations

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack
from nun.core import effects as fx
from nun.core.conflicts.ledger import DECIDED, write_of
from nun.core.proposals.outbox import (
    Item,
    Operation,
    decode_item,
    encode_item,
    items_of_entries,
)
from nun.core.proposals.repeats import DONE, LATER, OPEN, REFUSED, UNKNOWN, Held, Repeats
from nun.core.record import UNKNOWN_BASE
from nun.limits import DECIDED_AT_MAX
from nun.position import NOTHING, Epoch, Position
from tests.support.replicas import Cluster, NodeDriver
from tests.unit.core.test_items import decide, ledger, stamp, value_of
from tests.unit.core.test_repeats import CLIENT, REFUSAL, go_on, refused, same_set, state_of
from tests.unit.core.test_replicas import write

THERE = Position(1, 1, 1, 7)
GONE = Position(2, 2, 1, 7)  # of a primary that was made so by force, and is followed no more


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.database()
    return made


def cut_off(*decided_at: Position) -> bytes:
    """An item that these entries decided, all but the first in histories before that."""
    operations = [Operation(m.SET, key, b"1", 0, 5) for key in (b"a", b"s")]
    item = Item(CLIENT, 3, 0, b"d", m.BATCH, False, operations, 0, 0, NOTHING)
    return encode_item(item._replace(decided_at=decided_at))


@pytest.mark.parametrize(
    ("decided_at", "verdict"),
    [
        ([THERE], DONE),
        ([GONE], UNKNOWN),
        ([GONE, THERE], DONE),
        ([THERE._replace(seq=41)], UNKNOWN),  # this history has not come so far
        ([THERE._replace(seq=12)], UNKNOWN),  # the end of that epoch is cut off
        ([], UNKNOWN),
    ],
)
def test_what_an_entry_of_this_history_decided_is_done(
    decided_at: list[Position], verdict: int
) -> None:
    """A copy brought that entry: the log begins above it, and the client has gone on."""
    state = state_of((Epoch(1, 1, 1), 1), (Epoch(3, 1, 1), 10), last=40)
    state.take(state.position, (fx.OUTCOME, CLIENT, 9, 9, 0, 1, 1))  # type: ignore[arg-type]
    data = cut_off(*decided_at)
    known = Repeats(state, Held(2, [(1, data)], 40))
    assert known.judged(1, data) == (verdict, data)
    known.drop(1)
    assert len(known) == 0


def test_what_an_entry_of_this_history_decided_is_done_where_it_refused_a_part() -> None:
    """That part is in the ledger."""
    state = state_of((Epoch(1, 1, 1), 1), last=40)
    data = cut_off(THERE)
    decided = {(CLIENT, 3): (0, [pack([1, REFUSAL])])}
    assert Repeats(state, Held(2, [(1, data)], 0, decided)).judged(1, data) == (DONE, data)


def test_what_is_decided_anew_says_where_it_was_decided_before(cluster: Cluster) -> None:
    """Should this history be cut off for that one, it is known there; so for the latest of many."""
    primary = cluster.primary
    data = cut_off(*(GONE._replace(seq=seq) for seq in range(DECIDED_AT_MAX, 0, -1)))
    sent = len(primary.frames)
    decide(primary, 1, data)
    [again] = items_of_entries(map(fx.decode_entry, primary.frames[sent:]), {1: "d"}, NOTHING)
    found = decode_item(again)
    assert found.decided_at[0] == primary.core.state.position
    assert found.decided_at[1:] == decode_item(data).decided_at[:-1]


# What was finally refused: its entry of the ledger was all that was left of it


def made_again(node: NodeDriver, sent: int) -> list[Item]:
    """The items that a node makes of its entries after so many, should they be cut off."""
    entries = map(fx.decode_entry, node.frames[sent:])
    common, _ = fx.decode_entry(node.frames[sent - 1])
    names = {number: info.name for number, info in node.core.state.databases.items()}
    return [decode_item(one) for one in items_of_entries(entries, names, common)]


def batch_of(node: NodeDriver, *keys: bytes, atomic: bool = False) -> Item:
    """An item of sets, which was decided in a history that is gone."""
    operations = [Operation(m.SET, key, b"mine", 0, stamp(node)) for key in keys]
    kind = m.BATCH if len(keys) > 1 else m.SET
    item = Item(CLIENT, 3, 0, b"d", kind, atomic, operations, 1_000, 7, THERE)
    return item._replace(decided_at=(GONE,))


@pytest.mark.parametrize("keys", [[b"a"], [b"a", b"b"]])
def test_what_came_too_late_and_is_cut_off_is_proposed_again(
    cluster: Cluster, keys: list[bytes]
) -> None:
    """Of what this history had decided before it nothing is known: it may be a repeat in the part that stays."""
    primary = cluster.primary
    go_on(primary, 9)
    sent = len(primary.frames)
    item = batch_of(primary, *keys)
    decide(primary, 1, encode_item(item), verdict=UNKNOWN)
    assert len(ledger(primary)) == len(keys)
    decided_at = (primary.core.state.position, GONE)
    [again] = made_again(primary, sent)
    assert again == item._replace(since=NOTHING, decided_at=decided_at, atomic=len(keys) > 1)


@pytest.mark.parametrize("row", ["there", "gone"])
def test_what_was_refused_here_and_done_in_a_history_before_is_proposed_again(
    cluster: Cluster, row: str
) -> None:
    primary = cluster.primary
    base = refused(cluster, 3)
    verdict = LATER
    if row == "gone":
        go_on(primary, 9)
        verdict = REFUSED
    sent = len(primary.frames)
    data = same_set(cluster, 3, base)
    for number in (1, 2):  # and once
        decide(primary, number, data, verdict=verdict)
    [entry] = ledger(primary)
    [again] = made_again(primary, sent)
    item = decode_item(data)
    assert again.operations == item.operations
    assert again.operations[0].op_id == entry["op_id"]
    assert (again.client_id, again.number, again.database) == (CLIENT, 3, b"d")
    assert again.since == NOTHING


@pytest.mark.parametrize(("keys", "atomic"), [(b"a", False), (b"ab", False), (b"ab", True)])
@pytest.mark.parametrize("verdict", [OPEN, LATER])
def test_what_was_refused_for_its_database_is_gone_is_proposed_again(
    cluster: Cluster, keys: bytes, atomic: bool, verdict: int
) -> None:
    """The history that cuts it off may have the database still."""
    primary = cluster.primary
    write(primary.client(), m.DROP_DATABASE, "d")
    primary.sync()
    sent = len(primary.frames)
    common = primary.core.state.position
    assert common is not None
    item = batch_of(primary, *(bytes([key]) for key in keys), atomic=atomic)
    decide(primary, 1, encode_item(item), verdict=verdict)
    seen = [one.op_id for one in item.operations]
    write(primary.client(client_id=CLIENT), m.OUTCOMES_SEEN, seen)
    primary.sync()
    decide(primary, 2, encode_item(item), verdict=verdict)  # and once
    effects = [effect for frame in primary.frames[sent:] for effect in fx.decode_entry(frame)[1]]
    told = [effect[2] for effect in effects if effect[0] == fx.NOTICE]
    assert told == seen
    [again] = made_again(primary, sent)
    decided_at = (common._replace(seq=sent + 1), GONE)
    assert again == item._replace(since=common, decided_at=decided_at)


@pytest.mark.parametrize("keys", [b"a", b"ab"])
def test_a_node_that_saw_that_an_item_had_lost_its_database_calls_it_done(
    cluster: Cluster, keys: bytes
) -> None:
    primary = cluster.primary
    write(primary.client(), m.DROP_DATABASE, "d")
    item = batch_of(primary, *(bytes([key]) for key in keys))._replace(decided_at=())
    known = Repeats(primary.core.state, Held())
    known.add(1, item)
    decide(primary, 1, encode_item(item))
    known.look_at(fx.decode_entry(primary.frames[-1])[1])
    assert known.judged(1, encode_item(item)) == (DONE, encode_item(item))


def test_of_what_came_too_late_for_its_database_too_nothing_is_known(cluster: Cluster) -> None:
    primary = cluster.primary
    go_on(primary, 9)
    write(primary.client(), m.DROP_DATABASE, "d")
    primary.sync()
    sent = len(primary.frames)
    item = batch_of(primary, b"a")
    for number in (1, 2):
        decide(primary, number, encode_item(item), verdict=UNKNOWN)
    [again] = made_again(primary, sent)
    assert again == item._replace(since=NOTHING, decided_at=again.decided_at)


def test_a_resolution_that_was_refused_and_is_cut_off_is_proposed_again(cluster: Cluster) -> None:
    """As a write: what it closed is not known any more, its value is."""
    primary = cluster.primary
    sent = len(primary.frames)
    item = batch_of(primary, b"a")._replace(kind=m.RESOLVE, closes=(5,))
    decide(primary, 1, encode_item(item))
    assert [entry["state"] for entry in ledger(primary)] == ["refused"]
    [again] = made_again(primary, sent)
    assert (again.kind, again.operations) == (m.SET, item.operations)


def test_what_was_refused_is_no_part_of_the_request_that_is_decided_next(cluster: Cluster) -> None:
    """One entry may have both: the later one has an outcome of its own."""
    primary = cluster.primary
    go_on(primary, 9)
    sent = len(primary.frames)
    late = batch_of(primary, b"a")
    other = batch_of(primary, b"b")._replace(client_id=b"other")
    seen = primary.core.state.position
    for number, (item, verdict) in enumerate([(late, UNKNOWN), (other, OPEN)], 1):
        body = pack((number - 1, number, verdict, seen, encode_item(item)))
        primary.hear(pm.PROPOSALS, [[2, number, body]])
    primary.sync()
    found = made_again(primary, sent)
    assert [(one.client_id, [each.key for each in one.operations]) for one in found] == [
        (CLIENT, [b"a"]),
        (b"other", [b"b"]),
    ]


@pytest.mark.parametrize("cleaned", [False, True])
def test_what_came_too_late_from_one_node_is_not_done_for_another(
    cluster: Cluster, cleaned: bool
) -> None:
    """That one has seen all of this history, and no decision: there was none, but an entry of the ledger."""
    primary = cluster.primary
    go_on(primary, 9)
    item = batch_of(primary, b"a")
    decide(primary, 1, encode_item(item), verdict=UNKNOWN)
    assert [entry["op_id"] for entry in ledger(primary)] == [item.op_id]
    if cleaned:
        primary.core.unix_ms += 1_000 * int(primary.settings.conflicts.resolved_retention_s) + 1_000
        primary.core.conflicts.clean(10)
        primary.core.close()
        primary.perform()
        primary.sync()
    sent = len(primary.frames)
    decide(primary, 1, encode_item(item), verdict=OPEN, origin=3)
    assert value_of(primary, b"a") is None
    _, effects = fx.decode_entry(primary.frames[sent])
    assert effects == [[fx.OUTBOX, 3, 1]]


def test_what_was_just_done_for_another_node_is_not_called_too_late(cluster: Cluster) -> None:
    """Its node has not seen that yet, and will."""
    primary = cluster.primary
    go_on(primary, 9)
    seen = primary.core.state.position
    item = batch_of(primary, b"a")
    decide(primary, 1, encode_item(item), verdict=OPEN, origin=3)
    write(primary.client(), m.SET, 1, "a", "and on", None)
    primary.sync()
    decide(primary, 1, encode_item(item), verdict=UNKNOWN, seen=seen)
    assert (ledger(primary), primary.core.state.outboxes) == ([], {3: 1})
    decide(primary, 1, encode_item(item), verdict=DONE)
    assert (ledger(primary), primary.core.state.outboxes) == ([], {3: 1, 2: 1})


def test_nothing_is_done_twice_that_came_too_late_and_is_proposed_again(cluster: Cluster) -> None:
    """Its node knows the whole log, and that its request was decided before what is cut off."""
    primary = cluster.primary
    item = batch_of(primary, b"n")
    one = item.operations[0]._replace(kind=m.INCREMENT, argument=1)
    item = item._replace(kind=m.INCREMENT, operations=[one])
    decide(primary, 1, encode_item(item))
    go_on(primary, 9)
    write(primary.client(), m.INCREMENT, 1, "n", 5)
    primary.sync()
    sent = len(primary.frames)
    decide(primary, 2, encode_item(item), verdict=UNKNOWN)
    [again] = made_again(primary, sent)
    data = encode_item(again._replace(decided_at=()))
    for seen_from, verdict in ((0, DONE), (sent, UNKNOWN)):
        decided = {(CLIENT, 3): (0, [1, 1])} if not seen_from else {}
        known = Repeats(primary.core.state, Held(2, [(1, data)], seen_from, decided))
        assert known.judged(1, data)[0] == verdict


def test_what_the_ledger_has_as_what_it_came_to_is_not_lost_once_more(cluster: Cluster) -> None:
    """A fallback displaced what an increment had come to: the entry has that value, under its op id."""
    primary = cluster.primary
    go_on(primary, 9)
    item = batch_of(primary, b"n")
    one = item.operations[0]._replace(kind=m.INCREMENT, argument=1)
    item = item._replace(kind=m.INCREMENT, operations=[one])
    came_to = write_of(item, one, 1)._replace(kind=m.SET, argument=b"7", base=UNKNOWN_BASE)
    primary.core.ledger.close_at_once(came_to, DECIDED, "displaced", None)
    primary.core.close()
    primary.perform()
    primary.sync()
    sent = len(primary.frames)
    decide(primary, 1, encode_item(item), verdict=UNKNOWN)
    assert [entry["state"] for entry in ledger(primary)] == [DECIDED]
    _, effects = fx.decode_entry(primary.frames[sent])
    assert effects == [[fx.OUTBOX, 2, 1]]


def test_what_was_told_is_told_once_though_another_database_has_that_name_now(
    cluster: Cluster,
) -> None:
    """Its entry of the ledger is gone with the one that was dropped; its writer has not looked at the notice yet."""
    primary = cluster.primary
    go_on(primary, 9)
    item = batch_of(primary, b"a")
    decide(primary, 1, encode_item(item), verdict=UNKNOWN)
    write(primary.client(), m.DROP_DATABASE, "d")
    cluster.carry()
    cluster.database()
    sent = len(primary.frames)
    decide(primary, 1, encode_item(item), verdict=UNKNOWN, origin=3)
    _, effects = fx.decode_entry(primary.frames[sent])
    assert effects == [[fx.OUTBOX, 3, 1]]
