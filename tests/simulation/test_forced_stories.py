"""Short scripts of primaries that are made so by force, which may cut what a majority had (P1 holds all the same)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from nun import messages as m
from nun.client import operations as ops
from nun.config import Config
from nun.core import record
from nun.core.conflicts import ledger
from tests.simulation.test_stories import (
    Story,
    asked_at_two_nodes,
    begun,
    go_on_at_node3,
    held_before,
)
from tests.simulation.workload import Write


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


def standing(story: Story, key: str) -> set[int]:
    """The op ids of what the key holds and of what the ledger has."""
    core = story.nodes["node1"].network.core
    records = core.tables[core.state.database_named("d").number].records
    return {record.op_id_of(records[key.encode()])} | story.ledger(records)


def test_what_came_for_a_dropped_database_is_done_where_the_drop_is_cut_off_by_force(
    story: Story,
) -> None:
    """Its notice was all that was left of it, and is gone with the history that had dropped the database."""
    there, primary = story.at("node2"), story.at("node1")
    story.put(there, "kept", "1", m.ACK_ALL)
    story.cut("node2", "node3")
    story.cut("node2")
    written = story.put(there, "k", "mine", m.ACK_LOCAL)
    ending, _ = story.ask(primary, ops.drop_database("d"))
    assert ending == "done"
    story.heal()
    story.cut("node3")
    story.until(lambda: not story.nodes["node2"].network.core.tentative, "it is settled")
    story.promoted("node3", force=True)
    story.put(story.at("node3"), "other", "there")
    story.same()
    assert story.get(story.at("node3"), "k") == "mine"
    assert standing(story, "k") == {written.op_id}


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_another_history_did_and_one_that_is_cut_off_by_force_refused_is_proposed_again(
    story: Story, goes_on: bool
) -> None:
    """The history that cuts it off refused it too, so it is known there again, and is in the ledger once."""
    base = story.put(story.at("node1"), "s0", "", m.ACK_ALL).op_id
    story.cut("node1")
    won = held_before(story, "s0", "won")
    write = asked_at_two_nodes(story, base)
    story.promoted("node3")
    story.until(lambda: bool(won), "the other is done")
    if goes_on:
        go_on_at_node3(story, write)
        story.nodes["node1"].start()
    story.heal()
    story.cut("node2")
    old = story.nodes["node1"]
    story.until(lambda: write.acked["s0"] in told_of(story, "node1", write), "it is kept")
    story.until(lambda: not old.network.core.tentative, "it is settled")
    story.promoted("node2", force=True)
    assert write.acked["s0"] not in told_of(story, "node2", write)
    story.put(story.at("node2"), "other", "there")
    story.same()
    assert story.get(story.at("node1"), "s0") == "won"
    assert write.acked["s0"] in standing(story, "s0")
    assert [*told_of(story, "node3", write)] == [write.acked["s0"]]
    core = old.network.core
    assert ledger.count(core)["refused"] == ledger.count(core)["opened"] == 1


def told_of(story: Story, name: str, write: Write) -> dict[int, bytes]:
    """The notices for the client of a write, as a node has them."""
    network = story.nodes[name].network
    core = None if network is None else network.core
    return {} if core is None else core.state.notices.get(write.client.encode(), {})


def test_what_was_written_before_a_drop_that_is_cut_off_with_it_is_done_where_the_database_is(
    story: Story,
) -> None:
    primary = story.at("node1")
    story.put(primary, "kept", "1", m.ACK_ALL)
    story.cut("node3")
    written = story.put(primary, "k", "mine", m.ACK_MAJORITY)
    ending, _ = story.ask(primary, ops.drop_database("d"))
    assert ending == "done"
    story.promoted("node3", force=True)
    story.put(story.at("node3"), "other", "there")
    story.same()
    assert story.get(story.at("node3"), "k") == "mine"
    assert standing(story, "k") == {written.op_id}


class Unsaved(Story):
    """A cluster that is so young that nobody has taken a snapshot, nor does."""

    def _config(self, i: int, count: int) -> Config:
        config = super()._config(i, count)
        return replace(config, storage=replace(config.storage, snapshot_interval_s=0.0))


@pytest.fixture
def unsaved() -> Iterator[Unsaved]:
    yield from begun(Unsaved(seed=1, nodes=3))


def test_a_copy_is_given_as_soon_as_there_is_room_for_the_snapshot_that_it_needs(
    unsaved: Unsaved,
) -> None:
    """While there was none, no files were held that could keep the next one from being taken."""
    unsaved.put(unsaved.at("node1"), "kept", "1", m.ACK_ALL)
    unsaved.cut("node2")
    unsaved.put(unsaved.at("node1"), "k", "settled", m.ACK_MAJORITY)
    primary, other = unsaved.nodes["node2"], unsaved.nodes["node3"]
    unsaved.run(1)  # node3 hears that it is
    unsaved.promoted("node2", force=True)
    primary.disk.fill()
    for source, target in sorted(unsaved.wires.blocked):
        unsaved.wires.unblock(source, target)
    unsaved.until(lambda: other.replicator.core.following.state == "filling", "it wants a copy")
    unsaved.run(3)
    unsaved.same()
    assert unsaved.get(unsaved.at("node2"), "k") == "settled"


def test_a_log_is_not_cut_below_what_the_files_of_one_database_hold(unsaved: Unsaved) -> None:
    """The last snapshot was of that one alone, and its node has just started: nobody has told it what is settled."""
    first = unsaved.at("node1")
    assert unsaved.ask(first, ops.create_database("e", "t", {}))[0] == "done"
    unsaved.put(first, "kept", "1", m.ACK_ALL)
    assert unsaved.ask(unsaved.at("node3"), ops.snapshot(None, False))[0] == "done"
    unsaved.cut("node2")
    unsaved.put(first, "k", "settled", m.ACK_MAJORITY)
    unsaved.run(1)
    assert unsaved.ask(unsaved.at("node3"), ops.snapshot(["d"], False))[0] == "done"
    unsaved.promoted("node2", force=True)
    for name in ("node1", "node3"):
        unsaved.nodes[name].kill("kill -9")
    unsaved.nodes["node3"].start()
    unsaved.same()
    assert unsaved.get(unsaved.at("node2"), "k") == "settled"
