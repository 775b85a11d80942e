"""The pure session: every rule of the protocol's client side, with time passed in by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nun import messages as m
from nun.client import operations as ops
from nun.client.request import Grant
from nun.client.session import GREETING_PATIENCE_S, PARKED_MAX, RECEIPT_BYTES, Session
from nun.client.undecided import HELD_BACK_MAX
from nun.codec import pack, unpack
from nun.core import record
from nun.errors import (
    AuthError,
    BadRequest,
    ConnectionLost,
    LevelNotReached,
    NoSuchDatabase,
    OutcomeExpired,
    Overloaded,
    SessionUnknown,
    UnknownOutcome,
    VersionConflict,
)
from tests.support.session_shell import Shell, get, greeted, put, selected, watch_of

RECORD = record.live(3, 99, b"mary")


@pytest.fixture
def shell() -> Shell:
    return greeted()


@pytest.fixture
def grant(shell: Shell) -> Grant:
    return selected(shell)


# Greeting


def test_hello_carries_version_client_and_credentials() -> None:
    session = Session(("tcp://a",), b"me", "nun", "pwd")
    session.opened(1.0)
    [(frame, request)] = session.outbox
    assert request is None
    assert unpack(frame) == [m.HELLO, m.PROTOCOL_VERSION, 1, b"me", None, b"nun", b"pwd"]


def test_what_is_asked_before_the_greeting_gets_its_number_from_the_node() -> None:
    shell = Shell()
    request = shell.begin(ops.status())
    shell.greet(next_number=500)
    [message] = shell.sent()
    assert message[:3] == [m.STATUS, 1000, 500]
    shell.reply(message, {b"node": b"n1"})
    assert request.answer() == {"node": "n1"}


def test_a_second_greeting_says_when_this_client_was_born(shell: Shell) -> None:
    shell.session.broken(shell.now, "gone")
    assert shell.greet_again()[4] == 7


def test_a_refused_greeting_ends_all_that_waits() -> None:
    shell = Shell()
    request = shell.begin(ops.status())
    shell.refuse(shell.open(), AuthError("wrong password"))
    with pytest.raises(AuthError, match="wrong password"):
        request.answer()
    assert shell.session.finished == [request]


def test_a_node_that_takes_no_session_now_is_asked_again_after_the_time_it_named() -> None:
    shell = Shell()
    request = shell.begin(ops.status(), timeout=60)
    shell.refuse(shell.open(), Overloaded("full", retry_after_ms=5000))
    assert not request.done
    shell.pass_time(4.9)
    assert not shell.session.wants_link
    shell.pass_time(0.2)
    shell.greet()
    assert [message[0] for message in shell.sent()] == [m.STATUS]


def test_a_node_that_does_not_answer_is_given_up_for_the_next() -> None:
    shell = Shell(("tcp://a", "tcp://b"))
    shell.begin(ops.status(), timeout=60)
    shell.open()
    assert shell.session.wakeup() == shell.now + GREETING_PATIENCE_S / 3
    shell.pass_time(GREETING_PATIENCE_S / 3)
    assert shell.session.address == "tcp://b"
    assert not shell.session.wants_link
    shell.pass_time(0.05)
    shell.greet()
    assert [message[0] for message in shell.sent()] == [m.STATUS]


def test_attempts_that_fail_come_further_and_further_apart() -> None:
    shell = Shell()
    shell.begin(ops.status(), timeout=600)
    pauses = []
    for _ in range(7):
        shell.open()
        shell.session.broken(shell.now, "refused")
        pauses.append(shell.session.wakeup() - shell.now)
        shell.pass_time(pauses[-1])
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_a_session_that_lived_is_replaced_at_once(shell: Shell) -> None:
    shell.pass_time(2.0)
    shell.session.broken(shell.now, "gone")
    assert shell.session.wants_link


def test_a_late_or_foreign_answer_is_ignored(shell: Shell) -> None:
    shell.come(0, 12345, None, None, 0)
    shell.come(m.PROBE)
    assert shell.session.finished == []
    assert shell.session.token is not None


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        pack(1),
        pack([]),
        pack(["x"]),
        pack([0, 1]),
        pack([m.EVENTS]),
        pack([6, 2, 3, 0, 0]),
    ],
)
def test_what_is_no_message_ends_the_link(shell: Shell, frame: bytes) -> None:
    shell.begin(ops.status())
    [message] = shell.sent()
    assert message[2] == 2
    shell.session.receive(frame, shell.now)
    assert shell.session.token is None
    assert "no message" in shell.session.trouble


def test_whatever_a_node_sends_the_session_stands_or_starts_anew() -> None:
    """Random bytes, and messages of every kind with parts of wrong types, left out or added."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    parts: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        2,
        3,
        2**64 - 1,
        0.5,
        b"",
        b"x" * 9,
        "a",
        [],
        {},
        [b"a", {}],
    ]
    kinds = [*range(15), m.PROBE, m.EVENTS, m.RECEIPT, m.WATCH_ENDED]
    for _ in range(300):
        shell = Shell()
        shell.greet()
        grant = Grant("shop", None, "t")
        watch = watch_of(grant)
        shell.session.watch(watch, shell.now)
        requests = [shell.begin(get(grant)), shell.begin(put(grant)), shell.begin(ops.status())]
        for _ in range(20):
            shell.sent()
            if chance.random() < 0.3:
                frame = chance.randbytes(chance.randrange(40))
            else:
                size = chance.randrange(1, 8)
                frame = pack([chance.choice(kinds), *chance.choices(parts, k=size)])
            shell.session.receive(frame, shell.now)
            shell.pass_time(chance.random())
            if shell.session.wants_link:
                shell.greet()
        shell.pass_time(60)
        assert all(request.done for request in requests)


