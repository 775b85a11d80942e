"""A simulated disk: a data directory in memory that crashes, tears, loses, fills up and fails on demand.

It keeps apart what was written and what was synced, for contents (`File.sync`) and for names (`Disk.sync_names`), so a
crash can leave exactly what a real one may leave:

I1  Power loss (`crash`) keeps what was synced and any subset of the rest: an unsynced write is whole, torn or
    lost, independently of its neighbours; an unsynced truncation, creation, rename or removal happened or did not.
    A folder is a name of the root: one that was made and not synced there is lost with all that is in it.
I2  A killed process (`kill`) loses nothing that was written; what was unsynced still is.
I3  After a sync that failed, what it covered is never synced by a later one, though it still reads back.
I4  After `Crashed` was raised every further call raises it: nothing can be done by code that is dead.

To crash at every boundary of some work, count its calls once, then run it again for each of them:

    disk = SimDisk(); work(disk)
    for n in range(1, disk.calls + 1):
        disk = SimDisk(); disk.crash_after(n, "torn")
        with pytest.raises(Crashed):
            work(disk)
        after = disk.crash(random.Random(seed))

Damage is done with `content` and `put`, which are no calls and are durable at once.
"""

from __future__ import annotations

import errno
import os
import random
from dataclasses import dataclass, field
from typing import Final, Literal

SECTOR_BYTES: Final = 512  # a torn write may keep any of these, or a prefix at any byte
How = Literal["done", "not_done", "torn"]


class Crashed(BaseException):
    """The process died at this call. No `except Exception` may survive it."""


