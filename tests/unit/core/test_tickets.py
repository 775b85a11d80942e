"""Tickets of forwarded requests: which reply belongs to whom."""

from __future__ import annotations

from nun import messages as m
from nun import peer_messages as pm
from nun.core import record
from tests.support.replicas import EPOCH, Cluster
from tests.unit.core.test_replicas import reply_to, write


def test_a_late_reply_to_an_earlier_life_of_a_node_is_nobodys() -> None:
    """Another client may have asked under the same number since, as the first one of the new process."""
    cluster = Cluster()
    cluster.database()
    (replica,) = cluster.replicas
    write(replica.client(), m.SET, 1, "a", "1", None)
    cluster.forward()
    replica.restart()
    replica.hear(pm.BE_REPLICA, EPOCH, 1)
    replica.hear(pm.PRIMARY_IS, "node1", "tcp://node1")
    client = replica.client()
    number = write(client, m.SET, 1, "b", "2", None)
    cluster.carry()  # with it comes the reply to the first
    assert client.reply_to(number) is None
    cluster.forward()
    cluster.carry()
    assert reply_to(client, number).result == 1
    assert record.value_of(replica.core.tables[1].records[b"b"]) == b"2"
