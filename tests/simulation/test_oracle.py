"""What the oracle reads out of entries, and what it makes of a history."""

from __future__ import annotations

import pytest

from nun import messages as m
from nun.core import effects as fx
from nun.core import record
from nun.core.conflicts import ledger
from nun.core.conflicts.ledger_keys import entry_key
from nun.position import Position
from tests.simulation.conflicting import check_sets
from tests.simulation.model import Model
from tests.simulation.oracle import changes_of_items
from tests.simulation.process import Failed
from tests.simulation.workload import Write

AT = Position(1, 1, 1, 7)
OUTBOX = (fx.OUTBOX, 2, 5)
KEY = b"s0"


def put(op_id: int) -> fx.Effect:
    return (fx.PUT, 1, op_id, 1, 0, b"k%d" % op_id, b"v")


def outcome(number: int) -> fx.Effect:
    return (fx.OUTCOME, b"whose", number, 0, 0, number, 1)


def test_what_was_decided_for_an_outbox_is_told_from_what_was_asked_for() -> None:
    """A write that was cut off on one node, while its client's request was decided anew, is no item's."""
    effects = [put(1), outcome(1), put(2), put(3), outcome(2), OUTBOX, put(4), outcome(4)]
    assert [change.op_id for change in changes_of_items(AT, effects)] == [2, 3]


def test_what_came_after_the_outcome_of_an_item_is_of_it() -> None:
    notice = (fx.NOTICE, b"whose", 9, b"")
    effects = [outcome(1), put(2), outcome(2), notice, OUTBOX, OUTBOX, put(3), outcome(3)]
    assert [change.op_id for change in changes_of_items(AT, effects)] == [2]


def entry(op_id: int, state: str, request: int = 1) -> dict[str, object]:
    """What the ledger has of a write of client `c1`."""
    write = ledger.Write(1, KEY, m.SET, b"v", 0, op_id, 0, 0, b"c1", request)
    return ledger.entry_of(write, "d", state)


def made(op_id: int, state: str) -> fx.Effect:
    """An entry of the ledger about the first request of `c1`."""
    new = record.live(1, op_id + 1, ledger.dumped(entry(op_id, state)))
    return (fx.MADE, 1, op_id + 1, [entry_key(KEY, op_id)], [new], False)


def cleaned(op_id: int) -> fx.Effect:
    return (fx.MADE, 1, op_id + 2, [entry_key(KEY, op_id)], [record.tombstone(2, op_id + 2)], False)


def test_a_write_may_have_another_entry_when_the_first_was_cleaned_away() -> None:
    """Its request came again as a local write of a node that had not heard of the decision, and was refused."""
    model = Model()
    model.take(AT, [made(10, ledger.DECIDED)])
    model.take(AT, [cleaned(10), made(20, ledger.REFUSED)])
    model.take(AT, [cleaned(20), made(30, ledger.REFUSED)])


@pytest.mark.parametrize(
    "effects",
    [
        [made(10, ledger.DECIDED), made(20, ledger.REFUSED)],
        [made(10, ledger.DECIDED), made(20, ledger.REFUSED), cleaned(10)],
        [made(10, ledger.DECIDED), cleaned(10), made(20, ledger.DECIDED)],
        [made(10, ledger.DECIDED), cleaned(10), made(20, ledger.OPEN)],
        [made(10, ledger.DECIDED), cleaned(10), made(20, ledger.REFUSED), made(30, ledger.REFUSED)],
    ],
    ids=["both stand", "cleaned later", "decided again", "open again", "the third"],
)
def test_two_entries_of_one_write_are_one_too_many(effects: list[fx.Effect]) -> None:
    with pytest.raises(Failed, match="two entries for one write"):
        Model().take(AT, effects)


def element(client: str, value: str, ending: str, op_id: int) -> Write:
    """The first request of a client: what it had read, and its own element."""
    own = value.split()[-1]
    key = KEY.decode()
    write = Write("element", client, None, [key], [value], 0, own, {key: op_id}, ending=ending)
    write.number = 1
    return write


def sets_hold(read: str, reader: str | None, state: str, value: str) -> None:
    """A write that was shown before it was decided has an entry of this state, and somebody read it.

    Args:
        read: how the request of the one who read it ended. reader: the state of that one's entry, if it has one.
    """
    writes = [element("c1", "a b", "done", 10), element("c2", "a b c", read, 20)]
    model = Model()
    model.entries[1, b"first"] = entry(10, state)
    if reader is not None:
        model.entries[1, b"second"] = entry(20, reader, 2)
    check_sets(writes, model, {KEY.decode(): value}, {})


@pytest.mark.parametrize("state", ["open", "refused"])
def test_what_was_read_before_it_was_decided_stands_by_who_had_read_it(state: str) -> None:
    sets_hold("pending", "resolved", state, "a b c")
    sets_hold("unknown", "resolved", state, "a b c")
    sets_hold("unknown", None, state, "a b c")
    sets_hold("unknown", None, state, "a")
    sets_hold("pending", "open", state, "a")
    sets_hold("refused", None, state, "a")


@pytest.mark.parametrize("state", ["open", "refused"])
@pytest.mark.parametrize(
    ("read", "reader", "value"),
    [
        ("pending", "open", "a b"),
        ("refused", None, "a b"),
        ("pending", "resolved", "a c"),
        ("pending", "resolved", "a b b c"),
        ("unknown", None, "a b b"),
    ],
    ids=["nobody resolved it", "who read it was refused", "lost", "twice", "twice, by chance"],
)
def test_what_was_read_before_it_was_decided_stands_by_nobody_else(
    state: str, read: str, reader: str | None, value: str
) -> None:
    with pytest.raises(Failed, match="element b"):
        sets_hold(read, reader, state, value)
