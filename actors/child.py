"""What every child process of a node does around its own work.

A child gets one document on its standard input: configuration, run directory, its name. The other end of that pipe stays open
in the supervisor as long as it lives, so end of file means: the supervisor is gone, and so is the child. On Linux the
kernel is asked to say so too (PR_SET_PDEATHSIG), which also ends a child that hangs.

Signals from the terminal are for the supervisor alone; it orders the stop over the control channel.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog
import zmq

from actors import sockets
from actors.logs import configure_logging
from actors.loop import Loop
from nun import messages as m
from nun.codec import pack, unpack
from nun.config import Config, config_from_plain

_PR_SET_PDEATHSIG: Final = 1
_LENGTH = struct.Struct("<I")


def write_document(descriptor: int, document: dict[str, Any]) -> None:
    """Hands a child its document; the descriptor stays open."""
    data = pack(document)
    os.write(descriptor, _LENGTH.pack(len(data)) + data)


def _read_document(descriptor: int) -> dict[str, Any]:
    head = _read_exactly(descriptor, _LENGTH.size)
    return _text_keys(unpack(_read_exactly(descriptor, _LENGTH.unpack(head)[0])))


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(descriptor, size - len(data))
        if not part:
            raise SystemExit(1)
        data += part
    return data


def _text_keys(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {_text_keys(key): _text_keys(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_text_keys(item) for item in value]
    return value


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent dies, and checks that it has not died already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Child:
    """A child's means: configuration, loop, log, context and control channel."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.name: str = document["actor"]
        self.config: Config = config_from_plain(document["config"])
        self.run_dir = Path(document["run_dir"])
        self.siblings: dict[str, int] = {}
        configure_logging(self.config.log, self.config.node.name, self.name)
        self.log: Any = structlog.get_logger().bind()
        self.debug = self.config.log.level == "debug"
        self.context: sockets.Context = zmq.Context()
        self.loop = Loop(self.config.network.spin_us if self.name == "network" else 0)
        self.exit_status = 0
        self._stop: Callable[[], None] = self.loop.stop
        self.control = sockets.control_dealer(self.context, self.run_dir, self.name)
        self.loop.on_readable(self.control, self._control_readable)
        self.loop.on_descriptor(sys.stdin.fileno(), self._supervisor_gone)
        self.tell((m.CHILD_UP, self.name, os.getpid()))

    def on_stop(self, call: Callable[[], None]) -> None:
        """What to do when the supervisor orders a clean stop; by default the loop just ends."""
        self._stop = call

    def tell(self, message: tuple[Any, ...]) -> None:
        sockets.send_frame(self.control, pack(message))

    def ready(self, **fields: Any) -> None:
        """Tells the supervisor that this child does its work."""
        self.tell((m.CHILD_READY, fields))

    def fail(self, text: str, status: int) -> None:
        """Gives the supervisor a clear reason why this node cannot run, and ends."""
        self.tell((m.CHILD_FAILED, text, status))
        self.exit_status = status
        self.loop.stop()

    def _control_readable(self) -> bool:
        while (frame := sockets.receive_frame(self.control)) is not None:
            message = unpack(frame)
            if message[0] == m.STOP:
                self._stop()
            elif message[0] == m.SIBLINGS:
                self.siblings = {name.decode(): pid for name, pid in message[1].items()}
        return True

    def _supervisor_gone(self) -> bool:
        os._exit(1)


def run_child(make: Callable[[Child], Any]) -> None:
    """The main function of a child: makes its actor and runs the loop. Never returns."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    document = _read_document(sys.stdin.fileno())
    die_with_parent(document["parent"])
    child = Child(document)
    try:
        make(child)
        child.loop.run()
    except Exception:
        child.log.critical("fault", exc_info=True)
        child.exit_status = 1
    child.context.destroy(linger=500)
    sys.stdout.flush()
    os._exit(child.exit_status)
