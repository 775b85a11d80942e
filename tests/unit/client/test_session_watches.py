"""The pure session's side of watches: asked for, fed, paid, and asked for again."""

from __future__ import annotations

from typing import Any

import pytest

from nun import messages as m
from nun.client.request import Grant
from nun.client.watches import NOWHERE, WatchState
from nun.codec import pack
from nun.errors import (
    ConnectionLost,
    NoSuchDatabase,
    Overloaded,
    PermissionDenied,
)
from tests.support.session_shell import Shell, greeted, selected, watch_of


@pytest.fixture
def shell() -> Shell:
    return greeted()


@pytest.fixture
def grant(shell: Shell) -> Grant:
    return selected(shell)


def start(shell: Shell, watch: WatchState, number: int = 31, seq: int = 40) -> Any:
    """Has the watch asked for and served; returns what asked for it."""
    shell.session.watch(watch, shell.now)
    [message] = shell.sent()
    assert message[0] == m.WATCH
    shell.reply(message, number, [1, 1, 1, seq])
    return message


def event(key: bytes, seq: int) -> list[Any]:
    return [m.EVENT_SET, key, b"v", 1, seq * 10, seq]


def test_a_watch_is_asked_for_and_fed(shell: Shell, grant: Grant) -> None:
    watch = watch_of(grant, "user:*")
    message = start(shell, watch)
    assert message[3:] == [5, m.WATCH_PREFIX, b"user:", None, 1000]
    assert watch.begun
    shell.come(m.EVENTS, 31, pack([[1, 1, 1], [event(b"user:1", 41)]]))
    shell.come(m.EVENTS, 99, pack([[1, 1, 1], [event(b"user:2", 42)]]))
    assert watch in shell.session.finished
    taken = watch.take()
    assert taken is not None
    assert taken.key == "user:1"
    assert watch.take() is None


def test_a_watch_goes_on_where_it_was_after_a_lost_link(shell: Shell, grant: Grant) -> None:
    watch = watch_of(grant)
    start(shell, watch)
    shell.come(m.EVENTS, 31, pack([[1, 1, 1], [event(b"a", 41), event(b"a", 42)]]))
    watch.take()
    watch.take()
    shell.session.broken(shell.now, "gone")
    assert watch.number is None
    shell.greet_again()
    [use] = shell.sent()
    shell.reply(use, [6, {}])
    [message] = shell.sent()
    assert message[3:] == [6, m.WATCH_KEY, b"a", [1, 1, 1, 42], 1000]


def test_a_watch_that_had_a_part_of_an_entry_which_is_gone_is_asked_for_anew(
    shell: Shell, grant: Grant
) -> None:
    watch = watch_of(grant)
    start(shell, watch)
    shell.come(m.EVENTS, 31, pack([[1, 1, 1], [event(b"a", 41), event(b"a", 41)]]))
    watch.take()
    shell.session.broken(shell.now, "gone")
    shell.greet_again()
    shell.reply(shell.sent()[0], [6, {}])
    [message] = shell.sent()
    assert message[6] == [1, 1, 1, 40]
    shell.reply(message, 32, [2, 1, 1, 50])
    shell.come(m.EVENTS, 32, pack([[2, 1, 1], [event(b"a", 45)]]))
    [unwatch] = shell.sent()
    shell.pass_time(0.1)
    [again] = shell.sent()
    assert (unwatch[0], unwatch[3]) == (m.UNWATCH, 32)
    assert again[6] == list(NOWHERE)
    assert watch.take() is None


def test_a_watch_that_is_refused_ends(shell: Shell, grant: Grant) -> None:
    watch = watch_of(grant)
    shell.session.watch(watch, shell.now)
    [message] = shell.sent()
    shell.refuse(message, PermissionDenied("no"))
    assert isinstance(watch.error, PermissionDenied)


