"""NunDB's TCP transport: one command a line, replies as lines."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from nun.gateway.conversation import Conversation
from nun.gateway.language import Reply, lines_in
from nun.limits import GATEWAY_MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    from actors.gateway import Gateway

_OK: Final = b"ok \n"


class TcpConnection(asyncio.Protocol):
    """One client. A line that comes in pieces is one command; what it sends is read as fast as it is answered."""

    transport_name = "tcp"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transport: Any = None
        self._conversation: Conversation | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._stalled = False  # the client does not read
        self._paused = False  # nothing is read of it
        self._ended = False  # it says no more, and may still listen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        link = transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # half-open ones end
        link.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(self._gateway.config.keepalive_s)
        )
        peer = transport.get_extra_info("peername")
        self._conversation = self._gateway.admit(self, str(peer[0]) if peer else "")
        if self._conversation is None:
            self._transport.write(b"error too many connections \n")
            self._transport.close()
        else:
            self._transport.write(_OK)

    def data_received(self, data: bytes) -> None:
        conversation = self._conversation
        if conversation is None:
            return
        head, newline, tail = data.rpartition(b"\n")
        if not newline:
            self._parts.append(data)
            self._size += len(data)
            if self._size > GATEWAY_MESSAGE_BYTES_MAX:
                self._refuse(f"a command has at most {GATEWAY_MESSAGE_BYTES_MAX} bytes")
            return
        whole = b"".join((*self._parts, head))
        self._parts, self._size = ([tail], len(tail)) if tail else ([], 0)
        lines = lines_in(whole, b"\n")
        if b"\r" in whole:
            lines = [line.removesuffix(b"\r") for line in lines]
        self._feed(conversation, lines)

    def _feed(self, conversation: Conversation, lines: list[bytes]) -> None:
        conversation.feed(lines)
        if conversation.full and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _refuse(self, text: str) -> None:
        self._transport.write(b"error %s \n" % text.encode())
        self._transport.close()

    def answer(self, replies: Sequence[Reply]) -> None:
        out: list[bytes] = []
        for messages, error, _ in replies:
            out += messages
            out.append(_OK if error is None else b"error %s \n" % error)
        self._answer(out)

    def answer_all(self, messages: Sequence[bytes]) -> None:
        self._answer([message + _OK for message in messages])

    def _answer(self, lines: list[bytes]) -> None:
        self._transport.write(b"".join(lines))
        self._gateway.unread.wrote(self, asked=True)
        if self._paused:
            self._resume()
        if self._ended and self._conversation is not None and self._conversation.idle:
            self._transport.close()

    def _resume(self) -> None:
        """Reads again, if what was read is done with and the client reads too."""
        conversation = self._conversation
        if conversation is not None and not conversation.full and not self._stalled:
            self._paused = False
            self._transport.resume_reading()

    def notify(self, messages: Sequence[bytes]) -> None:
        self._transport.write(b"".join([_line(message) for message in messages]))
        self._gateway.unread.wrote(self, asked=False)

    def unread(self) -> int:
        return int(self._transport.get_write_buffer_size())

    def pause_writing(self) -> None:
        self._stalled = True
        if self._conversation is not None:
            self._conversation.stalled = True
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._stalled = False
        self._gateway.unread.caught_up(self)
        if self._conversation is not None:
            self._conversation.resume()
        self._resume()

    def connection_lost(self, _: Exception | None) -> None:
        self._gateway.unread.caught_up(self)
        if self._conversation is not None:
            self._gateway.left(self._conversation)

    def eof_received(self) -> bool:
        """What was sent before the end is done and answered."""
        self._ended = True
        return self._conversation is not None and not self._conversation.idle

    def drop(self) -> None:
        self._transport.abort()


def _line(message: bytes) -> bytes:
    return message if message.endswith(b"\n") else message + b"\n"


async def serve_tcp(gateway: Gateway, where: Mapping[str, Any]) -> Callable[[], Awaitable[None]]:
    """Listens; returns what ends it. Raises OSError."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: TcpConnection(gateway), **where)

    async def end() -> None:
        server.close()

    return end
