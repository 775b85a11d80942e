"""NunDB's data directories, byte by byte and word by word. Pure: no file is opened here.

    NAME-nun.data.keys      length u64 | key | version i32 | value address u64     version -1: removed
    NAME-nun.data.values    length u64 | value | status i32 (0)                     an address is an offset here
    NAME-nun.madadata       database number u64, strategy i32; from before strategies: the number alone
    NAME-nun.data           its legacy map: count u64 | count x (length u64 | key | length u64 | value)
    keys-nun.keys           the names of all keys: count u64 | count x (length u64 | key | id u64)
    is-oplog.valid          one byte: 1, the names of all keys fit its operation log

Little endian; names of databases are not escaped. A write that waits for an arbiter is a key of its own,

    $conflicts_KEY_OPID = resolve OPID DATABASE VERSION KEY OLD NEW

OPID is a wall clock in nanoseconds, OLD what the key holds (VERSION: its version) or the name of such a record before
it. Nothing is quoted: where OLD ends is known only from what the key holds, or where neither has a space.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from mmap import mmap
from typing import Final, NamedTuple

from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX, entry_key
from nun.errors import DamagedFile
from nun.limits import VERSION_MAX

LENGTH: Final = struct.Struct("<Q")
KEY_TAIL: Final = struct.Struct("<iQ")  # version, value address
STATUS: Final = struct.Struct("<i")
METADATA_ROW: Final = struct.Struct("<Qi")
REMOVED: Final = -1
IN_CONFLICT: Final = -2

KEYS: Final = "-nun.data.keys"
VALUES: Final = "-nun.data.values"
METADATA: Final = "-nun.madadata"
LEGACY: Final = "-nun.data"
KEYS_MAP: Final = "keys-nun.keys"
LOG_VALID: Final = "is-oplog.valid"
ADMIN: Final = "$admin"  # its own database, made anew at every start
EMPTY: Final = b"<Empty>"  # stands for a value that is not there
STRATEGIES: Final = ("none", "newer", "arbiter")

_RESOLVED: Final = b"resolved"
_OPEN: Final = re.compile(rb"resolve (\d+) \S+ (-?\d+) ")
_PLACE: Final = re.compile(rb"\$conflicts_\S+_\d+ ")
_NS_PER_MS: Final = 1_000_000

Buffer = bytes | mmap


# Databases


def databases(names: Iterable[str]) -> dict[str, bool]:
    """The databases whose files are among these, sorted; True: it is a legacy map."""
    found: dict[str, bool] = {}
    for name in names:
        if name.endswith(KEYS):
            found[name.removesuffix(KEYS)] = False
        elif name.endswith(LEGACY):
            found.setdefault(name.removesuffix(LEGACY), True)
    return {name: found[name] for name in sorted(found) if name not in ("", ADMIN)}


def strategy_of(metadata: bytes | None, name: str, legacy: bool) -> str:
    """The strategy that metadata tell (None: there are none), as NunDB reads them. Raises DamagedFile."""
    if metadata is None:
        return "none" if legacy else "newer"
    if len(metadata) == LENGTH.size:
        return "none"
    if len(metadata) != METADATA_ROW.size:
        raise DamagedFile(
            name + METADATA, 0, f"expected {METADATA_ROW.size} or {LENGTH.size} bytes"
        )
    number = METADATA_ROW.unpack(metadata)[1]
    return STRATEGIES[number] if 0 <= number < len(STRATEGIES) else "none"


def rows(keys: Buffer, name: str) -> Iterator[tuple[bytes, int, int]]:
    """(key, version, address) of every record of a keys file; of one key the last counts. Raises DamagedFile."""
    offset, size = 0, len(keys)
    while offset < size:
        start, end = _span(keys, offset, name)
        key = keys[start:end]
        try:
            key.decode()
        except UnicodeDecodeError as error:
            raise DamagedFile(name, start, f"a key is no UTF-8: {key[:40]!r}") from error
        if end + KEY_TAIL.size > size:
            raise DamagedFile(name, offset, "the file ends within a record")
        version, address = KEY_TAIL.unpack_from(keys, end)
        offset = end + KEY_TAIL.size
        yield key, version, address


def value_at(values: Buffer, address: int, name: str) -> bytes:
    """The value at an address of a values file. Raises DamagedFile."""
    start, end = _span(values, address, name)
    if end + STATUS.size > len(values):
        raise DamagedFile(name, address, "the file ends within a record")
    return values[start:end]


def pairs(legacy: Buffer, name: str) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a legacy map. Raises DamagedFile."""
    if len(legacy) < LENGTH.size:
        raise DamagedFile(name, 0, "expected the number of keys, 8 bytes")
    count = LENGTH.unpack_from(legacy)[0]
    offset = LENGTH.size
    for _ in range(count):
        start, end = _span(legacy, offset, name)
        key = legacy[start:end]
        start, offset = _span(legacy, end, name)
        yield key, legacy[start:offset]
    if offset != len(legacy):
        raise DamagedFile(
            name, offset, f"{len(legacy) - offset} bytes follow the last of {count} keys"
        )


