"""Changes of primary among replicator cores: what is promised, what a candidate waits for, who is told what."""

from __future__ import annotations

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.core import effects as fx
from nun.position import Epoch, Position
from tests.support.replicators import Cluster


@pytest.fixture
def cluster() -> Cluster:
    return Cluster().form()


def test_a_planned_change_loses_nothing(cluster: Cluster) -> None:
    position = cluster[1].decide()
    cluster.promote(2)
    cluster.run(3, lambda: cluster.promoted(2))
    status, fields = cluster.promoted(2)[2], cluster.promoted(2)[4]
    assert status == 0
    assert fields[b"epoch"] == f"2.{cluster[2].number}.1".encode()
    assert fields[b"at_stake"] == []
    cluster.run(3, lambda: cluster.is_quiet(2))
    assert cluster[2].log[position.seq - 1][0] == position
    assert [entry for entry, _ in cluster[1].log] == [entry for entry, _ in cluster[2].log]


def test_any_node_may_be_asked_to_promote_another(cluster: Cluster) -> None:
    cluster[3].core.from_network([pm.PROMOTE_ASKED, 5, b"node2", False])
    cluster.run(3, lambda: cluster.is_quiet(2))
    assert cluster[3].told[-1][:3] == [pm.PROMOTED, 5, 0] or [pm.PROMOTED, 5, 0] in [
        told[:3] for told in cluster[3].told
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"node9", "there is no node 'node9', only node1, node2, node3"),
        (b"node3", "cannot be reached"),
    ],
)
def test_who_cannot_be_primary(cluster: Cluster, name: bytes, message: str) -> None:
    cluster[3].stop()
    cluster.run(1.5)
    cluster[2].core.from_network([pm.PROMOTE_ASKED, 5, name, False])
    cluster.settle()
    [(_, _, status, text, _)] = [told for told in cluster[2].told if told[0] == pm.PROMOTED]
    assert status != 0
    assert message in text.decode()


def test_after_a_loss_the_candidate_gets_what_a_majority_has(cluster: Cluster) -> None:
    """Only node3 has the last entry, and the primary that had it too is gone."""
    cluster.loses = lambda _, receiver, what: receiver == "node2" and what[0] in (
        pm.TOPIC_ENTRY,
        pm.TOPIC_BEAT,
    )
    position = cluster[1].decide()
    cluster.settle()
    assert cluster[1].settled() == position.seq > cluster[2].last_seq
    cluster[1].stop()
    cluster.loses = lambda *_: False
    cluster.promote(2)
    cluster.run(5, lambda: cluster.promoted(2))
    assert cluster.promoted(2)[2] == 0
    assert cluster[2].log[position.seq - 1][0] == position
    assert cluster[2].log[position.seq][0].epoch[:2] == (2, cluster[2].number)


def test_a_primary_that_is_silent_for_a_while_is_waited_for(cluster: Cluster) -> None:
    """A busy machine: what it has answered meanwhile, and nobody else has, is not left behind."""
    cluster.loses = lambda sender, receiver, _: "node1" in (sender, receiver)
    position = cluster[1].decide()
    cluster.promote(2)
    cluster.run(2.5)
    assert not cluster.promoted(2)
    cluster.loses = lambda *_: False
    cluster.run(5, lambda: cluster.promoted(2))
    assert cluster.promoted(2)[2] == 0
    assert cluster[2].log[position.seq - 1][0] == position


def test_a_primary_that_is_there_and_gives_no_promise_is_named(cluster: Cluster) -> None:
    cluster.loses = lambda sender, _, what: sender == "node1" and what[0] == pm.PROMISE
    cluster.promote(2)
    cluster.run(11, lambda: cluster.promoted(2))
    assert cluster.promoted(2)[2] != 0
    assert b"no promise of node1, the primary, which is there" in cluster.promoted(2)[3]


