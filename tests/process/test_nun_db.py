"""NunDB's own integration tests, by name, with `bin/nun-db` in the place of its binary; and what is different here.

NunDB's tests sleep for seconds and ask once. These ask until the answer has come, or fail after a while.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

import nun
from tests.support.node import ROOT, wait_until
from tests.support.nun_db import USER, Cluster, NunDb, environment, nun_db, reply_of

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

MAKE = "create-db test test-pwd; use-db test test-pwd;"
USE = "use-db test test-pwd;"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NunDb]:
    """One node, on its own."""
    with NunDb(tmp_path) as node:
        yield node


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """A function that starts several nodes one after the other."""
    made: list[Cluster] = []

    def make(start: bool = True, **arguments: object) -> Cluster:
        made.append(Cluster(tmp_path, **arguments))  # type: ignore[arg-type]
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()


def says(node: NunDb, commands: str, expected: str, timeout: float = 20.0) -> str:
    """Asks until the reply holds what is expected."""
    replies = [""]

    def holds() -> bool:
        replies.append(node.exec(commands))
        return expected in replies[-1]

    try:
        wait_until(holds, expected, timeout)
    except AssertionError as error:
        raise AssertionError(f"{error}; the last reply: {replies[-1]!r}\n{node.tail(20)}") from None
    return replies[-1]


# set-safe


def test_should_safe_sate_a_value(node: NunDb) -> None:
    commands = (
        "create-db test-1 test-pwd; use-db test-1 test-pwd;set-safe name 0 mateus; get-safe name"
    )
    assert "value-version 1 mateus" in node.exec(commands)


def test_should_not_set_if_set_safe_is_invalid(node: NunDb) -> None:
    reply = node.exec(
        "create-db test-2 test-pwd none; use-db test-2 test-pwd;"
        "set-safe name 0 mateus; set-safe name 0 maria;get-safe name"
    )
    assert "value-version 1 mateus" in reply
    assert "Invalid version!" in node.exec("use-db test-2 test-pwd;set-safe name 0 amanda;")
    assert "empty;empty" in node.exec("use-db test-2 test-pwd;set-safe name 1 amanda;")


def test_should_set_if_set_safe_is_valid(node: NunDb) -> None:
    reply = node.exec(f"{MAKE}set-safe name 0 mateus; set-safe name 2 maria;get-safe name")
    assert "value-version 3 maria" in reply


# metrics


def test_should_return_the_metrics_state(node: NunDb) -> None:
    assert (
        "metrics-state pending_ops: 0, op_log_file_size: 0, op_log_count: 0,"
        "replication_time_moving_avg: 0.0, get_query_time_moving_avg: 0.0"
    ) in node.exec("metrics-state")
    node.exec(
        f"{MAKE}set-safe name 1 mateus; set-safe name 2 maria;"
        "set-safe name 3 mateus; set-safe name 4 maria;get-safe name"
    )
    assert "op_log_file_size: 125, op_log_count: 5" in node.exec("metrics-state")


# elections


def test_should_start_the_primary(cluster: Callable[..., Cluster]) -> None:
    nodes = cluster(start=False)
    nodes[0].start()
    reply = nodes[0].exec(f"{MAKE}set-safe name 0 mateus; get-safe name")
    assert "value-version 1 mateus" in reply


def test_older_process_should_be_the_primary(cluster: Callable[..., Cluster]) -> None:
    nodes = cluster()
    assert f"{nodes[0].tcp}(self):Primary" in nodes[0].exec("cluster-state")
    for node in nodes.nodes[1:]:
        reply = says(node, "cluster-state", f"{nodes[0].tcp}(Connected):Primary")
        assert f"{node.tcp}(self):Secoundary" in reply


def test_when_the_primary_dies_the_others_say_so_and_one_is_made_primary(
    cluster: Callable[..., Cluster],
) -> None:
    """should_elect_a_new_primary_if_the_primary_die: nothing is elected here."""
    nodes = cluster()
    first, second, third = nodes
    assert "create-db success" in first.exec(f"{MAKE}set-safe name 0 mateus")
    says(second, f"{USE}get name", "value mateus")
    says(third, f"{USE}get name", "value mateus")
    first.kill("node")
    for node in (second, third):
        told = node.wait_log("no_primary", since=0)
        assert told["last"] == first.tcp
        assert "nun promote" in told["reason"]
        reply = says(node, "cluster-state", f"{first.tcp}(Disconnected):StartingUp")
        assert ":Primary" not in reply
        assert "value mateus" in node.exec(f"{USE}get name"), "reads go on"
    promoted = subprocess.run(
        [ROOT / "bin" / "nun", "promote", second.tcp, "--server", third.address],
        env=environment(NUN_USER=USER, NUN_PWD=USER),
        capture_output=True,
        text=True,
        check=False,
    )
    assert promoted.returncode == 0, promoted.stderr
    says(second, "cluster-state", f"{second.tcp}(self):Primary")
    says(third, "cluster-state", f"{second.tcp}(Connected):Primary")
    says(third, f"{USE}set-safe name 1 maria; get-safe name", "value-version 2 maria")
    first.restart()
    says(first, "cluster-state", f"{second.tcp}(Connected):Primary")
    says(first, f"{USE}get-safe name", "value-version 2 maria")
    assert "empty" in first.exec(f"set-primary {third.tcp}")
    says(third, "cluster-state", f"{third.tcp}(self):Primary")


# replication


def test_should_replicate_user_creation(cluster: Callable[..., Cluster]) -> None:
    nodes = cluster()
    assert "create-db success" in nodes[0].exec("create-db test test-pwd;")
    reply = nodes[0].exec(
        f"{USE}create-user foo bar;set-permissions foo rw *;set-safe name 0 mateus"
    )
    assert reply == "valid auth\n;empty;empty;empty;empty"
    for node in nodes.nodes[1:]:
        says(node, "use-db test foo bar;get name", "value mateus")


def test_should_replicate_as_expected(cluster: Callable[..., Cluster]) -> None:
    nodes = cluster()
    assert "empty" in nodes[0].exec(f"{MAKE}set-safe name 0 mateus;")
    for node in nodes.nodes[1:]:
        says(node, f"{USE}get name", "value mateus")


def test_should_replicate_as_expected_set_safe(cluster: Callable[..., Cluster]) -> None:
    nodes = cluster()
    assert "empty;empty" in nodes[0].exec(f"{MAKE}set-safe name 0 mateus;")
    assert "Invalid version!" in nodes[0].exec(f"{USE}set-safe name 0 maria;")
    for node in nodes.nodes[1:]:
        says(node, f"{USE}get-safe name", "value-version 1 mateus")
    assert "empty;empty" in nodes[2].exec(f"{USE}set-safe name 1 maria;")
    for node in nodes.nodes[:2]:
        reply = says(node, f"{USE}get name;get-safe name", "value-version 2 maria")
        assert "value maria" in reply


def test_should_use_exter_address_if_external_addr_is_provided(
    cluster: Callable[..., Cluster],
) -> None:
    nodes = cluster(external="localhost:{port}")
    assert "empty;empty" in nodes[0].exec(f"{MAKE}set-safe name 0 mateus;")
    external = nodes[2].tcp.replace("127.0.0.1", "localhost")
    says(nodes[0], "cluster-state", f" {external}(Connected):Secoundary,")
    assert f" {external}(self):Secoundary ," in nodes[2].exec("cluster-state")
    says(nodes[0], "metrics-state", "pending_ops: 0")


# conflicts


def chained(nodes: Cluster) -> list[str]:
    """Three stale writes on a replica; the records that their refusals name."""
    reply = nodes[0].exec(
        "create-db test test-pwd arbiter; use-db test test-pwd;set-safe name 1 mateus; get-safe name;"
    )
    assert "value-version 2 mateus" in reply
    says(nodes[1], f"{USE}get name", "value mateus")
    elements = (
        nodes[1]
        .exec(
            "use test test-pwd;arbiter;set-safe name 0 change-1; set-safe name 0 change-2;"
            "set-safe name 0 change-3;ls"
        )
        .split(";")
    )
    return [element.split("unresolved")[-1].strip() for element in elements[3:6]]


def test_should_chain_conflicts(cluster: Callable[..., Cluster]) -> None:
    nodes = cluster()
    first, second, third = chained(nodes)
    says(nodes[1], f"{USE}get {first}", "test 2 name mateus change-1")
    says(nodes[1], f"{USE}get {second}", first)
    says(nodes[1], f"{USE}get {third}", second)


def test_should_replicate_conflicts_keys_to_all_replicas(cluster: Callable[..., Cluster]) -> None:
    nodes = cluster()
    first, *_ = chained(nodes)
    for node in nodes:
        says(node, f"{USE}get {first}", "test 2 name mateus change-1")


# WebSocket


async def frames(
    socket: aiohttp.ClientWebSocketResponse, until: Callable[[str], bool]
) -> list[str]:
    """The frames up to the one that is looked for."""
    found: list[str] = []
    async with asyncio.timeout(20):
        while not found or not until(found[-1]):
            found.append(await socket.receive_str())
    return found


def test_should_connect_to_nun_db_and_get_a_value(node: NunDb) -> None:
    node.exec("create-db sample sample-pwd; use-db sample sample-pwd; create-user user user-pwd;"
              "set-permissions user rw *")  # fmt: skip

    async def story() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://{node.websocket}") as socket,
        ):
            await socket.send_str("use-db sample user user-pwd")
            assert await frames(socket, lambda frame: frame == "ok \n") == ["ok \n"]
            await socket.send_str("set key1 V;get key1")
            found = await frames(socket, lambda frame: frame.startswith("value"))
            assert found == ["ok \n", "value V\n"]
            await socket.send_str("get key1")
            await frames(socket, lambda frame: frame == "value V\n")

    asyncio.run(story())


def test_should_watch_a_key(node: NunDb) -> None:
    node.exec("create-db sample sample-pwd")

    async def story() -> None:
        url = f"ws://{node.websocket}"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url) as watcher,
            session.ws_connect(url) as writer,
        ):
            await watcher.send_str("use-db sample sample-pwd;watch key1")
            await frames(watcher, lambda frame: frame == "ok \n")
            await frames(watcher, lambda frame: frame == "ok \n")
            await writer.send_str("use-db sample sample-pwd;set key1 V")
            found = await frames(watcher, lambda frame: frame.startswith("changed-version"))
            assert found[-1].startswith("changed-version key1 ")
            assert found[-1].endswith(" V\n")

    asyncio.run(story())


# Of this binary's own


def test_nodes_share_a_directory_and_go_on_where_they_were(
    cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    nodes = cluster(shared=True)
    nodes[0].exec(f"{MAKE}set-safe name 0 mateus;")
    for node in nodes:
        says(node, f"{USE}get name", "value mateus")
    dbs = tmp_path / "dbs"
    assert (dbs / "NUN-DB").read_text() == nodes[0].tcp
    assert {path.name for path in (dbs / "nodes").iterdir()} == {nodes[1].tcp, nodes[2].tcp}
    for node in reversed(nodes.nodes):
        assert node.stop(signal.SIGINT) == 0
    for node in nodes:  # all at once, none waits for another
        node.launch()
    for node in nodes:
        node.wait_ready()
        says(node, f"{USE}get name", "value mateus")
    says(nodes[2], "cluster-state", f"{nodes[0].tcp}(Connected):Primary")


def test_three_that_start_at_the_same_time_are_one_cluster(
    cluster: Callable[..., Cluster],
) -> None:
    nodes = cluster(start=False)
    for node in nodes:
        node.launch()
    chosen = {node.wait_log("first_primary")["primary"] for node in nodes}
    assert len(chosen) == 1
    for node in nodes:
        node.wait_ready()
    primary = next(node for node in nodes if node.tcp in chosen)
    says(nodes[0], f"{MAKE}set name mateus", "empty;empty")
    for node in nodes:
        says(node, f"{USE}get name", "value mateus")
        assert node.exec("cluster-state").count(":Primary") == 1
    says(primary, "cluster-state", f"{primary.tcp}(self):Primary")


def test_clients_that_come_early_wait(tmp_path: Path) -> None:
    node = NunDb(tmp_path)
    node.launch()
    try:
        wait_until(lambda: "starting" in node.tail(), "the node to listen")
        assert nun_db("-uu", "-pp", "-h", node.url, "exec", "get a").returncode == 0
        node.kill("gateway")
        assert "valid auth" in node.exec("cluster-state"), "nor is anybody refused meanwhile"
        assert node.stop() == 0
    finally:
        node.close()


def test_its_own_clients_reach_it_above(node: NunDb) -> None:
    node.exec(f"{MAKE}set name mateus")
    with nun.Client(node.address, user=USER, password=USER) as client:
        assert client.database("test", "test-pwd").get("name").value == "mateus"


def test_one_with_another_password_is_not_let_in(
    cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    nodes = cluster(start=False)
    nodes[0].start()
    done = nun_db(
        *("-u", USER, "-p", "wrong", "start", "-t", nodes[1].tcp, "-h", nodes[1].http),
        *("-w", nodes[1].websocket, "-r", f"{nodes[0].tcp},{nodes[1].tcp}"),
        NUN_DBS_DIR=str(tmp_path / "other"),
    )
    assert f"{nodes[0].tcp} runs and does not know the administrator 'mateus'" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_one_that_waits_for_the_others_stops_in_order(
    cluster: Callable[..., Cluster], how: signal.Signals
) -> None:
    nodes = cluster(start=False)
    nodes[0].start()
    nodes[0].pause("gateway")
    nodes[1].launch()
    nodes[1].wait_log("waits_for_first_primary", waits_for=nodes[0].tcp)
    assert nodes[1].stop(how) == 0
    nodes[0].resume("gateway")


def test_what_start_refuses(tmp_path: Path) -> None:
    done = nun_db("start", NUN_DBS_DIR=str(tmp_path / "dbs"))
    assert done.stdout.splitlines()[-1] == (
        "NUN_USER and NUN_PWD must be provided via command line "
        "(nun-db -u $USER -p $PWD ...) or env var."
    )
    assert done.returncode == 1
    done = nun_db("-uu", "-pp", "start", NUN_STORAGE_STRATEGY="s3")
    assert "NUN_STORAGE_STRATEGY: found 's3', expected disk" in done.stderr
    assert done.returncode == 2
    assert not (tmp_path / "dbs").exists()


def test_a_port_in_use_and_variables_without_effect_are_told(node: NunDb, tmp_path: Path) -> None:
    done = nun_db(
        *("-uu", "-pp", "start", "-t", node.tcp, "-h", "127.0.0.1:1024", "-w", "127.0.0.1:1025"),
        NUN_DBS_DIR=str(tmp_path / "other"),
        NUN_ELECTION_TIMEOUT="5",
    )
    assert f"NUN_TCP_ADDR: {node.tcp}: Address already in use" in done.stderr
    assert '"no_effect"' in done.stderr
    assert "NUN_ELECTION_TIMEOUT" in done.stderr
    assert done.returncode == 3


def test_nun_exec(node: NunDb) -> None:
    done = subprocess.run(
        [ROOT / "bin" / "nun", "exec", f"{MAKE}set a 1; get a", "--host", node.url],
        env=environment(NUN_USER=USER, NUN_PWD=USER),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["create-db success", "empty", "empty", "value 1"]
    assert done.returncode == 0


def test_create_db(node: NunDb) -> None:
    done = nun_db(
        *("-u", USER, "-p", USER, "--host", node.url), *("create-db", "-d", "shop", "-t", "t")
    )
    assert reply_of(done.stdout) == "valid auth\n;create-db success\n"
    assert "empty" in node.exec("use-db shop t")
    assert os.listdir(node.directory / "dbs")
