"""Entries for tests of the oplog, and what a recovered log must look like."""

from __future__ import annotations

from dataclasses import dataclass, field

from nun.position import Position
from storage.disk import Disk
from storage.oplog import LogReader, Oplog

Entry = tuple[Position, bytes]


def entry(seq: int, size: int = 0, start: int = 1) -> Entry:
    """An entry whose frame says who it is, so that no other can pass for it."""
    frame = f"entry {seq} of start {start};".encode()
    return Position(1, 1, start, seq), frame.ljust(size, b".")


def entries(first: int, last: int, size: int = 0, start: int = 1) -> list[Entry]:
    return [entry(seq, size, start) for seq in range(first, last + 1)]


def content(disk: Disk, log: Oplog) -> dict[int, bytes]:
    """All that a reader finds in the log, by seq; asserts that nothing is missing in between."""
    if log.last is None or not log.first_seq:
        return {}
    first, last = log.first_seq, log.last.seq
    reader = LogReader(disk)
    frames: list[bytes] = []
    while first + len(frames) <= last:
        frames += reader.read(first + len(frames), 300, last)
    assert reader.first_seq() == first
    assert reader.last_seq() == last
    reader.close()
    return dict(enumerate(frames, first))


@dataclass
class Written:
    """What was given to a log so far, and what of it no crash may take."""

    frames: dict[int, bytes] = field(default_factory=dict)  # by seq: the last one given
    synced: int = 0
    trimmed_below: int = 1

    def append(self, log: Oplog, given: list[Entry]) -> None:
        self.frames.update((position.seq, frame) for position, frame in given)
        log.append(given)

    def sync(self, log: Oplog) -> None:
        log.sync()
        assert log.last is not None
        self.synced = log.last.seq

    def trim(self, log: Oplog, below_seq: int) -> None:
        self.trimmed_below = max(self.trimmed_below, below_seq)
        log.trim(below_seq)

    def recovered(self, disk: Disk, log: Oplog, lowest: int | None = None) -> None:
        """Asserts that a log holds what it must and nothing else, and goes on from what it holds.

        Args:
            lowest: the seq that must be there at least; what was synced by default.
        """
        found = content(disk, log)
        last = max(found, default=0)
        assert last >= (self.synced if lowest is None else lowest), "synced entries are gone"
        assert last <= max(self.frames, default=0), "there are entries that nobody wrote"
        assert min(found, default=1) <= self.trimmed_below, "entries were taken away too early"
        for seq, frame in found.items():
            assert frame == self.frames[seq], f"seq {seq} is not what was written"
        self.frames = {seq: frame for seq, frame in self.frames.items() if seq <= last}
        self.synced = last