class TestAPrimaryThatIsHeardOfMeanwhile:
    """node2 knows node1 as the primary, which node3 has taken over from behind its back."""

    @pytest.fixture
    def position(self, cluster: Cluster) -> Position:
        """Of an entry that only the new primary has."""
        cluster.part(2, 3)
        cluster.promote(3)
        cluster.run(3, lambda: cluster.promoted(3))
        cluster.run(0.5)
        assert cluster.primaries == ["node3"]
        cluster.loses = lambda sender, _, what: (
            sender == "node3" and what[0] in (pm.TOPIC_ENTRY, pm.TOPIC_BEAT)
        )
        return cluster[3].decide()

    def test_it_is_waited_for(self, cluster: Cluster, position: Position) -> None:
        cluster[1].hold, cluster[3].hold = {pm.KEPT}, {pm.KEPT}
        cluster.promote(2)
        cluster.apart.clear()
        cluster.run(0.5)
        cluster[1].release()
        cluster.run(4)
        assert not cluster.primaries, "that one is about to promise"
        cluster[3].release()
        cluster.run(1, lambda: cluster.promoted(2))
        assert cluster.promoted(2)[2] == 0
        assert cluster[2].log[position.seq - 1][0] == position

    def test_it_is_asked_while_the_candidate_fetches(
        self, cluster: Cluster, position: Position
    ) -> None:
        hushed = cluster.loses
        cluster.loses = lambda sender, receiver, what: (
            what[0] == pm.FETCHED or hushed(sender, receiver, what)
        )
        cluster.sent.clear()
        cluster.promote(2)
        cluster.run(1)
        asked = [(sender, receiver) for sender, receiver, _ in cluster.messages(pm.FETCH)]
        assert set(asked) == {("node2", "node1")}
        cluster.apart.clear()
        cluster.run(0.5)
        cluster.loses = hushed
        cluster.run(2, lambda: cluster.promoted(2))
        assert cluster.promoted(2)[2] == 0
        assert cluster[2].log[position.seq - 1][0] == position

    def test_it_is_not_waited_for_once_it_is_silent(
        self, cluster: Cluster, position: Position
    ) -> None:
        cluster[1].hold, cluster[3].hold = {pm.KEPT}, {pm.KEPT}
        cluster.promote(2)
        cluster.apart.clear()
        cluster.run(0.5)
        cluster[1].release()
        cluster[3].stop()
        cluster.run(2)
        assert not cluster.primaries
        cluster.run(2, lambda: cluster.promoted(2))
        assert cluster.promoted(2)[2] == 0
        assert cluster[2].log[position.seq - 1][0] != position

    def test_it_is_named_when_it_gives_no_promise(
        self, cluster: Cluster, position: Position
    ) -> None:
        cluster[1].hold, cluster[3].hold = {pm.KEPT}, {pm.KEPT}
        cluster.promote(2)
        cluster.apart.clear()
        cluster.run(0.5)
        cluster[1].release()
        cluster.run(11, lambda: cluster.promoted(2))
        assert b"no promise of node3, the primary, which is there" in cluster.promoted(2)[3]
        assert cluster[3].last == position


def test_a_primary_of_a_reign_that_is_over_is_not_waited_for() -> None:
    """Its own entries are in no history that the candidate could go on with."""
    cluster = Cluster(nodes=5).form()
    for index in (2, 3, 4, 5):
        cluster.part(1, index)
    cluster.run(4)
    cluster.promote(3)
    cluster.run(5, lambda: cluster.promoted(3))
    cluster.run(1)
    cluster[3].stop()
    cluster.promote(2)
    cluster[1].hold = {pm.STEPPED_DOWN}
    cluster.apart.clear()
    cluster.run(4, lambda: cluster.promoted(2))
    assert cluster.promoted(2)[2] == 0
    assert cluster[2].core.peers["node1"].is_there(cluster.now_ns)
    assert cluster.messages(pm.PROMISE)[-1][0] != "node1"


def test_without_a_majority_nothing_is_begun(cluster: Cluster) -> None:
    cluster[1].stop()
    cluster[3].stop()
    cluster.promote(2)
    cluster.run(11, lambda: cluster.promoted(2))
    assert cluster.promoted(2)[2] != 0
    assert b"no promise of a majority" in cluster.promoted(2)[3]
    assert not cluster.primaries


def test_force_goes_on_alone_and_says_what_is_at_stake(cluster: Cluster) -> None:
    cluster.loses = lambda _, receiver, what: receiver == "node2" and what[0] in (
        pm.TOPIC_ENTRY,
        pm.TOPIC_BEAT,
    )
    position = cluster[1].decide()
    cluster.run(0.3)
    cluster[1].stop()
    cluster[3].stop()
    cluster.promote(2, force=True)
    cluster.run(3, lambda: cluster.promoted(2))
    assert cluster.promoted(2)[2] == 0
    at_stake = cluster.promoted(2)[4][b"at_stake"]
    assert f"node3 {position}".encode() in at_stake
    assert cluster.primaries == ["node2"]


def test_force_names_a_member_that_was_never_heard_of(cluster: Cluster) -> None:
    cluster[1].stop()
    cluster[3].stop()
    cluster[2].core.peers["node3"].last = None
    cluster.promote(2, force=True)
    cluster.run(3, lambda: cluster.promoted(2))
    assert b"node3 unknown" in cluster.promoted(2)[4][b"at_stake"]


