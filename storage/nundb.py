"""Reading what NunDB left in a directory: its present files, and its legacy map from before 2022 (nun/nundb.py).

Such a database is loaded as it stands and written in our layout by the next snapshot; until that is complete, its
files stay untouched. Loading twice gives the same: databases are numbered in order of their names, written down in
`nun.state` before anything else happens, and records get op ids of node number 0, made of the database's number and the
key's place in their order. What else becomes of them (tokens are hashed, conflicts opened) is decided in the node's
first entry: nun/core/newcomers.py.

What is normalised: a later record of a key overrides an earlier one, as NunDB loads them; removed keys (version -1)
are left out, whatever lies before them; other negative versions, the conflict mark -2 among them, become 1; who may
write may arbitrate, as with NunDB. NunDB's `$admin` database (its token is the administrator's password) and
the `$connections` count of a database are not taken over.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from nun import nundb
from nun.core import record
from nun.core.clock import TICK
from nun.core.requests.access import PERMISSION_PREFIX
from storage import layout
from storage.disk import Disk

CONNECTIONS: Final = b"$connections"


class Migrated(NamedTuple):
    """A database as NunDB had it."""

    name: str
    options: dict[str, Any]
    records: dict[bytes, bytes]


def find(disk: Disk, ours: set[str]) -> list[str]:
    """The names of the databases that NunDB left here, but for those that have side files of ours, sorted.

    NunDB escapes nothing: what stands before the ending is the name.
    """
    made = {layout.stem(name) for name in ours}
    return [name for name in nundb.databases(disk.names()) if name not in ours and name not in made]


def read(disk: Disk, name: str, number: int) -> Migrated:
    """Reads one database, which is to have this number. Raises DamagedFile that says where."""
    legacy = not disk.exists(name + nundb.KEYS)
    if legacy:
        data = bytes(disk.view(name + nundb.LEGACY))
        found = {key: (1, value) for key, value in nundb.pairs(data, name + nundb.LEGACY)}
    else:
        found = _present(disk, name)
    found.pop(CONNECTIONS, None)
    records = {}
    for index, key in enumerate(sorted(found)):
        version, value = found[key]
        if key.startswith(PERMISSION_PREFIX):
            value = nundb.arbitrating(value).encode()
        records[key] = record.live(version, (number << 32 | index + 1) * TICK, value)
    file = name + nundb.METADATA
    metadata = bytes(disk.view(file)) if disk.exists(file) else None
    options = {
        "strategy": nundb.strategy_of(metadata, name, legacy),
        "migrated_from": "nundb-legacy" if legacy else "nundb",
    }
    return Migrated(name, options, records)


def _present(disk: Disk, name: str) -> dict[bytes, tuple[int, bytes]]:
    keys = bytes(disk.view(name + nundb.KEYS))
    file = name + nundb.VALUES
    values = bytes(disk.view(file)) if disk.exists(file) else b""
    found: dict[bytes, tuple[int, bytes]] = {}
    for key, version, address in nundb.rows(keys, name + nundb.KEYS):
        if version == nundb.REMOVED:
            found.pop(key, None)
        else:
            value = nundb.value_at(values, address, file)
            found[key] = (nundb.version_here(version), value)
    return found


def legacy_file(name: str) -> str:
    """The file that a database's legacy map stood in."""
    return name + nundb.LEGACY
