"""Replicator cores of a few nodes, in memory: joining, the stream and what it loses, promises, changes of primary."""

from __future__ import annotations

from typing import Any

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.core import effects as fx
from nun.position import Epoch, Position
from tests.support.replicators import Cluster, FakeNode, plain

OTHERS = (2, 3)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster().form()


def stream_of(cluster: Cluster, topic: bytes) -> list[tuple[str, str, Any]]:
    return [item for item in cluster.sent if item[2][0] == topic]


class TestJoining:
    def test_empty_directories_form_one_cluster(self, cluster: Cluster) -> None:
        assert len({node.cluster_id for node in cluster.nodes.values()}) == 1
        assert [cluster[i].number for i in (1, *OTHERS)] in ([1, 2, 3], [1, 3, 2])

    def test_a_node_that_is_not_the_configured_primary_forms_nothing(self) -> None:
        cluster = Cluster()
        cluster[1].stop()
        cluster.run(5)
        assert not cluster.primaries
        assert [cluster[i].number for i in OTHERS] == [0, 0]

    def test_an_answer_to_an_earlier_life_makes_nobody_a_member(self, cluster: Cluster) -> None:
        node = cluster[2]
        number, cluster_id = node.number, node.cluster_id
        node.stop()
        node.hold = {pm.WRITER_STATE}
        node.start_processes()
        joined = [pm.JOINED, cluster[1].epoch, cluster_id, number, node.directory]
        node.core.from_peer("node1", plain(joined))
        node.release()
        assert all(message[0] != pm.BECOME for message in node.core.out.to_writer)
        cluster.run(5, lambda: cluster.is_quiet(1))
        assert node.number == number

    def test_the_number_of_a_directory_that_is_gone_is_not_for_the_one_in_its_place(
        self, cluster: Cluster
    ) -> None:
        """Neither where the answer comes late nor where it is given late."""
        node, primary = cluster[2], cluster[1]
        gone = b"g" * 16
        node.core.coordinator.member = False
        node.core.coordinator.decide()  # it asks
        node.core.from_peer(
            "node1", plain([pm.JOINED, primary.epoch, node.cluster_id, node.number + 7, gone])
        )
        assert not node.core.coordinator.member
        assert all(message[0] != pm.BECOME for message in node.core.out.to_writer)
        for directory in (gone, node.directory):
            asked = [pm.JOIN, None, "node2", directory, node.start, 0]
            primary.core.peer_asks(b"node2", plain(asked))
        primary.core.from_network(plain([pm.ADMITTED, "node2", gone, node.number + 7]))
        primary.core.from_network(plain([pm.ADMITTED, "node2", node.directory, node.number]))
        answers = [answer for _, answer in primary.core.out.answers if answer[0] == pm.JOINED]
        assert [answer[3:] for answer in answers] == [(node.number, node.directory)]

    def test_an_old_primary_asks_the_others_first_and_rules_on_in_the_same_reign(
        self, cluster: Cluster
    ) -> None:
        cluster[1].decide()
        cluster.settle()
        cluster[1].stop()
        cluster.run(0.5)
        cluster[1].start_processes()
        assert not cluster.primaries
        cluster.run(5, lambda: cluster.is_quiet(1))
        assert cluster[1].epoch == Epoch(1, 1, 2)

    def test_an_old_primary_that_nobody_answers_waits_before_it_rules_on(
        self, cluster: Cluster
    ) -> None:
        for node in cluster.nodes.values():
            node.stop()
        cluster[1].start_processes()
        cluster.run(0.9)
        assert not cluster.primaries
        cluster.run(0.5, lambda: cluster.primaries == ["node1"])

    @pytest.mark.parametrize("heard", ["epoch", "promise"])
    def test_an_old_primary_that_hears_of_a_higher_reign_does_not_rule_on(
        self, cluster: Cluster, heard: str
    ) -> None:
        cluster[1].stop()
        cluster.promote(2)
        if heard == "epoch":
            cluster.run(5, lambda: cluster.promoted(2))
            cluster[2].stop()
        else:
            cluster[2].stop()
            cluster[3].promise = (2, 2)
            cluster[3].start_processes()
        cluster[1].start_processes()
        cluster.run(5)
        assert not cluster.primaries

    def test_a_wiped_directory_gets_a_number_that_nobody_had(self, cluster: Cluster) -> None:
        node = cluster[3]
        old = node.number
        node.stop()
        node.wipe()
        node.start_processes()
        cluster.run(5, lambda: cluster.is_quiet(1))
        assert node.number > 3
        assert old not in cluster[1].members

    def test_a_node_of_another_cluster_is_not_listened_to(self, cluster: Cluster) -> None:
        stranger = cluster[3]
        stranger.stop()
        stranger.cluster_id = b"another cluster!"
        stranger.start_processes()
        position = cluster[1].decide()
        cluster.run(3)
        assert stranger.last_seq < position.seq
        assert stranger.core.following.state == "idle"
        [seen] = [row for row in cluster[1].core.view.describe() if row["name"] == "node3"]
        assert "cluster" in seen["problem"]

    def test_another_version_of_the_protocol_is_refused_by_name(self, cluster: Cluster) -> None:
        core = cluster[1].core
        greet = [pm.GREET, None, 1, 99, b"", b"node2", 0, b"", 1, {}]
        core.peer_asks(b"node2", greet)
        [(_, answer)] = core.take_output().answers
        assert answer[:5] == (pm.PEER_REFUSED, core.epoch, pm.GREET, 0, pm.PEER_WRONG_PROTOCOL)
        assert "99" in answer[5]


