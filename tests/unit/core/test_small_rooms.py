"""Clock, records, sessions, metrics and the checks of arguments."""

from __future__ import annotations

import pytest

from nun.core import record
from nun.core.clock import MS, TICK, Clock, unix_ms_of
from nun.core.metrics import Histogram
from nun.core.requests import arguments
from nun.core.requests.sessions import Session
from nun.errors import BadRequest, TooLarge
from nun.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX

NOW_MS = 1_700_000_000_000


def test_op_ids_rise_whatever_the_wall_clock_does() -> None:
    clock = Clock(7)
    first = clock.reserve(NOW_MS, 5_000)
    assert unix_ms_of(first) == NOW_MS
    assert first % TICK == 7
    back = clock.reserve(NOW_MS - 1_000_000)
    assert back > first + 4_999 * TICK
    assert back % TICK == 7
    clock.observe(back + 9 * MS)
    clock.observe(1)
    assert clock.reserve(0) > back + 9 * MS
    assert unix_ms_of(Clock(1).reserve(0)) == 1_577_836_800_000, "before 2020 counts as 2020"


def test_a_restart_goes_on_above_the_highest_op_id() -> None:
    highest = Clock(3).reserve(NOW_MS, 10) + 9 * TICK
    assert Clock(3, highest).reserve(NOW_MS) > highest


def test_records_are_what_they_were_made_of() -> None:
    live, gone = record.live(3, 77, b"v"), record.tombstone(4, 78)
    assert (record.version_of(live), record.op_id_of(live), record.value_of(live)) == (3, 77, b"v")
    assert (record.version_of(gone), record.op_id_of(gone)) == (4, 78)
    assert [record.is_live(packed) for packed in (live, gone, record.ABSENT, None)] == [
        True,
        False,
        False,
        False,
    ]
    assert record.is_tombstone(gone)
    assert not record.is_tombstone(live)
    joined = record.heads([live, gone])
    assert record.op_ids_of_heads(joined) == [77, 78]
    assert record.versions_of_heads(joined) == [3, 4 | record.SPECIAL]
    made = record.successors(record.heads([live, record.ABSENT]), 5 * TICK, TICK, [b"a", b"b"])
    assert made == [record.live(4, 5 * TICK, b"a"), record.live(1, 6 * TICK, b"b")]


def test_a_receipt_clears_what_came_before_it_and_cannot_be_used_twice() -> None:
    session = Session(b"p", 1, b"c", 12345)
    first, second, third = session.owe(10), session.owe(20), session.owe(30)
    assert len({first, second, third}) == 3
    assert session.unread_bytes == 60
    assert not session.clear((third + 1) & 0xFFFFFFFF)
    assert session.clear(second)
    assert session.unread_bytes == 30
    assert not session.clear(first)
    assert session.clear(third)
    assert session.unread_bytes == 0


def test_quantiles_err_by_an_eighth_at_most() -> None:
    histogram = Histogram()
    assert histogram.quantile_us(0.5) == 0.0
    for value in range(1, 1_001):
        histogram.observe(value * 1_000)
    for share, exact in ((0.5, 500), (0.9, 900), (1.0, 1_000)):
        assert exact <= histogram.quantile_us(share) * 1.001
        assert histogram.quantile_us(share) <= exact * 1.126
    assert histogram.describe()["count"] == 1_000


@pytest.mark.parametrize("key", [b"", None, 5, "text", [b"a"], b"\xff"])
def test_what_is_no_key(key: object) -> None:
    with pytest.raises(BadRequest):
        arguments.check_key(key)


def test_long_keys_and_values_name_their_bound() -> None:
    with pytest.raises(TooLarge) as refused:
        arguments.check_key(b"k" * (KEY_BYTES_MAX + 1))
    assert refused.value.fields == {
        "limit": "KEY_BYTES_MAX",
        "bound": KEY_BYTES_MAX,
        "found": KEY_BYTES_MAX + 1,
    }
    arguments.check_key(b"$" + b"k" * KEY_BYTES_MAX)  # system keys are exempt
    with pytest.raises(TooLarge):
        arguments.check_keys([b"a", b"k" * (KEY_BYTES_MAX + 1)])
    with pytest.raises(BadRequest):
        arguments.check_keys([b"a", b"\xff"])
    with pytest.raises(BadRequest):
        arguments.check_keys([b"a", 5])
    with pytest.raises(TooLarge):
        arguments.check_values([bytes(VALUE_BYTES_MAX + 1)])
    with pytest.raises(BadRequest):
        arguments.check_values([b"a", None])
    with pytest.raises(BadRequest):
        arguments.check_values([b"a", 5], short=True)


@pytest.mark.parametrize("delta", [2**63, -(2**63) - 1, True, 1.5, b"1", None])
def test_what_is_no_delta(delta: object) -> None:
    with pytest.raises(BadRequest):
        arguments.check_delta(delta)


@pytest.mark.parametrize("payload", [None, b"", b"\xc1", b"\x93\x90\x90\x90", b"\x92\x91\x01\x90"])
def test_what_is_no_payload(payload: object) -> None:
    with pytest.raises(BadRequest):
        arguments.columns(payload)
