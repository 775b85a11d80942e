"""Writers that know every event they cause, watchers that write down what they are told, and the contract between them.

The history is exact: a raw writer asks again under the same number until it knows op id and position, so each change
has its place. `Watcher.check` replays what a watcher was told against it.
"""

from __future__ import annotations

import random
import threading
import time
from itertools import pairwise
from typing import Any, NamedTuple

from nun import messages as m
from nun.codec import pack, unpack
from nun.core.clock import TICK
from nun.errors import SessionUnknown
from tests.support.history import Progress
from tests.support.raw_client import RawClient, Reply

PATIENCE_S = 60.0


class Change(NamedTuple):
    """One change of one key, and the event that tells it."""

    op_id: int
    seq: int
    kind: int
    key: bytes
    value: bytes | None
    version: int


class History:
    """All changes of all writers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: list[Change] = []

    def add(self, changes: list[Change]) -> None:
        with self._lock:
            self._changes += changes

    def ordered(self) -> list[Change]:
        """In the one order; op ids and seqs must agree about it."""
        found = sorted(self._changes)
        for before, after in pairwise(found):
            assert before.op_id < after.op_id, f"an op id was used twice: {before} {after}"
            assert before.seq <= after.seq, f"op ids and positions disagree: {before} {after}"
        return found


class Scope(NamedTuple):
    """What a watch asks for."""

    kind: int
    key: bytes

    def sees(self, key: bytes) -> bool:
        if self.kind == m.WATCH_KEY:
            return key == self.key
        return self.kind == m.WATCH_ALL or key.startswith(self.key)


class Resilient:
    """A raw client that greets again when the node forgot it, and asks again until it is answered."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = RawClient(address)
        self.greet()

    def greet(self) -> None:
        """Opens a session on a new connection, as the same client."""
        old = self.client
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.client.close()
            self.client = RawClient(self.address)
            new = self.client
            new.client_id, new.born, new.floor = old.client_id, old.born, old.floor
            new.number = old.number + 1
            new.send(m.HELLO, 1, new.number, new.client_id, new.born, None, None)
            reply = new.reply_to(new.number, 1.0)
            if reply is not None:
                new.token, new.born, _, _ = reply.value()
                number = new.next_number()
                new.send(m.USE, new.token, number, "d", None, "t")
                reply = new.reply_to(number, 2.0)
                if reply is not None and reply.status == 0:
                    return
            assert time.monotonic() < deadline, f"{self.address} does not greet"

    def write(self, kind: int, *arguments: Any) -> Reply:
        """A write whose fate is known when this returns."""
        number = self.client.next_number()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.client.post(number, kind, *arguments)
            reply = self.client.reply_to(number, 2.0)
            if reply is not None and reply.status == 0:
                self.client.floor = number
                return reply
            assert reply is None or reply.status in (8, 12), f"refused: {reply}"
            assert time.monotonic() < deadline, "no answer to a write"
            self.greet()
            self.client.number = max(self.client.number, number)


