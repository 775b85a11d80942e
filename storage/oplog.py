"""The oplog: every entry, in order, the truth between snapshots. The writer's end of it.

Segments `oplog/NUMBER.log` (sixteen hexadecimal digits) follow each other by number and by seq; storage/segment.py has
their bytes, storage/log_recovery.py what happens at a start, storage/log_reader.py the other end. One process appends
(the storage writer); any process may read what is durable.

    prepare_spare       spare-NUMBER (zeros, synced) -> header, synced -> NUMBER.log, name synced: the next segment
    append              records go to the last segment; when they do not fit, to the next one, whole
    trim                the oldest segment -> spare-NUMBER, name synced; it becomes the next segment in time

I1  Entries stand in order of seq without a hole, over all segments.
I2  A segment is used only after its zeros, its header and its name are durable; names vanish oldest first, each
    durably before the next.
I3  An append that raised OSError has left the log as it was: the same entries can be appended again.
I4  After a sync that failed, every further call raises; the process stops and recovers.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from nun.errors import StorageError
from nun.position import Position
from storage import segment as seg
from storage.disk import NO_ROOM, Disk, File
from storage.log_reader import LogReader
from storage.log_recovery import CHUNK_BYTES, SPARE, Recovered, Segment, recover, write_zeros

__all__ = ["LogReader", "Oplog"]

RETIRED_MAX: Final = 4  # filled and not yet synced segments that stay open


class Oplog:
    """The log of one data directory, open for appending. Made by `open`, which recovers.

    Attributes:
        last: the position of the last entry, None when the log is empty.
        torn_bytes: what recovery cut; moved_aside: the files it moved; damage: why.
    """

    def __init__(
        self,
        disk: Disk,
        segment_bytes: int,
        budget_bytes: int,
        found: Recovered,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._disk = disk
        self._segment_bytes = max(segment_bytes, seg.HEADER_BYTES)
        self._budget = budget_bytes
        self._random_bytes = random_bytes
        self.last = found.last
        self.torn_bytes = found.torn_bytes
        self.moved_aside = found.moved_aside
        self.damage = found.damage
        self._segments = found.segments
        self._spares = found.spares
        self._next_number = found.next_number
        self._folder_is_durable = found.next_number > 1  # its name, in the root
        self._next: tuple[Segment, File] | None = None
        self._file: File | None = None
        self._retired: list[tuple[File, int]] = []  # and the last seq that it holds
        self._synced = found.last.seq if found.last is not None else 0
        self._failed: OSError | None = None
        self._making = threading.Lock()  # held while the next segment is made
        self._retiring = threading.Lock()  # held while retired segments are synced
        in_use = self._segments[-1].header.number if self._segments else 0
        surplus = self._spares[1:]
        del self._spares[1:]
        for segment in found.empty:
            if self._next is None and segment.header.number > in_use:
                self._next = segment, disk.open(segment.name)
            else:
                surplus.append(segment.name)
        for name in surplus:
            disk.remove(name)
        if surplus:
            disk.sync_names(seg.FOLDER)
        if self._segments:
            self._file = disk.open(self._segments[-1].name)

    @classmethod
    def open(
        cls,
        disk: Disk,
        segment_bytes: int,
        budget_bytes: int,
        damage: str = "refuse",
        check_from_seq: int = 1,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> Oplog:
        """Recovers the log and opens it for appending.

        Args:
            segment_bytes: of a new segment; one that is begun by a longer append gets as long as that.
            budget_bytes: what `trim` brings the log down to, as far as it may.
            damage: "refuse", or "keep-prefix" to go on with what stands before the damage.
            check_from_seq: of segments with entries below it only, no more than the ends are checked now;
                whoever reads them checks the rest.

        Raises:
            DamagedFile: bytes that were durable are wrong or missing, and `damage` is "refuse"; nothing was changed.
            FormatTooNew: a later version of Nun wrote it.
        """
        found = recover(disk, damage, check_from_seq)
        return cls(disk, segment_bytes, budget_bytes, found, random_bytes)

    # State

    @property
    def first_seq(self) -> int:
        """The first seq in the log, 0 when it is empty."""
        return self._segments[0].first_seq if self._segments else 0

    @property
    def synced_seq(self) -> int:
        """Up to here everything is on disk."""
        return self._synced

    @property
    def size(self) -> int:
        """What the log takes on disk, the next segment and spare files included."""
        next_one = self._next
        total = sum(segment.size for segment in self._segments)
        return (
            total
            + (next_one[0].size if next_one is not None else 0)
            + (len(self._spares) * self._segment_bytes)
        )

    @property
    def segments(self) -> int:
        """How many segments hold entries."""
        return len(self._segments)

    @property
    def wants_spare(self) -> bool:
        """Whether `prepare_spare` has something to do."""
        return self._next is None or bool(self._retired)

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
            "spare": self._next is not None,
        }

    # Writing

    def append(self, entries: Sequence[tuple[Position, bytes]]) -> None:
        """Writes entries behind the last one, with one write.

        Raises:
            OSError: nothing was appended; the same entries may be appended again (I3).
            StorageError: the log has failed before.
        """
        if self._failed is not None:
            raise self._failure()
        if not entries:
            return
        last = self.last
        size = 0
        for position, frame in entries:
            assert last is None or (position[3] == last[3] + 1 and position[:3] >= last[:3]), (
                f"entry {position} does not continue {last}"
            )
            last = position
            size += seg.RECORD_BYTES + len(frame)
        segment = self._segments[-1] if self._segments else None
        if segment is None or (
            segment.end + size > segment.size and segment.end > seg.HEADER_BYTES
        ):
            segment = self._rotate(entries[0][0][3])
        header = segment.header
        parts: list[bytes] = []
        for position, frame in entries:
            parts += seg.encode_record(header, position, self._synced, frame)
        assert self._file is not None
        try:
            self._file.write(segment.end, b"".join(parts))
        except OSError:
            self._take_back(segment, segment.end + size)
            raise
        segment.end += size
        segment.marked = False
        if segment.end > segment.size:
            segment.size = segment.end
        self.last = last

    def _take_back(self, segment: Segment, end: int) -> None:
        """After a write that failed: zeros over what it may have left, so that none of it follows later entries."""
        assert self._file is not None
        try:
            if self._file.size() > segment.size:
                self._file.truncate(segment.size)
            write_zeros(self._file, segment.end, min(end, segment.size))
        except OSError as error:
            self._failed = error

    def sync(self) -> None:
        """Makes everything appended durable.

        Raises:
            OSError: it may not be; from now on every call raises (I4).
            StorageError: the log has failed before.
        """
        if self._failed is not None:
            raise self._failure()
        if self._file is None or self.last is None or self.last.seq == self._synced:
            return
        if self._retired:
            self._sync_retired()
        try:
            self._file.sync()
        except OSError as error:
            self._failed = error
            raise
        self._synced = self.last.seq

    def _rotate(self, first_seq: int) -> Segment:
        """Goes on in the next segment; makes it if nobody did ahead of time."""
        if len(self._retired) >= RETIRED_MAX:
            self._sync_retired()
        with self._making:
            segment, file = self._next or self._make(gently=False)
            self._next = None
        if self._file is not None:
            assert self.last is not None
            if self._synced == self.last.seq:
                self._file.close()
            else:
                self._retired.append((self._file, self.last.seq))
        self._file = file
        segment.first_seq = first_seq
        self._segments.append(segment)
        return segment

    def _sync_retired(self) -> None:
        """Syncs the segments that were filled since the last sync, oldest first."""
        with self._retiring:
            if self._failed is not None:
                raise self._failure()
            while self._retired:
                file, last_seq = self._retired[0]
                try:
                    file.sync()
                except OSError as error:
                    self._failed = error
                    raise
                file.close()
                self._synced = max(self._synced, last_seq)
                del self._retired[0]

    # Segments

    def prepare_spare(self) -> None:
        """Makes the next segment ahead of time and syncs filled ones; may run in a thread beside the other calls.

        Raises:
            OSError: there is no room; a later call may find some.
            StorageError: the log has failed before.
        """
        self._sync_retired()
        with self._making:
            if self._failed is not None:
                raise self._failure()
            if self._next is None:
                self._next = self._make(gently=True)

    def _make(self, gently: bool) -> tuple[Segment, File]:
        """A segment of zeros with a header and a name, all durable; `gently`: in many small syncs."""
        number = self._next_number
        self._next_number += 1
        recycled = self._spares.pop() if self._spares else None
        spare = recycled or f"{SPARE}{number:016x}"
        file = self._disk.open(spare, create=recycled is None)
        name = seg.name_of(number)
        size = self._segment_bytes
        salt = int.from_bytes(self._random_bytes(4), "little")
        header = seg.Header(number, salt, size)
        try:
            if file.size() > size:
                file.truncate(size)
            for offset in range(0, size, CHUNK_BYTES):
                write_zeros(file, offset, min(offset + CHUNK_BYTES, size))
                if gently:
                    file.sync()
            file.write(0, seg.encode_header(header))
            file.sync()
            self._disk.rename(spare, name)
            self._disk.sync_names(seg.FOLDER)
            if not self._folder_is_durable:
                self._disk.sync_names()
                self._folder_is_durable = True
        except OSError as error:
            file.close()
            with contextlib.suppress(OSError):
                self._disk.remove(spare)
            if error.errno not in NO_ROOM:
                self._failed = error
            raise
        return Segment(header, name, size), file

    def trim(self, below_seq: int) -> int:
        """Gives up the oldest segments while the log is over its budget and they end below `below_seq`.

        Returns how many. The last one stays, whatever it holds, and so does the last entry that was synced: without it
        a crash could leave a log that does not know where it stood.
        """
        below_seq = min(below_seq, self._synced)
        if self._failed is not None:
            raise self._failure()
        dropped = 0
        while (
            len(self._segments) > 1
            and sum(segment.size for segment in self._segments) + self._segment_bytes > self._budget
            and self._segments[1].first_seq <= below_seq
        ):
            self._give_up_oldest()
            dropped += 1
        return dropped

    def start_after(self, position: Position) -> None:
        """Begins anew behind `position`, which the files of the node have and the log does not.

        That happens where a log that was not synced lost more to a crash than the snapshot that was made from it.
        """
        assert self.last is None or position > self.last, f"{self.last} is not before {position}"
        while len(self._segments) > 1:
            self._give_up_oldest()
        if self._segments:
            assert self._file is not None
            self._file.close()
            self._file = None
            self._give_up_oldest()
        self.last = position
        self._synced = position.seq

    def truncate_after(self, seq: int) -> None:
        """Takes back all entries above `seq`, which the log holds; 0 empties a log that begins with seq 1.

        Whole segments go newest first, each name durably; then the one that holds `seq` is replaced by rename with a
        copy that ends there. A crash leaves a log that ends somewhere between.

        Raises:
            OSError: the log may still hold some of it; the process stops and recovers.
        """
        assert self._synced == (0 if self.last is None else self.last.seq), "sync first"
        assert self.first_seq <= seq + 1, f"the log begins at {self.first_seq}"
        try:
            while self._segments and self._segments[-1].first_seq > seq:
                self._give_up_newest()
            if not self._segments:
                self.last = None
                self._synced = 0
                return
            segment = self._segments[-1]
            if self._file is None:
                self._file = self._disk.open(segment.name)
            # Its end is not known where recovery looked at no more than its first record.
            data = self._file.read(0, segment.size)
            end, last = seg.HEADER_BYTES, None
            while (head := seg.head_at(data, end, segment.header)) is not None:
                if not head.is_mark and head.position.seq > seq:
                    break
                end, last = head.end, head.position
            assert last is not None
            assert last.seq == seq
            self._replace_newest(segment, data[:end])
        except OSError as error:
            self._failed = error
            raise
        self.last = last
        self._synced = seq

    def _give_up_newest(self) -> None:
        segment = self._segments[-1]
        if self._file is not None:
            self._file.close()
            self._file = None
        self._disk.remove(segment.name)
        self._disk.sync_names(seg.FOLDER)
        del self._segments[-1]

    def _replace_newest(self, segment: Segment, data: bytes) -> None:
        """Puts a copy with these bytes, and zeros behind them, in the place of the newest segment."""
        spare = f"{SPARE}{segment.header.number:016x}"
        file = self._disk.open(spare, create=True)
        file.truncate(0)
        file.write(0, data)
        for offset in range(len(data), segment.size, CHUNK_BYTES):
            write_zeros(file, offset, min(offset + CHUNK_BYTES, segment.size))
        file.sync()
        self._disk.rename(spare, segment.name)
        self._disk.sync_names(seg.FOLDER)
        if self._file is not None:
            self._file.close()
        self._file = file
        segment.end = len(data)
        segment.marked = False

    def _give_up_oldest(self) -> None:
        segment = self._segments[0]
        spare = f"{SPARE}{segment.header.number:016x}"
        recycle = not self._spares and segment.size == self._segment_bytes
        try:
            if recycle:
                self._disk.rename(segment.name, spare)
            else:
                self._disk.remove(segment.name)
            self._disk.sync_names(seg.FOLDER)
        except OSError as error:
            self._failed = error
            raise
        del self._segments[0]
        if recycle:
            self._spares.append(spare)

    # The end

    def close(self) -> None:
        """Syncs, marks the end so that even the last record is guarded against damage, and closes."""
        with self._making:
            if self._failed is None:
                self.sync()
                self._mark()
            files = [file for file, _ in self._retired]
            files += [self._next[1]] if self._next is not None else []
            files += [self._file] if self._file is not None else []
            for file in files:
                file.close()
            self._retired, self._next, self._file = [], None, None

    def _mark(self) -> None:
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.marked or segment.end == seg.HEADER_BYTES:
            return
        assert self._file is not None
        assert self.last is not None
        mark = b"".join(seg.encode_record(segment.header, self.last, self.last.seq, b""))
        try:
            self._file.write(segment.end, mark)
        except OSError:  # no room for a mark: it is not needed
            self._take_back(segment, segment.end + len(mark))
        else:
            self._file.sync()

    def _failure(self) -> StorageError:
        error = StorageError(f"the log failed before and takes no more: {self._failed}")
        error.__cause__ = self._failed
        return error
