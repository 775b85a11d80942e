"""Whatever other nodes send, a replicator core raises nothing, and hands on only what has the expected shape (P8)."""

from __future__ import annotations

import random
from typing import Any

from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.position import Epoch, Position
from tests.support.fuzzing import Fuzz
from tests.support.node import seeded
from tests.support.replicators import Cluster

MESSAGES = 30_000
STATE = {
    b"role": 1, b"last": [1, 1, 1, 3], b"durable": 3, b"settled": 3, b"promise": None, b"publish": b"p",
    b"client": b"c", b"gateway": b"", b"version": b"v", b"primary": None,
}  # fmt: skip
ABOUT = [pm.PEER_PROTOCOL_VERSION, b"", b"node2", 2, b"d" * 16, 1, STATE]
EPOCH = [1, 1, 1]
QUESTIONS: list[list[Any]] = [
    [pm.GREET, EPOCH, 5, *ABOUT],
    [pm.JOIN, EPOCH, b"node2", b"d" * 16, 1, 2],
    [pm.STAND, EPOCH, [1, 1, 1, 3], [[1, 1, 1, 1]], 0],
    [pm.ACK, EPOCH, 3, 3],
    [pm.FETCH, EPOCH, 1, 1000],
    [pm.FORWARD, EPOCH, [[7, b"body"]]],
    [pm.ASK_PROMISE, EPOCH, 1, 1],
    [pm.HAND_OVER, EPOCH, 7, False],
    [pm.COPY_ASK, EPOCH],
    [pm.COPY_READ, EPOCH, b"c" * 16, b"file", 0, 100],
]
ANSWERS: list[list[Any]] = [
    [pm.GREETED, EPOCH, 5, 6, 7, *ABOUT],
    [pm.GO, EPOCH, 4, 1],
    [pm.COPY_FIRST, EPOCH],
    [pm.FETCHED, EPOCH, 4, [], 3],
    [pm.DECIDED, EPOCH, [[7, b"frame"]]],
    [pm.PROMISE, EPOCH, 2, 2, [1, 1, 1, 3], [[1, 1, 1, 1]]],
    [pm.JOINED, EPOCH, b"c" * 16, 2, b"d" * 16],
    [pm.HANDED_OVER, EPOCH, 7, 0, b"", {}],
    [pm.COPY_FILES, EPOCH, b"c" * 16, b"c" * 16, [[b"file", 100]]],
    [pm.COPY_PART, EPOCH, b"c" * 16, b"file", 0, b"data"],
    [pm.PEER_REFUSED, EPOCH, pm.STAND, 0, pm.PEER_BUSY, b"why"],
]


class PeerFuzz(Fuzz):
    """Messages of other nodes with something wrong in them."""

    def __init__(self, source: random.Random, templates: list[list[Any]]) -> None:
        super().__init__(source)
        self.templates = templates

    def pick(self) -> list[Any]:
        return list(self.random.choice(self.templates))


def check(message: tuple[Any, ...]) -> None:
    """What the network process takes for granted of the replicator's messages."""
    match unpack(pack(message)):
        case [pm.PROPOSALS, proposals]:
            assert all(
                isinstance(origin, int) and isinstance(ticket, int) and isinstance(body, bytes)
                for origin, ticket, body in proposals
            )
        case [pm.PROPOSED, replies]:
            assert all(
                isinstance(ticket, int) and isinstance(frame, bytes) for ticket, frame in replies
            )
        case [pm.PROMOTED, ticket, status, text, fields]:
            assert isinstance(ticket, int)
            assert isinstance(status, int)
            assert isinstance(text, bytes)
            assert isinstance(fields, dict)
        case [pm.ADMIT, name, directory, start, number]:
            assert isinstance(name, bytes)
            assert len(directory) == 16
            assert start in range(2**32)
            assert number in range(1_024)


def test_no_message_of_another_node_makes_the_core_raise() -> None:
    source = seeded("peer fuzz")
    questions, answers = PeerFuzz(source, QUESTIONS), PeerFuzz(source, ANSWERS)
    cluster = Cluster()
    for count in range(MESSAGES):
        if count % 500 == 0:
            cluster = Cluster().form()
        node = cluster[1 + source.randrange(3)]
        core = node.core
        body = (questions if count % 2 else answers).message(EPOCH)
        try:
            message = unpack(body)
        except Exception:
            continue  # the shell drops it
        if not isinstance(message, list) or not message:
            message = [message]
        if count % 2:
            core.peer_asks(
                source.choice([b"node1", b"node2", b"node3", b"node9", b"\xff"]), message
            )
        else:
            core.from_peer(source.choice(["node1", "node2", "node3", "node9"]), message)
        out = core.take_output()
        for told in out.to_network:
            check(told)
        pack(
            [
                out.to_network,
                out.to_writer,
                [what for _, what in out.to_peers],
                [what for _, what in out.answers],
            ]
        )
        pack(core.view.describe())
        if count % 10 == 0:
            cluster.now_ns += 20_000_000
            core.ticked(cluster.now_ns, cluster.unix_us(node))
            core.take_output()


def test_no_frame_of_a_stream_makes_the_core_raise() -> None:
    source = seeded("stream fuzz")
    cluster = Cluster().form()
    core = cluster[3].core
    good = [
        (pm.TOPIC_BEAT, fx.encode_peer_beat(Epoch(1, 1, 1), 3, 3, 3)),
        (pm.TOPIC_ENTRY, fx.encode_entry(Position(1, 1, 1, 3), [])),
        (core.following._marker, fx.encode_marker(Epoch(1, 1, 1), 3)),
    ]
    fuzz = Fuzz(source)
    before = core.malformed
    for _ in range(5_000):
        topic, frame = source.choice(good)
        if source.random() < 0.5:
            frame = bytes(byte ^ (source.random() < 0.1) for byte in frame)
        else:
            frame = pack(fuzz.value())
        if source.random() < 0.1:
            topic = source.randbytes(3)
        core.stream_received(topic, frame)
        core.take_output()
    assert core.malformed > before


def test_an_older_entry_on_top_of_a_newer_is_none() -> None:
    """A part of a log that cannot be: epochs only go up."""
    cluster = Cluster().form()
    core = cluster[3].core
    core.following._enter("an entry is missing")
    core.following._catch_up()
    seq = cluster[3].last_seq + 1
    core.take_output()
    frame = fx.encode_entry(Position(1, 0, 1, seq), [])
    core.from_peer("node1", [pm.FETCHED, EPOCH, seq, [frame], seq])
    assert core.take_output().deliver == []