# Databases


def test_requests_wait_for_their_database_and_go_out_in_order(shell: Shell) -> None:
    grant = Grant("shop", None, "t")
    requests = [shell.begin(get(grant, key)) for key in "abc"]
    [use] = shell.sent()
    shell.reply(use, [9, {}])
    messages = shell.sent()
    assert [(message[0], message[3], message[4]) for message in messages] == [
        (m.GET, 9, b"a"),
        (m.GET, 9, b"b"),
        (m.GET, 9, b"c"),
    ]
    shell.reply(messages[0], RECORD)
    assert requests[0].answer().value == "mary"


def test_a_database_that_is_refused_refuses_what_waits_for_it(shell: Shell) -> None:
    grant = Grant("shop", None, "t")
    request = shell.begin(get(grant))
    watch = watch_of(grant)
    shell.session.watch(watch, shell.now)
    [use] = shell.sent()
    shell.refuse(use, NoSuchDatabase("there is no database 'shop'", database="shop"))
    with pytest.raises(NoSuchDatabase):
        request.answer()
    assert isinstance(watch.error, NoSuchDatabase)


def test_a_database_that_was_dropped_is_told_by_its_name(shell: Shell, grant: Grant) -> None:
    request = shell.begin(get(grant))
    [message] = shell.sent()
    dropped = NoSuchDatabase(f"database number {grant.number} was dropped", database=grant.number)
    shell.refuse(message, dropped)
    with pytest.raises(NoSuchDatabase, match="database 'shop' was dropped") as caught:
        request.answer()
    assert caught.value.fields == {"database": "shop"}


def test_a_selection_that_was_taken_away_is_made_again(shell: Shell, grant: Grant) -> None:
    request = shell.begin(get(grant))
    [message] = shell.sent()
    shell.refuse(message, AuthError("not selected"))
    with pytest.raises(AuthError):
        request.answer()
    shell.begin(get(grant))
    assert [message[0] for message in shell.sent()] == [m.USE]


# Requests


def test_a_write_carries_the_least_number_without_an_answer(shell: Shell, grant: Grant) -> None:
    first = shell.begin(put(grant))
    second = shell.begin(put(grant))
    messages = shell.sent()
    assert [message[3] for message in messages] == [first.number, first.number]
    shell.reply(messages[1], 1, [1, 1, 1, 2], 5)
    shell.begin(put(grant))
    [message] = shell.sent()
    assert message[3] == first.number
    shell.reply(messages[0], 1, [1, 1, 1, 2], 5)
    shell.reply(message, 1, [1, 1, 1, 2], 5)
    last = shell.begin(put(grant))
    assert shell.sent()[0][3] == last.number
    assert second.answer().version == 1


def test_a_request_that_cannot_be_encoded_ends_by_itself(shell: Shell, grant: Grant) -> None:
    request = shell.begin(get(grant, "\ud800"))
    with pytest.raises(BadRequest, match="cannot be encoded"):
        request.answer()
    assert shell.session.in_flight == {}


def test_a_refusal_carries_the_current_entry(shell: Shell, grant: Grant) -> None:
    request = shell.begin(put(grant))
    [message] = shell.sent()
    shell.refuse(message, VersionConflict("no", key=b"a", current=RECORD))
    with pytest.raises(VersionConflict) as caught:
        request.answer()
    assert caught.value.key == "a"
    assert (caught.value.current.key, caught.value.current.value) == ("a", "mary")


def test_what_is_in_flight_is_sent_again_in_order_after_a_lost_link(
    shell: Shell, grant: Grant
) -> None:
    requests = [shell.begin(put(grant, key)) for key in "abc"]
    status = shell.begin(ops.status())
    shell.sent()
    shell.session.broken(shell.now, "gone")
    shell.greet_again()
    use, again = shell.sent()
    assert (again[0], again[2]) == (m.STATUS, status.number)
    shell.reply(use, [8, {}])
    messages = shell.sent()
    assert [message[1] for message in messages] == [2000] * 3
    assert [message[2] for message in messages] == [request.number for request in requests]
    assert [message[4] for message in messages] == [8] * 3
    for message in messages:
        shell.reply(message, 1, [1, 1, 1, 2], 5)
    assert [request.answer().version for request in requests] == [1, 1, 1]


