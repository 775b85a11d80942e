"""The doorkeeper: guessing is slow, and shuts out nobody but the one who guesses."""

from __future__ import annotations

import pytest

from nun.core.requests.access import Doorkeeper, Visitor
from nun.errors import AuthError
from nun.limits import (
    SECRET_FAILURES_ANYWHERE_MAX,
    SECRET_FAILURES_MAX,
    SECRET_FAILURES_WINDOW_S,
    SECRETS_REMEMBERED_MAX,
)

WINDOW_NS = SECRET_FAILURES_WINDOW_S * 10**9
NAME = "administrator 'nun'"
STRANGER = Visitor(NAME, "10.0.0.9", b"stranger")
OWNER = Visitor(NAME, "10.0.0.1", b"owner")


@pytest.fixture
def doorkeeper() -> Doorkeeper:
    return Doorkeeper(bytes(32))


def guess(doorkeeper: Doorkeeper, visitor: Visitor, times: int, now_ns: int = 0) -> None:
    for _ in range(times):
        doorkeeper.failed(visitor, now_ns)


def test_the_door_closes_to_one_address_and_opens_again(doorkeeper: Doorkeeper) -> None:
    guess(doorkeeper, STRANGER, SECRET_FAILURES_MAX - 1)
    doorkeeper.admit(STRANGER, 0)
    guess(doorkeeper, STRANGER, 1)
    with pytest.raises(AuthError) as refused:
        doorkeeper.admit(STRANGER, 1)
    assert 0 < refused.value.fields["retry_after_ms"] <= SECRET_FAILURES_WINDOW_S * 1000
    with pytest.raises(AuthError):
        doorkeeper.admit(Visitor(NAME, STRANGER.address, b"under another client id"), 1)
    doorkeeper.admit(OWNER, 1)
    doorkeeper.admit(Visitor("another name", STRANGER.address, b"x"), 1)
    doorkeeper.admit(STRANGER, WINDOW_NS)


def test_a_client_that_was_here_before_is_let_in_beside_a_stranger_of_its_own_address(
    doorkeeper: Doorkeeper,
) -> None:
    neighbour = Visitor(NAME, OWNER.address, b"neighbour")
    doorkeeper.succeeded(OWNER)
    guess(doorkeeper, neighbour, SECRET_FAILURES_MAX)
    with pytest.raises(AuthError):
        doorkeeper.admit(neighbour, 1)
    doorkeeper.admit(OWNER, 1)
    guess(doorkeeper, OWNER, SECRET_FAILURES_MAX)
    with pytest.raises(AuthError):
        doorkeeper.admit(OWNER, 1)


def test_guesses_from_everywhere_make_no_work_without_end(doorkeeper: Doorkeeper) -> None:
    doorkeeper.succeeded(OWNER)
    for number in range(SECRET_FAILURES_ANYWHERE_MAX):
        newcomer = Visitor(NAME, f"10.1.{number >> 8}.{number & 255}", b"x")
        doorkeeper.admit(newcomer, 0)
        doorkeeper.admit_unknown(newcomer, 0)
        doorkeeper.failed(newcomer, 0)
    fresh = Visitor(NAME, "10.2.0.1", b"fresh")
    doorkeeper.admit(fresh, 1)
    with pytest.raises(AuthError):
        doorkeeper.admit_unknown(fresh, 1)
    doorkeeper.admit_unknown(OWNER, 1)
    doorkeeper.admit_unknown(fresh, WINDOW_NS)


def test_what_it_remembers_is_bounded(doorkeeper: Doorkeeper) -> None:
    for number in range(SECRETS_REMEMBERED_MAX + 10):
        visitor = Visitor(f"name {number}", "10.0.0.1", b"%d" % number)
        doorkeeper.failed(visitor, 0)
        doorkeeper.succeeded(visitor)
        doorkeeper.remember(b"%d" % number, b"stored")
    for kept in (doorkeeper._failures, doorkeeper._known, doorkeeper._good):
        assert len(kept) == SECRETS_REMEMBERED_MAX
    assert not doorkeeper.knows(b"0", b"stored")
    assert doorkeeper.knows(b"%d" % SECRETS_REMEMBERED_MAX, b"stored")
