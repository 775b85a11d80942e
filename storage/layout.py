"""The bytes of a database's files: NunDB's keys and values, and our rows beside them.

    keys file     length u64 | key | version i32 | value address u64      version -1: removed, -2: in conflict
    values file   length u64 | value | status i32 (0)                     append only
                  length u64 | tail | status i32 (1)                      right behind a value, see below
    rows file     one row of 24 bytes for each record of the keys file, in the same order:
                  offset u64 of that record | head 12 bytes | CRC-32 u32

Little endian. The head is that of the packed record (nun/core/record.py: version word, op id), so a tombstone keeps its
version here while the keys file says -1. A row whose head is zeros is free: its key was dropped, and may come back to
it. The CRC covers the whole record of the keys file and the packed record (head, tail and value), so that a changed
byte of any of the three is found.

A SPECIAL record is head, tail and value. A plain tombstone is its row alone: version -1, address 0. Any other has two
records in the values file: its value (empty where it has none), then its tail. The keys file points at the value:

    signed, with a value         its version   address
    in conflict, with a value    -2            address
    any other: no value          -1            address + 1: 0 goes on meaning that there is nothing

NunDB looks nowhere else, so it never sees a tail; what it reads at address + 1, and drops, is an empty text as well.
The head of a key in conflict that was absent before has op id 0 and the SPECIAL bit: that bit tells it from a free row.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, repeat
from mmap import mmap
from operator import itemgetter
from typing import Final, NamedTuple

from nun import nundb
from nun.core import record

LENGTH: Final = nundb.LENGTH
KEY_TAIL: Final = nundb.KEY_TAIL
STATUS: Final = nundb.STATUS
METADATA_ROW: Final = nundb.METADATA_ROW
ROW: Final = struct.Struct("<QIQI")
ROW_TAIL: Final = struct.Struct("<IQI")  # what changes in place
_ROW_OF_RECORD = struct.Struct("<Q12sI")  # the same bytes; takes the head from a packed record
ROW_TAIL_OFFSET: Final = 8
KEY_BYTES: Final = LENGTH.size + KEY_TAIL.size  # of a keys record beside its key
VALUE_BYTES: Final = LENGTH.size + STATUS.size  # of a values record beside its value
REMOVED: Final = nundb.REMOVED
IN_CONFLICT: Final = nundb.IN_CONFLICT
STATUS_OK: Final = bytes(STATUS.size)
STATUS_TAIL: Final = STATUS.pack(1)

KEYS: Final = "keys"
VALUES: Final = "values"
ROWS: Final = "rows"
SIDE: Final = "side"
KINDS: Final = (KEYS, VALUES, ROWS)
_INFIX: Final = "-nun.data."
METADATA: Final = nundb.METADATA
_ESCAPED: Final = re.compile(r"[/%\x00-\x1f\x7f]|^\.")
_STEM_BYTES_MAX: Final = 200  # a file name has room for 255, our longest ending takes 40

crc32 = zlib.crc32
_value_of = itemgetter(slice(record.HEAD_BYTES, None))
_flags_of = itemgetter(3)  # 0x80 and more: SPECIAL
_TOMBSTONE_TAIL: Final = bytes([record.TOMBSTONE_KIND])


@lru_cache(maxsize=256)
def _live_keys_record(length: int) -> struct.Struct:
    """A live record of the keys file; its version is the first four bytes of the packed record."""
    return struct.Struct(f"<Q{length}s4sQ")


def stem(database: str) -> str:
    """What a database's file names begin with: its name, escaped where a file name could not hold it.

    A name that would be too long is cut, and told apart by its digest; the side file has the name itself.
    """
    escaped = _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", database)
    if len(escaped.encode()) <= _STEM_BYTES_MAX:
        return escaped
    digest = hashlib.sha256(database.encode()).hexdigest()[:32]
    return f"{escaped[:40]}%-{digest}"


def file_name(database: str, kind: str) -> str:
    """The name of one of a database's files."""
    return stem(database) + ending(kind)


def ending(kind: str) -> str:
    """What the names of files of this kind end with."""
    return METADATA if kind == METADATA else _INFIX + kind


def stem_of(name: str, kind: str) -> str | None:
    """What stands before the ending of a file of this kind; None when it is no such file."""
    end = ending(kind)
    return name.removesuffix(end) if name.endswith(end) else None


def keys_record(key: bytes, version: int, address: int) -> bytes:
    return LENGTH.pack(len(key)) + key + KEY_TAIL.pack(version, address)


