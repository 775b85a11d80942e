"""How a child process begins: as a fork of its supervisor, or as a fresh interpreter.

A fork has all modules already and is there in milliseconds; a fresh interpreter imports them anew, for a quarter of
a second of a core. Only a process of one thread may fork: what other threads held at that moment, a ZeroMQ context
above all, would be broken in the child. So the supervisor forks the group before it opens its control channel, and a
child that is replaced alone, while the others live, gets a fresh interpreter.

Either way the child reads its document from its standard input (actors/child.py), and inherits nothing else but
standard output and error and the sockets that it is given.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

_UNCAUGHT: Final = 1
_NO_DESCRIPTOR: Final = 3  # standard input, output and error are below

Module = Sequence[str]  # the name of a module with a function `main`, then arguments for `sys.argv`


class _Started(Protocol):
    """What subprocess.Popen offers of a process, too."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class Process:
    """A child, and the pipe to its standard input, whose end tells it that its supervisor is gone."""

    pid: int
    pipe: int
    _started: _Started

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._started.poll()

    def wait(self) -> int:
        """Waits for its end; the exit status."""
        return self._started.wait()

    def kill(self) -> None:
        """Ends it at once; nothing where it has ended."""
        self._started.kill()


def load(modules: Iterable[Module]) -> None:
    """Imports what children will need, where they can be forked."""
    if _may_fork():
        for name, *_ in modules:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # what was imported stays shared: no collection writes to its pages


def start_process(module: Module, inherited: Iterable[int]) -> Process:
    """Starts a child; it gets these descriptors, under the same numbers. Raises OSError when there is no room."""
    kept = list(inherited)
    reader, writer = os.pipe()
    try:
        started = _forked(module, reader, kept) if _may_fork() else _executed(module, reader, kept)
    except BaseException:
        os.close(writer)
        raise
    finally:
        os.close(reader)
    return Process(started.pid, writer, started)


def _may_fork() -> bool:
    if sys.platform != "linux":
        return False  # elsewhere the system's own libraries start threads, and forbid it
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False  # nobody knows


def _executed(module: Module, reader: int, inherited: Sequence[int]) -> _Started:
    safe_path = ["-P"] if sys.flags.safe_path else []
    command = [sys.executable, *safe_path, "-m", *module]
    return subprocess.Popen(command, stdin=reader, pass_fds=inherited)


def _forked(module: Module, reader: int, inherited: Sequence[int]) -> _Started:
    sys.stderr.flush()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _become(module, reader, inherited)
    return _Fork(pid)


def _become(module: Module, reader: int, inherited: Sequence[int]) -> NoReturn:
    """What the child does. It never returns: what its supervisor had on the stack is not its own."""
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        os.dup2(reader, 0)
        first = _NO_DESCRIPTOR
        for kept in sorted(inherited):
            os.closerange(first, kept)
            first = kept + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        sys.argv = [*module]
        importlib.import_module(module[0]).main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(_UNCAUGHT)


class _Fork:
    """A forked child, to its parent."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        status = self._reap(0)
        assert status is not None
        return status

    def kill(self) -> None:
        if self.poll() is None:  # until it was waited for, its number is not given to others
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status
