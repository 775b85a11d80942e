"""A record: what a key holds, as one packed `bytes` object.

    offset  size  field
    0       4     version, u32; bit 31 set: SPECIAL, a kind byte follows the head
    4       8     op id, u64
    12      1     kind, only of SPECIAL records: 0 tombstone (nothing follows)
    12/13   ...   value

Little endian. Packed bytes cost a third of what a tuple costs, are invisible to the garbage collector and can be handed
to a client or the log as they are. Heads of many records are read at once: join their first twelve bytes and
cast to u32; see `heads`. A head of zeros stands for "absent": no record has op id 0.

In a database of strategy `none` no record is ever displaced by a write that did not see it or declare not to look, so
nobody needs to be told; the request id of the writer is therefore not kept in the record. A strategy that displaces
records adds it as a kind of its own.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Final

assert sys.byteorder == "little", (
    "records are read by casting memory: only little-endian machines are supported"
)

_HEAD = struct.Struct("<IQ")
HEAD_BYTES: Final = _HEAD.size
SPECIAL: Final = 1 << 31
TOMBSTONE_KIND: Final = 0
INTEGER_BYTES: Final = 8
ABSENT: Final = bytes(HEAD_BYTES)

pack_head = _HEAD.pack
unpack_head = _HEAD.unpack_from
_head_of = itemgetter(slice(0, HEAD_BYTES))
_TOMBSTONE_TAIL = bytes([TOMBSTONE_KIND])


def live(version: int, op_id: int, value: bytes) -> bytes:
    """A record that holds a value."""
    return pack_head(version, op_id) + value


def tombstone(version: int, op_id: int) -> bytes:
    """A record that says the key was removed, and keeps its version."""
    return pack_head(version | SPECIAL, op_id) + _TOMBSTONE_TAIL


def is_live(record: bytes | None) -> bool:
    """Whether the key has a value. Absent keys and tombstones have none."""
    return record is not None and record[3] < 0x80 and record[:HEAD_BYTES] != ABSENT


def is_tombstone(record: bytes) -> bool:
    return record[3] >= 0x80 and record[HEAD_BYTES] == TOMBSTONE_KIND


def version_of(record: bytes) -> int:
    version: int = unpack_head(record)[0]
    return version & ~SPECIAL


def op_id_of(record: bytes) -> int:
    op_id: int = unpack_head(record)[1]
    return op_id


def value_of(record: bytes) -> bytes:
    """The value of a live record."""
    return record[HEAD_BYTES:]


def heads(records: Iterable[bytes]) -> bytes:
    """The heads of many records, one after the other."""
    return b"".join(map(_head_of, records))


def versions_of_heads(joined: bytes) -> list[int]:
    """The version words of joined heads, flag bit included: above VERSION_MAX means SPECIAL."""
    return memoryview(joined).cast("I")[::3].tolist()


def op_ids_of_heads(joined: bytes) -> list[int]:
    """The op ids of joined heads."""
    words = memoryview(joined).cast("I").tolist()
    return [low | high << 32 for low, high in zip(words[1::3], words[2::3], strict=True)]


def successors(joined: bytes, first_op_id: int, tick: int, values: Sequence[bytes]) -> list[bytes]:
    """The live records that plain sets of `values` make of the records with these heads.

    Each gets the version after the old one's, and the op ids `first_op_id`, `first_op_id + tick`, ...
    """
    op_ids = range(first_op_id, first_op_id + tick * len(values), tick)
    return [
        pack_head(version + 1, op_id) + value
        for version, op_id, value in zip(versions_of_heads(joined), op_ids, values, strict=True)
    ]


def counted(
    joined: bytes, first_op_id: int, tick: int, keys: Sequence[bytes], sums: bytes
) -> list[bytes]:
    """The live records that increments of `keys` make; `sums` are packed as by `pack_integers`.

    `joined` are the heads of what the distinct keys held, in the order in which each first comes. A key that comes
    again goes on from what it was given before.
    """
    versions = dict(zip(dict.fromkeys(keys), versions_of_heads(joined), strict=True))
    op_ids = range(first_op_id, first_op_id + tick * len(keys), tick)
    records = []
    for key, op_id, total in zip(keys, op_ids, unpack_integers(sums), strict=True):
        version = versions[key] = versions[key] + 1
        records.append(pack_head(version, op_id) + b"%d" % total)
    return records


def pack_integers(numbers: Iterable[int]) -> bytes:
    """64-bit integers, eight bytes each. Raises OverflowError."""
    return array("q", numbers).tobytes()


def unpack_integers(packed: bytes) -> list[int]:
    return memoryview(packed).cast("q").tolist()


def heads_of_keys(records: dict[bytes, bytes], keys: Sequence[bytes]) -> bytes:
    """The heads of what these keys hold now; zeros for absent ones."""
    return b"".join(map(_head_of, map(records.get, keys, repeat(ABSENT))))