def values_record(value: bytes) -> bytes:
    return LENGTH.pack(len(value)) + value + STATUS_OK


def checksum(in_keys: bytes, packed: bytes) -> int:
    """The CRC of a row: of its record in the keys file and its packed record."""
    return crc32(packed, crc32(in_keys))


class Encoded(NamedTuple):
    """What a run of new records adds to the three files."""

    keys: bytes
    values: bytes
    rows: bytes


def encode(
    keys: Sequence[bytes], records: Sequence[bytes], keys_offset: int, values_offset: int
) -> Encoded:
    """Live records with rows of their own, to stand at these offsets of the keys and values files.

    All in bulk: this is what a snapshot of many new records costs.
    """
    values = list(map(_value_of, records))
    sizes = list(map(len, values))
    first = sizes[0]
    if sizes.count(first) == len(sizes):
        frame = LENGTH.pack(first)
        joined = frame + (STATUS_OK + frame).join(values) + STATUS_OK
        step = first + VALUE_BYTES
        addresses: Sequence[int] = range(values_offset, values_offset + step * len(sizes), step)
    else:
        joined = b"".join(map(values_record, values))
        addresses = list(
            accumulate((size + VALUE_BYTES for size in sizes[:-1]), initial=values_offset)
        )
    lengths = list(map(len, keys))
    first = lengths[0]
    if lengths.count(first) == len(lengths):
        in_keys = list(map(_live_keys_record(first).pack, repeat(first), keys, records, addresses))
    else:
        in_keys = [
            _live_keys_record(length).pack(length, key, packed, address)
            for length, key, packed, address in zip(lengths, keys, records, addresses, strict=True)
        ]
    offsets = accumulate(map(len, in_keys), initial=keys_offset)
    checks = map(crc32, records, map(crc32, in_keys))
    rows = b"".join(map(_ROW_OF_RECORD.pack, offsets, records, checks))
    return Encoded(b"".join(in_keys), joined, rows)


def encode_special(key: bytes, packed: bytes, values_offset: int) -> tuple[bytes, bytes]:
    """What a SPECIAL record adds to the keys file, and to the values file at this offset: nothing for a tombstone."""
    if packed[record.HEAD_BYTES :] == _TOMBSTONE_TAIL:
        return keys_record(key, REMOVED, 0), b""
    begin = record.offset_of_value(packed)
    tail = packed[record.HEAD_BYTES : begin]
    in_values = values_record(packed[begin:]) + LENGTH.pack(len(tail)) + tail + STATUS_TAIL
    if not record.is_live(packed):
        return keys_record(key, REMOVED, values_offset + 1), in_values
    conflict = record.is_in_conflict(packed)
    version = IN_CONFLICT if conflict else record.version_of(packed)
    return keys_record(key, version, values_offset), in_values


def is_free(word: int, op_id: int) -> bool:
    """Whether a row with this head is that of a dropped key."""
    return not word and not op_id


def address_of_special(version: int, address: int) -> int:
    """Where the two values records of a SPECIAL record begin, by what the keys file says; -1 of a plain tombstone."""
    return address - 1 if version == REMOVED else address


def packed_of(word: int, op_id: int, version: int, address: int, values: bytes | mmap) -> bytes:
    """The packed record of a row that is not free, its checksum not looked at.

    Raises ValueError, OverflowError or struct.error where the values file has no such record.
    """
    head: bytes = record.pack_head(word, op_id)
    if word < record.SPECIAL:
        return head + _held(values, address, STATUS_OK)[0]
    address = address_of_special(version, address)
    if address < 0:
        return head + _TOMBSTONE_TAIL
    value, tail_at = _held(values, address, STATUS_OK)
    return head + _held(values, tail_at, STATUS_TAIL)[0] + value


def _held(values: bytes | mmap, address: int, status: bytes) -> tuple[bytes, int]:
    """What a values record holds, and where the next one begins."""
    begin = address + LENGTH.size
    end = begin + LENGTH.unpack_from(values, address)[0]
    after = end + STATUS.size
    if values[end:after] != status:
        expected = STATUS.unpack(status)[0]
        raise ValueError(f"the values record at {address} does not end in status {expected}")
    return values[begin:end], after


def all_live(records: Sequence[bytes]) -> bool:
    """Whether every one of these packed records has a value."""
    return not records or max(map(_flags_of, records)) < 0x80
