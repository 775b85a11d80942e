"""Who is the first primary: the decision alone, the question over real sockets, and many starts at the same time."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from actors.first_primary import (
    Absent,
    Age,
    Decided,
    Peer,
    Running,
    Silent,
    Starting,
    View,
    Waits,
    WrongPassword,
    ask,
    decide,
    find_first_primary,
)
from tests.support.node import seeded, wait_until

ME = Age(50, "me")
OLD, YOUNG = Starting(Age(40, "a")), Starting(Age(60, "b"))
GONE = Absent("Connection refused")


@pytest.mark.parametrize(
    ("views", "heard", "expected"),
    [
        ({}, [], "me"),
        ({"a": GONE, "b": GONE}, [], "me"),
        ({"a": GONE, "b": YOUNG}, [], "me"),
        ({"a": OLD, "b": YOUNG}, [], None),
        ({"a": GONE}, [Age(40, "a")], None),
        ({"a": GONE}, [Age(60, "a")], "me"),
        ({"a": Starting(Age(50, "a"))}, [], None),
        ({"z": Starting(Age(50, "z"))}, [], "me"),
        ({"a": Silent(), "b": GONE}, [], None),
        ({"a": Running(None), "b": GONE}, [], None),
        ({"a": Running("b"), "b": OLD}, [Age(1, "c")], "b"),
        ({"a": Running("a"), "b": Silent()}, [], "a"),
        ({"a": Running("known-as-otherwise")}, [], "a"),
        ({"a": Running("me")}, [], None),
    ],
)
def test_decide(views: dict[str, View], heard: list[Age], expected: str | None) -> None:
    found = decide(ME, views, heard)
    if expected is None:
        assert isinstance(found, Waits)
    else:
        assert found == Decided(expected)


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    debug = warning = info


class Gateway:
    """What a node that runs answers on a socket that listens; `primary` may change."""

    def __init__(self, listener: socket.socket, primary: str | None, password: str = "pw") -> None:
        self.primary = primary
        self.received: list[str] = []
        self._listener = listener
        self._password = password
        self._ended = False
        listener.setblocking(True)
        listener.settimeout(0.02)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            with connection, connection.makefile("r") as lines:
                try:
                    connection.sendall(b"ok \n")
                    for line in lines:
                        self.received.append(line.rstrip("\n"))
                        connection.sendall(f"{self._answer(line.split())}\n".encode())
                except OSError:
                    pass  # who asked is gone

    def _answer(self, words: list[str]) -> str:
        if words[0] == "auth":
            return ("valid" if words[2] == self._password else "invalid") + " auth\nok "
        if words[0] == "cluster-state":
            members = [] if self.primary is None else [f" {self.primary}(self):Primary ,"]
            return "cluster-state " + "".join([*members, " other(Connected):Secoundary,"]) + "\nok "
        return "ok "

    def end(self) -> None:
        self._ended = True
        self._thread.join()


def listening(port: int = 0) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


@contextmanager
def gateway(primary: str | None, password: str = "pw") -> Iterator[tuple[Gateway, int]]:
    with listening() as listener:
        running = Gateway(listener, primary, password)
        try:
            yield running, listener.getsockname()[1]
        finally:
            running.end()


class TestAsk:
    def test_nobody(self) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            found = ask("127.0.0.1", nobody.getsockname()[1], ME, "u", "pw")
        assert found == Absent("Connection refused")

    def test_a_host_without_address(self) -> None:
        assert isinstance(ask("no.such.host.invalid", 1, ME, "u", "pw"), Absent)

    @pytest.mark.parametrize("primary", ["127.0.0.1:3017", "[::1]:3017", "node-1", None])
    def test_one_that_runs(self, primary: str | None) -> None:
        with gateway(primary) as (running, port):
            assert ask("127.0.0.1", port, ME, "u", "pw") == Running(primary)
            assert running.received == ["election starting 50 me", "auth u pw", "cluster-state"]

    def test_one_that_is_gone_is_no_primary(self) -> None:
        with gateway("dead(Disconnected):Primary, b") as (_, port):
            assert ask("127.0.0.1", port, ME, "u", "pw") == Running("b")

    def test_one_with_another_administrator(self) -> None:
        with gateway(None) as (_, port), pytest.raises(WrongPassword, match=str(port)):
            ask("127.0.0.1", port, ME, "u", "wrong")

    def test_a_stranger_is_told_no_password(self) -> None:
        with listening() as listener:
            received = []

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"220 mail.example ESMTP\n")
                    while data := connection.recv(100):
                        received.append(data)

            stranger = threading.Thread(target=serve)
            stranger.start()
            found = ask("127.0.0.1", listener.getsockname()[1], ME, "u", "secret")
            stranger.join()
        assert isinstance(found, Absent)
        assert "220 mail" in found.reason
        assert b"secret" not in b"".join(received)

    def test_one_that_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("actors.first_primary.REPLY_S", 0.05)
        with listening() as listener:
            assert ask("127.0.0.1", listener.getsockname()[1], ME, "u", "pw") == Silent()

    def test_one_that_hangs_up(self) -> None:
        with listening() as listener:
            closer = threading.Thread(target=lambda: listener.accept()[0].close())
            closer.start()
            found = ask("127.0.0.1", listener.getsockname()[1], ME, "u", "pw")
            closer.join()
        assert found == Silent()


class Starter:
    """One node that starts: it asks, then runs. It counts itself among the primaries if it finds that it is one."""

    def __init__(self, age: Age, port: int, peers: list[Peer], delay_s: float) -> None:
        self.age = age
        self.found: str | None = None
        self.log = Log()
        self.stop = threading.Event()
        self._arguments = (port, peers, delay_s)
        self._gateway: Gateway | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        port, peers, delay_s = self._arguments
        if self.stop.wait(delay_s):
            return
        self._listener = listening(port)
        with self._listener:
            self.found = find_first_primary(
                self._listener, self.age, peers, "u", "pw", self.log, self.stop.wait
            )
            if self.found is not None:
                time.sleep(random.Random(self.age.start).random() * 0.1)  # its processes start
                running = Gateway(self._listener, self.found)
                self.stop.wait()
                running.end()

    def end(self) -> None:
        self.stop.set()
        self._thread.join()


def cluster(ages: list[Age]) -> list[Peer]:
    """Addresses that are free; nobody else gets them before they are used."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(listening()) for _ in ages]
        ports = [each.getsockname()[1] for each in sockets]
    return [Peer(age.name, "127.0.0.1", port) for age, port in zip(ages, ports, strict=True)]


