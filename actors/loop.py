"""The loop that every process shares: wait for a socket, a timer or another thread; let the handlers drain; repeat.

A handler is called when its socket has something, takes all that waits (within bounds of its own), and returns True
when it did work. After work the loop may *spin* for a while: poll without blocking and yield the processor, so that
the next message need not wake a sleeping core (about 60 us a hop). It does so only while the recent waits were
shorter than the spin itself; a process that has little to do sleeps.

An exception that nobody caught is a fault of ours. It is logged with its story and ends the loop with status 1; the
supervisor then starts the group anew from disk. This is the only place that catches everything.

I1  Handlers, timers, steps and calls run one at a time, on the thread that runs the loop; none is re-entered.
I2  After `stop` the turn is finished and nothing else is called.
"""

from __future__ import annotations

import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog
import zmq
from zmq.backend import zmq_poll

from actors.sockets import Socket

Handler = Callable[[], bool]
Call = Callable[[], Any]

FAULT: Final = 1  # the exit status after an uncaught exception
_WAITS: Final = 8  # how many recent waits the decision to spin looks back on, about
_STEP_PATIENCE_NS: Final = 20_000_000
_POLLIN: Final = int(zmq.POLLIN)
_monotonic_ns = time.monotonic_ns


class Timer:
    """A call at a time to come."""

    __slots__ = ("call", "period_ns")

    def __init__(self, call: Call, period_ns: int) -> None:
        self.call: Call | None = call
        self.period_ns = period_ns

    def cancel(self) -> None:
        """It will not be called any more."""
        self.call = None


class Loop:
    """One process's loop.

    Args:
        spin_us: how long to spin after work, in microseconds; 0 never.
        log: where a fault is told.
        story: what a fault is told with: the state of the process, in one line.
    """

    def __init__(
        self, spin_us: int = 0, log: Any = None, story: Callable[[], str] | None = None
    ) -> None:
        self.story = story
        self._log = log if log is not None else structlog.get_logger()
        self._poll: Callable[..., list[tuple[Any, int]]] = zmq_poll
        self._sources: list[tuple[Socket | int, int]] = []
        self._handlers: dict[Any, Handler] = {}
        self._timers: list[tuple[int, int, Timer]] = []
        self._order = itertools.count()
        self._steps: deque[Handler] = deque()
        self._stepped_ns = 0
        self._calls: deque[Call] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._spin_ns = spin_us * 1_000
        self._wait_ns = 2 * self._spin_ns  # the running mean of the recent waits for work
        self._status: int | None = None
        self.on_descriptor(self._wake, self._woken)

    # What to wait for

    def on_readable(self, socket: Socket, handler: Handler) -> None:
        """Calls `handler` whenever a ZeroMQ socket has something to read."""
        self._handlers[socket] = handler
        self._sources.append((socket, _POLLIN))

    def on_descriptor(self, descriptor: int, handler: Handler) -> None:
        """Calls `handler` whenever a file descriptor is readable, or at its end."""
        self._handlers[descriptor] = handler
        self._sources.append((descriptor, _POLLIN))

    def forget(self, source: Socket | int) -> None:
        """Looks at a socket or descriptor no more. Call this before closing it."""
        if self._handlers.pop(source, None) is not None:
            self._sources.remove((source, _POLLIN))

    def after(self, seconds: float, call: Call) -> Timer:
        """Calls once, after so many seconds."""
        return self._add_timer(seconds, Timer(call, 0))

    def every(self, seconds: float, call: Call) -> Timer:
        """Calls again and again, that far apart; turns that were missed are not made up for."""
        return self._add_timer(seconds, Timer(call, max(int(seconds * 1e9), 1)))

    def in_background(self, step: Handler) -> None:
        """Calls `step` in turns without other work, and at least every 20 ms, until it returns False.

        A step is a small slice of a long piece of work: the next message waits for it.
        """
        self._steps.append(step)

    def call_soon_threadsafe(self, call: Call) -> None:
        """Calls from within the loop, in order. The only method that other threads may use."""
        self._calls.append(call)
        os.eventfd_write(self._wake, 1)

    # Running

    def run(self) -> int:
        """Runs until `stop`; returns the exit status: that of `stop`, or 1 after a fault."""
        try:
            self._run()
        except Exception:
            # Nothing is known about what such an error leaves behind: tell the story and end.
            self._log.critical("fault", exc_info=True, story=self.story() if self.story else None)
            return FAULT
        assert self._status is not None
        return self._status

    def stop(self, status: int = 0) -> None:
        """Ends `run` after the present turn. The first status counts."""
        if self._status is None:
            self._status = status

    @property
    def stopped(self) -> bool:
        return self._status is not None

    def close(self) -> None:
        """Gives back the loop's own descriptor."""
        self.forget(self._wake)
        os.close(self._wake)

    def _run(self) -> None:
        poll, sources, handlers = self._poll, self._sources, self._handlers
        worked_ns = _monotonic_ns()
        spin_until_ns = 0
        while self._status is None:
            now_ns = _monotonic_ns()
            spinning = now_ns < spin_until_ns
            patience_ms = 0 if spinning or self._steps else self._patience_ms(now_ns)
            ready = poll(sources, patience_ms)
            worked = False
            for source, _ in ready:
                handler = handlers.get(source)  # an earlier handler may have closed it
                if handler is not None and handler():
                    worked = True
            if self._timers and self._timers[0][0] <= _monotonic_ns():
                self._run_timers()
            if self._steps:
                self._run_step(worked)
            if worked:
                now_ns = _monotonic_ns()
                if self._spin_ns:
                    spin_until_ns = self._spin_after(now_ns, now_ns - worked_ns)
                worked_ns = now_ns
            elif spinning:
                os.sched_yield()

    def _spin_after(self, now_ns: int, wait_ns: int) -> int:
        """Until when to spin. A long wait counts as two spins, so that a few short ones outweigh it soon."""
        spin_ns = self._spin_ns
        self._wait_ns += (min(wait_ns, 2 * spin_ns) - self._wait_ns) // _WAITS
        return now_ns + spin_ns if self._wait_ns < spin_ns else 0

    def _patience_ms(self, now_ns: int) -> int:
        if not self._timers:
            return -1
        return max((self._timers[0][0] - now_ns + 999_999) // 1_000_000, 0)

    def _add_timer(self, seconds: float, timer: Timer) -> Timer:
        due_ns = _monotonic_ns() + int(seconds * 1e9)
        heapq.heappush(self._timers, (due_ns, next(self._order), timer))
        return timer

    def _run_timers(self) -> None:
        """Calls what is due; what these calls add waits for the next turn."""
        now_ns = _monotonic_ns()
        due = []
        while self._timers and self._timers[0][0] <= now_ns:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            if timer.call is not None and self._status is None:
                timer.call()
                if timer.period_ns and timer.call is not None:
                    heapq.heappush(
                        self._timers, (now_ns + timer.period_ns, next(self._order), timer)
                    )

    def _run_step(self, worked: bool) -> None:
        now_ns = _monotonic_ns()
        if worked and now_ns - self._stepped_ns < _STEP_PATIENCE_NS:
            return
        step = self._steps.popleft()
        if step():
            self._steps.append(step)
        self._stepped_ns = _monotonic_ns()

    def _woken(self) -> bool:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return False
        worked = False
        for _ in range(len(self._calls)):
            self._calls.popleft()()
            worked = True
        return worked
