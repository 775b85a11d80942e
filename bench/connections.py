"""Connections of NunDB's clients, on bare sockets: the client is not to be what is measured."""

from __future__ import annotations

import select
import socket
import time
from typing import Final, Protocol

from bench.peers import DATABASE, DATABASE_TOKEN

SELECT: Final = f"use-db {DATABASE} {DATABASE_TOKEN}".encode()
PATIENCE_S: Final = 10.0
_HANDSHAKE: Final = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Transport(Protocol):
    """One of the gateway's doors. `name` is also its key in the table [gateway]."""

    name: str

    def connect(self, port: int) -> socket.socket:
        """A connection that has selected the database, where one lasts longer than a request."""

    def framed(self, command: bytes) -> bytes:
        """What goes out for a command."""

    def is_answered(self, received: bytes) -> bool:
        """Whether all of an answer is here."""


class WebSocket:
    name = "websocket"

    def connect(self, port: int) -> socket.socket:
        link = connected(port)
        link.sendall(_HANDSHAKE)
        _receive_until(link, b"\r\n\r\n")
        link.sendall(self.framed(SELECT))
        _receive_until(link, b"ok \n")
        return link

    def framed(self, command: bytes) -> bytes:
        assert len(command) < 126
        return bytes([0x81, 0x80 | len(command), 0, 0, 0, 0]) + command  # a mask of zeros is a mask

    def is_answered(self, received: bytes) -> bool:
        return received.endswith(b"ok \n")


class Tcp:
    name = "tcp"

    def connect(self, port: int) -> socket.socket:
        link = connected(port)
        _receive_until(link, b"ok \n")
        link.sendall(self.framed(SELECT))
        _receive_until(link, b"ok \n")
        return link

    def framed(self, command: bytes) -> bytes:
        return command + b"\n"

    def is_answered(self, received: bytes) -> bool:
        return received.endswith(b"ok \n")


class Http:
    """One request a command, over a connection that is kept; each selects the database anew."""

    name = "http"

    def connect(self, port: int) -> socket.socket:
        return connected(port)

    def framed(self, command: bytes) -> bytes:
        body = SELECT + b";" + command
        return (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    def is_answered(self, received: bytes) -> bool:
        head, found, body = received.partition(b"\r\n\r\n")
        if not found:
            return False
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return len(body) >= int(length)


class Load:
    """Connections with one command in flight each."""

    def __init__(self, transport: Transport, port: int, count: int) -> None:
        self._transport = transport
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        for _ in range(count):
            link = transport.connect(port)
            link.setblocking(False)
            self._sockets[link.fileno()] = link
            self._poll.register(link, select.EPOLLIN)

    def rate(self, command: bytes, seconds: float) -> float:
        """Commands a second; each connection has a key of its own."""
        framed, is_answered = self._transport.framed, self._transport.is_answered
        frames = {
            descriptor: framed(command % index) for index, descriptor in enumerate(self._sockets)
        }
        began = time.perf_counter()
        end = began + seconds
        done = 0
        waiting = dict.fromkeys(self._sockets, b"")
        for descriptor, link in self._sockets.items():
            link.send(frames[descriptor])
        while waiting:
            ready = self._poll.poll(PATIENCE_S)
            assert ready, "the gateway does not answer"
            for descriptor, _ in ready:
                link = self._sockets[descriptor]
                waiting[descriptor] += link.recv(4_096)
                if not is_answered(waiting[descriptor]):
                    continue
                done += 1
                if time.perf_counter() < end:
                    waiting[descriptor] = b""
                    link.send(frames[descriptor])
                else:
                    del waiting[descriptor]
        return done / (time.perf_counter() - began)

    def close(self) -> None:
        self._poll.close()
        for link in self._sockets.values():
            link.close()


def connected(port: int) -> socket.socket:
    """A connection; the gateway may still be starting."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            link = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
            break
        except OSError:
            assert time.monotonic() < until, "the gateway does not listen"
            time.sleep(0.05)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def _receive_until(link: socket.socket, end: bytes) -> None:
    received = b""
    while not received.endswith(end):
        more = link.recv(4_096)
        assert more, f"the gateway closed the connection after {received!r}"
        received += more
