"""Starting and ending processes so that none outlives the run."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import psutil

ROOT: Final = Path(__file__).resolve().parent.parent
STOP_TIMEOUT_S: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1
_KEPT: Final = (
    "NUN_VENV",
    "NUN_PYTHON",
)  # of our variables; NUN_USER and the like are not the node's business


class Unavailable(Exception):
    """What a row needs is not there; says what to do."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(command: Sequence[str], log: IO[bytes] | int, **options: Any) -> subprocess.Popen[bytes]:
    """A process out of reach of the terminal's Ctrl-C: we end it; if we are killed, the kernel."""
    environment = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith("NUN_") or name in _KEPT
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=log,
        env=environment,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509  (prctl takes no lock)
        **options,
    )


def end(process: subprocess.Popen[bytes], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Asks it to end; kills it when it does not, and whatever children it leaves."""
    if process.poll() is not None:
        return
    children = descendants(process.pid)
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    kill(children)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kills those that still run; psutil knows when a pid was given anew."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)


class Worker:
    """A module of bench/ as a process: says a line when ready, answers lines with JSON lines."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.process = spawn(
            [sys.executable, "-m", module, *arguments],
            sys.stderr.fileno(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._module = module
        try:
            self.first = self._read().decode().strip()
        except BaseException:
            self.close()
            raise

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def answered(self, timeout_s: float) -> bool:
        """Whether an answer comes within this time."""
        return bool(select.select([self.process.stdout], [], [], timeout_s)[0])

    def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._read())
        return answer

    def ask(self, line: str) -> dict[str, Any]:
        self.tell(line)
        return self.answer()

    def _read(self) -> bytes:
        assert self.process.stdout is not None
        line: bytes = self.process.stdout.readline()
        if not line:
            raise Unavailable(f"{self._module} ended with status {self.process.wait()}")
        return line

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        end(self.process, timeout_s=2)
