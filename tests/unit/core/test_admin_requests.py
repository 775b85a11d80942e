"""Databases, users, permissions, selecting, snapshots and status at the core."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import record
from nun.core.state import NodeState
from nun.errors import (
    AuthError,
    BadRequest,
    DatabaseExists,
    NodeFault,
    NoSuchDatabase,
    OutcomeExpired,
    Overloaded,
    PermissionDenied,
    SessionUnknown,
    TooLarge,
)
from nun.limits import PERMISSIONS_BYTES_MAX, SECRET_CHECKS_WAITING_MAX, SECRET_FAILURES_MAX
from tests.support.core_driver import SETTINGS, CoreDriver, DrivenClient
from tests.support.raw_client import Reply


def asked(driver: CoreDriver, client: DrivenClient, kind: int, *arguments: Any) -> Reply:
    """A request that may wait for scrypt and for the disk, and its reply."""
    number = client.next_number()
    floor = [] if kind in (m.USE, m.DATABASES, m.SNAPSHOT, m.STATUS) else [client.floor]
    driver.receive((client.peer, [kind, client.token, number, *floor, *arguments]))
    driver.work_on_secrets()
    driver.sync()
    reply = client.reply_to(number)
    assert reply is not None
    return reply


def stranger(driver: CoreDriver, name: bytes) -> DrivenClient:
    """A session without an administrator's rights."""
    client = DrivenClient.__new__(DrivenClient)
    client.driver, client.peer, client.database = driver, name, None
    client.client_id, client.born, client.number, client.floor = b"client " + name, None, 1, 0
    driver.receive((name, [m.HELLO, 1, 1, client.client_id, None, None, None]))
    reply = client.reply_to(1)
    assert reply is not None
    client.token = reply.value()[0]
    return client


@pytest.fixture
def driver() -> CoreDriver:
    return CoreDriver()


@pytest.fixture
def admin(driver: CoreDriver) -> DrivenClient:
    return driver.client(None)


def created(driver: CoreDriver, admin: DrivenClient, name: str = "shop") -> int:
    number: int = asked(driver, admin, m.CREATE_DATABASE, name, "t", {}).value()
    return number


def test_a_database_is_created_listed_altered_and_dropped(
    driver: CoreDriver, admin: DrivenClient
) -> None:
    number = created(driver, admin)
    assert asked(driver, admin, m.DATABASES).value() == [[b"shop", number, {b"strategy": b"none"}]]
    assert asked(driver, admin, m.CREATE_DATABASE, "shop", "x", {}).status == DatabaseExists.code
    assert asked(driver, admin, m.ALTER_DATABASE, "shop", None, {"strategy": "none"}).status == 0
    assert asked(driver, admin, m.DROP_DATABASE, "shop").status == 0
    assert asked(driver, admin, m.DROP_DATABASE, "shop").status == NoSuchDatabase.code
    assert asked(driver, admin, m.DATABASES).value() == []
    assert created(driver, admin) == number + 1, "numbers are not given twice"


def test_only_hashes_are_stored(driver: CoreDriver, admin: DrivenClient) -> None:
    created(driver, admin)
    asked(driver, admin, m.CREATE_USER, "shop", "mary", "secret of mary")
    held = driver.core.tables[1].records
    assert record.value_of(held[b"$$token"]) == b"hash of t"
    assert record.value_of(held[b"$$user_mary"]) == b"hash of secret of mary"


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (m.CREATE_DATABASE, ("", "t", {})),
        (m.CREATE_DATABASE, ("a b", "t", {})),
        (m.CREATE_DATABASE, (b"\xff", "t", {})),
        (m.CREATE_DATABASE, ("x" * 129, "t", {})),
        (m.CREATE_DATABASE, ("x", "", {})),
        (m.CREATE_DATABASE, ("x", "t", {"strategy": "guess"})),
        (m.CREATE_DATABASE, ("x", "t", {"colour": "red"})),
        (m.CREATE_DATABASE, ("x", "t", [])),
        (m.ALTER_DATABASE, ("shop", "", {})),
        (m.CREATE_USER, ("shop", "all", "t")),
        (m.CREATE_USER, ("shop", "m y", "t")),
        (m.CREATE_USER, ("shop", "mary", None)),
        (m.DROP_USER, ("shop", "nobody")),
        (m.DROP_USER, ("shop", "all")),
        (m.SET_PERMISSIONS, ("shop", "mary", "q *")),
        (m.SET_PERMISSIONS, ("shop", "mary", "rw")),
        (m.SET_PERMISSIONS, ("shop", "mary", b"r \xff")),
        (m.SNAPSHOT, ("shop", False)),
        (m.SNAPSHOT, (None, 1)),
        (m.USE, ("shop", None, 7)),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(
    driver: CoreDriver, admin: DrivenClient, kind: int, arguments: tuple[Any, ...]
) -> None:
    created(driver, admin)
    before = dict(driver.core.tables[1].records), len(driver.frames)
    assert asked(driver, admin, kind, *arguments).status == BadRequest.code
    assert (dict(driver.core.tables[1].records), len(driver.frames)) == before


