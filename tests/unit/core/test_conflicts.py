"""Conflicts at the primary: strategies, queues, claims, resolutions, expiry, and what the ledger says of each."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import record
from nun.core.clock import TICK
from nun.core.settings import ConflictSettings
from nun.errors import (
    BadRequest,
    ClaimLost,
    ConflictPending,
    NotANumber,
    Overloaded,
    PermissionDenied,
    VersionConflict,
)
from tests.support.core_driver import SETTINGS, CoreDriver, DrivenClient, with_database
from tests.support.raw_client import Reply

BASE = m.ON_BASE


def made(**options: Any) -> CoreDriver:
    return with_database(**{"strategy": "arbiter", **options})


def put(client: DrivenClient, key: str, value: str, base: int | None = None) -> Reply:
    condition = None if base is None else [BASE, base, False]
    return client.write(m.SET, 1, key, value, condition)


def value_of(driver: CoreDriver, key: bytes) -> bytes | None:
    packed = driver.core.tables[1].records.get(key)
    return None if packed is None or not record.is_live(packed) else record.value_of(packed)


def entries(driver: CoreDriver) -> list[dict[str, Any]]:
    table = driver.core.tables[1]
    found = [json.loads(record.value_of(table.records[place])) for place in table.ledger]
    return sorted(found, key=lambda entry: int(entry["op_id"]))


def states(driver: CoreDriver) -> list[tuple[Any, str]]:
    return [(entry["value"], entry["state"]) for entry in entries(driver)]


def conflict_on(driver: CoreDriver, key: str = "k") -> tuple[DrivenClient, int, int]:
    """Two writers made on the same record; (the loser, the base, the loser's op id)."""
    one, two = driver.client(), driver.client()
    base = put(one, key, "old").op_id
    assert base is not None
    put(one, key, "first", base).value()
    lost = put(two, key, "second", base)
    assert lost.status == ConflictPending.code
    return two, base, int(lost.result[1][b"conflict"])


def claim(client: DrivenClient, arbiter: bytes = b"a1", lease_ms: int = 10_000) -> int:
    """Asks for a key; returns the number of the request."""
    number = client.next_number()
    client.driver.receive(client.message(number, m.CLAIM, 1, arbiter, 5_000, lease_ms))
    client.driver.sync()
    return number


def claimed(client: DrivenClient, arbiter: bytes = b"a1", lease_ms: int = 10_000) -> Any:
    reply = client.reply_to(claim(client, arbiter, lease_ms))
    return None if reply is None else reply.value()


def resolve(client: DrivenClient, offer: Any, value: str, **other: Any) -> Reply:
    attempt, key, _, shown, _, found, _ = offer
    op_ids = other.get("op_ids", [entry[0] for entry in found])
    return client.write(
        m.RESOLVE,
        1,
        key,
        m.SET,
        value,
        other.get("shown", shown),
        op_ids,
        other.get("attempt", attempt),
    )


def notices(client: DrivenClient) -> list[tuple[str, bytes]]:
    """(state, value) of the notices that the client gets."""
    client.request(m.OUTCOMES).value()
    found = []
    for peer, message in list(client.driver.sent):
        if peer == client.peer and message[0] == m.OUTCOME:
            told = unpack(message[2])
            found.append((told[b"state"].decode(), told[b"value"]))
            client.driver.sent.remove((peer, message))
    return found


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


def test_a_node_that_was_started_anew_has_the_same_queue() -> None:
    driver = made()
    two, _, _ = conflict_on(driver)
    put(two, "k", "third")
    two.write(m.INCREMENT, 1, "k", 1)
    before = driver.core.conflicts.queues[1][b"k"]
    driver.crash()
    after = driver.core.conflicts.queues[1][b"k"]
    assert [one[:2] for one in after.entries] == [one[:2] for one in before.entries]
    assert (after.bytes, after.bases) == (before.bytes, before.bases)
    two.greet()
    offer = claimed(two)
    assert [entry[2] for entry in offer[5]] == [b"second", b"third"]


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
    assert {state for _, state in states(driver)} == {"expired"}
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
    assert states(driver) == [("second", "expired"), ("third", "open")]
    assert value_of(driver, b"k") == b"second"
    driver.tick(6)
    assert states(driver)[1] == ("third", "expired")


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
        driver.core.clock_bound_ms = 1_000
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
    from nun.core import ledger

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
