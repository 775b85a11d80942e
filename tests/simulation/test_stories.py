"""Short scripts of what happens to clusters, each on the simulated network, with the real processes of every node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.client import operations as ops
from nun.client.values import TEXT
from nun.codec import unpack
from nun.core.clock import TICK
from nun.core.conflicts import ledger
from nun.core.replication.echoes import topics_of
from tests.simulation.client import Client, outcome, with_level
from tests.simulation.oracle import Saved
from tests.simulation.process import installed
from tests.simulation.simulation import Simulation
from tests.simulation.watchers import Life, check_watch
from tests.simulation.workload import Write


class Story(Simulation):
    """Three nodes, formed, and the words of the stories."""

    def put(self, client: Client, key: str, value: str, level: int | None = None) -> Any:
        """Sets a key; the result."""
        request = ops.set(client.grant, key, value, None, TEXT)
        ending, result = self.ask(client, with_level(request, level))
        assert ending == "done", result
        return result

    def get(self, client: Client, key: str) -> str | None:
        ending, entry = self.ask(client, ops.get(client.grant, key, TEXT))
        assert ending == "done", entry
        return None if entry is None else entry.value

    def at(self, name: str) -> Client:
        """A client that knows this node only."""
        return self.client(name, only=True)

    def seq(self, name: str) -> int:
        network = self.nodes[name].network
        core = None if network is None else network.core
        return 0 if core is None else core.state.position.seq

    def role(self, name: str) -> str:
        network = self.nodes[name].network
        return "" if network is None or network.core is None else network.core.roles.name

    def promoted(self, name: str, force: bool = False) -> None:
        """An operator makes this node primary, and it becomes so."""
        for _ in range(10):
            answers = self.promote(name, force, name if force else None)
            self.until(lambda: bool(answers), f"an answer about {name}", 30)  # noqa: B023
            if answers[0].status == 0 and answers[0].failure is None:
                break
            self.run(1)
        self.until(lambda: self.role(name) == "primary", f"{name} is primary")

    def cut(self, *names: str) -> None:
        """These nodes are cut off from the others."""
        for name in names:
            for other in self.names:
                if other not in names:
                    self.wires.block(name, other, (10**7, 10**9))
                    self.wires.block(other, name, (10**7, 10**9))

    def same(self) -> None:
        """All come to rest and hold the same."""
        self.heal()
        self.rest()
        self.check()


def begun(made: Any) -> Iterator[Any]:  # its nodes are members
    with installed(made.world):
        made.form()
        made.until(made.converged, "all three are members")
        yield made


@pytest.fixture
def story() -> Iterator[Story]:
    yield from begun(Story(seed=1, nodes=3))


def test_what_one_node_is_told_all_nodes_show(story: Story) -> None:
    story.put(story.at("node2"), "k", "v", m.ACK_ALL)
    for name in story.names:
        assert story.get(story.at(name), "k") == "v"
    story.same()


def test_a_planned_change_of_primary_loses_nothing(story: Story) -> None:
    story.put(story.at("node1"), "k", "1")
    story.promoted("node2")
    story.until(lambda: story.role("node1") == "replica", "node1 follows")
    story.put(story.at("node1"), "k", "2")
    assert story.get(story.at("node1"), "k") == "2"
    story.same()


def test_after_the_primary_is_gone_another_takes_over_with_what_is_settled(story: Story) -> None:
    story.put(story.at("node1"), "k", "1", m.ACK_MAJORITY)
    story.nodes["node1"].kill("for good")
    story.promoted("node3")
    assert story.get(story.at("node3"), "k") == "1"
    story.put(story.at("node3"), "k", "2", m.ACK_MAJORITY)
    story.same()
    assert story.get(story.at("node1"), "k") == "2"


def test_a_cut_off_primary_returns_and_proposes_what_only_it_had(story: Story) -> None:
    old = story.at("node1")
    story.put(old, "kept", "1", m.ACK_ALL)
    story.cut("node1")
    alone = story.put(old, "k", "only here", m.ACK_PRIMARY)
    story.promoted("node2")
    story.put(story.at("node2"), "other", "there", m.ACK_MAJORITY)
    story.same()
    assert story.get(old, "k") == "only here"
    assert story.primary() is story.nodes["node2"]
    found = story.oracle.known[alone.op_id]
    assert found.value == b"only here"


def test_a_write_that_lost_its_place_is_in_the_ledger(story: Story) -> None:
    old = story.at("node1")
    story.cut("node1")
    lost = story.put(old, "k", "alone", m.ACK_PRIMARY)
    story.promoted("node2")
    story.put(story.at("node2"), "k", "won", m.ACK_MAJORITY)
    story.same()
    assert story.get(old, "k") == "won"
    core = story.nodes["node3"].network.core
    number = core.state.database_named("d").number
    assert lost.op_id in story.ledger(core.tables[number].records)


def test_a_copy_of_a_node_that_had_less_and_was_made_primary_by_force_takes_nothing_back(
    story: Story,
) -> None:
    """What a majority has cannot be cut from the files: the old primary gets a copy, and proposes what that lacks."""
    old = story.at("node1")
    story.put(old, "kept", "1", m.ACK_ALL)
    story.cut("node3")
    settled = story.put(old, "k", "1", m.ACK_MAJORITY)
    story.until(
        lambda: story.nodes["node1"].replicator.core.cut_floor >= settled.position[3],
        "its files may hold it",
    )
    story.cut("node1", "node2")
    story.cut("node1")
    story.put(old, "alone", "1", m.ACK_PRIMARY)
    story.promoted("node3", force=True)
    story.put(story.at("node3"), "other", "there")
    assert story.get(story.at("node3"), "k") is None
    story.same()
    assert story.primary() is story.nodes["node3"]
    for key in ("kept", "k", "alone", "other"):
        assert story.get(old, key) is not None, key


def test_a_node_with_an_empty_directory_makes_no_majority_before_it_has_what_it_joined_with(
    story: Story,
) -> None:
    story.cut("node3")
    story.put(story.at("node1"), "k", "1", m.ACK_MAJORITY)
    node = story.nodes["node2"]
    node.wipe()
    story.oracle.replaced("node2", Saved())
    story.wires.hushed = {("node1", "node2")}
    node.start()
    story.until(lambda: node.replicator and node.replicator.core.number == 4, "it joins")
    story.heal()
    story.cut("node1")
    answers = story.promote("node3", at="node3")
    story.until(lambda: bool(answers), "an answer", 30)
    assert story.role("node3") != "primary"
    assert not node.network.serving
    story.wires.hushed = set()
    story.same()
    assert story.get(story.at("node2"), "k") == "1"


def test_increments_of_a_client_that_went_on_are_added_when_its_old_primary_returns(
    story: Story,
) -> None:
    client = story.client("node1")
    story.cut("node1")
    for _ in range(3):
        ending, _ = story.ask(client, ops.increment(client.grant, "n", 1, TEXT))
        assert ending == "done"
    story.nodes["node1"].kill("for a while")
    story.promoted("node2")
    for _ in range(4):
        ending, _ = story.ask(client, ops.increment(client.grant, "n", 1, TEXT), 30)
        assert ending == "done"
    story.same()
    assert story.get(story.at("node3"), "n") == "7"
    core = story.nodes["node3"].network.core
    number = core.state.database_named("d").number
    assert story.ledger(core.tables[number].records) == set()


def test_two_operators_promote_two_nodes_at_once(story: Story) -> None:
    story.put(story.at("node1"), "k", "1", m.ACK_ALL)
    story.promote("node2")
    story.promote("node3")
    story.run(12)
    story.same()
    assert story.get(story.at("node1"), "k") == "1"


def test_two_candidates_that_cannot_see_each_other_begin_the_same_reign(story: Story) -> None:
    """The one of the higher number is promoted last, and cuts off what the other has shown meanwhile."""
    cores = {name: story.nodes[name].replicator.core for name in ("node2", "node3")}
    low, high = sorted(cores, key=lambda name: cores[name].number)
    story.cut(high)
    story.promote(high, at=high)
    story.until(lambda: cores[high].promise is not None, f"{high} is a candidate")
    story.wires.hushed = {(low, "node1")}  # its entries stay its own
    story.promote(low, at=low)
    story.until(lambda: story.role(low) == "primary", f"{low} is primary")
    life = watched(story, story.at(low), "k")
    shown = story.put(story.at(low), "k", "shown")
    story.until(lambda: bool(life.events), "it is shown")
    life.ended, life.goes_on = True, life.events[-1].position
    story.cut(low)
    story.wires.unblock(high, "node1")
    story.wires.unblock("node1", high)
    story.until(lambda: story.role(high) == "primary", f"{high} is primary")
    won = story.put(story.at(high), "other", "there")
    assert (won.position.reign, won.position > shown.position) == (shown.position.reign, True)
    story.same()
    assert story.get(story.at("node1"), "k") == "shown"  # proposed again
    core = story.primary().network.core
    history = story.oracle.history(core.state.position)
    assert shown.position not in history
    check_watch(story.oracle, life, history, core.state.database_named("d").number)


def watched(story: Story, client: Client, key: str) -> Life:
    """What a client that watches a key from now on is shown; it has begun."""
    life = Life(client.name, key, None)

    def read(watch: Any) -> None:
        life.start = life.start or watch.resume_from()

    client.on_read = read
    client.on_event = lambda _, event: life.ended or life.events.append(event)
    watch = client.watch(key)
    story.until(lambda: watch.begun and life.start is not None, "the watch has begun")
    return life


def test_a_primary_that_starts_anew_with_an_old_configuration_follows_the_new_one(
    story: Story,
) -> None:
    story.promoted("node2")
    story.nodes["node1"].kill("and comes back")
    story.nodes["node1"].start()  # its configuration still names itself
    story.until(lambda: story.role("node1") == "replica", "node1 follows")
    assert story.role("node2") == "primary"
    story.same()


def test_a_replica_that_was_away_catches_up(story: Story) -> None:
    story.nodes["node3"].kill("for a while")
    client = story.at("node1")
    for i in range(30):
        story.put(client, f"k{i}", "v")
    story.nodes["node3"].start()
    story.until(lambda: story.seq("node3") == story.seq("node1"), "node3 has it all")
    story.same()


def test_entries_that_the_stream_loses_are_fetched(story: Story) -> None:
    story.wires.drop = 0.5
    client = story.at("node2")
    for i in range(20):
        story.put(client, f"k{i}", "v", m.ACK_MAJORITY)
    story.same()


def test_a_tail_that_the_stream_loses_shows_within_a_beat(story: Story) -> None:
    story.wires.hushed = {("node1", "node3")}
    story.put(story.at("node1"), "k", "v")
    behind = story.seq("node1")
    assert story.seq("node3") < behind
    story.wires.hushed = set()
    story.until(lambda: story.seq("node3") == behind, "the lost tail was fetched", 0.5)
    story.same()


def test_a_replica_joins_its_stream_anew_without_missing_anything(story: Story) -> None:
    """Its connection for requests stays; what is sent while it subscribes again is not lost."""
    node = story.nodes["node3"]
    client = story.at("node1")
    for i in range(10):
        for connection in list(story.wires.connections):
            if connection.connector.socket.label == "node3.replicator:SUB" and (
                connection.bound.label == "node1.replicator:XPUB"
            ):
                connection.end("reset")
        story.put(client, f"k{i}", "v")
        story.run(0.05)
    story.until(lambda: story.seq("node3") == story.seq("node1"), "node3 has it all")
    assert node.up
    story.same()


def test_no_replica_says_where_it_stands_before_its_subscription_is_proven(story: Story) -> None:
    story.wires.hushed = {("node1", "node3")}  # the marker is lost too
    story.nodes["node3"].kill("and comes back")
    story.nodes["node3"].start()
    story.run(3)
    assert not story.nodes["node3"].replicator.core.following.confirmed
    story.wires.hushed = set()
    story.same()


def test_the_subscription_that_the_marker_answers_is_the_last(story: Story) -> None:
    subscribed: list[bytes] = []

    def tap(connection: Any, up: bool, frames: tuple[bytes, ...]) -> None:
        if (
            up
            and connection.bound.label == "node1.replicator:XPUB"
            and (connection.connector.socket.label == "node3.replicator:SUB")
        ):
            subscribed.append(frames[0])

    story.wires.taps.append(tap)
    story.wires.reset_connections("node1", "node3")
    marker = b"\x01" + pm.TOPIC_MARKER
    story.until(
        lambda: any(topic.startswith(marker) for topic in subscribed), "node3 subscribes again"
    )
    number = story.nodes["node3"].network.core.number
    topics = [pm.TOPIC_BEAT, pm.TOPIC_ENTRY, *topics_of(number)]
    assert subscribed[:-1] == [b"\x01" + topic for topic in topics]
    assert subscribed[-1].startswith(marker)
    story.same()


def test_a_retry_on_another_node_after_a_change_of_primary_takes_effect_once(story: Story) -> None:
    client = story.client("node1")
    request = ops.increment(client.grant, "n", 1, TEXT)
    answers: list[Any] = []
    story.cut("node1", client.name)
    client.ask(with_level(request, m.ACK_MAJORITY, 300), 0.5, answers.append)
    story.until(lambda: bool(answers), "it is not known what became of it")
    story.heal()
    story.promoted("node2")
    answers.clear()
    client.move()
    client.retry(request, 10, answers.append)
    story.until(lambda: bool(answers), "the answer")
    story.same()
    assert story.get(story.at("node3"), "n") == "1"


def asked_at_two_nodes(story: Story, base: int) -> Write:
    """A client adds an element over node3, which holds that for a primary, and again over node1, which does it."""
    client = story.at("node3")
    value = ops.set(client.grant, "s0", " e", (m.ON_BASE, base, True), TEXT)
    write = Write("element", client.name, None, ["s0"], [" e"], 0, "e", bases=[base])
    ask_at_two_nodes(story, client, value, write)
    write.acked = {"s0": value.op_id}
    return write


def ask_at_two_nodes(story: Story, client: Client, request: Any, write: Write) -> None:
    story.writes.append(write)
    answers: list[Any] = []
    client.ask(request, 1, answers.append)
    story.until(lambda: bool(answers), "it is not known what became of it")
    assert outcome(answers.pop())[0] == "unknown"
    for link in ((client.name, "node3"), ("node3", client.name)):
        story.wires.block(*link, (10**7, 10**9))  # node3 does not notice that the client is gone
    client.addresses[:] = ["tcp://node1:1"]
    client.move()
    client.retry(request, 10, answers.append)
    story.until(lambda: bool(answers), "node1 has done it")
    assert outcome(answers.pop())[0] == "done"
    write.ending, write.number = "done", request.number


def held_before(story: Story, key: str, value: str) -> list[Any]:
    """Another client's set, which node3 holds for a primary; what becomes of it."""
    other = story.at("node3")
    answers: list[Any] = []
    other.ask(ops.set(other.grant, key, value, None, TEXT), 60, answers.append)
    story.until(lambda: len(story.nodes["node3"].network.core.forwarding) == 1, "it is held first")
    return answers