class Writer(threading.Thread):
    """Changes keys in every way that makes events, until it has made `count` requests."""

    def __init__(
        self, address: str, history: History, progress: Progress, count: int, seed: int
    ) -> None:
        super().__init__(daemon=True)
        self.link = Resilient(address)
        self.history = history
        self.progress = progress
        self.count = count
        self.random = random.Random(seed)
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(self.count):
                self.step()
                self.progress.made()
        except BaseException as error:
            self.failure = error
            self.progress.made(failed=True)
        finally:
            self.link.client.close()

    def key(self) -> bytes:
        return b"%s:%d" % (self.random.choice([b"a", b"b", b"c"]), self.random.randrange(6))

    def value(self) -> bytes:
        return self.random.randbytes(200).hex().encode()

    def step(self) -> None:
        key, value = self.key(), self.value()
        match self.random.randrange(8):
            case 0:
                reply = self.link.write(m.REMOVE, 1, key, None)
                found = [(m.EVENT_REMOVED, key, None, reply.result)] if reply.op_id else []
            case 1:
                key = b"n" + key
                reply = self.link.write(m.INCREMENT, 1, key, 3)
                version, total = reply.result
                found = [(m.EVENT_SET, key, b"%d" % total, version)]
            case 2 | 3:
                reply, found = self.set_many()
            case 4:
                reply, found = self.batch()
            case _:
                reply = self.link.write(m.SET, 1, key, value, None)
                found = [(m.EVENT_SET, key, value, reply.result)]
        self.history.add(
            [
                Change(reply.op_id + index * TICK, reply.position[3], *change)
                for index, change in enumerate(found)
                if change is not None
            ]
        )

    def set_many(self) -> tuple[Reply, list[Any]]:
        """Keys of its own kind that are never removed, so that the batch is decided by column."""
        keys = [b"m%s:%d" % (self.random.choice([b"a", b"b"]), i) for i in range(8)]
        values = [self.value() for _ in keys]
        reply = self.link.write(m.SET_MANY, 1, pack([keys, values]))
        words = memoryview(reply.result).cast("I").tolist()[::3]
        return reply, [
            (m.EVENT_SET, key, value, word + 1)
            for key, value, word in zip(keys, values, words, strict=True)
        ]

    def batch(self) -> tuple[Reply, list[Any]]:
        """Sets and removals in one request; what it removes it has set, so that each operation is an event."""
        one, two, three = (self.key() for _ in range(3))
        kinds = bytes([m.SET, m.SET, m.REMOVE, m.SET])
        keys = [one, two, one, three]
        values = [self.value() if kind == m.SET else None for kind in kinds]
        if two == one:
            keys[1] = b"z" + two
        atomic = self.random.random() < 0.5
        reply = self.link.write(m.BATCH, 1, atomic, kinds, pack([keys, values]), None)
        return reply, [
            (m.EVENT_SET if kind == m.SET else m.EVENT_REMOVED, key, value, version)
            for kind, key, value, version in zip(kinds, keys, values, reply.result, strict=True)
        ]


class Told(NamedTuple):
    """Something that happened to a watcher: an event, or a start of its watch (kind 0, from `seq`)."""

    kind: int
    key: bytes | None
    value: bytes | None
    version: int
    op_id: int
    seq: int


STARTED = 0