def test_an_unknown_session_is_made_anew_and_loses_nothing(shell: Shell, grant: Grant) -> None:
    request = shell.begin(put(grant))
    [message] = shell.sent()
    shell.refuse(message, SessionUnknown("who are you?"))
    assert not request.done
    shell.greet_again()
    [use] = shell.sent()
    shell.reply(use, [5, {}])
    [again] = shell.sent()
    assert again[2] == message[2]


def test_a_request_without_an_answer_is_sent_again_and_again(shell: Shell, grant: Grant) -> None:
    request = shell.begin(put(grant), timeout=60)
    shell.sent()
    began = shell.now
    times: list[float] = []
    while len(times) < 3:
        shell.pass_time(0.125)
        shell.come(m.PROBE)
        messages = shell.sent()
        if messages:
            assert [message[0] for message in messages] == [m.SET, m.PING]
            assert messages[0][2] == request.number
            times.append(shell.now - began)
    assert times == [1.0, 3.0, 7.0]


def test_snapshots_are_not_asked_for_twice(shell: Shell) -> None:
    shell.begin(ops.snapshot(None, False), timeout=60)
    shell.sent()
    for _ in range(50):
        shell.pass_time(0.5)
        shell.come(m.PROBE)
    assert shell.sent() == []


def test_a_node_that_has_gone_silent_is_given_up(shell: Shell, grant: Grant) -> None:
    shell.begin(get(grant), timeout=60)
    shell.sent()
    for _ in range(40):
        shell.pass_time(0.1)
    assert shell.session.token is None
    assert "silent" in shell.session.trouble


def test_a_read_that_times_out_is_lost(shell: Shell, grant: Grant) -> None:
    request = shell.begin(get(grant), timeout=0.5)
    shell.sent()
    assert shell.session.wakeup() == shell.now + 0.5
    shell.pass_time(0.5)
    with pytest.raises(ConnectionLost):
        request.answer()
    assert shell.session.in_flight == {}


def test_a_write_that_was_never_sent_is_lost_and_no_more() -> None:
    shell = Shell()
    request = shell.begin(put(Grant("shop", None, "t")), timeout=0.5)
    shell.pass_time(0.5)
    with pytest.raises(ConnectionLost):
        request.answer()


def test_a_write_that_times_out_is_unknown_and_can_be_asked_about(
    shell: Shell, grant: Grant
) -> None:
    request = shell.begin(put(grant), timeout=0.5)
    [message] = shell.sent()
    shell.pass_time(0.5)
    with pytest.raises(UnknownOutcome) as caught:
        request.answer(lambda timeout: f"asked again {timeout}")
    assert caught.value.reason == "timeout"
    assert caught.value.retry(3) == "asked again 3"
    # It keeps the floor down, and is not sent again by itself.
    later = shell.begin(put(grant))
    assert shell.sent()[0][3] == request.number
    shell.session.broken(shell.now, "gone")
    shell.greet_again()
    shell.reply(shell.sent()[0], [5, {}])
    assert [message[2] for message in shell.sent()] == [later.number]
    request.deadline = shell.now + 10
    shell.session.retry(request, shell.now)
    [again] = shell.sent()
    assert again[2:] == [*message[2:4], 5, *message[5:]]
    shell.reply(again, 4, [1, 1, 1, 9], 77)
    assert request.answer().op_id == 77


def test_the_floor_stays_at_a_local_write_whose_result_lives(shell: Shell, grant: Grant) -> None:
    def write(ack: tuple[int, int] | None, position: Any) -> tuple[Any, Any]:
        request = put(grant)
        request.ack = ack
        shell.begin(request)
        [message] = shell.sent()
        shell.reply(message, 1, position, 77)
        shell.session.finished.clear()
        return message, request.hold

    local, hold = write((m.ACK_LOCAL, 100), None)
    message, none = write(None, [1, 1, 1, 9])
    assert (message[3], none) == (local[2], None)
    assert write(None, [1, 1, 1, 10])[0][3] == local[2]
    del hold
    message, _ = write(None, [1, 1, 1, 11])
    assert message[3] == message[2], "nobody can ask any more"
    old, hold = write((m.ACK_LOCAL, 100), None)
    for _ in range(HELD_BACK_MAX):
        message, _ = write(None, [1, 1, 1, 12])
        assert message[3] == old[2]
    message, _ = write(None, [1, 1, 1, 12])
    assert message[3] == message[2], "it is held back so far and no further"
    assert hold is not None


