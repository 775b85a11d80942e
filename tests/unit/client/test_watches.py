"""What a watch gives out: once, in order, whatever the link does; and where another one can go on."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nun import messages as m
from nun.client.request import Grant
from nun.client.values import decoding_named
from nun.client.watches import NOWHERE, WatchState, position_of, scope_of
from nun.codec import pack
from nun.errors import BadRequest, WireError
from nun.limits import EVENTS_BYTES_MAX, WATCH_CREDIT_BYTES_MAX
from nun.position import Position

GRANT = Grant("shop", None, "t")


def state(since: Any = None, decode: str | None = "utf-8") -> WatchState:
    return WatchState(GRANT, "*", since, 10_000, decoding_named(decode))


def change(seq: int, key: str = "k", value: bytes | None = b"v") -> list[Any]:
    kind = m.EVENT_SET if value is not None else m.EVENT_REMOVED
    return [kind, key.encode(), value, 1, seq, seq]


def told(kind: int, seq: int) -> list[Any]:
    return [kind, None, None, 0, 0, seq]


def feed(watch: WatchState, *events: list[Any]) -> None:
    watch.feed(pack([[1, 1, 1], list(events)]))


def at(seq: int) -> Position:
    return Position(1, 1, 1, seq)


def drain(watch: WatchState) -> list[tuple[str, Any, int]]:
    taken = []
    while (event := watch.take()) is not None:
        taken.append((event.kind, event.key, event.position.seq))
    return taken


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("user:*", (m.WATCH_PREFIX, "user:")),
        (b"user:*", (m.WATCH_PREFIX, b"user:")),
        ("*", (m.WATCH_ALL, "")),
        ("", (m.WATCH_ALL, "")),
        ("name", (m.WATCH_KEY, "name")),
        ("*name", (m.WATCH_KEY, "*name")),
    ],
)
def test_what_a_pattern_watches(pattern: Any, expected: Any) -> None:
    assert scope_of(pattern) == expected


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="str or bytes"):
        scope_of(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Position"):
        position_of(5)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="not a position"):
        position_of("yesterday")
    assert position_of("1.1.3:42") == Position(1, 1, 3, 42)
    for credit in (0, WATCH_CREDIT_BYTES_MAX + 1):
        with pytest.raises(BadRequest, match="credit"):
            WatchState(GRANT, "*", None, credit, decoding_named(None))
    with pytest.raises(TypeError, match="credit"):
        WatchState(GRANT, "*", None, 1.5, decoding_named(None))  # type: ignore[arg-type]


def test_events_come_out_decoded_and_in_order() -> None:
    watch = state(decode="json")
    feed(watch, change(5, "a", b"[1]"), change(5, "b", None), change(6, "a", b"2"))
    events = [watch.take() for _ in range(3)]
    assert [(event.kind, event.key, event.value) for event in events if event] == [
        ("set", "a", [1]),
        ("removed", "b", None),
        ("set", "a", 2),
    ]
    assert watch.take() is None


def test_the_position_moves_on_by_whole_entries() -> None:
    watch = state()
    watch.started(1, at(4))
    assert watch.position == at(4)
    feed(watch, change(5, "a"), change(5, "b"), change(6, "c"))
    watch.take()
    assert watch.position == at(4)
    watch.take()
    assert watch.position == at(5)
    watch.take()
    assert watch.position == at(6)


def test_an_entry_that_filled_its_message_may_go_on_in_the_next() -> None:
    watch = state()
    watch.started(1, at(4))
    feed(watch, change(5, "a", bytes(EVENTS_BYTES_MAX // 2)))
    watch.take()
    assert watch.position == at(4)
    watch.take()
    assert watch.position == at(4)
    feed(watch, change(5, "b"))
    watch.take()
    assert watch.position == at(5)


def test_what_is_not_given_out_when_the_link_breaks_comes_again_once() -> None:
    watch = state()
    watch.started(1, at(4))
    feed(watch, change(5, "a"), change(5, "b"), change(5, "c"), change(6, "d"))
    feed(watch, change(7, "e"))
    assert [watch.take().key, watch.take().key] == ["a", "b"]  # type: ignore[union-attr]
    watch.stopped()
    assert watch.take() is None
    assert watch.resume_from() == at(4)
    watch.started(9, at(7))
    feed(watch, change(5, "a"))
    feed(watch, change(5, "b"), change(5, "c"), change(6, "d"))
    feed(watch, change(7, "e"))
    assert drain(watch) == [("set", "c", 5), ("set", "d", 6), ("set", "e", 7)]
    assert watch.resume_from() == at(7)


def test_a_part_of_an_entry_that_is_gone_is_not_counted_for_another() -> None:
    watch = state()
    watch.started(1, at(4))
    feed(watch, change(5, "a"), change(5, "b"))
    watch.take()
    watch.stopped()
    assert watch.resume_from() == at(4)
    watch.started(2, at(6))
    other = change(5, "c")
    assert not watch.feed(pack([[2, 1, 1], [other, change(6, "d")]]))
    assert watch.resume_from() == NOWHERE
    watch.stopped()
    watch.started(3, at(6))
    assert watch.feed(pack([[2, 1, 1], [told(m.EVENT_COMPACTED, 6), told(m.EVENT_CURRENT, 6)]]))
    assert [event[0] for event in drain(watch)] == ["compacted", "current"]


def test_a_node_that_has_not_got_the_entry_any_more_may_tell_the_state() -> None:
    watch = state()
    watch.started(1, at(4))
    feed(watch, change(5, "a"), change(5, "b"))
    watch.take()
    watch.stopped()
    watch.started(2, at(4))
    feed(watch, told(m.EVENT_COMPACTED, 4), change(4, "z"), told(m.EVENT_CURRENT, 4))
    assert [event[0] for event in drain(watch)] == ["compacted", "set", "current"]


def test_the_state_is_told_whole_or_again() -> None:
    watch = state(since=at(2))
    watch.started(1, at(50))
    feed(watch, told(m.EVENT_COMPACTED, 50), change(50, "a"), change(50, "b"))
    feed(watch, told(m.EVENT_CURRENT, 50), change(51, "a"))
    assert [event[0] for event in drain(watch)] == ["compacted", "set", "set", "current", "set"]
    assert watch.position == at(51)

    watch = state(since=at(2))
    feed(watch, told(m.EVENT_COMPACTED, 50), change(50, "a"))
    drain(watch)
    assert watch.position == NOWHERE
    watch.stopped()
    assert watch.resume_from() == NOWHERE
    feed(watch, told(m.EVENT_COMPACTED, 60), change(60, "a"), told(m.EVENT_CURRENT, 60))
    assert [event[0] for event in drain(watch)] == ["compacted", "set", "current"]
    assert watch.position == at(60)


def test_a_history_that_went_back_is_taken_after_compacted() -> None:
    watch = state()
    watch.started(1, at(90))
    feed(watch, change(91))
    drain(watch)
    feed(watch, told(m.EVENT_COMPACTED, 20), told(m.EVENT_CURRENT, 20), change(21))
    assert [event[2] for event in drain(watch)] == [20, 20, 21]


@pytest.mark.parametrize(
    "body", [b"\xc1", pack(5), pack([[1, 1], []]), pack([[1, 1, 1], [[1, 2]]])]
)
def test_what_is_no_message_of_events_is_said(body: bytes) -> None:
    watch = state()
    watch.feed(body)
    with pytest.raises(WireError):
        watch.take()


def test_a_value_that_cannot_be_shown_is_said_and_stands_in_nobodys_way() -> None:
    watch = state()
    feed(watch, change(5, "a", b"\xff"), change(6, "b"))
    with pytest.raises(ValueError, match="decode=None"):
        watch.take()
    assert drain(watch) == [("set", "b", 6)]


def test_no_event_is_lost_or_repeated_wherever_links_break(monkeypatch: Any) -> None:
    """Entries of one to four events, cut into messages anywhere, the link broken at any event."""
    monkeypatch.setattr("nun.client.watches.EVENTS_BYTES_MAX", 0)  # any message may end in an entry
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(200):
        log = [
            [change(seq, f"{seq}.{i}") for i in range(chance.randint(1, 4))] for seq in range(1, 12)
        ]
        expected = [event[1].decode() for entry in log for event in entry]
        watch = state(since=at(0))
        taken: list[str] = []
        while len(taken) < len(expected):
            start = watch.resume_from()
            assert start is not None
            events = [event for entry in log[start.seq :] for event in entry]
            watch.started(1, at(11))
            while events:
                size = chance.randint(1, 5)
                feed(watch, *events[:size])
                del events[:size]
            for _ in range(chance.randint(0, 12)):
                event = watch.take()
                if event is not None:
                    taken.append(event.key)
            watch.stopped()
        assert taken == expected
