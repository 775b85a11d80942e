"""NunDB's web transports: commands in the body of an HTTP request, and in WebSocket frames; both separated by `;`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

from nun.gateway.conversation import Conversation
from nun.gateway.language import Reply, is_text, lines_in
from nun.limits import BATCH_BYTES_MAX, GATEWAY_MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    from actors.gateway import Gateway

_SHUTDOWN_S: Final = 5.0  # for requests under way
_REQUEST_S: Final = 300.0  # in which a request has to come
_NOT_SENT: Final = (  # they say how a connection ended without a code
    WSCloseCode.NO_INFO,
    WSCloseCode.ABNORMAL_CLOSURE,
)
_FINAL_TEXT: Final = 0x81
_SHORT: Final = 126
_MEDIUM: Final = 65_536


def framed(payload: bytes) -> bytes:
    """A WebSocket text frame as a server sends it (RFC 6455, 5.2)."""
    size = len(payload)
    if size < _SHORT:
        return b"%c%c%b" % (_FINAL_TEXT, size, payload)
    if size < _MEDIUM:
        return b"%c%c%b%b" % (_FINAL_TEXT, 126, size.to_bytes(2, "big"), payload)
    return b"%c%c%b%b" % (_FINAL_TEXT, 127, size.to_bytes(8, "big"), payload)


_OK_FRAME: Final = framed(b"ok \n")
_REFUSAL: Final = framed(b"error permission denied \n")  # what the npm client refuses a promise for
_SETTLING: Final = ((), (_OK_FRAME,), (_REFUSAL,), (_REFUSAL, _OK_FRAME))

_TOO_LONG: Final = b"the reply has more than %d bytes" % BATCH_BYTES_MAX

# HTTP


class _Collected:
    """The replies to one request, one element a command. What does not fit into the reply any more is said to be so."""

    def __init__(self, count: int) -> None:
        self.elements: list[bytes] = []
        self._size = 0
        self._count = count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answer(self, replies: Sequence[Reply]) -> None:
        self.answer_all(
            [
                error if error is not None else messages[0] if messages else b"empty"
                for messages, error, _ in replies
            ]
        )

    def answer_all(self, messages: Sequence[bytes]) -> None:
        elements = messages
        self._size += sum(map(len, elements))
        if self._size > BATCH_BYTES_MAX:
            elements = [one if len(one) < len(_TOO_LONG) else _TOO_LONG for one in elements]
        self.elements += elements
        if len(self.elements) >= self._count and not self.done.done():
            self.done.set_result(None)

    def notify(self, messages: Sequence[bytes]) -> None:
        """A request is over before anybody could read this."""

    def drop(self) -> None:
        """A request has no watch that could end."""


class HttpSide:
    """Any method, any path: the body counts. Authentication and selection last for one request."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def handle(self, request: web.BaseRequest) -> web.Response:
        try:
            async with asyncio.timeout(_REQUEST_S):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _response(413, b"a request has at most %d bytes" % BATCH_BYTES_MAX)
        except TimeoutError:
            late = _response(408, b"a request has %d seconds to come" % _REQUEST_S)
            late.force_close()
            return late
        if not is_text(body):
            return _response(500, b"")
        lines = [part for line in body.split(b";") if (part := line.strip())]
        if not lines:
            return _response(200, b"")
        collected = _Collected(len(lines))
        conversation = self._gateway.admit(collected, request.remote or "")
        if conversation is None:
            return _response(503, b"too many connections")
        try:
            conversation.feed(lines)
            await collected.done
        finally:
            self._gateway.left(conversation)
        return _response(200, b";".join(collected.elements))


def _response(status: int, body: bytes) -> web.Response:
    return web.Response(
        status=status,
        body=body,
        headers={"Content-Type": "text/plain; charset=UTF-8", "Server": "Nun"},
    )


class _HttpServer(web.Server):
    """Bounds what aiohttp does not: how many connections there are, whatever they say."""

    def __init__(self, gateway: Gateway, **known: Any) -> None:
        self._gateway = gateway
        super().__init__(
            HttpSide(gateway).handle, keepalive_timeout=gateway.config.keepalive_s, access_log=None,
            auto_decompress=False, **known,
        )  # fmt: skip

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > self._gateway.config.connections_max:
            peer = transport.get_extra_info("peername")
            self._gateway.told_full(str(peer[0]) if peer else "")
            transport.abort()


async def serve_http(gateway: Gateway, where: Mapping[str, Any]) -> Callable[[], Awaitable[None]]:
    """Listens; returns what ends it. Raises OSError."""
    loop = asyncio.get_running_loop()

    def request(
        message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=BATCH_BYTES_MAX
        )

    server = _HttpServer(gateway, request_factory=request)
    runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    site = web.SockSite(runner, **where) if "sock" in where else web.TCPSite(runner, **where)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    return runner.cleanup


