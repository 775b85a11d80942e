"""Comparing what the nodes hold: a digest of every database at one and the same entry.

    CHECK entry --> each node, where it applies it: a snapshot of its records (the mapping is copied, not the records)
                --> so many keys a beat --> the digests, told with the entry's position

A digest is the sum of the CRC-32 of every key with its packed record, and how many there are: it does not depend on
order, and nodes that hold the same at a position have the same. Nothing on the way of a write pays for it.

I1  A digest covers what the entries before the CHECK have made, and nothing of what came after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final
from zlib import crc32

from nun import peer_messages as pm
from nun.core import effects as fx
from nun.position import Position

if TYPE_CHECKING:
    from nun.core.network import NetworkCore

KEYS_PER_BEAT: Final = 20_000  # about 5 ms

Digest = dict[str, str]  # of each database, by name


class _Running:
    """One database that is being digested."""

    def __init__(self, name: str, records: dict[bytes, bytes]) -> None:
        self.name = name
        self.count = len(records)
        self.sum = 0
        self._left: Iterator[tuple[bytes, bytes]] = iter(records.copy().items())

    def go_on(self, keys: int) -> int:
        """Takes in so many keys at most; how many there were."""
        part = list(islice(self._left, keys))
        self.sum += sum(crc32(packed, crc32(key)) for key, packed in part)
        return len(part)

    @property
    def text(self) -> str:
        return f"{self.count:x}-{self.sum & (2**64 - 1):016x}"


class Digests:
    """The digests of this node.

    Attributes:
        last: where the newest ones were made, and they; None before the first.
    """

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._at: Position | None = None
        self._running: list[_Running] = []
        self._done: Digest = {}
        self._next_ns = core.now_ns + int(core.settings.check_interval_s * 1e9)
        self.last: tuple[Position, Digest] | None = None

    def decide(self) -> None:
        """The primary has every node check."""
        core = self._core
        core.settle()
        entry = core.stream.add((fx.CHECK,))
        self.begin(entry.position)

    def begin(self, position: Position) -> None:
        """A CHECK has come. One that is under way is given up: it would be of an older entry."""
        core = self._core
        self._at = position
        self._done = {}
        self._running = [
            _Running(info.name, core.tables[number].records)
            for number, info in core.state.databases.items()
        ]

    def beat(self) -> None:
        """Goes on with what is under way."""
        if self._at is None:
            return
        left = KEYS_PER_BEAT
        while self._running and left:
            running = self._running[-1]
            taken = running.go_on(left)
            left -= taken
            if left:
                self._done[running.name] = running.text
                self._running.pop()
        if not self._running:
            self.last = self._at, self._done
            self._at = None
            self._core.out.to_replicator.append((pm.DIGEST_IS, *self.last))

    def tick(self) -> None:
        """On the primary: has the nodes check when it is time."""
        core = self._core
        if core.settings.check_interval_s and core.now_ns >= self._next_ns:
            self._next_ns = core.now_ns + int(core.settings.check_interval_s * 1e9)
            self.decide()