def go_on_at_node3(story: Story, write: Write) -> None:
    """The client has its answer and asks for more; no row says any more what became of its write."""
    story.nodes["node1"].kill("for a while")
    story.wires.unblock(write.client, "node3")
    story.wires.unblock("node3", write.client)
    client = next(each for each in story.clients if each.name == write.client)
    client.addresses[:] = ["tcp://node3:1"]
    client.move()
    story.put(client, "k", "on")
    rows = story.nodes["node3"].network.core.state.clients[client.name.encode()].rows
    assert write.number not in rows


def test_a_write_that_two_histories_decided_is_there_once_and_did_not_lose(story: Story) -> None:
    """The answer came from the history that is gone: it names an op id that no history holds in the end."""
    base = story.put(story.at("node1"), "s0", "", m.ACK_ALL).op_id
    story.cut("node1")
    write = asked_at_two_nodes(story, base)
    story.promoted("node3")
    story.same()
    client = story.at("node1")
    _, entry = story.ask(client, ops.get(client.grant, "s0", TEXT))
    assert entry.value == " e"
    assert entry.op_id != write.acked["s0"]
    core = story.nodes["node2"].network.core
    assert ledger.count(core)["opened"] == 0


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_write_that_one_history_did_and_the_one_that_holds_refused_is_in_the_ledger(
    story: Story, goes_on: bool
) -> None:
    """So too where its client has gone on, and nothing but its node's memory tells what became of the request."""
    base = story.put(story.at("node1"), "s0", "", m.ACK_ALL).op_id
    story.cut("node1")
    won = held_before(story, "s0", "won")
    write = asked_at_two_nodes(story, base)
    story.promoted("node3")
    story.until(lambda: bool(won), "the other is done")
    if goes_on:
        go_on_at_node3(story, write)
    story.same()
    assert story.get(story.at("node1"), "s0") == "won"
    core = story.nodes["node2"].network.core
    assert ledger.count(core)["refused"] == 1
    told = core.state.notices[write.client.encode()]
    assert [*told] == [write.acked["s0"]]


