"""The oplog: every entry, in order, the truth between snapshots.

Segments `oplog/NUMBER.log` (sixteen hexadecimal digits) follow each other by number and by seq; storage/segment.py
has their bytes. One process appends (the storage writer); any process may read what is durable.

I1  Entries stand in order of seq without a hole, over all segments.
I2  `append` writes, `sync` makes durable; a failed append leaves the log as it was, so that the same entries can be
    appended again; after a failed sync nothing is ever written again (the process stops and recovers).
I3  A segment is used only after its header, zeros and name are durable; it is recycled only after it was zeroed.
I4  Recovery keeps the longest valid prefix. A torn tail is cut and reported; damage is refused, or moved aside when
    the operator said so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from nun.core import effects as fx
from nun.errors import Compacted, DamagedFile, FormatTooNew, StorageError, WireError
from nun.position import Position
from storage import segment as seg
from storage.disk import Disk, File

FOLDER: Final = "oplog"
SPARE: Final = "oplog/spare"
CHUNK_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(CHUNK_BYTES)


def _name(number: int) -> str:
    return f"{FOLDER}/{number:016x}.log"


def _numbers(disk: Disk) -> list[int]:
    found = []
    for name in disk.names(FOLDER):
        stem, dot, ending = name.partition(".")
        if dot and ending == "log" and len(stem) == 16:
            with contextlib.suppress(ValueError):
                found.append(int(stem, 16))
    return sorted(found)


@dataclass(slots=True)
class Segment:
    """A segment as the writer knows it."""

    number: int
    first_seq: int
    size: int  # of the file
    end: int  # where the next record goes


@dataclass(slots=True)
class Recovered:
    """What recovery found."""

    segments: list[Segment]
    last: Position | None
    torn_bytes: int
    moved_aside: list[str]


class Oplog:
    """The writer's end of the log. Made by `open`, which recovers."""

    def __init__(self, disk: Disk, segment_bytes: int, budget_bytes: int, found: Recovered) -> None:
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._budget = budget_bytes
        self._segments = found.segments
        self.last = found.last
        self.torn_bytes = found.torn_bytes
        self.moved_aside = found.moved_aside
        self._synced = found.last.seq if found.last is not None else 0
        self._file: File | None = None
        self._unsynced: list[File] = []
        self._failed: OSError | None = None
        self._spare = disk.exists(SPARE) and self._adopt_spare()
        if self._segments:
            self._file = disk.open(_name(self._segments[-1].number))

    @classmethod
    def open(
        cls, disk: Disk, segment_bytes: int, budget_bytes: int, damage: str = "refuse"
    ) -> Oplog:
        """Recovers the log and opens it for appending.

        Raises:
            DamagedFile: bytes that were durable are wrong or missing, and `damage` is "refuse"; nothing was changed.
            FormatTooNew: a later version of Nun wrote it.
        """
        return cls(disk, segment_bytes, budget_bytes, _recover(disk, damage))

    # State

    @property
    def first_seq(self) -> int:
        """The first seq in the log, 0 when it is empty."""
        if self.last is None or not self._segments or self._segments[0].first_seq > self.last.seq:
            return 0
        return self._segments[0].first_seq

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def segments(self) -> int:
        return len(self._segments)

    def describe(self) -> dict[str, Any]:
        return {
            "bytes": self.size,
            "budget_bytes": self._budget,
            "segments": len(self._segments),
            "first_seq": self.first_seq,
            "last": None if self.last is None else str(self.last),
            "synced_seq": self._synced,
            "torn_bytes": self.torn_bytes,
            "moved_aside": self.moved_aside,
            "spare": self._spare,
        }

    # Writing

    def append(self, entries: Sequence[tuple[Position, bytes]]) -> None:
        """Writes entries behind the last one: one write, or one per segment that they reach into.

        Raises:
            OSError: nothing was appended; the same entries may be appended again.
        """
        self._check()
        undo = (len(self._segments), self._segments[-1].end if self._segments else 0, self.last)
        try:
            self._append(entries)
        except OSError:
            self._take_back(*undo)
            raise

    def _append(self, entries: Sequence[tuple[Position, bytes]]) -> None:
        buffer: list[bytes] = []
        size = 0
        synced = self._synced
        for position, frame in entries:
            assert self.last is None or position.seq == self.last.seq + 1, "a hole in the log"
            need = seg.RECORD_BYTES + len(frame)
            segment = self._segments[-1] if self._segments else None
            if segment is None or segment.end + size + need > segment.size:
                self._write(buffer, size)
                buffer, size = [], 0
                segment = self._rotate(position.seq, need)
            buffer.append(seg.encode_record(segment.number, position.seq, synced, frame))
            size += need
            self.last = position
        self._write(buffer, size)

    def _write(self, buffer: list[bytes], size: int) -> None:
        if buffer:
            assert self._file is not None
            segment = self._segments[-1]
            self._file.write(segment.end, buffer[0] if len(buffer) == 1 else b"".join(buffer))
            segment.end += size

    def _take_back(self, count: int, end: int, last: Position | None) -> None:
        """Forgets what a failed append has written: its bytes are written over by the next."""
        self.last = last
        while len(self._segments) > count:
            segment = self._segments.pop()
            if self._file is not None:
                self._file.close()
            self._file = self._unsynced.pop() if self._unsynced else None
            with contextlib.suppress(OSError):
                self._disk.remove(_name(segment.number))
        if self._segments:
            self._segments[-1].end = end

    def sync(self) -> None:
        """Makes everything appended durable.

        Raises:
            OSError: it may not be, and never will be tried again: every further call raises.
        """
        self._check()
        try:
            for file in self._unsynced:
                file.sync()
                file.close()
            self._unsynced = []
            if self._file is not None:
                self._file.sync()
        except OSError as error:
            self._failed = error
            raise
        if self.last is not None:
            self._synced = self.last.seq

    def _rotate(self, first_seq: int, need: int) -> Segment:
        """Begins a segment that has room for `need` bytes."""
        number = self._segments[-1].number + 1 if self._segments else 1
        size = max(self._segment_bytes, seg.HEADER_BYTES + need)
        name = _name(number)
        if size == self._segment_bytes and self._spare:
            self._spare = False
            self._disk.rename(SPARE, name)
            file = self._disk.open(name)
        else:
            file = self._disk.open(name, create=True)
            file.truncate(size)
        file.write(0, seg.encode_header(seg.Header(number, first_seq)))
        file.sync()
        self._disk.sync_names(FOLDER)
        if self._file is not None:
            self._unsynced.append(self._file)
        self._file = file
        segment = Segment(number, first_seq, size, seg.HEADER_BYTES)
        self._segments.append(segment)
        return segment

    def prepare_spare(self) -> None:
        """Writes the zeros of the next segment ahead of time; may run in a thread beside `append`.

        Raises:
            OSError: there is no room; a later call may find some.
        """
        if self._spare or self._failed is not None:
            return
        file = self._disk.open(SPARE, create=True)
        try:
            file.truncate(self._segment_bytes)
            for offset in range(0, self._segment_bytes, len(_ZEROS)):
                file.write(offset, _ZEROS[: min(len(_ZEROS), self._segment_bytes - offset)])
            file.sync()
        finally:
            file.close()
        self._spare = True

    @property
    def wants_spare(self) -> bool:
        """Whether `prepare_spare` has something to do."""
        return not self._spare

    def _adopt_spare(self) -> bool:
        """A spare left by an earlier run is zeroed again: it may have been recycled and not finished."""
        self._disk.remove(SPARE)
        return False

    def trim(self, below_seq: int) -> int:
        """Drops the oldest segments that hold nothing from `below_seq` on, while over the budget; returns how many."""
        dropped = 0
        while (
            len(self._segments) > 1
            and self.size > self._budget
            and self._segments[1].first_seq <= below_seq
        ):
            segment = self._segments.pop(0)
            name = _name(segment.number)
            if (
                not self._spare
                and not self._disk.exists(SPARE)
                and segment.size == self._segment_bytes
            ):
                self._disk.rename(name, SPARE)
            else:
                self._disk.remove(name)
            dropped += 1
        if dropped:
            self._disk.sync_names(FOLDER)
        return dropped

    def close(self) -> None:
        """Syncs, marks the end so that even the last record is guarded, and closes."""
        if self._file is None:
            return
        if self._failed is None:
            self.sync()
            segment = self._segments[-1]
            if self.last is not None and segment.end + seg.RECORD_BYTES <= segment.size:
                mark = seg.encode_record(segment.number, self.last.seq, self.last.seq, b"")
                self._file.write(segment.end, mark)
                segment.end += len(mark)
                self._file.sync()
        for file in [*self._unsynced, self._file]:
            file.close()
        self._unsynced, self._file = [], None

    def _check(self) -> None:
        if self._failed is not None:
            raise StorageError(f"the log could not be synced: {self._failed}") from self._failed


