"""A node with a gateway, and what speaks to it by hand: `post` for HTTP, `Line` for TCP, `upgraded` for WebSocket."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

from tests.support.node import Node, Settings, wait_until
from tests.support.ports import free_port


def post(port: int, body: str | bytes) -> str:
    """What the gateway says to commands over HTTP."""
    data = body.encode() if isinstance(body, str) else body
    request = urllib.request.Request(f"http://127.0.0.1:{port}/any/path", data)
    with urllib.request.urlopen(request, timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def serves(port: int) -> bool:
    """Whether a gateway is there over HTTP, and its node too."""
    try:
        return post(port, "auth nun nun-pwd") == "valid auth\n"
    except OSError:
        return False


def upgraded(port: int) -> socket.socket:
    """A WebSocket, shaken hands with."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    raw.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += raw.recv(1)
    return raw


class Served(Node):
    """A node with a gateway."""

    def __init__(self, directory: Path, settings: Settings | None = None) -> None:
        self.ports = {name: free_port() for name in ("tcp", "http", "websocket")}
        gateway = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        tables = dict(settings or {})
        tables["gateway"] = {**gateway, **tables.get("gateway", {})}
        super().__init__(directory, tables)

    def wait_served(self) -> None:
        wait_until(lambda: serves(self.ports["http"]), "the gateway")

    def post(self, body: str | bytes) -> str:
        return post(self.ports["http"], body)

    def admin(self, commands: str) -> str:
        return self.post(f"auth nun nun-pwd;{commands}").removeprefix("valid auth\n;")

    def gateways(self) -> list[int]:
        """The pids of the gateways so far."""
        return [line["pid"] for line in list(self.lines) if line.get("event") == "gateway_ready"]

    def line(self) -> Line:
        return Line(self.ports["tcp"])


class Line:
    """A TCP connection that has been greeted."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20, (source, 0))
        self.reader = self.socket.makefile("rb")
        assert self.reader.readline() == b"ok \n"

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.socket.close()

    def say(self, text: str, lines: int = 1) -> list[str]:
        """Sends a command, and reads so many lines."""
        self.socket.sendall(text.encode() + b"\n")
        return [self.reader.readline().decode() for _ in range(lines)]