@pytest.mark.parametrize("goes_on", [False, True])
def test_of_a_batch_that_one_history_did_what_the_one_that_holds_refused_is_in_the_ledger(
    story: Story, goes_on: bool
) -> None:
    base = story.put(story.at("node1"), "s0", "", m.ACK_ALL).op_id
    story.cut("node1")
    won = held_before(story, "s0", "won")
    client = story.at("node3")
    kinds = bytes([m.GET, m.SET, m.INCREMENT])
    conditions = {1: (m.ON_BASE, base, True)}
    request = ops.batch(
        client.grant, False, kinds, ["s0", "s0", "n"], [None, "mine", 2], conditions, TEXT
    )
    write = Write("batch", client.name, None, ["s0", "n"], ["mine"], 2, bases=[base])
    ask_at_two_nodes(story, client, request, write)
    write.acked = {"s0": request.op_id + TICK, "n": request.op_id + 2 * TICK}
    story.promoted("node3")
    story.until(lambda: bool(won), "the other is done")
    if goes_on:
        go_on_at_node3(story, write)
    story.same()
    assert story.get(story.at("node1"), "s0") == "won"
    assert story.get(story.at("node1"), "n") == "2"
    core = story.nodes["node2"].network.core
    assert ledger.count(core)["refused"] == ledger.count(core)["opened"] == 1
    told = core.state.notices[write.client.encode()]
    assert [*told] == [write.acked["s0"]]
    assert unpack(told[write.acked["s0"]])[b"value"] == b"mine"


