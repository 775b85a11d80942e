"""A NunDB directory as an import reads it: only ever read, every byte of it checked before anything is done with it.

Keys are held in memory, values stay in the files until they are asked for.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nun import nundb
from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX
from nun.core.requests.access import CONNECTIONS_KEY, PERMISSION_PREFIX, TOKEN_KEY, USER_PREFIX
from nun.errors import DamagedFile, NunError

_OURS: Final = "nun.state"  # what a directory has once a node of ours has read it
_ADDRESS_BITS: Final = 64


class NoNunDB(NunError):
    """A directory that is none of NunDB's."""


class Counts(NamedTuple):
    """How much there is of it, in bytes of keys and values too."""

    keys: int
    size: int


class Source:
    """One database.

    Attributes:
        name, strategy: as NunDB has them.
        token: None where there is none.
        users, permissions: of each user, token and list.
        waiting: what waits for arbiters, key by key, in the order in which it was written.
        left: records of conflicts that cannot be taken apart, with their texts.
        counts: of the keys that are data.

    Raises:
        DamagedFile: something in the files does not fit together.
    """

    def __init__(self, folder: Path, name: str, legacy: bool) -> None:
        self.name = name
        self.token: bytes | None = None
        self.users: dict[bytes, bytes] = {}
        self.permissions: dict[bytes, bytes] = {}
        self.waiting: dict[bytes, list[nundb.Waiting]] = {}
        self.left: dict[bytes, bytes] = {}
        self._values_file = name + nundb.VALUES
        self._maps: dict[bytes, bytes] = {}  # of a legacy map: all that there is
        self._rows: dict[bytes, int] = {}  # version and address of each key
        self._values: nundb.Buffer = b""
        if legacy:
            data = _mapped(folder / (name + nundb.LEGACY))
            self._maps = dict(nundb.pairs(data, name + nundb.LEGACY))
            self._rows = dict.fromkeys(self._maps, 1 << _ADDRESS_BITS)
        else:
            self._read(folder)
        metadata = folder / (name + nundb.METADATA)
        told = metadata.read_bytes() if metadata.exists() else None
        self.strategy = nundb.strategy_of(told, name, legacy)
        self._sort()
        size = sum(len(key) + len(self.value(key)) for key in self._rows)
        self.counts = Counts(len(self._rows), size)

    def _read(self, folder: Path) -> None:
        file = self.name + nundb.KEYS
        values = folder / self._values_file
        if values.exists():
            self._values = _mapped(values)
        rows = self._rows
        for key, version, address in nundb.rows(_mapped(folder / file), file):
            if version == nundb.REMOVED:
                rows.pop(key, None)
            else:
                rows[key] = nundb.version_here(version) << _ADDRESS_BITS | address

    def _sort(self) -> None:
        """Takes what is no data out of the keys."""
        rows = self._rows
        rows.pop(CONNECTIONS_KEY, None)
        system = [key for key in rows if key.startswith(b"$")]
        told = {key: self.value(key) for key in system}
        self.token = told.get(TOKEN_KEY)
        for key, value in told.items():
            if key.startswith(USER_PREFIX):
                self.users[key.removeprefix(USER_PREFIX)] = value
            elif key.startswith(PERMISSION_PREFIX):
                self.permissions[key.removeprefix(PERMISSION_PREFIX)] = value
            elif key.startswith(CONFLICT_PREFIX):
                self._conflict(key, value)
            elif key != TOKEN_KEY:
                continue
            del rows[key]
        for queue in self.waiting.values():
            queue.sort(key=lambda one: one.op_id)

    def _conflict(self, place: bytes, text: bytes) -> None:
        if nundb.is_resolved(text):
            return
        key = nundb.key_of(place)
        held = self.value(key) if key in self._rows else None
        found = nundb.waiting_in(place, text, held)
        if found is None:
            self.left[place] = text
        else:
            self.waiting.setdefault(key, []).append(found)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._rows)

    def value(self, key: bytes) -> bytes:
        held = self._maps.get(key)
        if held is not None:
            return held
        address = self._rows[key] & ((1 << _ADDRESS_BITS) - 1)
        return nundb.value_at(self._values, address, self._values_file)

    def version(self, key: bytes) -> int:
        """The version of a key; of one in conflict, the one that it had before."""
        version = self._rows[key] >> _ADDRESS_BITS
        told = [one.version for one in self.waiting.get(key, ()) if one.version is not None]
        return max(version, told[0]) if told else version

    @property
    def conflicts(self) -> int:
        return sum(map(len, self.waiting.values()))


def sources(folder: Path, only: Sequence[str]) -> list[Source]:
    """The databases of a directory, or those of these names. Raises NoNunDB, DamagedFile."""
    if not folder.is_dir():
        raise NoNunDB(f"{folder} is no directory; expected the data directory of a NunDB")
    names = [path.name for path in folder.iterdir() if path.is_file()]
    if _OURS in names:
        raise NoNunDB(
            f"{folder} is the data directory of a node of Nun: start a node on it, or export from that"
        )
    found = nundb.databases(names)
    if not found:
        raise NoNunDB(
            f"{folder} holds no database of NunDB: expected files such as NAME{nundb.KEYS}"
        )
    missing = [name for name in only if name not in found]
    if missing:
        raise NoNunDB(
            f"{folder} holds no database {missing[0]!r}; it has {', '.join(map(repr, found))}"
        )
    wanted = only or list(found)
    return [Source(folder, name, found[name]) for name in dict.fromkeys(wanted)]


def _mapped(path: Path) -> nundb.Buffer:
    """A file's bytes. Raises DamagedFile."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DamagedFile(path.name, 0, f"it cannot be read: {error.strerror}") from error
