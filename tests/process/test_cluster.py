"""Three real nodes: joining, writing anywhere, ack levels, every process killed, changes of primary, copies."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nun
from tests.support.cluster import DATABASE, TOKEN, Cluster
from tests.support.node import wait_until

pytestmark = pytest.mark.process


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as made:
        yield made


def database(client: nun.Client) -> Any:
    return client.database(DATABASE, token=TOKEN)


def value_on(cluster: Cluster, index: int, key: str, **how: Any) -> Any:
    with cluster.client(index) as client:
        entry = database(client).get(key, **how)
        return None if entry is None else entry.value


@pytest.mark.parametrize("ack", ["primary", 1, 2, "majority", "all"])
def test_a_write_on_any_node_is_read_on_every_node(cluster: Cluster, ack: Any) -> None:
    for index in range(3):
        with cluster.client(index) as client:
            result = database(client).set(f"key{index}", f"by {index}", ack=ack)
            assert result.status == "committed"
            assert database(client).get(f"key{index}").value == f"by {index}"
        for other in range(3):
            assert value_on(cluster, other, f"key{index}", at=result.position) == f"by {index}"
    with cluster.client(1) as client:
        assert database(client).increment("n", 2, ack=ack).value == 2
        database(client).set_many({"a": "1", "b": "2"}, ack=ack)
        with database(client).pipeline(atomic=True, ack=ack) as pipe:
            pipe.increment("n", 3)
            pipe.get("a")
        assert [pipe.results[0].value, pipe.results[1].value] == [5, "1"]
    assert value_on(cluster, 0, "n") == "5"


def test_a_level_that_cannot_be_reached_is_told_with_what_is_known(cluster: Cluster) -> None:
    cluster.nodes[2].kill("node")
    with cluster.client(0) as client:
        shop = database(client)
        assert shop.set("a", "1", ack="majority").version == 1
        with pytest.raises(nun.UnknownOutcome) as caught:
            shop.set("a", "2", ack="all", timeout=2.0)
        assert (caught.value.reason, caught.value.fields["reached"]) == ("level", 1)
        cluster.nodes[2].restart()
        assert caught.value.retry(timeout=20.0).version == 2
        assert shop.get("a").version == 2, "asked twice, done once"


def test_a_local_write_is_shown_at_once_and_decided_later(cluster: Cluster) -> None:
    with cluster.client(2, client_id="ann") as ann:
        shop = database(ann)
        result = shop.set("name", "ann", ack="local")
        assert (result.status, result.position) == ("tentative", None)
        assert shop.get("name").value == "ann"
        later = shop.set("name", "anna")
        final = result.wait("all")
        assert (final.status, final.op_id) == ("committed", result.op_id)
        shop.set("name", "ann")
        reached = later.wait("all")
        assert (reached.version, reached.op_id) == (later.version, later.op_id)
    assert value_on(cluster, 0, "name") == "ann"


def test_a_losing_local_write_is_in_the_ledger_and_its_writer_is_told(cluster: Cluster) -> None:
    with cluster.client(2, client_id="ann") as ann, cluster.client(0) as other:
        shop = database(ann)
        shop.set("name", "first", ack="all")
        for index in (0, 1):
            cluster.nodes[index].pause("replicator")
        lost = shop.set("name", "ann's", ack="local")
        database(other).set("name", "other's")
        for index in (0, 1):
            cluster.nodes[index].resume("replicator")
        with pytest.raises(nun.VersionConflict):
            lost.wait(timeout=20.0)
        with ann.outcomes() as outcomes:
            outcome = outcomes.next_outcome(timeout=20.0)
            assert outcome is not None
        assert (outcome.state, outcome.key, outcome.value) == ("refused", "name", "ann's")
        assert (outcome.op_id, outcome.current) == (lost.op_id, "other's")
        assert outcome.entry in database(other).keys("$conflicts_*")
    cluster.wait_same()
    assert value_on(cluster, 2, "name") == "other's"
    with cluster.client(1, client_id="ann") as ann, ann.outcomes() as outcomes:
        assert outcomes.next_outcome(timeout=0.5) is None, "it was seen"


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("victim", ["network", "writer", "replicator"])
def test_any_process_may_die(cluster: Cluster, index: int, victim: str) -> None:
    """Under writers on every node: what was acknowledged is there, increments count once."""
    done: list[int] = [0, 0, 0]
    enough = threading.Event()

    def work(which: int) -> None:
        with cluster.client(which, timeout=30.0) as client:
            shop = database(client)
            while not enough.is_set():
                shop.increment("n", 1, ack="majority")
                done[which] += 1
                shop.set(f"last{which}", str(done[which]))

    workers = [threading.Thread(target=work, args=(which,)) for which in range(3)]
    for worker in workers:
        worker.start()
    try:
        wait_until(lambda: min(done) > 5, "writes on every node")
        cluster.nodes[index].kill(victim)
        before = list(done)
        wait_until(
            lambda: all(now > was + 5 for now, was in zip(done, before, strict=True)),
            "writes on every node after the kill",
            40.0,
        )
    finally:
        enough.set()
        for worker in workers:
            worker.join(60.0)
    cluster.wait_same()
    for which in range(3):
        assert value_on(cluster, which, "n") == str(sum(done))
        for writer in range(3):
            assert value_on(cluster, which, f"last{writer}") == str(done[writer])


def test_a_planned_change_of_primary_loses_nothing(cluster: Cluster) -> None:
    done = 0
    enough = threading.Event()

    def work() -> None:
        nonlocal done
        with cluster.client() as client:
            shop = database(client)
            while not enough.is_set():
                shop.increment("n", 1)
                done += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for name in ("node2", "node3", "node1"):
            wait_until(lambda start=done: done > start + 10, "increments")
            with cluster.client(0) as client:
                assert client.promote(name)["node"] == name
            wait_until(lambda start=done: done > start + 10, "increments after the change")
    finally:
        enough.set()
        worker.join(60.0)
    cluster.wait_same()
    assert {value_on(cluster, index, "n") for index in range(3)} == {str(done)}
    with cluster.client(0) as client:
        assert database(client).keys("$conflicts_*") == []


def test_a_primary_that_comes_back_proposes_again_what_only_it_had(cluster: Cluster) -> None:
    with cluster.client(0, client_id="ann") as ann:
        shop = database(ann)
        shop.set_many({"a": "old", "b": "old"}, ack="all")
        shop.increment("n", 10, ack="all")
        for index in (1, 2):
            cluster.nodes[index].kill("node")
        overwritten = shop.set("a", "by the old primary")
        shop.set("b", "by the old primary")
        shop.increment("n", 5)
    cluster.nodes[0].kill("node")
    for index in (1, 2):
        cluster.nodes[index].restart()
    # She goes on meanwhile: what she had an answer for can no longer be told from a repeat by her requests alone.
    with cluster.client(1, client_id="ann") as client:
        assert client.promote("node2")["epoch"].startswith("2.")
        shop = database(client)
        assert shop.get("b").value == "old"
        shop.set("a", "by the new primary")
        shop.increment("n", 1)
        cluster.nodes[0].launch()
        wait_until(
            lambda: shop.get("b").value == "by the old primary", "what it had to come back", 40
        )
        assert shop.get("a").value == "by the new primary"
        wait_until(lambda: shop.get("n").value == "16", "its increment to come too", 40)
        assert shop.keys("$conflicts_*") == [f"$conflicts_a_{overwritten.op_id}"]
    with cluster.client(2, client_id="ann") as ann, ann.outcomes() as outcomes:
        outcome = outcomes.next_outcome(timeout=20.0)
        assert outcome is not None
        assert (outcome.key, outcome.value) == ("a", "by the old primary")
    cluster.wait_same()


def test_without_a_majority_a_promotion_is_refused_unless_forced(cluster: Cluster) -> None:
    for index in (0, 2):
        cluster.nodes[index].kill("node")
    with cluster.client(1, timeout=20.0) as client:
        with pytest.raises(nun.NodeFault, match="no promise of a majority"):
            client.promote("node2")
        told = client.promote("node2", force=True)
        assert (told["node"], len(told["at_stake"])) == ("node2", 2)
        database(client).set("a", "alone")
    for index in (0, 2):
        cluster.nodes[index].launch()
    cluster.wait_role(0, "replica")
    cluster.wait_role(2, "replica")
    cluster.wait_same()
    assert value_on(cluster, 0, "a") == "alone"


def test_no_large_value_travels_back_to_the_node_that_it_came_from(cluster: Cluster) -> None:
    size, count = 50_000, 20
    values = [random.Random(number).randbytes(size // 2).hex() for number in range(count)]
    with cluster.client(1) as client:
        shop = database(client)
        for number, value in enumerate(values):
            shop.set(f"k{number}", value, ack="local" if number % 2 else "all")

        def told(key: str) -> int:
            return int(client.status()["replication"][key])

        wait_until(lambda: told("echoes_rebuilt") >= count, "all of them to come back")
        assert told("echoes_failed") == 0
    with cluster.client(0) as client:

        def saved() -> float:
            told: float = client.status()["replication"]["echo_saved_bytes"] / (size * count)
            return told

        wait_until(lambda: saved() > 0.95, "it to be told")
        assert saved() < 1.05
    cluster.wait_same()
    for index in range(3):
        with cluster.client(index) as client:
            shop = database(client)
            assert [shop.get(f"k{number}").value for number in range(count)] == values
            assert [shop.get(f"k{number}").version for number in range(count)] == [1] * count


def test_a_log_that_must_be_kept_for_members_that_are_away_is_bounded(tmp_path: Path) -> None:
    settings = {"storage": {"segment_bytes": 65_536, "oplog_bytes": 262_144}}
    with Cluster(tmp_path, settings=settings) as cluster:
        for index in (1, 2):
            cluster.nodes[index].kill("node")
        with cluster.client(0, timeout=30.0) as client:
            shop = database(client)
            written: list[str] = []

            def write_on() -> None:
                while len(written) < 2_000:
                    shop.set(f"k{len(written)}", "x" * 1_000, timeout=3.0)
                    written.append("x")

            with pytest.raises(nun.Overloaded, match="more nodes must be up") as caught:
                write_on()
            assert caught.value.fields["limit"] == "oplog_bytes"
            assert len(written) > 100
            assert shop.get("k50").value == "x" * 1_000, "reads go on"
            cluster.nodes[1].launch()
            wait_until(lambda: accepted(lambda: shop.set("after", "1")), "writes to go on", 40.0)
            cluster.nodes[2].launch()
        cluster.wait_same()
        assert value_on(cluster, 2, f"k{len(written) - 1}") == "x" * 1_000


def accepted(write: Callable[[], Any]) -> bool:
    try:
        write()
    except nun.Overloaded:
        return False
    return True


def test_promoting_who_is_not_there_is_refused(cluster: Cluster) -> None:
    with cluster.client(0) as client:
        with pytest.raises(nun.BadRequest, match="no node 'node9'"):
            client.promote("node9")
        cluster.nodes[2].kill("node")
        wait_until(
            lambda: [one["link"] for one in client.cluster() if one["name"] == "node3"] == ["down"],
            "node3 to be missed",
        )
        with pytest.raises(nun.NodeFault, match="cannot be reached"):
            client.promote("node3")


def test_a_stalled_replica_slows_nobody_and_comes_back(cluster: Cluster) -> None:
    cluster.nodes[2].pause("replicator")
    with cluster.client(0) as client:
        shop = database(client)
        for number in range(200):
            shop.set("a", str(number), ack="majority")
        result = shop.set("a", "last")
        wait_until(
            lambda: [one["link"] for one in client.cluster() if one["name"] == "node3"] == ["down"],
            "node3 to be missed",
        )
    cluster.nodes[2].resume("replicator")
    assert value_on(cluster, 2, "a", at=result.position) == "last"


def test_a_replica_far_behind_and_a_wiped_one_get_a_copy(tmp_path: Path) -> None:
    settings = {"storage": {"segment_bytes": 65_536, "oplog_bytes": 262_144}}
    with Cluster(tmp_path, settings=settings) as cluster:
        replica = cluster.nodes[2]
        replica.kill("node")
        with cluster.client(0, timeout=30.0) as client:
            shop = database(client)
            for number in range(40):
                values = {f"k{i}": f"{number} {i} {'x' * 20}" for i in range(500)}
                # Faster than a majority, it would meet the bound of what no majority has.
                result = shop.set_many(values, ack="majority")[0]
            client.snapshot()
            # The log is trimmed on a tick, once the files hold what it has.
            wait_until(
                lambda: client.status()["storage"]["oplog"]["first_seq"] > 20,
                "the log to be trimmed",
            )
        replica.launch()
        replica.wait_log("copy_taken_over")
        replica.wait_ready()
        assert value_on(cluster, 2, "k7", at=result.position).startswith("39 7 ")
        replica.kill("node")
        shutil.rmtree(replica.data_dir)
        replica.launch()
        replica.wait_log("copy_taken_over")
        replica.wait_ready()
        assert value_on(cluster, 2, "k7", at=result.position).startswith("39 7 ")
        with cluster.client(0) as client:
            numbers = {one["name"]: one["number"] for one in client.cluster()}
        assert numbers["node3"] == 4, "a wiped directory is another node"


def test_clients_find_a_living_node_and_the_primary(cluster: Cluster) -> None:
    with cluster.client(2, 1, 0) as client:
        shop = database(client)
        assert client.status()["node"] == "node1", "it moved to the primary"
        watch = shop.watch("*")
        shop.set("a", "1", ack="all")
        event = watch.next_event(timeout=20.0)
        assert event is not None
        assert event.value == "1"
        cluster.nodes[0].kill("node")
        with cluster.client(1) as other:
            other.promote("node2")
        shop.set("a", "2")
        event = watch.next_event(timeout=20.0)
        assert event is not None
        assert event.value == "2"
        assert client.status()["node"] == "node2"
