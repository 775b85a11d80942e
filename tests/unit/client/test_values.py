"""What goes in is checked here as far as that is free; what comes out is as `decode` says."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from nun.client import operations as ops
from nun.client.batch import Operations
from nun.client.request import Grant
from nun.client.results import (
    BatchResults,
    ColumnResults,
    Entries,
    Entry,
    Result,
    SetResults,
    error_of,
    plain_text,
)
from nun.client.settings import Settings
from nun.client.values import TEXT, UNSET, condition_of, decoding_named
from nun.codec import unpack
from nun.core import record
from nun.core.clock import TICK
from nun.errors import (
    BadRequest,
    BatchError,
    ConfigError,
    NotANumber,
    RequestError,
    TooLarge,
    VersionConflict,
    WireError,
)
from nun.limits import BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX
from nun.messages import (
    BATCH,
    GET,
    GET_MANY,
    IF_VERSION,
    INCREMENT,
    ON_BASE,
    ON_VERSION,
    PLAIN,
    REMOVE,
    SET,
    SET_MANY,
)

GRANT = Grant("shop", None, "t")
ENTRY = Entry("name", record.live(7, 4096, b"mary"), TEXT)
GONE = record.tombstone(8, 1)


# Conditions


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((UNSET, None, None, "strategy"), None),
        ((UNSET, None, None, "refuse"), (PLAIN, 0, True)),
        ((None, None, None, "strategy"), (ON_BASE, 0, False)),
        ((ENTRY, None, None, "strategy"), (ON_BASE, 4096, False)),
        ((Result(1, 77, None), None, None, "refuse"), (ON_BASE, 77, True)),
        ((5, None, None, "strategy"), (ON_BASE, 5, False)),
        ((UNSET, 3, None, "strategy"), (ON_VERSION, 3, False)),
        ((UNSET, -1, None, "strategy"), (ON_VERSION, -1, False)),
        ((UNSET, None, 3, "strategy"), (IF_VERSION, 3, True)),
    ],
)
def test_conditions(arguments: Any, expected: Any) -> None:
    assert condition_of(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None, 1, None, "strategy"), TypeError),
        ((UNSET, 1, 1, "strategy"), TypeError),
        (("entry", None, None, "strategy"), TypeError),
        ((True, None, None, "strategy"), TypeError),
        ((-1, None, None, "strategy"), BadRequest),
        ((UNSET, "1", None, "strategy"), TypeError),
        ((UNSET, -2, None, "strategy"), BadRequest),
        ((UNSET, None, -1, "strategy"), BadRequest),
        ((UNSET, None, None, "maybe"), BadRequest),
    ],
)
def test_conditions_that_are_refused(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        condition_of(*arguments)


# Arguments


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ops.get(GRANT, 5, TEXT), "a key is str or bytes, not int: 5"),  # type: ignore[arg-type]
        (lambda: ops.set(GRANT, "a", 5, None, TEXT), "the value of key 'a' is str or bytes"),  # type: ignore[arg-type]
        (lambda: ops.increment(GRANT, "a", "5", TEXT), "the increment of key 'a' is int"),  # type: ignore[arg-type]
        (lambda: ops.increment(GRANT, "a", True, TEXT), "the increment of key 'a' is int"),
        (lambda: ops.set_many(GRANT, {"a": "1", "b": 2}, TEXT), "the value of key 'b'"),
        (lambda: ops.set_many(GRANT, [("a", "1"), (None, "2")], TEXT), "not NoneType: None"),
        (lambda: ops.get_many(GRANT, ["a", 2], TEXT), "not int: 2"),  # type: ignore[list-item]
        (lambda: ops.keys(GRANT, 5, None, None, TEXT), "a pattern is str"),  # type: ignore[arg-type]
        (lambda: ops.keys(GRANT, "", "5", None, TEXT), "limit is int"),  # type: ignore[arg-type]
        (lambda: ops.snapshot("shop", False), "a list of names"),
        (lambda: ops.create_database(1, "t", {}), "the name of a database"),  # type: ignore[arg-type]
        (lambda: ops.alter_database("shop", 1, {}), "a token"),  # type: ignore[arg-type]
        (lambda: ops.set_permissions("shop", "u", 1), "a permission list"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_are_named(make: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        make()


def test_bounds_that_cost_nothing_are_checked_here() -> None:
    for make in (
        lambda: ops.get(GRANT, "k" * (KEY_BYTES_MAX + 1), TEXT),
        lambda: ops.set(GRANT, "k", bytes(VALUE_BYTES_MAX + 1), None, TEXT),
        lambda: ops.get_many(GRANT, ["k"] * (BATCH_OPERATIONS_MAX + 1), TEXT),
        lambda: ops.set_many(GRANT, {f"k{i}": bytes(2**24) for i in range(5)}, TEXT),
    ):
        with pytest.raises(TooLarge) as caught:
            make()
        assert caught.value.fields["found"] > caught.value.fields["bound"]
    with pytest.raises(BadRequest, match="64 bits"):
        ops.increment(GRANT, "k", 2**63, TEXT)
    with pytest.raises(BadRequest, match="at least 1"):
        ops.keys(GRANT, "", 0, None, TEXT)


def test_text_and_bytes_may_be_mixed() -> None:
    request = ops.set_many(GRANT, [("a", b"1"), (b"b", "2")], TEXT)
    assert unpack(request.args[0]) == [[b"a", b"b"], [b"1", b"2"]]


def test_settings_list_all_that_is_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.checked([], "nun", None, "x" * 65, 0, "short", "utf-8")
    names = ("address", "user and password", "client_id", "timeout", "server_key")
    assert [problem.split(":")[0] for problem in caught.value.problems] == list(names)
    with pytest.raises(ValueError, match="decode is"):
        Settings.checked("tcp://a", None, None, None, 1, None, "latin-1")
    with pytest.raises(TypeError, match="the name of a user"):
        Settings.grant("shop", 5, "t")  # type: ignore[arg-type]
    assert "secret" not in repr(Settings.checked("tcp://a", "nun", "secret", None, 1, None, None))


# Entries and results


def test_an_entry_shows_what_the_key_held() -> None:
    assert (ENTRY.key, ENTRY.value, ENTRY.version, ENTRY.op_id) == ("name", "mary", 7, 4096)
    assert not ENTRY.in_conflict
    assert Entry(b"name", record.live(7, 4096, b"mary"), decoding_named(None)) == ENTRY
    assert hash(ENTRY) == hash(Entry(b"name", record.live(7, 4096, b"mary"), TEXT))
    assert Entry("name", record.live(8, 4096, b"mary"), TEXT) != ENTRY
    assert ENTRY != "mary"
    assert "mary" in repr(ENTRY)


def test_decodings() -> None:
    packed = record.live(1, 1, b'{"a": 1}')
    assert Entry("k", packed, decoding_named("json")).value == {"a": 1}
    plain = Entry("k", packed, decoding_named(None))
    assert (plain.key, plain.value) == (b"k", b'{"a": 1}')
    with pytest.raises(ValueError, match="not JSON"):
        _ = Entry("k", record.live(1, 1, b"{"), decoding_named("json")).value
    with pytest.raises(ValueError, match="not UTF-8"):
        _ = Entry("k", record.live(1, 1, b"\xff"), TEXT).value
    assert Entry(b"\xffk", packed, TEXT).key == "\udcffk"


def test_a_result_is_there_already() -> None:
    result = Result(3, 77, [1, 1, 1, 9], 5)
    assert result.wait("primary", timeout=1) is result
    assert (str(result.position), result.status, result.value) == ("1.1.1:9", "committed", 5)
    assert result == Result(3, 77, (1, 1, 1, 9), 5)
    assert result != Result(3, 78, (1, 1, 1, 9), 5)
    assert result != 3
    assert hash(result) == hash(Result(3, 77, None))
    assert Result(3, 77, None).position is None
    assert "version=3" in repr(result)


async def _awaited(result: Result) -> Result:
    return await result


def test_a_result_can_be_awaited() -> None:
    result = Result(3, 77, None)
    waiting = _awaited(result)
    with pytest.raises(StopIteration) as caught:
        waiting.send(None)
    assert caught.value.value is result


def values(records: list[bytes | None], decode: str | None = "utf-8") -> list[Any]:
    return Entries([b"k"] * len(records), records, decoding_named(decode)).values()


def test_all_values_at_once() -> None:
    live = [record.live(1, 1, text.encode()) for text in ("a", "", "\u00fc", "d")]
    assert values([*live]) == ["a", "", "\u00fc", "d"]
    assert values([*live, None]) == ["a", "", "\u00fc", "d", None]
    assert values([*live, GONE]) == ["a", "", "\u00fc", "d", None]
    assert values([*live, record.live(1, 1, b"x\0y")]) == ["a", "", "\u00fc", "d", "x\0y"]
    assert values([]) == []
    assert values([GONE]) == [None]
    assert values([GONE, GONE]) == [None, None]
    assert values([live[0], None], None) == [b"a", None]
    assert values([record.live(1, 1, b"[2]")], "json") == [[2]]
    with pytest.raises(ValueError, match="not UTF-8"):
        values([*live, record.live(1, 1, b"\xff")])


def test_characters_that_only_a_join_would_make_are_not_taken_for_text() -> None:
    halves = [record.live(1, 1, b"\xc3"), record.live(1, 1, b"\xbc")]
    with pytest.raises(ValueError, match="not UTF-8"):
        values([*halves])


def test_batches_are_sequences_made_when_looked_at() -> None:
    entries = Entries(["a", "b", "c"], [record.live(1, 5, b"x"), None, GONE], TEXT)
    assert len(entries) == 3
    assert list(entries) == [Entry("a", record.live(1, 5, b"x"), TEXT), None, None]
    assert entries == [entries[0], None, None]
    assert entries != [None, None, None]
    assert entries != "abc"
    assert entries[-1] is None
    assert entries[0:2] == [entries[0], None]
    with pytest.raises(IndexError):
        _ = entries[3]
    assert repr(Entries(["a"] * 4, [None] * 4, TEXT)) == "[None, None, None, ...]"


def test_results_of_sets_are_counted_from_what_they_replaced() -> None:
    heads = record.pack_head(0, 0) + record.pack_head(4, 9) + GONE[:12]
    results = SetResults(heads, 1000, [1, 1, 1, 5])
    assert [result.version for result in results] == [1, 5, 9]
    assert [result.op_id for result in results] == [1000, 1000 + TICK, 1000 + 2 * TICK]
    assert str(results.position) == "1.1.1:5"


def test_results_of_a_batch_of_each_kind() -> None:
    kinds = bytes([SET, GET, GET, INCREMENT, REMOVE, SET])
    error = [NotANumber.code, b"no number", {b"key": b"k"}]
    answers = [4, record.live(1, 5, b"x"), None, [2, 10], 6, error]
    results = BatchResults(kinds, ["k"] * 6, answers, 1000, [1, 1, 1, 5], TEXT)
    assert results.failures() == 1
    assert results[0] == Result(4, 1000, (1, 1, 1, 5))
    assert results[1].value == "x"
    assert results[2] is None
    assert (results[3].value, results[3].version) == (10, 2)
    assert results[4].op_id == 1000 + 4 * TICK
    assert isinstance(results[5], NotANumber)
    assert BatchResults(kinds, ["k"], [1], 0, None, TEXT).failures() == 0
    # What an atomic batch did not do has no answer.
    assert BatchResults(bytes([SET]), ["k"], [None], 0, None, TEXT)[0] is None


KINDS = bytes([INCREMENT, GET, SET, INCREMENT, GET, INCREMENT])
TOLD = {
    SET: record.pack_head(4, 9),
    INCREMENT: [record.pack_head(1, 7) + record.pack_head(5, 8), record.pack_integers([7, -1, 9])],
    GET: [record.live(1, 5, b"x"), None],
}


def column_results(told: dict[int, Any], keys: list[Any]) -> ColumnResults:
    return ColumnResults(KINDS, keys, told, 1000, [1, 1, 1, 5], TEXT)


@pytest.mark.parametrize("again", ["n", b"n"])
def test_results_of_a_batch_that_was_decided_kind_by_kind(again: str | bytes) -> None:
    results = column_results(TOLD, ["n", "a", "s", "m", "b", again])
    position = (1, 1, 1, 5)
    expected = [
        Result(2, 1000 + TICK, position, 7),
        Entry("a", record.live(1, 5, b"x"), TEXT),
        Result(5, 1000, position),
        Result(6, 1000 + 2 * TICK, position, -1),
        None,
        Result(3, 1000 + 3 * TICK, position, 9),
    ]
    assert list(results) == expected
    assert [results[index] for index in range(6)] == expected
    assert results[-1] == expected[-1]
    assert results[1:3] == expected[1:3]
    assert str(results.position) == "1.1.1:5"


@pytest.mark.parametrize(
    "told",
    [
        {**TOLD, SET: b""},
        {**TOLD, SET: bytes(24)},
        {**TOLD, GET: [None]},
        {**TOLD, GET: None},
        {**TOLD, INCREMENT: [bytes(24), record.pack_integers([7, 8])]},
        {**TOLD, INCREMENT: [bytes(24), b"odd"]},
        {**TOLD, INCREMENT: [bytes(36), record.pack_integers([7, 8, 9])]},
        {**TOLD, INCREMENT: None},
        {SET: TOLD[SET]},
    ],
)
def test_columns_that_do_not_fit_the_batch_are_no_answer(told: dict[int, Any]) -> None:
    with pytest.raises(WireError, match="answer to a batch"):
        column_results(told, ["n", "a", "s", "m", "b", "n"])


def test_a_result_can_be_copied_and_pickled() -> None:
    result = Result(3, 77, (1, 1, 1, 9), 5)
    assert pickle.loads(pickle.dumps(result)) == result
    assert copy.copy(result) == result


def test_errors_carry_python_values() -> None:
    fields = {b"key": b"k", b"current": record.live(1, 2, b"x"), b"bound": 5, b"limit": b"KEY"}
    error = error_of(VersionConflict.code, b"no", fields, TEXT)
    assert isinstance(error, VersionConflict)
    assert error.current == Entry("k", record.live(1, 2, b"x"), TEXT)
    assert (error.key, error.fields["bound"], error.fields["limit"]) == ("k", 5, "KEY")
    assert error_of(6, b"no", {b"current": GONE}, TEXT).fields["current"] is None
    assert type(error_of(999, b"?", {}, TEXT)) is RequestError


def test_replies_for_people_are_text() -> None:
    assert plain_text({b"a": [b"b", 1, None], b"id": b"\xff\x00"}) == {
        "a": ["b", 1, None],
        "id": "ff00",
    }


# Pipelines


def collected(atomic: bool = False) -> Operations:
    return Operations(GRANT, TEXT, atomic)


def test_a_pipeline_goes_out_as_the_smallest_request_that_says_it() -> None:
    pipe = collected()
    assert pipe._take() is None
    pipe.set("a", "1")
    pipe.set("b", "2")
    assert len(pipe) == 2
    request = pipe._take()
    assert request is not None
    assert request.kind == SET_MANY
    assert len(pipe) == 0
    pipe.get("a")
    assert (pipe._take() or request).kind == GET_MANY


def test_a_mixed_pipeline_is_columns() -> None:
    pipe = collected(atomic=True)
    pipe.set("a", "1", if_version=3)
    pipe.get("b")
    pipe.remove("c", base=None)
    pipe.increment("d", 4)
    pipe.set("e", "5", on_conflict="strategy")
    request = pipe._take()
    assert request is not None
    assert request.kind == BATCH
    atomic, kinds, payload, conditions = request.args
    assert (atomic, kinds) == (True, bytes([SET, GET, REMOVE, INCREMENT, SET]))
    assert unpack(payload) == [[b"a", b"b", b"c", b"d", b"e"], [b"1", None, None, 4, b"5"]]
    assert conditions == {0: (IF_VERSION, 3, True), 2: (ON_BASE, 0, False)}


def test_a_pipeline_names_the_key_of_what_is_wrong() -> None:
    for add in (lambda pipe: pipe.increment("k", "1"), lambda pipe: pipe.set("k", 1)):
        pipe = collected(atomic=True)
        add(pipe)
        with pytest.raises(TypeError, match="'k'"):
            pipe._take()


def test_failures_in_a_pipeline_are_one_error_with_all_results() -> None:
    pipe = collected()
    pipe.set("a", "1")
    pipe.increment("a")
    request = pipe._take()
    assert request is not None
    request.result, request.op_id = [1, [NotANumber.code, b"no number", {}]], 1000
    request.done = True
    with pytest.raises(BatchError, match="1 of 2 operations failed") as caught:
        request.answer()
    assert isinstance(caught.value.results[1], NotANumber)
    assert caught.value.results[0].version == 1


def test_sets_that_the_node_answered_one_by_one() -> None:
    request = ops.set_many(GRANT, [("a", "1"), ("a", "2")], TEXT)
    request.result, request.op_id, request.position = [1, 2], 1000, [1, 1, 1, 4]
    request.done = True
    assert [result.version for result in request.answer()] == [1, 2]