def test_a_long_permission_list_is_too_large(driver: CoreDriver, admin: DrivenClient) -> None:
    created(driver, admin)
    text = "r " + "k," * PERMISSIONS_BYTES_MAX
    assert asked(driver, admin, m.SET_PERMISSIONS, "shop", "mary", text).status == TooLarge.code


def test_what_is_for_administrators_is_refused_to_others(
    driver: CoreDriver, admin: DrivenClient
) -> None:
    created(driver, admin)
    other = stranger(driver, b"other")
    for kind, arguments in (
        (m.CREATE_DATABASE, ("x", "t", {})),
        (m.ALTER_DATABASE, ("shop", "t", {})),
        (m.DROP_DATABASE, ("shop",)),
        (m.DATABASES, ()),
        (m.CREATE_USER, ("shop", "mary", "t")),
        (m.DROP_USER, ("shop", "mary")),
        (m.SET_PERMISSIONS, ("shop", "mary", "r *")),
        (m.SNAPSHOT, (None, False)),
        (m.STATUS, ()),
    ):
        assert asked(driver, other, kind, *arguments).status == PermissionDenied.code


def test_a_good_token_is_checked_once_and_a_bad_one_never_lets_in(
    driver: CoreDriver, admin: DrivenClient
) -> None:
    number = created(driver, admin)
    other = stranger(driver, b"other")
    assert asked(driver, other, m.USE, "shop", None, "wrong").status == AuthError.code
    assert asked(driver, other, m.USE, "shop", "mary", "t").status == AuthError.code
    assert asked(driver, other, m.USE, "shop", None, "t").value()[0] == number
    assert other.request(m.USE, "shop", None, "t").status == 0, "no scrypt the second time"
    assert not driver.secrets


def test_too_many_wrong_tokens_close_the_door_for_a_while(
    driver: CoreDriver, admin: DrivenClient
) -> None:
    created(driver, admin)
    other = stranger(driver, b"other")
    for _ in range(SECRET_FAILURES_MAX):
        asked(driver, other, m.USE, "shop", None, "wrong")
    refused = asked(driver, other, m.USE, "shop", None, "t")
    assert refused.status == AuthError.code
    assert refused.result[1][b"retry_after_ms"] > 0
    driver.now_ns += 31 * 10**9
    assert asked(driver, other, m.USE, "shop", None, "t").status == 0


def test_rights_are_those_of_the_record_and_change_at_once(
    driver: CoreDriver, admin: DrivenClient
) -> None:
    number = created(driver, admin)
    asked(driver, admin, m.CREATE_USER, "shop", "mary", "m")
    mary = stranger(driver, b"mary")
    asked(driver, mary, m.USE, "shop", "mary", "m")
    assert mary.request(m.GET, number, "a:1").status == PermissionDenied.code
    asked(driver, admin, m.SET_PERMISSIONS, "shop", "mary", " r a:*,b |w *:1")
    assert mary.request(m.GET, number, "a:1").status == 0
    assert mary.request(m.GET, number, "c:1").status == PermissionDenied.code
    assert mary.write(m.SET, number, "c:1", "x", None).status == 0
    assert mary.write(m.SET, number, "c:2", "x", None).status == PermissionDenied.code
    assert mary.write(m.INCREMENT, number, "c:1", 1).status == PermissionDenied.code
    assert mary.request(m.GET_MANY, number, ["a:1", "$$token"]).status == PermissionDenied.code
    assert mary.request(m.KEYS, number, "", 10, None).value()[0] == []
    asked(driver, admin, m.DROP_USER, "shop", "mary")
    assert mary.request(m.GET, number, "a:1").status == AuthError.code


def test_a_changed_token_takes_the_selection_away(driver: CoreDriver, admin: DrivenClient) -> None:
    number = created(driver, admin)
    other = stranger(driver, b"other")
    asked(driver, other, m.USE, "shop", None, "t")
    assert other.request(m.WATCH, number, m.WATCH_ALL, "", None, 1_000).status == 0
    asked(driver, admin, m.ALTER_DATABASE, "shop", "new", {})
    ((peer, ended),) = [each for each in driver.sent if each[1][0] == m.WATCH_ENDED]
    assert (peer, ended[2]) == (other.peer, AuthError.code)
    assert len(driver.core.watches) == 0
    assert other.request(m.GET, number, "a").status == AuthError.code
    assert asked(driver, other, m.USE, "shop", None, "t").status == AuthError.code
    assert asked(driver, other, m.USE, "shop", None, "new").status == 0


