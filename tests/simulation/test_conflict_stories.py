"""Short scripts of conflicts in a cluster, each on the simulated network, with the real processes of every node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nun import messages as m
from nun.client import operations as ops
from nun.client.request import Request
from nun.client.values import TEXT
from nun.core.conflicts import ledger
from nun.errors import ClaimLost, ConflictPending
from tests.simulation.client import Client, outcome, with_level
from tests.simulation.process import installed
from tests.simulation.test_stories import Story

LONG_LEASE_MS = 600_000


class ConflictStory(Story):
    """Three nodes with a database of strategy `arbiter`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(seed=3, nodes=3)
        self.options = {"strategy": "arbiter", **options}

    def write(
        self, client: Client, key: str, value: str, base: int, level: int | None = None
    ) -> Any:
        """Sets a key on a base; what it came to."""
        request = ops.set(client.grant, key, value, (m.ON_BASE, base, False), TEXT)
        return self.ask(client, with_level(request, level))[1]

    def conflict(self, key: str = "k") -> tuple[int, int]:
        """Two writes on one base: op ids of the base and of the loser."""
        client = self.at("node1")
        base = self.put(client, key, "base").op_id
        self.write(client, key, "first", base)
        lost = self.write(client, key, "second", base)
        assert isinstance(lost, ConflictPending)
        return base, lost.conflict

    def arbiters(self, client: Client, kind: int, *arguments: Any, seconds: float = 10) -> Any:
        request = Request(kind, client.grant, arguments, lambda request: request.result)
        return self.ask(client, request, seconds)[1]

    def claim(self, client: Client, patience_ms: int = 1_000, lease_ms: int = LONG_LEASE_MS) -> Any:
        return self.arbiters(client, m.CLAIM, client.name.encode(), patience_ms, lease_ms)

    def resolve(self, client: Client, offer: Any, value: str) -> Any:
        attempt, key, _, shown, _, entries, _ = offer
        op_ids = [entry[0] for entry in entries]
        return self.arbiters(client, m.RESOLVE, key, m.SET, value, shown, op_ids, attempt)

    def states(self, name: str = "node1") -> dict[str, int]:
        found = ledger.count(self.nodes[name].network.core)
        return {state: count for state, count in found.items() if count and state != "opened"}


@pytest.fixture
def story(request: pytest.FixtureRequest) -> Iterator[ConflictStory]:
    made = ConflictStory(**getattr(request, "param", {}))
    with installed(made.world):
        made.form()
        made.until(made.converged, "all three are members")
        yield made


def test_writers_and_the_arbiter_are_on_three_nodes(story: ConflictStory) -> None:
    base = story.put(story.at("node1"), "k", "base", m.ACK_ALL).op_id
    story.write(story.at("node2"), "k", "first", base, m.ACK_ALL)
    assert isinstance(story.write(story.at("node3"), "k", "second", base), ConflictPending)
    arbiter = story.at("node2")
    offer = story.claim(arbiter)
    assert story.resolve(arbiter, offer, "both") == [3, 0]
    story.same()
    assert [story.get(story.at(name), "k") for name in story.names] == ["both"] * 3
    assert [story.states(name) for name in story.names] == [{"resolved": 1}] * 3


@pytest.mark.parametrize("how", ["says goodbye", "dies"])
def test_what_an_arbiter_had_claimed_is_offered_when_it_is_gone(
    story: ConflictStory, how: str
) -> None:
    story.conflict()
    first, second = story.at("node1"), story.at("node1")
    attempt = story.claim(first, lease_ms=LONG_LEASE_MS if how == "says goodbye" else 1_000)[0]
    assert story.claim(second, patience_ms=0) is None
    if how == "says goodbye":
        story.ask(first, Request(m.BYE, None, (), lambda _: None))
    first.close()
    offer = story.claim(second, patience_ms=2_000)
    assert offer[0] != attempt
    assert story.resolve(second, offer, "merged") == [3, 0]
    story.same()


