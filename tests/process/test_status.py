"""`status` of a living node: each figure is there, and moves when what it counts happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import nun
from nun.position import Position
from nun.version import VERSION
from tests.support.node import ADMIN, ROOT, Node, wait_until

pytestmark = pytest.mark.process

SYSTEM_KEYS = 1  # of a new database: its token


def figures(client: nun.Client) -> dict[str, Any]:
    """What status tells, as plain text and numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, dict):
            return {plain(key): plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    return dict(plain(client.status()))


def test_every_figure_moves_with_what_it_counts(start_node: Callable[..., Node]) -> None:
    node = start_node()
    with nun.Client(node.address, **ADMIN) as client:
        first = figures(client)
        assert (first["version"], first["node"], first["role"]) == (VERSION, "node1", "primary")
        client.create_database("shop", token="t")
        database = client.database("shop", token="t")
        database.set_many({f"k{i}": "value" for i in range(1000)})
        for _ in range(20):
            database.set("k0", "again")
            database.get("k0")
        database.remove("k1")
        with pytest.raises(nun.VersionConflict):
            database.set("k0", "x", if_version=1)
        second = figures(client)

        assert second["uptime_s"] >= first["uptime_s"] >= 0
        assert Position.parse(second["position"]) > Position.parse(first["position"])
        shop = second["databases"]["shop"]
        assert shop["keys"] == 999 + SYSTEM_KEYS
        assert (shop["tombstones"], shop["strategy"]) == (1, "none")
        assert shop["bytes"] > 1000 * len("k000value")
        assert second["requests"]["set"] == 21
        assert second["requests"]["get"] == 20
        assert second["errors"]["VersionConflict"] == 1
        for kind in ("read", "write"):
            latency = second["latency"][kind]
            assert 0 < latency["p50_us"] <= latency["p99_us"] <= latency["max_us"]
        assert second["sessions"] >= 1

        processes = second["processes"]
        running = node.pids()
        assert {name: each["pid"] for name, each in processes.items()} == running
        for each in processes.values():
            assert each["rss_bytes"] > 2**20
            assert (
                each["cpu_s"] >= 0
            )  # in ticks of the system: a young process that waits has none yet

        def they_have_worked() -> bool:
            database.set_many({f"k{i}": "value" for i in range(1000)})
            now = figures(client)["processes"]
            return all(now[name]["cpu_s"] > 0 for name in ("supervisor", "network", "writer"))

        wait_until(they_have_worked, "work to show")


def test_it_tells_of_oplog_and_snapshots(start_node: Callable[..., Node]) -> None:
    node = start_node()
    with nun.Client(node.address, **ADMIN) as client:
        client.create_database("shop", token="t")
        before = figures(client)["storage"]
        client.database("shop", token="t").set_many({f"k{i}": "v" * 100 for i in range(1000)})
        client.snapshot(["shop"])
        after = figures(client)["storage"]
        assert json.dumps(after) != json.dumps(before)
        text = json.dumps(after)
        for word in ("oplog", "snapshot"):
            assert word in text, text


def test_it_answers_while_the_storage_writer_stands_still(
    start_node: Callable[..., Node],
) -> None:
    node = start_node()
    with nun.Client(node.address, **ADMIN, timeout=15.0) as client:
        node.pause("writer")
        assert figures(client)["node"] == "node1"
        node.resume("writer")
        wait_until(lambda: figures(client)["storage"], "the writer to answer again")


def test_the_command_shows_the_same(start_node: Callable[..., Node]) -> None:
    node = start_node()
    environ = {
        **os.environ,
        "NUN_SERVER": node.address,
        "NUN_USER": ADMIN["user"],
        "NUN_PASSWORD": ADMIN["password"],
    }
    command = [sys.executable, "-m", "nun.cli.main", "status"]
    found = subprocess.run(
        [*command, "--json"], cwd=ROOT, env=environ, capture_output=True, check=True, timeout=60
    )
    assert json.loads(found.stdout)["version"] == VERSION
    shown = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, check=True, timeout=60, text=True
    )
    assert VERSION in shown.stdout
    assert "primary" in shown.stdout
