"""Ends connections whose peer sends one message without end: the bound on messages that ZeroMQ itself lacks.

`MAXMSGSIZE` bounds a frame, not a message, and ZeroMQ shows a message only when its last frame is there: what a peer
sends as frames with "more to come" is buffered for ever. The kernel, though, counts what came in on a connection
(`TCP_INFO`), and a whole message shows from which descriptor it came. So, at every beat of the loop, and more often
while there are suspects (`look`):

    suspect   a connection that has received SUSPECT_BYTES since it was last found innocent. While there is one,
              requests are taken together with their descriptors (`sockets.receive_request_from`); otherwise this
              costs them nothing.
    innocent  a suspect of which a whole message arrived.
    over      a suspect that has received `bound` more without one. It is cut at a later look, once all that waited at
              this one was delivered and nothing of it was among that.

Connections are counted only when there is a reason: the process has grown by GROWTH_BYTES (a flood cannot hide from
that, unless it fills memory that was freed before), or LOOK_S have passed; and never for more than a twentieth of
the time.

I1  Whoever sends whole messages of at most MESSAGE_BYTES_MAX is never cut, however many or slowly: among any `bound`
    bytes that ZeroMQ has read is the end of such a message, and at the verdict every message that had ended then was
    delivered. The count is from below: what the kernel still holds is taken off, and the suspicion starts behind it.
I2  A descriptor may have been given to another connection since it was counted: the verdict is on a duplicate of it,
    which cannot change hands, and holds only if that has received what the condemned one had.
I3  Where the kernel does not tell (another system, a local socket), nothing is done.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nun.limits import MIB, UNFINISHED_BYTES_MAX

SUSPECT_BYTES: Final = 8 * MIB
GROWTH_BYTES: Final = 16 * MIB
LOOK_S: Final = 10
_SHARE: Final = 20  # counting takes at most one part of so many of the time
_SERVED_SLACK: Final = 1_000
_DESCRIPTORS: Final = "/proc/self/fd"
_TCP_INFO_BYTES: Final = 136
_BYTES_RECEIVED: Final = struct.Struct("=128xQ")  # tcpi_bytes_received
_ABORT: Final = struct.pack("ii", 1, 0)
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Suspect:
    """A connection that is watched."""

    since_bytes: int  # what it had received when that began
    over: tuple[int, int] | None = None  # messages taken, queue emptied: so often when it was over


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection that was ended."""

    address: str
    unfinished_bytes: int


class FloodGuard:
    """Watches the connections that this process has accepted on one port.

    Args:
        port: that clients connect to.
        bound: bytes of one message.
        suspect_bytes: see the module's docstring.
        resident_bytes: gives the memory of this process.
    """

    def __init__(
        self,
        port: int,
        bound: int = UNFINISHED_BYTES_MAX,
        suspect_bytes: int = SUSPECT_BYTES,
        resident_bytes: Callable[[], int] | None = None,
    ) -> None:
        self._port = port
        self._bound = bound
        self._suspect_bytes = suspect_bytes
        self._resident_bytes = resident_bytes or _resident_bytes
        self._innocent: dict[int, int] = {}  # descriptor -> what it had received when last innocent
        self._suspects: dict[int, Suspect] = {}
        self._told: set[int] = set()  # descriptors of whole messages, since the last look
        self._taken = 0  # messages, ever
        self._emptied = 0  # how often none was left
        self._resident = 0
        self._count_at_ns = 0  # the next count for want of another reason
        self._rest_until_ns = 0
        self.available = hasattr(socket, "TCP_INFO") and os.path.isdir(_DESCRIPTORS)

    @property
    def watching(self) -> bool:
        """Whether requests must be taken with their descriptors."""
        return bool(self._suspects)

    @property
    def judging(self) -> bool:
        """Whether a verdict waits for all requests that have arrived to be taken."""
        return any(suspect.over is not None for suspect in self._suspects.values())

    def told(self, descriptor: int) -> None:
        """A whole message came from this descriptor."""
        self._told.add(descriptor)

    def turn_ended(self, messages: int, emptied: bool) -> None:
        """So many messages were taken; `emptied`: until none was left."""
        self._taken += messages
        self._emptied += emptied

    def look(self, now_ns: int) -> list[Cut]:
        """Counts if there is a reason, judges the suspects, and ends those that are condemned."""
        if not self.available:
            return []
        if self._has_reason(now_ns):
            self._count()
        cut: list[Cut] = []
        for descriptor, suspect in list(self._suspects.items()):
            received = bytes_received(descriptor)
            if received is None or received < suspect.since_bytes:
                del self._suspects[descriptor]  # it is gone
            elif descriptor in self._told:
                del self._suspects[descriptor]
                self._innocent[descriptor] = received
            elif suspect.over is not None:
                if self._all_served_since(*suspect.over):
                    cut += self._cut(descriptor, suspect)
            elif received - _unread_bytes(descriptor) - suspect.since_bytes > self._bound:
                suspect.over = (self._taken, self._emptied)
        self._told.clear()
        return cut

    def rest(self, began_ns: int, now_ns: int) -> None:
        """Says how long the last look took, so that looking stays a small part of the time."""
        self._rest_until_ns = now_ns + (now_ns - began_ns) * _SHARE

    def _all_served_since(self, taken: int, emptied: int) -> bool:
        # Connections are served in turns: after so many messages everybody had one, even if the queue never empties.
        served = self._taken - taken
        return self._emptied > emptied or served > 2 * len(self._innocent) + _SERVED_SLACK

    def _has_reason(self, now_ns: int) -> bool:
        if now_ns < self._rest_until_ns:
            return False
        resident = self._resident_bytes()
        self._resident = min(self._resident, resident) or resident
        if resident < self._resident + GROWTH_BYTES and now_ns < self._count_at_ns:
            return False
        self._resident = resident
        self._count_at_ns = now_ns + LOOK_S * 1_000_000_000
        return True

    def _count(self) -> None:
        innocent: dict[int, int] = {}
        for name in os.listdir(_DESCRIPTORS):
            descriptor = int(name)
            received = bytes_received(descriptor)
            if received is None:
                continue
            since = self._innocent.get(descriptor, 0)
            if since > received:  # the descriptor was given to another connection
                since = 0
            if received - since > self._suspect_bytes and descriptor not in self._suspects:
                self._suspects[descriptor] = Suspect(received)
            innocent[descriptor] = since
        self._innocent = innocent

    def _cut(self, descriptor: int, suspect: Suspect) -> list[Cut]:
        try:
            duplicate = os.dup(descriptor)
        except OSError:
            return []  # out of descriptors: at the next look
        with socket.socket(fileno=duplicate) as connection:
            received = bytes_received(duplicate)
            del self._suspects[descriptor]
            unfinished = 0 if received is None else received - suspect.since_bytes
            try:
                if unfinished <= self._bound or connection.getsockname()[1] != self._port:
                    return []
                address = connection.getpeername()
                # Once ZeroMQ closes it, the peer is told at once: one that sends could go unanswered for a minute.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return []  # it has ended by itself
        return [Cut(f"{address[0]}:{address[1]}", unfinished)]


def bytes_received(descriptor: int) -> int | None:
    """What has come in on a TCP connection since it began; None when this is none."""
    # Not a duplicate: it would cost two system calls more for each of many connections.
    try:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    except OSError:
        return None  # no socket
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    finally:
        connection.detach()
    return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == _TCP_INFO_BYTES else None


def _unread_bytes(descriptor: int) -> int:
    """What the kernel holds of a connection's bytes."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
