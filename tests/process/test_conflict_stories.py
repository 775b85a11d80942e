"""The cases of NunDB's design note, as stories on three nodes: where the arbiter is, or that there is none.

Node 1 is the primary. mary and jose are two people who change one name at the same time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import nun
from tests.support.cluster import Cluster
from tests.support.node import wait_until

pytestmark = pytest.mark.process


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as made:
        yield made


class People:
    """mary at one node, jose at another, both have read the same name; a witness at every node."""

    def __init__(self, cluster: Cluster, stack: contextlib.ExitStack, **options: Any) -> None:
        self.cluster = cluster
        self.stack = stack
        self.clients = [stack.enter_context(cluster.client(index)) for index in range(3)]
        self.clients[0].create_database("people", token="t", ack="all", **options)
        self.databases = [client.database("people", token="t") for client in self.clients]
        self.first = self.databases[0].set("name", "nobody", ack="all")
        for (
            database
        ) in self.databases:  # `all` says durable everywhere; a node shows it a moment later
            wait_for(database, "nobody")

    def change(self, mary_at: int = 1, jose_at: int = 0) -> nun.ConflictPending:
        """Both change the name; jose's write is decided first. Returns what mary was told."""
        read = self.databases[mary_at].get("name")
        self.databases[jose_at].set("name", "jose", base=read)
        with pytest.raises(nun.ConflictPending) as told:
            self.databases[mary_at].set("name", "mary", base=read)
        assert told.value.current.value == "jose"
        return told.value

    def arbiter(self, at: int) -> Any:
        """An arbiter at a node, which answers with both names."""
        client = self.stack.enter_context(self.cluster.client(at))
        database = client.database("people", token="t")
        return self.stack.enter_context(database.arbiter(both, background=True))

    def settled_on(self, name: str) -> None:
        """The same name on all three nodes, free to be changed; one resolved entry in the ledger of each."""
        for database in self.databases:
            entry = wait_for(database, name)
            assert entry.version == self.first.version + 2
            assert [one.state for one in database.conflicts(state=None)] == ["resolved"]


def wait_for(database: Any, name: str) -> Any:
    """Waits until a node shows the name, free to be changed."""

    def found() -> Any:
        entry = database.get("name")
        return entry if entry and entry.value == name and not entry.in_conflict else None

    return wait_until(found, f"{name!r} to be there")


def both(conflict: Any) -> str:
    return " and ".join(sorted([conflict.current.value, conflict.proposed.value]))


def test_the_arbiter_is_at_a_secondary(cluster: Cluster) -> None:
    """1. arbiter -> secondary -> primary -> all."""
    with contextlib.ExitStack() as stack:
        people = People(cluster, stack, strategy="arbiter")
        people.arbiter(at=1)
        told = people.change(mary_at=1, jose_at=0)
        assert told.wait(10.0).state == "resolved"
        people.settled_on("jose and mary")


def test_the_arbiter_is_at_the_primary(cluster: Cluster) -> None:
    """2. The simplest case."""
    with contextlib.ExitStack() as stack:
        people = People(cluster, stack, strategy="arbiter")
        people.arbiter(at=0)
        told = people.change(mary_at=0, jose_at=0)
        assert told.wait(10.0).state == "resolved"
        people.settled_on("jose and mary")


def test_two_writers_at_two_nodes_and_the_arbiter_at_the_third(cluster: Cluster) -> None:
    """3. Nobody has to know where the arbiter is."""
    with contextlib.ExitStack() as stack:
        people = People(cluster, stack, strategy="arbiter")
        seen = stack.enter_context(people.databases[1].watch("name"))
        people.arbiter(at=2)
        told = people.change(mary_at=0, jose_at=1)
        assert told.wait(10.0).state == "resolved"
        people.settled_on("jose and mary")
        assert [next(seen).value, next(seen).value] == ["jose", "jose and mary"]


def test_no_arbiter_anywhere_and_one_that_comes_later(cluster: Cluster) -> None:
    """4. The case that the original never got to work: the conflict waits, readable, and the writer knows."""
    with contextlib.ExitStack() as stack:
        people = People(cluster, stack, strategy="arbiter")
        told = people.change(mary_at=1, jose_at=2)
        with pytest.raises(TimeoutError):
            told.wait(0.2)
        for database in people.databases:
            wait_until(partial(in_conflict, database), "the conflict to be known there")
            entry = database.get("name")
            assert (entry.value, entry.version) == ("jose", -2)
        people.arbiter(at=2)
        assert told.wait(10.0).state == "resolved"
        people.settled_on("jose and mary")


