"""The processes that read the log, around their cores: one that is cut while it is read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from actors.network import Network
from actors.replicator import Replicator
from nun.errors import DamagedFile
from storage.log_reader import LOOK_AGAIN_S


class Reader:
    """A log that looks damaged, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def read(self, *_: int) -> list[bytes]:
        self.times -= 1
        if self.times >= 0:
            raise DamagedFile("oplog/0000000000000001.log", 7, "expected the record of seq 3")
        return [b"frame"]


@pytest.fixture(params=[Network, Replicator])
def made(request: pytest.FixtureRequest) -> Any:
    """A process with nothing in it but what reads the log: for a watch, or for another node."""
    process: Any = object.__new__(request.param)
    process.given = []
    process.core = SimpleNamespace(
        stream=SimpleNamespace(durable_seq=9),
        log_read=lambda who, frames: process.given.append((who, frames)),
        take_output=lambda: "output",
    )
    process.perform = process.given.append
    process.later = []
    process.loop = SimpleNamespace(after=lambda *what: process.later.append(what))
    return process


def looked_again(process: Any, damaged: int) -> Callable[[], None]:
    process.reader = Reader(damaged)
    process.read_log(4, 3, *((9, 9) if isinstance(process, Replicator) else ()))
    assert process.given == []
    [(seconds, look)] = process.later
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
