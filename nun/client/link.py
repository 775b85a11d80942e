"""The link to one node: a DEALER socket and its monitor. The only place in the client that knows ZeroMQ.

A link connects once, to one address, and is closed when it breaks: nothing that was sent on it can arrive on another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from typing import Any, Final

import zmq
from zmq.backend import Socket, zmq_poll

from nun.errors import ConfigError
from nun.limits import KIB, MESSAGE_BYTES_MAX

POLLIN: Final = int(zmq.POLLIN)
POLLOUT: Final = int(zmq.POLLOUT)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_ASKED_MAX: Final = 3
BRIEFLY_MS: Final = 20  # how long a lone thread waits for a reply before it looks at anything else
COPY_BELOW_BYTES: Final = 128 * KIB  # larger frames are handed over without a copy

OPTIONS: Final = {
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 1,  # frames go to a node that is there, or nowhere
    zmq.SNDHWM: 10_000,
    zmq.RCVHWM: 0,  # the node bounds what it sends unread: by receipts and by the credit of watches
    zmq.RCVTIMEO: BRIEFLY_MS,
    zmq.MAXMSGSIZE: MESSAGE_BYTES_MAX + MESSAGE_BYTES_MAX // 4,
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 1_000,
    zmq.HEARTBEAT_IVL: 2_000,
    zmq.HEARTBEAT_TIMEOUT: 5_000,
    zmq.HEARTBEAT_TTL: 10_000,
}
_WATCHED: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_numbers = count(1)
_contexts: dict[int, zmq.Context[Any]] = {}


def _context() -> zmq.Context[Any]:
    """One context, and so one I/O thread, for all clients of this process; none is used across a fork."""
    context = _contexts.get(os.getpid())
    if context is None:
        context = _contexts[os.getpid()] = zmq.Context()
    return context


class Link:
    """One connection. Not for two threads at a time."""

    def __init__(self, address: str, server_key: bytes | None) -> None:
        context = _context()
        socket = self._socket = Socket(context, zmq.DEALER)
        monitor = self._monitor = Socket(context, zmq.PAIR)
        try:
            for option, value in OPTIONS.items():
                socket.set(option, value)
            if server_key is not None:
                public, secret = zmq.curve_keypair()
                socket.set(zmq.CURVE_SERVERKEY, server_key)
                socket.set(zmq.CURVE_PUBLICKEY, public)
                socket.set(zmq.CURVE_SECRETKEY, secret)
            monitor.set(zmq.LINGER, 0)
            monitor.set(zmq.RCVHWM, 0)
            name = f"inproc://nun-client-{os.getpid()}-{next(_numbers)}"
            socket.monitor(name, _WATCHED)
            monitor.connect(name)
            socket.connect(address)
        except (zmq.ZMQError, ValueError) as error:
            self.close()
            raise ConfigError([f"address {address!r} cannot be connected to: {error}"]) from error
        self.fds: tuple[int, int] = (_fd(socket), _fd(monitor))
        self._stood = False  # the handshake was done
        self._send = socket.send
        self._receive = socket.recv

    def close(self, last: bytes | None = None) -> None:
        """Closes it, after one last frame if the node is there to take it."""
        if self._socket.closed:
            return
        if last is not None:
            self.send(last)
        self._socket.monitor(None, 0)
        self._monitor.close(0)
        self._socket.close(0 if last is None else 200)

    def send(self, frame: bytes) -> bool:
        """Sends a frame; False when there is no node to take it now."""
        try:
            if len(frame) < COPY_BELOW_BYTES:
                self._send(frame, _NOBLOCK)
            else:
                self._send(frame, _NOBLOCK, False)
        except zmq.Again:
            return False
        return True

    def frames(self) -> Iterator[bytes]:
        """The messages that have come, until none is left: then the file descriptor is armed again.

        To find none by receiving costs a zmq.Again (3 us), asking costs 1: so the first few times it is asked.
        """
        receive, asked = self._receive, [(self._socket, POLLIN)]
        asking = _ASKED_MAX
        while True:
            if asking:
                asking -= 1
                if not zmq_poll(asked, 0):
                    return
            try:
                frame = receive(_NOBLOCK)
            except zmq.Again:
                return
            yield frame

    def receive_briefly(self) -> bytes | None:
        """The next message if it comes within BRIEFLY_MS; costs no more than the bare receive."""
        try:
            return self._receive()
        except zmq.Again:
            return None

    def broke(self) -> str | None:
        """Why the connection is over; None while it stands or is being made."""
        while True:
            try:
                event = int.from_bytes(self._monitor.recv(_NOBLOCK)[:2], "little")
                self._monitor.recv(_NOBLOCK)  # the address
            except zmq.Again:
                return None
            if event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                break
            self._stood = True
        if self._stood:
            return "the connection broke"
        return "the handshake failed: do both sides use CURVE, and is server_key the node's?"

    def wait(self, waker: int, seconds: float, sending: bool) -> bool:
        """Sleeps until something comes, the waker or the time does; with `sending`, until a frame can go too.

        Returns whether `broke` has something to say.
        """
        sockets: list[tuple[Any, int]] = [
            (self._socket, POLLIN | POLLOUT if sending else POLLIN),
            (self._monitor, POLLIN),
            (waker, POLLIN),
        ]
        return any(source is self._monitor for source, _ in zmq_poll(sockets, _ms(seconds)))


def wait_without_link(waker: int, seconds: float) -> None:
    """Sleeps until the waker or the time comes."""
    zmq_poll([(waker, POLLIN)], _ms(seconds))


def _ms(seconds: float) -> int:
    return max(0, min(int(seconds * 1_000) + 1, 60_000))


def _fd(socket: Socket) -> int:
    fd = socket.get(zmq.FD)
    assert isinstance(fd, int)
    return fd
