"""The gateway: the process that serves NunDB's clients over TCP, HTTP and WebSocket.

It is a client of this node's network process like any other, off the hot path. It may die alone: its clients return.
What their commands mean is decided in nun/gateway/; the transports are in gateway_tcp.py and gateway_web.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import uvloop
import zmq

from actors import sockets
from actors.child import begin_child
from actors.gateway_complaints import hear_libraries
from actors.gateway_tcp import serve_tcp
from actors.gateway_unread import Unread
from actors.gateway_web import serve_http, serve_websocket
from actors.logs import configure_logging
from nun import messages as m
from nun.codec import pack, unpack
from nun.config import config_from_plain, host_and_port
from nun.gateway.conversation import Conversation, Sink
from nun.gateway.desk import Desk

_ADMITTED_AGAIN_S: Final = 60.0  # a refusal for want of room is logged once in this time
_LISTEN_PATIENCE_S: Final = 5.0
_CANNOT_START: Final = 3
_BACKLOG: Final = 1_024


class Gateway:
    """What the transports need of it.

    Attributes:
        config: the table [gateway].
        unread: what clients have not read yet.
    """

    def __init__(self, document: dict[str, Any], log: Any) -> None:
        config = config_from_plain(document["config"])
        self.config = config.gateway
        self.log = log
        run_dir = document["run_dir"]
        address = sockets.gateway_address(Path(run_dir))
        self.desk = Desk(
            address,
            document["secret"].encode(),
            config.node.name,
            self.config.local_writes and bool(config.replication.listen),
            log,
        )
        self.unread = Unread(log)
        self.connections = 0
        self._told_full_at = float("-inf")

    def admit(self, sink: Sink, origin: str) -> Conversation | None:
        """A new connection; None when there are too many."""
        if self.connections >= self.config.connections_max:
            self.told_full(origin)
            return None
        self.connections += 1
        return Conversation(self.desk, sink, origin)

    def told_full(self, origin: str) -> None:
        """Somebody is refused for want of room."""
        now = asyncio.get_running_loop().time()
        if now - self._told_full_at > _ADMITTED_AGAIN_S:
            self._told_full_at = now
            self.log.warning("gateway_full", connections=self.connections, refused=origin)

    def left(self, conversation: Conversation) -> None:
        if not conversation.closed:
            self.connections -= 1
            conversation.close()


async def _bound(what: str, begin: Callable[[], Awaitable[Any]]) -> Any:
    """A listening transport. One that died a moment ago may still hold its port: tries for a while."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _LISTEN_PATIENCE_S
    while True:
        try:
            return await begin()
        except OSError as error:
            if loop.time() > until:
                raise OSError(f"{what}: {error.strerror or error}") from error
        await asyncio.sleep(0.1)


def _where(address: str, descriptor: int | None) -> dict[str, Any]:
    """Where to listen: the socket that the supervisor listens on already, if it has one for this."""
    if descriptor is not None:
        return {"sock": socket.socket(fileno=descriptor), "backlog": _BACKLOG}
    host, port = host_and_port(address)
    return {"host": host, "port": port, "backlog": _BACKLOG, "reuse_address": True}


async def run(document: dict[str, Any]) -> int:
    """Serves until the supervisor orders a stop; the exit status."""
    log = configure_logging(
        config_from_plain(document["config"]).log,
        config_from_plain(document["config"]).node.name,
        "gateway",
    )
    hear_libraries(log)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # a connection is one
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    context: sockets.Context = zmq.Context()
    control = sockets.control_dealer(context, Path(document["run_dir"]), "gateway")
    descriptor = control.getsockopt(zmq.FD)
    assert isinstance(descriptor, int)

    def control_readable() -> None:
        while (frame := sockets.receive_frame(control)) is not None:
            if unpack(frame)[0] == m.STOP:
                stop.set()

    def tell(message: tuple[Any, ...]) -> None:
        sockets.send_frame(control, pack(message))
        control_readable()

    loop.add_reader(descriptor, control_readable)
    loop.add_reader(sys.stdin.fileno(), os._exit, 1)  # the supervisor is gone
    tell((m.CHILD_UP, "gateway", os.getpid()))
    gateway = Gateway(document, log)
    servers: list[Any] = []
    status = 0
    begins = {"tcp": serve_tcp, "http": serve_http, "websocket": serve_websocket}
    try:
        for name, begin in begins.items():
            address = getattr(gateway.config, name)
            if address:
                what = f"gateway.{name}: cannot listen on {address}"
                where = _where(address, document["listening"].get(name))
                servers.append(await _bound(what, partial(begin, gateway, where)))
        log.info(
            "gateway_ready",
            **{name: getattr(gateway.config, name) for name in begins},
            pid=os.getpid(),
        )
        control_readable()
        await stop.wait()
    except OSError as error:
        tell((m.CHILD_FAILED, str(error), _CANNOT_START))
        status = _CANNOT_START
    for server in servers:
        with contextlib.suppress(OSError):
            await server()
    await gateway.desk.close()
    context.destroy(linger=500)
    return status


def main() -> NoReturn:
    """The process: see the module's docstring."""
    document = begin_child()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        exit_status = runner.run(run(document))
    os._exit(exit_status)


if __name__ == "__main__":
    main()
