"""The run directory: where the sockets between the processes of one node lie. Made by its supervisor, mode 0700.

    DATA_DIR/run/XXXXXXXX/lock          held (flock) as long as the supervisor lives
                          control, op-stream, op-acks

Each supervisor has one of its own, so that one which is started by mistake on a directory in use cannot take the
sockets of the node that runs there. What killed ones left behind is cleared away. Where the path is too long for a
Unix socket, or the disk of the data is full, the directory is made in the system's folder for temporary files instead.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from storage.disk import NO_ROOM

_SOCKET_PATH_MAX: Final = 100  # bytes; the system's limit is 107
_LONGEST: Final = "XXXXXXXX/op-stream"


@contextmanager
def run_directory(data_dir: Path) -> Iterator[Path]:
    """A run directory, until the end of the block. Raises OSError when the data directory cannot be used."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = data_dir.absolute() / "run"
    fits = len(os.fsencode(root / _LONGEST)) <= _SOCKET_PATH_MAX
    try:
        path, lock = _make(root if fits else None)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        path, lock = _make(None)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _make(root: Path | None) -> tuple[Path, int]:
    if root is None:
        path = Path(tempfile.mkdtemp(prefix="nun-"))
        return path, _locked(path / "lock")
    root.mkdir(mode=0o700, exist_ok=True)
    # Nobody clears away what another has made and not locked yet: both happen under the lock of the folder itself.
    guard = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        _clear(root)
        path = Path(tempfile.mkdtemp(prefix="", dir=root))
        try:
            return path, _locked(path / "lock")
        except OSError:
            path.rmdir()
            raise
    finally:
        os.close(guard)


def _locked(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _clear(root: Path) -> None:
    """Removes the run directories whose supervisors are gone."""
    for old in root.iterdir():
        try:
            lock = _locked(old / "lock")
        except OSError:
            continue  # its supervisor lives, or it is none of ours
        shutil.rmtree(old, ignore_errors=True)
        os.close(lock)
