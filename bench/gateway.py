"""Rows 15 and 16: the gateway under NunDB's clients: bodies of 2,000 commands over HTTP, 50 WebSocket connections.

There is no NunDB beside it to compare with; the aims are multiples of what it was measured to do on a like machine.
"""

from __future__ import annotations

import http.client
import select
import socket
import time
from collections.abc import Iterator
from typing import Final

from bench.peers import DATABASE, DATABASE_TOKEN, Node, Peers
from bench.processes import free_port
from bench.report import Line, at_least
from bench.sampling import Plan, Series, per_second

COMMANDS: Final = 2_000
CONNECTIONS: Final = 50
SETS_AIM: Final = 1.8 * 146_000  # the middle of what NunDB did
GETS_AIM: Final = 1.8 * 254_000
_SELECT: Final = f"use-db {DATABASE} {DATABASE_TOKEN}"
_PATIENCE_S: Final = 10.0
_HANDSHAKE: Final = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def http_batches(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 15."""
    port = free_port()
    _served(peers, f"gateway.http=127.0.0.1:{port}")
    link = http.client.HTTPConnection("127.0.0.1", port)
    peers.callback(link.close)
    sets = ";".join(f"set key{index:08d} value-{index:026d}" for index in range(COMMANDS))
    gets = ";".join(f"get key{index:08d}" for index in range(COMMANDS))
    for what, body, aim in (("sets", sets, SETS_AIM), ("gets", gets, GETS_AIM)):
        data = f"{_SELECT};{body}".encode()
        _post(link, data)
        rates = [
            per_second(lambda _, data=data: _post(link, data), plan.seconds)  # type: ignore[misc]
            for _ in range(plan.rounds)
        ]
        text = f"gateway, HTTP, {what}, {COMMANDS:,} a request, closed"
        yield Line(15, text, "commands/s", Series(tuple(rates)), aim=at_least(aim))


def _post(link: http.client.HTTPConnection, body: bytes) -> int:
    link.request("POST", "/", body)
    answer = link.getresponse().read()
    assert answer.count(b";") == COMMANDS, answer[:200]
    return COMMANDS


def websockets(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 16."""
    port = free_port()
    _served(peers, f"gateway.websocket=127.0.0.1:{port}")
    for count in (1, CONNECTIONS):
        load = _Load(port, count)
        peers.callback(load.close)
        for what, command, aim in (
            ("durable sets", b"set key%08d value", 20_000),
            ("gets", b"get key%08d", 40_000),
        ):
            rates = [load.rate(command, plan.seconds) for _ in range(plan.rounds)]
            text = f"gateway, WebSocket, {count} connections, {what}"
            wanted = at_least(aim) if count == CONNECTIONS else None
            yield Line(16, text, "commands/s", Series(tuple(rates)), aim=wanted)


def _served(peers: Peers, setting: str) -> None:
    """A durable node with a gateway, and the database in it."""
    node = Node(peers.new_directory("gateway"), "always", 300, "node with a gateway", [setting])
    peers.callback(node.close)
    with node.client() as client:
        client.create_database(DATABASE, token=DATABASE_TOKEN)


class _Load:
    """WebSocket connections with one command in flight each. Bare sockets: the client is not to be what is measured."""

    def __init__(self, port: int, count: int) -> None:
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        for _ in range(count):
            link = _connected(port)
            link.sendall(_frame(_SELECT.encode()))
            assert b"ok" in link.recv(100)
            link.setblocking(False)
            self._sockets[link.fileno()] = link
            self._poll.register(link, select.EPOLLIN)

    def rate(self, command: bytes, seconds: float) -> float:
        """Commands a second; `ok` ends each."""
        frames = {
            descriptor: _frame(command % index) for index, descriptor in enumerate(self._sockets)
        }
        began = time.perf_counter()
        end = began + seconds
        done = 0
        waiting = dict.fromkeys(self._sockets, b"")
        for descriptor, link in self._sockets.items():
            link.send(frames[descriptor])
        while waiting:
            ready = self._poll.poll(_PATIENCE_S)
            assert ready, "the gateway does not answer"
            for descriptor, _ in ready:
                link = self._sockets[descriptor]
                waiting[descriptor] += link.recv(4_096)
                if not waiting[descriptor].endswith(b"ok \n"):
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


def _connected(port: int) -> socket.socket:
    """A WebSocket connection; the gateway may still be starting."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            link = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
            break
        except OSError:
            assert time.monotonic() < until, "the gateway does not listen"
            time.sleep(0.05)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.sendall(_HANDSHAKE)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += link.recv(4_096)
    return link


def _frame(text: bytes) -> bytes:
    """A short text frame of a client; a mask of zeros is a mask."""
    assert len(text) < 126
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text