# Recovery


def _recover(disk: Disk, damage: str) -> Recovered:
    """Finds the valid prefix of the log, and cuts or moves aside what is behind it."""
    segments: list[Segment] = []
    last: Position | None = None
    numbers = _numbers(disk)
    torn = 0
    for index, number in enumerate(numbers):
        data = disk.view(_name(number))
        header = _header(data, number)
        following = [disk.view(_name(later)) for later in numbers[index + 1 :]]
        expected = last.seq + 1 if last is not None else None
        if header is None or (expected is not None and header.first_seq != expected):
            bad_seq = expected or 0
            if header is not None or _anything_synced(
                [(number, data), *zip(numbers[index + 1 :], following, strict=True)], 0, bad_seq
            ):
                detail = (
                    "its header is not valid"
                    if header is None
                    else f"it begins at seq {header.first_seq}, expected {expected}"
                )
                return _damaged(disk, damage, segments, last, numbers[index:], 0, detail)
            for later in numbers[index:]:  # made and never used
                disk.remove(_name(later))
            disk.sync_names(FOLDER)
            break
        segment, last = _scan(data, number, header, last)
        used = len(bytes(data[segment.end :]).rstrip(b"\0"))
        if used:
            bad_seq = last.seq + 1 if last is not None else header.first_seq
            behind = [(number, data), *zip(numbers[index + 1 :], following, strict=True)]
            if _anything_synced(behind, segment.end, bad_seq):
                segments.append(segment)
                return _damaged(
                    disk,
                    damage,
                    segments,
                    last,
                    numbers[index:],
                    segment.end,
                    f"the record of seq {bad_seq} is not valid, and later ones are",
                )
            torn += used
            _zero(disk, _name(number), segment.end, used)
            segments.append(segment)
            for later in numbers[index + 1 :]:
                disk.remove(_name(later))
            disk.sync_names(FOLDER)
            break
        segments.append(segment)
    return Recovered(segments, last, torn, [])


