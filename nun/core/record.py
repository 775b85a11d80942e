"""A record: what a key holds, as one packed `bytes` object.

    offset  size  field
    0       4     version, u32; bit 31 set: SPECIAL, a kind byte follows the head
    4       8     op id, u64
    12      1     kind, only of SPECIAL records
    12/...  ...   value: always the end of the record

    kind 0  tombstone        nothing follows
    kind 1  signed           length u16 | signature | value
    kind 2  signed tombstone length u16 | signature
    kind 3  in conflict      over u8 | what that says:
                             over 0: value; 1, 2: as those kinds; 4: a tombstone; 5: the key was absent

Little endian. Packed bytes cost a third of what a tuple costs, are invisible to the garbage collector and can be handed
to a client or the log as they are. Heads of many records are read at once: join their first twelve bytes and
cast to u32; see `heads`. A head of zeros stands for "absent": no record has op id 0.

In a database whose strategy lets a write displace one that it has not seen (`newer`, `older`), the loser must be found
again: its records carry a **signature** (when it was written, by which request, and when those before it were). Where
no record is displaced that way, none is needed. A record in conflict keeps head and value of the record that it was.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import Final, NamedTuple

assert sys.byteorder == "little", (
    "records are read by casting memory: only little-endian machines are supported"
)

_HEAD = struct.Struct("<IQ")
HEAD_BYTES: Final = _HEAD.size
SPECIAL: Final = 1 << 31
TOMBSTONE_KIND: Final = 0
SIGNED_KIND: Final = 1
SIGNED_TOMBSTONE_KIND: Final = 2
CONFLICT_KIND: Final = 3
_OVER_LIVE: Final = 0
_OVER_TOMBSTONE: Final = 4
_OVER_ABSENT: Final = 5
ANCESTORS_MAX: Final = 8
INTEGER_BYTES: Final = 8
ABSENT: Final = bytes(HEAD_BYTES)
UNKNOWN_BASE: Final = 1  # stands for an op id that is not known; no write ever has this one

pack_head = _HEAD.pack
unpack_head = _HEAD.unpack_from
_head_of = itemgetter(slice(0, HEAD_BYTES))
_TOMBSTONE_TAIL = bytes([TOMBSTONE_KIND])
_SIGNATURE = struct.Struct(
    "<qIQB"
)  # at, bound, request, how many ancestors; then these, then the client id
_ANCESTOR = struct.Struct("<Qq")
_LENGTH = struct.Struct("<H")
_SIGNED = bytes([SIGNED_KIND])
_SIGNED_TOMBSTONE = bytes([SIGNED_TOMBSTONE_KIND])


class Signature(NamedTuple):
    """Who wrote a record, and when.

    Attributes:
        at_ms: Unix time, less the measured offset of the clock of the node that took the write.
        bound_ms: how far that may be wrong.
        client_id, request: whose write it was.
        ancestors: (op id, at) of the records before it, the newest first; no more than ANCESTORS_MAX.
    """

    at_ms: int
    bound_ms: int
    client_id: bytes
    request: int
    ancestors: tuple[tuple[int, int], ...] = ()

    def pack(self) -> bytes:
        known = self.ancestors[:ANCESTORS_MAX]
        parts = [_SIGNATURE.pack(self.at_ms, self.bound_ms, self.request, len(known))]
        parts += [_ANCESTOR.pack(op_id, at_ms) for op_id, at_ms in known]
        return b"".join(parts) + self.client_id

    @classmethod
    def unpack(cls, packed: bytes) -> Signature:
        at_ms, bound_ms, request, count = _SIGNATURE.unpack_from(packed)
        ancestors = tuple(
            _ANCESTOR.unpack_from(packed, _SIGNATURE.size + index * _ANCESTOR.size)
            for index in range(count)
        )
        client_id = packed[_SIGNATURE.size + count * _ANCESTOR.size :]
        return cls(at_ms, bound_ms, client_id, request, ancestors)


def live(version: int, op_id: int, value: bytes) -> bytes:
    """A record that holds a value."""
    return pack_head(version, op_id) + value


def tombstone(version: int, op_id: int) -> bytes:
    """A record that says the key was removed, and keeps its version."""
    return pack_head(version | SPECIAL, op_id) + _TOMBSTONE_TAIL


def signed(version: int, op_id: int, signature: Signature, value: bytes | None) -> bytes:
    """A record that holds a value (None: a tombstone) and says whose it is."""
    head = pack_head(version | SPECIAL, op_id)
    if value is None:
        return head + _SIGNED_TOMBSTONE + packed_signature(signature)
    return head + signed_tail(signature) + value


def is_signed(packed: bytes) -> bool:
    """Whether the key has a value, says whose it is, and is not in conflict."""
    return packed[3] >= 0x80 and packed[HEAD_BYTES] == SIGNED_KIND


def signed_tail(signature: Signature) -> bytes:
    """What stands between head and value of a signed record."""
    return _SIGNED + packed_signature(signature)


@lru_cache(maxsize=16)
def packed_signature(signature: Signature) -> bytes:
    """A signature and its length; a batch has the same one for all its records."""
    body = signature.pack()
    return _LENGTH.pack(len(body)) + body


def in_conflict(old: bytes) -> bytes:
    """The record of a key that goes in conflict: what it held (ABSENT: nothing) stays readable."""
    version, op_id = unpack_head(old)
    if old == ABSENT:
        rest = bytes([CONFLICT_KIND, _OVER_ABSENT])
    elif version < SPECIAL:
        rest = bytes([CONFLICT_KIND, _OVER_LIVE]) + old[HEAD_BYTES:]
    elif old[HEAD_BYTES] == TOMBSTONE_KIND:
        rest = bytes([CONFLICT_KIND, _OVER_TOMBSTONE])
    else:
        rest = bytes([CONFLICT_KIND]) + old[HEAD_BYTES:]
    return pack_head(version | SPECIAL, op_id) + rest


def is_in_conflict(packed: bytes | None) -> bool:
    return packed is not None and packed[3] >= 0x80 and packed[HEAD_BYTES] == CONFLICT_KIND


def beneath(packed: bytes) -> bytes:
    """The record that a key in conflict held before, ABSENT where it held none."""
    version, op_id = unpack_head(packed)
    over = packed[HEAD_BYTES + 1]
    if over == _OVER_ABSENT:
        return ABSENT
    if over == _OVER_LIVE:
        return pack_head(version & ~SPECIAL, op_id) + packed[HEAD_BYTES + 2 :]
    if over == _OVER_TOMBSTONE:
        return packed[:HEAD_BYTES] + _TOMBSTONE_TAIL
    return packed[:HEAD_BYTES] + packed[HEAD_BYTES + 1 :]


def _kind_at(packed: bytes) -> tuple[int, int]:
    """(kind, offset behind its byte) of a SPECIAL record; of one in conflict what it is over."""
    kind = packed[HEAD_BYTES]
    if kind == CONFLICT_KIND:
        return (packed[HEAD_BYTES + 1], HEAD_BYTES + 2)
    return (_OVER_TOMBSTONE if kind == TOMBSTONE_KIND else kind, HEAD_BYTES + 1)


def is_live(packed: bytes | None) -> bool:
    """Whether the key has a value. Absent keys and tombstones have none."""
    if packed is None or packed[:HEAD_BYTES] == ABSENT:
        return False
    return packed[3] < 0x80 or _kind_at(packed)[0] in (_OVER_LIVE, SIGNED_KIND)


def is_tombstone(packed: bytes) -> bool:
    """Whether the key was removed and is free: in conflict it is not."""
    return packed[3] >= 0x80 and packed[HEAD_BYTES] in (TOMBSTONE_KIND, SIGNED_TOMBSTONE_KIND)


def offset_of_value(packed: bytes) -> int:
    """Where the value begins; the end of the record where it has none."""
    if packed[3] < 0x80:
        return HEAD_BYTES
    kind, offset = _kind_at(packed)
    if kind in (SIGNED_KIND, SIGNED_TOMBSTONE_KIND):
        offset += _LENGTH.size + int(_LENGTH.unpack_from(packed, offset)[0])
    return offset


def signature_of(packed: bytes) -> Signature | None:
    """Who wrote this record, where it says so."""
    if packed[3] < 0x80:
        return None
    kind, offset = _kind_at(packed)
    if kind not in (SIGNED_KIND, SIGNED_TOMBSTONE_KIND):
        return None
    end = offset_of_value(packed)
    return Signature.unpack(packed[offset + _LENGTH.size : end])


def shown(packed: bytes | None) -> bytes | None:
    """What a reader gets: None where there is no value; else head and value, and a mark while it is in conflict."""
    if packed is None or packed[3] < 0x80:
        return packed
    if not is_live(packed):
        return None
    version, op_id = unpack_head(packed)
    value = packed[offset_of_value(packed) :]
    if packed[HEAD_BYTES] == CONFLICT_KIND:
        return packed[:HEAD_BYTES] + bytes([CONFLICT_KIND, _OVER_LIVE]) + value
    return pack_head(version & ~SPECIAL, op_id) + value


def version_of(record: bytes) -> int:
    version: int = unpack_head(record)[0]
    return version & ~SPECIAL


def op_id_of(record: bytes) -> int:
    op_id: int = unpack_head(record)[1]
    return op_id


def value_of(packed: bytes) -> bytes:
    """The value of a record that is live."""
    return packed[offset_of_value(packed) :]


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
