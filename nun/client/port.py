"""Link and session shared by threads, without a thread of its own.

Whoever waits for a reply while nobody else does becomes the *leader*: it alone touches link and session, takes in
whatever comes and hands other threads their answers. The others leave what they want done in a queue, ring the leader's
bell and sleep. A leader that has its own answer wakes one of them to lead.

A lone thread pays a lock for this and no more: it sends, and receives with a plain blocking call. The bell is looked at
only once a second thread was ever seen, or when an answer takes longer than BRIEFLY_MS.

I1  `_leading` is held by whoever touches link and session.
I2  A thread that sleeps has registered in `_waiters` before it last tried to lead; a leader releases `_leading` before
    it looks into `_waiters`. So one of the two sees the other, and somebody always leads while anybody waits.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from nun.client.link import Link, wait_without_link
from nun.client.notices import NoticeState
from nun.client.request import Request
from nun.client.session import Session
from nun.client.settings import Settings
from nun.client.watches import WatchState
from nun.errors import ConnectionLost

ALONE_AFTER = 64  # requests without another thread around, and a thread takes itself to be alone
_IDLE_S = 60.0


class Port:
    """See the module's docstring."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.session: Session = settings.session()
        self._link: Link | None = None
        self._leading = threading.Lock()
        self._shared = False  # other threads have been here lately
        self._alone = 0  # requests since
        self._asked: deque[Callable[[], None]] = (
            deque()
        )  # what other threads want done by the leader
        self._waiters: dict[Request | WatchState | NoticeState, threading.Event] = {}
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.refusal: str | None = None
        _ports.add(self)

    # For everybody

    def run(self, request: Request, timeout: float) -> Any:
        """Sends a request and waits for its answer."""
        if self.refusal is not None:
            raise ConnectionLost(self.refusal)
        now = monotonic()
        request.deadline = now + timeout
        if not self._leading.acquire(False):
            self._queue(request, lambda: self._begin(request))
            return self._answer(request)
        try:
            if self._asked or self.session.outbox or self._link is None:
                self._begin(request)
            else:
                frame = self.session.begin(request, now)
                if frame is not None:
                    if not self._link.send(frame):
                        self.session.outbox.append((frame, request))
                    else:
                        request.sent = True
                        if not self._shared:
                            reply = self._link.receive_briefly()
                            if reply is not None:
                                self.session.receive(reply, monotonic())
            if not request.done or self.session.outbox:
                self._lead(request)
            self._hand_out()
            if self._shared and not self._waiters:
                self._alone += 1
                self._shared = self._alone < ALONE_AFTER
        except BaseException:
            self.session.forget(request)
            raise
        finally:
            self._leave()
        return self._answer(request)

    def _answer(self, request: Request) -> Any:
        if not request.done:
            request.give_up(self.refusal or "")
        if request.unknown is not None:
            return request.answer(lambda timeout: self._retry(request, timeout))
        return request.answer()

    def _retry(self, request: Request, timeout: float | None) -> Any:
        seconds = self._settings.timeout if timeout is None else timeout

        def again() -> None:
            request.deadline = monotonic() + seconds
            self.session.retry(request, monotonic())

        self.wait_for(request, again)
        return self._answer(request)

    def wait_for(
        self,
        target: Request | WatchState | NoticeState,
        begin: Callable[[], None],
        until: float | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        """Has `begin` done at the session, then waits until the target is ready, or until a time."""
        if self.refusal is not None:
            raise ConnectionLost(self.refusal)
        if self._leading.acquire(False):
            try:
                begin()
                self._lead(target, until, ready)
            finally:
                self._leave()
        else:
            self._queue(target, begin, until, ready)

    def tell(self, action: Callable[[], None]) -> None:
        """Has something done at the session, and does not wait for anything."""
        if self._leading.acquire(False):
            try:
                self._do_asked()
                action()
                self._serve_link()
            finally:
                self._leave()
        else:
            self._shared, self._alone = True, 0
            self._asked.append(action)
            os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Ends all waiting, by any thread."""
        if self.refusal is not None:
            return
        self.refusal = "the client was closed"
        while not self._leading.acquire(timeout=0.01):
            os.eventfd_write(self._bell, 1)
        try:
            self._do_asked()
            last = self.session.close()
            if self._link is not None:
                self._link.close(last)
                self._link = None
            self._hand_out()
        finally:
            self._leading.release()

    def __del__(self) -> None:
        os.close(self._bell)

    def forked(self) -> None:
        """This process is a copy: the sockets are the parent's."""
        self.refusal = "a client cannot be used after a fork: make one in each process"

    # For those who do not lead

    def _queue(
        self,
        target: Request | WatchState | NoticeState,
        begin: Callable[[], None],
        until: float | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        self._shared, self._alone = True, 0
        event = self._waiters[target] = threading.Event()
        self._asked.append(begin)
        is_ready = ready or (lambda: target.ready)
        try:
            os.eventfd_write(self._bell, 1)
            while not is_ready():
                # Registered first, then tried again: a leader that leaves in between sees one or the other.
                if self._leading.acquire(False):
                    try:
                        self._lead(target, until, ready)
                        return
                    finally:
                        self._leading.release()
                left = _IDLE_S if until is None else until - monotonic()
                if left <= 0:
                    return
                event.wait(left)
                event.clear()
        except BaseException:
            if isinstance(target, Request):
                self._asked.append(lambda: self.session.forget(target))
            raise
        finally:
            del self._waiters[target]
            if self._waiters:
                self._wake_a_leader()

    def _leave(self) -> None:
        """Stops leading (I2)."""
        self._leading.release()
        if self._waiters:
            self._wake_a_leader()
        elif self._asked:
            self.tell(_nothing)

    def _wake_a_leader(self) -> None:
        """Somebody who waits has to lead from now on."""
        for event in list(self._waiters.values()):
            event.set()
            return

    # For the leader

    def _begin(self, request: Request) -> None:
        if request.done:
            return
        frame = self.session.begin(request, monotonic())
        if frame is not None:
            self.session.outbox.append((frame, request))

    def _lead(
        self,
        target: Request | WatchState | NoticeState,
        until: float | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        """Serves link and session until the target is ready, the time is over, or the client closes."""
        session = self.session
        is_ready = ready or (lambda: target.ready)
        while True:
            self._do_asked()
            self._serve_link()
            self._hand_out()
            now = monotonic()
            if is_ready() or self.refusal is not None or (until is not None and now >= until):
                return
            wakeup = min(session.wakeup(), now + _IDLE_S)
            if until is not None:
                wakeup = min(wakeup, until)
            link = self._link
            if link is None:
                wait_without_link(self._bell, wakeup - now)
            else:
                monitored = link.wait(self._bell, wakeup - now, bool(session.outbox))
                self._take_in(link, monitored)
            session.tick(monotonic())

    def _take_in(self, link: Link, monitored: bool) -> None:
        """Everything that has come, then whether the connection is over."""
        session = self.session
        generation = session.generation
        for frame in link.frames():
            session.receive(frame, monotonic())
            if session.generation != generation:
                return
        why = link.broke() if monitored else None
        if why is not None:
            session.broken(monotonic(), why)

    def _serve_link(self) -> None:
        """Opens a link when the session wants one, and sends what it has to send."""
        session = self.session
        if session.wants_link and self.refusal is None:
            if self._link is not None:
                self._link.close()
                self._link = None
            self._link = self._settings.link(session.address)
            session.opened(monotonic())
        link, outbox = self._link, session.outbox
        while outbox and link is not None:
            frame, request = outbox[0]
            if request is None or not request.done:
                if not link.send(frame):
                    return
                if request is not None:
                    request.sent = True
            outbox.popleft()

    def _do_asked(self) -> None:
        if not self._asked:
            return
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            pass
        while self._asked:
            self._asked.popleft()()

    def _hand_out(self) -> None:
        """Wakes those whose answers have come."""
        finished = self.session.finished
        if self._waiters:
            for target in finished:
                event = self._waiters.get(target)
                if event is not None:
                    event.set()
        finished.clear()


def _nothing() -> None:
    pass


_ports: weakref.WeakSet[Port] = weakref.WeakSet()


def _after_fork() -> None:
    for port in list(_ports):
        port.forked()


os.register_at_fork(after_in_child=_after_fork)
