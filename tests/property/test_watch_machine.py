"""Watches of the network core under a driver that is as unkind as can be.

Credit comes in crumbs, the log is read entry by entry and cut at any time, links break in the middle of an entry, the
node restarts. In the end each watcher must have been told everything, once, in order.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nun import messages as m
from nun.codec import pack, unpack
from nun.core.clock import TICK
from tests.support.batches import answers_of
from tests.support.core_driver import CoreDriver, DrivenClient, with_database
from tests.support.watchers import STARTED, Change, Scope, Told, check_told

KEYS = [b"a:1", b"a:2", b"b:1", b"b:2"]
keys = st.sampled_from(KEYS)
values = st.sampled_from([b"", b"x" * 20, b"y" * 70])
SCOPES = [
    Scope(m.WATCH_ALL, b""),
    Scope(m.WATCH_PREFIX, b"a:"),
    Scope(m.WATCH_KEY, b"b:1"),
]
UNBOUNDED = 1 << 20


class DrivenWatcher:
    """A watcher on its own connection; what it was told is written down for the contract."""

    def __init__(self, driver: CoreDriver, scope: Scope, credit: int) -> None:
        self.driver = driver
        self.scope = scope
        self.credit = credit
        self.told: list[Told] = []
        self.safe: list[int] | None = None  # position of the last entry that was told as a whole
        self.last: list[int] | None = None
        self.copying = False
        self.owed = 0
        self.connect()

    def connect(self) -> None:
        """A new link; it goes on after the last entry that it was told as a whole."""
        self.client: DrivenClient = self.driver.client()
        scope = self.scope
        arguments = (m.WATCH, 1, scope.kind, scope.key, self.safe, self.credit)
        reply = self.client.request(*arguments)
        self.number = reply.value()
        self.safe = self.safe or list(reply.position)
        self.told.append(Told(STARTED, None, None, 0, 0, self.safe[3]))
        self.last, self.copying, self.owed = None, False, 0

    def read(self) -> None:
        """Takes in everything that has come."""
        sent, self.driver.sent = self.driver.sent, []
        for peer, message in sent:
            if peer != self.client.peer or message[0] != m.EVENTS:
                self.driver.sent.append((peer, message))
                continue
            assert message[1] == self.number
            self.owed += len(message[2])
            epoch, events = unpack(message[2])
            for event in events:
                self.take(epoch, Told(*event))

    def take(self, epoch: list[int], told: Told) -> None:
        position = [*epoch, told.seq]
        self.told.append(told)
        if told.kind == m.EVENT_CURRENT:
            self.safe = self.last = position
            self.copying = False
        elif told.kind == m.EVENT_COMPACTED:
            self.copying = True
        elif not self.copying:
            if self.last is not None and told.seq > self.last[3]:
                self.safe = self.last
            self.last = position

    def grant(self, size: int) -> None:
        size = min(size, self.owed)
        if size:
            self.owed -= size
            self.driver.receive(
                (self.client.peer, [m.CREDIT, self.client.token, 0, self.number, size])
            )


class WatchMachine(RuleBasedStateMachine):
    """One writer, and watchers of every scope with all the credit or hardly any."""

    def __init__(self) -> None:
        super().__init__()
        # Small messages, so that entries are cut in their middle.
        self.patches = [
            patch("nun.core.requests.watching.EVENTS_BYTES_MAX", 150),
            patch("nun.core.requests.watching.STATE_COPIES_MAX", 2),
        ]
        for each in self.patches:
            each.start()
        self.driver = with_database()
        self.writer = self.driver.client()
        self.changes: list[Change] = []
        self.alive: set[bytes] = set()
        self.watchers = [
            DrivenWatcher(self.driver, scope, credit)
            for scope in SCOPES
            for credit in (1, 200, UNBOUNDED)
        ]

    def teardown(self) -> None:
        try:
            self.everybody_catches_up()
        finally:
            for each in self.patches:
                each.stop()

    def changed(self, kind: int, key: bytes, value: bytes | None, reply: Any, index: int) -> None:
        version = reply.result
        op_id = reply.op_id + index * TICK
        change = Change(op_id, reply.position[3], kind, key, value, version)
        self.changes.append(change)
        (self.alive.add if kind == m.EVENT_SET else self.alive.discard)(key)

    # What happens to the data

    @rule(key=keys, value=values)
    def set(self, key: bytes, value: bytes) -> None:
        reply = self.writer.write(m.SET, 1, key, value, None)
        self.changed(m.EVENT_SET, key, value, reply, 0)

    @rule(key=keys)
    def remove(self, key: bytes) -> None:
        if key in self.alive:
            reply = self.writer.write(m.REMOVE, 1, key, None)
            self.changed(m.EVENT_REMOVED, key, None, reply, 0)

    @rule(items=st.lists(st.tuples(keys, values), min_size=1, max_size=8), removal=st.booleans())
    def batch(self, items: list[tuple[bytes, bytes]], removal: bool) -> None:
        """Many sets of which some meet the same key; the last key is removed again."""
        kinds = bytes([m.SET] * len(items) + [m.REMOVE] * removal)
        batch_keys = [key for key, _ in items] + [items[-1][0]] * removal
        arguments = [value for _, value in items] + [None] * removal
        payload = pack([batch_keys, arguments])
        reply = self.writer.write(m.BATCH, 1, True, kinds, payload, None)
        told = answers_of(reply, kinds, batch_keys)
        for index, (kind, key, value) in enumerate(zip(kinds, batch_keys, arguments, strict=True)):
            event = m.EVENT_SET if kind == m.SET else m.EVENT_REMOVED
            self.changed(event, key, value, reply._replace(result=told[index][0]), index)

    @rule(value=values)
    def set_many(self, value: bytes) -> None:
        """By column, unless a key is a tombstone."""
        reply = self.writer.write(m.SET_MANY, 1, pack([KEYS, [value] * len(KEYS)]))
        versions = reply.result
        if isinstance(versions, bytes):
            versions = [word + 1 for word in memoryview(versions).cast("I").tolist()[::3]]
        for index, key in enumerate(KEYS):
            one = reply._replace(result=versions[index])
            self.changed(m.EVENT_SET, key, value, one, index)

    @rule(key=keys, value=values, count=st.integers(2, 5))
    def several_in_one_entry(self, key: bytes, value: bytes, count: int) -> None:
        numbers = [self.writer.next_number() for _ in range(count)]
        self.driver.receive(
            *(self.writer.message(number, m.SET, 1, key, value, None) for number in numbers)
        )
        self.driver.sync()
        for number in numbers:
            reply = self.writer.reply_to(number)
            assert reply is not None
            self.changed(m.EVENT_SET, key, value, reply, 0)

    # What happens to the watchers

    @rule(who=st.integers(0, 8), size=st.sampled_from([1, 60, 1000, UNBOUNDED]))
    def grant(self, who: int, size: int) -> None:
        self.watchers[who].read()
        self.watchers[who].grant(size)

    @rule(who=st.integers(0, 8))
    def break_the_link(self, who: int) -> None:
        """What is on its way is lost, or not."""
        watcher = self.watchers[who]
        self.driver.core.peer_gone(watcher.client.peer, "test")
        self.driver.perform()
        watcher.connect()

    @rule(who=st.integers(0, 8))
    def come_from_another_history(self, who: int) -> None:
        """A position of an epoch that this node never had."""
        watcher = self.watchers[who]
        if watcher.safe is not None:
            reign, node, start, seq = watcher.safe
            watcher.safe = [reign, node, start + 1000, seq]
        self.break_the_link(who)

    @rule(count=st.integers(1, 3))
    def read_the_log(self, count: int) -> None:
        self.driver.read_log(count)

    @rule()
    def cut_the_log(self) -> None:
        """Everything durable may go."""
        self.driver.log_begins = len(self.driver.frames) + 1

    @rule()
    def time_passes(self) -> None:
        self.driver.tick(1.0)
        self.driver.sync()

    @rule()
    def restart(self) -> None:
        self.driver.restart()
        self.writer.greet()
        for watcher in self.watchers:
            watcher.connect()

    @invariant()
    def memory_is_bounded(self) -> None:
        """A watch that is behind keeps nothing but its place."""
        for watcher in self.watchers:
            watcher.read()
            assert watcher.credit == UNBOUNDED or watcher.owed <= watcher.credit + 600

    def everybody_catches_up(self) -> None:
        """Reads and grants until nobody is owed anything: one that ends its copy gives its place to another."""
        for _ in range(10_000):
            for watcher in self.watchers:
                watcher.read()
            owing = [watcher for watcher in self.watchers if watcher.owed]
            for watcher in owing:
                watcher.grant(UNBOUNDED)
            if not self.driver.read_log(2) and not owing:
                break
        for watcher in self.watchers:
            check_told(watcher.scope, watcher.told, self.changes)


TestWatches = WatchMachine.TestCase
TestWatches.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)


@pytest.mark.long
def test_watches_for_long() -> None:
    case = WatchMachine.TestCase()
    case.settings = settings(TestWatches.settings, max_examples=2000, stateful_step_count=80)
    case.runTest()