def _header(data: Any, number: int) -> seg.Header | None:
    head = bytes(data[: seg.HEADER_BYTES])
    version = seg.format_of(head)
    if version is not None and version > seg.FORMAT:
        raise FormatTooNew(f"{_name(number)} is of format {version}, expected at most {seg.FORMAT}")
    header = seg.decode_header(head)
    return header if header is not None and header.number == number else None


def _scan(
    data: Any, number: int, header: seg.Header, last: Position | None
) -> tuple[Segment, Position | None]:
    """Follows the valid records of a segment from its start."""
    offset = seg.HEADER_BYTES
    expected = header.first_seq
    while (record := seg.record_at(data, offset, number)) is not None:
        if not record.payload:
            if record.seq != expected - 1:
                break
        else:
            if record.seq != expected:
                break
            try:
                _, position, _ = fx.decode_head(record.payload)
            except WireError:
                break
            if position.seq != record.seq:
                break
            last = position
            expected += 1
        offset = record.end
    return Segment(number, header.first_seq, len(data), offset), last


def _anything_synced(behind: Sequence[tuple[int, Any]], offset: int, bad_seq: int) -> bool:
    """Whether a valid record behind a bad one shows that the bad one had been durable."""
    for number, data in behind:
        for record in seg.records_behind(data, offset, number):
            if record.synced >= bad_seq > 0 or (bad_seq == 0 and record.synced > 0):
                return True
        offset = 0
    return False


def _damaged(
    disk: Disk,
    damage: str,
    segments: list[Segment],
    last: Position | None,
    numbers: Sequence[int],
    offset: int,
    detail: str,
) -> Recovered:
    """Refuses damage, or keeps the prefix and moves copies of the rest aside."""
    name = _name(numbers[0])
    if damage != "keep-prefix":
        raise DamagedFile(name, offset, detail)
    moved = []
    for number in numbers:
        aside = f"{_name(number)}.damaged"
        if offset and number == numbers[0]:
            _copy(disk, _name(number), aside)
            _zero(disk, _name(number), offset, disk.open(_name(number)).size() - offset)
        else:
            disk.rename(_name(number), aside)
        moved.append(aside)
    disk.sync_names(FOLDER)
    return Recovered(segments, last, 0, moved)