def test_a_promise_is_kept_over_a_start(story: Story) -> None:
    """The candidate fails; whoever promised itself follows nothing older, even after a loss of power."""
    story.nodes["node1"].kill("for a while")
    story.nodes["node3"].stall(2 * 10**9)
    story.promote("node2")
    story.until(lambda: story.nodes["node2"].replicator.core.promise is not None, "it promised")
    promise = story.nodes["node2"].replicator.core.promise
    story.nodes["node2"].lose_power()
    story.nodes["node2"].start()
    story.until(
        lambda: story.nodes["node2"].replicator and story.nodes["node2"].replicator.core.disk_known,
        "node2 knows its disk",
    )
    assert story.nodes["node2"].replicator.core.promise == promise
    story.same()


@pytest.mark.parametrize("count", [1, 2])
def test_an_order_to_be_primary_that_comes_too_late_is_not_mixed_with_what_was_decided_meanwhile(
    story: Story, count: int
) -> None:
    """The process that is to begin the reign sleeps; meanwhile node1 begins a later one, above entries of its own."""
    old = story.at("node1")
    story.cut("node1")
    for value in range(count):
        story.put(old, "k", str(value))
    story.run(4)  # nobody waits for it any more
    story.nodes["node2"].stall(8 * 10**9, "network")
    story.promote("node2", at="node3")
    candidate = story.nodes["node2"].replicator.core
    story.until(lambda: candidate.ordered is not None, "node2 is to begin a reign")
    story.heal()
    network = story.nodes["node2"].processes["network"]
    node1 = story.nodes["node1"].replicator.core
    story.until(lambda: node1.peers["node3"].promise is not None, "node1 hears of the promises")
    answers = story.promote("node1", at="node1")
    story.until(lambda: bool(answers), "node1 is primary again")
    assert node1.epoch.reign == 3
    assert network.stalled_until > story.world.now
    story.same()
    assert story.get(story.at("node2"), "k") == str(count - 1)


