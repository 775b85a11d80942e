"""Large values that do not travel back to where they came from."""

from __future__ import annotations

import itertools
import random

import pytest

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack
from nun.core import effects as fx
from nun.core.proposals.outbox import Item, Operation, encode_item
from nun.core.replication.echoes import KEPT_NS, Echoes, topics_of
from nun.core.replication.replicator import Output
from nun.core.settings import ReplicatorSettings
from nun.errors import WireError
from nun.limits import ECHO_BYTES_MAX
from nun.position import NOTHING, Position

ABOVE = 100
POSITION = Position(1, 1, 1, 9)


class Core:
    """As much of a replicator as its echoes see."""

    def __init__(self) -> None:
        self.settings = ReplicatorSettings("node1", "node1", {}, "", "", echo_above=ABOVE)
        self.now_ns = 0
        self.out = Output()


def echoes() -> tuple[Echoes, Core]:
    core = Core()
    return Echoes(core), core  # type: ignore[arg-type]


def proposal(*values: bytes) -> bytes:
    """The body of a proposal: a batch of sets."""
    payload = pack([[b"k%d" % i for i in range(len(values))], list(values)])
    return pack(([m.SET_MANY, 1, 2, 0, 1, payload], None, b"me", 1, False, True, None, 77))


def entry(*values: bytes) -> bytes:
    effects = [(fx.PUT, 1, i, 1, 0, b"k", value) for i, value in enumerate(values)]
    return fx.encode_entry(POSITION, pack(effects))


def sent(core: Core) -> dict[bytes, bytes]:
    found = {topic[:1]: frame for topic, frame in core.out.publish}
    core.out.publish.clear()
    return found


def test_everybody_gets_each_entry_once_and_its_origin_the_echo() -> None:
    for number in (1, 2, 5, 1_000, 65_535):
        topics = topics_of(number)
        for origin in {1, 2, 3, 5, 7, 999, 1_000, 1_001, 65_534, 65_535}:
            spelled = f"{origin:016b}".encode()
            whole = pm.TOPIC_OF_OTHERS + spelled
            echo = pm.TOPIC_ECHO + spelled
            assert sum(map(whole.startswith, topics)) == (origin != number)
            assert sum(map(echo.startswith, topics)) == (origin == number)


def test_an_entry_is_put_together_from_what_its_origin_proposed() -> None:
    primary, core = echoes()
    origin, _ = echoes()
    values = [bytes([65 + i]) * (ABOVE + i) for i in range(5)]
    for ticket, body in ((7, proposal(*values[:3], b"small")), (8, proposal(*values[3:]))):
        primary.note(2, ticket, body)
        origin.keep(ticket, body)
    frame = entry(*values, b"small")
    primary.publish(POSITION, frame)
    topics = [topic for topic, _ in core.out.publish]
    assert topics == [b"d0000000000000010", b"e0000000000000010"]
    found = sent(core)
    assert found[b"d"] == frame
    assert len(found[b"e"]) < len(frame) - sum(map(len, values)) + 100
    assert primary.saved_bytes == len(frame) - len(found[b"e"]) > 0
    assert origin.rebuild(found[b"e"]) == (POSITION, frame)
    primary.publish(POSITION, frame)
    assert sent(core) == {pm.TOPIC_ENTRY: frame}, "each proposal is decided once"


def test_an_item_of_an_outbox_is_looked_into() -> None:
    primary, core = echoes()
    origin, _ = echoes()
    value = b"v" * 500
    operation = Operation(m.SET, b"k", value, 0, 9)
    item = encode_item(Item(b"me", 1, 0, b"d", m.SET, False, [operation], 0, 0, NOTHING))
    body = pack((0, 1, 3, NOTHING, item))
    primary.note(2, 9, body)
    origin.keep(9, body)
    primary.publish(POSITION, entry(value))
    echo = sent(core)[b"e"]
    assert len(echo) < 200
    assert origin.rebuild(echo) == (POSITION, entry(value))


