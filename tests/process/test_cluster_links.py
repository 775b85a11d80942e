"""Links between real nodes that are cut, slow or narrow; two who want to be primary; keys; a full disk."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import nun
from nun import peer_messages as pm
from nun.codec import pack
from tests.process.test_disk_full import fill, small_disk, write_until_refused
from tests.support.cluster import DATABASE, TOKEN, Cluster
from tests.support.node import wait_until

pytestmark = pytest.mark.process
__all__ = ["small_disk"]  # a fixture

PATIENCE_S = 40.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, proxied=True) as made:
        yield made


def database(client: nun.Client) -> Any:
    return client.database(DATABASE, token=TOKEN)


def link_of(client: nun.Client, name: str) -> str:
    return str(next(one["link"] for one in client.cluster() if one["name"] == name))


def test_a_primary_that_is_cut_off_alive_gives_way_and_gives_up_what_only_it_had(
    cluster: Cluster,
) -> None:
    with cluster.client(0, client_id="ann") as old, cluster.client(1) as new:
        mine = database(old)
        mine.set_many({"a": "old", "b": "old"}, ack="all")
        mine.increment("n", 10, ack="all")
        cluster.isolate(1)
        lost = mine.set("a", "by the old primary")
        mine.set("b", "by the old primary")
        mine.increment("n", 5)
        with pytest.raises(nun.UnknownOutcome):
            mine.increment("n", 100, ack="majority", timeout=2.0)
        assert new.promote("node2", timeout=PATIENCE_S)["node"] == "node2"
        theirs = database(new)
        assert theirs.get("b").value == "old"
        theirs.set("a", "by the new primary", ack="majority")
        theirs.increment("n", 1, ack="majority")
        cluster.heal()
        wait_until(
            lambda: theirs.get("b").value == "by the old primary", "what it had to come", PATIENCE_S
        )
        wait_until(lambda: theirs.get("n").value == "116", "its increments to come", PATIENCE_S)
        assert theirs.get("a").value == "by the new primary"
        assert theirs.keys("$conflicts_*") == [f"$conflicts_a_{lost.op_id}"]
    cluster.wait_role(0, "replica")
    cluster.wait_same()
    with cluster.client(0) as client:
        assert database(client).get("a").value == "by the new primary"


def test_a_replica_that_is_cut_off_takes_local_writes_and_catches_up(cluster: Cluster) -> None:
    with cluster.client(2, timeout=PATIENCE_S) as far, cluster.client(0) as near:
        database(far).set("a", "before", ack="all")
        cluster.isolate(3)
        wait_until(lambda: link_of(near, "node3") == "down", "node3 to be missed")
        result = database(far).set("here", "tentative", ack="local")
        assert result.status == "tentative"
        for number in range(50):
            last = database(near).set("a", str(number), ack="majority")
        assert database(far).get("a").value == "before", "reads go on, of what it has"
        cluster.heal()
        assert database(far).get("a", at=last.position).value == "49"
        assert result.wait("all").status == "committed"
        assert database(near).get("here").value == "tentative"
    cluster.wait_same()


def test_connections_that_break_again_and_again_lose_nothing(cluster: Cluster) -> None:
    done = 0
    with cluster.client(1, timeout=PATIENCE_S) as client:
        shop = database(client)
        for turn in range(8):
            for _ in range(10):
                shop.increment("n", 1, ack="all")
                done += 1
            cluster.reset(1 + turn % 3)
    cluster.wait_same()
    for index in range(3):
        with cluster.client(index) as client:
            assert database(client).get("n").value == str(done)


def test_a_slow_and_narrow_link_slows_only_who_waits_for_it(cluster: Cluster) -> None:
    slow = cluster.links[frozenset((1, 3))]
    slow.delay_s, slow.bytes_per_s = 0.05, 500_000
    with cluster.client(0, timeout=PATIENCE_S) as client:
        shop = database(client)
        for number in range(100):
            last = shop.set("a", f"{number} {'x' * 20_000}", ack="majority")
        assert shop.set("b", "1", ack="all", timeout=PATIENCE_S).status == "committed"
        status = client.status()
        assert status["role"] == "primary"
    with cluster.client(2, timeout=PATIENCE_S) as client:
        assert database(client).get("a", at=last.position).value.startswith("99 ")


def test_two_promotions_race_and_one_primary_is_left(cluster: Cluster) -> None:
    told: dict[int, Any] = {}
    together = threading.Barrier(2)

    def promote(number: int) -> None:
        with cluster.client(number - 1, timeout=PATIENCE_S) as client:
            together.wait()
            try:
                told[number] = client.promote(f"node{number}")
            except nun.NunError as error:
                told[number] = error

    with cluster.client(0, timeout=PATIENCE_S) as client:
        database(client).increment("n", 1, ack="all")
        racers = [threading.Thread(target=promote, args=(number,)) for number in (2, 3)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(60.0)
        assert any(isinstance(one, dict) for one in told.values()), told

        def one_primary() -> list[str] | None:
            roles = []
            for index in range(3):
                with contextlib.suppress(nun.NunError), cluster.client(index) as each:
                    roles.append(each.status()["role"])
            return roles if sorted(roles) == ["primary", "replica", "replica"] else None

        wait_until(one_primary, "one primary and two replicas", PATIENCE_S)
        assert database(client).increment("n", 1, ack="all", timeout=PATIENCE_S).value == 2
    cluster.wait_same()


def keys_of(numbers: range) -> dict[int, tuple[str, str]]:
    return {number: tuple(key.decode() for key in zmq.curve_keypair()) for number in numbers}  # type: ignore[misc]


def curve_tables(pairs: dict[int, tuple[str, str]]) -> dict[int, dict[str, dict[str, Any]]]:
    return {
        number: {
            "replication": {
                "curve_public_key": public,
                "curve_secret_key": secret,
                "peer_public_keys": {
                    f"node{other}": pairs[other][0] for other in pairs if other != number
                },
            }
        }
        for number, (public, secret) in pairs.items()
    }


def test_nodes_with_keys_work_and_let_nobody_else_in(tmp_path: Path) -> None:
    pairs = keys_of(range(1, 4))
    with Cluster(tmp_path, each=curve_tables(pairs)) as cluster:
        with cluster.client(2) as client:
            database(client).set("secret", "of the cluster", ack="all")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stranger = zmq.curve_keypair()
        listen, publish = cluster.addresses_among_nodes(1)
        try:
            for keys in (None, stranger):
                asker, listener = context.socket(zmq.DEALER), context.socket(zmq.SUB)
                asker.setsockopt(zmq.ROUTING_ID, b"node2")
                listener.setsockopt(zmq.SUBSCRIBE, b"")
                for socket, address in ((asker, listen), (listener, publish)):
                    if keys is not None:
                        socket.setsockopt(zmq.CURVE_SERVERKEY, pairs[1][0].encode())
                        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys[0])
                        socket.setsockopt(zmq.CURVE_SECRETKEY, keys[1])
                    socket.connect(address)
                asker.send(pack((pm.FETCH, 1, 65_536)))
                with cluster.client(0) as client:
                    database(client).set("secret", "of nobody else", ack="all")
                assert asker.poll(500) == 0, "a stranger was answered"
                assert listener.poll(500) == 0, "a stranger heard the stream"
                asker.close(0)
                listener.close(0)
        finally:
            context.destroy(0)
        with cluster.client(1) as client:
            assert database(client).get("secret").value == "of nobody else"


def test_a_node_with_a_key_that_others_do_not_know_stays_outside(tmp_path: Path) -> None:
    pairs = keys_of(range(1, 4))
    tables = curve_tables(pairs)
    [(public, secret)] = keys_of(range(1, 2)).values()
    tables[3]["replication"].update(curve_public_key=public, curve_secret_key=secret)
    cluster = Cluster(tmp_path, each=tables)
    with contextlib.ExitStack() as stack:
        for node in cluster.nodes:
            stack.callback(node.close)
            node.launch()
        for node in cluster.nodes[:2]:
            node.wait_ready()
        with cluster.client(0) as client:
            client.create_database(DATABASE, token=TOKEN, ack=1)
            database(client).set("a", "1", ack=1)
            assert link_of(client, "node3") == "down"
            numbers = {one["name"]: one["number"] for one in client.cluster()}
            assert not numbers["node3"]
        assert not [line for line in cluster.nodes[2].lines if line.get("event") == "ready"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_full_disk_of_one_node(small_disk: Path, tmp_path: Path, number: int) -> None:
    """The primary's: it refuses writes. A replica's: it falls behind. Both heal when there is room."""
    storage = {"segment_bytes": 256 * 1024, "oplog_bytes": 8 * 2**20, "snapshot_interval_s": 0}
    with Cluster(
        tmp_path,
        settings={"storage": storage},
        each={number: {"node": {"data_dir": small_disk / "data"}}},
    ) as cluster:
        with cluster.client(0, timeout=PATIENCE_S) as client:
            shop = database(client)
            shop.set("a", "1", ack="all")
            ballast = fill(small_disk, 600 * 1024)
            acked: dict[str, str] = {}
            if number == 1:
                assert isinstance(write_until_refused(shop, acked), nun.ReadOnly)
            else:
                for i in range(600):
                    acked[f"k{i}"] = f"{i} {'x' * 2_000}"
                    shop.set(f"k{i}", acked[f"k{i}"], ack=1)
                with pytest.raises(nun.UnknownOutcome):
                    shop.set("b", "1", ack="all", timeout=1.0)
            ballast.unlink()
            wait_until(lambda: is_taken(shop), "writes to reach all nodes again", 60.0)
        for index in range(3):
            with cluster.client(index) as client:
                found = database(client).get_many(list(acked))
                assert [entry.value for entry in found] == list(acked.values())


def is_taken(shop: Any) -> bool:
    try:
        return bool(shop.set("probe", "v", ack="all", timeout=2.0))
    except (nun.ReadOnly, nun.UnknownOutcome):
        return False
