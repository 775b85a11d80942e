"""Reading what NunDB left in a directory: its present files, and its legacy map from before 2022.

    present   NAME-nun.data.keys, NAME-nun.data.values, NAME-nun.madadata    (storage/layout.py has the layouts)
    legacy    NAME-nun.data: bincode map, count u64 | count x (length u64 | key | length u64 | value)

Such a database is loaded as it stands and written in our layout by the next snapshot; until that is complete, its
files stay untouched. Loading twice gives the same: databases are numbered in order of their names, written down in
`nun.state` before anything else happens, and records get op ids of node number 0, made of the database's number and the
key's place in their order.

What is normalised: a later record of a key overrides an earlier one, as NunDB loads them; removed keys (version -1)
are left out, whatever lies before them; other negative versions, the conflict mark -2 without its record among them,
become 1. NunDB's `$admin` database (its token is the administrator's password) and
the `$connections` count of a database are not taken over.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from nun.core import record
from nun.core.clock import TICK
from nun.errors import DamagedFile
from storage import layout
from storage.disk import Disk

ADMIN: Final = "$admin"
CONNECTIONS: Final = b"$connections"
_STRATEGIES: Final = {0: "none", 1: "newer", 2: "arbiter"}
_LEGACY: Final = "-nun.data"
_U64 = layout.LENGTH


class Migrated(NamedTuple):
    """A database as NunDB had it."""

    name: str
    options: dict[str, Any]
    records: dict[bytes, bytes]


def find(disk: Disk, ours: set[str]) -> list[str]:
    """The names of the databases that NunDB left here, but for those that have side files of ours, sorted.

    NunDB escapes nothing: what stands before the ending is the name.
    """
    names = disk.names()
    present = {layout.stem_of(name, layout.KEYS) for name in names}
    legacy = {name.removesuffix(_LEGACY) for name in names if name.endswith(_LEGACY)}
    made = {layout.stem(name) for name in ours}
    return sorted(name for name in (present | legacy) - ours - made - {ADMIN, None} if name)


def read(disk: Disk, name: str, number: int) -> Migrated:
    """Reads one database, which is to have this number. Raises DamagedFile that says where."""
    keys_file = name + layout.ending(layout.KEYS)
    if disk.exists(keys_file):
        found = _present(disk, name, keys_file)
        origin = "nundb"
    else:
        found = _legacy(disk, name + _LEGACY)
        origin = "nundb-legacy"
    found.pop(CONNECTIONS, None)
    records = {}
    for index, key in enumerate(sorted(found)):
        version, value = found[key]
        records[key] = record.live(version, (number << 32 | index + 1) * TICK, value)
    options = {"strategy": _strategy(disk, name, origin), "migrated_from": origin}
    return Migrated(name, options, records)


def _strategy(disk: Disk, name: str, origin: str) -> str:
    metadata = name + layout.ending(layout.METADATA)
    if disk.exists(metadata):
        data = bytes(disk.view(metadata))
        if len(data) == layout.METADATA_ROW.size:
            return _STRATEGIES.get(layout.METADATA_ROW.unpack(data)[1], "none")
    return "none" if origin == "nundb-legacy" else "newer"


def _present(disk: Disk, name: str, keys_file: str) -> dict[bytes, tuple[int, bytes]]:
    keys = bytes(disk.view(keys_file))
    values_file = name + layout.ending(layout.VALUES)
    values = bytes(disk.view(values_file)) if disk.exists(values_file) else b""
    found: dict[bytes, tuple[int, bytes]] = {}
    offset = 0
    while offset < len(keys):
        key, end = _text(keys, offset, keys_file)
        if end + layout.KEY_TAIL.size > len(keys):
            raise DamagedFile(keys_file, offset, "the file ends within a record")
        version, address = layout.KEY_TAIL.unpack_from(keys, end)
        offset = end + layout.KEY_TAIL.size
        if version == layout.REMOVED:
            found.pop(key, None)
            continue
        value, value_end = _text(values, address, values_file)
        if value_end + layout.STATUS.size > len(values):
            raise DamagedFile(values_file, address, "the file ends within a record")
        found[key] = (version if version >= 0 else 1, value)
    return found


def _legacy(disk: Disk, name: str) -> dict[bytes, tuple[int, bytes]]:
    data = bytes(disk.view(name))
    if len(data) < _U64.size:
        raise DamagedFile(name, 0, "expected the number of keys, 8 bytes")
    count = _U64.unpack_from(data)[0]
    found: dict[bytes, tuple[int, bytes]] = {}
    offset = _U64.size
    for _ in range(count):
        key, offset = _text(data, offset, name)
        value, offset = _text(data, offset, name)
        found[key] = (1, value)
    if offset != len(data):
        raise DamagedFile(
            name, offset, f"{len(data) - offset} bytes follow the last of {count} keys"
        )
    return found


def _text(data: bytes, offset: int, name: str) -> tuple[bytes, int]:
    """A length-prefixed text and where it ends."""
    if offset + _U64.size > len(data):
        raise DamagedFile(name, offset, "the file ends where a length was expected")
    length = _U64.unpack_from(data, offset)[0]
    start = offset + _U64.size
    if start + length > len(data):
        raise DamagedFile(name, offset, f"a text of {length} bytes does not fit into the file")
    return data[start : start + length], start + length
