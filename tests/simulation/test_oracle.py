"""What the oracle reads out of entries."""

from __future__ import annotations

from nun.core import effects as fx
from nun.position import Position
from tests.simulation.oracle import changes_of_items

AT = Position(1, 1, 1, 7)
OUTBOX = (fx.OUTBOX, 2, 5)


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
