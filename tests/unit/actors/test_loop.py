"""The loop: handlers, timers, steps in the background, calls of other threads, spinning, faults."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import zmq

from actors.loop import FAULT, Loop


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def critical(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def loop(log: Log) -> Iterator[Loop]:
    loop = Loop(log=log)
    loop.after(20, lambda: loop.stop(99))  # no test hangs
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    context: Any = zmq.Context()
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ours.bind("inproc://pair")
    theirs.connect("inproc://pair")
    yield ours, theirs
    context.destroy(linger=0)


def drained(socket: Any) -> list[bytes]:
    found = []
    while socket.poll(0):
        found.append(socket.recv())
    return found


def test_a_handler_is_called_when_its_socket_has_something(loop: Loop, pair: Any) -> None:
    ours, theirs = pair
    seen: list[bytes] = []

    def handler() -> bool:
        seen.extend(drained(ours))
        if len(seen) < 3:
            theirs.send(b"again")
        else:
            loop.stop()
        return True

    loop.on_readable(ours, handler)
    theirs.send(b"first")
    assert loop.run() == 0
    assert seen == [b"first", b"again", b"again"]


def test_a_descriptor_is_read_and_its_end_is_seen(loop: Loop) -> None:
    reader, writer = os.pipe()
    seen: list[bytes] = []

    def handler() -> bool:
        seen.append(os.read(reader, 10))
        if seen[-1]:
            os.close(writer)
        else:
            loop.stop()
        return True

    loop.on_descriptor(reader, handler)
    os.write(writer, b"x")
    assert loop.run() == 0
    assert seen == [b"x", b""]
    loop.forget(reader)
    os.close(reader)


def test_what_is_forgotten_is_not_called_even_in_the_same_turn(loop: Loop, pair: Any) -> None:
    ours, theirs = pair
    called: list[str] = []

    def forget_the_other(name: str, other: Any) -> Callable[[], bool]:
        def handler() -> bool:
            called.append(name)
            loop.forget(other)
            loop.stop()
            return True

        return handler

    loop.on_readable(ours, forget_the_other("ours", theirs))
    loop.on_readable(theirs, forget_the_other("theirs", ours))
    ours.send(b"x")
    theirs.send(b"y")
    assert loop.run() == 0
    assert len(called) == 1
    loop.forget(ours)
    loop.forget(ours)  # twice is nothing


def test_timers_come_in_order_and_not_too_early(loop: Loop) -> None:
    began = time.monotonic()
    seen: list[tuple[str, float]] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: seen.append((name, time.monotonic() - began))

    loop.after(0.03, note("late"))
    loop.after(0.01, note("early"))
    loop.after(0.01, note("early too"))
    loop.after(0.02, note("cancelled")).cancel()
    loop.after(0.04, loop.stop)
    assert loop.run() == 0
    assert [name for name, _ in seen] == ["early", "early too", "late"]
    assert all(at >= due for (_, at), due in zip(seen, (0.01, 0.01, 0.03), strict=True))


def test_a_timer_repeats_until_it_is_cancelled(loop: Loop) -> None:
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == 3:
            timer.cancel()
            loop.after(0.02, loop.stop)

    timer = loop.every(0.002, tick)
    assert loop.run() == 0
    assert count == 3


def test_missed_turns_are_not_made_up_for(loop: Loop) -> None:
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == 1:
            time.sleep(0.05)  # a handler that takes long
        if count == 2:
            loop.stop()

    began = time.monotonic()
    loop.every(0.01, tick)
    assert loop.run() == 0
    assert time.monotonic() - began >= 0.06


def test_nothing_is_called_after_the_turn_of_stop(loop: Loop) -> None:
    called: list[str] = []
    loop.after(0, loop.stop)
    loop.after(0, lambda: called.append("timer of the same turn"))
    assert loop.run() == 0
    assert called == []


def test_the_first_status_counts(loop: Loop) -> None:
    loop.stop(3)
    loop.stop(0)
    assert loop.run() == 3
    assert loop.stopped


def test_calls_of_other_threads_wake_a_sleeping_loop_and_keep_their_order(loop: Loop) -> None:
    seen: list[tuple[int, int]] = []
    threads = 4
    each = 500
    here = threading.get_ident()

    def call(thread: int, number: int) -> None:
        assert threading.get_ident() == here
        seen.append((thread, number))
        if len(seen) == threads * each:
            loop.stop()

    def work(thread: int) -> None:
        for number in range(each):
            loop.call_soon_threadsafe(lambda number=number: call(thread, number))

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    loop.after(0.01, lambda: [worker.start() for worker in workers])
    assert loop.run() == 0
    for worker in workers:
        worker.join()
    for thread in range(threads):
        assert [number for of, number in seen if of == thread] == list(range(each))


def test_a_call_that_calls_again_does_not_starve_the_rest(loop: Loop) -> None:
    def again() -> None:
        loop.call_soon_threadsafe(again)

    loop.call_soon_threadsafe(again)
    loop.after(0.01, loop.stop)
    assert loop.run() == 0


def test_steps_run_in_turns_until_they_are_done(loop: Loop) -> None:
    seen: list[str] = []

    def step(name: str, count: int) -> Callable[[], bool]:
        def run() -> bool:
            seen.append(name)
            return seen.count(name) < count

        return run

    loop.in_background(step("a", 3))
    loop.in_background(step("b", 2))
    loop.after(0.02, loop.stop)
    assert loop.run() == 0
    assert seen == ["a", "b", "a", "b", "a"]


def test_steps_wait_for_work_but_not_for_ever(loop: Loop, pair: Any) -> None:
    ours, theirs = pair
    turns = 0
    steps: list[float] = []

    def busy() -> bool:
        nonlocal turns
        drained(ours)
        theirs.send(b"more")
        turns += 1
        return True

    def step() -> bool:
        steps.append(time.monotonic())
        if len(steps) == 5:
            loop.stop()
        return True

    loop.on_readable(ours, busy)
    loop.in_background(step)
    theirs.send(b"work")
    assert loop.run() == 0
    assert turns > 2 * len(steps)
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    assert all(gap >= 0.019 for gap in gaps)


def test_a_fault_is_told_with_its_story_and_ends_the_loop(log: Log) -> None:
    loop = Loop(log=log, story=lambda: "three entries waiting")
    loop.call_soon_threadsafe(lambda: 1 // 0)
    assert loop.run() == FAULT
    ((event, fields),) = log.lines
    assert event == "fault"
    assert fields == {"exc_info": True, "story": "three entries waiting"}
    loop.close()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_is_no_fault_passes(log: Log, error: BaseException) -> None:
    loop = Loop(log=log)

    def go() -> None:
        raise error

    loop.after(0, go)
    with pytest.raises(type(error)):
        loop.run()
    assert log.lines == []
    loop.close()


class Polls:
    """Counts how the loop waits: without blocking (spinning), or asleep."""

    def __init__(self, loop: Loop) -> None:
        self._poll = loop._poll
        self.spun = 0
        self.slept = 0
        loop._poll = self.poll  # type: ignore[method-assign]

    def poll(self, sources: Any, timeout: int) -> Any:
        if timeout == 0:
            self.spun += 1
        else:
            self.slept += 1
        return self._poll(sources, timeout)


def ping(loop: Loop, pair: Any, gaps: list[float]) -> Polls:
    """Gives the loop work, this long apart (from the end of its handler), and tells how it waited."""
    ours, theirs = pair
    polls = Polls(loop)
    left = list(gaps)

    def handler() -> bool:
        drained(ours)
        if not left:
            loop.stop()
        elif gap := left.pop(0):
            loop.after(gap, lambda: theirs.send(b"x"))
        else:
            theirs.send(b"x")
        return True

    loop.on_readable(ours, handler)
    theirs.send(b"x")
    assert loop.run() == 0
    return polls


def test_without_spin_it_always_sleeps(pair: Any) -> None:
    loop = Loop(spin_us=0)
    assert ping(loop, pair, [0.0] * 50).spun == 0
    loop.close()


def test_it_spins_while_work_comes_fast_and_sleeps_when_it_stops(pair: Any) -> None:
    loop = Loop(spin_us=2_000)
    polls = ping(loop, pair, [0.0] * 50)
    assert polls.spun > 30
    assert polls.slept < 20
    loop.close()

    loop = Loop(spin_us=2_000)
    polls = ping(loop, pair, [0.0] * 50 + [0.05])
    assert polls.slept > 1  # the spin after the last of the fast ones ends by itself
    loop.close()


def test_it_does_not_spin_when_waits_are_longer_than_the_spin(pair: Any) -> None:
    loop = Loop(spin_us=300)
    assert ping(loop, pair, [0.002] * 30).spun == 0
    loop.close()


def test_a_long_wait_is_soon_outweighed(pair: Any) -> None:
    loop = Loop(spin_us=2_000)
    polls = ping(loop, pair, [0.0] * 20 + [0.2] + [0.0] * 20)
    assert polls.spun > 30
    loop.close()


def test_spinning_looks_at_timers(pair: Any) -> None:
    loop = Loop(spin_us=10_000_000)
    polls = ping(loop, pair, [0.0] * 20 + [0.01])  # the last is a timer's
    assert polls.spun > 10
    assert polls.slept < 10
    loop.close()


def test_closing_gives_the_descriptor_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    Loop().close()
    assert len(os.listdir("/proc/self/fd")) == before