def start(ages: list[Age], delays_s: list[float], peers: list[Peer]) -> list[Starter]:
    return [
        Starter(age, peer.port, [other for other in peers if other is not peer], delay_s)
        for age, peer, delay_s in zip(ages, peers, delays_s, strict=True)
    ]


def test_nodes_that_start_at_the_same_time_agree() -> None:
    """Ages, order and distances by chance: the clocks of the nodes may say the opposite of who listened first."""
    chance = seeded("starts")
    for _ in range(12):
        count = chance.randint(2, 4)
        ages = [Age(chance.randint(1, 3), f"node{number}") for number in range(count)]
        delays_s = [chance.choice((0.0, 0.0, chance.random() * 0.3)) for _ in ages]
        starters = start(ages, delays_s, cluster(ages))
        try:
            wait_until(lambda some=starters: all(one.found for one in some), "all to know")
        finally:
            for one in starters:
                one.end()
        found = {one.found for one in starters}
        assert len(found) == 1, (ages, delays_s, [one.found for one in starters])


def test_one_that_is_alone_decides_at_once() -> None:
    ages = [Age(1, "a"), Age(2, "b"), Age(3, "c")]
    peers = cluster(ages)
    began = time.monotonic()
    alone = Starter(ages[2], peers[2].port, peers[:2], 0.0)
    try:
        wait_until(lambda: alone.found, "it to know")
        assert alone.found == "c"
        assert time.monotonic() - began < 1.0
    finally:
        alone.end()


def test_the_next_oldest_takes_the_place_of_one_that_is_gone() -> None:
    """The oldest listens, asks, and dies before it decides: it waits for somebody who is silent."""
    ages = [Age(1, "a"), Age(2, "b"), Age(3, "c")]
    peers = cluster(ages)
    with listening(peers[2].port):  # c takes connections and says nothing
        first = Starter(ages[0], peers[0].port, peers[1:], 0.0)
        second = Starter(ages[1], peers[1].port, [peers[0]], 0.0)
        wait_until(lambda: second.log.lines, "the second to wait")
        assert second.log.lines[0][1]["waits_for"] == "a"
        assert second.found is None
        first.end()
        assert first.found is None
        wait_until(lambda: second.found, "the second to know")
        second.end()
    assert second.found == "b"


def test_one_that_came_after_it_was_asked_for_is_heard_of_by_its_own_question() -> None:
    """b finds nobody at a's address, and is held up by c; meanwhile a, which is older, comes and asks."""
    ages = [Age(1, "a"), Age(2, "b"), Age(3, "c")]
    peers = cluster(ages)
    with listening(peers[2].port) as c:
        second = Starter(ages[1], peers[1].port, [peers[0], peers[2]], 0.0)
        try:
            held_up, _ = c.accept()
            wait_until(lambda: second.log.lines, "a to be found absent")
            assert second.log.lines[0][1]["node_asked"] == "a"
            assert ask("127.0.0.1", peers[1].port, ages[0], "u", "pw") == Starting(ages[1])
            with held_up:
                held_up.sendall(b"220 no node\n")
            wait_until(lambda: len(second.log.lines) > 2 or second.found, "what follows from it")
            assert second.found is None
            assert second.log.lines[2][1]["waits_for"] == "a"
        finally:
            second.end()


def test_silence_counts_as_absence_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.first_primary.REPLY_S", 0.05)
    monkeypatch.setattr("actors.first_primary.SILENCE_S", 0.3)
    ages = [Age(1, "a"), Age(2, "b")]
    peers = cluster(ages)
    with listening(peers[0].port):
        waiting = Starter(ages[1], peers[1].port, peers[:1], 0.0)
        wait_until(lambda: waiting.found, "it to know")
        waiting.end()
    assert waiting.found == "b"
    assert "counts_as_absent" in [event for event, _ in waiting.log.lines]