class TestStream:
    def test_nobody_says_where_it_stands_before_the_marker(self) -> None:
        cluster = Cluster()
        cluster.loses = lambda _, __, what: what[0][:1] == b"~" if type(what[0]) is bytes else False
        cluster.run(6)
        assert cluster.messages(pm.ACK) == []
        assert cluster.messages(pm.STAND) == []
        assert cluster[2].core.following.state == "connecting"
        cluster.loses = lambda *_: False  # it was lost once: it is asked for again
        cluster.run(5, lambda: cluster.is_quiet(1))

    def test_the_marker_is_the_last_subscription(self, cluster: Cluster) -> None:
        for node in map(cluster.__getitem__, OTHERS):
            assert node.topics[:2] == [pm.TOPIC_BEAT, pm.TOPIC_ENTRY]
            assert node.topics[-1].startswith(pm.TOPIC_MARKER)
            assert node.topics == sorted(node.topics)

    def test_what_is_decided_while_a_warm_replica_subscribes_anew_is_not_lost(
        self, cluster: Cluster
    ) -> None:
        cluster.part(1, 3)
        cluster[1].decide()
        cluster.settle()
        cluster.apart.clear()
        decided: list[Position] = []

        def decide(_: str, receiver: str, what: Any) -> bool:
            if receiver == "node1" and what[0] in ("subscribe", pm.STAND, pm.FETCH):
                decided.append(cluster[1].decide())
            return False

        cluster.loses = decide
        cluster.heal()
        cluster.loses = lambda *_: False
        assert len(decided) >= 4
        cluster.run(1, lambda: cluster.is_quiet(1))
        assert [position for position, _ in cluster[3].log] == [
            position for position, _ in cluster[1].log
        ]

    def test_a_hole_is_fetched_and_what_came_after_it_is_kept(self, cluster: Cluster) -> None:
        first = cluster[1].decide()
        cluster.loses = lambda _, receiver, what: (
            receiver == "node3" and what[0] == pm.TOPIC_ENTRY
        )
        cluster.settle()
        cluster.loses = lambda *_: False
        cluster[1].decide()
        cluster[1].decide()
        cluster.settle()
        assert cluster[3].last_seq == first.seq + 2
        assert len(cluster.messages(pm.FETCH)) >= 1
        assert cluster[3].core.following._held == {}

    def test_a_lost_tail_shows_within_a_beat(self, cluster: Cluster) -> None:
        cluster.loses = lambda _, __, what: what[0] in (pm.TOPIC_ENTRY, pm.TOPIC_BEAT)
        position = cluster[1].decide()
        cluster.settle()
        assert cluster[3].last_seq < position.seq
        cluster.loses = lambda *_: False
        cluster.run(0.12)
        assert cluster[3].last_seq == position.seq

    def test_entries_that_the_replicator_itself_missed_are_fetched(self, cluster: Cluster) -> None:
        cluster[1].decide(lost=True)
        position = cluster[1].decide()
        cluster.run(0.2)
        assert cluster[3].last_seq == position.seq

    def test_a_lost_fetch_is_made_again(self, cluster: Cluster) -> None:
        cluster.loses = lambda _, __, what: what[0] in (pm.TOPIC_ENTRY, pm.FETCH)
        position = cluster[1].decide()
        cluster.run(0.3)
        cluster.loses = lambda *_: False
        cluster.run(1)
        assert cluster[2].last_seq == position.seq

    @pytest.mark.parametrize("topic", [pm.TOPIC_BEAT, pm.TOPIC_ENTRY])
    def test_an_older_epoch_is_ignored(self, cluster: Cluster, topic: bytes) -> None:
        cluster.promote(2)
        cluster.run(3, lambda: cluster.is_quiet(2))
        replica = cluster[3]
        seq = replica.last_seq + 1
        frame = (
            fx.encode_entry(Position(1, 1, 1, seq), [(fx.SEEN, b"c", 1)])
            if topic == pm.TOPIC_ENTRY
            else fx.encode_peer_beat(Epoch(1, 1, 1), seq + 7, seq + 7, seq + 7)
        )
        replica.core.stream_received(topic, frame)
        out = replica.core.take_output()
        assert (out.deliver, out.to_peers, out.to_network) == ([], [], [])
        assert replica.core.following.state == "live"

    def test_a_newer_epoch_makes_a_replica_ask_where_it_stands(self, cluster: Cluster) -> None:
        replica = cluster[3].core
        newer = fx.encode_peer_beat(Epoch(1, 1, 2), 99, 99, 99)
        replica.stream_received(pm.TOPIC_BEAT, newer)
        assert replica.following.state == "standing"
        replica.stream_received(pm.TOPIC_ENTRY, fx.encode_entry(Position(1, 1, 2, 4), []))
        assert replica.take_output().deliver == []

    def test_every_marker_begins_at_stand_again(self, cluster: Cluster) -> None:
        before = len(cluster.messages(pm.STAND))
        cluster.heal()
        assert len(cluster.messages(pm.STAND)) == before + 2
        cluster.run(0.3)
        assert cluster.is_quiet(1)

    def test_a_slow_disk_bounds_what_is_fetched(self) -> None:
        cluster = Cluster(window_bytes=2_000, fetch_bytes=500).form()
        replica = cluster[3]
        replica.hold = {m.DURABLE}
        big = (fx.SEEN, b"c" * 100, 1)
        cluster.loses = lambda _, receiver, what: (
            receiver == "node3" and what[0] == pm.TOPIC_ENTRY
        )
        for _ in range(200):
            cluster[1].decide(big)
        cluster.run(3)
        cluster.loses = lambda *_: False
        following = replica.core.following
        assert 2_000 <= following._kept_bytes <= 2_500
        for _ in range(200):
            cluster[1].decide(big)
        cluster.run(1)
        assert following._kept_bytes <= 2_500
        assert following._held_bytes <= 2_200
        replica.release()
        cluster.run(5, lambda: cluster.is_quiet(1))

    def test_the_storage_writer_gets_again_what_it_missed(self, cluster: Cluster) -> None:
        replica = cluster[3]
        replica.hold = {m.DURABLE}
        position = cluster[1].decide()
        cluster.settle()
        replica.core.from_writer([m.GAP, position.seq])
        assert replica.core.take_output().to_writer == [(m.ENTRIES, [cluster[1].log[-1][1]])]


