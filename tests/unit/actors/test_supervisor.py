"""The supervisor over fake children: starting, healing, giving up, stopping in order, dying together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.processes import actor_of
from tests.support.node import wait_until

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]


class Run:
    """A supervisor and its log, which all of its children share: its end is the end of the last process."""

    def __init__(self, run_dir: str, network: str, writer: str, patience_s: float) -> None:
        arguments = [run_dir, str(patience_s), network, writer]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.supervise", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []

    def wait(self, event: str, **fields: Any) -> dict[str, Any]:
        """The next line of the log with this event and these fields."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            line = json.loads(text)
            self.lines.append(line)
            if line["event"] == event and fields.items() <= line.items():
                found: dict[str, Any] = line
                return found
        raise AssertionError(f"no {event} {fields} in {self.lines}")

    def end(self) -> int:
        """Reads the log to its end; the exit status of the supervisor."""
        assert self.process.stderr is not None
        self.lines += [json.loads(text) for text in self.process.stderr]
        return self.process.wait()

    def events(self, *names: str) -> list[tuple[str, str]]:
        return [(line["event"], line["actor"]) for line in self.lines if line["event"] in names]

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="nun-t-") as run_dir:

        def start(network: str = "serve", writer: str = "quiet", patience_s: float = 20) -> Run:
            run = Run(run_dir, network, writer, patience_s)
            runs.append(run)
            return run

        yield start
        for run in runs:
            run.process.kill()
            assert run.process.stderr is not None
            run.process.stderr.read()
            run.process.stderr.close()
            run.process.wait()


def test_it_tells_when_the_node_is_ready(start: Callable[..., Run]) -> None:
    run = start()
    line = run.wait("ready")
    assert line["actor"] == "supervisor"
    assert line["address"] == "tcp://fake"
    assert line["pid"] == run.process.pid
    assert line["data_dir"] == "data/node1"
    assert line["version"]
    told = run.wait("fake_siblings")["siblings"]
    assert told == {"supervisor": run.process.pid, **line["processes"]}
    assert set(line["processes"]) == {"writer", "network", "conflicts"}
    for actor, pid in line["processes"].items():
        assert actor_of(psutil.Process(pid)) == actor


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_network_then_writer(start: Callable[..., Run], number: int) -> None:
    run = start()
    run.wait("ready")
    run.stop(number)
    assert run.end() == 0
    assert run.events("stopping", "fake_told_to_stop", "stopped") == [
        ("stopping", "supervisor"),
        ("fake_told_to_stop", "network"),
        ("fake_told_to_stop", "writer"),
        ("fake_told_to_stop", "conflicts"),
        ("stopped", "supervisor"),
    ]


def test_signals_of_the_terminal_do_not_reach_the_children(start: Callable[..., Run]) -> None:
    run = start()
    pids = run.wait("ready")["processes"]
    for pid in pids.values():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
    run.stop()
    assert run.end() == 0
    assert run.events("child_died") == []


def test_a_signal_that_finds_a_child_half_awake_does_not_kill_it(start: Callable[..., Run]) -> None:
    """As a terminal's, which goes to the whole group at once, whoever is just being started."""
    run = start(network="slow")
    pids = run.wait("started")["processes"]
    os.kill(pids["network"], signal.SIGINT)
    os.kill(pids["writer"], signal.SIGTERM)
    run.wait("ready")
    run.stop()
    assert run.end() == 0
    assert run.events("child_died") == []


def test_a_stop_during_the_start_is_clean(start: Callable[..., Run]) -> None:
    run = start(network="slow", writer="slow")
    run.wait("started")
    run.stop()
    assert run.end() == 0
    assert [actor for _, actor in run.events("fake_told_to_stop")] == [
        "network",
        "writer",
        "conflicts",
    ]


def test_an_order_that_is_sent_twice_at_once_counts_once(start: Callable[..., Run]) -> None:
    run = start()
    run.wait("ready")
    run.stop(signal.SIGINT)
    run.stop(signal.SIGTERM)
    assert run.end() == 0


def test_a_second_signal_forces(start: Callable[..., Run]) -> None:
    run = start(network="deaf")
    run.wait("ready")
    run.stop()
    run.wait("fake_told_to_stop")
    time.sleep(0.4)  # a person's second order, not a wrapper's echo of the first
    run.stop()
    assert run.end() == 1
    assert run.events("stop_forced", "stopped") == [("stop_forced", "supervisor")]


def test_a_stop_takes_no_longer_than_its_bound(start: Callable[..., Run]) -> None:
    run = start(network="deaf", patience_s=0.3)
    run.wait("ready")
    run.stop()
    assert run.end() == 1
    (line,) = [line for line in run.lines if line["event"] == "stop_overdue"]
    assert line["waiting_for"] == ["network", "writer", "conflicts"]


@pytest.mark.parametrize("victim", ["writer", "network"])
def test_a_dead_child_takes_the_other_along_and_both_start_anew(
    start: Callable[..., Run], victim: str
) -> None:
    run = start()
    before = run.wait("ready")["processes"]
    os.kill(before[victim], signal.SIGKILL)
    assert run.wait("child_died")["status"] == "SIGKILL"
    after = run.wait("ready")["processes"]
    assert not set(before.values()) & set(after.values())
    assert not any(psutil.pid_exists(pid) for pid in before.values())
    run.stop()
    assert run.end() == 0