def test_a_promise_of_a_directory_that_was_set_back_does_not_count(cluster: Cluster) -> None:
    node = cluster[3]
    position = cluster[1].decide()
    cluster.run(1, lambda: cluster.is_quiet(1))
    before = (node.start, list(node.log))
    for _ in range(2):
        node.stop()
        node.start_processes()
        cluster.run(2, lambda: cluster.is_quiet(1))
    assert cluster[2].core.members[node.number][2] == node.start == before[0] + 2
    cluster[1].stop()
    node.stop()
    node.start, node.log = before[0], [item for item in before[1] if item[0] != position]
    node.start_processes()
    cluster.run(1)
    cluster.promote(2)
    cluster.run(11, lambda: cluster.promoted(2))
    assert b"no promise of a majority" in cluster.promoted(2)[3]
    assert not cluster.primaries


def test_a_primary_that_was_set_back_does_not_begin_an_epoch_again(cluster: Cluster) -> None:
    node = cluster[1]
    before = (node.start, list(node.log))
    node.stop()
    node.start_processes()
    cluster.run(2, lambda: cluster.is_quiet(1))
    epoch = node.epoch
    cluster.run(1)
    node.stop()
    node.start, node.log = before
    node.start_processes()
    cluster.run(6)
    assert not cluster.primaries, f"{epoch} was begun before"
    cluster.promote(2)
    cluster.run(8, lambda: cluster.is_quiet(2))
    assert cluster.promoted(2)[2] == 0


def test_two_candidates_race_and_no_reign_has_two(cluster: Cluster) -> None:
    cluster[2].core.from_network([pm.PROMOTE_ASKED, 77, b"node2", False])
    cluster[3].core.from_network([pm.PROMOTE_ASKED, 77, b"node3", False])
    cluster.run(12, lambda: cluster.promoted(2) and cluster.promoted(3))
    began = {
        entry.epoch for node in cluster.nodes.values() for entry, _ in node.log if entry.reign > 1
    }
    assert len(began) <= 1
    assert [cluster.promoted(index)[2] for index in (2, 3)].count(0) == len(began)


