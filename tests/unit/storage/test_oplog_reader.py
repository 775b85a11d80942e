"""Reading the log beside its writer: from anywhere, in order, honest about what is gone."""

from __future__ import annotations

import pytest

from nun.errors import Compacted, DamagedFile
from storage import log_reader
from storage import segment as seg
from storage.oplog import LogReader, Oplog
from tests.support.logs import entries, entry
from tests.support.sim_disk import SimDisk

SEGMENT = 1000
BUDGET = 4 * SEGMENT


def written(last: int, size: int = 100) -> tuple[SimDisk, Oplog]:
    disk = SimDisk()
    log = Oplog.open(disk, SEGMENT, BUDGET)
    for seq in range(1, last + 1):
        log.append([entry(seq, size)])
    log.sync()
    return disk, log


def frames(first: int, last: int, size: int = 100) -> list[bytes]:
    return [frame for _, frame in entries(first, last, size)]


def test_an_empty_log() -> None:
    reader = LogReader(SimDisk())
    assert (reader.first_seq(), reader.last_seq(), reader.read(1, 100, 0)) == (0, 0, [])
    with pytest.raises(Compacted):
        reader.read(1, 100, 5)


@pytest.mark.parametrize("from_seq", range(1, 21))
def test_from_anywhere_to_the_end(from_seq: int) -> None:
    disk, _ = written(20)
    assert LogReader(disk).read(from_seq, 10_000, 20) == frames(from_seq, 20)


def test_never_behind_what_is_durable() -> None:
    disk, log = written(20)
    log.append(entries(21, 25, 100))
    reader = LogReader(disk)
    assert reader.read(18, 10_000, 20) == frames(18, 20)
    assert reader.read(21, 10_000, 20) == []
    assert reader.read(21, 10_000, 25) == frames(21, 25)


def test_at_least_one_however_small_the_room() -> None:
    disk, _ = written(20)
    reader = LogReader(disk)
    assert reader.read(3, 0, 20) == frames(3, 3)
    assert reader.read(4, 1, 20) == frames(4, 4)
    assert reader.read(5, 101, 20) == frames(5, 6)


def test_entries_larger_than_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "CHUNK_BYTES", 130)
    monkeypatch.setattr(log_reader, "STEP_BYTES", 200)
    disk, _ = written(20, 300)
    for from_seq in range(1, 21):
        assert LogReader(disk).read(from_seq, 10_000, 20) == frames(from_seq, 20, 300)


def test_sequential_reads_cost_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimDisk()
    log = Oplog.open(disk, 100_000, 10**6)
    log.append(entries(1, 500, 100))
    log.sync()
    reader = LogReader(disk)
    reader.read(500, 10_000, 500)
    heads = []
    real = seg.head_at
    monkeypatch.setattr(seg, "head_at", lambda *given: heads.append(1) or real(*given))
    for seq in range(501, 511):
        log.append([entry(seq, 100)])
        assert reader.read(seq, 10_000, seq) == frames(seq, seq)
    assert len(heads) <= 2 * 10


def test_a_place_far_into_a_segment_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "STEP_BYTES", 1000)
    disk = SimDisk()
    log = Oplog.open(disk, 100_000, 10**6)
    log.append(entries(1, 500, 100))
    reader = LogReader(disk)
    assert reader.read(490, 1, 500) == frames(490, 490)
    heads = []
    real = seg.head_at
    monkeypatch.setattr(seg, "head_at", lambda *given: heads.append(1) or real(*given))
    assert reader.read(480, 1, 500) == frames(480, 480)
    assert len(heads) < 20


def test_many_readers_of_different_places_forget_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_reader, "CURSORS_MAX", 3)
    monkeypatch.setattr(log_reader, "FILES_MAX", 2)
    disk, _ = written(30)
    reader = LogReader(disk)
    for offset in range(24):
        for start in (1, 3, 5, 7, 2):
            assert reader.read(start + offset, 1, 30) == frames(start + offset, start + offset)
    assert len(reader._cursors) <= 3
    assert len(reader._files) <= 2
    reader.close()
    assert reader.read(1, 1, 30) == frames(1, 1)


def test_a_segment_recycled_under_the_reader() -> None:
    disk, log = written(36)
    reader = LogReader(disk)
    assert reader.read(1, 100, 36) == frames(1, 1)
    log.trim(20)
    log.prepare_spare()
    for seq in range(37, 43):
        log.append([entry(seq, 100)])
    log.sync()
    assert disk.names(seg.FOLDER)[-1] == "0000000000000007.log"
    with pytest.raises(Compacted) as raised:
        reader.read(2, 100, 42)
    assert raised.value.first_seq == reader.first_seq() == log.first_seq == 19
    assert reader.read(19, 10_000, 42) == frames(19, 42)


def test_a_segment_removed_under_the_reader_may_still_be_read_to_its_end() -> None:
    disk, log = written(36)
    reader = LogReader(disk)
    reader.read(7, 1, 36)
    log.trim(20)
    assert reader.read(8, 1, 36) == frames(8, 8)
    assert reader.read(9, 10_000, 12) == frames(9, 12)
    with pytest.raises(Compacted):
        reader.read(13, 1, 36)


def test_closing_marks_are_passed_over() -> None:
    disk, log = written(3)
    for seq in range(4, 12):
        log.close()
        log = Oplog.open(disk, SEGMENT, BUDGET)
        log.append([entry(seq, 100)])
    for room in (1, 10_000):
        for from_seq in range(1, 12):
            found = LogReader(disk).read(from_seq, room, 11)
            assert found == frames(from_seq, from_seq + len(found) - 1)
    assert LogReader(disk).last_seq() == 11


def test_an_entry_that_should_be_there_and_is_not_is_damage() -> None:
    disk, _ = written(20)
    with pytest.raises(DamagedFile, match="expected the record of seq 21"):
        LogReader(disk).read(20, 10_000, 25)


def test_every_byte_flipped_under_a_reader_is_noticed_or_harmless() -> None:
    disk, _ = written(8)
    whole = {name: disk.content(f"oplog/{name}") for name in disk.names(seg.FOLDER)}
    for name, data in whole.items():
        for place in range(len(data)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            disk.put(f"oplog/{name}", bytes(flipped))
            reader = LogReader(disk)
            found: list[bytes] = []
            try:
                while len(found) < 8:
                    found += reader.read(len(found) + 1, 200, 8)
            except (DamagedFile, Compacted):
                pass
            assert found == frames(1, len(found)), f"{name} byte {place}"
        disk.put(f"oplog/{name}", data)


def test_a_record_of_another_seq_is_never_returned() -> None:
    disk, _ = written(6)
    reader = LogReader(disk)
    reader.read(1, 1, 6)
    reader._cursors[4] = reader._cursors.pop(2)
    with pytest.raises(DamagedFile, match="expected the record of seq 4"):
        reader.read(4, 1, 6)
