"""The supervisor: `nun-node`. It reads the configuration, starts the processes of a node, watches and ends them.

    starting --- network ready ---> running --- SIGTERM, SIGINT, SIGHUP ---> stopping, one after the other ---> exit 0
        |                              |
        +------- a child dies ---------+---> kill the group, pause, start all again from disk;
        |                              |        |   a replicator, a conflict manager or a gateway: it alone
        |                              |        |
        |                              |        +--- more than five times in a minute: exit 4
        |                              +--- RESTART_GROUP ---> the same, on purpose; at most twenty times in a minute
        +--- CHILD_FAILED -------------+---> tell the reason, kill the group, exit with its status

It never decides about data, and holds none: killing a child loses nothing, since what was acknowledged is on disk.

Exit status: 0 stopped cleanly; 1 stopped by force (a second signal, or a stop that took too long); 2 the
configuration; 3 cannot start or go on, the log says why; 4 the processes keep dying.

I1  Writer and network process live and die together; replicator, conflict manager and gateway do not outlive them,
    nor take them with them.
I2  No child outlives the supervisor, however that ends (actors/child.py).
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
import zmq

from actors import sockets
from actors.child import EXIT_CANNOT_START, text_of, write_document
from actors.logs import configure_logging
from actors.loop import Loop
from actors.run_dir import run_directory
from actors.starting import Module, Process, load, start_process
from nun import messages as m
from nun.codec import pack, unpack
from nun.config import Config, LogConfig, config_to_plain, load_config
from nun.errors import ConfigError
from nun.version import VERSION

EXIT_FORCED: Final = 1
EXIT_CONFIG: Final = 2
EXIT_KEEPS_DYING: Final = 4

RESTARTS_MAX: Final = 5
RESTARTS_WINDOW_S: Final = 60.0
RESTART_PAUSE_S: Final = 0.05  # doubled with every restart within the window
STOP_PATIENCE_S: Final = 30.0
_SAME_SIGNAL_S: Final = 0.3  # terminals and wrappers send one order to stop twice
_LAST_WORDS_MS: Final = 200
ORDERED_RESTARTS_MAX: Final = 20
_STOP_ORDER: Final = (  # the writer gets all that was decided before it ends, and the replicator tells who has it
    "gateway",
    "network",
    "writer",
    "replicator",
    "conflicts",
)
_ALONE: Final = ("gateway", "replicator", "conflicts")  # what is started anew without the others
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def modules_of(config: Config) -> dict[str, Module]:
    """The module of each child of a node; replicator and gateway only where they have something to do."""
    gateway = config.gateway
    wanted = {
        "writer": True,
        "network": True,
        "replicator": bool(config.replication.listen),
        "conflicts": True,
        "gateway": bool(gateway.tcp or gateway.http or gateway.websocket),
    }
    return {name: (f"actors.{name}",) for name, runs in wanted.items() if runs}


class Supervisor:
    """Starts, watches, restarts and stops the processes of one node.

    Args:
        config: as checked.
        run_dir: where the sockets between the processes are made.
        log: a structlog logger.
        modules: per child, the module that it runs, and arguments for it.
        listening: sockets that listen already: the gateway goes on with them, also after it was started anew.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        log: Any,
        modules: Mapping[str, Module] | None = None,
        listening: Mapping[str, socket.socket] | None = None,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.secret = secrets.token_hex(16)  # shared by the children of this node
        self.log = log
        self.modules = modules_of(config) if modules is None else modules
        self.listening = listening or {}
        self.loop = Loop(log=log, story=self.story)
        self.context: sockets.Context | None = None  # while there are children
        self.children: dict[str, Process] = {}
        self.restarts: deque[float] = deque()
        self.ordered_restarts: deque[float] = deque()
        self.to_stop: list[str] | None = None  # while stopping: who has not ended yet, in order
        self.stop_ordered = 0.0
        self._signals = self._catch_signals()

    def run(self) -> int:
        """Runs the node until it stops; returns its exit status. No child is left."""
        self.log.info("starting", version=VERSION, pid=os.getpid(), run_dir=str(self.run_dir))
        self.loop.call_soon_threadsafe(self._start_all)
        status = self.loop.run()
        self._kill_all()
        return status

    def story(self) -> str:
        """One line about where it stands."""
        return f"children {self._pids()}, restarts {len(self.restarts)}, to stop {self.to_stop}"

    # Starting

    def _start_all(self) -> None:
        """Starts the group: first all processes, then the control channel, then their work.

        In that order, since a ZeroMQ context and its threads must not go through a fork.
        """
        if self.to_stop is not None or self.children:
            return
        load(self.modules.values())
        for name in self.modules:
            self.children[name] = self._started(name)
        self.context = zmq.Context()
        self.control = sockets.control_router(self.context, self.run_dir)
        self.loop.on_readable(self.control, self._control_readable)
        for name in self.children:
            self._give_work(name)
        self.log.debug("started", processes=self._pids())

    def _start_alone(self, name: str) -> None:
        if self.to_stop is None and self.children and name not in self.children:
            self.children[name] = self._started(name)
            self._give_work(name)

    def _started(self, name: str) -> Process:
        """A child that waits for its document. It has our signals blocked, and lets them in once it ignores them."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            return start_process(self.modules[name], self._inherited(name).values())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _inherited(self, name: str) -> dict[str, int]:
        return {k: v.fileno() for k, v in self.listening.items()} if name == "gateway" else {}

    def _give_work(self, name: str) -> None:
        document = {
            "actor": name,
            "parent": os.getpid(),
            "run_dir": str(self.run_dir),
            "secret": self.secret,
            "config": config_to_plain(self.config),
            "listening": self._inherited(name),
        }
        write_document(self.children[name].pipe, document)

    def _pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self.children.items()}

    # What children say

    def _control_readable(self) -> bool:
        while self.context is not None:  # what it hears may end the group, and this channel
            received = sockets.receive_request(self.control)
            if received is None:
                break
            peer, body = received
            name = peer.decode("ascii", "replace")
            if body is not None and name in self.children:
                self._child_says(name, text_of(unpack(body)))
        return True

    def _child_says(self, name: str, message: list[Any]) -> None:
        match message:
            case [m.CHILD_UP, _, _]:
                siblings = (m.SIBLINGS, {"supervisor": os.getpid(), **self._pids()})
                for other in self.children:
                    self._tell(other, siblings)
                if self.to_stop and self.to_stop[0] == name:
                    self._tell(name, (m.STOP,))  # it was not there yet when the stop was ordered
            case [m.CHILD_READY, dict() as fields]:
                self.log.info(
                    "ready",
                    **fields,
                    pid=os.getpid(),
                    data_dir=self.config.node.data_dir,
                    version=VERSION,
                    processes=self._pids(),
                )
            case [m.RESTART_GROUP, str() as why]:
                self._restart_ordered(name, why)
            case [m.CHILD_FAILED, str() as reason, int() as status]:
                if not self.loop.stopped:
                    self.log.error("cannot_run", reason=reason, child=name, exit_status=status)
                self.loop.stop(status)

    def _tell(self, name: str, message: tuple[Any, ...]) -> None:
        sockets.send_reply(self.control, name.encode(), pack(message))

    # Signals

    def _catch_signals(self) -> int:
        """Turns signals into something that the loop reads."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*_STOP_SIGNALS, signal.SIGCHLD):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup
            signal.signal(number, lambda *_: None)
        self.loop.on_descriptor(reader, self._signalled)
        return reader

    def _signalled(self) -> bool:
        for number in os.read(self._signals, 64):
            if number == signal.SIGCHLD:
                self._reap()
            elif number in _STOP_SIGNALS:
                self._stop(signal.Signals(number).name)
        return True

    # The end of a child

    def _reap(self) -> None:
        for name, child in list(self.children.items()):
            status = child.poll()
            if status is None or self.loop.stopped or name not in self.children:
                continue
            if self.to_stop and self.to_stop[0] == name and status == 0:
                self._forget(name)
                self._stop_next()
            else:
                self._died(name, status)

    def _died(self, name: str, status: int) -> None:
        """Restarts the group from disk, unless the child said why that cannot help, or it happens too often."""
        if status >= EXIT_CONFIG:  # it ended on purpose: its last words may still be on their way
            self.control.poll(_LAST_WORDS_MS)
        self._control_readable()
        if self.loop.stopped or name not in self.children:
            return
        self.log.error("child_died", child=name, status=_told(status))
        if name in _ALONE and self.to_stop is None:
            self._forget(name)
            self._restart(name, status, lambda: self._start_alone(name))
            return
        self._kill_all()
        if self.to_stop is not None:
            self.loop.stop(EXIT_FORCED)
            return
        self._restart(name, status, self._start_all)

    def _restart_ordered(self, name: str, why: str) -> None:
        """A child has put the disk in another state and wants all to go on from that."""
        if self.to_stop is not None or self.loop.stopped:
            return
        now = time.monotonic()
        self.ordered_restarts.append(now)
        while now - self.ordered_restarts[0] > RESTARTS_WINDOW_S:
            self.ordered_restarts.popleft()
        if len(self.ordered_restarts) > ORDERED_RESTARTS_MAX:
            self._gives_up(name, f"more than {ORDERED_RESTARTS_MAX} ordered restarts", why)
            return
        self.log.warning("restarting", reason=why, ordered_by=name)
        self._kill_all()
        self.loop.after(RESTART_PAUSE_S, self._start_all)

    def _gives_up(self, child: str, reason: str, status: int | str) -> None:
        text = f"{reason} in {RESTARTS_WINDOW_S:g} s"
        self.log.error("keeps_dying", reason=text, child=child, status=status)
        self.loop.stop(EXIT_KEEPS_DYING)

    def _restart(self, name: str, status: int, start: Callable[[], None]) -> None:
        """Starts again after a pause, unless it happens too often."""
        now = time.monotonic()
        self.restarts.append(now)
        while now - self.restarts[0] > RESTARTS_WINDOW_S:
            self.restarts.popleft()
        count = len(self.restarts)
        if count > RESTARTS_MAX:
            self._gives_up(name, f"more than {RESTARTS_MAX} restarts", _told(status))
            return
        pause_s = RESTART_PAUSE_S * 2 ** (count - 1)
        self.log.warning("restarting", restarts=count, pause_s=pause_s)
        self.loop.after(pause_s, start)

    def _kill_all(self) -> None:
        for child in self.children.values():
            child.kill()
        for name in list(self.children):
            self.children[name].wait()
            self._forget(name)
        if self.context is not None:  # what the dead said concerns nobody any more
            self.loop.forget(self.control)
            self.context.destroy(linger=0)
            self.context = None

    def _forget(self, name: str) -> None:
        os.close(self.children.pop(name).pipe)

    # Stopping

    def _stop(self, why: str) -> None:
        now = time.monotonic()
        if self.to_stop is not None:
            if now - self.stop_ordered < _SAME_SIGNAL_S:
                return
            self.log.warning("stop_forced", signal=why, waiting_for=self.to_stop)
            self.loop.stop(EXIT_FORCED)
            return
        self.log.info("stopping", signal=why)
        self.stop_ordered = now
        self.to_stop = [name for name in _STOP_ORDER if name in self.children]
        self.loop.after(STOP_PATIENCE_S, self._stop_overdue)
        self._order_stop()

    def _stop_next(self) -> None:
        assert self.to_stop
        self.to_stop.pop(0)
        self._order_stop()

    def _order_stop(self) -> None:
        """Orders the next process to stop; one that is not up yet is told when it is."""
        if self.to_stop:
            self._tell(self.to_stop[0], (m.STOP,))
        else:
            self.log.info("stopped")
            self.loop.stop()

    def _stop_overdue(self) -> None:
        self.log.error("stop_overdue", seconds=STOP_PATIENCE_S, waiting_for=self.to_stop)
        self.loop.stop(EXIT_FORCED)