@dataclass
class _Change:
    """A write (data) or a truncation (data None) that is not synced yet."""

    offset: int
    data: bytes | None
    doomed: bool = False  # a sync of it failed: no later one makes it durable

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            if self.offset <= len(content):
                del content[self.offset :]
            else:
                content.extend(bytes(self.offset - len(content)))
            return
        if self.offset > len(content):
            content.extend(bytes(self.offset - len(content)))
        content[self.offset : self.offset + len(self.data)] = self.data

    def after(self, later: _Change) -> list[_Change]:
        """What can still come of this doomed change once a later one of the same file has come to the disk."""
        begin, end = later.offset, later.offset + len(later.data or b"")
        if self.data is None:
            return [self] if self.offset >= end and later.data is not None else []
        if later.data is None:
            end = self.offset + len(self.data)
        parts = [_Change(self.offset, self.data[: max(begin - self.offset, 0)], True)]
        if self.offset + len(self.data) > end:
            skipped = max(end - self.offset, 0)
            parts.append(_Change(self.offset + skipped, self.data[skipped:], True))
        return [part for part in parts if part.data]

    def apply_torn(self, content: bytearray, rng: random.Random) -> None:
        """A prefix, or any of the sectors."""
        if self.data is None:
            return
        if rng.random() < 0.5:
            _Change(self.offset, self.data[: rng.randrange(len(self.data) + 1)]).apply(content)
            return
        at = self.offset
        end = self.offset + len(self.data)
        while at < end:
            until = min((at // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
            if rng.random() < 0.5:
                part = self.data[at - self.offset : until - self.offset]
                _Change(at, part).apply(content)
            at = until


@dataclass
class _Inode:
    content: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list)

    def change(self, change: _Change) -> None:
        change.apply(self.content)
        self.changes.append(change)

    def sync(self, changes: int | None = None) -> None:
        """Makes the first so many unsynced changes durable, all by default."""
        count = len(self.changes) if changes is None else changes
        for change in self.changes[:count]:
            if not change.doomed:
                change.apply(self.synced)
        left: list[_Change] = []
        for i, change in enumerate(self.changes):
            if i < count and not change.doomed:
                left = [part for each in left for part in each.after(change)]
            else:
                left.append(change)
        self.changes = left

    def copy(self) -> _Inode:
        return _Inode(bytearray(self.content), bytearray(self.synced), list(self.changes))

    def after_power_loss(self, rng: random.Random) -> _Inode:
        content = bytearray(self.synced)
        for change in self.changes:
            fate = rng.random()
            if fate < 1 / 3:
                change.apply(content)
            elif fate < 2 / 3:
                change.apply_torn(content, rng)
        return _Inode(content, bytearray(content))


@dataclass
class _NameChange:
    """A creation (no old), rename, or removal (no new) that is not synced yet."""

    old: str | None
    new: str | None
    inode: int

    @property
    def folders(self) -> set[str]:
        return {os.path.dirname(name) for name in (self.old, self.new) if name is not None}

    def apply(self, names: dict[str, int]) -> None:
        if self.old is not None and names.get(self.old) == self.inode:
            del names[self.old]
        if self.new is not None:
            names[self.new] = self.inode


class SimFile:
    """An open file of a SimDisk; it stays valid when its name is renamed or removed."""

    def __init__(self, disk: SimDisk, name: str, inode: _Inode) -> None:
        self.name = name
        self._disk = disk
        self._inode = inode
        self._closed = False

    def _check(self) -> None:
        self._disk._alive()
        if self._closed:
            raise OSError(errno.EBADF, "the file is closed", self.name)

    def read(self, offset: int, size: int) -> bytes:
        self._check()
        return bytes(self._inode.content[offset : offset + size])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._check()
        data = bytes(data)
        how = self._disk._call()
        if how == "torn":
            kept = self._disk._rng.randrange(len(data) + 1)
            self._inode.change(_Change(offset, data[:kept]))
        elif how != "not_done":
            growth = max(offset + len(data) - len(self._inode.content), 0)
            room = self._disk.free_bytes()
            if growth > room:
                fits = max(len(data) - growth + room, 0)
                if fits and offset <= len(self._inode.content):
                    self._inode.change(_Change(offset, data[:fits]))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
            self._inode.change(_Change(offset, data))
        self._disk._crash_if(how)

    def sync(self) -> None:
        self._check()
        how = self._disk._call()
        if self._disk.syncs_to_fail and how is None:
            self._disk.syncs_to_fail -= 1
            for change in self._inode.changes:
                change.doomed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        if how == "torn":
            self._inode.sync(self._disk._rng.randrange(len(self._inode.changes) + 1))
        elif how != "not_done":
            self._inode.sync()
        self._disk._crash_if(how)

    def truncate(self, size: int) -> None:
        self._check()
        how = self._disk._call()
        if how not in ("not_done", "torn"):
            if size - len(self._inode.content) > self._disk.free_bytes():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
            self._inode.change(_Change(size, None))
        self._disk._crash_if(how)

    def size(self) -> int:
        self._check()
        return len(self._inode.content)

    def close(self) -> None:
        self._closed = True


class SimDisk:
    """A Disk (storage/disk.py) in memory.

    Attributes:
        calls: how many mutating calls were made: create, write, sync, truncate, rename, remove, sync_names.
        capacity: bytes that all files together may have; None: no bound. A write beyond it fills what is left and
            raises ENOSPC.
        syncs_to_fail: this many of the next syncs (of files or names) raise EIO.
    """

    def __init__(self, seed: int = 0) -> None:
        self.calls = 0
        self.capacity: int | None = None
        self.syncs_to_fail = 0
        self._rng = random.Random(seed)
        self._inodes: list[_Inode] = []
        self._names: dict[str, int] = {}
        self._synced_names: dict[str, int] = {}
        self._name_changes: list[_NameChange] = []
        self._synced_folders: set[str] = {""}
        self._crash_at: tuple[int, How] | None = None
        self._dead = False

    # The faults

    def crash_after(self, calls: int, how: How = "done") -> None:
        """The process dies at the `calls`-th mutating call from now, which is then done, not done, or torn."""
        assert calls >= 1
        self._crash_at = (self.calls + calls, how)

    def crash(self, rng: random.Random) -> SimDisk:
        """What the next start finds after a loss of power (I1)."""
        after = SimDisk(rng.randrange(2**32))
        names = dict(self._synced_names)
        for change in self._name_changes:
            if rng.random() < 0.5:
                change.apply(names)
        for folder in sorted({os.path.dirname(name) for name in names} - self._synced_folders):
            if rng.random() < 0.5:
                names = {
                    name: inode for name, inode in names.items() if os.path.dirname(name) != folder
                }
        after.capacity = self.capacity
        after._inodes = [inode.after_power_loss(rng) for inode in self._inodes]
        after._names = names
        after._synced_names = dict(names)
        after._synced_folders |= {os.path.dirname(name) for name in names}
        return after

    def kill(self) -> SimDisk:
        """What the next start finds after the process was killed (I2)."""
        after = SimDisk(self._rng.randrange(2**32))
        after.capacity = self.capacity
        after._inodes = [inode.copy() for inode in self._inodes]
        after._names = dict(self._names)
        after._synced_names = dict(self._synced_names)
        after._name_changes = list(self._name_changes)
        after._synced_folders = set(self._synced_folders)
        return after

    def fill(self, leave: int = 0) -> None:
        """Makes the disk full, but for `leave` bytes. `capacity = None` makes room again."""
        self.capacity = self.used_bytes() + leave

    def used_bytes(self) -> int:
        return sum(len(self._inodes[inode].content) for inode in set(self._names.values()))

    def content(self, name: str) -> bytes:
        return bytes(self._inodes[self._names[name]].content)

    def put(self, name: str, content: bytes) -> None:
        """Replaces a file's content, or makes the file; durable at once."""
        if name not in self._names:
            self._inodes.append(_Inode())
            self._names[name] = self._synced_names[name] = len(self._inodes) - 1
            self._synced_folders.add(os.path.dirname(name))
        inode = self._inodes[self._names[name]]
        inode.content = bytearray(content)
        inode.synced = bytearray(content)
        inode.changes = []

    def _alive(self) -> None:
        if self._dead:
            raise Crashed

    def _call(self) -> How | None:
        self._alive()
        self.calls += 1
        if self._crash_at is not None and self.calls == self._crash_at[0]:
            return self._crash_at[1]
        return None

    def _crash_if(self, how: How | None) -> None:
        if how is not None:
            self._dead = True
            raise Crashed

    # The Disk

    def names(self, folder: str = "") -> list[str]:
        self._alive()
        return sorted(
            os.path.basename(name) for name in self._names if os.path.dirname(name) == folder
        )

    def exists(self, name: str) -> bool:
        self._alive()
        return name in self._names

    def open(self, name: str, *, create: bool = False) -> SimFile:
        self._alive()
        if name not in self._names:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            how = self._call()
            if how not in ("not_done", "torn"):
                self._inodes.append(_Inode())
                self._change_name(_NameChange(None, name, len(self._inodes) - 1))
            self._crash_if(how)
        return SimFile(self, name, self._inodes[self._names[name]])

    def view(self, name: str) -> bytes:
        self._alive()
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.content(name)

    def rename(self, old: str, new: str) -> None:
        self._alive()
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        self._name_call(_NameChange(old, new, self._names[old]))

    def remove(self, name: str) -> None:
        self._alive()
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        self._name_call(_NameChange(name, None, self._names[name]))

    def sync_names(self, folder: str = "") -> None:
        how = self._call()
        if self.syncs_to_fail and how is None:
            self.syncs_to_fail -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), folder)
        if how not in ("not_done", "torn"):
            for change in self._name_changes:
                if folder in change.folders:
                    change.apply(self._synced_names)
            self._name_changes = [
                change for change in self._name_changes if folder not in change.folders
            ]
            if not folder:
                self._synced_folders |= {os.path.dirname(name) for name in self._names}
        self._crash_if(how)

    def free_bytes(self) -> int:
        self._alive()
        if self.capacity is None:
            return 2**40
        return max(self.capacity - self.used_bytes(), 0)

    def _name_call(self, change: _NameChange) -> None:
        how = self._call()
        if how not in ("not_done", "torn"):
            self._change_name(change)
        self._crash_if(how)

    def _change_name(self, change: _NameChange) -> None:
        change.apply(self._names)
        self._name_changes.append(change)