def test_every_process_may_die_alone(story: Story) -> None:
    client = story.at("node2")
    for name in story.names:
        for process in ("network", "writer", "replicator"):
            story.nodes[name].died(story.nodes[name].processes[process], "kill -9")
            story.put(client, process, name, m.ACK_MAJORITY)
            story.until(story.serving, "all serve again")
    story.same()


def test_a_local_write_is_kept_through_a_loss_of_power_and_decided_later(story: Story) -> None:
    client = story.at("node3")
    story.cut("node3")
    story.put(client, "k", "taken here", m.ACK_LOCAL)
    assert story.get(client, "k") == "taken here"
    story.nodes["node3"].lose_power()
    story.nodes["node3"].start()
    story.same()
    assert story.get(story.at("node1"), "k") == "taken here"


def test_what_only_a_majority_of_replicas_has_is_not_called_settled(story: Story) -> None:
    """The primary's own disk stands still; it would go on from that in the same reign."""
    story.nodes["node1"].stall(3 * 10**9, "writer")
    client = story.at("node1")
    request = ops.set(client.grant, "k", "v", None, TEXT)
    client.ask(request, 10, lambda _: None)
    story.run(1)
    replicator = story.nodes["node1"].replicator.core
    assert replicator.serving.settled <= story.oracle.disks["node1"].announced
    story.nodes["node1"].lose_power()
    story.nodes["node1"].start()
    story.same()