@pytest.mark.parametrize("kept", [None, proposal(b"w" * 300), proposal(b"v")])
def test_an_echo_that_cannot_be_put_together_is_no_entry(kept: bytes | None) -> None:
    primary, core = echoes()
    origin, _ = echoes()
    primary.note(2, 9, proposal(b"v" * 300))
    if kept is not None:
        origin.keep(9, kept)
    primary.publish(POSITION, entry(b"v" * 300))
    assert origin.rebuild(sent(core)[b"e"]) == (POSITION, None)
    assert (origin.rebuilt, origin.failed) == (0, 1)


def test_an_entry_with_values_of_two_origins_echoes_those_of_one() -> None:
    primary, core = echoes()
    ours, theirs = b"v" * 300, b"w" * 300
    primary.note(2, 1, proposal(ours))
    primary.note(3, 1, proposal(theirs))
    primary.publish(POSITION, entry(ours, theirs))
    assert [topic for topic, _ in core.out.publish] == [
        b"d0000000000000010",
        b"e0000000000000010",
    ]
    assert theirs in sent(core)[b"e"]


def test_small_values_and_small_entries_go_as_they_are() -> None:
    primary, core = echoes()
    primary.note(2, 1, proposal(*[b"v" * (ABOVE - 1)] * 5))
    frame = entry(*[b"v" * (ABOVE - 1)] * 5)
    primary.publish(POSITION, frame)
    assert sent(core) == {pm.TOPIC_ENTRY: frame}


def test_what_is_kept_is_bounded_in_bytes_and_time() -> None:
    primary, core = echoes()
    origin, its_core = echoes()
    value = bytes(ECHO_BYTES_MAX // 4)
    for ticket in range(10):
        primary.note(2, ticket, proposal(value))
        origin.keep(ticket, proposal(value))
    assert primary._noted_bytes <= ECHO_BYTES_MAX
    assert origin._kept_bytes <= ECHO_BYTES_MAX
    assert len(primary._noted) == 4
    core.now_ns = its_core.now_ns = KEPT_NS + 1
    primary.tick()
    origin.tick()
    assert (len(primary._noted), primary._noted_bytes) == (0, 0)
    assert (len(origin._kept), origin._kept_bytes) == (0, 0)


@pytest.mark.parametrize("bad", [b"", b"\xc1", pack([6, 1, 1, 1, 1, 2]), pack([6, 1, 1, 1, -1, 2, []]),
                                 pack([6, 1, 1, 1, 1, 2, [5]]), pack([6, 1, 1, 1, 1, 2, [[1, -1, 5]]])])  # fmt: skip
def test_what_is_no_echo_is_refused(bad: bytes) -> None:
    origin, _ = echoes()
    with pytest.raises((WireError, ValueError)):
        origin.rebuild(bad)


def test_whatever_was_proposed_what_comes_out_is_what_went_in() -> None:
    """Random proposals of three members, decided in any order, some never, some twice."""
    rng = random.Random(20_26)
    primary, core = echoes()
    origins = {number: echoes()[0] for number in (2, 3, 4)}
    tickets = itertools.count(1)
    waiting: list[bytes] = []
    ticket = 0
    for _ in range(300):
        for each in origins:
            primary.decided(each, set(range(ticket - 4)))
        number = rng.choice(list(origins))
        values = [rng.choice([b"a", b"b", bytes([rng.randrange(256)])]) * rng.randrange(1, 400)
                  for _ in range(rng.randrange(1, 5))]  # fmt: skip
        ticket, body = next(tickets), proposal(*values)
        primary.note(number, ticket, body)
        origins[number].keep(ticket, body)
        waiting += values
        if rng.random() < 0.3:
            rng.shuffle(waiting)
        if rng.random() < 0.5:
            frame = entry(*waiting[: rng.randrange(6)])
            del waiting[: rng.randrange(6)]
            primary.publish(POSITION, frame)
            for topic, got in core.out.publish:
                if topic.startswith(pm.TOPIC_ECHO):
                    rebuilt = origins[int(topic[1:], 2)].rebuild(got)
                    assert rebuilt == (POSITION, frame)
                else:
                    assert got == frame
            core.out.publish.clear()
    assert primary.saved_bytes > 5_000