class TestPromises:
    def ask(self, cluster: Cluster, index: int, who: str, reign: int, number: int) -> list[object]:
        """What a node answers to a candidate's request, at once."""
        cluster.sent.clear()
        cluster[index].core.peer_asks(who.encode(), [pm.ASK_PROMISE, [1, 1, 1], reign, number])
        cluster.settle()
        return [what for sender, _, what in cluster.sent if sender == f"node{index}" and what[0] in
                (pm.PROMISE, pm.PEER_REFUSED)]  # fmt: skip

    def test_a_promise_is_on_disk_before_it_is_told(self, cluster: Cluster) -> None:
        cluster[3].hold = {pm.KEPT}
        assert self.ask(cluster, 3, "node2", 2, 2) == []
        cluster[3].release()
        cluster.settle()
        [(_, _, told)] = cluster.messages(pm.PROMISE)
        assert told[2:5] == [2, 2, list(cluster[3].log[-1][0])]
        assert cluster[3].promise == (2, 2)

    def test_a_promise_outlives_the_processes(self, cluster: Cluster) -> None:
        assert self.ask(cluster, 3, "node2", 5, 2)[0][0] == pm.PROMISE  # type: ignore[index]
        cluster[3].stop()
        cluster[3].start_processes()
        cluster.run(0.5)
        [answer] = self.ask(cluster, 3, "node1", 4, 1)
        assert answer[4] == pm.PEER_PROMISED  # type: ignore[index]
        cluster.run(2)
        assert cluster[3].core.following.state == "idle", (
            "the old primary is older than the promise"
        )

    def test_no_promise_below_a_promise_or_an_epoch(self, cluster: Cluster) -> None:
        [answer] = self.ask(cluster, 3, "node2", 1, 1)
        assert answer[4] == pm.PEER_PROMISED  # type: ignore[index]
        assert self.ask(cluster, 3, "node2", 3, 2)[0][0] == pm.PROMISE  # type: ignore[index]
        [answer] = self.ask(cluster, 3, "node2", 2, 2)
        assert answer[4] == pm.PEER_PROMISED  # type: ignore[index]
        assert self.ask(cluster, 3, "node2", 3, 2)[0][0] == pm.PROMISE  # type: ignore[index]

    @pytest.mark.parametrize(("reign", "number"), [(2**40, 2), (2, 0), (2, 5_000), (-1, 2)])
    def test_what_no_candidate_says_is_no_promise(
        self, cluster: Cluster, reign: int, number: int
    ) -> None:
        self.ask(cluster, 3, "node2", reign, number)
        assert cluster[3].promise is None

    def test_no_promise_before_the_node_knows_itself(self, cluster: Cluster) -> None:
        cluster[3].stop()
        cluster[3].hold = {pm.WRITER_STATE}
        cluster[3].start_processes()
        [answer] = self.ask(cluster, 3, "node2", 2, 2)
        assert answer[4] == pm.PEER_BUSY  # type: ignore[index]

    def test_who_promises_follows_nobody_older_while_the_disk_is_slow(
        self, cluster: Cluster
    ) -> None:
        """Else it could ack entries to the old primary that the candidate does not hear of."""
        cluster[3].hold = {pm.KEPT}
        self.ask(cluster, 3, "node2", 2, 2)
        cluster.run(2)
        assert cluster[3].core.following.state == "idle"
        before = cluster[3].last_seq
        cluster[3].release()
        cluster.settle()
        position = cluster[1].decide()
        cluster.run(1)
        assert cluster[3].last_seq == before
        [(_, _, told)] = cluster.messages(pm.PROMISE)
        assert told[4][3] == before
        acked = [what[2] for sender, _, what in cluster.messages(pm.ACK) if sender == "node3"]
        assert position.seq not in acked

    def test_a_promise_that_the_disk_refused_is_not_given_and_binds_nobody(
        self, cluster: Cluster
    ) -> None:
        cluster[3].hold = {pm.KEPT}
        self.ask(cluster, 3, "node2", 2, 2)
        [(_, (_, ticket, _))] = cluster[3].held
        cluster[3].held.clear()
        cluster[3].hold = set()
        cluster[3].core.from_writer([pm.KEPT, ticket, b"no room"])
        cluster.run(2, lambda: cluster.is_quiet(1))
        assert cluster.messages(pm.PROMISE) == []

    def test_a_primary_that_promises_steps_down_first(self, cluster: Cluster) -> None:
        position = cluster[1].decide()
        cluster[1].hold = {pm.STEPPED_DOWN}
        assert self.ask(cluster, 1, "node2", 2, 2) == []
        assert cluster[1].promise is None
        cluster[1].release()
        cluster.settle()
        [(_, _, told)] = cluster.messages(pm.PROMISE)
        assert told[4] == list(position)
        assert not cluster.primaries

    def test_a_node_that_was_told_to_begin_steps_down_before_it_promises(
        self, cluster: Cluster
    ) -> None:
        cluster[1].stop()
        cluster.run(0.3)
        cluster[1].start_processes()
        cluster[1].hold = {pm.NODE_STATE}
        cluster.run(0.1)
        cluster[1].release()
        cluster[1].hold = {pm.NODE_STATE, pm.STEPPED_DOWN}
        cluster.run(3, lambda: cluster[1].role == pm.ROLE_PRIMARY)  # it has begun, and not said so
        assert self.ask(cluster, 1, "node2", 2, 2) == []
        assert cluster[1].promise is None
        seq = cluster[1].last_seq
        epoch = list(cluster[1].epoch)
        cluster[1].release()  # the news is late
        cluster.settle()
        [(_, _, told)] = cluster.messages(pm.PROMISE)
        assert told[4] == [*epoch, seq]
        cluster[1].core.peer_asks(b"node3", [pm.ACK, epoch, seq, seq])
        assert cluster[1].settled() == 0
        cluster.run(1)
        assert not cluster.primaries

    def test_a_candidate_that_promises_another_gives_up(self, cluster: Cluster) -> None:
        cluster.part(1, 2)
        cluster.part(2, 3)
        cluster.promote(2)
        cluster.run(0.3)
        assert cluster[2].core.promotion.running
        self.ask(cluster, 2, "node3", 3, 3)
        assert not cluster[2].core.promotion.running
        assert cluster.promoted(2)[2] != 0
        cluster.apart.clear()


def test_a_candidate_waits_for_its_own_disk(cluster: Cluster) -> None:
    cluster[2].hold = {m.DURABLE}
    cluster[1].decide()
    cluster.settle()
    cluster.promote(2)
    cluster.run(1)
    assert not cluster.primaries
    cluster[2].release()
    cluster.run(3, lambda: cluster.is_quiet(2))


