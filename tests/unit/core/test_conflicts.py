"""Conflicts at the primary: what opens one, what joins its queue, what closes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nun import messages as m
from nun.codec import pack
from nun.core import record
from nun.core.clock import TICK
from nun.core.settings import ConflictSettings
from nun.errors import (
    ClaimLost,
    ConflictPending,
    Overloaded,
    VersionConflict,
)
from tests.support.conflicts import (
    BASE,
    claimed,
    conflict_on,
    entries,
    made,
    notices,
    put,
    resolve,
    states,
    value_of,
)
from tests.support.core_driver import SETTINGS, with_database

# Opening


def test_the_losing_writer_is_told_at_once_and_the_old_value_stays_readable() -> None:
    driver = made()
    two, base, op_id = conflict_on(driver)
    packed = two.request(m.GET, 1, "k").value()
    assert record.is_in_conflict(packed)
    assert record.value_of(packed) == b"first"
    [entry] = entries(driver)
    assert (entry["state"], entry["value"], entry["base"]) == ("open", "second", base)
    assert entry["current"]["value"] == "first"
    assert entry["base_value"]["value"] == "old"
    assert entry["op_id"] == op_id
    assert notices(two) == [], "it is told when the conflict is closed"


def test_a_retry_gets_the_same_answer_and_opens_nothing() -> None:
    driver = made()
    one, two = driver.client(), driver.client()
    base = put(one, "k", "old").op_id
    put(one, "k", "first", base)
    number = two.next_number()
    first = two.write(m.SET, 1, "k", "second", [BASE, base, False], number=number)
    driver.crash()
    two.greet()
    two.number = max(two.number, number)
    again = two.write(m.SET, 1, "k", "second", [BASE, base, False], number=number)
    assert (again.status, again.op_id) == (first.status, first.op_id)
    assert again.result[1][b"conflict"] == first.result[1][b"conflict"]
    assert len(entries(driver)) == 1


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ([m.ON_VERSION, 0, False], ConflictPending.code),
        ([m.IF_VERSION, 0, False], VersionConflict.code),
        ([BASE, 99, True], VersionConflict.code),
        ([BASE, 0, False], ConflictPending.code),
    ],
)
def test_which_writes_go_to_the_strategy(condition: list[Any], code: int) -> None:
    driver = made()
    client = driver.client()
    put(client, "k", "1")
    put(client, "k", "2")
    reply = client.write(m.SET, 1, "k", "3", condition)
    assert reply.status == code
    assert record.value_of(reply.result[1][b"current"]) == b"2"


def test_a_version_is_taken_for_the_record_that_had_it() -> None:
    driver = made()
    client = driver.client()
    base = put(client, "k", "1").op_id
    put(client, "k", "2")
    client.write(m.SET, 1, "k", "3", [m.ON_VERSION, 0, False])
    client.write(m.SET, 1, "k", "4", [m.ON_VERSION, 1, False])
    first, second = entries(driver)
    assert not first["base_known"], "nobody knows the record that had version 0"
    assert (second["base"], second["base_value"]["value"]) == (base, "1")


def test_a_refusal_without_an_entry_names_none() -> None:
    driver = made(strategy="none")
    client = driver.client()
    put(client, "k", "1")
    refused = put(client, "k", "2", 99)
    assert refused.status == VersionConflict.code
    assert b"conflict" not in refused.result[1]


def test_keys_that_begin_with_a_dollar_never_open_conflicts() -> None:
    driver = made()
    client = driver.client()
    put(client, "$k", "1")
    assert put(client, "$k", "2", 99).status == VersionConflict.code
    assert entries(driver) == []


def test_prefixes_have_strategies_of_their_own() -> None:
    driver = made(strategy="none", prefixes={"cart:": "arbiter", "cart:x": "newer"})
    client = driver.client()
    for key, code in (
        ("a", VersionConflict.code),
        ("cart:a", ConflictPending.code),
        ("cart:xy", 0),
    ):
        put(client, key, "1")
        assert put(client, key, "2", 99).status == code


def test_a_conflict_on_an_absent_and_on_a_removed_key() -> None:
    driver = made()
    client = driver.client()
    assert put(client, "never", "1", 99).status == ConflictPending.code
    put(client, "gone", "1")
    client.write(m.REMOVE, 1, "gone", None)
    assert put(client, "gone", "2", 99).status == ConflictPending.code
    assert client.request(m.GET, 1, "gone").value() is None
    assert client.request(m.GET_MANY, 1, ["never", "gone"]).value() == [None, None]
    for key, version in ((b"never", 1), (b"gone", 3)):
        offer = claimed(client)
        assert offer[1:3] == [key, None]
        assert resolve(client, offer, "both").value() == [version, 0]
        assert value_of(driver, key) == b"both"


# Queues


def test_writes_to_a_key_in_conflict_join_its_queue_in_order() -> None:
    driver = made()
    two, base, _ = conflict_on(driver)
    assert put(two, "k", "plain").status == ConflictPending.code
    assert two.write(m.REMOVE, 1, "k", None).status == ConflictPending.code
    assert two.write(m.INCREMENT, 1, "k", 5).status == ConflictPending.code
    found = entries(driver)
    assert [entry["value"] for entry in found] == ["second", "plain", None, 5]
    assert [entry["previous"] for entry in found] == [0, *(entry["op_id"] for entry in found[:-1])]
    assert sum("base_value" in entry for entry in found if entry["base"] == base) == 1


def test_the_queue_of_a_batch() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    kinds = bytes([m.SET, m.SET, m.GET, m.INCREMENT, m.SET])
    keys, arguments = ["a", "k", "k", "k", "k"], ["1", "2", None, 1, "3"]
    reply = two.write(m.BATCH, 1, False, kinds, pack([keys, arguments]), None)
    answers = reply.value()
    assert answers[0] == 1
    assert record.value_of(answers[2]) == b"first"
    for index in (1, 3, 4):
        assert answers[index][0] == ConflictPending.code
        assert answers[index][2][b"conflict"] == reply.op_id + index * TICK
    assert [entry["value"] for entry in entries(driver)] == ["second", "2", 1, "3"]


def test_an_atomic_batch_opens_no_conflict() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    reply = two.write(m.BATCH, 1, True, bytes([m.SET, m.SET]), pack([["a", "k"], ["1", "2"]]), None)
    assert reply.status == 14
    assert value_of(driver, b"a") is None
    assert len(entries(driver)) == 1


def test_one_batch_may_set_a_key_and_then_lose_on_it() -> None:
    driver = made()
    client = driver.client()
    put(client, "k", "1")
    kinds = bytes([m.SET, m.SET, m.SET])
    reply = client.write(
        m.BATCH, 1, False, kinds, pack([["k", "k", "x"], ["2", "3", "4"]]), {1: [BASE, 99, False]}
    )
    assert [answer if isinstance(answer, int) else answer[0] for answer in reply.value()] == [
        2,
        18,
        1,
    ]
    driver.crash()
    assert value_of(driver, b"k") == b"2"
    assert record.is_in_conflict(driver.core.tables[1].records[b"k"])


def test_queues_are_bounded() -> None:
    bounds = ConflictSettings(per_key_warn=2, per_key_max=3, conflicts_max=4)
    driver = with_database(replace(SETTINGS, conflicts=bounds), strategy="arbiter")
    two, _, _ = conflict_on(driver)
    assert put(two, "k", "3").status == ConflictPending.code
    assert put(two, "k", "4").status == ConflictPending.code
    refused = put(two, "k", "5")
    assert refused.status == Overloaded.code
    assert b"per_key_max = 3" in refused.result[0]
    put(two, "other", "1")
    assert put(two, "other", "2", 99).status == ConflictPending.code
    put(two, "third", "1")
    assert put(two, "third", "2", 99).status == Overloaded.code
    assert not record.is_in_conflict(driver.core.tables[1].records[b"third"])
    assert len(entries(driver)) == 4
    offer = claimed(two)
    resolve(two, offer, "done").value()
    assert put(two, "k", "5").status == 0, "there is room again"


def test_a_long_queue_is_shown_and_closed_in_parts() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    values = [str(number) for number in range(600)]
    kinds = bytes([m.SET]) * len(values)
    two.write(m.BATCH, 1, False, kinds, pack([["k"] * len(values), values]), None).value()
    offer = claimed(two)
    assert (len(offer[5]), offer[6]) == (256, 345)
    assert resolve(two, offer, "part 1").value() == [2, 345]
    packed = driver.core.tables[1].records[b"k"]
    assert record.is_in_conflict(packed)
    assert record.value_of(packed) == b"part 1"
    resolve(two, claimed(two), "part 2").value()
    assert resolve(two, claimed(two), "part 3").value() == [3, 0]
    assert value_of(driver, b"k") == b"part 3"


# Resolving


def test_a_resolution_closes_what_it_names_in_one_entry_and_each_writer_is_told_once() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    three = driver.client()
    put(three, "k", "third")
    before = driver.core.stream.last_seq
    offer = claimed(driver.client())
    assert [entry[2] for entry in offer[5]] == [b"second", b"third"]
    assert record.value_of(offer[2]) == b"first"
    assert record.value_of(offer[5][0][4]) == b"old"
    assert resolve(driver.client(), offer, "first+second+third").value() == [3, 0]
    assert driver.core.stream.last_seq == before + 1
    assert states(driver) == [("second", "resolved"), ("third", "resolved")]
    assert value_of(driver, b"k") == b"first+second+third"
    assert notices(two) == [("resolved", b"second")]
    assert notices(three) == [("resolved", b"third")]
    assert put(two, "k", "free again").value() == 4


def test_increments_in_the_queue_are_added_when_what_is_before_them_closes() -> None:
    driver = made()
    client = driver.client()
    base = put(client, "n", "1").op_id
    put(client, "n", "10", base)
    put(client, "n", "20", base)
    client.write(m.INCREMENT, 1, "n", 5)
    client.write(m.INCREMENT, 1, "n", 7)
    put(client, "n", "100")
    client.write(m.INCREMENT, 1, "n", 1)
    offer = claimed(client)
    assert [entry[2] for entry in offer[5]] == [b"20"]
    assert resolve(client, offer, "30").value() == [2, 2]
    assert value_of(driver, b"n") == b"42"
    offer = claimed(client)
    assert [entry[2] for entry in offer[5]] == [b"100"]
    assert resolve(client, offer, "200").value() == [3, 0]
    assert value_of(driver, b"n") == b"201"
    assert {state for _, state in states(driver)} == {"resolved"}


def test_an_increment_that_cannot_be_added_is_refused_and_told() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    two.write(m.INCREMENT, 1, "k", 5)
    resolve(two, claimed(two), "no number").value()
    assert states(driver) == [("second", "resolved"), (5, "refused")]
    assert notices(two) == [("resolved", b"second"), ("refused", 5)]


def test_a_resolution_may_remove() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    attempt, key, _, shown, _, found, _ = claimed(two)
    op_ids = [entry[0] for entry in found]
    assert two.write(m.RESOLVE, 1, key, m.REMOVE, None, shown, op_ids, attempt).value() == [3, 0]
    assert two.request(m.GET, 1, "k").value() is None


@pytest.mark.parametrize(
    "wrong",
    [{"shown": 5}, {"op_ids": [5]}, {"attempt": 5}, {"op_ids": [5, 6]}],
)
def test_a_resolution_of_what_was_not_shown_is_refused(wrong: dict[str, Any]) -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    before = driver.core.stream.last_seq
    assert resolve(two, claimed(two), "x", **wrong).status == ClaimLost.code
    assert driver.core.stream.last_seq == before
    assert states(driver) == [("second", "open")]


def test_only_the_oldest_entries_can_be_closed() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    put(two, "k", "third")
    offer = claimed(two)
    later = [entry[0] for entry in offer[5]][1:]
    assert resolve(two, offer, "x", op_ids=later).status == ClaimLost.code


def test_what_joins_after_the_offer_stays_open() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    offer = claimed(two)
    put(two, "k", "late")
    assert resolve(two, offer, "merged").value() == [2, 1]
    assert states(driver) == [("second", "resolved"), ("late", "open")]
    assert two.request(m.GET, 1, "k").value()[12] == record.CONFLICT_KIND


def test_a_resolution_is_done_once() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    offer = claimed(two)
    number = two.next_number()
    attempt, key, _, shown, _, found, _ = offer
    arguments = (1, key, m.SET, "x", shown, [entry[0] for entry in found], attempt)
    first = two.write(m.RESOLVE, *arguments, number=number)
    again = two.write(m.RESOLVE, *arguments, number=number)
    assert (first.status, first.result, first.op_id) == (again.status, again.result, again.op_id)
    assert resolve(two, offer, "y").status == ClaimLost.code
    assert value_of(driver, b"k") == b"x"
