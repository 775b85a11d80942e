"""The supervisor: `nun-node`. It reads the configuration, starts the processes of a node, and ends them.

    starting --- network ready ---> running --- SIGTERM, SIGINT ---> stopping ---> exit 0
        |                              |
        +------- a child dies ---------+--> restarting: kill the group, start both again from disk
        |                                       |
        +--- CHILD_FAILED: exit with its status +--- too often: exit 4

It never decides about data, and holds none. Exit status: 0 stopped cleanly, 1 a stop that took too long, 2 the
configuration, 3 cannot start (the log says why), 4 the processes keep dying.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import psutil
import structlog
import zmq

from actors import sockets
from actors.child import write_document
from actors.logs import configure_logging
from actors.loop import Loop
from nun import messages as m
from nun.codec import pack, unpack
from nun.config import Config, LogConfig, config_to_plain, load_config
from nun.errors import ConfigError
from nun.version import VERSION

CHILDREN: Final = ("writer", "network")
RESTARTS_MAX: Final = 5
RESTARTS_WINDOW_S: Final = 60.0
RESTART_PAUSE_S: Final = 0.05
STOP_PATIENCE_S: Final = 60.0
_IPC_PATH_MAX: Final = 90

EXIT_SLOW_STOP: Final = 1
EXIT_CONFIG: Final = 2
EXIT_CANNOT_START: Final = 3
EXIT_KEEPS_DYING: Final = 4


@dataclass
class Process:
    """A child, and the pipe whose end tells it that its supervisor is gone."""

    popen: subprocess.Popen[bytes]
    pipe: int

    @property
    def pid(self) -> int:
        return self.popen.pid


class Supervisor:
    """Starts, watches, restarts and stops the processes of one node.

    Args:
        config: as checked.
        run_dir: where the sockets between the processes are made.
        modules: per child, the arguments of the interpreter that runs it (tests put others in place).
    """

    def __init__(
        self, config: Config, run_dir: Path, modules: dict[str, list[str]] | None = None
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.modules = modules or {name: ["-m", f"actors.{name}"] for name in CHILDREN}
        self.log: Any = structlog.get_logger()
        self.context: sockets.Context = zmq.Context()
        self.loop = Loop()
        self.control = sockets.control_router(self.context, run_dir)
        self.children: dict[str, Process] = {}
        self.restarts: deque[float] = deque()
        self.exit_status = 0
        self.stopping = False
        self.failed = False
        self.to_stop: list[str] = []
        self.loop.on_readable(self.control, self._control_readable)
        self._signals = self._catch_signals()

    def run(self) -> int:
        """Runs the node until it stops; returns its exit status."""
        self._start_all()
        self.loop.run()
        self._kill_all()
        self.context.destroy(linger=0)
        return self.exit_status

    # Starting

    def _start_all(self) -> None:
        for name in CHILDREN:
            reader, writer = os.pipe()
            popen = subprocess.Popen([sys.executable, *self.modules[name]], stdin=reader)
            os.close(reader)
            document = {
                "actor": name,
                "parent": os.getpid(),
                "run_dir": str(self.run_dir),
                "config": config_to_plain(self.config),
            }
            write_document(writer, document)
            self.children[name] = Process(popen, writer)
            self.log.debug("started", child=name, pid=popen.pid)

    def _tell(self, name: str, message: tuple[Any, ...]) -> None:
        sockets.send_reply(self.control, name.encode(), pack(message))

    # What children say

    def _control_readable(self) -> bool:
        while (received := sockets.receive_request(self.control)) is not None:
            peer, body = received
            if body is None:
                continue
            message = unpack(body)
            name = peer.decode()
            if message[0] == m.CHILD_UP:
                pids = {name: child.pid for name, child in self.children.items()}
                self._tell(name, (m.SIBLINGS, {"supervisor": os.getpid(), **pids}))
                if self.stopping:
                    self._stop_next()
            elif message[0] == m.CHILD_READY:
                fields = {
                    key.decode(): value.decode() if isinstance(value, bytes) else value
                    for key, value in message[1].items()
                }
                self.log.info(
                    "ready",
                    pid=os.getpid(),
                    data_dir=self.config.node.data_dir,
                    version=VERSION,
                    processes={name: child.pid for name, child in self.children.items()},
                    **fields,
                )
            elif message[0] == m.CHILD_FAILED:
                self._child_failed(name, message[1].decode(), message[2])
        return True

    def _child_failed(self, name: str, text: str, status: int) -> None:
        if not self.failed:
            self.failed = True
            self.log.error("cannot_run", reason=text, child=name)
            self.exit_status = status
        self.loop.stop()

    # Signals

    def _catch_signals(self) -> int:
        """Turns signals into something that the loop reads."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, False)
        self.loop.on_descriptor(reader, self._signalled)
        return reader

    def _signalled(self) -> bool:
        for number in os.read(self._signals, 64):
            if number == signal.SIGCHLD:
                self._reap()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._stop(signal.Signals(number).name)
        return True

    # Death of a child

    def _reap(self) -> None:
        for name, child in list(self.children.items()):
            if child.popen.poll() is None:
                continue
            if self.stopping and name in self.to_stop and child.popen.returncode == 0:
                self._forget(name)
                self.to_stop.remove(name)
                self._stop_next()
            elif not self.failed:
                self._control_readable()  # its last words may be waiting
                if not self.failed and name in self.children:
                    self._died(name, child.popen.returncode)
                return

    def _died(self, name: str, status: int) -> None:
        """Restarts the group from disk, unless that happens too often."""
        self.log.error("child_died", child=name, status=status)
        self._kill_all()
        if self.stopping:
            self.exit_status = EXIT_SLOW_STOP
            self.loop.stop()
            return
        now = time.monotonic()
        self.restarts.append(now)
        while now - self.restarts[0] > RESTARTS_WINDOW_S:
            self.restarts.popleft()
        if len(self.restarts) > RESTARTS_MAX:
            self.log.error(
                "keeps_dying", restarts=RESTARTS_MAX, seconds=RESTARTS_WINDOW_S, last=name
            )
            self.exit_status = EXIT_KEEPS_DYING
            self.loop.stop()
            return
        self.log.warning("restarting", restarts=len(self.restarts))
        self.loop.after(RESTART_PAUSE_S, self._restart)

    def _restart(self) -> None:
        if not self.stopping and not self.children:
            self._start_all()

    def _kill_all(self) -> None:
        for child in self.children.values():
            child.popen.kill()
        for name, child in list(self.children.items()):
            child.popen.wait()
            self._forget(name)

    def _forget(self, name: str) -> None:
        os.close(self.children.pop(name).pipe)

    # Stopping

    def _stop(self, why: str) -> None:
        if self.stopping:
            self.log.warning("stop_forced", signal=why)
            self.exit_status = EXIT_SLOW_STOP
            self.loop.stop()
            return
        self.stopping = True
        self.log.info("stopping", signal=why)
        self.to_stop = ["network", "writer"]
        self.loop.after(STOP_PATIENCE_S, self._stop_overdue)
        self._stop_next()

    def _stop_next(self) -> None:
        """Orders the next process to stop; the network process first, so that the writer gets all that is decided."""
        self.to_stop = [name for name in self.to_stop if name in self.children]
        if self.to_stop:
            self._tell(self.to_stop[0], (m.STOP,))
        else:
            self.log.info("stopped")
            self.loop.stop()

    def _stop_overdue(self) -> None:
        self.log.error("stop_overdue", seconds=STOP_PATIENCE_S, waiting_for=self.to_stop)
        self.exit_status = EXIT_SLOW_STOP
        self.loop.stop()