@pytest.mark.parametrize("change", ["token", "drop"])
def test_a_token_that_changes_while_it_is_checked_lets_nobody_in(
    driver: CoreDriver, admin: DrivenClient, change: str
) -> None:
    created(driver, admin)
    other = stranger(driver, b"other")
    number = other.next_number()
    driver.receive((other.peer, [m.USE, other.token, number, "shop", None, "t"]))
    waiting, driver.secrets = driver.secrets, []
    if change == "token":
        asked(driver, admin, m.ALTER_DATABASE, "shop", "new", {})
    else:
        asked(driver, admin, m.DROP_DATABASE, "shop")
    driver.secrets = waiting
    driver.work_on_secrets()
    driver.sync()
    reply = other.reply_to(number)
    assert reply is not None
    assert reply.status in (AuthError.code, NoSuchDatabase.code)


def test_a_retry_gets_the_first_outcome(driver: CoreDriver, admin: DrivenClient) -> None:
    number = admin.next_number()
    message = [m.CREATE_DATABASE, admin.token, number, 0, "shop", "t", {}]
    driver.receive((admin.peer, message))
    driver.receive((admin.peer, message))
    assert len(driver.secrets) == 1, "a retry of what is under way is not done twice"
    driver.work_on_secrets()
    driver.sync()
    first = admin.reply_to(number)
    driver.receive((admin.peer, message))
    driver.work_on_secrets()
    assert admin.reply_to(number) == first
    driver.restart()
    admin.greet()
    driver.receive((admin.peer, [m.CREATE_DATABASE, admin.token, *message[2:]]))
    again = admin.reply_to(number)
    assert again is not None
    assert first is not None
    assert again.result == first.result
    assert len(driver.core.state.databases) == 1


def test_a_session_that_ends_while_its_secret_is_hashed_changes_nothing(
    driver: CoreDriver, admin: DrivenClient
) -> None:
    number = admin.next_number()
    driver.receive((admin.peer, [m.CREATE_DATABASE, admin.token, number, 0, "shop", "t", {}]))
    driver.core.peer_gone(admin.peer, "gone")
    driver.work_on_secrets()
    assert not driver.core.state.databases


def test_bounds_on_databases_and_on_secrets_in_work() -> None:
    driver = CoreDriver(dataclasses.replace(SETTINGS, databases_max=1))
    admin = driver.client(None)
    created(driver, admin)
    assert asked(driver, admin, m.CREATE_DATABASE, "b", "t", {}).status == Overloaded.code
    for _ in range(SECRET_CHECKS_WAITING_MAX + 1):
        number = admin.next_number()
        driver.receive((admin.peer, [m.CREATE_USER, admin.token, number, 0, "shop", "u", "t"]))
    reply = admin.reply_to(number)
    assert reply is not None
    assert reply.status == Overloaded.code


def test_a_snapshot_that_takes_its_time_is_not_answered_as_a_status(
    driver: CoreDriver, admin: DrivenClient
) -> None:
    numbers = [admin.next_number(), admin.next_number()]
    driver.receive((admin.peer, [m.SNAPSHOT, admin.token, numbers[0], None, False]))
    driver.receive((admin.peer, [m.STATUS, admin.token, numbers[1]]))
    tickets = [message[1] for message in driver.to_writer]
    assert driver.core.admin.overdue(driver.now_ns + 10**11) == tickets[1:]


def test_snapshot_and_status_wait_for_the_writer(driver: CoreDriver, admin: DrivenClient) -> None:
    created(driver, admin)
    number = admin.next_number()
    driver.receive((admin.peer, [m.SNAPSHOT, admin.token, number, ["shop"], True]))
    kind, ticket, databases, reclaim = driver.to_writer.pop()
    assert (kind, databases, reclaim) == (m.TAKE_SNAPSHOT, [1], True)
    assert admin.reply_to(number) is None
    driver.core.admin.snapshot_taken(ticket, None, {"records": 3})
    driver.perform()
    assert admin.reply_to(number) == Reply(0, number, {b"records": 3}, None, 0)

    number = admin.next_number()
    driver.receive((admin.peer, [m.SNAPSHOT, admin.token, number, None, False]))
    driver.core.admin.snapshot_taken(driver.to_writer.pop()[1], "the disk is full", {})
    driver.perform()
    failed = admin.reply_to(number)
    assert failed is not None
    assert failed.status == NodeFault.code

    number = admin.next_number()
    driver.receive((admin.peer, [m.STATUS, admin.token, number]))
    (_, ticket) = driver.to_writer.pop()
    assert driver.core.admin.overdue(driver.now_ns) == []
    assert driver.core.admin.overdue(driver.now_ns + 2 * 10**9) == [ticket]
    driver.core.admin.storage_described(ticket, None, {"network": {"pid": 1}})
    driver.perform()
    told = admin.reply_to(number)
    assert told is not None
    assert told.value()[b"databases"][b"shop"][b"keys"] == 1  # its token
    driver.core.admin.storage_described(ticket, None, {})  # answered before: nothing happens


