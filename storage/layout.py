"""The bytes of a database's files: NunDB's keys and values, and our rows beside them.

    keys file     length u64 | key | version i32 | value address u64      version -1: removed
    values file   length u64 | value | status i32 (0)                     append only
    rows file     one row of 24 bytes for each record of the keys file, in the same order:
                  offset u64 of that record | op id u64 | version word u32 | CRC-32 u32

Little endian. The version word is that of a record's head (nun/core/record.py), so a tombstone keeps its version here
while the keys file says -1. A row of op id 0 is free: its key was dropped, and may come back to it. The CRC covers the
whole record of the keys file and the packed record (head and value), so that a changed byte of any of the three is
found.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final
from urllib.parse import quote, unquote

from nun.core import record

LENGTH: Final = struct.Struct("<Q")
KEY_TAIL: Final = struct.Struct("<iQ")  # version, value address
STATUS: Final = struct.Struct("<i")
METADATA_ROW: Final = struct.Struct("<Qi")  # NunDB's metadata: database number, strategy
ROW: Final = struct.Struct("<QQII")
ROW_TAIL: Final = struct.Struct("<QII")  # what changes in place
ROW_TAIL_OFFSET: Final = 8
KEY_BYTES: Final = LENGTH.size + KEY_TAIL.size  # of a keys record beside its key
VALUE_BYTES: Final = LENGTH.size + STATUS.size  # of a values record beside its value
REMOVED: Final = -1
STATUS_OK: Final = bytes(STATUS.size)

KEYS: Final = "keys"
VALUES: Final = "values"
ROWS: Final = "rows"
SIDE: Final = "side"
KINDS: Final = (KEYS, VALUES, ROWS)
_INFIX: Final = "-nun.data."
METADATA: Final = "-nun.madadata"
_SAFE: Final = "$!@+=,~() "

crc32 = zlib.crc32


def file_name(database: str, kind: str) -> str:
    """The name of one of a database's files; characters that a file name cannot hold are percent-escaped."""
    return quote(database, safe=_SAFE) + (METADATA if kind == METADATA else _INFIX + kind)


def database_of(name: str, kind: str) -> str | None:
    """The database whose file of this kind bears this name; None when it is no such file."""
    ending = METADATA if kind == METADATA else _INFIX + kind
    return unquote(name.removesuffix(ending)) if name.endswith(ending) else None


def keys_record(key: bytes, version: int, address: int) -> bytes:
    return LENGTH.pack(len(key)) + key + KEY_TAIL.pack(version, address)


def values_record(value: bytes) -> bytes:
    return LENGTH.pack(len(value)) + value + STATUS_OK


def checksum(in_keys: bytes, packed: bytes) -> int:
    """The CRC of a row: of its record in the keys file and its packed record."""
    return crc32(packed, crc32(in_keys))


def packed_of(op_id: int, word: int, value: bytes) -> bytes:
    """The packed record of a row that is not free."""
    head: bytes = record.pack_head(word, op_id)
    return head + (value if word < record.SPECIAL else bytes([record.TOMBSTONE_KIND]))
