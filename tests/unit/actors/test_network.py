"""The network process around its core: a log that is cut while it is read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from actors.network import LOOK_AGAIN_S, Network
from nun.errors import DamagedFile


class Reader:
    """A log that looks damaged, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def read(self, *_: int) -> list[bytes]:
        self.times -= 1
        if self.times >= 0:
            raise DamagedFile("oplog/0000000000000001.log", 7, "expected the record of seq 3")
        return [b"frame"]


@pytest.fixture
def made() -> Any:
    """A network process with nothing in it but what reads the log for a watch."""
    network: Any = object.__new__(Network)
    network.given = []
    network.core = SimpleNamespace(
        stream=SimpleNamespace(durable_seq=9),
        log_read=lambda watch, frames: network.given.append((watch, frames)),
        take_output=lambda: "output",
    )
    network.perform = network.given.append
    network.later = []
    network.loop = SimpleNamespace(after=lambda *what: network.later.append(what))
    return network


def looked_again(network: Any, damaged: int) -> Callable[[], None]:
    network.reader = Reader(damaged)
    network.read_log(4, 3)
    assert network.given == []
    [(seconds, look)] = network.later
    assert seconds == LOOK_AGAIN_S
    return look  # type: ignore[no-any-return]


def test_a_log_that_seems_damaged_is_looked_at_again(made: Any) -> None:
    """It may have been cut back, and then nobody is left to look."""
    looked_again(made, 1)()
    assert made.given == [(4, [b"frame"]), "output"]


def test_a_log_that_is_damaged_ends_the_process(made: Any) -> None:
    with pytest.raises(DamagedFile):
        looked_again(made, 2)()
    assert made.given == []
