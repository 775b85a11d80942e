"""The strategies `newer` and `older`, options, the ledger's pages and what watchers see."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import record
from nun.errors import (
    BadRequest,
    ConflictPending,
    NotANumber,
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

# newer and older


def test_newer_takes_the_later_write_and_tells_whose_record_it_displaced() -> None:
    driver = made(strategy="newer")
    one, two = driver.client(), driver.client()
    base = put(one, "k", "old").op_id
    put(one, "k", "first", base).value()
    won = put(two, "k", "second", base)
    assert won.value() == 3
    assert value_of(driver, b"k") == b"second"
    [entry] = entries(driver)
    assert (entry["state"], entry["value"], entry["decider"]) == ("decided", "first", "newer")
    assert notices(one) == [("decided", b"first")]
    assert notices(two) == []
    assert two.request(m.GET, 1, "k").value() == record.live(3, won.op_id or 0, b"second")


def test_older_keeps_the_write_that_first_replaced_the_base() -> None:
    driver = made(strategy="older")
    one, two = driver.client(), driver.client()
    base = put(one, "k", "old").op_id
    put(one, "k", "first", base).value()
    lost = put(two, "k", "second", base)
    assert lost.status == VersionConflict.code
    assert record.value_of(lost.result[1][b"current"]) == b"first"
    assert value_of(driver, b"k") == b"first"
    assert states(driver) == [("second", "decided")]
    assert lost.result[1][b"conflict"] == entries(driver)[0]["op_id"]


def test_a_write_that_has_seen_the_record_displaces_nobody() -> None:
    for strategy in ("newer", "older"):
        driver = made(strategy=strategy)
        client = driver.client()
        base = put(client, "k", "1").op_id
        put(client, "k", "2", base).value()
        client.write(m.INCREMENT, 1, "n", 3).value()
        client.write(m.INCREMENT, 1, "n", 4).value()
        client.write(m.SET_MANY, 1, pack([["k", "x"], ["3", "4"]])).value()
        client.write(m.REMOVE, 1, "x", None).value()
        driver.crash()
        assert entries(driver) == []
        assert (value_of(driver, b"k"), value_of(driver, b"n")) == (b"3", b"7")
        assert value_of(driver, b"x") is None


def test_a_removal_that_is_displaced_is_told_too() -> None:
    driver = made(strategy="newer")
    one, two = driver.client(), driver.client()
    base = put(one, "k", "old").op_id
    one.write(m.REMOVE, 1, "k", [BASE, base, False]).value()
    put(two, "k", "second", base).value()
    assert notices(one) == [("decided", None)]


def test_batches_are_judged_too() -> None:
    driver = made(strategy="newer")
    one, two = driver.client(), driver.client()
    base = put(one, "k", "old").op_id
    put(one, "k", "first", base)
    kinds = bytes([m.SET, m.SET, m.INCREMENT])
    conditions = {0: [BASE, base, False]}
    reply = two.write(
        m.BATCH, 1, False, kinds, pack([["k", "a", "n"], ["second", "1", 2]]), conditions
    )
    assert reply.value() == [3, 1, [1, 2]]
    assert notices(one) == [("decided", b"first")]
    atomic = two.write(m.BATCH, 1, True, kinds, pack([["k", "a", "n"], ["x", "y", 2]]), None)
    assert atomic.value() == [4, 2, [2, 4]]
    refused = two.write(
        m.BATCH, 1, True, kinds, pack([["a", "k", "n"], ["z", "z", 2]]), {1: [BASE, 99, False]}
    )
    assert refused.status == 14
    driver.crash()
    assert (value_of(driver, b"a"), value_of(driver, b"n")) == (b"y", b"4")


def test_a_close_call_may_go_to_the_arbiter() -> None:
    for close_calls, code in (("op_id", 0), ("arbiter", ConflictPending.code)):
        driver = made(strategy="newer", close_calls=close_calls)
        one, two = driver.client(), driver.client()
        base = put(one, "k", "old").op_id
        put(one, "k", "first", base)
        # Taken by a node whose clock may be a second off.
        driver.core.sessions[two.peer].stamped_at = (driver.unix_ms, 1_000)
        assert put(two, "k", "second", base).status == code
        assert entries(driver)[0]["close_call"] is True


# Listing, watching, counting


def test_pages_of_the_ledger() -> None:
    driver = made()
    for number in range(7):
        conflict_on(driver, f"k{number}")
    client = driver.client()
    resolve(client, claimed(client), "x").value()
    found, after = [], None
    for _ in range(10):
        page, after = client.request(m.CONFLICTS, 1, "open", None, 2, after).value()
        found += [json.loads(value)["key"] for _, value in page]
        if after is None:
            break
    assert found == [f"k{number}" for number in range(1, 7)]
    page, _ = client.request(m.CONFLICTS, 1, None, "k0", 10, None).value()
    assert [json.loads(value)["state"] for _, value in page] == ["resolved"]
    assert client.request(m.CONFLICTS, 1, "lost", None, 2, None).status == BadRequest.code


def test_watchers_see_the_resolved_value_once_and_nothing_before() -> None:
    driver = made()
    client = driver.client()
    base = put(client, "k", "old").op_id
    put(client, "k", "first", base)
    watch = client.request(m.WATCH, 1, m.WATCH_KEY, "k", None, 1_000_000).value()
    ledger = client.request(m.WATCH, 1, m.WATCH_PREFIX, "$conflicts_k", None, 1_000_000).value()
    put(client, "k", "second", base)
    put(client, "k", "third")
    resolve(client, claimed(client), "merged").value()
    seen: dict[int, list[Any]] = {watch: [], ledger: []}
    for peer, message in driver.sent:
        if peer == client.peer and message[0] == m.EVENTS:
            seen[message[1]] += unpack(message[2])[1]
    assert [(event[2], event[3]) for event in seen[watch]] == [(b"merged", 3)]
    assert [json.loads(event[2])["state"] for event in seen[ledger]] == [
        "open",
        "open",
        "resolved",
        "resolved",
    ]


def test_the_ledger_balances() -> None:
    from nun.core.conflicts import ledger

    driver = made(conflict_timeout_s=10)
    two, _, _ = conflict_on(driver)
    resolve(two, claimed(two), "x").value()
    conflict_on(driver, "other")
    driver.tick(11)
    conflict_on(driver, "third")
    assert ledger.count(driver.core) == {
        "opened": 3,
        "open": 1,
        "resolved": 1,
        "decided": 0,
        "expired": 1,
        "refused": 0,
    }


def test_a_value_that_is_no_number_is_refused_as_ever() -> None:
    driver = made()
    client = driver.client()
    put(client, "k", "x")
    assert client.write(m.INCREMENT, 1, "k", 1).status == NotANumber.code


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "nearest"},
        {"prefixes": {"": "none"}},
        {"prefixes": {"$x": "none"}},
        {"prefixes": {"x": "no"}},
        {"prefixes": []},
        {"no_arbiter": 1},
        {"conflict_timeout_s": -1},
        {"conflict_timeout_s": True},
        {"conflict_fallback": "best"},
        {"else": 1},
    ],
)
def test_options_that_are_wrong_are_named(options: dict[str, Any]) -> None:
    driver = made()
    reply = driver.client().write(m.ALTER_DATABASE, "d", None, options)
    assert reply.status == BadRequest.code
    assert driver.core.state.databases[1].options == {"strategy": "arbiter"}
