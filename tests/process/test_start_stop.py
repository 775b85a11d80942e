"""A real node: how it starts, how it stops, and what it says when it cannot do either."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nun
from nun.version import VERSION
from tests.support.node import ADMIN, ROOT, Node

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


def refused(node: Node, status: int) -> list[dict[str, Any]]:
    """Starts a node that must not come up; its log, which holds no traceback."""
    try:
        node.launch()
        assert node.wait_exit() == status, node.tail()
    finally:
        node.close()
    assert "Traceback" not in node.tail()
    assert all("raw" not in line for line in node.lines), node.tail()
    return node.lines


def reason(lines: list[dict[str, Any]]) -> str:
    (line,) = [line for line in lines if line["event"] == "cannot_run"]
    return str(line["reason"])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_and_stops_cleanly(
    start_node: Callable[..., Node], how: signal.Signals
) -> None:
    node = start_node()
    (ready,) = [line for line in node.lines if line["event"] == "ready"]
    assert node.process is not None
    assert ready["address"] == node.address
    assert ready["pid"] == node.process.pid
    assert ready["data_dir"] == str(node.data_dir)
    assert (ready["node"], ready["version"]) == ("node1", VERSION)
    with nun.Client(node.address, **ADMIN) as client:
        client.create_database("d", token="t")
        client.database("d", token="t").set("k", "v")
    assert node.stop(how) == 0
    (starting,) = [line for line in node.lines if line["event"] == "starting"]
    assert not Path(starting["run_dir"]).exists()
    for line in node.lines:
        assert list(line)[:5] == ["time", "level", "event", "node", "actor"]
        assert line["level"] in ("info", "warning"), line
    assert [line["event"] for line in node.lines if line["actor"] == "supervisor"] == [
        "starting",
        "ready",
        "stopping",
        "stopped",
    ]


def test_a_clean_stop_leaves_all_in_the_files(start_node: Callable[..., Node]) -> None:
    node = start_node()
    with nun.Client(node.address, **ADMIN) as client:
        client.create_database("d", token="t")
        client.database("d", token="t").set_many({f"k{i}": f"v{i}" for i in range(500)})
    assert node.stop() == 0
    snapshots = [line for line in node.lines if line["event"] == "snapshot"]
    assert sum(line["records"] for line in snapshots) >= 500
    node.restart()
    with nun.Client(node.address, **ADMIN) as client:
        entries = client.database("d", token="t").get_many([f"k{i}" for i in range(500)])
        assert [entry.value for entry in entries] == [f"v{i}" for i in range(500)]


def test_the_data_are_private(start_node: Callable[..., Node]) -> None:
    node = start_node()
    for path in (node.data_dir, *node.data_dir.rglob("*")):
        private = 0o700 if path.is_dir() else 0o600
        if not path.is_socket():  # which a private folder guards
            assert path.stat().st_mode & 0o777 == private, path


def test_a_long_path_of_the_data_is_no_problem(tmp_path: Path) -> None:
    with Node(tmp_path / "node", data_dir=tmp_path / ("d" * 120)) as node:
        ready = node.lines[-1]
        assert ready["event"] == "ready"
        (line,) = [line for line in node.lines if line["event"] == "starting"]
        run_dir = Path(line["run_dir"])
        assert node.data_dir not in run_dir.parents
        assert run_dir.stat().st_mode & 0o777 == 0o700
        assert node.stop() == 0
    assert not run_dir.exists()


@pytest.mark.parametrize("victim", ["writer", "network"])
def test_a_child_that_is_killed_is_healed(start_node: Callable[..., Node], victim: str) -> None:
    node = start_node()
    with nun.Client(node.address, **ADMIN) as client:
        client.create_database("d", token="t")
        database = client.database("d", token="t")
        database.set("k", "before")
        node.kill(victim)
        died = node.wait_log("child_died", since=0)
        assert (died["child"], died["status"]) == (victim, "SIGKILL")
        node.wait_ready()
        assert database.get("k").value == "before"
        database.set("k", "after")
    assert node.stop() == 0


def test_a_stop_while_it_starts_is_clean(tmp_path: Path) -> None:
    node = Node(tmp_path / "node")
    node.launch()
    try:
        node.wait_log("starting")
        assert node.stop() == 0, node.tail()
        node.start()
        assert node.stop() == 0, node.tail()
    finally:
        node.close()


# What it refuses


def test_a_wrong_configuration_is_told_in_full(tmp_path: Path) -> None:
    settings = {
        "node": {"name": ""},
        "network": {"listen": "127.0.0.1:1", "spin": 3},
        "storage": {"fsync": "perhaps", "segment_bytes": "7"},
        "nowhere": {"key": 1},
    }
    lines = refused(Node(tmp_path / "node", settings), status=2)
    assert {line["event"] for line in lines} == {"config_problem"}
    told = [line["problem"] for line in lines]
    for start in (
        "nowhere: unknown table",
        "network.spin: unknown key; did you mean 'spin_us'?",
        "node.name: found '', expected a text of 1 to 200 characters",
        "storage.fsync: found 'perhaps', expected 'always', 'interval' or 'never'",
        "storage.segment_bytes: found 7, expected a whole number",
        "network.listen: found '127.0.0.1:1', expected tcp://HOST:PORT",
    ):
        assert [problem for problem in told if problem.startswith(start)], (start, told)
    assert len(told) == 6
    assert not (tmp_path / "node" / "data").exists()


def test_a_port_in_use(tmp_path: Path) -> None:
    node = Node(tmp_path / "node")
    with socket.socket() as other:
        other.bind(("127.0.0.1", node.port))
        other.listen()
        told = reason(refused(node, status=3))
    assert node.address in told
    assert "in use" in told


def test_a_directory_in_use_and_the_node_that_uses_it_lives_on(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    first = start_node()
    second = Node(tmp_path / "second", data_dir=first.data_dir)
    told = reason(refused(second, status=3))
    assert str(first.data_dir) in told
    assert str(first.pids()["writer"]) in told
    with nun.Client(first.address, **ADMIN) as client:
        client.create_database("d", token="t")
        assert client.database("d", token="t").set("k", "v").version == 1
    assert first.stop() == 0


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        told = reason(refused(Node(tmp_path / "node", data_dir=data_dir), status=3))
        assert str(data_dir) in told
        assert "expected a directory that this user may write" in told


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    if os.geteuid() == 0:  # may write anywhere but where nobody can
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(data_dir)]
        found = subprocess.run(mount, capture_output=True, text=True, check=False)
        if found.returncode:
            pytest.skip(f"nothing can be mounted here: {found.stderr.strip()}")
    else:
        data_dir.chmod(0o500)
    try:
        told = reason(refused(Node(tmp_path / "node", data_dir=data_dir), status=3))
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", str(data_dir)], check=True)
    assert str(data_dir) in told


def test_damage_is_refused_with_the_name_of_the_file(start_node: Callable[..., Node]) -> None:
    node = start_node()
    assert node.stop() == 0
    identity = node.data_dir / "NODE"
    identity.write_bytes(identity.read_bytes()[:-1] + b"\xff")
    node.lines.clear()
    node.raw.clear()
    assert reason(refused(node, status=3)).startswith("NODE: damaged")


def test_an_interpreter_that_strips_assertions(tmp_path: Path) -> None:
    node = Node(tmp_path / "node", environ={"PYTHONOPTIMIZE": "1"})
    assert "python -O" in reason(refused(node, status=2))


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config", "x", "--sett", "a.b=1"]])
def test_a_wrong_command_line(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "actors.supervisor", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "Error: " in run.stderr
    assert "Traceback" not in run.stderr


def test_settings_of_the_command_line_win(tmp_path: Path) -> None:
    node = Node(tmp_path / "node", {"node": {"name": "file"}})
    try:
        node.launch("--set", "node.name=line", "--set", "log.level=debug")
        assert node.wait_ready()["node"] == "line"
        assert any(line["level"] == "debug" for line in node.lines)
        assert node.stop() == 0
    finally:
        node.close()
