"""Side files and `nun.state`: all of one, or a clear error."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace

import pytest

from nun.codec import pack
from nun.core import effects as fx
from nun.core.state import NodeState
from nun.errors import DamagedFile, FormatTooNew, StorageError
from nun.position import Position
from storage import manifest
from storage.manifest import Side
from tests.support.sim_disk import Crashed, SimDisk

NAME = "shop-nun.data.side"
SIDE = Side(3, "shöp", 7, 100, 200, 4, 150, 1, 2, [("keys", 8, b"\x00\xff"), ("rows", 0, b"r")])


def framed(magic: bytes, body: bytes) -> bytes:
    return magic + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def state() -> NodeState:
    made = NodeState()
    made.apply(Position(1, 1, 1, 1), [(fx.EPOCH, b"c" * 16, {1: ["n", b"d" * 16, 1]}, 2)])
    made.apply(Position(1, 1, 1, 2), [(fx.DATABASE, 1, "shöp", {"strategy": "none"})])
    return made


def test_a_side_file_comes_back() -> None:
    disk = SimDisk()
    manifest.replace(disk, NAME, manifest.side_bytes(SIDE))
    assert manifest.read_side(disk, NAME) == SIDE
    assert disk.content(NAME) == framed(b"NUNSIDE1", SIDE.body())


def test_a_side_file_of_records_with_tails_is_of_format_2() -> None:
    """A program that knows only format 1 would take such records for damage; it says that they are too new."""
    side = replace(SIDE, format=manifest.FORMAT_WITH_TAILS)
    disk = SimDisk()
    manifest.replace(disk, NAME, manifest.side_bytes(side))
    assert manifest.read_side(disk, NAME) == side
    assert disk.content(NAME) == framed(b"NUNSIDE2", SIDE.body())


def test_the_state_comes_back() -> None:
    disk = SimDisk()
    assert manifest.read_state(disk) is None
    manifest.replace(disk, manifest.STATE, manifest.state_bytes(state(), {1: 2}))
    found = manifest.read_state(disk)
    assert found is not None
    assert found[0].dump() == state().dump()
    assert found[1] == {1: 2}


@pytest.mark.parametrize("name", [NAME, manifest.STATE])
def test_every_cut_and_every_flipped_bit_is_found(name: str) -> None:
    content = manifest.side_bytes(SIDE) if name == NAME else manifest.state_bytes(state(), {1: 2})
    wrong = [content[:size] for size in range(len(content))] + [content + b"\0"]
    for at in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        wrong.append(bytes(flipped))
    disk = SimDisk()
    for broken in wrong:
        disk.put(name, broken)
        with pytest.raises((DamagedFile, FormatTooNew)):
            manifest.read_side(disk, name) if name == NAME else manifest.read_state(disk)


def test_a_later_format_is_told_as_such() -> None:
    disk = SimDisk()
    disk.put(NAME, framed(b"NUNSIDE3", SIDE.body()))
    with pytest.raises(FormatTooNew, match="NUNSIDE3"):
        manifest.read_side(disk, NAME)
    disk.put(manifest.STATE, framed(b"NUNSTAT2", b"x"))
    with pytest.raises(FormatTooNew, match="NUNSTAT2"):
        manifest.read_state(disk)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", pack(7), pack([1]), pack([1, b"\xff", 0, 0, 0, 0, 0, 0, 0, []])]
    + [pack([1, "s", 0, 0, 0, 0, 0, 0, 0, plan]) for plan in ([1], [[1, 2, 3]], [["keys", 1]])],
)
def test_a_right_checksum_over_anything_else_is_damage(body: bytes) -> None:
    disk = SimDisk()
    disk.put(NAME, framed(b"NUNSIDE1", body))
    with pytest.raises(DamagedFile, match=r"shop-nun\.data\.side"):
        manifest.read_side(disk, NAME)
    disk.put(manifest.STATE, framed(b"NUNSTAT1", body))
    with pytest.raises(DamagedFile, match=r"nun\.state"):
        manifest.read_state(disk)


@pytest.mark.parametrize("how", ["done", "not_done", "torn"])
def test_a_replaced_file_is_the_old_or_the_new_one(how: object) -> None:
    old, new = b"old" * 300, b"new" * 500
    calls = 0
    while True:
        calls += 1
        disk = SimDisk()
        disk.put("f", old)
        disk.put("f.tmp", b"left over from before, and longer than both" * 100)
        disk.crash_after(calls, how)  # type: ignore[arg-type]
        try:
            manifest.replace(disk, "f", new)
        except Crashed:
            for seed in range(8):
                assert disk.crash(random.Random(seed)).content("f") in (old, new)
        else:
            break
    assert calls == 6
    assert disk.crash(random.Random(1)).content("f") == new


def test_a_sync_that_failed_is_not_taken_for_a_full_disk() -> None:
    disk = SimDisk()
    disk.syncs_to_fail = 1
    with pytest.raises(StorageError, match="synced"):
        manifest.replace(disk, "f", b"x")
    disk.syncs_to_fail = 1
    with pytest.raises(StorageError, match="synced"):
        manifest.sync_names(disk)