def started_as(run: Run, since: int, actors: set[str]) -> set[str]:
    """How each of these actors was started after that line of the log: a fork knows no path of its module."""
    found: dict[str, str] = {}
    while set(found) != actors:
        for line in run.lines[since:]:
            if line["event"] == "fake_up" and line["actor"] in actors:
                found[line["actor"]] = Path(line["started_as"]).name
        if set(found) != actors:
            run.wait("fake_up")
    return set(found.values())


def test_a_group_is_forked_and_who_is_replaced_alone_is_a_fresh_interpreter(
    start: Callable[..., Run],
) -> None:
    run = start()
    processes = run.wait("ready")["processes"]
    group = {"writer", "network", "conflicts"}
    assert started_as(run, 0, group) == {"tests.support.fake_child"}
    since = len(run.lines)
    os.kill(processes["conflicts"], signal.SIGKILL)
    assert run.wait("child_died")["child"] == "conflicts"
    assert started_as(run, since, {"conflicts"}) == {"fake_child.py"}
    since = len(run.lines)
    os.kill(
        processes["network"], signal.SIGKILL
    )  # its context ended: the supervisor has one thread again
    run.wait("ready")
    assert started_as(run, since, group) == {"tests.support.fake_child"}
    run.stop()
    assert run.end() == 0


def test_a_child_inherits_its_pipe_and_the_log_and_nothing_else(start: Callable[..., Run]) -> None:
    """Not the lock of the run directory, nor the pipes of its siblings: they would not end with the supervisor."""
    run = start()
    processes = run.wait("ready")["processes"]
    while len([line for line in run.lines if line["event"] == "fake_up"]) < len(processes):
        run.wait("fake_up")
    held = {pid: descriptors(pid) for pid in (run.process.pid, *processes.values())}
    supervisors = held.pop(run.process.pid)
    for pid, mine in held.items():
        assert mine & supervisors == {os.readlink(f"/proc/{pid}/fd/0")}
        assert all(not mine & held[other] for other in held if other != pid)
    run.stop()
    assert run.end() == 0


def descriptors(pid: int) -> set[str]:
    """What a process has open beside its output: files, pipes and sockets by their own names."""
    found = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            name = os.readlink(f"/proc/{pid}/fd/{number}")
            if number not in "12" and not name.startswith(("anon_inode:", "/dev/")):
                found.add(name)
    return found


def test_too_many_deaths_end_the_node(start: Callable[..., Run]) -> None:
    run = start()
    for _ in range(6):
        os.kill(run.wait("ready")["processes"]["writer"], signal.SIGKILL)
    assert run.end() == 4
    pauses = [line["pause_s"] for line in run.lines if line["event"] == "restarting"]
    assert len(pauses) == 5
    assert pauses == sorted(pauses)
    assert run.lines[-1]["event"] == "keeps_dying"


def test_a_fault_is_told_by_the_child_and_healed_like_a_death(start: Callable[..., Run]) -> None:
    run = start(network="fault")
    line = run.wait("fault", actor="network")
    assert "a fault of ours" in line["exception"]
    assert run.wait("child_died", child="network")["status"] == 1
    run.wait("fake_up", actor="network")
    run.stop()
    run.end()


def test_a_reason_is_told_once_and_ends_the_node_with_its_status(start: Callable[..., Run]) -> None:
    run = start(network="fail")
    assert run.end() == 3
    (line,) = [line for line in run.lines if line["event"] == "cannot_run"]
    assert (line["reason"], line["child"]) == ("the port is taken", "network")
    assert run.events("child_died", "restarting") == []


def test_a_status_without_a_reason_counts_as_a_death(start: Callable[..., Run]) -> None:
    run = start(network="mute")
    assert run.wait("child_died", child="network")["status"] == 3
    run.stop()
    run.end()


def test_a_stop_between_two_starts_is_clean(start: Callable[..., Run]) -> None:
    run = start()
    for _ in range(4):  # the pauses grow
        os.kill(run.wait("ready")["processes"]["writer"], signal.SIGKILL)
        run.wait("restarting")
    run.stop()
    assert run.end() == 0
    assert run.lines[-1]["event"] == "stopped"


@pytest.mark.parametrize("frozen", [False, True])
def test_children_do_not_outlive_a_supervisor_that_is_killed(
    start: Callable[..., Run], frozen: bool
) -> None:
    run = start()
    pids = run.wait("ready")["processes"]
    if frozen:  # not even those that cannot notice anything
        # One that has its sockets' threads has told the kernel before what is to become of it.
        wait_until(
            lambda: all(psutil.Process(pid).num_threads() > 1 for pid in pids.values()), "up"
        )
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)
    run.process.kill()
    assert run.end() == -signal.SIGKILL
    wait_until(lambda: not any(map(runs, pids.values())), "the children to be gone")


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_child_notices_the_end_of_its_pipe() -> None:
    """Where the kernel does not tell it: the parent of a child is another process than the one that holds the pipe."""
    program = "from actors.child import read_document; read_document(0); print('not reached')"
    child = subprocess.run(
        [sys.executable, "-c", program], input=b"\x10\0\0\0cut", cwd=ROOT, capture_output=True, check=False
    )  # fmt: skip
    assert child.returncode == 1
    assert child.stdout == b""
