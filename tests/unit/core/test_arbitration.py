"""Claims, leases, expiry and cleaning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nun import messages as m
from nun.core import record
from nun.core.conflicts import arbitration, manager
from nun.core.settings import ConflictSettings
from nun.errors import (
    BadRequest,
    ClaimLost,
    ConflictPending,
    PermissionDenied,
    VersionConflict,
)
from tests.support.conflicts import (
    claim,
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

# Claims


def test_a_key_is_claimed_by_one_arbiter_at_a_time() -> None:
    driver = made()
    conflict_on(driver)
    one, two = driver.client(), driver.client()
    assert claimed(one, b"a1") is not None
    waiting = claim(two, b"a2")
    assert two.reply_to(waiting) is None
    driver.tick(6)
    reply = two.reply_to(waiting)
    assert reply is not None
    assert reply.value() is None, "its patience was over"


def test_a_lease_that_is_over_gives_the_key_to_another_and_the_late_answer_is_refused() -> None:
    driver = made()
    conflict_on(driver)
    one, two = driver.client(), driver.client()
    late = claimed(one, b"a1", lease_ms=2_000)
    waiting = claim(two, b"a2")
    driver.tick(3)
    reply = two.reply_to(waiting)
    assert reply is not None
    offer = reply.value()
    assert offer[0] > late[0], "attempts go up"
    assert resolve(one, late, "late").status == ClaimLost.code
    assert resolve(two, offer, "in time").value() == [3, 0]


def test_an_arbiter_that_leaves_loses_its_claim_at_once() -> None:
    driver = made()
    conflict_on(driver)
    one, two = driver.client(), driver.client()
    claimed(one, b"a1")
    waiting = claim(two, b"a2")
    driver.receive((one.peer, [m.BYE, one.token, 0]))
    assert two.reply_to(waiting) is not None


def test_an_arbiter_whose_requests_are_forgotten_resolves_on() -> None:
    driver = made(settings=replace(SETTINGS, request_rows_bytes_max=2_000))
    conflict_on(driver)
    arbiter = driver.client()
    offer = claimed(arbiter, b"a1")
    for _ in range(8):
        put(driver.client(), "other", "1")
    driver.tick()
    driver.sync()
    assert driver.core.state.horizon > driver.core.sessions[arbiter.peer].born
    assert resolve(arbiter, offer, "merged").status == 0
    assert value_of(driver, b"k") == b"merged"


def test_a_claim_that_is_given_back_goes_to_another_arbiter_first() -> None:
    driver = made()
    conflict_on(driver)
    one, two = driver.client(), driver.client()
    offer = claimed(one, b"a1")
    one.write(m.RELEASE, 1, b"a1", offer[1], offer[0]).value()
    assert one.reply_to(claim(one, b"a1")) is None
    assert claimed(two, b"a2") is not None


def test_several_arbiters_share_the_work_in_order() -> None:
    driver = made()
    for key in ("a", "b", "c"):
        conflict_on(driver, key)
    one, two = driver.client(), driver.client()
    assert claimed(one, b"a1")[1] == b"a"
    assert claimed(two, b"a2")[1] == b"b"
    assert claimed(one, b"a1")[1] == b"c"


def test_an_arbiter_gets_only_keys_that_it_may_arbitrate() -> None:
    driver = made()
    conflict_on(driver, "secret")
    conflict_on(driver, "open")
    admin = driver.client()
    admin.write(m.SET_PERMISSIONS, "d", "ann", "ra open").value()
    ann = driver.client(None)
    driver.core.sessions[ann.peer].grants[1] = (b"ann", driver.core.rights.of(1, b"ann", False))
    offer = claimed(ann)
    assert offer[1] == b"open"
    assert ann.reply_to(claim(ann)) is None
    refused = ann.write(m.RESOLVE, 1, "secret", m.SET, "x", 1, [2], 0)
    assert refused.status == PermissionDenied.code


def test_a_manager_that_was_started_anew_offers_again() -> None:
    driver = made()
    conflict_on(driver)
    one, two = driver.client(), driver.client()
    old = claimed(one, b"a1")
    waiting = claim(two, b"a2")
    driver.new_manager()
    reply = two.reply_to(waiting)
    assert reply is not None
    assert resolve(one, old, "of the earlier life").status == ClaimLost.code
    assert resolve(two, reply.value(), "x").value() == [3, 0]


def test_a_manager_that_stands_still_has_a_bound_and_is_told_all_when_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arbitration, "MANAGER_UNHEARD_MAX", 10)
    for module in (arbitration, manager):
        monkeypatch.setattr(module, "MANAGER_HEARD_EVERY", 5)
    driver = made()
    for number in range(20):  # many more than the bound, heard as they come: nobody is behind
        conflict_on(driver, f"before{number}")
    driver.stall_manager()
    one, two = driver.client(), driver.client()
    waiting = claim(one, b"a1")
    for number in range(20):
        conflict_on(driver, f"k{number}")
    late = claim(two, b"a2")
    assert driver.manager_waits is not None
    assert 5 <= len(driver.manager_waits) <= 10
    driver.wake_manager()
    asked = [one.reply_to(waiting), two.reply_to(late)]
    assert all(reply is not None for reply in asked)
    offered = [reply.value()[1] for reply in asked if reply is not None]
    while (offer := claimed(one, b"a1")) is not None:
        offered.append(offer[1])
    assert set(offered) == {  # what was claimed before it was told all anew is offered again
        name % number for name in (b"before%d", b"k%d") for number in range(20)
    }


def test_a_node_that_was_started_anew_has_the_same_queue() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    put(two, "k", "third")
    put(two, "k", '", "base": 7, "base_value": {', base=77)
    two.write(m.INCREMENT, 1, "k", 1)
    before = driver.core.conflicts.queues[1][b"k"]
    driver.crash()
    after = driver.core.conflicts.queues[1][b"k"]
    assert [one[:2] for one in after.entries] == [one[:2] for one in before.entries]
    assert (after.bytes, after.bases) == (before.bytes, before.bases)
    two.greet()
    offer = claimed(two)
    assert [entry[2] for entry in offer[5]][:2] == [b"second", b"third"]


# Presence


def test_who_asks_for_nothing_is_there_and_gets_nothing() -> None:
    driver = made(no_arbiter="reject")
    client, arbiter = driver.client(), driver.client()
    put(client, "k", "1")
    waiting = claim(arbiter, b"a1", lease_ms=0)
    assert put(client, "k", "2", 99).status == ConflictPending.code
    assert arbiter.reply_to(waiting) is None, "it is not offered what waits"
    assert claimed(driver.client(), b"a2") is not None, "others are"
    driver.tick(6)
    reply = arbiter.reply_to(waiting)
    assert reply is not None
    assert reply.value() is None


def test_an_arbiter_that_leaves_while_it_asks_is_answered_and_forgotten() -> None:
    driver = made(no_arbiter="reject")
    client, arbiter = driver.client(), driver.client()
    put(client, "k", "1")
    waiting = claim(arbiter, b"a1", lease_ms=0)
    arbiter.write(m.RELEASE, 1, b"a1", b"", 0).value()
    reply = arbiter.reply_to(waiting)
    assert reply is not None
    assert reply.value() is None
    assert put(client, "k", "2", 99).status == VersionConflict.code
    claim(arbiter, b"a2")
    arbiter.request(m.BYE)
    driver.sync()
    assert put(client, "k", "2", 99).status == VersionConflict.code
    arbitration = driver.core.arbitration
    assert (arbitration._waiting, arbitration._asked) == ({}, {})
    assert not any(arbitration._arbiters.values())


# No arbiter, expiry


def test_without_an_arbiter_a_database_may_refuse() -> None:
    driver = made(no_arbiter="reject")
    client = driver.client()
    put(client, "k", "1")
    reply = put(client, "k", "2", 99)
    assert reply.status == VersionConflict.code
    assert b"no arbiter is connected" in reply.result[0]
    assert entries(driver) == []
    claim(client)
    assert put(client, "k", "2", 99).status == ConflictPending.code


@pytest.mark.parametrize(
    ("fallback", "value"), [("keep", b"first"), ("newer", b"third"), ("older", b"first")]
)
def test_what_nobody_resolves_is_ended_by_the_fallback(fallback: str, value: bytes) -> None:
    driver = made(conflict_timeout_s=10, conflict_fallback=fallback)
    two, _, _ = conflict_on(driver)
    put(two, "k", "third")
    driver.tick(9)
    assert {state for _, state in states(driver)} == {"open"}
    driver.tick(2)
    driver.sync()
    assert {state for _, state in states(driver)[-2:]} == {"expired"}
    assert value_of(driver, b"k") == value
    assert record.version_of(driver.core.tables[1].records[b"k"]) == 3
    assert [state for state, _ in notices(two)] == ["expired", "expired"]
    before = driver.core.stream.last_seq
    for _ in range(5):
        driver.tick(2)
    assert driver.core.stream.last_seq == before, "the fallback fired twice"


def test_only_what_is_due_expires() -> None:
    driver = made(conflict_timeout_s=10, conflict_fallback="newer")
    two, _, _ = conflict_on(driver)
    driver.tick(6)
    put(two, "k", "third")
    driver.tick(5)
    assert states(driver) == [("first", "decided"), ("second", "expired"), ("third", "open")]
    assert value_of(driver, b"k") == b"second"
    driver.tick(6)
    assert states(driver)[2:] == [("third", "expired")]


def test_the_writer_whose_value_a_fallback_displaces_is_told() -> None:
    driver = made(conflict_timeout_s=10, conflict_fallback="newer")
    one, two = driver.client(), driver.client()
    base = put(one, "k", "old").op_id
    first = put(one, "k", "first", base).op_id
    put(two, "k", "second", base)
    driver.tick(11)
    [entry, other] = entries(driver)
    assert (entry["state"], entry["value"], entry["op_id"]) == ("decided", "first", first)
    assert (entry["decider"], entry["current"]["value"]) == ("timeout", "second")
    assert "fallback newer" in entry["reason"]
    assert other["state"] == "expired"
    assert [state for state, _ in notices(one)] == ["decided"]
    assert [state for state, _ in notices(two)] == ["expired"]


def test_a_fallback_that_chooses_a_write_which_had_seen_the_value_displaces_nobody() -> None:
    driver = made(conflict_timeout_s=10, conflict_fallback="newer")
    one, two = driver.client(), driver.client()
    base = put(one, "k", "old").op_id
    first = put(one, "k", "first", base).op_id
    put(two, "k", "second", base)
    put(two, "k", "third", first)  # read while the key was in conflict
    driver.tick(11)
    assert states(driver) == [("second", "expired"), ("third", "expired")]
    assert value_of(driver, b"k") == b"third"
    assert notices(one) == []


def test_a_timeout_set_later_holds_for_what_is_open() -> None:
    driver = made()
    conflict_on(driver)
    driver.tick(60)
    driver.client().write(m.ALTER_DATABASE, "d", None, {"conflict_timeout_s": 30}).value()
    driver.tick(2)
    assert states(driver) == [("second", "expired")]


def test_altering_the_strategy_leaves_open_conflicts_to_arbiters() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    two.write(m.ALTER_DATABASE, "d", None, {"strategy": "newer"}).value()
    assert put(two, "k", "third").status == ConflictPending.code
    assert resolve(two, claimed(two), "both").value()[1] == 0
    assert put(two, "k", "4", 99).status == 0, "newer, from now on"


def test_closed_entries_are_cleaned_away_in_time() -> None:
    settings = replace(SETTINGS, conflicts=ConflictSettings(resolved_retention_s=100))
    driver = with_database(settings, strategy="arbiter")
    two, _, _ = conflict_on(driver)
    resolve(two, claimed(two), "x").value()
    two, _, _ = conflict_on(driver, "other")
    driver.tick(50)
    assert len(entries(driver)) == 2
    driver.tick(60)
    driver.sync()
    assert states(driver) == [("second", "open")]
    driver.crash()
    driver.tick(200)
    assert states(driver) == [("second", "open")]


def test_a_dropped_database_tells_who_waited_in_it() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    two.write(m.DROP_DATABASE, "d").value()
    assert notices(two) == [("refused", b"second")]
    assert driver.core.conflicts.describe()["open"] == 0


def test_every_request_of_arbiters_has_a_name_and_a_length() -> None:
    driver = made()
    client = driver.client()
    for kind in (m.CLAIM, m.RESOLVE, m.RELEASE):
        reply = client.write(kind, 1)
        assert reply.status == BadRequest.code
        assert b"is an array of" in reply.result[0]
    assert client.request(m.CONFLICTS, 1).status == BadRequest.code


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (m.CLAIM, (1, b"", 5, 5)),
        (m.CLAIM, (1, b"a", -1, 5)),
        (m.CLAIM, (1, b"a", 5, -1)),
        (m.CLAIM, (1, b"a", 5, None)),
        (m.RESOLVE, (1, "k", m.GET, "v", 1, [1], 0)),
        (m.RESOLVE, (1, "k", m.SET, None, 1, [1], 0)),
        (m.RESOLVE, (1, "k", m.SET, "v", 1, [], 0)),
        (m.RESOLVE, (1, "k", m.SET, "v", -1, [1], 0)),
        (m.RESOLVE, (1, "k", m.SET, "v", 1, ["1"], 0)),
        (m.RESOLVE, (1, "k", m.SET, "v", 1, [1] * 300, 0)),
        (m.RESOLVE, (1, "", m.SET, "v", 1, [1], 0)),
        (m.RELEASE, (1, "a", 5, 5)),
        (m.RELEASE, (1, b"a", b"k", "5")),
    ],
)
def test_what_arbiters_may_not_say(kind: int, arguments: tuple[Any, ...]) -> None:
    driver = made()
    conflict_on(driver)
    before = driver.core.stream.last_seq
    assert driver.client().write(kind, *arguments).status == BadRequest.code
    assert driver.core.stream.last_seq == before
