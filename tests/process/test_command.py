"""The `nun` command against a real node: every command, each exit status."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import nun
from tests.support.node import ADMIN, ROOT, Node, wait_until

pytestmark = pytest.mark.process


def nun_command(
    node: Node, *arguments: str, on: int | None = None, cwd: Path = ROOT
) -> subprocess.Popen[bytes]:
    """Starts the command as a client of the database "names"; `on`: the terminal to run it on."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(node.directory),
        "TERM": "xterm",
        "NUN_SERVER": node.address,
        "NUN_DATABASE": "names",
        "NUN_TOKEN": "t",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "nun.cli.main", *arguments],
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL if on is None else on,
        stdout=subprocess.PIPE if on is None else on,
        stderr=subprocess.PIPE if on is None else on,
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
    status, out, err = run(*admin, "cluster", "--check")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith(b"all hold the same at 1.1.1:")
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


def test_interrupting_is_quiet(names_node: Node, tmp_path: Path) -> None:
    with nun.Client(names_node.address) as client:
        first = client.database("names", token="t").set("name", "mary").position
    watching = nun_command(names_node, "watch", "--since", f"{first.epoch}:{first.seq - 1}")
    assert watching.stdout is not None
    assert b"\tset\tname\t" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    assert finish(watching) == (130, b"", "")
    source = tmp_path / "many.jsonl"
    with source.open("w") as file:
        file.writelines(f'{{"key": "k{number}", "value": ""}}\n' for number in range(200_000))
    importing = nun_command(names_node, "import", str(source), "--batch", "100", "--in-flight", "1")
    journal = tmp_path / "many.jsonl.nun-progress"
    wait_until(journal.exists, "the import to be under way")
    importing.send_signal(signal.SIGINT)
    status, out, err = finish(importing)
    assert (status, out) == (130, b"")
    assert "call again to go on" in err
    assert err.count("\n") == 1
    status, out, err = finish(nun_command(names_node, "import", str(source), "--json"))
    assert status == 0, err
    assert json.loads(out)["resumed_after"] > 0
    with nun_command(names_node, "keys") as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        assert listing.stdout.readline() == b"k0\n"
        listing.stdout.close()
        assert listing.stderr.read() == b""
    assert listing.returncode == 141


def test_an_import_waits_for_a_node_that_is_away(names_node: Node, tmp_path: Path) -> None:
    source = tmp_path / "few.csv"
    source.write_text("key,value\na,1\nb,2\n")
    names_node.stop()
    arguments = ("import", str(source), "--timeout", "0.5")
    status, _, err = finish(nun_command(names_node, *arguments, "--retry-for", "0"))
    assert status == 3, err
    importing = nun_command(names_node, *arguments)
    assert importing.stderr is not None
    assert b"waiting up to" in importing.stderr.readline()
    names_node.restart()
    status, _, err = finish(importing)
    assert status == 0, err
    assert "the node is back" in err
    assert finish(nun_command(names_node, "get", "b")) == (0, b"2\n", "")


def test_curve_keys_from_keygen(start_node: Callable[..., Node], tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.toml"
    made = subprocess.run(
        [sys.executable, "-m", "nun.cli.main", "keygen", "--write", keys_file], cwd=ROOT, check=True
    )
    assert made.returncode == 0
    node = start_node(tomllib.loads(keys_file.read_text()))
    key = tomllib.loads(keys_file.read_text())["security"]["curve_public_key"]
    admin = ("--user", ADMIN["user"], "--password", ADMIN["password"])
    assert finish(nun_command(node, *admin, "--server-key", key, "create-db", "names", "t"))[0] == 0
    assert finish(nun_command(node, "--server-key", key, "set", "a", "1"))[0] == 0
    assert finish(nun_command(node, "--timeout", "1", "get", "a"))[0] == 3
    assert finish(nun_command(node, "--server-key", "short", "get", "a"))[0] == 2


def on_a_terminal(node: Node, typed: bytes, *arguments: str) -> tuple[int, bytes]:
    """Runs the command with a terminal on all three sides; gives its status and all that it showed."""
    ours, theirs = pty.openpty()
    with open(ours, "r+b", buffering=0) as terminal:
        process = nun_command(node, *arguments, on=theirs)
        os.close(theirs)
        terminal.write(typed)
        shown = b""
        while True:
            try:
                some = terminal.read(65536)
            except OSError:  # how Linux says that the other side was closed
                break
            if not some:
                break
            shown += some
        return process.wait(60), shown


def test_a_terminal_gets_a_bar_and_a_prompt(names_node: Node, tmp_path: Path) -> None:
    source = tmp_path / "few.csv"
    source.write_text("key,value\na,1\nbad\nb,2\n")
    status, shown = on_a_terminal(names_node, b"", "import", str(source), "--skip-bad")
    assert status == 1
    assert "━".encode() in shown
    assert b"line 3: expected at least 2 fields" in shown
    assert b"imported 2 records" in shown
    lines = b"get a\nincrement a 4\nfrobnicate\nexit\n"
    status, shown = on_a_terminal(names_node, lines, "repl")
    assert status == 1
    assert b"names> " in shown
    assert b"\n5\r\n" in shown
    assert b"unknown command 'frobnicate'" in shown


def test_bench_measures_and_leaves_nothing(names_node: Node) -> None:
    arguments = ("bench", "--seconds", "0.1", "--keys", "500", "--batch", "50", "--clients", "2")
    status, out, err = finish(nun_command(names_node, *arguments, "--json"))
    assert status == 0, err
    found = json.loads(out)
    assert list(found) == ["set", "get", "set_many of 50", "get_many of 50"]
    for line in found.values():
        assert line["operations_per_s"] > 0
        assert line["p50_ms"] <= line["p99_ms"] <= line["max_ms"]
    assert finish(nun_command(names_node, "keys", "bench:*")) == (0, b"", "")