class TestDisks:
    def test_settled_is_what_a_majority_has(self, cluster: Cluster) -> None:
        for index in OTHERS:
            cluster[index].hold = {m.DURABLE}
        position = cluster[1].decide()
        cluster.run(0.3)
        assert cluster[1].settled() == position.seq - 1
        cluster[2].release()
        cluster.settle()
        assert cluster[1].settled() == position.seq
        assert [pm.ACKED, position.seq, [position.seq, position.seq - 1], 2] in cluster[1].told

    def test_settled_is_not_what_replicas_have_and_the_primary_has_not(
        self, cluster: Cluster
    ) -> None:
        cluster[1].hold = {m.DURABLE}
        position = cluster[1].decide()
        cluster.run(0.3)
        assert cluster[2].last_seq == position.seq
        assert cluster[1].settled() == position.seq - 1

    def test_an_ack_of_another_epoch_or_of_no_member_does_not_count(self, cluster: Cluster) -> None:
        for index in OTHERS:
            cluster[index].stop()
        position = cluster[1].decide()
        core = cluster[1].core
        seq = position.seq
        for who, epoch in (
            (b"node2", [1, 1, 0]),
            (b"node2", [1, 2, 1]),
            (b"node2", [2, 1, 1]),
            (b"node9", [1, 1, 1]),
            (b"node1", [1, 1, 1]),
        ):
            core.peer_asks(who, [pm.ACK, epoch, seq, seq])
        assert cluster[1].settled() == seq - 1
        core.peer_asks(b"node2", [pm.ACK, [1, 1, 1], seq, seq])
        assert cluster[1].settled() == seq

    def test_nothing_is_settled_in_a_reign_below_a_promise(self, cluster: Cluster) -> None:
        for index in OTHERS:
            cluster[index].stop()
        seq = cluster[1].decide().seq
        cluster[1].core.wished = (2, 2)
        cluster[1].core.peer_asks(b"node2", [pm.ACK, [1, 1, 1], seq, seq])
        assert cluster[1].settled() == seq - 1

    def test_settled_begins_with_the_epoch(self, cluster: Cluster) -> None:
        cluster[1].stop()
        cluster[3].hold = {m.DURABLE}
        cluster.promote(2)
        cluster.run(5, lambda: cluster.primaries == ["node2"])
        assert cluster[2].settled() == 0, "what an older epoch left may still be cut"
        cluster[3].release()
        cluster.run(1, lambda: cluster[2].settled() == cluster[2].last_seq)

    def test_no_ack_before_go(self, cluster: Cluster) -> None:
        cluster.loses = lambda _, __, what: what[0] == pm.GO
        cluster.heal()  # a marker comes: where this node stands is to be confirmed anew
        cluster.sent.clear()
        cluster.run(2)
        assert cluster.messages(pm.STAND)
        assert cluster.messages(pm.ACK) == []
        cluster.loses = lambda *_: False
        cluster.run(2, lambda: cluster.is_quiet(1))


