"""Packed records: of every kind, what was put in comes out, and what readers get."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nun.core import record
from nun.core.keyspace import Table
from nun.core.record import ABSENT, SPECIAL, Signature

VERSIONS = st.integers(1, 2**31 - 1)
OP_IDS = st.integers(1, 2**64 - 1)
VALUES = st.binary(max_size=40)
SIGNATURES = st.builds(
    Signature,
    at_ms=st.integers(0, 2**45),
    bound_ms=st.integers(0, 2**20),
    client_id=st.binary(min_size=1, max_size=64),
    request=st.integers(1, 2**63 - 1),
    ancestors=st.lists(st.tuples(OP_IDS, st.integers(0, 2**45)), max_size=8).map(tuple),
)
RECORDS = st.one_of(
    st.builds(record.live, VERSIONS, OP_IDS, VALUES),
    st.builds(record.tombstone, VERSIONS, OP_IDS),
    st.builds(record.signed, VERSIONS, OP_IDS, SIGNATURES, st.none() | VALUES),
)


@given(VERSIONS, OP_IDS, SIGNATURES, st.none() | VALUES)
def test_a_signed_record_says_whose_it_is_and_what_it_holds(
    version: int, op_id: int, signature: Signature, value: bytes | None
) -> None:
    packed = record.signed(version, op_id, signature, value)
    assert record.signature_of(packed) == signature
    assert (record.version_of(packed), record.op_id_of(packed)) == (version, op_id)
    assert record.is_live(packed) == (value is not None)
    assert record.is_tombstone(packed) == (value is None)
    if value is not None:
        assert record.value_of(packed) == value
        assert record.shown(packed) == record.live(version, op_id, value)
    else:
        assert record.shown(packed) is None


@given(RECORDS)
def test_a_record_in_conflict_keeps_what_it_was(packed: bytes) -> None:
    conflicting = record.in_conflict(packed)
    assert record.is_in_conflict(conflicting)
    assert not record.is_in_conflict(packed)
    assert record.beneath(conflicting) == packed
    assert not record.is_tombstone(conflicting)
    assert record.is_live(conflicting) == record.is_live(packed)
    assert record.signature_of(conflicting) == record.signature_of(packed)
    assert record.version_of(conflicting) == record.version_of(packed)
    assert record.op_id_of(conflicting) == record.op_id_of(packed)
    if record.is_live(packed):
        assert record.value_of(conflicting) == record.value_of(packed)
        shown = record.shown(conflicting)
        assert shown is not None
        assert record.is_in_conflict(shown)
        assert record.value_of(shown) == record.value_of(packed)
        assert b"\0" in shown[record.HEAD_BYTES :]  # so that a client does not take it for text


def test_an_absent_key_in_conflict_is_absent_beneath() -> None:
    conflicting = record.in_conflict(ABSENT)
    assert record.beneath(conflicting) == ABSENT
    assert record.shown(conflicting) is None
    assert not record.is_live(conflicting)
    assert record.unpack_head(conflicting) == (SPECIAL, 0)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.none() | RECORDS), max_size=30))
def test_a_table_counts_values_and_tombstones_of_every_kind(
    changes: list[tuple[bytes, bytes | None]],
) -> None:
    table = Table()
    for index, (key, packed) in enumerate(changes):
        new = record.in_conflict(packed) if packed is not None and index % 3 == 0 else packed
        table.replace(key, new)
    again = Table(dict(table.records))
    assert (table.live, table.bytes) == (again.live, again.bytes)
    assert table.tombstones == again.tombstones
    assert table.live == sum(map(record.is_live, table.records.values()))
