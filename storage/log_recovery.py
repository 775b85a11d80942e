"""Recovery of the oplog: which of its bytes count, and what becomes of the others.

The segments are followed in order of their numbers from the first record on, as long as each entry continues the one
before. What stands behind that valid prefix is one of three:

    nothing     the log was closed, or its process was killed between appends
    torn tail   what a crash left of appends that were never synced: cut, and reported
    damage      bytes that had been durable are wrong or missing: refused, or moved aside if the operator said so

storage/segment.py says how the last two are told apart (its I1).

I1  What is refused is not changed.
I2  A crash during recovery leaves what recovers to the same entries: evidence is copied before anything is cut, and
    later segments go before the tail before them is cleaned.
I3  When recovery returns, everything in the log is durable, names too, and behind its end the last segment is durably
    zeros: a record that was cut can never follow a new one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from mmap import mmap
from typing import Final

from nun.errors import DamagedFile
from nun.position import Position
from storage import segment as seg
from storage.disk import Disk, File

DAMAGED: Final = ".damaged"
SPARE: Final = f"{seg.FOLDER}/spare-"
CHUNK_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(CHUNK_BYTES)


@dataclass(slots=True)
class Segment:
    """A segment as the writer knows it."""

    header: seg.Header
    name: str
    size: int  # of the file
    first_seq: int = 0  # 0: it holds no entry
    end: int = seg.HEADER_BYTES  # where the next record goes
    marked: bool = False  # its last record is a closing mark


@dataclass(slots=True)
class Recovered:
    """What recovery found.

    Attributes:
        segments: those that hold entries, in order.
        empty: prepared and never used.
        spares: names of files that may be made into segments.
        last: the position of the last entry.
        next_number: no segment had this number or a higher one.
        torn_bytes: how many bytes of a torn tail were cut.
        moved_aside: the files that hold what was damaged, or stood behind it.
        damage: what was damaged, when something was moved aside.
    """

    segments: list[Segment] = field(default_factory=list)
    empty: list[Segment] = field(default_factory=list)
    spares: list[str] = field(default_factory=list)
    last: Position | None = None
    next_number: int = 1
    torn_bytes: int = 0
    moved_aside: list[str] = field(default_factory=list)
    damage: str = ""


def recover(disk: Disk, damage: str, check_from_seq: int) -> Recovered:
    """Finds the valid prefix and sets the rest right.

    Raises:
        DamagedFile, FormatTooNew: nothing was changed.
    """
    return _Recovery(disk, damage, check_from_seq).run()


class _Recovery:
    """One walk over the segments."""

    def __init__(self, disk: Disk, damage: str, check_from_seq: int) -> None:
        assert damage in ("refuse", "keep-prefix"), damage
        self._disk = disk
        self._damage = damage
        self._check_from = check_from_seq
        self._found = Recovered()
        self._proven = 0  # the highest seq that some head calls synced

    def run(self) -> Recovered:
        found = self._found
        names = self._disk.names(seg.FOLDER)
        numbers = [number for name in names if (number := seg.number_of(name)) is not None]
        seen = (seg.number_of(name.partition(DAMAGED)[0]) for name in names)
        found.next_number = max((number for number in seen if number is not None), default=0) + 1
        paths = (f"{seg.FOLDER}/{name}" for name in names)
        found.spares = [path for path in paths if path.startswith(SPARE)]
        for index, number in enumerate(numbers):
            try:
                ended = self._take(numbers[index:])
            except DamagedFile as error:
                if self._damage == "refuse":
                    raise
                self._move_aside(error, numbers[index:])
                break
            if ended:
                self._cut(number, numbers[index + 1 :])
                break
        if numbers:
            self._make_durable()
        return found

    # Following the records

    def _take(self, numbers: list[int]) -> bool:
        """Takes in the first of these segments; returns whether a torn tail ends the log in it."""
        data = self._disk.view(seg.name_of(numbers[0]))
        segment = self._open(data, numbers[0])
        headless = bool(self._found.empty) and not self._found.segments
        if not headless:
            if self._lies_below(data, segment, numbers[1:]):
                self._found.segments.append(segment)
                return False
            self._walk(data, segment)
        (self._found.segments if segment.first_seq else self._found.empty).append(segment)
        if len(data) < segment.header.size:
            raise DamagedFile(
                segment.name,
                len(data),
                f"the file has {len(data)} bytes, expected {segment.header.size}",
            )
        used = seg.used_end(data, segment.end)
        if used == segment.end or self._goes_on(numbers[1:]):
            return False
        self._judge(data, segment, numbers[1:], headless)
        self._found.torn_bytes += used - segment.end
        return True

    def _open(self, data: bytes | mmap, number: int) -> Segment:
        name = seg.name_of(number)
        header = seg.decode_header(data[: seg.HEADER_BYTES], name)
        if header.number != number:
            raise DamagedFile(name, 16, f"it says number {header.number}, expected {number}")
        return Segment(header, name, len(data))

    def _lies_below(self, data: bytes | mmap, segment: Segment, later: list[int]) -> bool:
        """Whether all entries of a segment are older than what is to be checked; only its ends are looked at."""
        if self._check_from <= 1 or not later or len(data) < segment.header.size:
            return False
        first = seg.head_at(data, seg.HEADER_BYTES, segment.header)
        follows = self._first_head(later[0])
        if (
            first is None
            or follows is None
            or follows.position.seq > self._check_from
            or self._next_seq not in (0, first.position.seq)
        ):
            return False
        segment.first_seq = first.position.seq
        # The epoch may be a later one; this is what the next entry can be held against.
        self._found.last = Position.at(first.position.epoch, follows.position.seq - 1)
        self._proven = max(self._proven, follows.synced)
        return True

    def _first_head(self, number: int) -> seg.Head | None:
        data = self._disk.view(seg.name_of(number))
        try:
            header = self._open(data, number).header
        except DamagedFile:
            return None
        head = seg.head_at(data, seg.HEADER_BYTES, header)
        return head if head is not None and seg.payload_of(data, head) is not None else None

    def _walk(self, data: bytes | mmap, segment: Segment) -> None:
        """Takes in the records of one segment up to the first that is invalid or does not continue the log."""
        followed = seg.follow(data, segment.header, self._found.last)
        segment.end = followed.end
        segment.first_seq = followed.first_seq
        segment.marked = followed.marked
        self._found.last = followed.last
        self._proven = max(self._proven, followed.synced)

    @property
    def _next_seq(self) -> int:
        """The seq that continues the log, 0 when nothing was found yet."""
        return self._found.last.seq + 1 if self._found.last is not None else 0

    def _goes_on(self, later: list[int]) -> bool:
        """Whether the log simply continues in a later segment."""
        for number in later:
            head = self._first_head(number)
            if head is not None:
                return head.position.seq == self._next_seq
        return False

    def _judge(
        self, data: bytes | mmap, segment: Segment, later: list[int], headless: bool
    ) -> None:
        """Raises DamagedFile unless all from the segment's end on may never have been synced.

        See I1 of storage/segment.py. `headless`: the segments before it have lost all their entries.
        """
        behind = list(seg.heads_behind(data, segment.end, segment.header))
        for number in later:
            more = self._disk.view(seg.name_of(number))
            try:
                header = self._open(more, number).header
            except DamagedFile:
                continue
            behind += seg.heads_behind(more, seg.HEADER_BYTES, header)
        if not behind:
            return
        missing = self._next_seq
        if not missing:  # the log may begin anywhere: by the records behind
            first = min(behind, key=lambda head: head.position.seq)
            here = first.offset == segment.end and not headless
            missing = max(first.position.seq - (0 if here else 1), 1)
        synced = max(head.synced for head in behind)
        if synced >= missing:
            raise DamagedFile(
                segment.name,
                segment.end,
                f"expected the record of seq {missing}; it was on disk when a later one was written",
            )

    # Setting right

    def _cut(self, number: int, later: list[int]) -> None:
        """Cuts a torn tail: from the end of this segment on, and all later segments."""
        for name in map(seg.name_of, later):
            self._found.torn_bytes += seg.used_end(self._disk.view(name), seg.HEADER_BYTES) - (
                seg.HEADER_BYTES
            )
            self._disk.remove(name)
        if later:
            self._disk.sync_names(seg.FOLDER)
        self._clean(seg.name_of(number))

    def _move_aside(self, error: DamagedFile, numbers: list[int]) -> None:
        """Keeps the valid prefix and moves what is damaged, and all behind it, aside."""
        kept = [s for s in self._found.segments if s.header.number == numbers[0]]
        self._found.empty = [s for s in self._found.empty if s.header.number < numbers[0]]
        for number in numbers:
            name = seg.name_of(number)
            aside = self._free_name(name + DAMAGED)
            if kept and number == numbers[0]:
                self._copy(name, aside)
                self._disk.sync_names(seg.FOLDER)
            else:
                self._disk.rename(name, aside)
            self._found.moved_aside.append(aside)
        self._disk.sync_names(seg.FOLDER)
        self._found.damage = str(error)
        if kept:
            self._clean(kept[0].name)

    def _free_name(self, name: str) -> str:
        tries = (name + (f".{count}" if count else "") for count in itertools.count())
        return next(candidate for candidate in tries if not self._disk.exists(candidate))

    def _copy(self, name: str, to: str) -> None:
        file = self._disk.open(to, create=True)
        try:
            file.write(0, memoryview(self._disk.view(name)))
            file.sync()
        finally:
            file.close()

    def _clean(self, name: str) -> None:
        """Writes zeros from the end of a segment's records to the end of the file, which gets back its size."""
        (segment,) = (s for s in (*self._found.segments, *self._found.empty) if s.name == name)
        end = max(seg.used_end(self._disk.view(name), segment.end), segment.end)
        if segment.size < segment.header.size:
            end = segment.size = segment.header.size
        file = self._disk.open(name)
        try:
            write_zeros(file, segment.end, end)
            file.sync()
        finally:
            file.close()

    def _make_durable(self) -> None:
        """Syncs the names, and the segments that may hold what was written and not synced.

        That is written once more first: after a sync that failed it reads back, and no later sync would write it.
        """
        self._disk.sync_names(seg.FOLDER)
        self._disk.sync_names()
        segments = self._found.segments
        for index, segment in enumerate(segments):
            is_last = index + 1 == len(segments)
            if is_last or segments[index + 1].first_seq > self._proven + 1:
                file = self._disk.open(segment.name)
                try:
                    data = self._disk.view(segment.name)
                    begin = self._unproven(data, segment)
                    for offset in range(begin, segment.end, CHUNK_BYTES):
                        file.write(offset, data[offset : min(offset + CHUNK_BYTES, segment.end)])
                    file.sync()
                finally:
                    file.close()

    def _unproven(self, data: bytes | mmap, segment: Segment) -> int:
        """From where on what a segment holds may never have come to the disk; its header is the first of it."""
        if segment.first_seq > self._proven:
            return 0
        offset = seg.HEADER_BYTES
        while offset < segment.end:
            head = seg.head_at(data, offset, segment.header)
            if head is None or head.position.seq > self._proven:
                break
            offset = head.end
        return offset


def write_zeros(file: File, start: int, end: int) -> None:
    """Zeros from `start` to `end`."""
    for offset in range(start, end, CHUNK_BYTES):
        file.write(offset, _ZEROS[: min(CHUNK_BYTES, end - offset)])
