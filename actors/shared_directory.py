"""Which directory is a node's own, where several nodes are started in one.

    DIR/NUN-DB            the name of the node that owns the rest of DIR; locked while a node runs there
    DIR/...               the data of the owner
    DIR/nodes/NAME/...    the data of every other node

NunDB's nodes may share a directory, and scripts start three of them in one; ours may not. So the first node that claims
DIR owns it, and goes on owning it.

I1  A node of a cluster takes no directory in which another has its data, whether that runs or not.
I2  A node on its own goes on with what is there, under whichever address, unless somebody runs there now or it has a
    place of its own: data must not seem to be gone because a port was changed.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

MARKER: Final = "NUN-DB"
NODES: Final = "nodes"


class Claim:
    """A node's place, held until `release` or the end of the process.

    Attributes:
        path: the node's own data directory.
        owner: who owns the root of the directory.
    """

    def __init__(self, path: Path, owner: str, lock: int | None) -> None:
        self.path = path
        self.owner = owner
        self._lock = lock

    def release(self) -> None:
        """Lets go of the lock; the directory stays whose it is."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def claim(directory: Path, name: str, tcp: str, *, alone: bool) -> Claim:
    """Finds the place of a node, and claims it.

    Args:
        directory: as it was asked for; it is made if it is not there.
        name: how others know the node.
        tcp: its TCP address, which was its name as long as it was on its own.
        alone: whether it is on its own now.

    Raises:
        OSError: the directory cannot be used.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = directory / NODES / name
    lock = os.open(directory / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if _locked(lock):
        owner = _owner(lock)
        if owner in (name, tcp) or (not own.exists() and (alone or not owner)):
            if not owner:
                os.pwrite(lock, name.encode(), 0)
                os.fsync(lock)
            return Claim(directory, owner or name, lock)
    owner = _owner(lock)
    os.close(lock)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Claim(own, owner, None)


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 4_096, 0).decode("utf-8", "replace").strip()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
