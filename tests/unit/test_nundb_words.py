"""Records of NunDB's for writes that wait: whatever is written is read back, where that can be known at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nun import nundb

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="$"), min_size=1).map(str.encode)
TEXTS = st.text().map(str.encode)
STAMPS = st.integers(0, 2**63 - 1)
VERSIONS = st.integers(0, 2**31 - 2)


def written(key: bytes, op_id: int, version: int | None, value: bytes) -> nundb.Waiting:
    return nundb.Waiting(b"$conflicts_%s_%d" % (key, op_id), key, op_id, version, value)


@given(KEYS, STAMPS, VERSIONS, TEXTS, TEXTS.filter(lambda held: not held.startswith(b"$")))
def test_over_what_the_key_holds(
    key: bytes, op_id: int, version: int, value: bytes, held: bytes
) -> None:
    one = written(key, op_id, version, value)
    text = nundb.waiting_text(one, b"shop", held)
    assert nundb.waiting_in(one.place, text, held) == one


@given(KEYS, STAMPS, VERSIONS, TEXTS, st.none() | TEXTS)
def test_behind_another(
    key: bytes, op_id: int, version: int, value: bytes, held: bytes | None
) -> None:
    one = written(key, op_id, version, value)
    before, _ = nundb.place_of(key, 1_764_000_000_000)
    text = nundb.waiting_text(one, b"shop", before)
    assert nundb.waiting_in(one.place, text, held) == one._replace(version=None)


@given(KEYS, STAMPS, VERSIONS, TEXTS)
def test_over_nothing(key: bytes, op_id: int, version: int, value: bytes) -> None:
    one = written(key, op_id, version, value)
    text = nundb.waiting_text(one, b"shop", nundb.EMPTY)
    assert nundb.waiting_in(one.place, text, None) == one


@given(st.binary(), st.binary(), st.none() | st.binary())
def test_anything_else_is_told_apart_and_raises_nothing(
    name: bytes, text: bytes, held: bytes | None
) -> None:
    place = b"$conflicts_" + name
    for found in (text, b"resolve " + text, b"resolve 1 d 2 k " + text):
        one = nundb.waiting_in(place, found, held)
        assert one is None or found.endswith(one.value)


def test_names_of_records_go_up_whatever_the_clock_does() -> None:
    _, first = nundb.place_of(b"k", 1_764_000_000_000)
    assert first == 1_764_000_000_000_000_000
    for at in (1_764_000_000_000, 1_000):
        name, following = nundb.place_of(b"k", at, first)
        assert (name, following) == (b"$conflicts_k_1764000000000000001", first + 1)