def test_asked_again_the_node_is_as_patient_as_the_caller_is_now(
    shell: Shell, grant: Grant
) -> None:
    request = put(grant)
    request.ack = (m.ACK_ALL, 450)
    shell.begin(request, timeout=0.5)
    assert shell.sent()[0][3][1:] == [m.ACK_ALL, 450]
    shell.pass_time(0.5)
    request.deadline = shell.now + 20
    shell.session.retry(request, shell.now)
    [again] = shell.sent()
    assert again[3][1:] == [m.ACK_ALL, 18_000]
    told = LevelNotReached("not in time", level=m.ACK_ALL, reached=1, result=4)
    shell.refuse(again, told)
    assert not request.done, "it answers what was asked before"
    shell.pass_time(18)
    shell.refuse(again, told)
    assert (request.done, request.unknown) == (True, "level")


def test_a_late_answer_settles_an_unknown_outcome(shell: Shell, grant: Grant) -> None:
    request = shell.begin(put(grant), timeout=0.5)
    [message] = shell.sent()
    shell.pass_time(0.5)
    shell.reply(message, 4, [1, 1, 1, 9], 77)
    shell.session.retry(request, shell.now)
    assert shell.sent() == []
    assert request.answer().version == 4


def test_only_so_many_unknown_outcomes_are_kept(shell: Shell, grant: Grant) -> None:
    requests = [shell.begin(put(grant), timeout=0.5) for _ in range(PARKED_MAX + 3)]
    shell.sent()
    shell.pass_time(0.5)
    assert len(shell.session.in_flight) == PARKED_MAX
    assert next(iter(shell.session.in_flight)) == requests[3].number
    # Asked again, the node says that it has forgotten.
    requests[0].deadline = shell.now + 10
    shell.session.retry(requests[0], shell.now)
    [message] = shell.sent()
    assert message[3] == message[2] == requests[0].number
    shell.refuse(message, OutcomeExpired("forgotten"))
    with pytest.raises(UnknownOutcome) as caught:
        requests[0].answer(lambda _: None)
    assert caught.value.reason == "expired"
    with pytest.raises(UnknownOutcome):
        caught.value.retry()


def test_a_write_under_way_when_the_session_is_refused_is_unknown(
    shell: Shell, grant: Grant
) -> None:
    write, read = shell.begin(put(grant)), shell.begin(get(grant))
    shell.sent()
    shell.session.broken(shell.now, "gone")
    shell.pass_time(1.0)
    shell.refuse(shell.open(), AuthError("the password was changed"))
    with pytest.raises(UnknownOutcome) as caught:
        write.answer()
    assert caught.value.reason == "lost"
    with pytest.raises(AuthError):
        read.answer()


def test_a_request_that_nobody_waits_for_is_forgotten(shell: Shell, grant: Grant) -> None:
    request = shell.begin(put(grant))
    shell.session.forget(request)
    assert shell.sent() == []
    assert shell.session.in_flight == {}
    early = Shell()
    request = early.begin(ops.status())
    early.session.forget(request)
    early.greet()
    assert early.sent() == []


def test_receipts_are_shown_for_so_many_bytes_at_a_time(shell: Shell, grant: Grant) -> None:
    for _ in range(3):
        shell.begin(get(grant))
    messages = shell.sent()
    large = record.live(1, 1, bytes(RECEIPT_BYTES // 2))
    for receipt, message in enumerate(messages):
        shell.come(m.RECEIPT, 0, message[2], large, None, 0, 40 + receipt)
    assert shell.sent() == [[m.PING, 1000, 0, 41]]
    assert len(shell.session.finished) >= 3


def test_closing_ends_everything_and_says_goodbye(shell: Shell, grant: Grant) -> None:
    write, read = shell.begin(put(grant)), shell.begin(get(grant))
    unsent = put(grant)
    watch = watch_of(grant)
    shell.session.watch(watch, shell.now)
    shell.sent()
    shell.begin(unsent)
    assert unpack(shell.session.close() or b"") == [m.BYE, 1000, 0]
    with pytest.raises(UnknownOutcome):
        write.answer()
    for request in (read, unsent):
        with pytest.raises(ConnectionLost):
            request.answer()
    assert isinstance(watch.error, ConnectionLost)
    shell.session.broken(shell.now, "gone")
    shell.session.tick(shell.now)
    assert not shell.session.wants_link
    assert Session(("tcp://a",), b"me", None, None).close() is None


def test_a_request_given_up_by_its_shell_says_what_can_be_known(grant: Grant) -> None:
    write = put(grant)
    write.give_up("closed")
    with pytest.raises(ConnectionLost, match="closed"):
        write.answer()
    write = put(grant)
    write.sent = True
    write.give_up("closed")
    with pytest.raises(UnknownOutcome):
        write.answer()
