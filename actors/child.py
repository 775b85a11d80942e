"""What every child process of a node does around its own work.

    def main() -> NoReturn:
        run_child(Writer)           # Writer(child) makes itself known to child.loop and returns

A child gets one document on its standard input: its name, the configuration, the run directory. The other end of
that pipe stays open in the supervisor as long as it lives, so the end of the pipe means that the supervisor is
gone, and so is the child. On Linux the kernel is asked to see to that too (PR_SET_PDEATHSIG), which also ends a
child that hangs.

SIGINT, SIGTERM and SIGHUP are for the supervisor alone; it orders the stop over the control channel. They are
blocked when a child is started and ignored from its first line on, so that none reaches it half awake.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import zmq
from setproctitle import setproctitle

from actors import sockets
from actors.logs import configure_logging
from actors.loop import FAULT, Loop
from actors.processes import title_of
from nun import messages as m
from nun.codec import pack, unpack
from nun.config import Config, config_from_plain

EXIT_CANNOT_START: Final = 3
_ORPHANED: Final = 1
_SUPERVISORS_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SPINNING: Final = "network"  # the actor whose waits for clients and disk are worth spinning
_PR_SET_PDEATHSIG: Final = 1
_LENGTH = struct.Struct("<I")


class Child:
    """A child's means: configuration, log, loop, context and control channel.

    Attributes:
        name: of the actor.
        config: the node's configuration.
        run_dir: where the sockets between the processes are.
        secret: that the processes of this node share.
        log: a structlog logger; `debug` says whether it shows debug lines.
        loop: runs this process. Set `loop.story` to what a fault should be told with.
        context: for the sockets; it is closed when the loop has ended.
        siblings: pid by actor, "supervisor" among them, once the supervisor has told.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.name: str = document["actor"]
        self.config: Config = config_from_plain(document["config"])
        self.run_dir = Path(document["run_dir"])
        self.secret: bytes = document["secret"].encode()
        self.siblings: dict[str, int] = {}
        self.log: Any = configure_logging(self.config.log, self.config.node.name, self.name)
        self.debug = self.config.log.level == "debug"
        self.context: sockets.Context = zmq.Context()
        self.loop = Loop(self.config.network.spin_us if self.name == _SPINNING else 0, self.log)
        self._stop: Callable[[], Any] = self.loop.stop
        self._control = sockets.control_dealer(self.context, self.run_dir, self.name)
        self.loop.on_readable(self._control, self._control_readable)
        self.loop.on_descriptor(0, self._supervisor_gone)
        self._tell((m.CHILD_UP, self.name, os.getpid()))

    def on_stop(self, call: Callable[[], Any]) -> None:
        """What to do when the supervisor orders a clean stop: it ends with `loop.stop()`. By default that is all."""
        self._stop = call

    def ready(self, **fields: Any) -> None:
        """Tells the supervisor that this child does its work; the fields go into the node's `ready` line."""
        self._tell((m.CHILD_READY, fields))

    def fail(self, text: str, status: int = EXIT_CANNOT_START) -> None:
        """Gives the supervisor a clear reason why this node cannot run, and ends the loop."""
        self._tell((m.CHILD_FAILED, text, status))
        self.loop.stop(status)

    def ask_restart(self, why: str) -> None:
        """Has the supervisor start all processes of the node anew from disk."""
        self.log.warning("restart_wanted", reason=why)
        self._tell((m.RESTART_GROUP, why))

    def _tell(self, message: tuple[Any, ...]) -> None:
        sockets.send_frame(self._control, pack(message))

    def _control_readable(self) -> bool:
        while (frame := sockets.receive_frame(self._control)) is not None:
            match unpack(frame):
                case [m.STOP]:
                    self._stop()
                case [m.SIBLINGS, dict() as pids]:
                    self.siblings = {name.decode(): pid for name, pid in pids.items()}
        return True

    def _supervisor_gone(self) -> NoReturn:
        os._exit(_ORPHANED)


def begin_child() -> dict[str, Any]:
    """The first thing that a child does: signals, its document, its name, and not to outlive its supervisor."""
    for number in _SUPERVISORS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SUPERVISORS_SIGNALS)
    document = read_document(0)
    _die_with(document["parent"])
    setproctitle(title_of(document["config"]["node"]["name"], document["actor"]))
    return document


def run_child(make: Callable[[Child], Any]) -> NoReturn:
    """The main function of a child: makes its actor within the loop, runs the loop, and ends the process.

    `make` may call `child.fail` and return. What it returns is kept until the end.
    """
    child = Child(begin_child())
    kept: list[Any] = []
    child.loop.call_soon_threadsafe(lambda: kept.append(make(child)))
    status = child.loop.run()
    if status == FAULT:
        os._exit(status)  # nothing is in order any more, the sockets included
    child.context.destroy()  # each socket lingers as it was made to
    os._exit(status)  # not sys.exit: a thread that still works for this process does not hold it up


def write_document(descriptor: int, document: Mapping[str, Any]) -> None:
    """Hands a child its document. The descriptor stays open: its end means the end of the supervisor."""
    data = pack(document)
    os.write(descriptor, _LENGTH.pack(len(data)) + data)


def read_document(descriptor: int) -> dict[str, Any]:
    """What `write_document` wrote at the other end of the pipe."""
    size = _LENGTH.unpack(_read_exactly(descriptor, _LENGTH.size))[0]
    document: dict[str, Any] = text_of(unpack(_read_exactly(descriptor, size)))
    return document


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(descriptor, size - len(data))
        if not part:
            os._exit(_ORPHANED)
        data += part
    return data


def text_of(value: Any) -> Any:
    """A message of plain texts as such: the codec gives them as bytes. Only for what holds no binary values."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {text_of(key): text_of(item) for key, item in value.items()}
    return [text_of(item) for item in value] if isinstance(value, list) else value


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent dies, and looks whether it has died already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_ORPHANED)
