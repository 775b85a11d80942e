"""Copies of another node's files: what is given, what is received, and how it takes the place of what was here.

    copy/PLAN     CRC-32 of the rest; msgpack [copy id, [[file, bytes], ...]]: a copy is being received; its files lie
                  beside, as far as they have come, each part synced
    copy/READY    the same file under its other name: all is here and checked. That rename is the commit
    copy/TAKEN    the files stand in their place; the log begins anew behind them. Empty, and alone, where the
                  log was cut back to where the node's own files end

A start that finds READY moves the files over the old ones, removes what the copy does not have and the whole log, and
renames READY to TAKEN: any of these steps may be done twice. TAKEN tells that a log without entries is no loss; it goes
when the log has some.

I1  Until the commit nothing that was here is touched; from it on, the old files are never used again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from nun.codec import pack, unpack
from nun.core.state import NodeState
from nun.errors import DamagedFile, StorageError
from storage import layout
from storage import segment as seg
from storage.base import read_base, sides
from storage.disk import Disk, FolderDisk
from storage.manifest import STATE, read_state

FOLDER: Final = "copy"
PLAN: Final = f"{FOLDER}/PLAN"
READY: Final = f"{FOLDER}/READY"
TAKEN: Final = f"{FOLDER}/TAKEN"


class Plan(NamedTuple):
    """Which copy, and its files with their sizes."""

    copy_id: bytes
    files: list[tuple[str, int]]


def files_of(disk: Disk) -> tuple[bytes, list[tuple[str, int]]]:
    """The id and the files of the last snapshot, with how much of each counts. Nothing may change them meanwhile.

    There are none as long as a database that came from NunDB has not been in a snapshot.
    """
    known = read_state(disk)
    if known is None or not known[0].databases.keys() <= {side.number for side in sides(disk)}:
        return b"", []
    files = [(STATE, len(disk.view(STATE)))]
    crc = zlib.crc32(disk.view(STATE))
    for side in sides(disk):
        name = layout.file_name(side.name, layout.SIDE)
        content = disk.view(name)
        crc = zlib.crc32(content, crc)
        files.append((name, len(content)))
        for kind in layout.KINDS:
            part = layout.file_name(side.name, kind)
            if disk.exists(part):
                files.append((part, len(disk.view(part))))
    sizes = pack(files)
    return pack((crc, zlib.crc32(sizes))), files


# Receiving


def in_progress(disk: Disk) -> tuple[bytes, dict[str, int]] | None:
    """The copy that is being received, and how much of each file is here."""
    if not disk.exists(PLAN):
        return None
    plan = _read_plan(disk, PLAN)
    held = {}
    for name, size in plan.files:
        place = f"{FOLDER}/{name}"
        if disk.exists(place):
            held[name] = min(len(disk.view(place)), size)
    return plan.copy_id, held


def begin(disk: Disk, copy_id: bytes, files: Sequence[tuple[str, int]]) -> None:
    """Makes room for a copy; an earlier one that was not finished is forgotten. Raises StorageError."""
    if disk.exists(READY):
        raise StorageError("a copy is ready and waits for a start")
    for name, _ in files:
        if name != STATE and not any(
            name.endswith(layout.ending(kind)) for kind in (*layout.KINDS, layout.SIDE)
        ):
            raise StorageError(f"a copy has no file {name!r}")
        if "/" in name:
            raise StorageError(f"a copy has no file {name!r}")
    _remove_parts(disk)
    file = disk.open(f"{PLAN}.new", create=True)
    try:
        body = pack((copy_id, [list(item) for item in files]))
        file.write(0, zlib.crc32(body).to_bytes(4, "little") + body)
        file.sync()
    finally:
        file.close()
    disk.rename(f"{PLAN}.new", PLAN)
    disk.sync_names(FOLDER)
    disk.sync_names()


def put(disk: Disk, name: str, offset: int, data: bytes) -> None:
    """Stores one part of a file, durably. Raises StorageError when it does not continue what is here."""
    plan = _read_plan(disk, PLAN)
    size = dict(plan.files).get(name)
    if size is None or offset + len(data) > size:
        raise StorageError(f"part {offset} of {name!r} is not in the plan of this copy")
    file = disk.open(f"{FOLDER}/{name}", create=True)
    try:
        if file.size() < offset:
            raise StorageError(f"{name!r} has {file.size()} bytes, the part begins at {offset}")
        file.write(offset, data)
        file.sync()
    finally:
        file.close()


def end(disk: Disk, before: Callable[[NodeState], None]) -> None:
    """Checks that all is here and whole, and commits. Raises StorageError or DamagedFile.

    Args:
        before: shown the state that the copy brings, just before what is here is given up for it.
    """
    plan = _read_plan(disk, PLAN)
    for name, size in plan.files:
        place = f"{FOLDER}/{name}"
        if not disk.exists(place) and not size:
            disk.open(place, create=True).close()
        found = len(disk.view(place)) if disk.exists(place) else -1
        if found != size:
            raise DamagedFile(place, max(found, 0), f"expected {size} bytes")
    brought = read_base(FolderDisk(disk, FOLDER))
    before(brought.state)
    disk.sync_names(FOLDER)
    disk.rename(PLAN, READY)
    disk.sync_names(FOLDER)


def drop(disk: Disk) -> None:
    """Forgets a copy that is not all here. Raises StorageError."""
    if disk.exists(READY):
        raise StorageError("a copy is ready and waits for a start")
    if disk.exists(PLAN):
        disk.remove(PLAN)
        disk.sync_names(FOLDER)
        _remove_parts(disk)
        disk.sync_names(FOLDER)


def _remove_parts(disk: Disk) -> None:
    """All that has come of a copy; not what is said of the files that are in place until another one is ready (I1)."""
    for name in disk.names(FOLDER):
        if f"{FOLDER}/{name}" != TAKEN:
            disk.remove(f"{FOLDER}/{name}")


# Taking over


def finish(disk: Disk) -> bool:
    """Puts a copy that is ready in the place of the files and the log; whether there was one."""
    if not disk.exists(READY):
        return False
    plan = _read_plan(disk, READY)
    for name, _ in plan.files:
        if disk.exists(f"{FOLDER}/{name}"):
            disk.rename(f"{FOLDER}/{name}", name)
    disk.sync_names()
    mine = {name for name, _ in plan.files}
    for name in disk.names():
        if ("-nun." in name or name.startswith(f"{STATE}.")) and name not in mine:
            disk.remove(name)
    disk.sync_names()
    for name in reversed(disk.names(seg.FOLDER)):
        disk.remove(f"{seg.FOLDER}/{name}")
    if disk.exists(seg.FOLDER):
        disk.sync_names(seg.FOLDER)
    disk.rename(READY, TAKEN)
    disk.sync_names(FOLDER)
    return True


def begin_log_anew(disk: Disk) -> None:
    """Durably: from now on a log without entries is no loss, for the files end where the log is to be cut back to."""
    disk.open(TAKEN, create=True).close()
    disk.sync_names(FOLDER)
    disk.sync_names()


def was_taken(disk: Disk) -> bool:
    """Whether the files are a copy, or all of the log behind them was cut: it need not reach as far as they do."""
    return disk.exists(TAKEN)


def settled_in(disk: Disk) -> None:
    """The log has entries of its own behind the copy."""
    if disk.exists(TAKEN):
        disk.remove(TAKEN)
        disk.sync_names(FOLDER)


def _read_plan(disk: Disk, name: str) -> Plan:
    if not disk.exists(name):
        raise StorageError(f"no copy is being received: there is no {name}")
    data = bytes(disk.view(name))
    if len(data) < 4 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        raise DamagedFile(name, 0, "the plan of a copy does not match its checksum")
    copy_id, files = unpack(data[4:])
    return Plan(copy_id, [(file.decode(), size) for file, size in files])