def _copy(disk: Disk, name: str, to: str) -> None:
    data = disk.view(name)
    file = disk.open(to, create=True)
    try:
        file.write(0, bytes(data))
        file.sync()
    finally:
        file.close()


def _zero(disk: Disk, name: str, offset: int, size: int) -> None:
    file = disk.open(name)
    try:
        for start in range(offset, offset + size, len(_ZEROS)):
            file.write(start, _ZEROS[: min(len(_ZEROS), offset + size - start)])
        file.sync()
    finally:
        file.close()


# Reading


class LogReader:
    """Reads entries from a log that may be growing, from any process.

    Only what the caller knows to be durable is read. Sequential reads go on where the last one stopped.
    """

    CURSORS_MAX: Final = 64

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._cursors: dict[int, tuple[int, int]] = {}  # next seq -> (segment, offset)

    def first_seq(self) -> int:
        """The first seq that can be read; 0 when there is no segment."""
        for number in _numbers(self._disk):
            header = self._header(number)
            if header is not None:
                return header.first_seq
        return 0

    def last_seq(self) -> int:
        """The seq of the last valid record, durable or not; for a log that nobody appends to at this moment."""
        for number in reversed(_numbers(self._disk)):
            header = self._header(number)
            if header is None:
                continue
            last = header.first_seq - 1
            offset = seg.HEADER_BYTES
            while records := self._records(number, offset, CHUNK_BYTES):
                last, offset = records[-1].seq, records[-1].end
            return last
        return 0

    def read(self, from_seq: int, max_bytes: int, up_to_seq: int) -> list[bytes]:
        """Frames of entries from `from_seq` on: at least one, unless `up_to_seq` comes before.

        Raises:
            Compacted: the log begins later.
            DamagedFile: what is there is not what was written.
        """
        frames: list[bytes] = []
        if from_seq > up_to_seq:
            return frames
        number, offset = self._cursors.pop(from_seq, (0, 0))
        if not number:
            number, offset = self._find(from_seq)
        seq = from_seq
        size = 0
        while seq <= up_to_seq and (size < max_bytes or not frames):
            records = self._records(number, offset, max_bytes - size)
            before = seq
            for record in records:
                if record.payload and record.seq == seq and seq <= up_to_seq:
                    frames.append(record.payload)
                    size += len(record.payload)
                    seq += 1
                elif record.payload or record.seq != seq - 1:
                    break
                offset = record.end
            if seq == before:
                moved = self._find(seq)
                if moved == (number, offset):
                    raise DamagedFile(_name(number), offset, f"expected the record of seq {seq}")
                number, offset = moved
        if len(self._cursors) >= self.CURSORS_MAX:
            del self._cursors[next(iter(self._cursors))]
        self._cursors[seq] = (number, offset)
        return frames

    def _find(self, seq: int) -> tuple[int, int]:
        """Where the record of `seq` is, or should be."""
        found: tuple[int, int] | None = None
        first = 0
        for number in _numbers(self._disk):
            header = self._header(number)
            if header is None:
                continue
            first = first or header.first_seq
            if header.first_seq > seq:
                break
            found = (number, header.first_seq)
        if found is None:
            raise Compacted(first)
        number, at = found
        offset = seg.HEADER_BYTES
        while at < seq:
            records = self._records(number, offset, CHUNK_BYTES)
            before = offset
            for record in records:
                if at == seq or record.seq not in (at, at - 1):
                    break
                at += 1 if record.payload else 0
                offset = record.end
            if offset == before:
                break
        return number, offset

    def _header(self, number: int) -> seg.Header | None:
        try:
            file = self._disk.open(_name(number))
        except FileNotFoundError:
            return None
        try:
            header = seg.decode_header(file.read(0, seg.HEADER_BYTES))
        finally:
            file.close()
        return header if header is not None and header.number == number else None

    def _records(self, number: int, offset: int, size: int) -> list[seg.Record]:
        """The valid records from `offset` on in about `size` bytes of a segment; at least one, if there is one."""
        try:
            file = self._disk.open(_name(number))
        except FileNotFoundError:
            return []
        try:
            data = file.read(offset, min(max(size, seg.RECORD_BYTES), CHUNK_BYTES))
            length = seg.length_at(data, 0, number)
            if length is not None and length > len(data):
                data = file.read(offset, length)
        finally:
            file.close()
        records = []
        at = 0
        while (record := seg.record_at(data, at, number)) is not None:
            at = record.end
            records.append(record._replace(offset=offset + record.offset, end=offset + record.end))
        return records
