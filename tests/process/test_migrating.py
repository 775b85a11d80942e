"""From NunDB and back: a node on a copy of its directory, an import into what runs, and an export that it can read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nun
from tests.process.test_gateway import Served
from tests.support import nundb_files as files
from tests.support.cluster import Cluster
from tests.support.node import ADMIN, Node, wait_until

pytestmark = pytest.mark.process

CLEAR = (b"shop-token", b"ann-token")


def clear_in(directory: Path) -> list[str]:
    """The files below a directory in which a token of the sample stands in the clear, but for NunDB's `$admin`."""
    found = []
    for path in sorted(directory.rglob("*")):
        try:
            data = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue  # a segment of the log was just given its number
        if any(token in data for token in CLEAR):
            found.append(path.name)
    return found


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A node with a gateway, started on a copy of a NunDB directory."""
    node = Served(tmp_path_factory.mktemp("moved"))
    files.write(node.data_dir, files.shop())
    with node:
        node.wait_served()
        yield node


def test_a_node_starts_on_a_copy_with_all_that_was_in_it(moved: Served) -> None:
    [told] = [line for line in moved.lines if line.get("event") == "taken_in_from_nundb"]
    assert (told["databases"], told["tokens_hashed"], told["conflicts"]) == (3, 4, 3)
    assert (told["not_understood"], told["records"]) == (1, ["$conflicts_name_17"])
    with nun.Client(moved.address, **ADMIN) as client:
        strategies = {info.name: info.options["strategy"] for info in client.databases()}
        assert strategies == {"latest": "newer", "plain": "none", "shop": "arbiter"}
        shop = client.database("shop", token="shop-token")
        assert [(one.value, one.version) for one in shop.get_many(["name", "city", "odd"])] == [
            ("mary", 3),
            ("são joão\n", 0),
            ("kept", 1),
        ]
        assert (shop.get("gone"), shop.get("parked").version) == (None, 1)
        assert shop.get("$conflicts_name_17").value.startswith("resolve 17 ")
        assert shop.get("$conflicts_said_1763000000000000001") is None
        assert client.database("plain", token="p").get("name").value == "jose"
    with nun.Client(moved.address) as client:
        ann = client.database("shop", user="ann", token="ann-token")
        ann.set("user-1", "x")
        assert ann.get("k").value == "v1"
        with pytest.raises(nun.PermissionDenied):
            ann.get("name")


def test_open_conflicts_are_resolved_through_the_gateway_and_by_arbiters_of_ours(
    moved: Served,
) -> None:
    with nun.Client(moved.address, **ADMIN) as client:
        shop = client.database("shop", token="shop-token")
        queue = [one for one in shop.conflicts() if one.key == "k"]
        assert [(one.current.value, one.proposed.value) for one in queue] == [
            ("v1", "v2"),
            ("v1", "v3"),
        ]
        assert (queue[0].at, queue[0].base_known) == (1764000000000, False)
        with pytest.raises(nun.ConflictPending):
            shop.set("k", "v4")
        with moved.line() as line:
            line.say("use-db shop shop-token")
            line.socket.sendall(b"arbiter\n")
            told = {}
            while (text := line.reader.readline().decode()) != "ok \n":
                words = text.rstrip("\n").split(" ")
                told[words[4]] = words
            assert set(told) == {"k", "said"}
            _, op_id, database, version, key, old, new = told["k"]
            assert (database, version, old, new) == ("shop", "2", "v1", "v2")
            said = line.say(f"resolve {op_id} shop {key} {version} both", 2)
            following = next(text for text in said if text != "ok \n").split(" ")
            assert following[4:] == ["k", "both", "v3\n"]
        assert shop.get("k").version == -2
        with shop.arbiter(joined, background=True):
            wait_until(lambda: not list(shop.conflicts()), "all to be resolved")
        assert (shop.get("k").value, shop.get("k").version) == ("both+v3+v4", 3)
        assert shop.get("said").value == "good morning+good night"


def joined(conflict: nun.Conflict) -> str:
    return f"{conflict.current.value}+{conflict.proposed.value}"


def test_tokens_are_hashed_from_the_first_snapshot_on_and_no_crash_loses_anything(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    files.write(node.data_dir, files.shop())
    with node:
        with nun.Client(node.address, **ADMIN) as client:
            shop = client.database("shop", token="shop-token")
            before = [(one.key, one.op_id, one.proposed.value) for one in shop.conflicts()]
            shop.set("name", "jose")
        node.kill("network")
        node.wait_ready()
        assert clear_in(node.data_dir) == ["shop-nun.data.values"]  # NunDB's, until ours is whole
        with nun.Client(node.address, **ADMIN) as client:
            shop = client.database("shop", token="shop-token")
            after = [(one.key, one.op_id, one.proposed.value) for one in shop.conflicts()]
            assert after == before
            assert (shop.get("name").version, shop.get("k").in_conflict) == (4, True)
            client.snapshot()
            assert clear_in(node.data_dir) == []
            [stored] = shop.get_many(["$$token"])
            assert stored.value.startswith("scrypt$")
        node.stop()
        node.start()
        with nun.Client(node.address) as client:
            assert client.database("shop", token="shop-token").get("name").value == "jose"
            assert client.database("shop", user="ann", token="ann-token").get("k").value == "v1"
            with pytest.raises(nun.AuthError):
                client.database("shop", token=stored.value).get("name")


def test_a_cluster_begins_on_a_copy_and_its_other_nodes_get_all_of_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 2)
    files.write(cluster.nodes[0].data_dir, files.shop())
    with cluster:
        for node in cluster.nodes:
            with nun.Client(node.address, **ADMIN) as client:
                shop = client.database("shop", token="shop-token")
                assert shop.get("name").value == "mary"
                assert len(list(shop.conflicts())) == 3
        with cluster.client(0) as client:
            at = str(client.check())
            members = wait_until(lambda: checked(client.cluster(), at), "digests of all nodes")
            assert len({repr(member["digests"]) for member in members}) == 1
        assert [clear_in(node.data_dir) for node in cluster.nodes] == [[], []]


def checked(members: list[dict[str, Any]], at: str) -> list[dict[str, Any]]:
    """The members, once all of them have made digests at this position."""
    done = all(str(member.get("digests_at")) == at for member in members)
    return members if done else []


def test_files_of_nundb_do_not_join_a_cluster(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 2)
    files.write(cluster.nodes[1].data_dir, files.shop())
    node: Node = cluster.nodes[1]
    node.launch()
    try:
        assert node.wait_exit() == 3
        assert "import them into a running cluster" in node.tail()
    finally:
        node.close()
