"""The bytes of a database's files, written down."""

from __future__ import annotations

import random
import struct
import zlib

import pytest

from nun.core import record
from storage import layout
from tests.support.snapshots import every_kind

KEY, VALUE, OP_ID = b"k\xc3\xa9", b"mary", 0x0102030405060708


def test_keys_and_values_are_nundbs() -> None:
    assert layout.keys_record(KEY, 5, 16) == bytes.fromhex(
        "0300000000000000 6bc3a9 05000000 1000000000000000"
    )
    assert layout.keys_record(b"", layout.REMOVED, 0) == bytes.fromhex(
        "0000000000000000 ffffffff 0000000000000000"
    )
    assert layout.values_record(VALUE) == bytes.fromhex("0400000000000000 6d617279 00000000")


def test_a_row() -> None:
    packed = record.live(5, OP_ID, VALUE)
    encoded = layout.encode([KEY], [packed], 100, 16)
    in_keys = layout.keys_record(KEY, 5, 16)
    crc = zlib.crc32(in_keys + packed)
    assert encoded.keys == in_keys
    assert encoded.values == layout.values_record(VALUE)
    assert encoded.rows == bytes.fromhex(
        "6400000000000000 05000000 0807060504030201"
    ) + crc.to_bytes(4, "little")


def test_many_at_once_are_as_one_after_the_other() -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(200):
        count = rng.randint(1, 6)
        key_bytes, value_bytes = rng.choice([(3, 5), (0, 0), (None, 4), (4, None), (None, None)])
        keys, records = [], []
        for _ in range(count):
            keys.append(rng.randbytes(rng.randrange(6) if key_bytes is None else key_bytes))
            value = rng.randbytes(rng.randrange(6) if value_bytes is None else value_bytes)
            records.append(record.live(rng.randrange(2**31), rng.randrange(1, 2**64), value))
        keys_at, values_at = rng.randrange(2**40), rng.randrange(2**40)
        expected = [b"", b"", b""]
        for key, packed in zip(keys, records, strict=True):
            address = values_at + len(expected[1])
            in_keys = layout.keys_record(key, record.version_of(packed), address)
            offset = keys_at + len(expected[0])
            expected[2] += layout.LENGTH.pack(offset) + packed[:12]
            expected[2] += struct.pack("<I", layout.checksum(in_keys, packed))
            expected[0] += in_keys
            expected[1] += layout.values_record(record.value_of(packed))
        assert layout.encode(keys, records, keys_at, values_at) == tuple(expected)


def test_only_records_with_values_go_in_bulk() -> None:
    live, tombstone = record.live(1, 2, b""), record.tombstone(1, 2)
    assert layout.all_live([])
    assert layout.all_live([live, live])
    assert not layout.all_live([live, tombstone])


def test_records_of_every_kind() -> None:
    """Version and address in the keys file, and what stands in the values file, from byte 32 on."""
    bare = record.Signature(5, 2, b"c", 1)
    signature = "05 00000000000000 02000000 0100000000000000 00 63"
    value = "0400000000000000 6d617279 00000000"
    none = "0000000000000000 00000000"
    live, removed = record.live(5, OP_ID, VALUE), record.tombstone(5, OP_ID)
    signed, signed_removed = (record.signed(5, OP_ID, bare, given) for given in (VALUE, None))
    expected = [
        (removed, "ffffffff 0000000000000000", ""),
        (
            signed,
            "05000000 2000000000000000",
            f"{value} 1900000000000000 01 1600 {signature}",
        ),
        (
            signed_removed,
            "ffffffff 2100000000000000",
            f"{none} 1900000000000000 02 1600 {signature}",
        ),
        (record.in_conflict(live), "feffffff 2000000000000000", f"{value} 0200000000000000 0300"),
        (record.in_conflict(removed), "ffffffff 2100000000000000", f"{none} 0200000000000000 0304"),
        (
            record.in_conflict(signed),
            "feffffff 2000000000000000",
            f"{value} 1a00000000000000 0301 1600 {signature}",
        ),
        (
            record.in_conflict(signed_removed),
            "ffffffff 2100000000000000",
            f"{none} 1a00000000000000 0302 1600 {signature}",
        ),
        (
            record.in_conflict(record.ABSENT),
            "ffffffff 2100000000000000",
            f"{none} 0200000000000000 0305",
        ),
    ]
    for packed, in_keys, in_values in expected:
        ends = bytes.fromhex(in_values + ("01000000" if in_values else ""))
        key = bytes.fromhex("0300000000000000 6bc3a9" + in_keys)
        assert layout.encode_special(KEY, packed, 32) == (key, ends), packed


def test_the_files_give_every_record_back() -> None:
    for packed in every_kind(7, OP_ID, VALUE):
        word, op_id = record.unpack_head(packed)
        if word < record.SPECIAL:
            in_keys, in_values = layout.keys_record(KEY, word, 32), layout.values_record(VALUE)
        else:
            in_keys, in_values = layout.encode_special(KEY, packed, 32)
        version, address = layout.KEY_TAIL.unpack(in_keys[-layout.KEY_TAIL.size :])
        assert layout.packed_of(word, op_id, version, address, b"x" * 32 + in_values) == packed
        assert not layout.is_free(word, op_id)
        for at in range(32, 32 + len(in_values)):
            with pytest.raises((ValueError, struct.error)):
                layout.packed_of(word, op_id, version, address, (b"x" * 32 + in_values)[:at])
    assert layout.is_free(0, 0)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("shop", "shop"),
        ("été 名", "été 名"),
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("50%", "50%25"),
        ("a\n\x7f", "a%0A%7F"),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert layout.stem(name) == stem


def test_no_two_names_share_a_stem_and_all_fit_into_a_directory() -> None:
    names = ["/" * count for count in range(60, 129)]
    names += ["/" * 127 + end for end in "abc%"]
    names += ["%2F", "/", "%", "%25", "%252F", "名" * 42, "名" * 41 + "x"]
    stems = [layout.stem(name) for name in names]
    assert len(set(stems)) == len(names)
    for stem in stems:
        assert "/" not in stem
        assert len((stem + layout.ending(layout.VALUES) + ".4294967295.new").encode()) <= 255


@pytest.mark.parametrize("kind", [*layout.KINDS, layout.SIDE, layout.METADATA])
def test_a_file_name_tells_stem_and_kind(kind: str) -> None:
    name = layout.file_name("a/b", kind)
    assert layout.stem_of(name, kind) == "a%2Fb"
    for other in {*layout.KINDS, layout.SIDE, layout.METADATA} - {kind}:
        assert layout.stem_of(name, other) is None
