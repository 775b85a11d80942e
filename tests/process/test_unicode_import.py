"""Real input: the names of all Unicode characters, imported while every process dies in the middle, come out whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

import nun
from tests.support.node import ADMIN, ROOT, Node, wait_until

pytestmark = pytest.mark.process


def unicode_names() -> dict[str, str]:
    """`U+0041` -> `LATIN CAPITAL LETTER A`, for every character that has a name."""
    found = {}
    for point in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(point), None)
        if name is not None:
            found[f"U+{point:04X}"] = name
    return found


def command(node: Node, *arguments: str) -> subprocess.Popen[str]:
    """A run of bin/nun as an administrator, on database "unicode"."""
    environ = {
        **os.environ,
        "NUN_SERVER": node.address,
        "NUN_USER": ADMIN["user"],
        "NUN_PASSWORD": ADMIN["password"],
        "NUN_DATABASE": "unicode",
        "NUN_TOKEN": "t",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "nun.cli.main", *arguments],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    return text


def read_records(path: Path) -> dict[str, str]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    found = {record["key"]: record["value"] for record in records}
    assert len(found) == len(records), "a key was exported twice"
    return found


def test_all_names_survive_the_death_of_every_process(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    names = unicode_names()
    assert len(names) > 130_000
    source, target = tmp_path / "names.jsonl", tmp_path / "export.jsonl"
    with open(source, "w") as file:
        for key, value in names.items():
            file.write(json.dumps({"key": key, "value": value}) + "\n")
    node = start_node({"storage": {"fsync": "always", "snapshot_log_bytes": 2**20}})
    keys = list(names)
    with nun.Client(node.address, **ADMIN, timeout=30.0) as client:
        client.create_database("unicode", token="t")
        database = client.database("unicode", token="t")
        arguments = ("import", str(source), "--batch", "200", "--in-flight", "2")
        importing = command(node, *arguments)
        try:
            for share, victim in ((10, "writer"), (30, "network"), (50, "node"), (70, "import")):
                key = keys[len(keys) * share // 100]
                wait_until(lambda key=key: database.get(key), f"{share}% to be in", timeout=60)
                assert importing.poll() is None, importing.communicate()[0]
                if victim == "import":
                    importing.kill()
                    importing.communicate()
                    importing = command(node, *arguments)
                else:
                    node.kill(victim)
                    node.restart() if victim == "node" else node.wait_ready()
            assert "going on after" in finished(importing)
        finally:
            if importing.poll() is None:
                importing.kill()
                importing.communicate()
    finished(command(node, "export", str(target)))
    assert read_records(target) == names
    node.kill("node")
    node.restart()
    finished(command(node, "export", str(target)))
    assert read_records(target) == names
