"""The seam between the storage code and the disk: a data directory as a flat set of named files.

RealDisk is the operating system's; the tests put a simulated disk in its place that loses unsynced writes, tears them,
runs full and crashes at any call. So every duty towards the disk is explicit here:

I1  Written bytes are durable only after `File.sync` of that file has returned.
I2  A created, renamed or removed name is durable only after `Disk.sync_names` has returned.
I3  A `sync` that raised is never tried again on that file: the caller stops and recovers.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from pathlib import Path
from typing import Final, Protocol

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)  # the errors of a full disk


class File(Protocol):
    """An open file."""

    name: str

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes all of `data` or raises OSError (some of it may then be written)."""
        ...

    def sync(self) -> None: ...

    def truncate(self, size: int) -> None: ...

    def size(self) -> int: ...

    def close(self) -> None: ...


class Disk(Protocol):
    """A directory of files; names may hold one folder level, as in `oplog/0001.log`."""

    def names(self, folder: str = "") -> list[str]:
        """The names of the files in this folder, sorted, without the folder's own name."""
        ...

    def exists(self, name: str) -> bool: ...

    def open(self, name: str, *, create: bool = False) -> File:
        """Opens for reading and writing. Raises FileNotFoundError unless `create`."""
        ...

    def view(self, name: str) -> bytes | mmap.mmap:
        """The whole content for reading; empty bytes for an empty file."""
        ...

    def rename(self, old: str, new: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def sync_names(self, folder: str = "") -> None: ...

    def free_bytes(self) -> int: ...


class FolderDisk:
    """One folder of a disk as a disk of its own; it has no folders."""

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk = disk
        self._folder = folder

    def names(self, folder: str = "") -> list[str]:
        return [] if folder else self._disk.names(self._folder)

    def exists(self, name: str) -> bool:
        return self._disk.exists(f"{self._folder}/{name}")

    def open(self, name: str, *, create: bool = False) -> File:
        return self._disk.open(f"{self._folder}/{name}", create=create)

    def view(self, name: str) -> bytes | mmap.mmap:
        return self._disk.view(f"{self._folder}/{name}")

    def rename(self, old: str, new: str) -> None:
        self._disk.rename(f"{self._folder}/{old}", f"{self._folder}/{new}")

    def remove(self, name: str) -> None:
        self._disk.remove(f"{self._folder}/{name}")

    def sync_names(self, folder: str = "") -> None:
        assert not folder, "it has no folders"
        self._disk.sync_names(self._folder)

    def free_bytes(self) -> int:
        return self._disk.free_bytes()


class RealFile:
    """A file of the operating system."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self._descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        if written != len(data):
            rest = memoryview(data)
            while written < len(rest):
                written += os.pwrite(self._descriptor, rest[written:], offset + written)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        os.close(self._descriptor)


class RealDisk:
    """A directory of the operating system."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def names(self, folder: str = "") -> list[str]:
        path = self.root / folder
        if not path.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(path) if entry.is_file())

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def open(self, name: str, *, create: bool = False) -> RealFile:
        path = self.root / name
        flags = os.O_RDWR | os.O_CLOEXEC
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags |= os.O_CREAT
        return RealFile(name, os.open(path, flags, 0o600))

    def view(self, name: str) -> bytes | mmap.mmap:
        with open(self.root / name, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def rename(self, old: str, new: str) -> None:
        os.replace(self.root / old, self.root / new)

    def remove(self, name: str) -> None:
        os.unlink(self.root / name)

    def sync_names(self, folder: str = "") -> None:
        descriptor = os.open(self.root / folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free