def in_conflict(database: Any) -> bool:
    return bool(database.get("name").in_conflict)


def test_no_arbiter_anywhere_and_the_database_refuses(cluster: Cluster) -> None:
    """4, no_arbiter = "reject": as long as none is connected to any node, the writer is told to decide anew."""
    with contextlib.ExitStack() as stack:
        people = People(cluster, stack, strategy="arbiter", no_arbiter="reject")
        read = people.databases[1].get("name")
        people.databases[2].set("name", "jose", base=read)
        with pytest.raises(nun.VersionConflict) as refused:
            people.databases[1].set("name", "mary", base=read)
        assert refused.value.current.value == "jose"
        assert list(people.databases[0].conflicts(state=None)) == []
        people.arbiter(at=1)
        wait_until(
            lambda: people.clients[0].status()["conflicts"]["arbiters"], "the arbiter to be known"
        )
        with pytest.raises(nun.ConflictPending) as told:
            people.databases[1].set("name", "mary", base=read)
        assert told.value.wait(10.0).state == "resolved"


@pytest.mark.parametrize(
    ("fallback", "name"), [("keep", "jose"), ("newer", "mary"), ("older", "jose")]
)
def test_no_arbiter_anywhere_and_none_that_ever_comes(
    cluster: Cluster, fallback: str, name: str
) -> None:
    """4, with a timeout: the fallback ends it, and says so."""
    with contextlib.ExitStack() as stack:
        people = People(
            cluster, stack, strategy="arbiter", conflict_timeout=0.5, conflict_fallback=fallback
        )
        told = people.change(mary_at=1, jose_at=2)
        outcome = told.wait(10.0)
        assert outcome.state == "expired"
        for database in people.databases:
            wait_for(database, name)


def test_conflicts_outlive_processes_nodes_and_the_whole_cluster(cluster: Cluster) -> None:
    """Shut down with a conflict open, process by process and all at once: it is there when they come back."""
    with contextlib.ExitStack() as stack:
        people = People(cluster, stack, strategy="arbiter")
        told = people.change(mary_at=1, jose_at=0)
        for victim in ("conflicts", "replicator", "network", "writer"):
            mark = cluster.nodes[0].mark()
            cluster.nodes[0].kill(victim)
            if victim in ("network", "writer"):
                cluster.nodes[0].wait_ready(mark)
        for node in cluster.nodes:
            assert node.stop() == 0
        for node in cluster.nodes:
            node.launch()
        for node in cluster.nodes:
            node.wait_ready()
        assert [one.key for one in people.databases[2].conflicts()] == ["name"]
        people.arbiter(at=2)
        assert told.wait(20.0).state == "resolved"
        people.settled_on("jose and mary")


def test_an_arbiter_goes_on_after_a_change_of_primary(cluster: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        people = People(cluster, stack, strategy="arbiter")
        people.arbiter(at=0)
        cluster_client = people.clients[1]
        cluster_client.promote("node2")
        cluster.wait_role(1, "primary")
        told = people.change(mary_at=2, jose_at=1)
        assert told.wait(20.0).state == "resolved"
        people.settled_on("jose and mary")


def test_what_an_old_primary_had_acknowledged_comes_back_as_a_conflict(tmp_path: Path) -> None:
    """The primary is cut off and goes on; another takes its place; the writes of both meet again as a conflict."""
    with (
        Cluster(tmp_path, proxied=True) as cluster,
        contextlib.ExitStack() as stack,
    ):
        people = People(cluster, stack, strategy="arbiter")
        read = people.databases[0].get("name")
        cluster.isolate(1)
        lost = people.databases[0].set("name", "mary", base=read)
        assert lost.status == "committed"
        people.clients[1].promote("node2", timeout=30.0)
        cluster.wait_role(1, "primary")
        people.databases[1].set("name", "jose", base=read)
        cluster.heal()
        cluster.wait_role(0, "replica")
        [conflict] = wait_until(
            lambda: list(people.databases[2].conflicts()), "the conflict to come up", 30.0
        )
        assert (conflict.proposed.value, conflict.current.value) == ("mary", "jose")
        people.arbiter(at=2)
        people.settled_on("jose and mary")
        with people.clients[0].outcomes() as outcomes:
            outcome = outcomes.next_outcome(20.0)
            assert outcome is not None
            assert (outcome.state, outcome.value) == ("resolved", "mary")
