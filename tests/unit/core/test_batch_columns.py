"""Batches decided kind by kind come to what they come to one operation after the other."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from nun import messages as m
from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.errors import BadRequest, TooLarge
from nun.limits import BATCH_BYTES_MAX, VERSION_MAX
from tests.support.batches import answers_of
from tests.support.core_driver import CoreDriver, DrivenClient, replay, with_database
from tests.support.raw_client import Reply

Operation = tuple[int, bytes, Any]
NO_CONDITIONS: dict[int, Any] = {}  # has a batch decided one operation after the other
INT_MAX = 2**63 - 1


def sent(
    client: DrivenClient,
    operations: list[Operation],
    *,
    conditions: Any = None,
    atomic: bool = False,
    number: int | None = None,
) -> Reply:
    kinds = bytes(kind for kind, _, _ in operations)
    payload = pack([[key for _, key, _ in operations], [value for _, _, value in operations]])
    return client.write(m.BATCH, 1, atomic, kinds, payload, conditions, number=number)


def told(reply: Reply, operations: list[Operation]) -> list[tuple[Any, int]]:
    keys = [key for _, key, _ in operations]
    return answers_of(reply, bytes(kind for kind, _, _ in operations), keys)


def held(driver: CoreDriver) -> dict[bytes, tuple[int, bytes | None]]:
    """Version and value of every key, and that the counts and the log agree with the table."""
    table = driver.core.tables[1]
    _, replayed = replay(driver.frames)
    assert replayed.get(1, {}) == table.records
    gone = {key for key, packed in table.records.items() if packed[3] >= 0x80}
    assert set(table.tombstones) == gone
    assert table.live == len(table.records) - len(gone)
    assert table.bytes == sum(len(key) + len(packed) for key, packed in table.records.items())
    return {
        key: (record.version_of(packed), None if key in gone else record.value_of(packed))
        for key, packed in table.records.items()
    }


def op_ids(driver: CoreDriver) -> list[int]:
    return sorted(map(record.op_id_of, driver.core.tables[1].records.values()))


def some_operations(rng: random.Random) -> list[Operation]:
    """Mostly sets, gets and increments of different keys, as a pipeline has them; now and then anything."""
    kinds: list[int] = [m.GET, m.SET, m.INCREMENT]
    keys = {m.GET: b"g%d", m.SET: b"s%d", m.INCREMENT: b"i%d", m.REMOVE: b"s%d"}
    mixed = rng.random() < 0.4
    operations: list[Operation] = []
    unused = {kind: rng.sample(range(30), 30) for kind in keys}
    for _ in range(rng.randrange(12)):
        kind = rng.choice([*kinds, m.REMOVE] if mixed else kinds)
        number = rng.randrange(30) if kind == m.INCREMENT or mixed else unused[kind].pop()
        name = keys[rng.choice(kinds) if mixed and rng.random() < 0.2 else kind] % number
        value: Any = None
        if kind == m.SET:
            value = rng.choice([b"", b"text", b"12", b"-7", b"0" * 19, b"1,2", b"%d" % INT_MAX])
        elif kind == m.INCREMENT:
            value = rng.choice([1, -1, 5, 0, INT_MAX, -(2**63)] if mixed else [1, -1, 5, 0])
        operations.append((kind, name, value))
    return operations


@pytest.mark.parametrize("seed", range(40))
def test_both_ways_come_to_the_same(seed: int) -> None:
    rng = random.Random(seed)
    by_kind, one_by_one = with_database(), with_database()
    first, second = by_kind.client(), one_by_one.client()
    filled: list[Operation] = [(m.SET, b"i%d" % number, b"%d" % number) for number in range(25)]
    filled += [(m.SET, b"g%d" % number, b"shown") for number in range(20)]
    for client in (first, second):
        sent(client, filled, conditions=NO_CONDITIONS)
    ways: Counter[type] = Counter()
    for _ in range(30):
        operations = some_operations(rng)
        atomic = rng.random() < 0.3
        fast = sent(first, operations, atomic=atomic)
        slow = sent(second, operations, atomic=atomic, conditions=NO_CONDITIONS)
        ways[type(fast.result)] += 1
        assert fast.status == slow.status, operations
        if fast.status:
            assert fast.result == slow.result
        else:
            answers = zip(operations, told(fast, operations), told(slow, operations), strict=True)
            for operation, (answer, _), (expected, _) in answers:
                if operation[0] == m.GET:  # the op ids differ
                    answer, expected = answer and answer[12:], expected and expected[12:]
                assert answer == expected, (operation, operations)
        assert held(by_kind) == held(one_by_one), operations
        assert len(set(op_ids(by_kind))) == len(by_kind.core.tables[1].records)
        again = sent(first, operations, atomic=atomic, number=fast.number)
        assert (again.status, again.op_id) == (fast.status, fast.op_id)
        if fast.status:
            assert again.result == fast.result
        else:  # what it reads it reads anew
            retold = zip(operations, told(again, operations), told(fast, operations), strict=True)
            assert all(one == other for (kind, *_), one, other in retold if kind != m.GET)
    assert ways[dict] >= 3, ways
    assert ways[list] >= 3, ways


def test_the_op_ids_told_are_those_of_the_records() -> None:
    driver = with_database()
    client = driver.client()
    sent(client, [(m.SET, b"a", b"5"), (m.SET, b"g", b"x")])
    operations: list[Operation] = [
        (m.INCREMENT, b"a", 2),
        (m.SET, b"b", b"v"),
        (m.GET, b"g", None),
        (m.INCREMENT, b"a", 3),
        (m.SET, b"c", b"w"),
    ]
    reply = sent(client, operations)
    assert set(reply.result) == {m.GET, m.SET, m.INCREMENT}
    answers = told(reply, operations)
    records = driver.core.tables[1].records
    assert [answer for answer, _ in answers] == [[2, 7], 1, records[b"g"], [3, 10], 1]
    assert answers[3][1] == record.op_id_of(records[b"a"])
    assert answers[1][1] == record.op_id_of(records[b"b"])
    assert answers[4][1] == record.op_id_of(records[b"c"])
    assert len({op_id for _, op_id in answers}) == 5
    assert driver.core.state.highest_op_id == max(op_id for _, op_id in answers)


def increments(*deltas: int) -> list[Operation]:
    return [(m.INCREMENT, b"n", delta) for delta in deltas]


@pytest.mark.parametrize(
    ("value", "deltas", "by_kind"),
    [
        (b"1", (1, 2), True),
        (b"-1", (1,), True),
        (b"007", (1,), True),
        (b"9" * 18, (1,), True),
        (b"+1", (1,), False),
        (b"9" * 19, (1,), False),
        (b"5", (INT_MAX,), False),
        (b"5", (INT_MAX - 6, 1, 1), False),
        (b"-5", (-(2**63), INT_MAX), False),
        (b"", (1,), False),
        (b"1,2", (1,), False),
        (b"1\n", (1,), False),
        (b" 1", (1,), False),
        (b"1_0", (1,), False),
        ("\u0663".encode(), (1,), False),
    ],
)
def test_which_increments_are_decided_by_column(
    value: bytes, deltas: tuple[int, ...], by_kind: bool
) -> None:
    client = with_database().client()
    sent(client, [(m.SET, b"n", value)])
    reply = sent(client, increments(*deltas))
    assert isinstance(reply.result, dict) == by_kind, reply


def test_absent_keys_and_tombstones_are_counted_from_nothing() -> None:
    driver = with_database()
    client = driver.client()
    assert sent(client, increments(3, 4)).result == [[1, 3], [2, 7]]
    assert sent(client, [(m.REMOVE, b"n", None)]).result == [3]
    assert sent(client, increments(1)).result == [[4, 1]]
    assert sent(client, [(m.REMOVE, b"n", None)]).result == [5]
    assert sent(client, [(m.SET, b"n", b"x"), (m.GET, b"m", None)]).result == [6, None]
    assert held(driver) == {b"n": (6, b"x")}


def test_versions_that_cannot_be_counted_up_go_one_by_one() -> None:
    driver = with_database()
    packed = record.live(VERSION_MAX - 1, 77, b"5")
    driver.frames.append(
        fx.encode_entry(
            driver.core.state.position._replace(seq=driver.core.stream.last_seq + 1),  # type: ignore[union-attr]
            [(fx.RECORDS, 1, 77, [b"n"], [packed], bytes(12))],
        )
    )
    driver.restart()
    client = driver.client()
    reply = sent(client, increments(1, 1))
    assert reply.result[0] == [VERSION_MAX, 6]
    assert reply.result[1][0] == BadRequest.code


def test_a_retry_reads_anew_and_waits_for_what_it_shows() -> None:
    driver = with_database()
    client, other = driver.client(), driver.client()
    sent(client, [(m.SET, b"g", b"old")])
    operations: list[Operation] = [(m.SET, b"s", b"1"), (m.GET, b"g", None)]
    before = sent(client, operations)
    driver.receive(other.message(other.next_number(), m.SET, 1, b"g", b"new", None))
    kinds, payload = bytes([m.SET, m.GET]), pack([[b"s", b"g"], [b"1", None]])
    driver.receive(client.message(before.number, m.BATCH, 1, False, kinds, payload, None))
    assert client.reply_to(before.number) is None, "a read showed what is not durable (P3)"
    driver.sync()
    again = client.reply_to(before.number)
    assert again is not None
    assert again.result[m.SET] == before.result[m.SET]
    assert [packed[12:] for packed in again.result[m.GET]] == [b"new"]


def test_a_retry_waits_for_its_own_entry_and_for_the_later_one_that_it_shows() -> None:
    driver = with_database()
    client, other = driver.client(), driver.client()
    number = client.next_number()
    message = client.message(
        number, m.BATCH, 1, False, bytes([m.SET, m.GET]), pack([[b"s", b"g"], [b"1", None]]), None
    )
    driver.receive(message)
    first_seq = driver.published[-1][0]
    driver.receive(other.message(other.next_number(), m.SET, 1, b"g", b"new", None))
    driver.receive(message)
    driver.core.made_durable(first_seq, driver.now_ns)
    driver.perform()
    first = client.reply_to(number)
    assert first is not None
    assert first.result[m.GET] == [None]
    assert client.reply_to(number) is None, "a read showed what is not durable (P3)"
    driver.sync()
    again = client.reply_to(number)
    assert again is not None
    assert again.result[m.GET][0][12:] == b"new"


def test_a_number_that_was_used_for_another_batch_is_refused() -> None:
    client = with_database().client()
    operations: list[Operation] = [(m.SET, b"s", b"1"), (m.GET, b"g", None)]
    reply = sent(client, operations)
    for other in (operations[:1], [*operations, (m.GET, b"h", None)], operations[::-1]):
        assert sent(client, other, number=reply.number).status == BadRequest.code


def test_the_outcome_survives_a_restart() -> None:
    driver = with_database()
    client = driver.client()
    sent(client, [(m.SET, b"n", b"5")])
    operations: list[Operation] = [*increments(1, 1), (m.SET, b"s", b"1"), (m.GET, b"g", None)]
    before = sent(client, operations)
    driver.restart()
    client.greet()
    assert sent(client, operations, number=before.number) == before
    assert driver.core.tables[1].records[b"n"][12:] == b"7"


def test_gets_that_come_to_too_much_are_refused_before_anything_is_done() -> None:
    driver = with_database()
    client = driver.client()
    large = bytes(16 * 2**20)
    client.write(m.SET, 1, b"g", large, None)
    gets: list[Operation] = [(m.GET, b"g", None)] * (BATCH_BYTES_MAX // len(large) + 1)
    reply = sent(client, [*gets, (m.SET, b"s", b"1")])
    assert reply.status == TooLarge.code
    assert b"s" not in driver.core.tables[1].records


def test_counted_records_go_on_from_each_other() -> None:
    heads = record.heads([record.live(4, 9, b"1"), record.live(7, 10, b"2")])
    sums = record.pack_integers([2, 5, -3])
    made = record.counted(heads, 100 * TICK, TICK, [b"a", b"b", b"a"], sums)
    assert made == [
        record.live(5, 100 * TICK, b"2"),
        record.live(8, 101 * TICK, b"5"),
        record.live(6, 102 * TICK, b"-3"),
    ]
    assert record.unpack_integers(sums) == [2, 5, -3]
