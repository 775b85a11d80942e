"""Digests: nodes that hold the same show the same, and a difference is named."""

from __future__ import annotations

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.core import digests, record
from nun.position import Position
from tests.support.replicas import Cluster, NodeDriver
from tests.support.replicators import Cluster as Replicators
from tests.support.snapshots import KINDS, every_kind
from tests.unit.core.test_replicas import ask, reply_to, write


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster(2)
    made.database()
    return made


def made_by(node: NodeDriver) -> list[object]:
    for _ in range(100):
        node.core.beat(node.now_ns)
        node.perform()
        told = node.told(pm.DIGEST_IS)
        if told:
            return told[-1][1:]
    raise AssertionError("no digests were made")


def test_all_nodes_make_the_same_digests_of_the_same_entry(cluster: Cluster) -> None:
    client = cluster.primary.client()
    write(client, m.SET_MANY, 1, pack([[f"k{i}" for i in range(100)], ["v"] * 100]))
    write(client, m.REMOVE, 1, "k5", None)
    number = write(client, m.CHECK)
    write(client, m.SET, 1, "later", "1", None)
    cluster.carry()
    position = reply_to(client, number).position
    found = [made_by(node) for node in cluster.nodes]
    assert found[0] == found[1] == found[2]
    assert found[0][0] == position
    number = write(client, m.CHECK)
    cluster.carry()
    assert made_by(cluster.primary)[1] != found[0][1], "it holds more now"


def test_a_check_covers_what_came_before_it_however_long_it_takes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "KEYS_PER_BEAT", 7)
    client = cluster.primary.client()
    write(client, m.SET_MANY, 1, pack([[f"k{i}" for i in range(50)], ["v"] * 50]))
    write(client, m.CHECK)
    cluster.carry()
    (replica, other) = cluster.replicas
    expected = made_by(other)
    replica.core.beat(replica.now_ns)
    for key in ("k0", "k49", "new"):
        write(client, m.SET, 1, key, "changed", None)
    write(client, m.REMOVE, 1, "k25", None)
    cluster.carry()
    assert made_by(replica) == expected == made_by(cluster.primary)


@pytest.mark.parametrize("kind", range(KINDS))
def test_a_record_that_differs_shows(cluster: Cluster, kind: int) -> None:
    client = cluster.primary.client()
    write(client, m.SET, 1, "a", "1", None)
    cluster.carry()
    table = cluster.replicas[0].core.tables[1]
    table.replace(b"a", every_kind(1, record.op_id_of(table.records[b"a"]), b"2")[kind])
    write(client, m.CHECK)
    cluster.carry()
    first, second, third = map(made_by, cluster.nodes)
    assert first == third
    assert first != second
    assert first[0] == second[0]


def test_a_check_is_asked_for_by_administrators_and_once_a_request(cluster: Cluster) -> None:
    (replica, _) = cluster.replicas
    client = replica.client()
    number = write(client, m.CHECK)
    cluster.forward()
    cluster.carry()
    position = reply_to(client, number).position
    peer, message = client.message(number, m.CHECK)
    replica.receive((peer, message))
    cluster.forward()
    cluster.carry()
    assert reply_to(client, number).position == position
    replica.core.sessions[client.peer].admin = False
    refused = write(client, m.CHECK)
    cluster.forward()
    cluster.carry()
    assert reply_to(client, refused).status != 0
    assert reply_to(client, ask(client, m.GET, 1, "a")).status == 0


def test_the_primary_checks_by_itself_when_it_is_time() -> None:
    made = Cluster(1, check_interval_s=30.0)
    made.database()
    made.primary.tick(29)
    made.carry()
    assert made.primary.core.digests.last is None
    made.primary.tick(2)
    made.carry()
    assert made_by(made.primary) == made_by(made.replicas[0])


def test_the_cluster_shows_who_differs_and_logs_it_once() -> None:
    cluster = Replicators().form()
    at = Position(1, 1, 1, 3)
    for number, text in ((1, b"a"), (2, b"a"), (3, b"b")):
        told = unpack(pack((pm.DIGEST_IS, at, {b"shop": text, b"same": b"x"})))
        cluster[number].core.from_network(told)
    cluster.run(1)
    for number in (1, 2, 3):
        view = {one["name"]: one for one in cluster[number].core.view.describe()}
        assert view["node1"]["digests"] == view["node2"]["digests"] == {"shop": "a", "same": "x"}
        assert {one["digests_at"] for one in view.values()} == {str(at)}
        assert (view["node1"]["problem"], view["node2"]["problem"]) == (None, None)
        expected = "its data differs from that of node1 at 1.1.1:3: shop"
        assert view["node3"]["problem"] == expected
    notes = [note for note in cluster[1].notes if note[0] == "data_differs"]
    assert len(notes) == 1
    later = unpack(pack((pm.DIGEST_IS, at._replace(seq=4), {b"shop": b"b", b"same": b"x"})))
    cluster[1].core.from_network(later)
    cluster.run(1)
    view = {one["name"]: one for one in cluster[2].core.view.describe()}
    assert view["node3"]["problem"] is None, "what was made of another entry says nothing"