def _told(status: int) -> int | str:
    return signal.Signals(-status).name if status < 0 else status


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", "path", required=True, metavar="FILE", type=click.Path(), help="The TOML file."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override one key of the file; may be given many times.",
)
@click.version_option(VERSION, prog_name="nun-node", message="%(prog)s %(version)s")
def main(path: str, overrides: tuple[str, ...]) -> None:
    """Run one Nun node in the foreground; SIGTERM or SIGINT stops it cleanly."""
    log = configure_logging(LogConfig(), "", "supervisor")
    if sys.flags.optimize:
        log.error("cannot_run", reason="python -O strips the assertions that guard the data")
        sys.exit(EXIT_CONFIG)
    try:
        config = load_config(path, overrides, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            log.error("config_problem", problem=problem)
        sys.exit(EXIT_CONFIG)
    log = configure_logging(config.log, config.node.name, "supervisor")
    sys.exit(run_node(config, log))


def run_node(
    config: Config,
    log: Any,
    listening: Mapping[str, socket.socket] | None = None,
    stop_wanted: Callable[[], bool] = bool,
) -> int:
    """Runs a node until it stops; returns the exit status.

    Args:
        config: as checked.
        log: a structlog logger.
        listening: sockets that listen already, by the gateway's keys for their addresses.
        stop_wanted: whether a stop was asked for before this could hear of it.
    """
    with ExitStack() as stack:
        try:
            run_dir = stack.enter_context(run_directory(Path(config.node.data_dir)))
        except OSError as error:
            log.error(
                "cannot_run",
                reason=f"node.data_dir: {config.node.data_dir!r} cannot be used ({error.strerror}), "
                "expected a directory that this user may write",
                exit_status=EXIT_CANNOT_START,
            )
            return EXIT_CANNOT_START
        supervisor = Supervisor(config, run_dir, log, listening=listening)
        if stop_wanted():
            signal.raise_signal(signal.SIGTERM)
        return supervisor.run()


if __name__ == "__main__":
    main()
