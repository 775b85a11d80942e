"""One segment of the oplog: its bytes, and how they are read back.

    offset  size  segment header (64 bytes)
    0       8     magic "NUNOPLOG"
    8       4     format version, 1
    12      4     0
    16      8     segment number
    24      8     first seq that it may hold
    32      28    0
    60      4     CRC-32 of the 60 bytes before

    offset  size  record
    0       4     magic 9A 4E 55 4E
    4       4     segment number, low 32 bits
    8       8     seq
    16      8     synced: the seq that was on disk, synced, when this record was written
    24      4     length of the payload
    28      4     CRC-32 of the 28 bytes before and the payload
    32      ...   payload: the frame of an entry; empty: a closing mark, `seq` repeats the last entry's

Little endian. Behind the last record the file is zeros, written ahead of time. A file is recycled only after it was
zeroed, and number and CRC tie each record to its segment, so bytes of an earlier life never come back.

How a torn tail is told from damage: an append that a crash cut short may leave any part of what was not yet synced,
but nothing can be missing below what a later, valid record calls `synced`. So a bad record at seq n is damage if and
only if some valid record behind it says synced >= n.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from mmap import mmap
from typing import Final, NamedTuple

MAGIC: Final = b"NUNOPLOG"
FORMAT: Final = 1
HEADER_BYTES: Final = 64
RECORD_MAGIC: Final = b"\x9aNUN"
_HEADER = struct.Struct("<8sIIQQ28s")
_RECORD = struct.Struct("<4sIQQI")
_CRC = struct.Struct("<I")
RECORD_BYTES: Final = _RECORD.size + _CRC.size
_MASK: Final = 0xFFFFFFFF

crc32 = zlib.crc32


class Header(NamedTuple):
    """What a segment says of itself."""

    number: int
    first_seq: int


class Record(NamedTuple):
    """A valid record, where it stands and where the next begins."""

    seq: int
    synced: int
    payload: bytes
    offset: int
    end: int


def encode_header(header: Header) -> bytes:
    head = _HEADER.pack(MAGIC, FORMAT, 0, header.number, header.first_seq, b"")
    return head + _CRC.pack(crc32(head))


def decode_header(data: bytes) -> Header | None:
    """The header of a segment; None when it is none. The caller tells a newer format by `format_of`."""
    if len(data) < HEADER_BYTES:
        return None
    magic, version, _, number, first_seq, _ = _HEADER.unpack_from(data)
    valid = crc32(data[: HEADER_BYTES - 4]) == _CRC.unpack_from(data, HEADER_BYTES - 4)[0]
    if magic != MAGIC or version != FORMAT or not valid:
        return None
    return Header(number, first_seq)


def format_of(data: bytes) -> int | None:
    """The format version of something that begins like a segment and has a valid checksum."""
    if len(data) < HEADER_BYTES or data[:8] != MAGIC:
        return None
    if crc32(data[: HEADER_BYTES - 4]) != _CRC.unpack_from(data, HEADER_BYTES - 4)[0]:
        return None
    version: int = _HEADER.unpack_from(data)[1]
    return version


def encode_record(number: int, seq: int, synced: int, payload: bytes) -> bytes:
    head = _RECORD.pack(RECORD_MAGIC, number & _MASK, seq, synced, len(payload))
    return head + _CRC.pack(crc32(payload, crc32(head))) + payload


def record_at(data: bytes | mmap, offset: int, number: int) -> Record | None:
    """The valid record of segment `number` at `offset`; None when there is none."""
    if offset + RECORD_BYTES > len(data):
        return None
    magic, segment, seq, synced, length = _RECORD.unpack_from(data, offset)
    end = offset + RECORD_BYTES + length
    if magic != RECORD_MAGIC or segment != number & _MASK or end > len(data):
        return None
    payload = data[offset + RECORD_BYTES : end]
    head = data[offset : offset + _RECORD.size]
    if crc32(payload, crc32(head)) != _CRC.unpack_from(data, offset + _RECORD.size)[0]:
        return None
    return Record(seq, synced, payload, offset, end)


def length_at(data: bytes, offset: int, number: int) -> int | None:
    """How many bytes the record at `offset` says to take, header included; None when no record begins there."""
    if offset + RECORD_BYTES > len(data):
        return None
    magic, segment, _, _, length = _RECORD.unpack_from(data, offset)
    if magic != RECORD_MAGIC or segment != number & _MASK:
        return None
    return RECORD_BYTES + int(length)


def records_behind(data: bytes | mmap, offset: int, number: int) -> Iterator[Record]:
    """Every valid record of segment `number` at any byte from `offset` on."""
    pattern = RECORD_MAGIC + (number & _MASK).to_bytes(4, "little")
    at = data.find(pattern, offset)
    while at >= 0:
        record = record_at(data, at, number)
        if record is not None:
            yield record
        at = data.find(pattern, at + 1)
