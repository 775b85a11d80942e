"""Stories of a replicator that dies alone: network process and storage writer go on with what it had handed down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nun.config import Config
from tests.simulation.process import installed
from tests.simulation.test_stories import Story
from tests.simulation.world import SECOND


@pytest.fixture
def story() -> Iterator[Story]:
    """What node1 decides from here on comes to node2 alone."""
    made = Story(seed=1, nodes=3)
    with installed(made.world):
        made.form()
        made.until(made.converged, "all three are members")
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
