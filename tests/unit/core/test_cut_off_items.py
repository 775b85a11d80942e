"""Items that were cut off, and are in this history again: after a forced promotion, by a copy."""

from __future__ import annotations

import pytest

from nun import messages as m
from nun.codec import pack
from nun.core import effects as fx
from nun.core.proposals.outbox import (
    Item,
    Operation,
    decode_item,
    encode_item,
    items_of_entries,
)
from nun.core.proposals.repeats import DONE, UNKNOWN, Held, Repeats
from nun.limits import DECIDED_AT_MAX
from nun.position import NOTHING, Epoch, Position
from tests.support.replicas import Cluster
from tests.unit.core.test_items import decide
from tests.unit.core.test_repeats import CLIENT, REFUSAL, state_of

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