def test_an_answer_after_the_lease_is_refused_and_one_by_hand_is_not(story: ConflictStory) -> None:
    story.conflict()
    arbiter = story.at("node1")
    offer = story.claim(arbiter, lease_ms=200)
    story.run(0.5)
    assert isinstance(story.resolve(arbiter, offer, "late"), ClaimLost)
    assert story.resolve(arbiter, [0, *offer[1:]], "by hand") == [3, 0]
    assert isinstance(story.resolve(arbiter, [0, *offer[1:]], "again"), ClaimLost)
    story.same()
    assert story.get(arbiter, "k") == "by hand"


def test_a_conflict_manager_that_dies_forgets_claims_and_nothing_else(story: ConflictStory) -> None:
    story.conflict()
    arbiter = story.at("node1")
    offer = story.claim(arbiter)
    node = story.nodes["node1"]
    node.died(node.processes["conflicts"], "kill -9")
    answers: list[Any] = []
    patient = story.at("node2")
    asked = (patient.name.encode(), 5_000, LONG_LEASE_MS)
    request = Request(m.CLAIM, patient.grant, asked, lambda request: request.result)
    patient.ask(request, 20, answers.append)
    story.until(lambda: bool(answers), "it is offered to who asked meanwhile")
    assert isinstance(story.resolve(arbiter, offer, "of an earlier life"), ClaimLost)
    assert story.resolve(patient, outcome(answers[0])[1], "merged") == [3, 0]
    story.same()


def test_conflicts_of_a_cut_off_primary_are_in_the_queue_of_the_new_one(
    story: ConflictStory,
) -> None:
    base = story.put(story.at("node1"), "k", "base", m.ACK_ALL).op_id
    old = story.at("node1")
    story.cut("node1")
    story.write(old, "k", "alone", base, m.ACK_PRIMARY)
    lost = story.write(old, "k", "also alone", base)
    assert isinstance(lost, ConflictPending)
    story.promoted("node2")
    story.write(story.at("node2"), "k", "there", base, m.ACK_MAJORITY)
    story.same()
    assert story.states("node3") == {"open": 2}
    arbiter = story.at("node3")
    offer = story.claim(arbiter, patience_ms=3_000)
    assert [entry[2] for entry in offer[5]] == [b"alone", b"also alone"]
    assert story.resolve(arbiter, offer, "all three") == [3, 0]
    story.same()
    assert story.get(old, "k") == "all three"


def test_watchers_see_the_resolved_value_once_and_nothing_of_the_conflict(
    story: ConflictStory,
) -> None:
    seen: list[tuple[str, str | None]] = []
    watcher = story.at("node2")
    watcher.on_event = lambda _, event: seen.append((event.kind, event.value))
    watcher.watch("k")
    story.run(0.5)
    story.conflict()
    story.run(0.5)
    before = [("set", "base"), ("set", "first")]
    assert seen == before
    arbiter = story.at("node1")
    story.resolve(arbiter, story.claim(arbiter), "merged")
    story.same()
    assert seen == [*before, ("set", "merged")]


@pytest.mark.parametrize(
    "story", [{"conflict_timeout_s": 2, "conflict_fallback": "newer"}], indirect=True
)
def test_a_deadline_outlives_the_primary_and_ends_only_what_is_due(story: ConflictStory) -> None:
    base, _ = story.conflict()
    story.run(1.2)
    story.promoted("node2")
    story.until(lambda: story.role("node1") == "replica", "node1 follows")
    later = story.write(story.at("node2"), "k", "third", base)
    assert isinstance(later, ConflictPending)
    story.run(1.2)
    displaced = {"decided": 1}  # "first", which "second" had not seen
    assert story.states("node2") == {"expired": 1, "open": 1, **displaced}
    both = {"expired": 2, **displaced}
    story.until(lambda: story.states("node2") == both, "the other is due too", 5)
    story.same()
    assert story.get(story.at("node3"), "k") == "third"
