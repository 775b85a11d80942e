"""Writes that were sent before: what a refusal says of them, and how long a client goes on asking."""

from __future__ import annotations

from typing import Any

import pytest

from nun.client.request import Grant, Request
from nun.errors import (
    NoPrimary,
    NoSuchDatabase,
    Overloaded,
    PermissionDenied,
    ReadOnly,
    RequestError,
    UnknownOutcome,
)
from tests.support.session_shell import Shell, greeted, put, selected


@pytest.fixture
def shell() -> Shell:
    return greeted()


@pytest.fixture
def grant(shell: Shell) -> Grant:
    return selected(shell)


def sent_twice(shell: Shell, grant: Grant, timeout: float = 10.0) -> tuple[Request, Any]:
    """A write that was sent, and sent again on another link; its message there."""
    request = shell.begin(put(grant), timeout)
    shell.sent()
    shell.session.broken(shell.now, "gone")
    shell.greet_again()
    [use] = shell.sent()
    shell.reply(use, [8, {}])
    [again] = shell.sent()
    return request, again


@pytest.mark.parametrize(
    "error", [Overloaded("later", limit="oplog_bytes", retry_after_ms=700), ReadOnly("full")]
)
def test_a_write_that_may_have_been_taken_is_not_refused_by_a_node_that_takes_none_now(
    shell: Shell, grant: Grant, error: RequestError
) -> None:
    request, again = sent_twice(shell, grant)
    pause = error.fields.get("retry_after_ms", 50) / 1_000
    for _ in range(3):
        shell.refuse(again, error)
        assert not request.done
        shell.pass_time(pause * 0.9)
        assert shell.sent() == []
        shell.pass_time(pause * 0.2)
        again = shell.sent()[0]
        assert again[2] == request.number
    shell.reply(again, 1, [1, 1, 1, 2], 5)
    assert request.answer().version == 1


def test_a_write_that_may_have_been_taken_is_unknown_in_the_end(shell: Shell, grant: Grant) -> None:
    request, again = sent_twice(shell, grant, 1.0)
    shell.refuse(again, Overloaded("later", retry_after_ms=60_000))
    shell.pass_time(1.0)
    with pytest.raises(UnknownOutcome) as caught:
        request.answer()
    assert caught.value.reason == "timeout"
    shell.refuse(again, Overloaded("later still"))
    assert request.unknown == "timeout"


@pytest.mark.parametrize("error", [NoSuchDatabase("dropped"), PermissionDenied("no more")])
def test_a_refusal_that_no_node_remembers_says_nothing_of_an_earlier_try(
    shell: Shell, grant: Grant, error: RequestError
) -> None:
    request, again = sent_twice(shell, grant)
    shell.refuse(again, error)
    with pytest.raises(UnknownOutcome) as caught:
        request.answer()
    assert caught.value.reason == "lost"


def test_a_write_that_was_sent_once_is_refused_at_once(shell: Shell, grant: Grant) -> None:
    request = shell.begin(put(grant))
    [message] = shell.sent()
    shell.refuse(message, Overloaded("later", retry_after_ms=700))
    with pytest.raises(Overloaded):
        request.answer()


def test_a_primary_may_be_away_for_long(shell: Shell, grant: Grant) -> None:
    request = shell.begin(put(grant), timeout=1_000)
    [message] = shell.sent()
    for _ in range(1_500):
        shell.refuse(message, NoPrimary("none", retry_after_ms=50))
        shell.pass_time(0.06)
        message = shell.sent()[0]
    shell.reply(message, 1, [1, 1, 1, 2], 5)
    assert request.answer().version == 1
