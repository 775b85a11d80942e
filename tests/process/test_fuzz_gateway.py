"""Whatever NunDB's clients send over TCP, HTTP and WebSocket: answered in order or cut off, and nothing changed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from pathlib import Path

import psutil
import pytest

import nun
from nun.limits import MIB
from tests.support.fuzzing_text import TextFuzz, frame
from tests.support.gateway import Served
from tests.support.node import seeded, wait_until

pytestmark = pytest.mark.process

INPUTS = 100_000
TURN = 500  # inputs of one connection
GROWTH_MAX = 48 * MIB
LINES_MAX = 200  # of the log, for all of it
CANARY = "use-db shop owner-of-the-shop;get canary"
FAULTS = ("gateway_fault", "child_died")
HANDSHAKE = (
    b"GET /any HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
BROKEN_HEADS = (
    b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nget a",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"POST / HTTP/1.1\r\nHost: " + b"x" * 20_000,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nget a\r\n0\r\n\r\n",
)  # fmt: skip


class Ended(Exception):
    """The gateway has cut the connection."""


class Link:
    """One connection that is fuzzed: what it is answered is read as it comes, and thrown away."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._kept = b""

    @classmethod
    async def open(cls, port: int, source: str) -> Link:
        return cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def until(self, what: bytes) -> bytes:
        """Reads up to this; what came before it. Raises Ended."""
        async with asyncio.timeout(60):
            while what not in self._kept:
                self._kept = self._kept[-len(what) :] if len(self._kept) > MIB else self._kept
                try:
                    part = await self.reader.read(256 * 1024)
                except ConnectionError:
                    part = b""
                if not part:
                    raise Ended(self._kept[-400:])
                self._kept += part
        before, _, self._kept = self._kept.partition(what)
        return before

    def abort(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        """Ends it with a reset, in the middle of whatever is under way."""
        link = self.writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()


class Fuzzers:
    """One for each transport; each sends so many inputs."""

    def __init__(self, served: Served, fuzz: TextFuzz) -> None:
        self.served = served
        self.fuzz = fuzz
        self.random = fuzz.random
        self.turns = 0
        self.ended = 0

    async def _turn(self, name: str, begin: bytes = b"", begun: bytes = b"") -> Link:
        self.turns += 1
        source = f"127.0.0.{self.random.randrange(2, 6)}"  # wrong tokens close doors
        link = await Link.open(self.served.ports[name], source)
        if begin:
            await link.send(begin)
            await link.until(begun)
        return link

    async def tcp(self, inputs: int) -> None:
        for _ in range(0, inputs, TURN):
            link = await self._turn("tcp")
            said = [b"use-db shop fuzz fuzz-pwd"] if self.random.random() < 0.8 else []
            said += [self.fuzz.command() for _ in range(TURN)]
            await self._send(link, b"\n".join(said))
            await link.send(b"\nsync-%d\n" % self.turns)
            await link.until(b"error unknown command: sync-%d \n" % self.turns)
            self._leave(link, b"get can")

    async def websocket(self, inputs: int) -> None:
        for _ in range(0, inputs, TURN):
            link = await self._turn("websocket", HANDSHAKE, b"\r\n\r\n")
            said = [frame(1, b"use-db shop fuzz fuzz-pwd")] if self.random.random() < 0.8 else []
            said += [self.fuzz.frames(self.fuzz.command()) for _ in range(TURN)]
            await self._send(link, b"".join(said))
            await link.send(frame(2, b"sync-%d" % self.turns))
            await link.until(b"error unknown command: sync-%d \n" % self.turns)
            if self.random.random() < 0.5:
                await link.send(self.fuzz.broken_frames())
            self._leave(link, b"\x81\xfe")

    async def http(self, inputs: int) -> None:
        left = inputs
        while left > 0:
            link = await self._turn("http")
            for _ in range(min(left, TURN // 10)):
                count = self.random.randrange(1, 8)
                left -= count
                said = [b"use-db shop fuzz fuzz-pwd"] if self.random.random() < 0.5 else []
                said += [self.fuzz.command() for _ in range(count)]
                body = b";".join(said)
                head = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                await self._send(link, head % (left % 9, len(body)) + body)
                status = (await link.until(b"\r\n")).rpartition(b"HTTP/1.1 ")[2]
                assert status[:3] in (b"200", b"500"), status
                await link.until(b"Content-Length: ")
                size = int(await link.until(b"\r\n"))
                await link.until(b"\r\n\r\n")
                await self._body(link, size)
            if self.random.random() < 0.5:
                await link.send(self.random.choice(BROKEN_HEADS))
            self._leave(link, b"POST / HT")

    @staticmethod
    async def _body(link: Link, size: int) -> None:
        while len(link._kept) < size:
            async with asyncio.timeout(60):
                part = await link.reader.read(size)
            assert part
            link._kept += part
        link._kept = link._kept[size:]

    async def _send(self, link: Link, data: bytes) -> None:
        """Sends in pieces, some of them in packets of their own; reads meanwhile."""
        for piece in self.fuzz.pieces(data, 6):
            await link.send(piece)
            if self.random.random() < 0.1:
                await asyncio.sleep(0)

    def _leave(self, link: Link, half: bytes) -> None:
        """Ends a connection in one of the ways in which they end."""
        link.writer.write(half if self.random.random() < 0.5 else b"")
        self.random.choice((link.abort, link.reset, link.writer.close))()


def truth(client: nun.Client) -> list[object]:
    """All that the fuzzers may not change."""
    db = client.database("shop", "owner-of-the-shop")
    keys = [key for key in db.keys("") if not key.startswith(("f", "$conflicts_f"))]
    databases = [(one.name, dict(one.options)) for one in client.databases()]
    return [*((key, db.get(key)) for key in keys), databases]


def test_100000_inputs_change_nothing(tmp_path: Path) -> None:
    settings = {
        "storage": {"fsync": "never", "snapshot_interval_s": 0},
        "conflicts": {"conflicts_max": 20},  # enough, or listing them is all that is done here
    }
    with Served(tmp_path / "node", settings) as served:
        served.wait_served()
        served.admin(  # each user has a session of its own by then
            "create-db shop owner-of-the-shop arbiter;use-db shop owner-of-the-shop;set canary sings;"
            "create-user fuzz fuzz-pwd;set-permissions fuzz rwixa f*|r *"
        )
        assert served.post(CANARY) == "empty;value sings\n"
        with nun.Client(served.address, "nun", "nun-pwd") as client:
            before = truth(client)
            gateway = psutil.Process(served.gateways()[-1])
            lines = served.mark()
            fuzzers = Fuzzers(served, TextFuzz(seeded("fuzz_gateway")))
            asyncio.run(storm(fuzzers, INPUTS // 5))
            files, resident = gateway.num_fds(), gateway.memory_info().rss
            asyncio.run(storm(fuzzers, INPUTS - INPUTS // 5))
            growth = gateway.memory_info().rss - resident
            assert truth(client) == before
        assert served.post(CANARY) == "empty;value sings\n"
        assert growth < GROWTH_MAX, f"the gateway grew by {growth} bytes"
        wait_until(lambda: not connections(gateway), "its connections to end")
        assert gateway.num_fds() < files + 32
        assert len(served.gateways()) == 1
        said = list(served.lines)[lines:]
        assert not [line for line in said if line.get("event") in FAULTS or line.get("raw")]
        assert len(said) < LINES_MAX, [line.get("event") for line in said[:50]]
        assert served.stop() == 0


def connections(gateway: psutil.Process) -> list[object]:
    """Those over TCP, but for the sockets that listen."""
    return [one for one in gateway.net_connections("tcp") if one.raddr]


def test_a_command_is_one_wherever_it_is_cut(tmp_path: Path) -> None:
    with Served(tmp_path / "node") as served:
        served.wait_served()
        served.admin("create-db shop t")
        asyncio.run(
            cut_everywhere(served.ports["tcp"], served.ports["websocket"], served.ports["http"])
        )


async def cut_everywhere(tcp: int, websocket: int, http: int) -> None:
    """Each transport, with the same commands cut in two at each place, as packets and as frames."""
    text = "use-db shop t;set clé two words;get clé".encode()
    line = await Link.open(tcp, "127.0.0.1")
    web = await Link.open(websocket, "127.0.0.1")
    await line.until(b"ok \n")
    await web.send(HANDSHAKE)
    await web.until(b"\r\n\r\n")
    lines = text.replace(b";", b"\n") + b"\n"
    whole, head = (
        frame(1, text, mask=b"mask"),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n",
    )
    body = head % len(text) + text
    for cut in range(max(len(lines), len(whole), len(body)) + 1):
        for link, data, told in (
            (line, lines, b"ok \nok \nvalue two words\nok \n"),
            (web, whole, b"\x81\x04ok \n\x81\x04ok \n\x81\x10value two words\n\x81\x04ok \n"),
            (
                web,
                frame(1, text[:cut], False) + frame(0, text[cut:]),
                b"\x81\x10value two words\n\x81\x04ok \n",
            ),
        ):
            await link.send(data[:cut])
            await asyncio.sleep(0.0005)  # it may read what is there
            await link.send(data[cut:])
            await link.until(told)
        post = await Link.open(http, "127.0.0.1")
        await post.send(body[:cut])
        await asyncio.sleep(0.0005)
        await post.send(body[cut:])
        await post.until(b"empty;empty;value two words\n")
        post.abort()
    line.abort()
    web.abort()


async def storm(fuzzers: Fuzzers, inputs: int) -> None:
    """All three transports at the same time, over two connections each."""
    each = {fuzzers.tcp: 0.2, fuzzers.websocket: 0.2, fuzzers.http: 0.1}
    async with asyncio.TaskGroup() as group:
        for work, share in each.items():
            for _ in range(2):
                group.create_task(work(int(inputs * share)))
