"""Stories of a replicator that dies alone: network process and storage writer go on with what it had handed down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nun import messages as m
from nun.config import Config
from nun.core.replication.filling import Filling
from nun.core.replication.following import Following
from tests.simulation.process import installed
from tests.simulation.test_stories import Story, begun
from tests.simulation.world import SECOND


@pytest.fixture
def story() -> Iterator[Story]:
    """What node1 decides from here on comes to node2 alone."""
    for made in begun(Story(seed=1, nodes=3)):
        made.wires.hushed = {("node1", "node3")}
        yield made


def write(story: Story, count: int) -> None:
    """So many entries of node1 are adopted by the network process of node2."""
    before = story.seq("node2")
    for number in range(count):
        story.put(story.at("node1"), f"k{number}", "v")
    story.until(lambda: story.seq("node2") == before + count, "node2 has adopted them")


def lose_the_primary(story: Story) -> Any:
    """The replicator of node2 dies, and node1 for good; the new replicator."""
    node = story.nodes["node2"]
    node.died(node.processes["replicator"], "kill -9")
    story.nodes["node1"].kill("for good")
    story.wires.hushed = set()

    def knows() -> bool:
        return node.replicator is not None and node.replicator.core.state_known

    story.until(knows, "the new replicator knows its node")
    return node.replicator


def goes_on(story: Story, count: int) -> None:
    """node2 becomes primary with all that it has, and node1 agrees when it is back."""
    story.promoted("node2")
    for number in range(count):
        assert story.get(story.at("node2"), f"k{number}") == "v"
    core = story.nodes["node2"].network.core
    assert core.start == 1, "no process had to start anew"
    story.same()


def test_the_disk_gets_what_only_the_network_process_has(story: Story) -> None:
    """Else the node could neither become primary nor help another: it might lack what it joined with."""
    for connection in list(story.wires.connections):
        if connection.connector.socket.label == "node2.writer:SUB" and (
            connection.bound.label == "node2.replicator:XPUB"
        ):
            connection.end("reset")
    write(story, 1)
    assert story.nodes["node2"].writer.commit.appended.seq < story.seq("node2")
    lose_the_primary(story)
    goes_on(story, 1)


def test_what_a_slow_disk_had_not_got_yet_when_the_new_replicator_asked(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one takes note of it as it comes, and orders the reign to begin after it."""
    monkeypatch.setattr("actors.writer.DRAIN_MESSAGES_MAX", 1)
    story.nodes["node2"].stall(1 * SECOND, "writer")
    write(story, 30)
    replicator = lose_the_primary(story)
    assert replicator.core.durable_seq < story.seq("node2")
    story.until(lambda: replicator.core.last_seq == story.seq("node2"), "it knows of all of them")
    goes_on(story, 30)


class LazyStory(Story):
    """Nodes that never sync their logs."""

    def _config(self, i: int, count: int) -> Config:
        config = super()._config(i, count)
        return replace(config, storage=replace(config.storage, fsync="never"))


def test_a_replicator_that_comes_later_is_told_of_a_log_that_is_not_synced() -> None:
    """It counts as durable there: else a majority would wait for the next write, and a candidate for ever."""
    story = LazyStory(seed=1, nodes=3)
    with installed(story.world):
        story.form()
        story.until(story.converged, "all three are members")
        story.put(story.at("node1"), "k0", "v")
        story.until(story.converged, "node2 has it too")
        replicator = lose_the_primary(story)
        assert replicator.core.durable_seq == story.seq("node2")
        goes_on(story, 1)


class Deaf:
    """The replicator of node1 dies instead of hearing, the first time, what its storage writer answers."""

    def __init__(self, story: Story, room: type, hears: str, patch: pytest.MonkeyPatch) -> None:
        self.told: list[str | None] = []
        heard = getattr(room, hears)

        def hear(room: Any, error: str | None) -> None:
            node = story.nodes["node1"]
            if self.told or room._core.settings.name != node.name:
                heard(room, error)
                return
            self.told.append(error)
            story.world.after(0, lambda: node.died(node.processes["replicator"], "kill -9"))

        patch.setattr(room, hears, hear)


def test_the_log_was_cut_and_who_wanted_that_died_before_it_heard(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage writer still has in memory what is cut: it tells that to nobody, and has the node start anew."""
    story.heal()
    story.cut("node1")
    story.put(story.at("node1"), "k", "only here", m.ACK_PRIMARY)
    story.promoted("node2")
    story.put(story.at("node2"), "other", "there")
    deaf = Deaf(story, Following, "_cut", monkeypatch)
    story.same()
    assert deaf.told == [None]
    assert story.get(story.at("node1"), "k") == "only here"


def test_a_copy_was_taken_and_who_had_fetched_it_died_before_it_heard(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.heal()
    story.cut("node3")
    settled = story.put(story.at("node1"), "k", "in the files", m.ACK_MAJORITY)
    core = story.nodes["node1"].replicator.core
    story.until(lambda: core.cut_floor >= settled.position[3], "its files may hold it")
    story.cut("node1", "node2")
    story.promoted("node3", force=True)
    story.put(story.at("node3"), "other", "there")
    deaf = Deaf(story, Filling, "_ended", monkeypatch)
    story.same()
    assert deaf.told == [None]
    assert story.get(story.at("node1"), "k") == "in the files"
