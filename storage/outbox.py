"""The outbox file: writes that this node has taken and the primary has not settled, in order.

    offset  size  outbox
    0       8     magic "NUNOUTBX"
    8       8     number of the first item that this file may hold
    16      4     CRC-32 of the 16 bytes before
    20      ...   items

    offset  size  item
    0       4     CRC-32 of all that follows
    4       4     length of the payload
    8       8     number: contiguous
    16      ...   payload

Little endian. Items are appended and synced; what is settled is dropped by writing the rest anew beside the file and
renaming that. Numbers are never used twice: the head remembers where they go on when no item is left.

I1  An item that was called durable is there after any crash; a torn tail is cut, anything else that does not match is
    damage.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from nun.errors import DamagedFile
from storage.disk import Disk, File

OUTBOX: Final = "outbox"
OUTBOX_NEW: Final = "outbox.new"
_MAGIC: Final = b"NUNOUTBX"
_HEAD = struct.Struct("<8sQI")
_ITEM = struct.Struct("<IIQ")
_WASTED_BYTES: Final = 1024 * 1024  # so much may be dead before the file is written anew


def read_outbox(disk: Disk) -> tuple[int, list[tuple[int, bytes]]]:
    """The number that comes next, and all items as (number, payload). Raises DamagedFile."""
    following, items, _ = _parse(bytes(disk.view(OUTBOX))) if disk.exists(OUTBOX) else (1, [], 0)
    return following, items


def _parse(data: bytes) -> tuple[int, list[tuple[int, bytes]], int]:
    """(next number, items, where they end)."""
    if len(data) < _HEAD.size:
        raise DamagedFile(OUTBOX, len(data), f"expected at least {_HEAD.size} bytes")
    magic, following, crc = _HEAD.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(data[: _HEAD.size - 4]) != crc:
        raise DamagedFile(OUTBOX, 0, "the head does not match its checksum")
    items: list[tuple[int, bytes]] = []
    at = _HEAD.size
    while at + _ITEM.size <= len(data):
        crc, length, number = _ITEM.unpack_from(data, at)
        end = at + _ITEM.size + length
        if end > len(data) or zlib.crc32(data[at + 4 : end]) != crc or number < following:
            break
        items.append((number, data[at + _ITEM.size : end]))
        following = number + 1
        at = end
    if _holds_item(data, at + 1, following):
        raise DamagedFile(OUTBOX, at, f"expected item {following}: there are later ones")
    return following, items, at


def _holds_item(data: bytes, at: int, number: int) -> bool:
    """Whether a whole item with a higher number begins anywhere from `at` on."""
    for offset in range(at, len(data) - _ITEM.size + 1):
        crc, length, found = _ITEM.unpack_from(data, offset)
        end = offset + _ITEM.size + length
        plausible = number <= found < number + 2**32 and end <= len(data)
        if plausible and zlib.crc32(data[offset + 4 : end]) == crc:
            return True
    return False


class Outbox:
    """The outbox of one data directory, open for appending. Opening recovers it.

    Attributes:
        following: the number of the next item.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._sizes: OrderedDict[int, int] = OrderedDict()  # number -> bytes in the file
        self._dead = 0
        if disk.exists(OUTBOX):
            data = bytes(disk.view(OUTBOX))
            self.following, items, self._end = _parse(data)
            self._file = disk.open(OUTBOX)
            if self._end < len(data):
                self._file.truncate(self._end)
            # What reads back may never have come to the disk: after a sync that failed no later one would write it.
            self._file.write(0, data[: self._end])
            self._file.sync()
            self._sizes.update((number, _ITEM.size + len(item)) for number, item in items)
        else:
            self.following = 1
            self._file, self._end = self._written(1, [])

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def size(self) -> int:
        """What the items take that are not done."""
        return sum(self._sizes.values())

    def append(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Appends items and makes them durable; those that are here already are passed over.

        Raises:
            OSError: none of them counts; the process stops, or finds room and tries again.
        """
        fresh = [item for item in items if item[0] >= self.following]
        if not fresh:
            return
        data = b"".join(_encoded(number, item) for number, item in fresh)
        try:
            self._file.write(self._end, data)
            self._file.sync()
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(data)
        for number, item in fresh:
            assert number >= self.following
            self.following = number + 1
            self._sizes[number] = _ITEM.size + len(item)

    def add(self, payloads: Sequence[bytes]) -> None:
        """Appends items with the numbers that come next."""
        self.append(list(enumerate(payloads, self.following)))

    def done(self, number: int) -> None:
        """Items up to this one are settled."""
        sizes = self._sizes
        while sizes and next(iter(sizes)) <= number:
            self._dead += sizes.popitem(last=False)[1]
        if self._dead > _WASTED_BYTES or (self._dead and not sizes):
            _, items = read_outbox(self._disk)
            left = [item for item in items if item[0] in sizes]
            first = left[0][0] if left else self.following
            old = self._file
            self._file, self._end = self._written(first, left)
            old.close()
            self._dead = 0

    def _written(self, first: int, items: Sequence[tuple[int, bytes]]) -> tuple[File, int]:
        """Puts a new file with these items in the place of the old one."""
        head = _MAGIC + first.to_bytes(8, "little")
        data = head + zlib.crc32(head).to_bytes(4, "little")
        data += b"".join(_encoded(number, item) for number, item in items)
        file = self._disk.open(OUTBOX_NEW, create=True)
        file.truncate(0)
        file.write(0, data)
        file.sync()
        self._disk.rename(OUTBOX_NEW, OUTBOX)
        self._disk.sync_names()
        return file, len(data)

    def close(self) -> None:
        self._file.close()


def _encoded(number: int, item: bytes) -> bytes:
    rest = len(item).to_bytes(4, "little") + number.to_bytes(8, "little") + item
    return zlib.crc32(rest).to_bytes(4, "little") + rest
