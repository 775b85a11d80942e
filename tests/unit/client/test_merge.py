"""Ready-made handlers: what each makes of two sides and a base, and the laws of merging."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nun
from nun import merge
from nun.client.conflicts import Conflict, Side

SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "é", "x y"])
OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from("abcd"), SCALARS, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), SCALARS | inner, max_size=4),
    max_leaves=8,
)
ARRAYS = st.lists(st.integers(0, 9) | st.sampled_from("xyz"), max_size=6, unique_by=str)


def side(value: Any, at: int = 0, op_id: int = 0) -> Side | None:
    return None if value is nun.REMOVED else Side(value, 1, op_id, at)


def conflict(
    base: Any, current: Any, proposed: Any, known: bool = True, at: int = 20, op_id: int = 2
) -> Conflict:
    return Conflict(
        "$conflicts_k_2",
        "k",
        side(base) if known else None,
        known,
        side(current, 10, 1),
        side(proposed, at, op_id),
        at,
        "ab",
        op_id,
    )


def test_one_of_the_two_sides() -> None:
    later, earlier = conflict("b", "c", "p", at=20), conflict("b", "c", "p", at=5)
    same = conflict("b", "c", "p", at=10, op_id=2)
    assert [merge.keep(one) for one in (later, earlier)] == ["c", "c"]
    assert [merge.newer(one) for one in (later, earlier, same)] == ["p", "c", "p"]
    assert [merge.older(one) for one in (later, earlier, same)] == ["c", "p", "c"]
    assert merge.keep(conflict("b", nun.REMOVED, "p")) is nun.REMOVED
    assert merge.newer(conflict("b", nun.REMOVED, "p")) == "p"
    assert merge.newer(conflict("b", "c", nun.REMOVED)) is nun.REMOVED


def as_json(value: Any) -> Any:
    return value if value is nun.REMOVED else json.dumps(value)


@given(OBJECTS, OBJECTS)
def test_what_only_one_side_changed_is_the_result(base: Any, changed: Any) -> None:
    for handler, one, other in (
        (merge.json_merge(), base, changed),
        (merge.json_merge("current"), base, changed),
    ):
        for current, proposed in ((one, other), (other, one), (other, other)):
            answer = handler(conflict(as_json(base), as_json(current), as_json(proposed)))
            assert json.loads(answer) == other


@given(OBJECTS, OBJECTS)
def test_changes_of_different_fields_are_both_kept(ours: Any, theirs: Any) -> None:
    base = {"o": {"left": {}}, "t": {"left": {}}}
    current = {**base, "o": ours}
    proposed = {**base, "t": theirs}
    answer = merge.json_merge()(conflict(as_json(base), as_json(current), as_json(proposed)))
    assert json.loads(answer) == {"o": ours, "t": theirs}


def test_json_merge_where_both_changed_a_field() -> None:
    both = conflict('{"a": 1, "b": {"c": 1}}', '{"a": 2, "b": {"c": 2}}', '{"a": 3, "b": {"d": 1}}')
    assert json.loads(merge.json_merge("current")(both)) == {"a": 2, "b": {"c": 2, "d": 1}}
    assert json.loads(merge.json_merge("proposed")(both)) == {"a": 3, "b": {"d": 1}}
    with pytest.raises(nun.CannotMerge, match="both sides changed 'a'"):
        merge.json_merge()(both)


def test_json_merge_without_a_base_unites() -> None:
    unknown = conflict(None, '{"a": 1, "b": 1}', '{"b": 2, "c": {"d": 1}}', known=False)
    assert json.loads(merge.json_merge("proposed")(unknown)) == {"a": 1, "b": 2, "c": {"d": 1}}


def test_json_takes_true_and_one_for_two_things() -> None:
    changed = conflict('{"a": 1}', '{"a": true}', '{"a": 1}')
    assert json.loads(merge.json_merge()(changed)) == {"a": True}


@pytest.mark.parametrize("handler", [merge.json_merge(), merge.set_union, merge.numeric_max])
def test_a_removal_wins_over_what_was_left_as_it_was_only(handler: merge.Handler) -> None:
    values = {merge.set_union: ("[1]", "[1, 2]"), merge.numeric_max: ("1", "2")}
    base, changed = values.get(handler, ('{"a": 1}', '{"a": 2}'))
    assert handler(conflict(base, nun.REMOVED, base)) is nun.REMOVED
    assert handler(conflict(base, base, nun.REMOVED)) is nun.REMOVED
    assert handler(conflict(base, nun.REMOVED, changed)) == changed
    assert handler(conflict(base, nun.REMOVED, nun.REMOVED)) is nun.REMOVED


@given(ARRAYS, ARRAYS, ARRAYS)
def test_set_union_respects_what_one_side_removed(base: Any, current: Any, proposed: Any) -> None:
    answer = json.loads(
        merge.set_union(conflict(as_json(base), as_json(current), as_json(proposed)))
    )
    again = json.loads(
        merge.set_union(conflict(as_json(base), as_json(proposed), as_json(current)))
    )
    as_set = {str(one) for one in answer}
    assert as_set == {str(one) for one in again}, "the order of the sides counts only for the order"
    assert len(answer) == len(as_set)
    added = {str(one) for one in [*current, *proposed] if one not in base}
    kept = {str(one) for one in base if one in current and one in proposed}
    assert as_set == added | kept


@given(ARRAYS)
def test_set_union_of_one_with_itself_is_itself(elements: Any) -> None:
    same = as_json(elements)
    assert json.loads(merge.set_union(conflict(same, same, same))) == elements


def test_sets_in_text() -> None:
    handler = merge.set_union_of(",")
    assert handler(conflict("a,b", "a,b,c", "b,d")) == "b,c,d"
    assert handler(conflict(b"", b"x", b"y")) == "x,y"
    assert handler(conflict(None, "a", "b", known=False)) == "a,b"


@given(st.integers(), st.integers(), st.integers())
def test_both_changes_of_a_number_count(base: int, one: int, other: int) -> None:
    both = conflict(str(base), str(base + one), str(base + other))
    assert int(merge.numeric_sum(both)) == base + one + other
    assert int(merge.numeric_max(both)) == base + max(one, other)


def test_numbers_that_are_no_integers() -> None:
    assert Decimal(merge.numeric_sum(conflict("0.1", "0.3", "0.2"))) == Decimal("0.4")
    assert merge.numeric_sum(conflict(nun.REMOVED, "1", "2")) == "3", "an absent base counts as 0"
    with pytest.raises(nun.CannotMerge, match="not known"):
        merge.numeric_sum(conflict(None, "1", "2", known=False))
    for wrong in ("one", "nan", "inf", ""):
        with pytest.raises(nun.CannotMerge, match="expected a number"):
            merge.numeric_max(conflict("1", wrong, "2"))


def test_decoded_values_are_taken_as_they_are() -> None:
    assert json.loads(merge.json_merge()(conflict({"a": 1}, {"a": 1, "b": 2}, {"a": 3}))) == {
        "a": 3,
        "b": 2,
    }
    assert json.loads(merge.set_union(conflict([1], [1, 2], [1, 3]))) == [1, 2, 3]
    assert merge.numeric_sum(conflict(1, 2, 3)) == "4"


@pytest.mark.parametrize(
    ("handler", "value", "expected"),
    [
        (merge.json_merge(), "[1]", "a JSON object"),
        (merge.json_merge(), "{", "a JSON object"),
        (merge.set_union, "{}", "a JSON array"),
    ],
)
def test_what_is_not_understood_is_named(handler: merge.Handler, value: str, expected: str) -> None:
    with pytest.raises(nun.CannotMerge, match=f"key 'k': expected {expected}, found"):
        handler(conflict(value, value, value))
