"""The watch contract: ordered, unique, complete, resumable, honest; whatever happens to node and watcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import nun
from nun import messages as m
from nun.codec import pack, unpack
from tests.support.history import Progress
from tests.support.node import ADMIN, Node, seeded
from tests.support.raw_client import connect
from tests.support.watchers import History, Scope, Told, Watcher, Writer

pytestmark = pytest.mark.process

# So small that the log rotates all the time and old positions are soon gone.
SETTINGS: dict[str, dict[str, Any]] = {
    "storage": {
        "fsync": "interval",
        "fsync_interval_ms": 5,
        "segment_bytes": 64 * 1024,
        "oplog_bytes": 128 * 1024,
        "snapshot_interval_s": 1,
        "snapshot_log_bytes": 64 * 1024,
    },
}
ALL = Scope(m.WATCH_ALL, b"")
HABITS: list[tuple[Scope, dict[str, int]]] = [
    (ALL, {}),
    (ALL, {"credit": 300}),
    (ALL, {"leave_after": 40}),
    (ALL, {"leave_after": 60, "away": 400}),
    (Scope(m.WATCH_PREFIX, b"a:"), {}),
    (Scope(m.WATCH_PREFIX, b"a:"), {"credit": 100, "leave_after": 20}),
    (Scope(m.WATCH_PREFIX, b"m"), {"credit": 1000, "leave_after": 50, "away": 300}),
    (Scope(m.WATCH_KEY, b"a:3"), {}),
    (Scope(m.WATCH_KEY, b"ma:3"), {"credit": 1, "leave_after": 5}),
    (Scope(m.WATCH_KEY, b"nb:1"), {"leave_after": 3, "away": 200}),
]


def make_database(node: Node) -> None:
    with nun.Client(node.address, **ADMIN) as client:
        client.create_database("d", token="t")


def watch_under_fire(
    node: Node, victims: list[str], count: int, name: str
) -> tuple[list[Watcher], int]:
    """Runs writers and watchers while processes die, then holds each watcher to the contract."""
    source = seeded(name)
    make_database(node)
    history, progress = History(), Progress()
    watchers = [
        Watcher(node.address, scope, progress, source.randrange(2**32), **habits)
        for scope, habits in HABITS
    ]
    writers = [
        Writer(node.address, history, progress, count, source.randrange(2**32)) for _ in range(2)
    ]
    for thread in [*watchers, *writers]:
        thread.start()
    for victim in victims:
        progress.wait_for(source.randrange(count // 4, count // 2))
        if victim == "stop":
            node.stop()
            node.restart()
        else:
            node.kill(victim)
            node.wait_ready() if victim in ("writer", "network") else node.restart()
    for writer in writers:
        writer.join(120)
        assert writer.failure is None, f"writer: {writer.failure!r}"
        assert not writer.is_alive(), "a writer hangs"
    ordered = history.ordered()
    for watcher in watchers:
        mine = [change for change in ordered if watcher.scope.sees(change.key)]
        watcher.target = mine[-1]
    compactions = 0
    for watcher in watchers:
        watcher.join(60)
        assert watcher.failure is None, f"{watcher.scope}: {watcher.failure!r}"
        assert not watcher.is_alive(), f"{watcher.scope} waits for events that never come"
        compactions += watcher.check(ordered)
    return watchers, compactions


def test_every_watcher_is_told_everything_once_in_order(start_node: Callable[..., Node]) -> None:
    _, compactions = watch_under_fire(start_node(SETTINGS), [], 1500, "watch")
    assert compactions > 0, "the log never rotated past a watcher: this test proves too little"


def test_the_contract_holds_over_crashes_and_restarts(start_node: Callable[..., Node]) -> None:
    victims = ["network", "stop", "node", "writer"]
    settings = {"storage": {**SETTINGS["storage"], "oplog_bytes": 512 * 1024}}
    watch_under_fire(start_node(settings), victims, 800, "watch over restarts")


def test_a_position_of_another_history_is_compacted(start_node: Callable[..., Node]) -> None:
    node = start_node()
    make_database(node)
    with connect(node.address, None, None) as client:
        client.use("d", "t")
        position = client.write(m.SET, 1, "k", "v", None).position
        client.write(m.SET, 1, "gone", "v", None).value()
        client.write(m.REMOVE, 1, "gone", None).value()
        reign, number, start, seq = position
        for other in ([reign, number, start + 7, seq], [reign, number, start, seq + 10_000]):
            client.events.clear()
            watch = client.request(m.WATCH, 1, m.WATCH_ALL, "", other, 1 << 20).value()
            told: list[Told] = []
            while not told or told[-1].kind != m.EVENT_CURRENT:
                message = client.events.pop(0) if client.events else client.receive()
                assert message is not None, f"no more after {told}"
                if message[0] == m.EVENTS and message[1] == watch:
                    told += [Told(*event) for event in unpack(message[2])[1]]
            kinds = [each.kind for each in told]
            assert kinds == [m.EVENT_COMPACTED, m.EVENT_SET, m.EVENT_CURRENT]
            assert (told[1].key, told[1].value) == (b"k", b"v")
            client.write(m.SET, 1, "k", "v", None).value()


def test_an_entry_larger_than_the_credit_is_told_in_parts(start_node: Callable[..., Node]) -> None:
    """A slow watcher stands in the middle of one entry; it is told the rest, and nothing twice."""
    node = start_node()
    make_database(node)
    with connect(node.address) as watcher, connect(node.address) as writer:
        for client in (watcher, writer):
            client.use("d", "t")
        watch = watcher.request(m.WATCH, 1, m.WATCH_ALL, "", None, 300_000).value()
        keys = [b"%04d" % i for i in range(150)]
        for _ in range(3):
            writer.write(m.SET_MANY, 1, pack([keys, [bytes(10_000)] * len(keys)])).value()
        told: list[Told] = []
        while len(told) < 3 * len(keys):
            message = watcher.events.pop(0) if watcher.events else watcher.receive()
            assert message is not None, f"only {len(told)} events came"
            assert message[:2] == [m.EVENTS, watch]
            told += [Told(*event) for event in unpack(message[2])[1]]
            watcher.send(m.CREDIT, watcher.token, 0, watch, len(message[2]))
        assert [each.key for each in told] == keys * 3
        assert [each.version for each in told] == [1] * 150 + [2] * 150 + [3] * 150


def test_a_watch_from_now_sees_nothing_of_before(start_node: Callable[..., Node]) -> None:
    node = start_node()
    make_database(node)
    with connect(node.address) as client:
        client.use("d", "t")
        client.write(m.SET, 1, "before", "v", None).value()
        watch = client.request(m.WATCH, 1, m.WATCH_ALL, "", None, 1 << 20).value()
        op_id = client.write(m.SET, 1, "after", "v", None).op_id
        message = client.events.pop(0) if client.events else client.receive()
        assert message[:2] == [m.EVENTS, watch]
        events = unpack(message[2])[1]
        assert [(event[1], event[4]) for event in events] == [(b"after", op_id)]
