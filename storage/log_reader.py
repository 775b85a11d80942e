"""Reading the oplog while another process appends to it.

The caller says up to where the log is durable; nothing behind that is looked at. The writer may take old segments away
at any moment and make new ones of their files:

I1  What is returned has the very seq that was asked for, the number and salt of its segment, and a matching checksum.
I2  What does not match is damage only if the segment, by its name, is still there; otherwise the log moved on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from typing import Final, NamedTuple

from nun.errors import Compacted, DamagedFile
from storage import segment as seg
from storage.disk import Disk, File

CHUNK_BYTES: Final = 256 * 1024
CURSORS_MAX: Final = 256
FILES_MAX: Final = 8
STEP_BYTES: Final = 64 * 1024  # between the places that are remembered of a segment
LOOK_AGAIN_S: Final = 1.0  # at a log that seemed damaged: it may have been cut back just then


class _Place(NamedTuple):
    """Where the record of some seq is, or should be."""

    number: int
    offset: int


class _Known:
    """A segment that holds entries."""

    def __init__(self, header: seg.Header, first_seq: int) -> None:
        self.header = header
        self.first_seq = first_seq
        self.seqs = [first_seq]  # some of the entries in it, in order, and where they are
        self.offsets = [seg.HEADER_BYTES]

    def note(self, seq: int, offset: int) -> None:
        if offset - self.offsets[-1] >= STEP_BYTES:
            self.seqs.append(seq)
            self.offsets.append(offset)

    def before(self, seq: int) -> tuple[int, int]:
        index = bisect_right(self.seqs, seq) - 1
        return self.seqs[index], self.offsets[index]


class LogReader:
    """Reads entries in order, from anywhere; where one read ended the next goes on without searching."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._known: dict[int, _Known] = {}  # by number, in order
        self._cursors: OrderedDict[int, _Place] = OrderedDict()  # by the seq that comes next
        self._files: OrderedDict[int, File] = OrderedDict()

    def first_seq(self) -> int:
        """The first seq in the log, 0 when it is empty."""
        self._refresh()
        return next((known.first_seq for known in self._known.values()), 0)

    def last_seq(self) -> int:
        """The seq of the last valid record, durable or not; for a log to which nobody appends at this moment."""
        self._refresh()
        if not self._known:
            return 0
        number, known = list(self._known.items())[-1]
        seq, offset = known.before(2**64)
        while True:
            frames, next_offset = self._parse(number, offset, seq, 2**64, CHUNK_BYTES)
            if next_offset == offset:
                return seq - 1
            seq, offset = seq + len(frames), next_offset

    def read(self, from_seq: int, max_bytes: int, up_to_seq: int) -> list[bytes]:
        """The frames of entries from `from_seq` on, about `max_bytes` of them, none behind `up_to_seq`.

        At least one, if `up_to_seq` allows.

        Raises:
            Compacted: the log begins later.
            DamagedFile: what is there is not what was written.
        """
        frames: list[bytes] = []
        if from_seq > up_to_seq:
            return frames
        place = self._cursors.pop(from_seq, None) or self._locate(from_seq)
        seq = from_seq
        room = max_bytes
        while seq <= up_to_seq and (room > 0 or not frames):
            taken, offset = self._parse(place.number, place.offset, seq, up_to_seq, room)
            if offset == place.offset:
                found = self._locate(seq)
                if found.number == place.number:
                    name = seg.name_of(place.number)
                    raise DamagedFile(name, place.offset, f"expected the record of seq {seq}")
                place = found
                continue
            frames += taken
            room -= sum(map(len, taken))
            seq += len(taken)
            place = _Place(place.number, offset)
        self._cursors[seq] = place
        if len(self._cursors) > CURSORS_MAX:
            self._cursors.popitem(last=False)
        return frames

    def close(self) -> None:
        """Closes its files; a later read opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    # Segments

    def _refresh(self) -> None:
        """Looks which segments there are."""
        known: dict[int, _Known] = {}
        doubtful = 0
        for name in self._disk.names(seg.FOLDER):
            number = seg.number_of(name)
            if number is not None:
                found = self._known.get(number) or self._meet(number)
                if found is None:
                    doubtful = doubtful or number
                else:
                    known[number] = found
                    if doubtful:
                        self._must_be_gone(doubtful)
        self._known = known
        for number in [number for number in self._files if number not in known]:
            self._files.pop(number).close()

    def _must_be_gone(self, number: int) -> None:
        """Raises DamagedFile if a segment that cannot be read is still there: one behind it has entries."""
        file = self._open(number)
        name = seg.name_of(number)
        if file is not None and self._disk.exists(name):
            seg.decode_header(file.read(0, seg.HEADER_BYTES), name)
            if any(file.read(seg.HEADER_BYTES, seg.RECORD_BYTES)):
                raise DamagedFile(name, seg.HEADER_BYTES, "expected a record")

    def _meet(self, number: int) -> _Known | None:
        """A segment that was not seen before; None: it holds nothing yet, or is gone again."""
        file = self._open(number)
        if file is None:
            return None
        try:
            header = seg.decode_header(file.read(0, seg.HEADER_BYTES), file.name)
        except DamagedFile:
            return None
        head = seg.head_at(file.read(seg.HEADER_BYTES, seg.RECORD_BYTES), 0, header)
        if header.number != number or head is None:
            return None
        return _Known(header, head.position.seq)

    def _open(self, number: int) -> File | None:
        file = self._files.get(number)
        if file is not None:
            self._files.move_to_end(number)
            return file
        try:
            file = self._disk.open(seg.name_of(number))
        except FileNotFoundError:
            return None
        self._files[number] = file
        if len(self._files) > FILES_MAX:
            self._files.popitem(last=False)[1].close()
        return file

    def _locate(self, seq: int) -> _Place:
        """Where the record of `seq` is, or should be."""
        self._refresh()
        number = 0
        for candidate, known in self._known.items():
            if known.first_seq > seq:
                break
            number = candidate
        if not number:
            raise Compacted(next((known.first_seq for known in self._known.values()), seq + 1))
        known = self._known[number]
        at, offset = known.before(seq)
        file = self._open(number)
        data, base = b"", offset
        while file is not None and at < seq:
            head = seg.head_at(data, offset - base, known.header)
            if head is None:
                if base == offset and data:
                    break
                data, base = file.read(offset, CHUNK_BYTES), offset
                continue
            known.note(at, offset)
            if not head.is_mark:
                if head.position.seq != at:
                    break
                at += 1
            offset += head.end - head.offset
        return _Place(number, offset)

    # Records

    def _parse(
        self, number: int, offset: int, seq: int, up_to_seq: int, room: int
    ) -> tuple[list[bytes], int]:
        """The frames from `seq` on in a part of a segment that begins at `offset`, and where the next record begins."""
        frames: list[bytes] = []
        known = self._known.get(number)
        file = self._open(number) if known is not None else None
        if known is None or file is None:
            return frames, offset
        header = known.header
        known.note(seq, offset)
        data = file.read(offset, min(max(room, 0) + seg.RECORD_BYTES, CHUNK_BYTES))
        at = 0
        while seq <= up_to_seq and (room > 0 or not frames):
            head = seg.head_at(data, at, header)
            if head is None:
                break
            if head.end > len(data) and at == 0:
                data = file.read(offset, head.end)
            payload = seg.payload_of(data, head)
            if payload is None:
                break
            if head.is_mark:
                at = head.end
                continue
            if head.position.seq != seq:
                break
            frames.append(payload)
            room -= len(payload)
            seq += 1
            at = head.end
        return frames, offset + at
