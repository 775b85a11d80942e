"""One segment of the oplog: its bytes, and how they are read back.

    offset  size  segment header (40 bytes)
    0       8     magic "NUNOPLOG"
    8       4     format version, 1
    12      4     salt: random; every checksum of the segment begins from it
    16      8     segment number, as in the file's name
    24      8     bytes of the file when it was made; a shorter one was cut
    32      4     0
    36      4     CRC-32 of the 36 bytes before

    offset  size  record
    0       4     CRC-32 of the payload, begun from the head's
    4       4     CRC-32 of the 44 bytes that follow (the head), begun from the salt
    8       4     magic 9A 4E 55 4E
    12      8     segment number
    20      4     length of the payload
    24      20    position of the entry: reign u32, node u32, start u32, seq u64
    44      8     synced: the seq that was on disk, synced, when this record was written
    52      ...   payload: the frame of an entry. Empty: a closing mark, which repeats the last entry's position

Little endian. Records adjoin; behind the last one the file is zeros, written ahead of time. Number and salt tie each
record to its segment, so neither bytes of a file's earlier life nor bytes in a client's value pass for a record.

I1  An append that a crash cut short may leave any part of what was not synced; below what a later head calls `synced`
    nothing can be missing. So what is invalid at seq n is damage if a head behind it says synced >= n, else a torn
    tail. A head proves itself: its claim stands even where its payload is torn.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from mmap import mmap
from typing import Final, NamedTuple

from nun.errors import DamagedFile, FormatTooNew
from nun.position import Position

FOLDER: Final = "oplog"
MAGIC: Final = b"NUNOPLOG"
FORMAT: Final = 1
RECORD_MAGIC: Final = b"\x9aNUN"

_HEADER = struct.Struct("<8sIIQQI")
_CRC = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
_CRCS = struct.Struct("<II")
_HEAD = struct.Struct("<4sQIIIIQQ")
_RECORD = struct.Struct("<II4sQIIIIQQ")
RECORD_BYTES: Final = _RECORD.size
_SUFFIX: Final = ".log"

_crc32 = zlib.crc32
_pack_head = _HEAD.pack
_pack_crcs = _CRCS.pack
_unpack_record = _RECORD.unpack_from


class Header(NamedTuple):
    """What a segment says of itself."""

    number: int
    salt: int
    size: int


class Head(NamedTuple):
    """The head of a record, proven by its checksum; the payload may still be torn."""

    position: Position
    synced: int
    offset: int  # of the record
    end: int  # where the next record begins
    crc: int  # of the payload
    head_crc: int

    @property
    def is_mark(self) -> bool:
        return self.end - self.offset == RECORD_BYTES


def name_of(number: int) -> str:
    return f"{FOLDER}/{number:016x}{_SUFFIX}"


def number_of(name: str) -> int | None:
    """The number of the segment with this name (without its folder); None: it is no segment's."""
    stem, suffix = name[:16], name[16:]
    if suffix != _SUFFIX or any(letter not in "0123456789abcdef" for letter in stem):
        return None
    return int(stem, 16)


def encode_header(header: Header) -> bytes:
    data = _HEADER.pack(MAGIC, FORMAT, header.salt, header.number, header.size, 0)
    return data + _CRC.pack(_crc32(data))


def decode_header(data: bytes, name: str) -> Header:
    """The header that `data` begins with.

    Raises:
        DamagedFile: it is none.
        FormatTooNew: a later version of Nun wrote it.
    """
    if len(data) < HEADER_BYTES:
        raise DamagedFile(name, len(data), f"expected a header of {HEADER_BYTES} bytes")
    magic, version, salt, number, size, _ = _HEADER.unpack_from(data)
    if _crc32(data[: _HEADER.size]) != _CRC.unpack_from(data, _HEADER.size)[0] or magic != MAGIC:
        raise DamagedFile(name, 0, "the segment's header does not match its checksum")
    if version > FORMAT:
        raise FormatTooNew(f"{name} is of format {version}, expected at most {FORMAT}")
    return Header(number, salt, size)


def encode_record(header: Header, position: Position, synced: int, frame: bytes) -> list[bytes]:
    """The parts of a record, to be joined."""
    head = _pack_head(RECORD_MAGIC, header.number, len(frame), *position, synced)
    head_crc = _crc32(head, header.salt)
    return [_pack_crcs(_crc32(frame, head_crc), head_crc), head, frame]


def head_at(data: bytes | mmap, offset: int, header: Header) -> Head | None:
    """The head at `offset` if there is a valid one of this segment; its payload may reach beyond `data`."""
    if offset + RECORD_BYTES > len(data):
        return None
    crc, head_crc, magic, number, length, reign, node, start, seq, synced = _unpack_record(
        data, offset
    )
    if (
        magic != RECORD_MAGIC
        or number != header.number
        or _crc32(data[offset + _CRCS.size : offset + RECORD_BYTES], header.salt) != head_crc
    ):
        return None
    position = Position(reign, node, start, seq)
    return Head(position, synced, offset, offset + RECORD_BYTES + length, crc, head_crc)


def payload_of(data: bytes | mmap, head: Head) -> bytes | None:
    """The payload behind a head; None when it is cut or disagrees with its checksum."""
    payload = data[head.offset + RECORD_BYTES : head.end]
    if len(data) < head.end or _crc32(payload, head.head_crc) != head.crc:
        return None
    return payload


class Followed(NamedTuple):
    """What the valid records of a segment come to."""

    end: int  # behind the last of them
    first_seq: int  # 0: there is none
    last: Position | None  # of the log up to here
    synced: int  # the highest seq that one of them calls synced
    marked: bool  # the last is a closing mark


def follow(data: bytes | mmap, header: Header, last: Position | None) -> Followed:
    """Follows the records of a segment up to the first that is invalid or does not continue the log behind `last`."""
    offset = HEADER_BYTES
    size = len(data) - RECORD_BYTES
    number, salt, _ = header
    first_seq = synced_max = 0
    marked = False
    before = tuple(last) if last is not None else ()
    while offset <= size:
        crc, head_crc, magic, found, length, reign, node, start, seq, synced = _unpack_record(
            data, offset
        )
        begin = offset + RECORD_BYTES
        if (
            magic != RECORD_MAGIC
            or found != number
            or _crc32(data[offset + 8 : begin], salt) != head_crc
            or begin + length > len(data)
            or _crc32(data[begin : begin + length], head_crc) != crc
        ):
            break
        here = (reign, node, start, seq)
        if not length:
            if not first_seq or here != before:
                break
        elif before and (seq != before[3] + 1 or here < before):
            break
        marked = not length
        first_seq = first_seq or seq
        before = here
        if synced > synced_max:
            synced_max = synced
        offset = begin + length
    end = Position(*before) if before else None
    return Followed(offset, first_seq, end, synced_max, marked)


def heads_behind(data: bytes | mmap, offset: int, header: Header) -> Iterator[Head]:
    """Every valid head of this segment at any byte from `offset` on."""
    before = _CRCS.size
    pattern = RECORD_MAGIC + header.number.to_bytes(8, "little")
    at = data.find(pattern, offset + before)
    while at >= 0:
        head = head_at(data, at - before, header)
        if head is not None:
            yield head
        at = data.find(pattern, at + 1)


def used_end(data: bytes | mmap, offset: int) -> int:
    """Behind the last byte from `offset` on that is not zero; `offset` when all are."""
    step = 1 << 20
    end = len(data)
    while end > offset:
        start = max(end - step, offset)
        rest = data[start:end].rstrip(b"\0")
        if rest:
            return start + len(rest)
        end = start
    return offset