def test_a_node_that_loses_its_power_before_a_sync_takes_back_nothing_that_it_showed(
    story: Story,
) -> None:
    client = story.at("node1")
    for i in range(5):
        story.put(client, "k", str(i))
        story.nodes["node1"].lose_power()
        story.nodes["node1"].start()
        story.until(story.serving, "node1 serves again")
        assert story.get(story.at("node1"), "k") == str(i)
    story.same()


def test_a_retry_waits_for_the_disk_as_the_first_try_did(story: Story) -> None:
    client = story.at("node1")
    story.put(client, "k", "0")
    story.nodes["node1"].stall(4 * 10**9, "writer")
    answers: list[Any] = []
    client.ask(ops.set(client.grant, "k", "1", None, TEXT), 20, answers.append)
    story.run(3)  # it asks again by itself
    assert not answers
    story.until(lambda: bool(answers), "the answer")
    assert answers[0].status == 0
    story.same()


def test_a_local_write_stays_in_the_outbox_until_it_is_settled() -> None:
    """Two of five have decided it and have it on disk: a change of primary could still undo that."""
    story = Story(seed=2, nodes=5)
    with installed(story.world):
        story.form()
        story.until(story.converged, "all five are members")
        for name in ("node2", "node4", "node5"):
            story.nodes[name].kill("for a while")
        story.put(story.at("node3"), "k", "taken here", m.ACK_LOCAL)
        core = story.nodes["node3"].network.core
        story.until(lambda: core.state.outboxes.get(core.number) == 1, "it is decided")
        story.run(1)
        assert len(core.tentative) == 1
        story.same()
        assert len(core.tentative) == 0