# WebSocket


class WebSocketConnection(WSListener):
    """One client. A frame is one or more commands; each message of a reply is a frame of its own."""

    transport_name = "websocket"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transport: Any = None
        self._conversation: Conversation | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._stalled = False  # the client does not read
        self._paused = False  # nothing is read of it
        self._ended: WSCloseCode | None = None  # it says no more; its code

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        peer = transport.underlying_transport.get_extra_info("peername")
        self._conversation = self._gateway.admit(self, str(peer[0]) if peer else "")
        if self._conversation is None:
            transport.send_close(WSCloseCode.TRY_AGAIN_LATER, b"too many connections")
            transport.disconnect()

    def on_ws_frame(self, _: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            code = frame.get_close_code()
            self._ended = WSCloseCode.OK if code in _NOT_SENT else code
            self._close_if_done()
            return
        if (
            self._ended is not None
            or kind in (WSMsgType.PING, WSMsgType.PONG)
            or self._conversation is None
        ):
            return
        data = frame.get_payload_as_bytes()
        if not frame.fin or self._parts:
            whole = self._assembled(data, frame.fin)
            if whole is None:
                return
            data = whole
        self._conversation.feed(lines_in(data, b";"))
        if self._conversation.full:
            self._pause()

    def _assembled(self, data: bytes, last: bool) -> bytes | None:
        """A message of several frames, once it is whole."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > GATEWAY_MESSAGE_BYTES_MAX:
            self._transport.send_close(WSCloseCode.MESSAGE_TOO_BIG)
            self._transport.disconnect()
            self._parts, self._size = [], 0
            return None
        if not last:
            return None
        whole = b"".join(self._parts)
        self._parts, self._size = [], 0
        return whole

    def answer(self, replies: Sequence[Reply]) -> None:
        out: list[bytes] = []
        for messages, error, settles in replies:
            out += map(framed, messages)
            if error is None:
                out.append(_OK_FRAME)
            else:
                out.append(framed(b"error %s \n" % error))
                out += _SETTLING[settles]
        self._answer(out)

    def answer_all(self, messages: Sequence[bytes]) -> None:
        self._answer([framed(message) + _OK_FRAME for message in messages])

    def _answer(self, frames: list[bytes]) -> None:
        self._write(b"".join(frames))
        self._gateway.unread.wrote(self, asked=True)
        if self._paused:
            self._resume()
        if self._ended is not None:
            self._close_if_done()

    def _close_if_done(self) -> None:
        """Says good-bye to a client that has, once all that it said before is answered."""
        if self._conversation is None or self._conversation.idle:
            self._transport.send_close(self._ended)
            self._transport.disconnect()

    def notify(self, messages: Sequence[bytes]) -> None:
        self._write(b"".join(map(framed, messages)))
        self._gateway.unread.wrote(self, asked=False)

    def unread(self) -> int:
        return int(self._transport.underlying_transport.get_write_buffer_size())

    def drop(self) -> None:
        self._transport.disconnect(graceful=False)

    def _write(self, frames: bytes) -> None:
        """All at once: a system call a frame would be most of the work."""
        if not self._transport.is_close_frame_sent:
            self._transport.underlying_transport.write(frames)

    def pause_writing(self) -> None:
        self._stalled = True
        if self._conversation is not None:
            self._conversation.stalled = True
        self._pause()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.underlying_transport.pause_reading()

    def resume_writing(self) -> None:
        self._stalled = False
        self._gateway.unread.caught_up(self)
        if self._conversation is not None:
            self._conversation.resume()
        self._resume()

    def _resume(self) -> None:
        """Reads again, if what was read is done with and the client reads too."""
        conversation = self._conversation
        if conversation is not None and not conversation.full and not self._stalled:
            self._paused = False
            self._transport.underlying_transport.resume_reading()

    def on_ws_disconnected(self, _: WSTransport) -> None:
        self._gateway.unread.caught_up(self)
        if self._conversation is not None:
            self._gateway.left(self._conversation)


async def serve_websocket(
    gateway: Gateway, where: Mapping[str, Any]
) -> Callable[[], Awaitable[None]]:
    """Listens; returns what ends it. Raises OSError."""
    keepalive_s = gateway.config.keepalive_s
    server = await ws_create_server(
        lambda _: WebSocketConnection(gateway),
        max_frame_size=GATEWAY_MESSAGE_BYTES_MAX,
        enable_auto_pong=True,
        enable_auto_ping=True,
        auto_ping_idle_timeout=keepalive_s,
        auto_ping_reply_timeout=keepalive_s,
        **where,
    )

    async def end() -> None:
        server.close()

    return end