def test_a_dropped_database_ends_watches_and_selections(
    driver: CoreDriver, admin: DrivenClient
) -> None:
    number = created(driver, admin)
    admin.request(m.USE, "shop", None, None)
    watch = admin.request(m.WATCH, number, m.WATCH_ALL, "", None, 1 << 20).value()
    asked(driver, admin, m.DROP_DATABASE, "shop")
    ended = [message for _, message in driver.sent if message[0] == m.WATCH_ENDED]
    assert [message[1:3] for message in ended] == [[watch, NoSuchDatabase.code]]
    assert admin.request(m.GET, number, "a").status == NoSuchDatabase.code


def test_an_unknown_session_or_a_stolen_routing_id_has_no_rights(
    driver: CoreDriver, admin: DrivenClient
) -> None:
    for peer, token in ((b"nobody", admin.token), (admin.peer, admin.token ^ 1)):
        driver.receive((peer, [m.DATABASES, token, 9]))
        assert driver.sent.pop()[1][0] == SessionUnknown.code


def test_a_wrong_administrator_is_refused_and_counted(driver: CoreDriver) -> None:
    for index in range(SECRET_FAILURES_MAX + 1):
        driver.receive((b"p", [m.HELLO, 1, index, b"c", None, "nun", "guess"]))
    code, _, (text, fields), _, _ = driver.sent.pop()[1]
    assert code == AuthError.code
    assert b"too many" in text
    assert fields[b"retry_after_ms"] > 0
    driver.receive((b"p", [m.HELLO, 1, 9, b"c", None, 5, "x"]))
    assert driver.sent.pop()[1][0] == BadRequest.code


def test_forgotten_clients_hear_expired_and_new_ones_are_served() -> None:
    driver = CoreDriver(dataclasses.replace(SETTINGS, request_rows_bytes_max=2_000))
    admin = driver.client(None)
    number = created(driver, admin)
    old = driver.client(number)
    first = old.next_number()
    old.write(m.SET, number, "a", "1", None, number=first)
    for _ in range(8):
        driver.client(number).write(m.SET, number, "b", "1", None)
    driver.tick()
    driver.sync()
    assert old.client_id not in driver.core.state.clients
    assert old.write(m.SET, number, "a", "2", None, number=first).status == OutcomeExpired.code
    fresh = driver.client(number)
    assert fresh.write(m.SET, number, "a", "3", None).status == 0


@pytest.mark.parametrize(
    "request_",
    [
        (m.CREATE_DATABASE, "e", "t", {}),
        (m.ALTER_DATABASE, "shop", None, {"strategy": "newer"}),
        (m.ALTER_DATABASE, "shop", "t", {}),
        (m.CREATE_USER, "shop", "mary", "secret of mary"),
    ],
)
def test_an_administrator_whose_requests_are_forgotten_goes_on(request_: tuple[Any, ...]) -> None:
    driver = CoreDriver(dataclasses.replace(SETTINGS, request_rows_bytes_max=2_000))
    number = created(driver, driver.client(None))
    admin = driver.client(None)
    for _ in range(8):
        driver.client(number).write(m.SET, number, "b", "1", None)
    driver.tick()
    driver.sync()
    assert driver.core.state.horizon > driver.core.sessions[admin.peer].born
    assert admin.client_id not in driver.core.state.clients
    assert asked(driver, admin, *request_).status == 0


@pytest.mark.parametrize("loaded", [False, True])
def test_what_was_forgotten_is_not_done_again_since_its_client_is_known_anew(loaded: bool) -> None:
    driver = CoreDriver(dataclasses.replace(SETTINGS, request_rows_bytes_max=2_000))
    number = created(driver, driver.client(None))
    old = driver.client(number)
    first, lost = old.next_number(), old.next_number()
    old.floor = first
    old.write(m.INCREMENT, number, "n", 1, number=first)
    for _ in range(8):
        driver.client(number).write(m.SET, number, "b", "1", None)
    driver.tick()
    driver.sync()
    assert old.client_id not in driver.core.state.clients
    later = old.write(m.SET, number, "a", "1", None)
    assert later.status == 0, "new, though it waits for two"
    if loaded:
        state = NodeState.load(unpack(pack(driver.core.state.dump())))
        assert state.clients == driver.core.state.clients
        driver.core.state.clients = state.clients
    for again in (first, lost):
        told = old.write(m.INCREMENT, number, "n", 1, number=again)
        assert told.status == OutcomeExpired.code
    assert old.write(m.INCREMENT, number, "n", 1).result == [2, 2]
