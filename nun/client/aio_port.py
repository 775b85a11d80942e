"""Link and session of a client in one event loop.

ZeroMQ's file descriptor is edge-triggered: any call on the socket may swallow the edge, a send too. So after every
send, and after every edge, what has come is drained until nothing is left.
"""

from __future__ import annotations

import asyncio
import os
from time import monotonic
from typing import Any

from nun.client.link import Link
from nun.client.request import NEVER, Request
from nun.client.session import RESEND_AFTER_S, Session
from nun.client.settings import Settings
from nun.errors import ConnectionLost

_TICK_S = 0.02  # timers closer together than this are one


class AsyncPort:
    """Link and session in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.session: Session = settings.session()
        self.refusal: str | None = None
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER

    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop. Raises ConnectionLost when the client is closed, RuntimeError in another loop."""
        if self.refusal is not None:
            raise ConnectionLost(self.refusal)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                raise RuntimeError(
                    "an AsyncClient belongs to the event loop that it was first used in"
                )
            if os.getpid() != self._pid:
                raise ConnectionLost(
                    "a client cannot be used after a fork: make one in each process"
                )
            self._loop = loop
        return loop

    def begin(self, request: Request, timeout: float) -> asyncio.Future[None]:
        """Sends a request. The future is done when the request is; the answer is in that."""
        loop = self.loop()
        now = monotonic()
        request.deadline = now + timeout
        request.waiter = loop.create_future()
        session = self.session
        frame = session.begin(request, now)
        if frame is not None:
            if self._link is not None and self._link.send(frame):
                request.sent = True
            else:
                session.outbox.append((frame, request))
        self._soon(loop)
        self._wake_at(loop, min(request.deadline, now + RESEND_AFTER_S))
        waiter: asyncio.Future[None] = request.waiter
        return waiter

    async def run(self, request: Request, timeout: float) -> Any:
        """Sends a request and waits for its answer."""
        self.begin(request, timeout)
        return await self._answer(request)

    async def _answer(self, request: Request) -> Any:
        try:
            await request.waiter
        except asyncio.CancelledError:
            if not request.done:
                self.session.forget(request)
            raise
        if request.unknown is not None:
            return request.answer(lambda timeout: self._retry(request, timeout))
        return request.answer()

    async def _retry(self, request: Request, timeout: float | None) -> Any:
        loop = self.loop()
        now = monotonic()
        request.deadline = now + (self._settings.timeout if timeout is None else timeout)
        request.waiter = loop.create_future()
        self.session.retry(request, now)
        if request.done:
            request.waiter.set_result(None)
        self.serve()
        return await self._answer(request)

    def serve(self) -> None:
        """After something was asked of the session: sends, and sees to the next timer."""
        loop = self.loop()
        self._serve_link(loop)
        self._hand_out()
        self._soon(loop)
        self._wake_at(loop, self.session.wakeup())

    def close(self) -> None:
        if self.refusal is not None:
            return
        self.refusal = "the client was closed"
        if self._timer is not None:
            self._timer.cancel()
        last = self.session.close()
        self._drop_link(last)
        self._hand_out()

    # The loop's callbacks

    def _soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drains once for all that is sent in this turn of the loop."""
        if not self._draining:
            self._draining = True
            loop.call_soon(self._drain)

    def _drain(self) -> None:
        """Takes in everything that has come, and sends what that leads to."""
        self._draining = False
        if self.refusal is not None or self._loop is None:
            return
        session, link = self.session, self._link
        if link is not None:
            generation = session.generation
            now = monotonic()
            for frame in link.frames():
                session.receive(frame, now)
                if session.generation != generation:
                    break
        if session.outbox or session.wants_link:
            self._serve_link(self._loop)
        if session.finished:
            self._hand_out()
        if session.token is None:
            self._wake_at(self._loop, session.wakeup())

    def _monitored(self) -> None:
        """The monitor has something to say."""
        link, session = self._link, self.session
        if link is None or self._loop is None:
            return
        while (why := link.broke()) is not None:
            self._drain()
            if self._link is link:
                session.broken(monotonic(), why)
                break
        self._tick()

    def _wake_at(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if when < self._timer_at - _TICK_S and when != NEVER:
            if self._timer is not None:
                self._timer.cancel()
            delay = max(when - monotonic(), _TICK_S)
            self._timer_at = monotonic() + delay
            self._timer = loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, NEVER
        if self.refusal is None:
            self.session.tick(monotonic())
            self.serve()

    def _serve_link(self, loop: asyncio.AbstractEventLoop) -> None:
        """Opens a link when the session wants one, and sends what it has to send."""
        session = self.session
        if session.wants_link:
            self._drop_link()
            link = self._link = self._settings.link(session.address)
            for fd, callback in zip(link.fds, (self._drain, self._monitored), strict=True):
                loop.add_reader(fd, callback)
                loop.call_soon(callback)  # an edge comes only after a first look found nothing
            session.opened(monotonic())
        link_now, outbox = self._link, session.outbox
        while outbox and link_now is not None:
            frame, request = outbox[0]
            if request is None or not request.done:
                if not link_now.send(frame):
                    break
                if request is not None:
                    request.sent = True
            outbox.popleft()
            self._soon(loop)

    def _drop_link(self, last: bytes | None = None) -> None:
        if self._link is not None:
            if self._loop is not None and not self._loop.is_closed():
                for fd in self._link.fds:
                    self._loop.remove_reader(fd)
            self._link.close(last)
            self._link = None

    def _hand_out(self) -> None:
        finished = self.session.finished
        for target in finished:
            waiter = target.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        finished.clear()
