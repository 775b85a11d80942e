"""Who is the first primary of a new cluster: the oldest of the nodes that are there. For `nun-db start` only.

A node without history listens on its TCP address before it asks, and asks the others there before it starts:

    asker                                               one that is still asking, too
      | election starting START NAME  ------------------>| notes that it is there
      |<------------------ starting START NAME ----------|

                                                        one that runs (its gateway)
      | election starting START NAME  ------------------>| a command without effect
      |<------------------------------------------ ok ---|
      | auth USER PASSWORD, cluster-state  ------------->|
      |<------ ... cluster-state  A(self):Primary ... ---|

START is when it was started (Unix nanoseconds); of two that are the same age the one with the smaller name is older.
The oldest becomes primary as soon as all others are known to be younger or absent, so a node that is alone starts at
once. The others wait until it says that it is primary, or is gone: then the next oldest takes its place.

I1  No two nodes that reach each other both make themselves primary. Whoever listens later asks later, so one of the two
    hears of the other before it decides: by its own question, or by the other's, which is looked at last of all. A
    node that has decided answers nothing until it runs.
I2  Who takes a connection and says nothing is there. Only after SILENCE_S it counts as absent, and the log says so.
I3  The password goes to nobody who does not greet as a node does.
"""

from __future__ import annotations

import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

CONNECT_S: Final = 1.0
REPLY_S: Final = 3.0
SILENCE_S: Final = 30.0
PAUSE_S: Final = 0.1
TELL_EVERY_S: Final = 5.0
_LINE_BYTES_MAX: Final = 65_536
_PRIMARY = re.compile(r"(\S+)\((?:self|Connected)\):Primary\b")


class Age(NamedTuple):
    """What decides who is older: the smaller one."""

    start: int
    name: str


@dataclass(frozen=True)
class Absent:
    """Nobody is there, or nobody who could be a node."""

    reason: str


@dataclass(frozen=True)
class Starting:
    """It asks too, and is this old."""

    age: Age


@dataclass(frozen=True)
class Running:
    """It has made up its mind; who is primary as it says, if anybody."""

    primary: str | None


@dataclass(frozen=True)
class Silent:
    """Somebody took the connection."""


View = Absent | Starting | Running | Silent


class WrongPassword(Exception):
    """A running node does not know the administrator that this one was started with; says which node."""


@dataclass(frozen=True)
class Decided:
    """Who is the first primary."""

    name: str


@dataclass(frozen=True)
class Waits:
    """For whom, and why."""

    name: str
    why: str


def decide(me: Age, views: Mapping[str, View], heard: Sequence[Age]) -> Decided | Waits:
    """What follows from a round of questions.

    Args:
        me: this node.
        views: what became of the question to every other node, by its name.
        heard: who has asked this node meanwhile.
    """
    for name, view in views.items():
        if isinstance(view, Running) and view.primary is not None and view.primary != me.name:
            # A primary under a name that is not in the list is the one that was asked, or known to it.
            return Decided(view.primary if view.primary in views else name)
    for name, view in views.items():
        if isinstance(view, Running):
            return Waits(name, "it runs and knows of no primary")
        if isinstance(view, Silent):
            return Waits(name, "it is there and says nothing yet")
    ages = [view.age for view in views.values() if isinstance(view, Starting)]
    oldest = min([me, *ages, *heard])
    if oldest == me:
        return Decided(me.name)
    return Waits(oldest.name, "it was started earlier and is not primary yet")


