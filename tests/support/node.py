"""A real node under test: started as its operators start it, watched through its log, killed in every way.

    with Node(tmp_path, {"storage": {"fsync": "always"}}) as node:
        client = nun.Client(node.address, user="nun", password="nun-pwd")
        node.kill("writer")
        node.wait_ready()

I1  Nothing is waited for by sleeping: the log is read by a thread and every wait is for a line of it, or for an exit.
I2  The end of the log pipe is the proof that no process of the node is left, for all of them inherit it.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from actors.processes import actor_of
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ADMIN = {"user": "nun", "password": "nun-pwd"}
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
CHILDREN = ("writer", "network", "replicator", "conflicts")  # of any node of a cluster
WITH_GATEWAY = (*CHILDREN, "gateway")
_PR_SET_CHILD_SUBREAPER = 36

Settings = Mapping[str, Mapping[str, Any]]


def adopt_orphans() -> None:
    """Makes this process the parent of what its children leave behind, so that a leak is seen and not lost to init."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 20.0) -> Any:
    """Polls something that has no event of its own (memory, another process's state); returns what it gave."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(0.01)


def seeded(name: str) -> random.Random:
    """A random source whose seed is printed, and can be set by NUN_SEED to repeat a run."""
    seed = int(os.environ.get("NUN_SEED") or random.SystemRandom().randrange(2**32))
    print(f"{name}: NUN_SEED={seed}")
    return random.Random(seed)


def toml(settings: Settings) -> str:
    """The text of a configuration file."""
    lines = []
    for table, keys in settings.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{name} = {_toml_value(item)}" for name, item in value.items()) + " }"
        )
    return json.dumps(value)


class Node:
    """One node in a directory of its own, on a loopback port that it keeps over restarts.

    Args:
        directory: holds configuration, data and a copy of the log.
        settings: tables of the configuration file; they win over the small defaults here.
        environ: more environment variables for the node.
        data_dir: where the data lie, when not under `directory`.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings | None = None,
        environ: Mapping[str, str] | None = None,
        data_dir: Path | None = None,
        root: Path = ROOT,
    ) -> None:
        self.directory = directory
        self.data_dir = data_dir or directory / "data"
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.environ = dict(environ or {})
        self.root = root
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader: threading.Thread | None = None
        self._pids: set[int] = set()
        self._mark = 0
        tables: dict[str, dict[str, Any]] = {
            "node": {"name": "node1", "data_dir": str(self.data_dir)},
            "network": {"listen": self.address},
        }
        for table, keys in (settings or {}).items():
            tables.setdefault(table, {}).update(keys)
        directory.mkdir(parents=True, exist_ok=True)
        self.config = directory / "node.toml"
        self.config.write_text(toml(tables))

    # Starting and stopping

    def __enter__(self) -> Self:
        return self.start() if self.process is None else self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def command(self) -> list[str]:
        """What starts the node."""
        return [sys.executable, "-m", "actors.supervisor", "--config", str(self.config)]

    def launch(self, *arguments: str) -> Self:
        """Starts the processes and does not wait."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        self._finish_reading()
        environ = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(self.root)}
        environ.pop("NUN_USER", None)
        environ.pop("NUN_PWD", None)
        environ.update(self.environ)
        self._mark = len(self.lines)
        self._ended = False
        self.process = subprocess.Popen(
            [*self.command(), *arguments],
            cwd=self.root,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, args=(self.process,), daemon=True)
        self._reader.start()
        return self

    def start(self, *arguments: str) -> Self:
        """Starts the node and waits until clients can be served."""
        self.launch(*arguments)
        self.wait_ready()
        return self

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Asks for a clean stop; returns the exit status once no process of the node is left."""
        assert self.process is not None
        if self.process.poll() is None:
            self.pids()
            self.process.send_signal(how)
        return self.wait_exit()

    def wait_exit(self, timeout: float = STOP_TIMEOUT_S) -> int:
        """Waits for the node to end by itself and for the last of its processes to be gone."""
        assert self.process is not None
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the node did not end in {timeout:g} s\n{self.tail()}") from None
        self._finish_reading()
        return status

    def restart(self) -> Self:
        """Starts again what was stopped or killed."""
        return self.start()

    def close(self) -> None:
        """Ends whatever is left, without asking. Tests that care stop the node themselves."""
        if self.process is not None and self.process.poll() is None:
            for pid in self.pids().values():
                _signal(pid, signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill("node")
        for pid in self._pids:
            _signal_if_ours(pid, signal.SIGKILL)
        self._finish_reading()

    # Watching

    def _read_log(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr, open(self.directory / "log", "ab") as copy:
            for line in process.stderr:
                copy.write(line)
                copy.flush()
                text = line.decode("utf-8", "replace").rstrip()
                try:
                    fields = json.loads(text)
                except ValueError:
                    fields = {"event": text, "raw": True}
                if not isinstance(fields, dict):
                    fields = {"event": text, "raw": True}
                with self._news:
                    self.raw.append(text)
                    self.lines.append(fields)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _finish_reading(self) -> None:
        if self._reader is not None:
            self._reader.join(STOP_TIMEOUT_S)
            assert not self._reader.is_alive(), f"a process outlives the node\n{self.tail()}"
            self._reader = None

    def mark(self) -> int:
        """The place in the log where what happens from now on begins."""
        with self._news:
            return len(self.lines)

    def wait_log(
        self, event: str, since: int | None = None, timeout: float = START_TIMEOUT_S, **fields: Any
    ) -> dict[str, Any]:
        """Waits for a line of the log with this event (and these fields) at or after the mark `since`."""
        at = self._mark if since is None else since
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                while at < len(self.lines):
                    line = self.lines[at]
                    at += 1
                    if line.get("event") == event and all(
                        line.get(name) == value for name, value in fields.items()
                    ):
                        self._mark = max(self._mark, at)
                        return line
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the node ended" if self._ended else f"{timeout:g} s passed"
                    break
                self._news.wait(left)
        raise AssertionError(f"{why} before the log said {event!r} {fields or ''}\n{self.tail()}")

    def wait_ready(self, since: int | None = None) -> dict[str, Any]:
        """Waits for the next `ready` line: after a start, or after a child's death was healed."""
        return self.wait_log("ready", since)

    def tail(self, count: int = 60) -> str:
        with self._news:
            return "\n".join(self.raw[-count:])

    def pids(self) -> dict[str, int]:
        """The processes that run now: supervisor, writer, network, in a cluster replicator."""
        found: dict[str, int] = {}
        if self.process is None or self.process.poll() is not None:
            return found
        found["supervisor"] = self.process.pid
        wait_until(lambda: self._find_children(found), "each child to have its name")
        self._pids.update(found.values())
        return found

    def _find_children(self, found: dict[str, int]) -> bool:
        """Adds the children by what they do; False where one has just been started and has no name yet."""
        assert self.process is not None
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return True
        for child in children:
            try:
                actor = actor_of(child)
                if actor is None and child.status() != psutil.STATUS_ZOMBIE:
                    return False
            except psutil.NoSuchProcess:
                continue
            if actor is not None:
                found[actor] = child.pid
        return True

    def resident_bytes(self, name: str) -> int:
        """The memory that a process of the node holds."""
        return int(psutil.Process(self.pids()[name]).memory_info().rss)

    # Harming

    def kill(self, victim: str) -> None:
        """kill -9: a child, "supervisor" (its children must follow), or "node": all of them at once.

        A child's death is healed by the supervisor: wait_ready() tells when. After the other two, restart().
        """
        pids = self.pids()
        self._mark = self.mark()
        if victim in WITH_GATEWAY:
            _signal(pids[victim], signal.SIGKILL)
            return
        assert victim in ("supervisor", "node")
        assert self.process is not None
        if victim == "node":
            for name in WITH_GATEWAY:
                if name in pids:
                    _signal(pids[name], signal.SIGSTOP)
        _signal(self.process.pid, signal.SIGKILL)
        if victim == "node":
            for name in WITH_GATEWAY:
                if name in pids:
                    _signal(pids[name], signal.SIGKILL)
        self.wait_exit()

    def pause(self, victim: str) -> None:
        """SIGSTOP, and waits until the process really stands still."""
        pid = self.pids()[victim]
        _signal(pid, signal.SIGSTOP)
        process = psutil.Process(pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, f"{victim} to stand still")

    def resume(self, victim: str) -> None:
        _signal(self.pids()[victim], signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _signal_if_ours(pid: int, number: int) -> None:
    """Signals a process of a node that this test run started; a pid that was given anew to others is left alone."""
    try:
        process = psutil.Process(pid)
        mine = actor_of(process) or any(word.startswith("actors.") for word in process.cmdline())
        if mine and any(parent.pid == os.getpid() for parent in process.parents()):
            process.send_signal(number)
    except psutil.Error:
        pass


def leftovers() -> list[psutil.Process]:
    """Children of this process that still run, orphans included; the dead ones are reaped."""
    alive = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
            else:
                alive.append(child)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
    return alive
