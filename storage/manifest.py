"""Side files: what a snapshot commits by, and what NunDB's layouts have no room for.

    magic 8 bytes | length u32 | CRC-32 u32 | msgpack

    NAME-nun.data.side   "NUNSIDE1" or "NUNSIDE2"
                                     one database's snapshot: number, name, position, how much of the files counts, the
                                     redo plan of its updates in place, the generation of files it names
    nun.state            "NUNSTAT1"   [all state but records (NodeState.dump), {database: seq}]: up to which entry the
                                     files of each database are complete, when that is more than its side file says

A side file says format 2 as long as its files may hold records with tails (storage/layout.py), and 1 where they do not:
a program that knows only those refuses the one as too new, and goes on with the other.

Each is written beside its old version, synced, and renamed: the rename is the commit.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nun.codec import pack, unpack
from nun.core.state import NodeState
from nun.errors import DamagedFile, FormatTooNew, StorageError, WireError
from storage.disk import Disk, File

SIDE_MAGICS: Final = (b"NUNSIDE1", b"NUNSIDE2")  # of format 1, 2
FORMAT_WITH_TAILS: Final = 2
STATE_MAGIC: Final = b"NUNSTAT1"
STATE: Final = "nun.state"
_HEAD = struct.Struct("<8sII")


@dataclass(slots=True)
class Side:
    """A database's side file.

    Attributes:
        number, name: of the database.
        seq: the last entry that this snapshot holds.
        keys_bytes, values_bytes, rows: how much of each file counts; what lies behind is not there.
        live_values_bytes: of values_bytes, how much belongs to records: their values, and their tails.
        free_rows: rows of dropped keys.
        generation: counts reclaims; files that a reclaim made bear it until they are renamed.
        plan: updates in place that belong to this snapshot: (kind of file, offset, bytes); doing them twice is fine.
        format: FORMAT_WITH_TAILS once a record with a tail was written, until a reclaim finds none; the magic says it.
    """

    number: int
    name: str
    seq: int = 0
    keys_bytes: int = 0
    values_bytes: int = 0
    rows: int = 0
    live_values_bytes: int = 0
    free_rows: int = 0
    generation: int = 0
    plan: list[tuple[str, int, bytes]] = field(default_factory=list)
    format: int = 1

    def body(self) -> bytes:
        return pack(
            (
                self.number,
                self.name,
                self.seq,
                self.keys_bytes,
                self.values_bytes,
                self.rows,
                self.live_values_bytes,
                self.free_rows,
                self.generation,
                self.plan,
            )
        )


def read_side(disk: Disk, name: str) -> Side:
    """Reads a side file. Raises DamagedFile, FormatTooNew."""
    format, body = _read(disk, name, SIDE_MAGICS)
    try:
        side = _side_of(unpack(body))
    except (WireError, AttributeError, TypeError, ValueError) as error:
        raise DamagedFile(
            name, _HEAD.size, f"expected a side file's ten fields: {error}"
        ) from error
    side.format = format
    return side


def _side_of(fields: Any) -> Side:
    match fields:
        case [
            int() as number,
            bytes() as database,
            int() as seq,
            int() as keys_bytes,
            int() as values_bytes,
            int() as rows,
            int() as live_values_bytes,
            int() as free_rows,
            int() as generation,
            list() as plan,
        ]:
            return Side(
                number,
                database.decode(),
                seq,
                keys_bytes,
                values_bytes,
                rows,
                live_values_bytes,
                free_rows,
                generation,
                [(kind.decode(), offset, data) for kind, offset, data in plan],
            )
    raise ValueError("other fields")


def read_state(disk: Disk) -> tuple[NodeState, dict[int, int]] | None:
    """State and positions of the last snapshot; None when there was none. Raises DamagedFile, FormatTooNew."""
    if not disk.exists(STATE):
        return None
    _, body = _read(disk, STATE, (STATE_MAGIC,))
    try:
        match unpack(body):
            case [list() as dumped, dict() as seqs]:
                return NodeState.load(dumped), seqs
    except WireError as error:
        raise DamagedFile(STATE, _HEAD.size, str(error)) from error
    raise DamagedFile(STATE, _HEAD.size, "expected [state, positions]")


def state_bytes(state: NodeState, seqs: dict[int, int]) -> bytes:
    """The content of `nun.state`."""
    return _framed(STATE_MAGIC, pack((state.dump(), seqs)))


def side_bytes(side: Side) -> bytes:
    """The content of a side file."""
    return _framed(SIDE_MAGICS[side.format - 1], side.body())


def _framed(magic: bytes, body: bytes) -> bytes:
    return _HEAD.pack(magic, len(body), zlib.crc32(body)) + body


def _read(disk: Disk, name: str, magics: Sequence[bytes]) -> tuple[int, bytes]:
    """Format and body of a file; `magics` are those of format 1 and up."""
    expected = " or ".join(magic.decode() for magic in magics)
    data = bytes(disk.view(name))
    if len(data) < _HEAD.size or data[: len(magics[0]) - 1] != magics[0][:-1]:
        raise DamagedFile(name, 0, f"expected a file that begins with {expected}")
    found, length, crc = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if len(body) != length or zlib.crc32(body) != crc:
        raise DamagedFile(name, _HEAD.size, "the checksum does not match")
    if found not in magics:
        raise FormatTooNew(f"{name} is of format {found!r}, expected {expected}")
    return magics.index(found) + 1, body


def replace(disk: Disk, name: str, content: bytes) -> None:
    """Writes a file beside its old version and renames it: all of it is there, durably, or nothing."""
    beside = f"{name}.tmp"
    file = disk.open(beside, create=True)
    try:
        file.truncate(0)
        file.write(0, content)
        sync(file)
    finally:
        file.close()
    disk.rename(beside, name)
    sync_names(disk)


def sync(file: File) -> None:
    """Makes a file durable. Raises StorageError when that failed: it is never tried again, the process has to end."""
    try:
        file.sync()
    except OSError as error:
        raise StorageError(f"{file.name} could not be synced: {error}") from error


def sync_names(disk: Disk) -> None:
    """Makes the names of the directory durable. Raises StorageError as `sync` does."""
    try:
        disk.sync_names()
    except OSError as error:
        raise StorageError(f"the directory could not be synced: {error}") from error
