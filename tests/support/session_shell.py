"""Plays socket, clock and node for the pure session of the client."""

from __future__ import annotations

from typing import Any

from nun import messages as m
from nun.client import operations as ops
from nun.client.request import Grant, Request
from nun.client.session import Session
from nun.client.values import TEXT
from nun.client.watches import WatchState
from nun.codec import pack, unpack
from nun.errors import (
    RequestError,
    to_wire,
)


class Shell:
    """Plays socket, clock and node."""

    def __init__(self, addresses: tuple[str, ...] = ("tcp://a",), **arguments: Any) -> None:
        self.session = Session(addresses, b"me", None, None, **arguments)
        self.now = 100.0
        self.token = 0

    def sent(self) -> list[Any]:
        """What the session wants sent now."""
        messages = []
        outbox = self.session.outbox
        while outbox:
            frame, request = outbox.popleft()
            if request is not None and request.done:
                continue
            if request is not None:
                request.sent = True
            messages.append(unpack(frame))
        return messages

    def begin(self, request: Request, timeout: float = 10.0) -> Request:
        request.deadline = self.now + timeout
        frame = self.session.begin(request, self.now)
        if frame is not None:
            self.session.outbox.append((frame, request))
        return request

    def come(self, *message: Any) -> None:
        self.session.receive(pack(message), self.now)

    def reply(self, message: Any, result: Any = None, position: Any = None, op_id: int = 0) -> None:
        self.come(0, message[2], result, position, op_id)

    def refuse(self, message: Any, error: RequestError) -> None:
        code, body = to_wire(error)
        self.come(code, message[2], body, None, 0)

    def open(self) -> Any:
        """Opens the link; returns the HELLO."""
        assert self.session.wants_link
        self.session.opened(self.now)
        [hello] = self.sent()
        assert hello[0] == m.HELLO
        return hello

    def greet(self, next_number: int = 1) -> Any:
        hello = self.open()
        self.token += 1000
        self.reply(hello, [self.token, 7, next_number, {b"node": b"n1"}])
        return hello

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.session.tick(self.now)

    def greet_again(self) -> Any:
        """After the link broke: waits for the pause to end, then greets."""
        self.pass_time(max(self.session.wakeup() - self.now, 0))
        return self.greet()


def greeted() -> Shell:
    """One whose session is ready."""
    shell = Shell()
    shell.greet()
    return shell


def selected(shell: Shell) -> Grant:
    """A database that is selected as number 5."""
    grant = Grant("shop", None, "t")
    ping = shell.begin(ops.ping(grant))
    [use] = shell.sent()
    assert use[0] == m.USE
    assert use[3:] == [b"shop", None, b"t"]
    shell.reply(use, [5, {b"strategy": b"none"}])
    [message] = shell.sent()
    shell.reply(message)
    assert ping.done
    return grant


def get(grant: Grant, key: str = "a") -> Request:
    return ops.get(grant, key, TEXT)


def put(grant: Grant, key: str = "a", value: str = "1") -> Request:
    return ops.set(grant, key, value, None, TEXT)


def watch_of(grant: Grant, pattern: str = "a", credit: int = 1000) -> WatchState:
    return WatchState(grant, pattern, None, credit, TEXT)