class TestOldHistory:
    def diverge(self, cluster: Cluster) -> tuple[int, int]:
        """The primary is cut off and goes on alone; node2 takes over. Returns the common and the lost seq."""
        common = cluster[1].last_seq
        cluster.part(1, 2)
        cluster.part(1, 3)
        lost = cluster[1].decide().seq
        cluster.run(1.5)
        assert cluster[1].settled() == common
        cluster.promote(2)
        cluster.run(5, lambda: cluster.promoted(2))
        assert cluster.promoted(2)[2] == 0
        return common, lost

    def test_a_primary_that_was_cut_off_steps_down_and_is_cut_back(self, cluster: Cluster) -> None:
        common, lost = self.diverge(cluster)
        old = cluster[1].log[lost - 1]
        cluster.heal()
        cluster.run(5, lambda: cluster.is_quiet(2))
        assert [why for why in cluster[1].restarts if "cut back" in why]
        assert old not in cluster[1].log
        assert [cut for cut in cluster[1].kept if cut[0] == pm.CUT] == []  # of this start
        assert cluster[1].log == cluster[2].log
        assert cluster[1].log[common - 1] == cluster[2].log[common - 1]

    def test_files_that_hold_what_is_to_be_cut_are_replaced(self, cluster: Cluster) -> None:
        _, lost = self.diverge(cluster)
        cluster[1].files_seq = lost
        cluster[1].stop()
        cluster[1].start_processes()
        cluster.heal()
        cluster.run(3, lambda: cluster[1].core.following.state == "filling")
        assert cluster.messages(pm.COPY_ASK)

    def test_a_replica_that_only_lost_nothing_is_not_started_anew(self, cluster: Cluster) -> None:
        cluster.promote(2)
        cluster.run(3, lambda: cluster.is_quiet(2))
        assert [node.restarts for node in cluster.nodes.values()] == [[], [], []]


