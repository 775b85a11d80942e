"""Short scripts of primaries that are made so by force, which may cut what a majority had (P1 holds all the same)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nun import messages as m
from nun.core import record
from tests.simulation.test_stories import Story, begun


@pytest.fixture
def story() -> Iterator[Story]:
    yield from begun(Story(seed=1, nodes=3))


def test_what_was_refused_and_then_cut_off_by_force_is_proposed_again(story: Story) -> None:
    """Its entry of the ledger was all that was left of it, and is gone with the history that had decided it."""
    there = story.at("node2")
    story.put(there, "kept", "1", m.ACK_ALL)
    story.cut("node2")
    refused = story.put(there, "k", "refused", m.ACK_LOCAL)
    story.put(story.at("node1"), "k", "won", m.ACK_PRIMARY)
    story.heal()
    story.cut("node3")
    story.until(lambda: not story.nodes["node2"].network.core.tentative, "it is settled")
    story.promoted("node3", force=True)
    story.put(story.at("node3"), "other", "there")
    story.same()
    core = story.nodes["node3"].network.core
    records = core.tables[core.state.database_named("d").number].records
    standing = {record.op_id_of(records[b"k"])} | story.ledger(records)
    assert refused.op_id in standing


def test_what_a_node_took_along_to_another_history_and_back_is_known_there(story: Story) -> None:
    """It goes and comes back with copies, so no log tells it what was decided; and the client has gone on."""
    story.promoted("node2")
    client = story.at("node2")
    story.put(client, "kept", "1", m.ACK_ALL)
    story.cut("node1")
    for value in "abc":
        settled = story.put(client, "k", value, m.ACK_MAJORITY).position[3]
    kept = story.nodes["node2"].replicator
    story.until(lambda: kept.core.cut_floor >= settled, "its files may hold it")
    story.promoted("node1", force=True)
    assert story.seq("node1") < settled
    story.heal()
    story.cut("node3")
    other = story.at("node1")
    story.until(lambda: story.get(other, "k") == "c", "what node1 did not have is done there too")
    story.put(other, "other", "1", m.ACK_MAJORITY)
    story.run(1)  # and leaves the outbox of node2
    story.cut("node2")
    story.promoted("node3", force=True)
    story.same()
    core = story.nodes["node2"].network.core
    records = core.tables[core.state.database_named("d").number].records
    assert record.value_of(records[b"k"]) == b"c"
    assert story.ledger(records) == set()
