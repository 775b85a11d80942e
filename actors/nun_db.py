"""`nun-db start`: an ordinary node that is configured as NunDB is, by the environment (actors/nun_db_options.py).

    1. listen    TCP, HTTP and WebSocket, before anything else: clients that come early wait and are not refused
    2. claim     the data directory, which scripts let several nodes share (actors/shared_directory.py)
    3. agree     only without history, only in a cluster: who is the first primary (actors/first_primary.py)
    4. run       as `nun-node` does (actors/supervisor.py); the gateway goes on with the sockets of step 1

A node with history does not ask who is the oldest: its directory says what it is.

Exit status: that of `nun-node`; 1 where user or password is missing, or the cluster knows another administrator.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from actors.child import EXIT_CANNOT_START
from actors.first_primary import Age, Peer, WrongPassword, find_first_primary
from actors.logs import configure_logging
from actors.nun_db_options import MISSING_ADMIN, Address, Options, document_of, options_from
from actors.shared_directory import claim
from actors.supervisor import EXIT_CONFIG, run_node
from nun.config import LogConfig, check_config
from nun.errors import ConfigError, DamagedFile, FormatTooNew
from storage.directory import read_identity
from storage.disk import RealDisk

BACKLOG: Final = 1_024
_REFUSED: Final = 1
_FORMER: Final = 1  # the number of the node that has formed its cluster


class CannotListen(Exception):
    """An address cannot be had; says which, and why."""


def listen(variable: str, address: Address) -> socket.socket:
    """A socket that listens. Raises CannotListen."""
    try:
        addresses = socket.getaddrinfo(
            address.bare_host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # One of them, as NunDB does: 127.0.0.1 for `localhost`, whichever the system names first.
        family, kind, protocol, _, where = min(
            addresses, key=lambda each: each[0] != socket.AF_INET
        )
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(where)
            found.listen(BACKLOG)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise CannotListen(f"{variable}: {address}: {error.strerror or error}") from error
    return found


def is_here(host: str) -> bool:
    """Whether a host is an address of this machine: only those can be bound."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(where)
    except OSError:
        return False
    return True


def number_of(directory: Path) -> int:
    """The number that a directory has in its cluster; 0 of one without history. Raises StorageError."""
    if not directory.is_dir():
        return 0
    identity = read_identity(RealDisk(directory))
    return 0 if identity is None else identity.node


def first_primary(
    options: Options,
    directory: Path,
    listener: socket.socket,
    started_ns: int,
    stop: threading.Event,
    log: Any,
) -> str | None:
    """Who is primary as long as no log says it; None where a stop was asked for. Raises WrongPassword, StorageError."""
    number = number_of(directory)
    if not options.clustered or number == _FORMER:
        return options.name
    if number:
        return str(options.peers[0])  # whoever it was: this node is not the one to begin
    peers = [Peer(str(each), each.bare_host, each.port) for each in options.peers]
    me = Age(started_ns, options.name)
    found = find_first_primary(listener, me, peers, options.user, options.password, log, stop.wait)
    if found is not None:
        log.info("first_primary", primary=found, own=found == options.name)
    return found


def start(options: Options, started_ns: int, stop: threading.Event, log: Any, pretty: bool) -> int:
    """Runs the node; returns the exit status.

    Raises:
        CannotListen, OSError, WrongPassword, ConfigError, StorageError: it cannot be started.
    """
    with ExitStack() as stack:
        listening = {
            key: stack.enter_context(listen(variable, address))
            for key, variable, address in (
                ("tcp", "NUN_TCP_ADDR", options.tcp),
                ("http", "NUN_HTTP_ADDR", options.http),
                ("websocket", "NUN_WS_ADDR", options.websocket),
            )
        }
        root = Path(options.data_dir).absolute()
        place = claim(root, options.name, str(options.tcp), alone=not options.clustered)
        stack.callback(place.release)
        if place.path != root:
            log.info("directory_shared", data_dir=str(place.path), root_belongs_to=place.owner)
        primary = first_primary(options, place.path, listening["tcp"], started_ns, stop, log)
        if primary is None:
            log.info("stopped")
            return 0
        host = str(listening["tcp"].getsockname()[0])
        bound = f"[{host}]" if ":" in host else host
        config = check_config(document_of(options, str(place.path), primary, bound, pretty))
        return run_node(config, log, listening, stop.is_set)


def main() -> None:
    """The entry point; see the module's docstring."""
    started_ns = time.time_ns()
    log = configure_logging(LogConfig(), "", "nun-db")
    if not (os.environ.get("NUN_USER") and os.environ.get("NUN_PWD")):
        print(MISSING_ADMIN)
        sys.exit(_REFUSED)
    try:
        options = options_from(os.environ, is_here)
    except ConfigError as error:
        for problem in error.problems:
            log.error("config_problem", problem=problem)
        sys.exit(EXIT_CONFIG)
    pretty = sys.stderr.isatty()
    log = configure_logging(
        LogConfig(level=options.level, format="pretty" if pretty else "json"),
        options.name,
        "supervisor",
    )
    if options.said_in_vain:
        log.warning("no_effect", variables=list(options.said_in_vain))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        status = start(options, started_ns, stop, log, pretty)
    except WrongPassword as error:
        log.error(
            "cannot_run",
            reason=f"{error} runs and does not know the administrator {options.user!r}",
        )
        status = _REFUSED
    except ConfigError as error:
        for problem in error.problems:
            log.error("config_problem", problem=problem)
        status = EXIT_CONFIG
    except (CannotListen, OSError, DamagedFile, FormatTooNew) as error:
        log.error("cannot_run", reason=str(error), exit_status=EXIT_CANNOT_START)
        status = EXIT_CANNOT_START
    sys.exit(status)


if __name__ == "__main__":
    main()
