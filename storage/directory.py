"""A node's data directory: who holds it, and who the node is.

    LOCK    flock'ed by the storage writer as long as it lives; holds its pid as text and a newline
    NODE    the identity, replaced whole by rename at every start
    NODE.new  room for the next one, taken ahead of time: a start needs none, so that a node comes up on a full disk

    offset  size  NODE
    0       8     magic "NUNNODE1", the last letter is the format
    8       4     CRC-32 of all other bytes
    12      4     length of the body
    16      ...   body: msgpack [cluster id (16 bytes, or none), node number, start, directory id (16 bytes), promise]
    ...     ...   zeros up to 512 bytes

Little endian. The directory of a node on its own becomes a cluster of its own: a random cluster id and node number 1.
That of a node of a cluster has neither until it has joined: no cluster id, number 0. The directory id is random and
tells a directory from another that takes its place. `promise` is nil or [reign, node number]: nothing of an older reign
is applied or acked here. `start` is raised, durably, each time the processes start, before anything is stamped: no
epoch is ever formed twice.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

from nun.codec import pack, unpack
from nun.core.clock import NODE_MAX
from nun.errors import DamagedFile, DirectoryInUse, FormatTooNew, StorageError, WireError
from storage import segment
from storage.disk import NO_ROOM, Disk, RealDisk

NODE: Final = "NODE"
NODE_NEW: Final = "NODE.new"
LOCK: Final = "LOCK"
PATIENCE_S: Final = 2.0
_MAGIC: Final = b"NUNNODE1"
_HEAD = struct.Struct("<8sII")
_POLL_S: Final = 0.02
_SIZE: Final = 512


class Identity(NamedTuple):
    """Who a node is, and which of its starts this is."""

    cluster_id: bytes
    node: int
    start: int
    directory: bytes
    promise: tuple[int, int] | None = None


def read_identity(disk: Disk) -> Identity | None:
    """The identity of a directory, None of a new one. Raises DamagedFile, FormatTooNew."""
    if not disk.exists(NODE):
        return None
    data = bytes(disk.view(NODE))
    if len(data) < _HEAD.size:
        raise DamagedFile(NODE, len(data), f"expected at least {_HEAD.size} bytes")
    magic, crc, length = _HEAD.unpack_from(data)
    body, rest = data[_HEAD.size : _HEAD.size + length], data[_HEAD.size + length :]
    whole = len(body) == length and len(data) in (_HEAD.size + length, _SIZE) and not any(rest)
    if magic[:-1] != _MAGIC[:-1] or _checksum(magic, body) != crc or not whole:
        raise DamagedFile(NODE, 0, "the identity does not match its checksum")
    if magic != _MAGIC:
        raise FormatTooNew(f"{NODE} is of format {magic[-1:]!r}, expected {_MAGIC[-1:]!r}")
    try:
        match unpack(body):
            case [
                bytes() as cluster_id, int() as node, int() as start, bytes() as directory,
                None | [int(), int()] as promise,
            ] if (
                len(cluster_id) == (16 if node else 0)
                and 0 <= node <= NODE_MAX
                and start >= 1
                and len(directory) == 16
            ):  # fmt: skip
                promised = None if promise is None else (promise[0], promise[1])
                return Identity(cluster_id, node, start, directory, promised)
    except WireError as error:
        raise DamagedFile(NODE, _HEAD.size, f"the identity is {error}") from error
    raise DamagedFile(NODE, _HEAD.size, "expected [cluster id, node number, start, ...]")


def write_identity(disk: Disk, identity: Identity) -> None:
    """Makes an identity durable, by rename: a crash leaves the old one or this one."""
    body = pack(identity)
    data = (_HEAD.pack(_MAGIC, _checksum(_MAGIC, body), len(body)) + body).ljust(_SIZE, b"\0")
    file = disk.open(NODE_NEW, create=True)
    try:
        file.write(0, data)  # first, and over what is there: that takes no more room
        file.truncate(_SIZE)
        file.sync()
    finally:
        file.close()
    disk.rename(NODE_NEW, NODE)
    disk.sync_names()
    _reserve_room(disk)


def _reserve_room(disk: Disk) -> None:
    """Takes the room that the next identity needs; what the last one held has just become free."""
    try:
        file = disk.open(NODE_NEW, create=True)
        try:
            file.write(0, bytes(_SIZE))
            file.sync()
        finally:
            file.close()
        disk.sync_names()
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


def begin_start(disk: Disk, alone: bool = True) -> Identity:
    """Raises `start`, durably, and returns the identity; makes one for a new directory.

    Args:
        alone: a new directory becomes a cluster of its own; else it is of none until it joins one.

    Raises:
        DamagedFile, FormatTooNew: what `read_identity` raises.
        StorageError: there is a log, but nothing that says whose.
    """
    known = read_identity(disk)
    if known is None and any(map(segment.number_of, disk.names(segment.FOLDER))):
        raise StorageError(
            f"file {NODE} is missing beside a log; expected the identity of the node that wrote it"
        )
    if known is not None:
        identity = known._replace(start=known.start + 1)
    else:
        identity = Identity(b"", 0, 1, os.urandom(16))
    if alone and not identity.node:
        identity = identity._replace(cluster_id=os.urandom(16), node=1)
    write_identity(disk, identity)
    return identity


def _checksum(magic: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(magic + len(body).to_bytes(4, "little")))


class DataDirectory:
    """A data directory that this process holds."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.disk = RealDisk(path)
        self._lock = lock

    @classmethod
    def open(cls, path: Path, patience_s: float = PATIENCE_S) -> DataDirectory:
        """Makes the directory if need be and takes its lock.

        Raises:
            DirectoryInUse: another process holds it, and did not let go in time.
            StorageError: it cannot be made or written.
        """
        try:
            _make_durably(path)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(0, "this user may not write in it")
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"data directory {str(path)!r} cannot be used: {error.strerror}, "
                "expected a directory that this user may write"
            ) from error
        try:
            _take(lock, path, time.monotonic() + patience_s)
            _write_pid(lock, f"{os.getpid()}\n".encode())
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock)

    @property
    def identity(self) -> Identity | None:
        """Who the node is; None before its first start."""
        return read_identity(self.disk)

    def begin_start(self, alone: bool = True) -> Identity:
        """See the function of this name."""
        return begin_start(self.disk, alone)

    def become(self, cluster_id: bytes, node: int) -> Identity:
        """Makes durable which node of which cluster this directory is."""
        return self._keep(cluster_id=cluster_id, node=node)

    def keep_promise(self, reign: int, node: int) -> Identity:
        """Makes a promise durable: nothing of an older reign is applied or acked here from now on."""
        return self._keep(promise=(reign, node))

    def _keep(self, **changed: Any) -> Identity:
        known = self.identity
        assert known is not None
        identity = known._replace(**changed)
        write_identity(self.disk, identity)
        return identity

    def close(self) -> None:
        """Lets the directory go."""
        os.close(self._lock)


def _take(lock: int, path: Path, until: float) -> None:
    """Waits for the lock: the writer of a node that was just stopped may be about to let go."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise DirectoryInUse(
                    f"data directory {str(path)!r} is in use by process {holder}"
                ) from None
            time.sleep(_POLL_S)
        else:
            return


def _write_pid(lock: int, pid: bytes) -> None:
    """For whom it may concern; a full disk does not keep a node from starting."""
    try:
        os.pwrite(lock, pid, 0)
        os.ftruncate(lock, len(pid))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


def _make_durably(path: Path) -> None:
    """Makes a directory and its parents such that none of their names is lost to a crash."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in missing:
        RealDisk(folder.parent).sync_names()