class TestCopies:
    """What had come of a copy when the node died; and whether it goes on, or with another."""

    FILES = ((b"nun.state", 32),)

    def offer(self, cluster: Cluster, node: int, source: int, copy_id: bytes) -> None:
        files = [
            pm.COPY_FILES,
            cluster[source].epoch,
            copy_id,
            cluster[node].cluster_id,
            self.FILES,
        ]
        cluster[node].core.from_peer(f"node{source}", plain(files))
        cluster.settle()

    def kinds(self, node: FakeNode) -> list[int]:
        kinds = (pm.COPY_BEGIN, pm.COPY_DATA, pm.COPY_END, pm.COPY_DROP)
        return [message[0] for message in node.kept if message[0] in kinds]

    def needy(self, cluster: Cluster) -> FakeNode:
        """Node1, whose files hold what node2 cannot let it cut: it has said so."""
        node = cluster[1]
        cluster.part(1, 2)
        cluster.part(1, 3)
        node.files_seq = node.decide().seq
        cluster.run(1.5)
        cluster.promote(2)
        cluster.run(5, lambda: cluster.promoted(2))
        node.stop()
        node.start_processes()
        cluster.heal()
        cluster.run(3, lambda: node.core.following.state == "filling")
        return node

    @pytest.fixture
    def node(self, cluster: Cluster) -> FakeNode:
        """It has a part of a copy, and asks for the rest."""
        node = cluster[2]
        node.stop()
        node.copy = (b"begun", {"nun.state": 8})
        node.hold = {pm.NODE_STATE}
        node.start_processes()
        cluster.run(3, lambda: node.core.filling.source is not None)
        node.hold = set()
        return node

    def test_a_copy_that_is_held_still_goes_on_where_it_ended(
        self, cluster: Cluster, node: FakeNode
    ) -> None:
        self.offer(cluster, 2, 1, b"begun")
        [(_, _, message)] = cluster.messages(pm.COPY_READ)
        assert message[2:5] == [b"begun", b"nun.state", 8]
        assert self.kinds(node) == []

    def test_another_copy_is_not_taken_before_a_primary_has_said_that_it_is_needed(
        self, cluster: Cluster, node: FakeNode
    ) -> None:
        """Its files may end long before this node's log."""
        before = list(node.log)
        self.offer(cluster, 2, 1, b"another")
        assert [why for why in node.restarts if "copy" in why]
        cluster.run(5, lambda: cluster.is_quiet(1))
        assert node.log[: len(before)] == before
        assert cluster.messages(pm.COPY_READ) == []

    def test_a_primary_that_came_meanwhile_has_not_said_that_it_is_needed(
        self, cluster: Cluster
    ) -> None:
        node = self.needy(cluster)
        cluster.run(3, lambda: cluster[3].core.following.state == "live")
        cluster.promote(3)
        cluster.run(15, lambda: cluster.promoted(3))
        cluster.run(3, lambda: node.core.filling.source.name == "node3")
        self.offer(cluster, 1, 3, b"of node3")
        assert [why for why in node.restarts if "copy" in why]

    def test_who_says_that_a_copy_is_needed_may_give_it(self, cluster: Cluster) -> None:
        node = self.needy(cluster)
        self.offer(cluster, 1, 2, b"of node2")
        assert self.kinds(node) == [pm.COPY_BEGIN]


class TestAReplicatorThatIsStartedAlone:
    """Its network process has adopted an entry that the disk does not have, and the primary is gone."""

    @pytest.fixture
    def position(self, cluster: Cluster) -> Position:
        node = cluster[2]
        cluster.loses = lambda _, receiver, what: receiver == "node3" and what[0] in (
            pm.TOPIC_ENTRY,
            pm.TOPIC_BEAT,
        )
        node.writer_misses = True
        position = cluster[1].decide()
        cluster.settle()
        cluster[1].stop()
        assert (node.last, node.last_seq) == (position, position.seq - 1)
        node.start_replicator()
        return position

    def test_the_disk_gets_it_from_the_network_process(
        self, cluster: Cluster, position: Position
    ) -> None:
        node = cluster[2]
        node.hold = {m.DURABLE}
        cluster.run(0.1)
        assert node.core.last_seq == node.core.durable_seq == position.seq - 1
        node.release()
        assert node.core.last == position
        cluster.promote(2)
        cluster.run(5, lambda: cluster.promoted(2))
        assert cluster.promoted(2)[2] == 0
        assert node.log[position.seq - 1][0] == position

    def test_the_disk_is_told_again_until_it_has_it(
        self, cluster: Cluster, position: Position
    ) -> None:
        node = cluster[2]
        handed, node.handed = node.handed, []
        cluster.run(1)
        assert node.core.durable_seq < position.seq
        node.handed = handed
        cluster.run(1)
        assert node.core.durable_seq == position.seq
        cluster.settle()
        node.kept.clear()
        cluster.run(2)
        assert [message for message in node.kept if message[0] == m.ENTRIES] == []

    def test_where_it_is_of_an_epoch_of_its_own_the_network_process_is_asked(
        self, cluster: Cluster, position: Position
    ) -> None:
        node = cluster[2]
        later = Position(3, 3, 1, position.seq + 1)
        node.hold = {m.DURABLE}
        cluster.run(0.1)
        frame = fx.encode_entry(later, [(fx.EPOCH, node.cluster_id, node.members, 9)])
        node._apply(later, frame)
        node.write([frame])
        node.release()
        cluster.settle()
        assert node.core.last == later
        assert node.core.epoch == later.epoch
