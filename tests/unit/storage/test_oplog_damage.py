"""Every byte of a small log flipped, every length cut: detected or reported, the valid prefix kept, never served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nun.errors import DamagedFile
from storage import segment as seg
from storage.oplog import Oplog
from tests.support.logs import content, entries, entry
from tests.support.sim_disk import SimDisk

SEGMENT = 700
LAST = 9
FRAMES = {seq: entry(seq, 60)[1] for seq in range(1, LAST + 1)}


def small_log(*, closed: bool) -> SimDisk:
    """Two segments that hold nine entries, each synced, and a prepared one."""
    disk = SimDisk()
    log = Oplog.open(disk, SEGMENT, 10**6)
    for seq in range(1, LAST + 1):
        log.append([entry(seq, 60)])
        log.sync()
    log.prepare_spare()
    if closed:
        log.close()
    return disk


def segment_names(disk: SimDisk) -> list[str]:
    return [f"oplog/{name}" for name in disk.names(seg.FOLDER)]


def check(disk: SimDisk, must_be_damage: bool, what: str) -> None:
    """Opens a damaged log in both ways."""
    before = {name: disk.content(name) for name in segment_names(disk)}
    calls = disk.calls
    damage = None
    try:
        log = Oplog.open(disk, SEGMENT, 10**6)
    except DamagedFile as error:
        damage = error
    assert damage is not None or not must_be_damage, f"{what}: the damage was not noticed"
    if damage is not None:
        assert {name: disk.content(name) for name in segment_names(disk)} == before, what
        assert disk.calls == calls, what
        log = Oplog.open(disk, SEGMENT, 10**6, damage="keep-prefix")
        assert log.damage == str(damage), what
        assert before[damage.file] in [disk.content(name) for name in log.moved_aside], what
    reported = damage is not None or log.torn_bytes > 0
    found = content(disk, log)
    assert found == {seq: FRAMES[seq] for seq in found}, what
    assert sorted(found) == list(range(1, len(found) + 1)), what
    assert reported or len(found) == LAST, (
        f"{what}: {LAST - len(found)} entries lost without a word"
    )
    # The log goes on from there, and what was cut does not come back.
    again = entries(len(found) + 1, len(found) + 2, 60, start=2)
    log.append(again)
    log.close()
    log = Oplog.open(disk, SEGMENT, 10**6)
    assert log.torn_bytes == 0
    assert content(disk, log) == found | {position.seq: frame for position, frame in again}, what


def places() -> Iterator[tuple[str, int]]:
    disk = small_log(closed=True)
    for name in segment_names(disk):
        for offset in range(len(disk.content(name))):
            yield name, offset


def in_use(disk: SimDisk, name: str) -> int:
    return seg.used_end(disk.content(name), 0)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_every_byte_flipped(closed: bool) -> None:
    whole = small_log(closed=closed)
    last_record = in_use(whole, seg.name_of(2)) - seg.RECORD_BYTES - (0 if closed else 60)
    for name, offset in places():
        disk = whole.kill()
        data = bytearray(disk.content(name))
        used = in_use(disk, name)
        data[offset] ^= 1 << offset % 8
        disk.put(name, bytes(data))
        guarded = offset < used and not (name == seg.name_of(2) and offset >= last_record)
        check(disk, guarded, f"{name} byte {offset}")


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_every_length_cut(closed: bool) -> None:
    whole = small_log(closed=closed)
    for name, length in places():
        disk = whole.kill()
        disk.put(name, disk.content(name)[:length])
        check(disk, True, f"{name} cut to {length} bytes")


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_every_tail_zeroed(closed: bool) -> None:
    """As a file system does that lost the last blocks of a file."""
    whole = small_log(closed=closed)
    for name, length in places():
        disk = whole.kill()
        data = disk.content(name)
        partial = (length - seg.HEADER_BYTES) % (seg.RECORD_BYTES + 60)
        newest = name == seg.name_of(2) and length >= seg.HEADER_BYTES
        if newest and not any(data[length - partial : length]):
            continue  # whole records gone from the very end: nothing is left that could tell
        disk.put(name, data[:length].ljust(len(data), b"\0"))
        lost_all = name == seg.name_of(2) and length >= seg.HEADER_BYTES
        check(disk, not lost_all and length < in_use(whole, name), f"{name} zeros from {length}")


def test_a_segment_that_is_gone() -> None:
    disk = small_log(closed=False)
    log = Oplog.open(disk, SEGMENT, 10**6)
    for seq in range(LAST + 1, 20):
        log.append([entry(seq, 60)])
        log.sync()
    disk.remove(seg.name_of(2))
    with pytest.raises(DamagedFile) as raised:
        Oplog.open(disk, SEGMENT, 10**6)
    assert raised.value.file == seg.name_of(3)
    assert "seq 6" in raised.value.detail
    log = Oplog.open(disk, SEGMENT, 10**6, damage="keep-prefix")
    assert sorted(content(disk, log)) == [1, 2, 3, 4, 5]


def test_a_file_under_the_name_of_another() -> None:
    disk = small_log(closed=False)
    disk.put(seg.name_of(3), disk.content(seg.name_of(2)))
    with pytest.raises(DamagedFile, match="number 2, expected 3"):
        Oplog.open(disk, SEGMENT, 10**6)


def test_damage_twice_in_one_segment_keeps_both_pieces_of_evidence() -> None:
    disk = small_log(closed=True)
    for offset in (500, 300):
        data = bytearray(disk.content(seg.name_of(1)))
        data[offset] ^= 1
        disk.put(seg.name_of(1), bytes(data))
        log = Oplog.open(disk, SEGMENT, 10**6, damage="keep-prefix")
        log.append([entry(log.last.seq + 1 if log.last else 1, 60)])
        log.close()
    damaged = [name for name in disk.names(seg.FOLDER) if ".damaged" in name]
    assert "0000000000000001.log.damaged" in damaged
    assert "0000000000000001.log.damaged.1" in damaged


def test_bytes_of_a_record_in_a_value_are_no_record() -> None:
    """A value may hold anything, the bytes of later records of this very segment included."""
    disk = SimDisk()
    log = Oplog.open(disk, 10_000, 10**6)
    forged = b"".join(
        b"".join(seg.encode_record(seg.Header(1, salt, 10_000), entry(9)[0], 8, b"forged"))
        for salt in (0, 1, 2)
    )
    position, _ = entry(1)
    log.append([(position, forged)])
    log.sync()
    data = bytearray(disk.content(seg.name_of(1)))
    data[seg.HEADER_BYTES] ^= 1
    disk.put(seg.name_of(1), bytes(data))
    log = Oplog.open(disk, 10_000, 10**6)
    assert (log.last, log.torn_bytes) == (None, seg.RECORD_BYTES + len(forged))


def test_a_torn_tail_full_of_what_looks_like_records_is_judged_quickly() -> None:
    disk = SimDisk()
    log = Oplog.open(disk, 2**20, 10**7)
    position, _ = entry(1)
    pattern = seg.RECORD_MAGIC + (1).to_bytes(8, "little") + (2**20).to_bytes(4, "little")
    log.append([(position, pattern * 20_000)])
    data = bytearray(disk.content(seg.name_of(1)))
    data[seg.HEADER_BYTES] ^= 1
    disk.put(seg.name_of(1), bytes(data))
    assert Oplog.open(disk, 2**20, 10**7).last is None


def test_recycled_bytes_never_replay() -> None:
    """Where a recycled file kept bytes of its earlier life behind the new header, they count for nothing."""
    disk = SimDisk()
    log = Oplog.open(disk, SEGMENT, 10**6)
    log.append(entries(1, 3, 60))
    log.close()
    old = disk.content(seg.name_of(1))
    for number, salt in ((1, 12345), (2, int.from_bytes(old[12:16], "little"))):
        disk = SimDisk()
        header = seg.encode_header(seg.Header(number, salt, SEGMENT))
        disk.put(seg.name_of(number), header + old[seg.HEADER_BYTES :])
        log = Oplog.open(disk, SEGMENT, 10**6)
        assert log.last is None
        assert log.torn_bytes > 0
