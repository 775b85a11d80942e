"""A simulated client: the real pure session on a simulated link, and what it asks one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq

from nun import messages as m
from nun.client import operations as ops
from nun.client.notices import NoticeState
from nun.client.request import Grant, Request
from nun.client.session import Session
from nun.client.values import TEXT
from nun.client.watches import WatchState
from nun.errors import UnknownOutcome
from tests.simulation import zmq_model
from tests.simulation.process import Failed
from tests.simulation.world import MS, SECOND, Event, World

USER: Final = "nun"
PASSWORD: Final = "nun-pwd"

Answered = Callable[[Request], Any]


class Client:
    """One client.

    Args:
        addresses: of nodes, in the order in which it tries them.
    """

    def __init__(
        self, world: World, name: str, addresses: Sequence[str], database: str = "d"
    ) -> None:
        self.world = world
        self.name = self.host = self.label = name
        self.ahead = 0
        self.addresses = list(addresses)
        self.session = Session(self.addresses, name.encode(), USER, PASSWORD)
        self.grant = Grant(database, None, None)
        self.context = zmq_model.Context(world.wires, self)
        self.socket: zmq_model.Socket | None = None
        self.watches: list[WatchState] = []
        self.on_read: Callable[[WatchState], None] | None = None
        self.on_event: Callable[[WatchState, Any], None] | None = None
        self.told: dict[int, int] | None = None  # op id of a losing write -> times; None: not asked
        self.read_delay_ns = 0  # how long events lie before they are looked at
        self.closed = False
        self.there = ""  # the address that the link goes to
        self.told_by: list[
            str
        ] = []  # the addresses that what is being looked at came from, the last one last
        self._answered: dict[Request, Answered] = {}
        self._unread: dict[WatchState, list[str]] = {}  # and who has told of it
        self._woken = False
        self._timer: Event | None = None
        self._timer_at = 0
        self.serve()

    @property
    def now(self) -> float:
        return self.world.now / SECOND + 100.0

    # What its owner wants

    def ask(self, request: Request, timeout: float, answered: Answered) -> None:
        """Sends a request; `answered` is called with it once it is done."""
        self._answered[request] = answered
        request.deadline = self.now + timeout
        frame = self.session.begin(request, self.now)
        if frame is not None:
            self.session.outbox.append((frame, request))
        self.serve()

    def retry(self, request: Request, timeout: float, answered: Answered) -> None:
        """Asks again about a write whose outcome is unknown, as the same request."""
        self._answered[request] = answered
        request.deadline = self.now + timeout
        self.session.retry(request, self.now)
        if request.done:  # its answer had come meanwhile
            self.session.finished.append(request)
        self.serve()

    def move(self) -> None:
        """Goes on at another node."""
        self.session._at += self.world.between(0, len(self.addresses) - 1)
        self.session.broken(self.now, "it wants another node")
        self.serve()

    def watch(self, pattern: str, since: Any = None, credit: int = 100_000) -> WatchState:
        watch = WatchState(self.grant, pattern, since, credit, TEXT)
        watch.deadline = float("inf")
        self.watches.append(watch)
        self.session.watch(watch, self.now)
        self.serve()
        return watch

    def unwatch(self, watch: WatchState) -> None:
        self.session.unwatch(watch, self.now)
        self.watches.remove(watch)
        self.serve()

    def listen(self) -> None:
        """It wants to be told of its losing writes, and says so when it was."""
        self.told = {}
        self.session.outcomes(NoticeState(TEXT), self.now)
        self.serve()

    def _hear(self, notices: NoticeState) -> None:
        assert self.told is not None
        heard = []
        while (outcome := notices.take()) is not None:
            self.told[outcome.op_id] = self.told.get(outcome.op_id, 0) + 1
            heard.append(outcome.op_id)

        def answered(request: Request) -> None:
            if request.status == 0 and request.failure is None:
                for op_id in heard:
                    notices.acknowledged(op_id)

        if heard:
            self.world.after(0, lambda: self.ask(ops.seen(heard), 3.0, answered))

    def read_on(self) -> None:
        """Looks at what lies there."""
        unread, self._unread = self._unread, {}
        for watch, self.told_by in unread.items():
            self._read(watch)
        self.serve()

    def close(self) -> None:
        """The client is gone, without a word."""
        self.closed = True
        self.context.destroy()

    # Link and time

    def wake(self) -> None:
        if not self._woken and not self.closed:
            self._woken = True
            self.world.after(self.world.between(10_000, 100_000), self._drain)

    def _drain(self) -> None:
        self._woken = False
        if self.closed:
            return
        socket, generation = self.socket, self.session.generation
        while socket is not None and socket.inbox and self.session.generation == generation:
            self.session.receive(socket.recv(), self.now)
        if "no message" in self.session.trouble:
            raise Failed(f"{self.name}: {self.session.trouble}")
        self.serve()

    def _broke(self, socket: zmq_model.Socket) -> None:
        if socket is self.socket and not self.closed:
            while socket.inbox:
                self.session.receive(socket.recv(), self.now)
            self.session.broken(self.now, "the connection broke")
            self.serve()

    def serve(self) -> None:
        """Opens a link when the session wants one, sends what is to be sent, hands out what has come."""
        session = self.session
        for _ in range(100):
            if session.finished:
                self._hand_out()  # before another link is opened: `there` is who has answered
            if session.wants_link:
                self._open()
            socket, outbox = self.socket, session.outbox
            while outbox and socket is not None and socket.connected:
                frame, request = outbox.popleft()
                if request is None or not request.done:
                    socket.send(frame)
                    if request is not None:
                        request.sent = True
            if not session.finished and not session.wants_link:
                break
        self._set_timer()

    def _open(self) -> None:
        if self.socket is not None:
            old, self.socket = self.socket, None
            old.close()
        socket = self.socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.on_connected = self.wake
        socket.on_broken = lambda: self._broke(socket)
        self.context.sockets[:] = [socket]
        self.there = self.session.address
        socket.connect(self.there)
        self.session.opened(self.now)

    def _hand_out(self) -> None:
        finished, self.session.finished = self.session.finished, []
        for target in finished:
            if isinstance(target, WatchState):
                if self.read_delay_ns and target.error is None and target.begun:
                    self._read_later(target)
                else:
                    self.told_by = [*self._unread.pop(target, ()), self.there]
                    self._read(target)
            elif isinstance(target, NoticeState):
                self._hear(target)
            else:
                answered = self._answered.pop(target, None)
                if answered is not None:
                    answered(target)

    def _read_later(self, watch: WatchState) -> None:
        if not self._unread:
            self.world.after(self.read_delay_ns, self.read_on)
        self._unread.setdefault(watch, []).append(self.there)

    def _read(self, watch: WatchState) -> None:
        if self.on_read is not None:
            self.on_read(watch)
        while not watch.closed:
            event = watch.take()
            if watch.owed:
                self.session.give_credit(watch, watch.take_owed())
            if event is None:
                return
            if self.on_event is not None:
                self.on_event(watch, event)

    def _set_timer(self) -> None:
        when = self.session.wakeup()
        if when == float("inf"):
            return
        at = max(int((when - 100.0) * SECOND) + 1, self.world.now + MS)
        if self._timer is not None:
            if self._timer_at <= at and self._timer.call is not None:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self.world.at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self.closed:
            self.session.tick(self.now)
            self.serve()


def with_level(request: Request, level: int | None, patience_ms: int = 3_000) -> Request:
    """The write is answered once this ack level is reached."""
    if level is not None:
        request.ack = (level, patience_ms)
    return request


def outcome(request: Request) -> tuple[str, Any]:
    """("done", result), ("unknown", why) or ("refused", error) of a request that is done."""
    try:
        return "done", request.answer()
    except UnknownOutcome as error:
        return "unknown", error
    except Exception as error:
        return "refused", error


__all__ = ["Client", "m", "ops", "outcome", "with_level"]