class Watcher(threading.Thread):
    """Watches until it has been told all of `target`, coming and going as its habits say.

    Args:
        credit: how many bytes it lets the node send ahead.
        leave_after: it leaves after about so many messages (0: never), now and then without a word ...
        away: ... and comes back when this many more steps were made by the writers.
    """

    def __init__(
        self,
        address: str,
        scope: Scope,
        progress: Progress,
        seed: int,
        credit: int = 1 << 20,
        leave_after: int = 0,
        away: int = 0,
    ) -> None:
        super().__init__(daemon=True)
        self.scope = scope
        self.progress = progress
        self.random = random.Random(seed)
        self.credit = credit
        self.leave_after = leave_after
        self.away = away
        self.told: list[Told] = []
        self.safe: list[int] | None = None  # position of the last entry that was told as a whole
        self.last: list[int] | None = None
        self.target: Change | None = None  # the last one that concerns it
        self.copying = False  # between `compacted` and `current`
        self.failure: BaseException | None = None
        self.link = Resilient(address)
        self.number = self.watch()

    def watch(self) -> int:
        client = self.link.client
        while True:
            number = client.next_number()
            since = self.safe
            client.send(
                m.WATCH,
                client.token,
                number,
                1,
                self.scope.kind,
                self.scope.key,
                since,
                self.credit,
            )
            reply = client.reply_to(number, 5.0)
            if reply is not None and reply.status == 0:
                break
            self.link.greet()
            client = self.link.client
        self.safe = since or list(reply.position)
        self.last, self.copying = None, False
        self.told.append(Told(STARTED, None, None, 0, 0, self.safe[3]))
        return int(reply.result)

    def run(self) -> None:
        try:
            while not self.done():
                self.receive()
        except BaseException as error:
            self.failure = error
        finally:
            self.link.client.close()

    def done(self) -> bool:
        target = self.target
        if target is None or self.copying or not self.told:
            return False
        last = self.told[-1]
        return last.op_id >= target.op_id or (not last.op_id and last.seq >= target.seq)

    def receive(self) -> None:
        client = self.link.client
        if client.events:
            message = client.events.pop(0)
        else:
            message = client.receive(0.3)
        if message is None:
            number = client.next_number()
            client.send(m.PING, client.token, number, None)
            reply = client.reply_to(number, 2.0)
            if reply is None or reply.status:
                self.again()
            return
        if (
            message[0] == SessionUnknown.code
        ):  # what was sent last came to a process that was started anew
            self.again()
            return
        if message[0] != m.EVENTS or message[1] != self.number:
            assert message[0] in (m.PROBE, m.EVENTS), f"not expected: {message}"
            return
        body = message[2]
        epoch, events = unpack(body)
        for event in events:
            self.take(epoch, Told(*event))
        client.send(m.CREDIT, client.token, 0, self.number, len(body))
        if self.leave_after and self.random.randrange(self.leave_after) == 0:
            if self.random.random() < 0.7:
                client.send(m.BYE, client.token, 0)
            if self.away and self.target is None:
                self.link.client.close()
                self.wait_away()
            self.again()

    def wait_away(self) -> None:
        wanted = self.progress.count + self.away
        while self.progress.count < wanted and self.target is None and not self.progress.failed:
            try:
                self.progress.wait_for(1, timeout=1.0)
            except AssertionError:
                continue

    def again(self) -> None:
        self.link.greet()
        self.number = self.watch()

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

    def check(self, history: list[Change]) -> int:
        """Holds it to the contract; returns how often its position was compacted."""
        return check_told(self.scope, self.told, history)


def check_told(scope: Scope, told_in_order: list[Told], history: list[Change]) -> int:
    """The contract: ordered, unique, complete, honest. Returns how often a position was compacted.

    Raises AssertionError that says what was told, and what should have been.
    """
    mine = [change for change in history if scope.sees(change.key)]
    highest = 0  # op id told last
    wanted = 0  # index in `mine` of the event that must come next
    floor = 0  # repeats are allowed above this seq and up to `highest`, after a new start
    copy: dict[bytes, tuple[bytes | None, int]] | None = None
    compactions = 0
    for told in told_in_order:
        if told.kind == STARTED:
            copy, floor = None, told.seq
            wanted = next((i for i, c in enumerate(mine) if c.seq > told.seq), len(mine))
        elif told.kind == m.EVENT_COMPACTED:
            copy, compactions = {}, compactions + 1
        elif told.kind == m.EVENT_CURRENT:
            assert copy is not None, "`current` without `compacted`"
            state = {c.key: (c.value, c.version) for c in mine if c.seq <= told.seq}
            state = {key: held for key, held in state.items() if held[0] is not None}
            assert copy == state, f"the state told at {told.seq} differs from the model"
            copy, floor = None, told.seq
            wanted = next((i for i, c in enumerate(mine) if c.seq > told.seq), len(mine))
        elif copy is not None:
            assert told.key is not None
            assert told.key not in copy, f"told twice: {told}"
            assert scope.sees(told.key), f"not asked for: {told}"
            copy[told.key] = (told.value, told.version)
        else:
            assert wanted < len(mine), f"{scope}: more than ever happened: {told}"
            change = mine[wanted]
            expected = Told(change.kind, *change[3:6], change.op_id, change.seq)
            assert told == expected, f"{scope}: told {told}, expected {expected}"
            assert told.seq > floor
            highest = max(highest, told.op_id)
            wanted += 1
    assert copy is None, "the state was never told to its end"
    assert wanted == len(mine), f"{len(mine) - wanted} events are missing"
    return compactions
