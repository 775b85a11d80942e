"""Free TCP ports for nodes under test, none of which another process that runs these tests is given too.

The ports are dealt out in blocks of four to OWNERS owners in turns, so that ports which lie multiples of a hundred
apart have the same owner: what is configured by one port, and derives others from it, stays within. A lock, held as
long as the process lives, says whose turn is whose.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

_BLOCK: Final = 4
_OWNERS: Final = 25
_FIRST: Final = 10_000


def free_port(*distances: int) -> int:
    """A TCP port of the loopback interface that nobody listens on, not given of late; so for those that far above.

    None of those that the system gives to connections and to binds without a number: it could give one away between
    now and the moment when a node binds it.

    Args:
        distances: multiples of 100, plus 0 to 3.
    """
    assert all(distance % 100 < _BLOCK for distance in distances)
    ports = _own_ports()
    for port in random.SystemRandom().sample(ports, len(ports)):
        wanted = {port, *(port + distance for distance in distances)}
        if (
            (distances and port % _BLOCK)
            or max(wanted) > ports[-1]
            or not wanted.isdisjoint(_given)
        ):
            continue
        with ExitStack() as stack:
            try:
                for each in wanted:
                    probe = stack.enter_context(socket.socket())
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", each))
            except OSError:
                continue
        _given.update(dict.fromkeys(sorted(wanted)))
        return port
    assert _given, "no port is free"
    for long_ago in list(_given)[
        : len(_given) // 2 + 1
    ]:  # what was given of late may not be bound yet
        del _given[long_ago]
    return free_port(*distances)


def _own_ports() -> list[int]:
    """This process's ports, below the ephemeral ones."""
    if not _own:
        end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        turn = _turn()
        _own.extend(port for port in range(_FIRST, end) if port // _BLOCK % _OWNERS == turn)
        assert _own, f"the system gives out all ports from {end} on by itself"
    return _own


def _turn() -> int:
    folder = Path(tempfile.gettempdir()) / f"nun-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for turn in random.SystemRandom().sample(range(_OWNERS), _OWNERS):
        lock = os.open(folder / str(turn), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return turn  # the lock ends with the process
    raise AssertionError(f"{_OWNERS} processes run these tests at once, see {folder}")


_own: list[int] = []
_given: dict[int, None] = {}  # in the order in which they were given
