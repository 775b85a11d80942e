"""Ready-made arbiters: their laws, what they refuse, and every snippet of docs/ARBITERS.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nun
from nun import merge
from nun.limits import MERGED_DIGITS_MAX
from nun.merge import REMOVED, CannotMerge

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "ARBITERS.md"
UNKNOWN = object()


@dataclass(frozen=True)
class Side:
    value: Any
    version: int = 1
    op_id: int = 1
    at: int = 1


@dataclass(frozen=True)
class Conflict:
    base: Side | None
    current: Side | None
    proposed: Side | None
    base_known: bool = True
    at: int = 3
    key: Any = "name"
    id: str = "1"
    attempt: int = 1


@dataclass(frozen=True)
class Shown(Conflict):
    """A conflict that says how its values are shown."""

    decode: str | None = "json"


def conflict(base: Any, current: Any, proposed: Any, kind: type[Conflict] = Conflict) -> Conflict:
    """Of values; None: absent."""
    known = base is not UNKNOWN
    sides = [
        None if value is None or value is UNKNOWN else Side(value)
        for value in (base, current, proposed)
    ]
    return kind(*sides, base_known=known)


def canonical(text: Any) -> str:
    """What a JSON text means, such that 1, 1.0 and true differ."""
    return json.dumps(json.loads(text), sort_keys=True)


def as_set(text: Any) -> set[str]:
    return {json.dumps(element, sort_keys=True) for element in json.loads(text)}


# Strategies

names = st.text(max_size=3)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)
arrays = st.lists(values, max_size=5)
words = st.lists(st.sampled_from("abcdef"), max_size=5).map(",".join)
integers = st.integers(-(10**30), 10**30).map(str)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=4).map(str)
numbers = integers | decimals
object_texts = objects.map(json.dumps)
array_texts = arrays.map(json.dumps)

MERGES = [
    pytest.param(merge.json_merge(), object_texts, canonical, id="json_merge"),
    pytest.param(merge.set_union, array_texts, as_set, id="set_union"),
    pytest.param(
        merge.set_union_of(","), words, lambda text: set(text.split(",")) - {""}, id="words"
    ),
    pytest.param(merge.numeric_sum, numbers, Decimal, id="sum"),
]
Meaning = Callable[[Any], Any]


# Laws


@pytest.mark.parametrize(("handler", "texts", "meaning"), MERGES)
@given(data=st.data())
def test_a_merge_of_the_same_is_the_same(
    handler: merge.Handler, texts: Any, meaning: Meaning, data: st.DataObject
) -> None:
    text = data.draw(texts)
    assert meaning(handler(conflict(text, text, text))) == meaning(text)


@pytest.mark.parametrize(("handler", "texts", "meaning"), MERGES)
@given(data=st.data())
def test_what_only_one_side_changed_is_as_that_side_has_it(
    handler: merge.Handler, texts: Any, meaning: Meaning, data: st.DataObject
) -> None:
    base, changed = data.draw(texts), data.draw(texts)
    assert meaning(handler(conflict(base, changed, base))) == meaning(changed)
    assert meaning(handler(conflict(base, base, changed))) == meaning(changed)


@pytest.mark.parametrize(("handler", "texts", "meaning"), MERGES)
@given(data=st.data())
def test_a_removal_wins_against_what_is_unchanged_only(
    handler: merge.Handler, texts: Any, meaning: Meaning, data: st.DataObject
) -> None:
    base, other = data.draw(texts), data.draw(texts)
    expected = REMOVED if meaning(base) == meaning(other) else meaning(other)
    for found in (handler(conflict(base, other, None)), handler(conflict(base, None, other))):
        assert (found if found is REMOVED else meaning(found)) == expected
    assert handler(conflict(base, None, None)) is REMOVED
    assert handler(conflict(UNKNOWN, None, None)) is REMOVED


@pytest.mark.parametrize(("handler", "texts", "meaning"), MERGES)
@given(data=st.data())
def test_bytes_are_merged_as_text_is(
    handler: merge.Handler, texts: Any, meaning: Meaning, data: st.DataObject
) -> None:
    sides = [data.draw(texts) for _ in range(3)]
    found = handler(conflict(*(side.encode() for side in sides)))
    assert isinstance(found, str)
    assert meaning(found) == meaning(handler(conflict(*sides)))


@given(arrays, arrays, st.none() | arrays)
def test_a_union_is_commutative_as_a_set_and_idempotent(one: Any, other: Any, base: Any) -> None:
    texts = [None if value is None else json.dumps(value) for value in (base, one, other)]
    there = merge.set_union(conflict(*texts))
    back = merge.set_union(conflict(texts[0], texts[2], texts[1]))
    assert as_set(there) == as_set(back)
    assert merge.set_union(conflict(texts[0], there, there)) == there
    everything = merge.set_union(conflict(UNKNOWN, texts[1], texts[2]))
    assert merge.set_union(conflict(UNKNOWN, everything, texts[2])) == everything


@given(*[st.lists(st.sampled_from("abcdef"))] * 3)
def test_a_union_is_what_either_added_without_what_either_removed(
    base: list[str], current: list[str], proposed: list[str]
) -> None:
    b, c, p = set(base), set(current), set(proposed)
    expected = (b | c | p) - (b - c) - (b - p)
    found = json.loads(merge.set_union(conflict(*map(json.dumps, (base, current, proposed)))))
    assert set(found) == expected
    assert len(found) == len(expected)
    in_order = [element for element in [*current, *proposed] if element in expected]
    assert found == list(dict.fromkeys(in_order))
    text = merge.set_union_of(",")(conflict(*map(",".join, (base, current, proposed))))
    assert text == ",".join(found)


@given(objects, st.dictionaries(st.sampled_from("xy"), values), st.data())
def test_changes_of_different_fields_are_all_kept(
    base: dict[str, Any], added: dict[str, Any], data: st.DataObject
) -> None:
    """Each field is changed, removed or left alone by one side, chosen at random; one level down as well."""
    ours, theirs, expected = dict(base), dict(base), dict(base)
    for name in base:
        side = data.draw(st.sampled_from([ours, theirs]))
        if data.draw(st.booleans()):
            side[name] = expected[name] = data.draw(values)
        elif data.draw(st.booleans()):
            del side[name], expected[name]
    for name, value in added.items():
        data.draw(st.sampled_from([ours, theirs]))[name] = expected[name] = value
    for prefer in ("current", "proposed", "raise"):
        handler = merge.json_merge(prefer=prefer)
        found = handler(conflict(*map(json.dumps, (base, ours, theirs))))
        assert canonical(found) == canonical(json.dumps(expected))
        within = [json.dumps({"in": side}) for side in (base, ours, theirs)]
        assert canonical(handler(conflict(*within))) == canonical(json.dumps({"in": expected}))


@given(objects, objects, objects)
def test_preferences_mirror_each_other(base: Any, current: Any, proposed: Any) -> None:
    b, c, p = map(json.dumps, (base, current, proposed))
    ours, theirs = merge.json_merge(prefer="current"), merge.json_merge(prefer="proposed")
    assert ours(conflict(b, c, p)) == theirs(conflict(b, p, c))
    decoded = conflict(base, current, proposed)
    assert json.loads(ours(decoded)) == json.loads(ours(conflict(b, c, p)))


@given(numbers, st.integers(), st.integers())
def test_two_increments_are_both_kept(base: str, one: int, other: int) -> None:
    with localcontext(prec=100):
        added = [str(Decimal(base) + one), str(Decimal(base) + other)]
        expected = Decimal(base) + one + other
    assert Decimal(merge.numeric_sum(conflict(base, *added))) == expected


@given(numbers, numbers, st.none() | numbers)
def test_the_maximum_is_one_of_the_two_as_it_was_written(one: str, other: str, base: Any) -> None:
    found = merge.numeric_max(conflict(base, one, other))
    assert found in (one, other)
    assert Decimal(found) == max(Decimal(one), Decimal(other))


# One side as it is


def written(current: tuple[int, int] | None, proposed: tuple[int, int]) -> Conflict:
    """Of (at, op id); an op id of 0: a removal."""
    at, op_id = proposed
    held = None if current is None else Side("current", at=current[0], op_id=current[1])
    wanted = Side("proposed", at=at, op_id=op_id) if op_id else None
    return Conflict(None, held, wanted, at=at)


@pytest.mark.parametrize(
    ("current", "proposed", "newer", "older"),
    [
        ((1, 9), (2, 8), "proposed", "current"),
        ((2, 8), (1, 9), "current", "proposed"),
        ((2, 8), (2, 9), "proposed", "current"),
        ((2, 9), (2, 8), "current", "proposed"),
        (None, (2, 8), "proposed", REMOVED),
        ((1, 9), (2, 0), REMOVED, "current"),
        ((2, 9), (1, 0), "current", REMOVED),
        ((2, 9), (2, 0), "current", "current"),
        (None, (2, 0), REMOVED, REMOVED),
    ],
)
def test_newer_and_older_go_by_time_then_op_id(
    current: Any, proposed: Any, newer: Any, older: Any
) -> None:
    assert merge.newer(written(current, proposed)) == newer
    assert merge.older(written(current, proposed)) == older


def test_keep_gives_back_what_is_there() -> None:
    assert merge.keep(conflict("a", "b", "c")) == "b"
    assert merge.keep(conflict(b"a", b"\xff\x00", b"c")) == b"\xff\x00"
    assert merge.keep(conflict("a", None, "c")) is REMOVED
    assert merge.keep(conflict({}, {"b": [1, "é"], "a": None}, {})) == '{"a":null,"b":[1,"é"]}'


def test_decoded_json_is_written_as_json_again() -> None:
    """A string is as ambiguous as it looks, unless another side or the conflict itself tells."""
    assert merge.keep(conflict(5, "mary", None)) == '"mary"'
    assert merge.keep(conflict("ann", "mary", "jose")) == "mary"
    assert merge.keep(conflict("ann", "mary", "jose", Shown)) == '"mary"'
    assert merge.newer(conflict("ann", "mary", "jose", Shown)) == '"jose"'
    assert merge.set_union_of(",")(conflict("", "a", "b", Shown)) == '"a,b"'
    assert merge.set_union(conflict([1], [1, 2], [1, "é"])) == '[1,2,"é"]'
    assert merge.numeric_sum(conflict(10, 12, 0.5)) == "2.5"
    assert merge.numeric_max(conflict(None, 12, 12.5)) == "12.5"


def test_a_json_null_is_a_value() -> None:
    assert merge.keep(Conflict(None, Side(None), Side(5))) == "null"


# Documents


def test_fields_that_both_changed_go_by_preference() -> None:
    both = conflict('{"a": {"b": 1}}', '{"a": {"b": 2}}', '{"a": {"b": [3]}}')
    assert merge.json_merge()(both) == '{"a":{"b":2}}'
    assert merge.json_merge(prefer="current")(both) == '{"a":{"b":2}}'
    assert merge.json_merge(prefer="proposed")(both) == '{"a":{"b":[3]}}'
    with pytest.raises(CannotMerge) as caught:
        merge.json_merge(prefer="raise")(both)
    assert caught.value.key == "name"
    assert caught.value.found == "/a/b: 2 as the current and [3] as the proposed value"


def test_the_place_of_a_field_is_a_json_pointer() -> None:
    with pytest.raises(CannotMerge, match=re.escape("/a~1b/~0: 1 as")):
        merge.json_merge(prefer="raise")(conflict(None, '{"a/b": {"~": 1}}', '{"a/b": {"~": 2}}'))


@pytest.mark.parametrize("prefer", ["current", "proposed", "raise"])
@pytest.mark.parametrize(
    ("base", "current", "proposed", "expected"),
    [
        ('{"a": 1}', "{}", '{"a": 1}', "{}"),
        ('{"a": 1}', '{"a": 1}', "{}", "{}"),
        ('{"a": 1}', "{}", '{"a": 2}', '{"a":2}'),
        ('{"a": 1}', '{"a": 2}', "{}", '{"a":2}'),
        ('{"a": {"b": 1}}', "{}", '{"a": {"b": 1}}', "{}"),
        ('{"a": {"b": 1}}', "{}", '{"a": {"b": 1, "c": 1}}', '{"a":{"b":1,"c":1}}'),
        ('{"a": 1}', '{"a": {"b": 1}}', '{"a": {"c": 1}}', '{"a":{"b":1,"c":1}}'),
        ('{"a": 1}', '{"a": true}', '{"a": 1}', '{"a":true}'),
        ('{"a": 1}', '{"a": 1}', '{"a": 1.0}', '{"a":1.0}'),
        (None, '{"a": 1}', '{"b": 1}', '{"a":1,"b":1}'),
        (UNKNOWN, '{"a": 1, "c": 1}', '{"b": 1, "c": 1}', '{"a":1,"b":1,"c":1}'),
    ],
)  # fmt: skip
def test_fields_that_are_not_in_dispute(
    base: Any, current: str, proposed: str, expected: str, prefer: Any
) -> None:
    assert merge.json_merge(prefer=prefer)(conflict(base, current, proposed)) == expected


def test_without_a_base_a_field_that_differs_goes_by_preference() -> None:
    unknown = conflict(UNKNOWN, '{"a": 1, "b": 1}', '{"a": 2}')
    assert merge.json_merge()(unknown) == '{"a":1,"b":1}'
    assert merge.json_merge(prefer="proposed")(unknown) == '{"a":2,"b":1}'
    with pytest.raises(CannotMerge):
        merge.json_merge(prefer="raise")(unknown)


@pytest.mark.parametrize("handler", [merge.json_merge(), merge.set_union])
def test_without_a_base_a_removal_loses(handler: merge.Handler) -> None:
    text = "{}" if handler is not merge.set_union else "[]"
    assert handler(conflict(UNKNOWN, text, None)) == text
    assert handler(conflict(UNKNOWN, None, text)) == text
    assert handler(conflict(None, None, text)) == text


@pytest.mark.parametrize(
    "number",
    ["1.10", "12345678901234567.89", "1E+400", "1e16", "-0", "-0.0", "9" * 5_000, "1e" + "9" * 30],
    ids=lambda number: number[:20],
)
def test_numbers_within_json_are_written_as_they_came(number: str) -> None:
    document, array = f'{{"a":{number}}}', f"[{number}]"
    assert merge.json_merge()(conflict("{}", document, '{"z":1}')) == document[:-1] + ',"z":1}'
    assert merge.set_union(conflict("[]", array, "[]")) == array


def test_text_within_json_survives() -> None:
    text = '{"half":"\\ud83d","whole":"😀","zero":"\\u0000"}'
    found = merge.json_merge()(conflict("{}", text, "{}"))
    assert found == text
    assert found.encode()


def test_elements_are_the_same_if_they_are_written_the_same() -> None:
    found = merge.set_union(
        conflict("[]", '[1, true, {"b": 1, "a": 2}]', '[1.0, {"a":2,"b":1}, 1]')
    )
    assert found == '[1,true,{"a":2,"b":1},1.0]'


# What cannot be merged

DEEP = 100_000
JSON_MERGE, RAISES = merge.json_merge(), merge.json_merge(prefer="raise")


@pytest.mark.parametrize(
    ("handler", "sides", "message"),
    [
        (JSON_MERGE, ("{}", "mary", "{}"), "found 'mary' as the current value; expected a JSON object"),
        (JSON_MERGE, ("{}", "{}", "[1]"), "found '[1]' as the proposed value; expected a JSON object"),
        (JSON_MERGE, ("5", "{}", "{}"), "found '5' as the base value; expected a JSON object"),
        (JSON_MERGE, ("{}", b"\xff", b"{}"), r"found b'\xff' as the current value; expected UTF-8 text"),
        (JSON_MERGE, ("{}", '{"a": NaN}', "{}"), "as the current value; expected a JSON object"),
        (JSON_MERGE, ({}, {"a": float("nan")}, {}), "a number that is no JSON"),
        (JSON_MERGE, ("{}", '{"a":' * DEEP + "1" + "}" * DEEP, "{}"), "nests too deep"),
        (JSON_MERGE, ({}, "{}", {}), "found '{}' as the current value; expected a JSON object"),
        (merge.set_union, ("[]", "{}", "[]"), "found '{}' as the current value; expected a JSON array"),
        (merge.set_union, ("[]", "[]", "a,b"), "found 'a,b' as the proposed value; expected a JSON array"),
        (merge.set_union, ("[]", "[" * DEEP + "]" * DEEP, "[]"), "nests too deep"),
        (merge.set_union_of(","), ("a", b"\xff", "b"), "expected UTF-8 text"),
        (merge.set_union_of(","), ("a", ["a"], "b"), "found ['a'] as the current value; expected text"),
        (merge.numeric_sum, ("5", "five", "6"), "found 'five' as the current value; expected a number"),
        (merge.numeric_sum, ("5", "1_0", "6"), "found '1_0'"),
        (merge.numeric_sum, ("5", "٣", "6"), "found '٣'"),
        (merge.numeric_sum, ("5", "nan", "6"), "found 'nan'"),
        (merge.numeric_sum, (5, True, 6), "found True"),
        (merge.numeric_sum, (5, float("inf"), 6), "found inf"),
        (merge.numeric_sum, (5, "6", 7), "found '6'"),
        (merge.numeric_sum, ("5", "9" * (MERGED_DIGITS_MAX + 1), "6"), "at most 1000 digits"),
        (merge.numeric_sum, ("5", "1e999999", "6"), "a sum that 1000 digits can hold exactly"),
        (merge.numeric_sum, ("5", "1e99999999999999999999", "6"), "expected a number"),
        (merge.numeric_sum, (UNKNOWN, "5", "6"), "a base that is no longer known"),
        (merge.numeric_sum, (UNKNOWN, "5", "5"), "a base that is no longer known"),
        (merge.numeric_sum, (UNKNOWN, "5", None), "a base that is no longer known"),
        (merge.numeric_max, ("5", "6", ""), "found '' as the proposed value"),
        (merge.keep, (5, float("inf"), 6), "a number that is no JSON"),
        (RAISES, ("{}", '{"a": 1}', '{"a": 2}'), "expected that at most one side changes a field"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_says_so(handler: merge.Handler, sides: Any, message: str) -> None:
    with pytest.raises(CannotMerge, match=re.escape(message)) as caught:
        handler(conflict(*sides))
    error = caught.value
    assert isinstance(error, nun.NunError)
    assert error.key == "name"
    assert error.found in str(error)
    assert error.expected in str(error)
    assert "'name'" in str(error)
    assert len(str(error)) < 300


def test_sums() -> None:
    assert merge.numeric_sum(conflict(None, "5", "6")) == "11"
    assert merge.numeric_sum(conflict("0.1", "0.3", "0.2")) == "0.4"
    assert merge.numeric_sum(conflict("1", "+2", "-3")) == "-2"
    assert merge.numeric_sum(conflict("0", "1e3", "1")) == "1001"
    huge = 10 ** (MERGED_DIGITS_MAX - 1)
    assert merge.numeric_sum(conflict("0", str(huge), "1")) == str(huge + 1)
    assert merge.numeric_max(conflict(None, "1e999999999", "5")) == "1e999999999"
    assert merge.numeric_max(conflict(None, "1.0", "1")) == "1.0"


def test_makers_of_handlers_say_what_they_want() -> None:
    with pytest.raises(ValueError, match=r"prefer is 'current', 'proposed' or 'raise', not 'mine'"):
        merge.json_merge(prefer="mine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"json_merge\(\) makes a handler"):
        merge.json_merge(conflict("{}", "{}", "{}"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"set_union_of\(','\) makes a handler"):
        merge.set_union_of(conflict("", "", ""))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="separator is empty"):
        merge.set_union_of("")


# The guide


def test_the_mark_for_removal() -> None:
    assert nun.REMOVED is merge.REMOVED
    assert repr(nun.REMOVED) == "nun.REMOVED"


def snippets() -> list[tuple[int, str]]:
    """The Python in the guide, each with the line that it begins at."""
    text = GUIDE.read_text()
    return [
        (text.count("\n", 0, found.start(1)), found[1])
        for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def test_every_snippet_of_the_guide_runs() -> None:
    """In the order of the page, in one namespace, as a reader would type them."""
    found = snippets()
    text = GUIDE.read_text()
    assert len(found) + text.count("```console\n") == text.count("```") // 2
    namespace: dict[str, Any] = {}
    for line, code in found:
        exec(compile("\n" * line + code, str(GUIDE), "exec"), namespace)
    assert sum(code.count("assert ") for _, code in found) > 10


def test_the_guide_names_every_handler() -> None:
    handlers = [name for name in merge.__all__ if callable(getattr(merge, name)) and name.islower()]
    assert len(handlers) == 8
    assert [name for name in handlers if f"`merge.{name}" not in GUIDE.read_text()] == []