def test_a_watch_that_was_live_survives_a_node_that_is_overloaded(
    shell: Shell, grant: Grant
) -> None:
    watch = watch_of(grant)
    start(shell, watch)
    shell.session.broken(shell.now, "gone")
    shell.greet_again()
    [use] = shell.sent()
    shell.reply(use, [5, {}])
    [message] = shell.sent()
    shell.refuse(message, Overloaded("watches_max", retry_after_ms=3000))
    assert watch.error is None
    shell.pass_time(2.9)
    assert shell.sent() == []
    assert shell.session.wakeup() == pytest.approx(shell.now + 0.1)
    shell.pass_time(0.2)
    assert [message[0] for message in shell.sent()] == [m.WATCH]


def test_a_watch_that_is_not_served_in_time_ends(shell: Shell, grant: Grant) -> None:
    watch = watch_of(grant)
    watch.deadline = shell.now + 1
    shell.session.watch(watch, shell.now)
    shell.pass_time(1.0)
    assert isinstance(watch.error, ConnectionLost)


def test_a_watch_that_the_node_ends_says_why(shell: Shell, grant: Grant) -> None:
    watch = watch_of(grant)
    start(shell, watch)
    shell.come(m.WATCH_ENDED, 31, NoSuchDatabase.code, "dropped", {"database": "shop"})
    assert isinstance(watch.error, NoSuchDatabase)
    assert watch.error.fields == {"database": "shop"}
    shell.come(m.WATCH_ENDED, 31, NoSuchDatabase.code, "dropped", {})


def test_a_watch_is_closed_at_the_node_too(shell: Shell, grant: Grant) -> None:
    watch = watch_of(grant)
    start(shell, watch)
    shell.session.unwatch(watch, shell.now)
    [message] = shell.sent()
    assert (message[0], message[3]) == (m.UNWATCH, 31)
    shell.reply(message, True)


def test_a_watch_that_is_closed_before_it_is_served_is_closed_when_it_is(
    shell: Shell, grant: Grant
) -> None:
    watch = watch_of(grant)
    shell.session.watch(watch, shell.now)
    shell.session.unwatch(watch, shell.now)
    [message] = shell.sent()
    shell.reply(message, 31, [1, 1, 1, 40])
    assert [message[0] for message in shell.sent()] == [m.UNWATCH]


def test_credit_is_returned_to_the_stream_that_it_came_from(shell: Shell, grant: Grant) -> None:
    watch = watch_of(grant)
    start(shell, watch)
    body = pack([[1, 1, 1], [event(b"a", 41)]])
    shell.come(m.EVENTS, 31, body)
    watch.take()
    assert watch.take() is None
    owed = watch.take_owed()
    assert owed[0] == len(body)
    shell.session.give_credit(watch, owed)
    assert shell.sent() == [[m.CREDIT, 1000, 0, 31, len(body)]]
    shell.session.broken(shell.now, "gone")
    shell.session.give_credit(watch, owed)
    assert shell.sent() == []


def test_a_copy_that_was_cut_off_is_asked_for_anew(shell: Shell, grant: Grant) -> None:
    watch = watch_of(grant)
    start(shell, watch)
    compacted = [m.EVENT_COMPACTED, None, None, 0, 0, 50]
    shell.come(m.EVENTS, 31, pack([[1, 1, 1], [compacted, event(b"a", 50)]]))
    assert [watch.take().kind, watch.take().kind] == ["compacted", "set"]  # type: ignore[union-attr]
    shell.session.broken(shell.now, "gone")
    shell.greet_again()
    shell.reply(shell.sent()[0], [5, {}])
    assert shell.sent()[0][6] == list(NOWHERE)


def test_a_slow_selection_does_not_make_the_session_spin(shell: Shell) -> None:
    watch = watch_of(Grant("shop", None, "t"))
    watch.deadline = shell.now + 5
    shell.session.watch(watch, shell.now)
    shell.sent()
    assert shell.session.wakeup() > shell.now + 0.5
