"""The `nun` command against a real node: every command, each exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import nun
from tests.support.node import ADMIN, ROOT, Node

pytestmark = pytest.mark.process


def nun_command(node: Node, *arguments: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "NUN_SERVER": node.address, "NUN_DATABASE": "names", "NUN_TOKEN": "t"}
    return subprocess.Popen(
        [sys.executable, "-m", "nun.cli.main", *arguments],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err.decode()


@pytest.fixture
def names_node(start_node: Callable[..., Node]) -> Node:
    node = start_node()
    with nun.Client(node.address, **ADMIN) as client:
        client.create_database("names", token="t")
    return node


def test_commands_against_a_node(names_node: Node) -> None:
    def run(*arguments: str) -> tuple[int, bytes, str]:
        return finish(nun_command(names_node, *arguments))

    admin = ("--user", ADMIN["user"], "--password", ADMIN["password"])
    assert run("set", "name", "mary")[:2] == (0, b"version 1\n")
    assert run("get", "name") == (0, b"mary\n", "")
    assert run("set", "name", "ann", "--if-absent")[0] == 1
    assert run("get", "nobody") == (1, b"", "nun: no key 'nobody'\n")
    assert run("increment", "visits", "5") == (0, b"5\n", "")
    assert run("increment", "name")[0] == 1
    assert run("keys", "n*") == (0, b"name\n", "")
    assert run("-t", "wrong", "get", "name")[0] == 1
    assert run("status")[0] == 1
    status, out, err = run(*admin, "status", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["version"] == nun.__version__
    assert run(*admin, "status")[0] == 0
    assert run(*admin, "databases")[0] == 0
    assert run(*admin, "snapshot")[0] == 0
    assert run(*admin, "create-user", "mary", "m")[0] == 0
    assert run(*admin, "set-permissions", "mary", "r *")[0] == 0
    assert run("--user", "mary", "-t", "m", "get", "name") == (0, b"mary\n", "")
    assert run("--user", "mary", "-t", "m", "set", "name", "x")[0] == 1
    assert run("remove", "name")[0] == 0
    assert run(*admin, "drop-db", "names", "--yes")[0] == 0
    assert run("get", "name")[0] == 1
    names_node.stop()
    status, _, err = run("--timeout", "0.5", "get", "name")
    assert status == 3
    assert "Traceback" not in err


def test_watch_prints_what_others_write(names_node: Node) -> None:
    with nun.Client(names_node.address) as client:
        database = client.database("names", token="t")
        before = database.set("user:0", "before").position
        database.set("other", "x")
        database.set("user:1", "mary")
        watching = nun_command(
            names_node, "watch", "user:*", "--since", str(before), "--count", "2", "--json"
        )
        try:
            database.remove("user:1")
            status, out, err = finish(watching)
        finally:
            watching.kill()
            watching.wait()
    assert (status, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert [(event["kind"], event["key"], event["value"]) for event in events] == [
        ("set", "user:1", "mary"),
        ("removed", "user:1", None),
    ]