def test_a_candidate_that_is_far_behind_waits_before_it_stops_the_primary(cluster: Cluster) -> None:
    cluster.loses = lambda _, receiver, what: receiver == "node2" and what[0] in (
        pm.TOPIC_ENTRY,
        pm.FETCHED,
    )
    for _ in range(1_500):
        cluster[1].decide()
    cluster.run(0.3)
    cluster.promote(2)
    cluster.run(0.5)
    assert cluster.primaries == ["node1"]
    cluster.loses = lambda *_: False
    cluster.run(3, lambda: cluster.is_quiet(2))


def test_an_entry_of_the_old_reign_is_not_acked_after_the_promise(cluster: Cluster) -> None:
    """P5: a promised node decides and acks nothing older, whatever still comes."""
    cluster.part(1, 2)
    cluster[3].core.peer_asks(b"node2", [pm.ASK_PROMISE, [1, 1, 1], 2, 2])
    cluster.settle()
    frame = fx.encode_entry(Position(1, 1, 1, cluster[3].last_seq + 1), [])
    cluster[3].core.stream_received(pm.TOPIC_ENTRY, frame)
    cluster[3].core.from_peer("node1", [pm.GO, [1, 1, 1], cluster[3].last_seq + 1, 1])
    out = cluster[3].core.take_output()
    assert out.deliver == []
    assert [what for _, what in out.to_peers if what[0] == pm.ACK] == []
    assert cluster[3].core.promise is not None
    assert Epoch(1, 1, 1)[:2] < cluster[3].core.promise


class TestStalePromises:
    """A candidate asked for promises and is never heard of again."""

    def ask(self, cluster: Cluster, index: int, reign: int) -> None:
        ask = [pm.ASK_PROMISE, [1, 1, 1], reign, cluster[2].number]
        cluster[index].core.peer_asks(b"node2", ask)
        cluster.settle()

    def test_the_primary_begins_a_reign_above_a_promise_that_binds_a_replica(
        self, cluster: Cluster
    ) -> None:
        self.ask(cluster, 3, 5)
        cluster[1].decide()
        cluster.run(5)
        assert cluster[3].core.following.state == "idle"
        assert cluster.primaries == ["node1"]
        cluster.run(10, lambda: cluster.is_quiet(1))
        assert cluster[1].epoch[:2] == (6, 1)
        assert [node.restarts for node in cluster.nodes.values()] == [[], [], []]

    def test_a_primary_that_promised_begins_again_when_nobody_else_does(
        self, cluster: Cluster
    ) -> None:
        self.ask(cluster, 1, 5)
        cluster.run(5)
        assert not cluster.primaries
        cluster.run(10, lambda: cluster.is_quiet(1))
        assert cluster[1].epoch[:2] == (6, 1)

    def test_an_operator_need_not_wait(self, cluster: Cluster) -> None:
        self.ask(cluster, 3, 5)
        cluster.run(0.5)
        cluster.promote(1)
        cluster.run(1, lambda: cluster.promoted(1))
        assert cluster.promoted(1)[2] == 0
        cluster.run(1, lambda: cluster.is_quiet(1))

    def test_nothing_is_begun_without_a_majority(self, cluster: Cluster) -> None:
        self.ask(cluster, 1, 5)
        cluster[2].stop()
        cluster[3].stop()
        cluster.run(30)
        assert cluster[1].promise == (5, cluster[2].number)
        cluster[3].start_processes()
        cluster.run(20, lambda: cluster.is_quiet(1))

    def test_an_old_primary_does_not_get_in_the_way_of_the_new_one(self, cluster: Cluster) -> None:
        """It gave its promise, and sees a member that follows the new primary, but not that one."""
        cluster.promote(2)
        cluster.run(3, lambda: cluster.is_quiet(2))
        cluster.part(1, 2)
        cluster.run(30)
        assert cluster.primaries == ["node2"]
        assert cluster[1].promise == cluster[2].epoch[:2]


def test_a_second_candidate_is_told_no_sooner_than_all_is_durable(cluster: Cluster) -> None:
    cluster[1].hold = {m.DURABLE, pm.STEPPED_DOWN}
    position = cluster[1].decide()
    cluster.settle()
    for name, number, reign in ((b"node2", cluster[2].number, 2), (b"node3", cluster[3].number, 3)):
        cluster[1].core.peer_asks(name, [pm.ASK_PROMISE, [1, 1, 1], reign, number])
        cluster.settle()
    assert cluster.messages(pm.PROMISE) == []
    cluster[1].release()
    cluster.settle()
    [(_, receiver, told)] = cluster.messages(pm.PROMISE)
    assert receiver == "node3"
    assert told[4] == list(position)
