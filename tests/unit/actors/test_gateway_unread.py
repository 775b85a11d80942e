"""What slow readers hold together is bounded, whatever each of them has asked for."""

from __future__ import annotations

from typing import Any

import pytest

from actors.gateway_unread import Unread
from nun.limits import MIB


class Slow:
    transport_name = "tcp"

    def __init__(self, size: int) -> None:
        self.size = size
        self.dropped = False

    def unread(self) -> int:
        return self.size

    def drop(self) -> None:
        self.dropped = True


class Log:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields))


@pytest.fixture
def log() -> Log:
    return Log()


def test_notices_beyond_the_bound_of_one_cut_it_off(log: Log) -> None:
    unread = Unread(log, 16 * MIB, 100 * MIB)
    asks, watches = Slow(20 * MIB), Slow(20 * MIB)
    unread.wrote(asks, asked=True)
    unread.wrote(watches, asked=False)
    assert (asks.dropped, watches.dropped) == (False, True)
    assert log.said == [("slow_reader_dropped", {"transport": "tcp", "unread": 20 * MIB})]


def test_beyond_the_bound_of_all_who_has_most_goes(log: Log) -> None:
    unread = Unread(log, 16 * MIB, 100 * MIB)
    readers = [Slow(size * MIB) for size in (30, 40, 20)]
    for reader in readers:
        unread.wrote(reader, asked=True)
    assert not log.said
    readers[2].size = 31 * MIB
    unread.wrote(readers[2], asked=True)
    assert [reader.dropped for reader in readers] == [False, True, False]
    more = Slow(39 * MIB)
    unread.wrote(more, asked=True)
    assert not more.dropped, "what was cut off counts no more"


def test_who_has_caught_up_counts_no_more(log: Log) -> None:
    unread = Unread(log, 16 * MIB, 100 * MIB)
    quick = [Slow(60 * MIB) for _ in range(5)]
    for reader in quick:
        unread.wrote(reader, asked=True)
        unread.caught_up(reader)
        unread.caught_up(reader)
    slow = Slow(60 * MIB)
    unread.wrote(slow, asked=True)
    slow.size = 0  # nobody has said so
    unread.wrote(quick[0], asked=True)
    assert not log.said
