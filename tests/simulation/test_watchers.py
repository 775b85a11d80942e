"""The oracle of watches by itself: what it must find, and what it must let pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nun.position import NOTHING, Position
from tests.simulation.oracle import Change, Oracle
from tests.simulation.process import Failed
from tests.simulation.watchers import Life, check_watch

KEY = b"k"


def epoch(reign: int, node: int, start: int, first: int, last: int) -> list[Position]:
    return [Position(reign, node, start, seq) for seq in range(first, last + 1)]


def looked_at(shown: list[Position], history: list[Position]) -> None:
    """Checks a watch that was shown the last entry of one history, while another is there in the end."""
    oracle = Oracle()
    for path in (shown, history):
        before = NOTHING
        for position in path:
            assert oracle.before.setdefault(position, before) == before
            oracle.decoded[position] = []
            before = position
    last = shown[-1]
    oracle.decoded[last] = [Change(last, 1, KEY, 77, 0, b"v")]
    event = SimpleNamespace(kind="set", key="k", value="v", version=1, op_id=77, position=last)
    life = Life("c1.1", "k", shown[-2], [event], ended=True, goes_on=last)
    check_watch(oracle, life, history, 1)


FIRST = epoch(1, 1, 1, 1, 4)

LAWFUL = {
    "it is there": (FIRST, FIRST + epoch(2, 2, 1, 5, 6)),
    "a higher reign replaced it": (FIRST, FIRST[:3] + epoch(2, 2, 1, 4, 6)),
    "a higher reign is shorter": (FIRST, FIRST[:2] + epoch(2, 2, 1, 3, 3)),
    "a higher reign had never heard of all of its reign": (
        FIRST + epoch(2, 2, 1, 5, 6),
        FIRST + epoch(1, 1, 2, 5, 8) + epoch(3, 3, 1, 9, 9),
    ),
    "another candidate began the same reign": (
        FIRST + epoch(2, 2, 1, 5, 6),
        FIRST + epoch(2, 3, 1, 5, 7),
    ),
    "another candidate began the same reign further on": (
        FIRST[:3] + epoch(2, 2, 1, 4, 5),
        FIRST + epoch(1, 1, 2, 5, 5) + epoch(2, 3, 1, 6, 7),
    ),
    "a higher reign went on from an earlier start": (
        FIRST[:2] + epoch(1, 1, 2, 3, 4),
        FIRST + epoch(2, 2, 1, 5, 5),
    ),
}

UNLAWFUL = {
    "a start took it back": (FIRST, FIRST[:3] + epoch(1, 1, 2, 4, 6)),
    "a start took it back and stays behind": (FIRST, FIRST[:2] + epoch(1, 1, 2, 3, 3)),
    "a start took it back, then came a higher reign": (
        FIRST,
        FIRST[:2] + epoch(1, 1, 2, 3, 3) + epoch(2, 2, 1, 4, 5),
    ),
    "it is not there and nothing came after": (FIRST, FIRST[:3]),
    "a lower reign": (FIRST + epoch(2, 2, 1, 5, 5), FIRST + epoch(1, 1, 2, 5, 6)),
    "a lower candidate of the same reign": (
        FIRST + epoch(2, 3, 1, 5, 5),
        FIRST + epoch(2, 2, 1, 5, 6),
    ),
}


@pytest.mark.parametrize("case", LAWFUL)
def test_what_a_promotion_cut_off_may_have_been_shown(case: str) -> None:
    looked_at(*LAWFUL[case])


@pytest.mark.parametrize("case", UNLAWFUL)
def test_nothing_else_takes_back_what_was_shown(case: str) -> None:
    with pytest.raises(Failed, match=r"P3: .* was shown"):
        looked_at(*UNLAWFUL[case])