class Answering:
    """Answers the questions of others on a socket that listens, in a thread, until this node has decided.

    Args:
        listener: the TCP socket; it is left open and listening.
        me: this node.
    """

    def __init__(self, listener: socket.socket, me: Age) -> None:
        self._listener = listener
        self._me = me
        self._guard = threading.Lock()
        self._heard: list[Age] = []
        self._decided = False
        self._wake, self._waker = socket.socketpair()
        listener.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)
        self._thread.start()

    def begin_round(self) -> None:
        """Forgets who has asked before: whoever is still there is found by being asked."""
        with self._guard:
            self._heard.clear()

    def conclude(self, views: Mapping[str, View]) -> Decided | Waits:
        """Decides; from then on no question is answered (I1)."""
        with self._guard:
            found = decide(self._me, views, self._heard)
            self._decided = isinstance(found, Decided)
            return found

    def close(self) -> None:
        """Ends the thread; the listener is as it was."""
        with self._guard:
            self._decided = True
        self._waker.close()
        self._thread.join()
        self._wake.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            asking: dict[socket.socket, bytes] = {}
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wake:
                        for connection in asking:
                            connection.close()
                        return
                    if key.fileobj is self._listener:
                        self._accept(selector, asking)
                    elif isinstance(key.fileobj, socket.socket):
                        self._read(selector, asking, key.fileobj)

    def _accept(self, selector: selectors.BaseSelector, asking: dict[socket.socket, bytes]) -> None:
        with self._guard:
            if self._decided:
                return  # it is for the gateway now
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
        connection.setblocking(False)
        asking[connection] = b""
        selector.register(connection, selectors.EVENT_READ)

    def _read(
        self,
        selector: selectors.BaseSelector,
        asking: dict[socket.socket, bytes],
        connection: socket.socket,
    ) -> None:
        try:
            data = connection.recv(4_096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        asking[connection] += data
        if data and b"\n" not in asking[connection] and len(asking[connection]) < _LINE_BYTES_MAX:
            return
        line, newline, _ = asking.pop(connection).partition(b"\n")
        selector.unregister(connection)
        with connection:
            if newline:
                self._answer(connection, line.decode("utf-8", "replace"))

    def _answer(self, connection: socket.socket, line: str) -> None:
        with self._guard:
            if self._decided:
                return
            age = _age_of(line.removeprefix("election ").split())
            if age is not None:
                self._heard.append(age)
            try:
                connection.send(f"starting {self._me.start} {self._me.name}\n".encode())
            except OSError:
                pass  # it is gone, or will ask again


def _age_of(words: list[str]) -> Age | None:
    match words:
        case ["starting", start, name] if start.isdecimal() and len(start) < 30:
            return Age(int(start), name)
    return None


def ask(host: str, port: int, me: Age, user: str, password: str) -> View:
    """Asks one node. Raises WrongPassword."""
    try:
        connection = socket.create_connection((host, port), CONNECT_S)
    except OSError as error:  # a host without address and one that does not answer among them
        return Absent(error.strerror or str(error))
    with connection:
        connection.settimeout(REPLY_S)
        try:
            connection.sendall(f"election starting {me.start} {me.name}\n".encode())
            with connection.makefile("rb") as replies:
                return _understood(connection, replies, f"{host}:{port}", user, password)
        except OSError:  # a connection that was closed, or nothing for too long
            return Silent()


def _understood(
    connection: socket.socket, replies: Any, address: str, user: str, password: str
) -> View:
    def next_line() -> str | None:
        line: bytes = replies.readline(_LINE_BYTES_MAX)
        return line.decode("utf-8", "replace").strip() if line.endswith(b"\n") else None

    first = next_line()
    if first is None:
        return Silent()
    age = _age_of(first.split())
    if age is not None:
        return Starting(age)
    if first != "ok":
        return Absent(f"who listens there says {first[:40]!r}, which no node does")
    connection.sendall(f"auth {user} {password}\ncluster-state\n".encode())
    while (line := next_line()) is not None:
        if line == "invalid auth":
            raise WrongPassword(address)
        if line.startswith("cluster-state"):
            found = _PRIMARY.search(line)
            return Running(found[1] if found else None)
    return Silent()


class Peer(NamedTuple):
    """Another node: its name and where it is asked."""

    name: str
    host: str
    port: int


def find_first_primary(
    listener: socket.socket,
    me: Age,
    peers: Sequence[Peer],
    user: str,
    password: str,
    log: Any,
    pause: Callable[[float], bool],
) -> str | None:
    """Asks until it is known who is to be the first primary; returns the name, None when it is to stop.

    Args:
        listener: this node's TCP address, listening.
        me: this node.
        peers: the others.
        user, password: of the administrator of all of them.
        log: a structlog logger.
        pause: waits for so many seconds; returns whether to stop.

    Raises:
        WrongPassword: a running node does not accept this administrator.
    """
    answering = Answering(listener, me)
    patience = _Patience(log)
    try:
        with ThreadPoolExecutor(max(1, len(peers)), thread_name_prefix="asking") as pool:
            while True:
                answering.begin_round()
                asked = {
                    peer.name: pool.submit(ask, peer.host, peer.port, me, user, password)
                    for peer in peers
                }
                views = {name: patience.of(name, view.result()) for name, view in asked.items()}
                match answering.conclude(views):
                    case Decided(name):
                        return name
                    case Waits(name, why):
                        patience.tell(name, why)
                if pause(PAUSE_S):
                    return None
    finally:
        answering.close()


class _Patience:
    """How long somebody has said nothing, and when the log was told last."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._silent: dict[str, float] = {}
        self._told = 0.0
        self._told_of = ""

    def of(self, name: str, view: View) -> View:
        if not isinstance(view, Silent):
            self._silent.pop(name, None)
            if isinstance(view, Absent):
                self._log.debug("absent", node_asked=name, reason=view.reason)
            return view
        now = time.monotonic()
        if now - self._silent.setdefault(name, now) < SILENCE_S:
            return view
        reason = f"it took connections and has said nothing for {SILENCE_S:g} s"
        self._log.warning("counts_as_absent", node_asked=name, reason=reason)
        return Absent(reason)

    def tell(self, name: str, why: str) -> None:
        now = time.monotonic()
        if name != self._told_of or now - self._told >= TELL_EVERY_S:
            self._told, self._told_of = now, name
            self._log.info("waits_for_first_primary", waits_for=name, reason=why)
