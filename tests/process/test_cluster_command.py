"""`bin/nun-cluster`, and the first sample configuration on its own, as an operator starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import nun
from tests.support.node import ADMIN, ROOT, Node, wait_until
from tests.support.ports import free_port

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class Command:
    """The command while it runs; its log is read by a thread."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [ROOT / "bin" / "nun-cluster", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NUN_VENV": sys.prefix},
        )
        self.log: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))

    def told(self) -> str:
        """The next line of standard output; "" at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, how: signal.Signals | None = signal.SIGTERM) -> int:
        if how is not None:
            self.process.send_signal(how)
        status = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return status


@contextmanager
def running(*arguments: str) -> Iterator[Command]:
    command = Command(*arguments)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.end()


def free_base(nodes: int) -> int:
    """A base port: those of so many nodes are free."""
    return free_port(*(100 * i + j for i in range(1, nodes + 1) for j in (1, 2, 3)))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_a_cluster_until_it_is_told_to_stop(tmp_path: Path, how: signal.Signals) -> None:
    base = free_base(3)
    where = ("--data-dir", str(tmp_path / "data"), "--base-port", str(base))
    with running(*where, "--set", "replication.ack=2") as command:
        nodes = json.loads(command.told())["nodes"]
        assert [node["name"] for node in nodes] == ["node1", "node2", "node3"]
        assert [node["address"] for node in nodes] == [
            f"tcp://127.0.0.1:{base + 100 * number + 1}" for number in (1, 2, 3)
        ]
        with nun.Client(nodes[2]["address"], **ADMIN) as client:
            client.create_database("d", token="t")
            client.database("d", token="t").set("a", "1")
            assert [one["role"] for one in client.cluster()] == ["primary", "replica", "replica"]
        for node in nodes:
            with nun.Client(node["address"], **ADMIN) as client:
                assert client.database("d", token="t").get("a").value == "1", "two have acked"
        compared = subprocess.run(
            [ROOT / "bin" / "nun", "cluster", "--check"],
            env={
                **os.environ,
                "NUN_SERVER": nodes[1]["address"],
                "NUN_USER": ADMIN["user"],
                "NUN_PWD": ADMIN["password"],
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert compared.stdout.splitlines()[-1].startswith("all hold the same at 1.1.1:")
        assert compared.returncode == 0
        assert command.end(how) == 0
    assert {line["node"] for line in command.log if line["event"] == "stopped"} == {
        "node1",
        "node2",
        "node3",
    }
    with running(*where) as command:
        nodes = json.loads(command.told())["nodes"]
        with nun.Client(nodes[1]["address"], **ADMIN) as client:
            assert client.database("d", token="t").get("a").value == "1"
        os.kill(nodes[1]["pid"], signal.SIGKILL)
        wait_until(
            lambda: [line["name"] for line in command.log if line["event"] == "node_ended"],
            "the end of a node to be told",
        )
        with nun.Client(nodes[0]["address"], **ADMIN) as client:
            client.database("d", token="t").set("a", "2", ack="majority")
        assert command.end() == 1, "one did not stop in order"


def test_it_does_not_go_on_without_the_nodes_that_were_asked_for(tmp_path: Path) -> None:
    base = free_base(2)
    where = ("--nodes", "2", "--data-dir", str(tmp_path), "--base-port", str(base))
    with running(*where, "--set", "storage.fsync=perhaps") as command:
        assert command.told() == ""
        assert command.end(None) == 2
    problems = [line["problem"] for line in command.log if line["event"] == "config_problem"]
    assert problems
    assert all("found 'perhaps'" in problem for problem in problems)


def test_the_first_of_the_samples_serves_alone(start_node: Callable[..., Node]) -> None:
    """It asks for peers that are not there, and does not wait for them long."""
    peers = {f"node{number}": f"tcp://127.0.0.1:{free_port()}" for number in (2, 3)}
    replication = {
        "listen": f"tcp://127.0.0.1:{free_port()}",
        "publish": f"tcp://127.0.0.1:{free_port()}",
        "primary": "node1",
        "peers": peers,
    }
    began = time.monotonic()
    node = start_node({"replication": replication})
    first_s = time.monotonic() - began
    with nun.Client(node.address, **ADMIN) as client:
        client.create_database("d", token="t")
        client.database("d", token="t").set("a", "1")
    assert node.stop() == 0
    began = time.monotonic()
    node.restart()
    again_s = time.monotonic() - began
    with nun.Client(node.address, **ADMIN) as client:
        assert client.database("d", token="t").get("a").value == "1"
    print(f"serves alone after {first_s:.1f} s, again after {again_s:.1f} s")
    assert max(first_s, again_s) < 10.0, "one second of patience, and the start of processes"