def make_run_dir(data_dir: Path) -> Path:
    """A directory of mode 0700 for the sockets between the processes, this supervisor's own.

    It lies in the data directory, unless that path is too long for a Unix socket. Those of supervisors that were killed
    are cleared away.
    """
    root = data_dir.resolve() / "run"
    if len(str(root)) > _IPC_PATH_MAX:
        return Path(tempfile.mkdtemp(prefix="nun-"))
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in root.iterdir():
        if old.name.isdigit() and not psutil.pid_exists(int(old.name)):
            shutil.rmtree(old, ignore_errors=True)
    run_dir = root / str(os.getpid())
    run_dir.mkdir(mode=0o700, exist_ok=True)
    return run_dir


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", required=True, type=click.Path(), help="The TOML file.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Overrides one key of the file; may be given again and again.",
)
@click.version_option(VERSION, prog_name="nun-node")
def main(path: str, overrides: tuple[str, ...]) -> None:
    """Starts one Nun node in the foreground; SIGTERM or SIGINT stops it cleanly."""
    configure_logging(LogConfig(), "", "supervisor")
    log = structlog.get_logger()
    if not __debug__:
        log.error("cannot_run", reason="python -O strips the assertions that guard the data")
        sys.exit(EXIT_CONFIG)
    try:
        config = load_config(path, overrides, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            log.error("config_problem", problem=problem)
        sys.exit(EXIT_CONFIG)
    configure_logging(config.log, config.node.name, "supervisor")
    log = structlog.get_logger()
    try:
        run_dir = make_run_dir(Path(config.node.data_dir))
    except OSError as error:
        log.error(
            "cannot_run",
            reason=f"node.data_dir: {config.node.data_dir!r} cannot be used: {error.strerror}",
        )
        sys.exit(EXIT_CANNOT_START)
    try:
        status = Supervisor(config, run_dir).run()
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
