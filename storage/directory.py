"""A node's data directory: who holds it, and who the node is.

    LOCK    flock'ed by the storage writer as long as it lives; holds its pid
    NODE    the identity: magic "NUNNODE1" | length u32 | CRC-32 u32 | msgpack [cluster id, node number, start]

A new directory becomes a cluster of its own: a random cluster id and node number 1. `start` is raised, durably, each
time the processes start, before anything is stamped: no epoch is ever formed twice.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from nun.codec import pack, unpack
from nun.errors import DamagedFile, DirectoryInUse, FormatTooNew, StorageError, WireError
from storage.disk import Disk, RealDisk

NODE: Final = "NODE"
LOCK: Final = "LOCK"
_MAGIC: Final = b"NUNNODE1"
_HEAD = struct.Struct("<8sII")
_PATIENCE_S: Final = 2.0


class Identity(NamedTuple):
    """Who a node is, and which of its starts this is."""

    cluster_id: bytes
    node: int
    start: int


def read_identity(disk: Disk) -> Identity | None:
    """The identity of a directory, None of a new one. Raises DamagedFile, FormatTooNew."""
    if not disk.exists(NODE):
        return None
    data = bytes(disk.view(NODE))
    if len(data) < _HEAD.size or data[:7] != _MAGIC[:7]:
        raise DamagedFile(NODE, 0, "expected the identity of a node")
    magic, length, crc = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise FormatTooNew(f"{NODE} is of format {magic!r}, expected {_MAGIC!r}")
    body = data[_HEAD.size :]
    if len(body) != length or zlib.crc32(body) != crc:
        raise DamagedFile(NODE, _HEAD.size, "the checksum does not match")
    try:
        cluster_id, node, start = unpack(body)
    except (WireError, ValueError, TypeError) as error:
        raise DamagedFile(NODE, _HEAD.size, "expected [cluster id, node number, start]") from error
    return Identity(cluster_id, node, start)


def write_identity(disk: Disk, identity: Identity) -> None:
    """Makes an identity durable, by rename."""
    body = pack(identity)
    file = disk.open(NODE + ".new", create=True)
    try:
        data = _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body
        file.truncate(0)
        file.write(0, data)
        file.sync()
    finally:
        file.close()
    disk.rename(NODE + ".new", NODE)
    disk.sync_names()


class DataDirectory:
    """A data directory that this process holds."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.disk = RealDisk(path)
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> DataDirectory:
        """Makes the directory if need be and takes its lock.

        Raises:
            DirectoryInUse: another process holds it, and did not let go within two seconds.
            StorageError: it cannot be made or written.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"data directory {str(path)!r} cannot be used: {error.strerror}, "
                "expected a directory that this user may write"
            ) from error
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
                    os.close(lock)
                    raise DirectoryInUse(
                        f"data directory {str(path)!r} is in use by process {holder}"
                    ) from None
                time.sleep(0.02)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return cls(path, lock)

    def begin_start(self) -> Identity:
        """Raises `start`, durably, and returns the identity; makes one for a new directory."""
        known = read_identity(self.disk)
        identity = (
            Identity(os.urandom(16), 1, 1)
            if known is None
            else known._replace(start=known.start + 1)
        )
        write_identity(self.disk, identity)
        return identity

    def close(self) -> None:
        """Lets the directory go."""
        os.close(self._lock)
