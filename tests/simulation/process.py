"""One process of a simulated node: a loop on virtual time, and the means that a child gets from its surroundings.

What runs in it is the real actor (actors/network.py, actors/writer.py, actors/replicator.py, actors/conflicts.py). It
gets a simulated context, loop, disk, clock, threads and source of chance in place of the real ones; `installed` puts
those in the places where the actors look for them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.simulation import zmq_model
from tests.simulation.world import MS, SECOND, Event, World
from tests.support.sim_disk import Crashed

_MANY_TURNS: Final = 10_000
_MANAGER_TICK_S: Final = 0.1
_present: list[World] = []  # the world that runs, while one does


class Failed(AssertionError):
    """Something happened in a simulated world that must not."""


def world() -> World:
    return _present[-1]


class Timer:
    """A call at a time to come."""

    __slots__ = ("call", "event", "period_ns")

    def __init__(self, call: Callable[[], Any], period_ns: int) -> None:
        self.call: Callable[[], Any] | None = call
        self.period_ns = period_ns
        self.event: Event | None = None

    def cancel(self) -> None:
        self.call = None
        if self.event is not None:
            self.event.cancel()


class Loop:
    """In place of actors/loop.py: the same methods, driven by the queue of the world."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.world = process.world
        self.story: Any = None
        self._handlers: dict[Any, Callable[[], bool]] = {}
        self._calls: deque[Callable[[], Any]] = deque()
        self._steps: deque[Callable[[], bool]] = deque()
        self._stepping = False
        self.status: int | None = None

    def on_readable(self, socket: Any, handler: Callable[[], bool]) -> None:
        self._handlers[socket] = handler
        if socket.inbox:
            self.process.wake()

    def on_descriptor(self, descriptor: int, handler: Callable[[], bool]) -> None:
        raise NotImplementedError("no descriptors here")

    def forget(self, source: Any) -> None:
        self._handlers.pop(source, None)

    def after(self, seconds: float, call: Callable[[], Any]) -> Timer:
        timer = Timer(call, 0)
        timer.event = self.world.after(int(seconds * SECOND), lambda: self._timer(timer))
        return timer

    def every(self, seconds: float, call: Callable[[], Any]) -> Timer:
        timer = Timer(call, max(int(seconds * SECOND), 1))
        first = self.world.between(timer.period_ns // 2, timer.period_ns)  # no two in step
        timer.event = self.world.after(first, lambda: self._timer(timer))
        return timer

    def in_background(self, step: Callable[[], bool]) -> None:
        self._steps.append(step)
        self._step_soon()

    def call_soon_threadsafe(self, call: Callable[[], Any]) -> None:
        self._calls.append(call)
        self.process.wake()

    def stop(self, status: int = 0) -> None:
        if self.status is None:
            self.status = status
            process = self.process
            self.world.after(0, lambda: process.ended(status))

    @property
    def stopped(self) -> bool:
        return self.status is not None

    def turn(self) -> None:
        """One turn: every socket that has something, then the calls from threads."""
        for socket, handler in list(self._handlers.items()):
            if socket.inbox and socket in self._handlers and self.status is None:
                handler()
        for _ in range(len(self._calls)):
            if self.status is None:
                self._calls.popleft()()
        if self._calls or any(socket.inbox for socket in self._handlers):
            self.process.wake()

    def _timer(self, timer: Timer) -> None:
        process = self.process
        if timer.call is None or process.dead or self.status is not None:
            return
        free = process.free_at()
        if free > self.world.now:
            timer.event = self.world.at(free, lambda: self._timer(timer))
            return
        if timer.period_ns:
            timer.event = self.world.after(timer.period_ns, lambda: self._timer(timer))
        process.do(timer.call)

    def _step_soon(self) -> None:
        if not self._stepping and self._steps:
            self._stepping = True
            self.world.after(self.world.between(50_000, 500_000), self._step)

    def _step(self) -> None:
        self._stepping = False
        if self.process.dead or self.status is not None or not self._steps:
            return
        step = self._steps.popleft()
        more: list[bool] = []
        self.process.do(lambda: more.append(step()))
        if more and more[0]:
            self._steps.append(step)
        self._step_soon()


class Future:
    """What a simulated thread was asked to do."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._value: Any = None
        self._done = False
        self._callbacks: list[Callable[[Any], Any]] = []

    def add_done_callback(self, call: Callable[[Any], Any]) -> None:
        if self._done:
            call(self)
        else:
            self._callbacks.append(call)

    def exception(self) -> BaseException | None:
        return self._error

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def done(self) -> bool:
        return self._done

    def run(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self._value = call(*arguments)
        except Exception as error:
            self._error = error
        self._done = True
        for each in self._callbacks:
            each(self)


class Threads:
    """In place of a ThreadPoolExecutor: what is submitted is done a little later, in the same process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.process: Process = world().current

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future:
        future = Future()
        process = self.process

        def work() -> None:
            if not process.dead:
                process.do(lambda: future.run(call, arguments), thread=True)

        process.world.after(process.world.between(100_000, 5 * MS), work)
        return future

    def shutdown(self, *_: Any, **__: Any) -> None:
        pass


class Child:
    """In place of actors/child.py: what an actor is given."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.name = process.name
        self.config = process.node.config
        self.run_dir = Path(f"/run/{process.node.name}")
        self.secret = b""  # no gateway is simulated
        self.siblings: dict[str, int] = {}
        self.log = Log(process)
        self.debug = False
        self.loop = Loop(process)
        self.context = zmq_model.Context(process.world.wires, process)
        self.on_stop_call: Callable[[], Any] = self.loop.stop

    def on_stop(self, call: Callable[[], Any]) -> None:
        self.on_stop_call = call

    def ready(self, **fields: Any) -> None:
        self.process.world.note("ready", self.process.label, str(fields.get("epoch")))
        self.process.node.ready(self.name)

    def fail(self, text: str, status: int = 3) -> None:
        self.process.node.cannot_run(self.name, text)
        self.loop.stop(status)

    def ask_restart(self, why: str) -> None:
        """The processes of this node are to be started anew from disk."""
        process = self.process
        process.world.note("restart wanted", process.label, why)
        process.world.after(0, lambda: process.node.restart(why, process))


class Log:
    """In place of a structlog logger: what is told becomes lines of the trace."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def bind(self, **_: Any) -> Log:
        return self

    def debug(self, event: str, **fields: Any) -> None:
        pass

    def info(self, event: str, **fields: Any) -> None:
        fields.pop("seconds", None)
        shown = {name: str(value) for name, value in fields.items()}
        self._process.world.note("log", self._process.label, event, shown)

    warning = error = critical = info


class Process:
    """A process of a node. It takes turns; while it is stalled it takes none.

    Attributes:
        ahead: by how much what is sent now is late, because the turn so far has taken that long.
    """

    def __init__(self, node: Any, name: str) -> None:
        self.node = node
        self.name = name
        self.host: str = node.name
        self.label = f"{node.name}.{name}"
        self.world: World = node.world
        self.ahead = 0
        self.busy_until = 0
        self.stalled_until = 0
        self.dead = False
        self.actor: Any = None
        self._woken = False
        self.child = Child(self)

    def start(self, make: Callable[[Child], Any]) -> None:
        self.world.note("start", self.label)

        def begin() -> None:
            self.actor = make(self.child)

        self.do(begin)

    def free_at(self) -> int:
        """When it can take its next turn."""
        return max(self.busy_until, self.stalled_until, self.node.stalled_until)

    def wake(self) -> None:
        if not self._woken and not self.dead:
            self._woken = True
            soon = self.world.now + self.world.between(5_000, 60_000)
            self.world.at(max(soon, self.free_at()), self._turn)

    def _turn(self) -> None:
        if self.dead:
            return
        free = self.free_at()
        if free > self.world.now:
            self.world.at(free, self._turn)
            return
        self._woken = False
        self.do(self.child.loop.turn)

    def do(self, call: Callable[[], Any], thread: bool = False) -> None:
        """Runs something in this process."""
        before, self.world.current = self.world.current, self
        try:
            call()
        except Crashed:
            self.world.current = before
            self.node.died(self, "at a call to the disk")
            return
        except Failed:
            raise
        except Exception as error:
            if self.node.excused(error):
                self.world.current = before
                self.node.died(self, f"of {error!r}")
                return
            raise Failed(f"{self.label}: {error!r}\n{traceback.format_exc()}") from error
        finally:
            self.world.current = before
        if self.ahead and not thread:
            self.busy_until = self.world.now + self.ahead
        self.ahead = 0

    def ended(self, status: int) -> None:
        if not self.dead:
            self.node.ended(self, status)

    def kill(self) -> None:
        """The process is no more; its sockets close."""
        self.dead = True
        self.child.context.destroy()


# The means that actors look for in modules


class _Time:
    """In place of the module `time`."""

    @staticmethod
    def monotonic_ns() -> int:
        current = world().current
        if current is None:
            return world().now
        return int(current.node.clock.monotonic_ns(world().now + current.ahead))

    @staticmethod
    def time_ns() -> int:
        current = world().current
        return int(current.node.clock.unix_ns(world().now + current.ahead))

    @classmethod
    def monotonic(cls) -> float:
        return cls.monotonic_ns() / 1e9

    @classmethod
    def time(cls) -> float:
        return cls.time_ns() / 1e9


class _Os:
    """In place of the module `os`, where chance is asked of it."""

    @staticmethod
    def urandom(size: int) -> bytes:
        return world().rng.randbytes(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class _Gc:
    """In place of the module `gc`: one interpreter plays many processes."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def _disk(root: Path | str) -> Any:
    return world().disks[str(root)]


def _hash_secret(secret: bytes) -> str:
    return f"hash of {secret.decode()}"


def _check_secret(secret: bytes, stored: bytes) -> bool:
    return stored == b"hash of " + secret


class _NoFloods:
    """In place of actors/floods.py: it looks at connections of the operating system."""

    watching = judging = False

    def __init__(self, *_: Any) -> None:
        pass

    def turn_ended(self, *_: Any, **__: Any) -> None:
        pass

    def look(self, _: int) -> list[Any]:
        return []

    def rest(self, *_: int) -> None:
        pass


_SEAMS: Final[dict[str, Any]] = {
    "time": _Time,
    "os": _Os(),
    "gc": _Gc(),
    "RealDisk": _disk,
    "ThreadPoolExecutor": Threads,
    "hash_secret": _hash_secret,
    "check_secret": _check_secret,
    "describe_processes": lambda _: {},
    "FloodGuard": _NoFloods,
}
_MODULES: Final = (
    "actors.network",
    "actors.writer",
    "actors.replicator",
    "actors.snapshotting",
    "actors.keeping",
    "actors.conflicts",
    "storage.snapshot",
    "storage.directory",
    "storage.copying",
)


@contextlib.contextmanager
def installed(here: World) -> Iterator[None]:
    """Puts the simulated means in place while this world runs."""
    saved: list[tuple[Any, str, Any]] = []

    def put(module: Any, name: str, value: Any) -> None:
        saved.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    _present.append(here)
    try:
        sockets = importlib.import_module("actors.sockets")
        put(sockets, "_recv", zmq_model.receive)
        put(sockets, "_send", zmq_model.send)
        put(sockets, "_poll", zmq_model.poll)
        for module_name in _MODULES:
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError:
                continue
            for name, value in _SEAMS.items():
                if hasattr(module, name):
                    put(module, name, value)
        # Half as often as in truth: a tick of a manager that has nothing to do costs much of a seed's time.
        put(importlib.import_module("actors.conflicts"), "TICK_S", _MANAGER_TICK_S)
        oplog = importlib.import_module("storage.oplog").Oplog
        function = oplog.open.__func__
        changed = tuple(
            _Os.urandom if each is os.urandom else each for each in function.__defaults__
        )
        put(function, "__defaults__", changed)
        yield
    finally:
        for module, name, value in reversed(saved):
            setattr(module, name, value)
        _present.pop()
