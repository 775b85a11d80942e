"""The network core against a plain model: every kind of write, retries, crashes and restarts, with one rule for each.

The model is the table of DESIGN 4.2 written down as plainly as can be: a dict of key -> (version, value or None for a
tombstone, op id). The core has to agree after every step, in memory and in what its log replays to.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import record
from nun.core.clock import TICK, unix_ms_of
from nun.core.keyspace import Pattern
from nun.core.state import NodeState
from nun.errors import BadRequest, BatchRefused, NotANumber, OutcomeExpired, VersionConflict
from nun.limits import VERSION_MAX
from tests.support.batches import answers_of
from tests.support.core_driver import CoreDriver, DrivenClient, replay, with_database
from tests.support.raw_client import Reply

INT_MIN, INT_MAX = -(2**63), 2**63 - 1


class Held(NamedTuple):
    """What the model knows of a key. A value of None is a tombstone."""

    version: int
    value: bytes | None
    op_id: int


NOTHING = Held(0, None, 0)
Model = dict[bytes, Held]


class Write(NamedTuple):
    """One operation: SET, REMOVE or INCREMENT of a key; or GET inside a batch."""

    kind: int
    key: bytes
    argument: Any
    condition: list[Any] | None


def accept(held: Held, write: Write) -> tuple[int, int]:
    """The table of DESIGN 4.2: (0, new version) or (code of the error, 0)."""
    kind, number = (m.PLAIN, 0) if write.condition is None else write.condition[:2]
    current, absent = held.version, held.value is None
    if kind == m.ON_VERSION and number != -1:
        if number < current:
            return VersionConflict.code, 0
        new = number + 1
    elif kind == m.IF_VERSION:
        if number != current:
            return VersionConflict.code, 0
        new = current + 1
    elif kind == m.ON_BASE:
        if number != (0 if absent else held.op_id):
            return VersionConflict.code, 0
        new = current + 1
    else:
        new = current + 1
    return (0, new) if new <= VERSION_MAX else (BadRequest.code, 0)


def total_of(held: Held, delta: int) -> int | None:
    """What an increment comes to; None where it is refused."""
    if held.value is None:
        return delta if INT_MIN <= delta <= INT_MAX else None
    try:
        text = held.value.decode("ascii")
        before = int(text)
    except ValueError:
        return None
    if not text.lstrip("+-").isdigit() or not INT_MIN <= before <= INT_MAX:
        return None
    return before + delta if INT_MIN <= before + delta <= INT_MAX else None


def carry_out(model: Model, write: Write, op_id: int) -> tuple[int, Any]:
    """Does one write to the model; (0, result as the wire tells it) or (code, None)."""
    held = model.get(write.key, NOTHING)
    status, version = accept(held, write)
    if status:
        return status, None
    if write.kind == m.INCREMENT:
        total = total_of(held, write.argument)
        if total is None:
            return NotANumber.code, None
        model[write.key] = Held(version, b"%d" % total, op_id)
        return 0, [version, total]
    if write.kind == m.REMOVE:
        if held.value is None:
            return 0, version - 1
        model[write.key] = Held(version, None, op_id)
    else:
        model[write.key] = Held(version, write.argument, op_id)
    return 0, version


KEYS = [b"a", b"b", b"ab", b"n", "é".encode()]
keys = st.sampled_from(KEYS)
values = st.sampled_from([b"", b"x", b"value", b"5", b"-3", b"%d" % INT_MAX, b"\x00\xff"])
deltas = st.sampled_from([1, -1, 0, 7, INT_MAX, INT_MIN])


class Conditions(NamedTuple):
    """How to make a condition out of what the model holds at that moment."""

    kind: int
    offset: int
    refuse: bool

    def of(self, held: Held) -> list[Any]:
        if self.kind == m.ON_BASE:
            alive = 0 if held.value is None else held.op_id
            return [m.ON_BASE, [alive, 0, held.op_id, 12345][self.offset % 4], self.refuse]
        return [self.kind, max(held.version + self.offset, 0), self.refuse]


conditions = st.none() | st.builds(
    Conditions,
    st.sampled_from([m.PLAIN, m.ON_VERSION, m.ON_BASE, m.IF_VERSION]),
    st.integers(-2, 3),
    st.booleans(),
)
operations = st.one_of(
    st.tuples(st.just(m.SET), keys, values, conditions),
    st.tuples(st.just(m.REMOVE), keys, st.none(), conditions),
    st.tuples(st.just(m.INCREMENT), keys, deltas, st.none()),
)


def plain(state: NodeState) -> Any:
    """What a state dumps, as it would come back from disk."""
    return unpack(pack(state.dump()))


class Done(NamedTuple):
    """A request that was answered."""

    client: DrivenClient
    number: int
    request: tuple[Any, ...]
    reply: Reply
    reads: bool


class StoreMachine(RuleBasedStateMachine):
    """Two clients, one database, one core that is restarted now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.driver: CoreDriver = with_database()
        self.clients = [self.driver.client(), self.driver.client()]
        self.model: Model = {}
        self.done: list[Done] = []
        self.last_op_id = 0

    @initialize(full=st.booleans())
    def fill(self, full: bool) -> None:
        if full:
            self.set_many(0, [(key, b"0") for key in KEYS])

    def with_condition(self, operation: tuple[int, bytes, Any, Any]) -> Write:
        kind, key, argument, condition = operation
        held = self.model.get(key, NOTHING)
        return Write(kind, key, argument, condition and condition.of(held))

    def remember(
        self, client: DrivenClient, request: tuple[Any, ...], reply: Reply, reads: bool = False
    ) -> None:
        self.done.append(Done(client, client.number, request, reply, reads))

    def stamped(self, first: int) -> None:
        """Op ids only ever go up."""
        assert first > self.last_op_id, f"op id {first} after {self.last_op_id}"

    # Writes

    @staticmethod
    def request_of(write: Write) -> tuple[Any, ...]:
        if write.kind == m.SET:
            return (m.SET, 1, write.key, write.argument, write.condition)
        if write.kind == m.REMOVE:
            return (m.REMOVE, 1, write.key, write.condition)
        return (m.INCREMENT, 1, write.key, write.argument)

    @rule(who=st.integers(0, 1), operation=operations)
    def write(self, who: int, operation: tuple[int, bytes, Any, Any]) -> None:
        write = self.with_condition(operation)
        client = self.clients[who]
        request = self.request_of(write)
        reply = client.write(*request)
        self.expect_write(write, reply)
        self.remember(client, request, reply)

    def expect_write(self, write: Write, reply: Reply) -> None:
        before = self.model.get(write.key, NOTHING)
        status, result = carry_out(self.model, write, reply.op_id or 0)
        assert reply.status == status, f"{write} on {before}: {reply}"
        if status == 0:
            assert reply.result == result, f"{write} on {before}: {reply}"
            if reply.op_id:
                self.stamped(reply.op_id)
                self.last_op_id = reply.op_id
            else:
                assert self.model.get(write.key, NOTHING) == before
        elif status == VersionConflict.code:
            current = reply.result[1][b"current"]
            shown = None if before.value is None else record.live(*before[:3:2], before.value)
            assert current == shown, f"the refusal shows {current}, held is {before}"

    @rule(who=st.integers(0, 1), items=st.lists(st.tuples(keys, values), max_size=6))
    def set_many(self, who: int, items: list[tuple[bytes, bytes]]) -> None:
        client = self.clients[who]
        columns = [list(column) for column in zip(*items, strict=True)] or [[], []]
        request = (m.SET_MANY, 1, pack(columns))
        reply = client.write(*request)
        assert reply.status == 0
        versions = []
        for index, (key, value) in enumerate(items):
            op_id = (reply.op_id or 0) + index * TICK
            _, version = carry_out(self.model, Write(m.SET, key, value, None), op_id)
            versions.append(version)
        if items:
            self.stamped(reply.op_id or 0)
            self.last_op_id = (reply.op_id or 0) + (len(items) - 1) * TICK
        if isinstance(reply.result, bytes):
            words = record.versions_of_heads(reply.result)
            assert [word + 1 for word in words] == versions
        else:
            assert reply.result == versions
        self.remember(client, request, reply)

    @rule(
        who=st.integers(0, 1),
        atomic=st.booleans(),
        batch=st.lists(
            operations | st.tuples(st.just(m.GET), keys, st.none(), st.none()), max_size=6
        ),
    )
    def batch(self, who: int, atomic: bool, batch: list[tuple[int, bytes, Any, Any]]) -> None:
        client = self.clients[who]
        writes = [self.with_condition(operation) for operation in batch]
        given = {i: w.condition for i, w in enumerate(writes) if w.condition is not None}
        payload = pack([[w.key for w in writes], [w.argument for w in writes]])
        kinds = bytes(w.kind for w in writes)
        request = (m.BATCH, 1, atomic, kinds, payload, given or None)
        reply = client.write(*request)
        after = copy.copy(self.model)
        told = [] if reply.status else answers_of(reply, kinds, [w.key for w in writes])
        expected: list[Any] = []
        failed = False
        for index, write in enumerate(writes):
            if write.kind == m.GET:
                held = after.get(write.key, NOTHING)
                shown = None if held.value is None else record.live(*held[:3:2], held.value)
                expected.append(shown)
                continue
            op_id = told[index][1] if told else (reply.op_id or 0) + index * TICK
            status, result = carry_out(after, write, op_id)
            failed = failed or status != 0
            expected.append(result if status == 0 else status)
        reads = m.GET in kinds
        if atomic and failed:
            assert reply.status == BatchRefused.code
        else:
            assert reply.status == 0, reply
            shape = [
                each[0] if isinstance(each, list) and len(each) == 3 else each for each, _ in told
            ]
            assert shape == expected, f"{writes}"
            self.model = after
        if writes and reply.op_id:
            self.stamped(reply.op_id)
            self.last_op_id = max([reply.op_id, *(held.op_id for held in self.model.values())])
        self.remember(client, request, reply, reads)

    # Reads

    @rule(who=st.integers(0, 1), wanted=st.lists(keys, max_size=5))
    def get_many(self, who: int, wanted: list[bytes]) -> None:
        found = self.clients[who].request(m.GET_MANY, 1, wanted).value()
        for key, packed in zip(wanted, found, strict=True):
            held = self.model.get(key, NOTHING)
            alive = packed is not None and record.is_live(packed)
            assert alive == (held.value is not None)
            if alive:
                assert packed == record.live(*held[:3:2], held.value or b"")

    @rule(
        who=st.integers(0, 1),
        pattern=st.sampled_from([b"", b"a", b"a*", b"*b", b"b*", "é".encode(), b"*"]),
        limit=st.integers(1, 4),
    )
    def list_keys(self, who: int, pattern: bytes, limit: int) -> None:
        found: list[bytes] = []
        after = None
        for _ in range(20):
            page, after = self.clients[who].request(m.KEYS, 1, pattern, limit, after).value()
            assert len(page) <= limit
            found += page
            if after is None:
                break
        matches = Pattern(pattern).matches
        alive = [key for key, held in self.model.items() if held.value is not None]
        assert found == sorted(key for key in alive if matches(key))

    # Exactly once

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        done = data.draw(st.sampled_from(self.done))
        before = copy.copy(self.model)
        reply = done.client.write(*done.request, number=done.number)
        floor = self.driver.core.state.clients[done.client.client_id].floor
        assert floor <= done.client.floor
        if done.number < floor:
            assert reply.status == OutcomeExpired.code
        else:
            assert (reply.status, reply.op_id) == (done.reply.status, done.reply.op_id)
            if not reply.status and not done.reads and "current" not in repr(reply.result):
                assert (reply.result, reply.position) == (done.reply.result, done.reply.position)
        assert before == self.model

    @rule(who=st.integers(0, 1))
    def show_answers(self, who: int) -> None:
        """The client has all its answers: its next write says so, and older numbers are forgotten."""
        self.clients[who].floor = self.clients[who].number + 1

    @precondition(lambda self: self.clients[0].number > 0)
    @rule(who=st.integers(0, 1), operation=operations, survive=st.booleans())
    def crash_before_the_answer(
        self, who: int, operation: tuple[int, bytes, Any, Any], survive: bool
    ) -> None:
        """Decided, not yet answered; the entry may have reached the disk or not. The retry settles it, once."""
        write = self.with_condition(operation)
        client = self.clients[who]
        number = client.next_number()
        request = self.request_of(write)
        self.driver.receive(client.message(number, *request))
        assert client.reply_to(number) is None, "answered before it was durable (P3)"
        self.driver.crash(survive=1 if survive else 0)
        for each in self.clients:
            each.greet()
        first = client.write(*request, number=number)
        self.expect_write(write, first)
        self.done.append(Done(client, number, request, first, False))
        again = client.write(*request, number=number)
        assert (again.status, again.op_id) == (first.status, first.op_id)

    # Reads wait

    @rule(who=st.integers(0, 1), key=keys, value=values)
    def a_read_waits_for_the_write_it_shows(self, who: int, key: bytes, value: bytes) -> None:
        writer, reader = self.clients[who], self.clients[1 - who]
        number, asked, other = writer.next_number(), reader.next_number(), reader.number + 1
        reader.number = other
        request = (m.SET, 1, key, value, None)
        self.driver.receive(writer.message(number, *request))
        self.driver.receive(
            (reader.peer, [m.GET, reader.token, asked, 1, key]),
            (reader.peer, [m.GET, reader.token, other, 1, b"never written"]),
        )
        assert reader.reply_to(asked) is None, "a read showed what is not durable (P3)"
        assert reader.reply_to(other) is not None, "a read waited for nothing of its own"
        self.driver.sync()
        reply = writer.reply_to(number)
        assert reply is not None
        status, version = carry_out(self.model, Write(m.SET, key, value, None), reply.op_id or 0)
        assert (reply.status, reply.result) == (status, version)
        self.last_op_id = max(self.last_op_id, reply.op_id or 0)
        read = reader.reply_to(asked)
        assert read is not None
        assert read.value() == record.live(version, reply.op_id or 0, value)

    # Time and restarts

    @rule(seconds=st.sampled_from([1.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.driver.tick(seconds)
        self.driver.sync()

    @rule(seconds=st.sampled_from([-5, -300, 10]))
    def the_wall_clock_jumps(self, seconds: int) -> None:
        """Op ids go up all the same, after a restart too."""
        self.driver.unix_ms += seconds * 1000

    @rule()
    def tombstones_grow_old(self) -> None:
        self.driver.unix_ms = max(self.driver.unix_ms, unix_ms_of(self.last_op_id))
        self.driver.tick(2 * self.driver.settings.tombstone_retention_s)
        self.driver.sync()
        self.model = {key: held for key, held in self.model.items() if held.value is not None}

    @rule()
    def restart(self) -> None:
        self.driver.restart()
        for client in self.clients:
            client.greet()

    # What must hold at all times

    def as_records(self) -> dict[bytes, bytes]:
        return {
            key: record.tombstone(held.version, held.op_id)
            if held.value is None
            else record.live(held.version, held.op_id, held.value)
            for key, held in self.model.items()
        }

    @invariant()
    def memory_agrees(self) -> None:
        table = self.driver.core.tables[1]
        expected = self.as_records()
        assert table.records == expected
        assert table.live == sum(held.value is not None for held in self.model.values())
        assert table.bytes == sum(map(len, expected)) + sum(map(len, expected.values()))
        tombstones = {key for key, held in self.model.items() if held.value is None}
        assert set(table.tombstones) == tombstones

    @invariant()
    def the_log_agrees(self) -> None:
        state, tables = replay(self.driver.frames)
        assert tables.get(1, {}) == self.as_records()
        assert plain(state) == plain(self.driver.core.state)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)


@pytest.mark.long
def test_store_for_long() -> None:
    case = StoreMachine.TestCase()
    case.settings = settings(TestStore.settings, max_examples=2000, stateful_step_count=60)
    case.runTest()


# The accept rule, row by row ------------------------------------------------------------------------------------

ABSENT_KEY, LIVE_KEY, REMOVED_KEY, LAST_KEY = b"absent", b"live", b"removed", b"last"


@pytest.fixture
def store() -> tuple[DrivenClient, dict[bytes, int]]:
    """Keys absent, live at version 3, a tombstone at version 3, and live at the last version; with their op ids."""
    client = with_database().client()
    for key in (LIVE_KEY, REMOVED_KEY):
        client.write(m.SET, 1, key, "1", None).value()
        last = client.write(m.SET, 1, key, "1", None)
    live = client.write(m.SET, 1, LIVE_KEY, "1", None)
    removed = client.write(m.REMOVE, 1, REMOVED_KEY, None)
    condition = [m.ON_VERSION, VERSION_MAX - 1, False]
    final = client.write(m.SET, 1, LAST_KEY, "1", condition)
    assert (live.result, removed.result, final.result) == (3, 3, VERSION_MAX)
    assert last.op_id
    ids = {LIVE_KEY: live.op_id, REMOVED_KEY: removed.op_id, LAST_KEY: final.op_id, ABSENT_KEY: 0}
    return client, {key: op_id or 0 for key, op_id in ids.items()}


REFUSED, BAD = VersionConflict.code, BadRequest.code
# (condition; then for each key the new version, or the code of the error as a negative number)
ROWS: list[tuple[Any, dict[bytes, int]]] = [
    (None, {ABSENT_KEY: 1, LIVE_KEY: 4, REMOVED_KEY: 4, LAST_KEY: -BAD}),
    ([m.PLAIN, 0, True], {ABSENT_KEY: 1, LIVE_KEY: 4, REMOVED_KEY: 4, LAST_KEY: -BAD}),
    ("its op id", {ABSENT_KEY: 1, LIVE_KEY: 4, REMOVED_KEY: -REFUSED, LAST_KEY: -BAD}),
    ([m.ON_BASE, 0, False], {ABSENT_KEY: 1, LIVE_KEY: -REFUSED, REMOVED_KEY: 4}),
    ([m.ON_BASE, 77, False], {ABSENT_KEY: -REFUSED, LIVE_KEY: -REFUSED, REMOVED_KEY: -REFUSED}),
    ([m.ON_VERSION, -1, False], {ABSENT_KEY: 1, LIVE_KEY: 4, REMOVED_KEY: 4, LAST_KEY: -BAD}),
    ([m.ON_VERSION, 0, False], {ABSENT_KEY: 1, LIVE_KEY: -REFUSED, REMOVED_KEY: -REFUSED}),
    ([m.ON_VERSION, 2, False], {ABSENT_KEY: 3, LIVE_KEY: -REFUSED, REMOVED_KEY: -REFUSED}),
    ([m.ON_VERSION, 3, False], {ABSENT_KEY: 4, LIVE_KEY: 4, REMOVED_KEY: 4, LAST_KEY: -REFUSED}),
    ([m.ON_VERSION, 9, False], {ABSENT_KEY: 10, LIVE_KEY: 10, REMOVED_KEY: 10}),
    ([m.ON_VERSION, VERSION_MAX, False], {ABSENT_KEY: -BAD, LIVE_KEY: -BAD, LAST_KEY: -BAD}),
    ([m.ON_VERSION, -2, False], {ABSENT_KEY: -BAD, LIVE_KEY: -BAD, REMOVED_KEY: -BAD}),
    ([m.IF_VERSION, 0, False], {ABSENT_KEY: 1, LIVE_KEY: -REFUSED, REMOVED_KEY: -REFUSED}),
    ([m.IF_VERSION, 3, False], {ABSENT_KEY: -REFUSED, LIVE_KEY: 4, REMOVED_KEY: 4}),
    ([m.IF_VERSION, 4, False], {ABSENT_KEY: -REFUSED, LIVE_KEY: -REFUSED, REMOVED_KEY: -REFUSED}),
    ([m.IF_VERSION, -1, False], {ABSENT_KEY: -BAD, LIVE_KEY: -BAD, REMOVED_KEY: -BAD}),
]


@pytest.mark.parametrize(
    ("condition", "key", "expected"),
    [(condition, key, version) for condition, row in ROWS for key, version in row.items()],
)
@pytest.mark.parametrize("how", ["set", "remove", "batch", "atomic"])
def test_the_accept_rule(
    store: tuple[DrivenClient, dict[bytes, int]],
    condition: Any,
    key: bytes,
    expected: int,
    how: str,
) -> None:
    client, op_ids = store
    if condition == "its op id":
        condition = [m.ON_BASE, op_ids[key], False]
    before = client.request(m.GET, 1, key).value()
    if how == "remove":
        if key in (ABSENT_KEY, REMOVED_KEY) and expected > 0:
            expected -= 1  # nothing is there: nothing changes
        reply = client.write(m.REMOVE, 1, key, condition)
    elif how == "set":
        reply = client.write(m.SET, 1, key, "new", condition)
    else:
        conditions = None if condition is None else {0: condition}
        payload = pack([[key], ["new"]])
        reply = client.write(m.BATCH, 1, how == "atomic", bytes([m.SET]), payload, conditions)
    status, result = reply.status, reply.result
    if how in ("batch", "atomic") and isinstance(result, dict):
        result = [answer for answer, _ in answers_of(reply, bytes([m.SET]), [key])]
    if how == "batch" and status == 0:
        status, result = (result[0][0], None) if isinstance(result[0], list) else (0, result[0])
    elif how == "atomic" and status == 0:
        result = result[0]
    elif status == BatchRefused.code:
        status = result[1][b"results"][0][0]
    if expected < 0:
        assert status == -expected
        assert client.request(m.GET, 1, key).value() == before
    else:
        assert (status, result) == (0, expected)


@pytest.mark.parametrize(
    ("held", "delta", "expected"),
    [
        (None, 5, 5),
        (b"0", -1, -1),
        (b"+7", 1, 8),
        (b"%d" % INT_MAX, 0, INT_MAX),
        (b"%d" % INT_MAX, 1, None),
        (b"%d" % INT_MIN, -1, None),
        (b"%d" % (INT_MAX + 1), -5, None),
        (b"", 1, None),
        (b"1.0", 1, None),
        (b" 1", 1, None),
        (b"1_0", 1, None),
        ("\u0661".encode(), 1, None),
        (b"1\n", 1, None),
    ],
)
def test_increments_take_64_bit_integers_only(
    held: bytes | None, delta: int, expected: int | None
) -> None:
    client = with_database().client()
    if held is not None:
        client.write(m.SET, 1, "n", held, None).value()
    reply = client.write(m.INCREMENT, 1, "n", delta)
    if expected is None:
        assert reply.status == NotANumber.code
        assert client.request(m.GET, 1, "n").value()[12:] == held
    else:
        assert reply.value() == [1 if held is None else 2, expected]