def _span(data: Buffer, offset: int, name: str) -> tuple[int, int]:
    """Where a length-prefixed text begins and ends."""
    start = offset + LENGTH.size
    if start > len(data):
        raise DamagedFile(name, offset, "the file ends where a length was expected")
    length = LENGTH.unpack_from(data, offset)[0]
    if start + length > len(data):
        raise DamagedFile(name, offset, f"a text of {length} bytes does not fit into the file")
    return start, start + length


def version_here(version: int) -> int:
    """The version of a record that NunDB kept under this one; those below zero say nothing."""
    return version if version >= 0 else 1


# Users


def arbitrating(permissions: bytes) -> str:
    """A permission list of NunDB's, where whoever may write may arbitrate; letters that it does not know mean `r`."""
    entries = []
    for part in permissions.decode("utf-8", "replace").split("|"):
        kinds, space, keys = part.strip().partition(" ")
        known = "".join(dict.fromkeys(kind if kind in "rwixa" else "r" for kind in kinds))
        if "w" in known and "a" not in known:
            known += "a"
        entries.append(f"{known}{space}{keys}")
    return "|".join(entries)


# Conflicts


class Waiting(NamedTuple):
    """A write that waits for an arbiter.

    Attributes:
        place: the key of its record; NunDB's op id is the end of it.
        version: of what the key held when the conflict began; None where another record is before this one.
        value: what it wrote.
    """

    place: bytes
    key: bytes
    op_id: int
    version: int | None
    value: bytes

    @property
    def unix_ms(self) -> int:
        """When it was made, by the clock of its node."""
        return self.op_id // _NS_PER_MS


def key_of(place: bytes) -> bytes:
    """The key that a record `$conflicts_KEY_OPID` is about."""
    return place.removeprefix(CONFLICT_PREFIX).rpartition(b"_")[0]


def is_resolved(text: bytes) -> bool:
    """Whether a record `$conflicts_...` says that its conflict is over."""
    return text.startswith(_RESOLVED)


def waiting_in(place: bytes, text: bytes, held: bytes | None) -> Waiting | None:
    """The write that a record `$conflicts_...` keeps; None where that cannot be told.

    Args:
        held: what the key holds, None where it holds nothing.
    """
    key, stamp = key_of(place), place.rpartition(b"_")[2]
    found = _OPEN.match(text)
    if not key or key.startswith(b"$") or found is None or found[1] != stamp:
        return None
    if not text.startswith(key + b" ", found.end()):
        return None
    rest = text[found.end() + len(key) + 1 :]
    version = int(found[2]) if len(found[2]) < 12 else -1
    known = version if 0 <= version < VERSION_MAX else None
    chained = re.match(re.escape(CONFLICT_PREFIX + key) + rb"_\d+ ", rest) or _PLACE.match(rest)
    if chained is not None:
        known, value = None, rest[chained.end() :]
    elif held is not None and rest.startswith(held + b" "):
        value = rest[len(held) + 1 :]
    elif held is None and rest.startswith(EMPTY + b" "):
        value = rest[len(EMPTY) + 1 :]
    elif rest.count(b" ") == 1:
        value = rest.partition(b" ")[2]
    else:
        return None
    return Waiting(place, key, int(stamp), known, value)


def waiting_text(waiting: Waiting, database: bytes, old: bytes) -> bytes:
    """The record that keeps a write; `old`: what the key holds, or the name of the record before it."""
    version = waiting.version or 0
    head = b"resolve %d %s %d %s " % (waiting.op_id, database, version, waiting.key)
    return head + old + b" " + waiting.value


def place_of(key: bytes, unix_ms: int, after: int = 0) -> tuple[bytes, int]:
    """(name, NunDB's op id) of a record for a write that was made then, behind one with op id `after`."""
    op_id = max(unix_ms * _NS_PER_MS, after + 1)
    return entry_key(key, op_id), op_id


# Writing


def key_record(key: bytes, version: int, address: int) -> bytes:
    return LENGTH.pack(len(key)) + key + KEY_TAIL.pack(version, address)


def value_record(value: bytes) -> bytes:
    return LENGTH.pack(len(value)) + value + STATUS.pack(0)


def mapped_name(key: bytes, number: int) -> bytes:
    """One name of the map of all keys; its number is how many were there before it."""
    return LENGTH.pack(len(key)) + key + LENGTH.pack(number)


def without_arbitrating(permissions: bytes) -> bytes:
    """A permission list without what NunDB does not know: there, whoever uses a database may arbitrate."""
    parts = []
    for part in permissions.split(b"|"):
        kinds, _, keys = part.partition(b" ")
        known = kinds.replace(b"a", b"")
        if known:
            parts.append(known + b" " + keys)
    return b"|".join(parts)
