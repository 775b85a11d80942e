"""The oplog in fair weather, on a full disk, and on a disk that fails."""

from __future__ import annotations

import errno
import random
import threading
from pathlib import Path

import pytest

from nun.errors import Compacted, DamagedFile, FormatTooNew, StorageError
from nun.position import Position
from storage import segment as seg
from storage.disk import RealDisk
from storage.oplog import LogReader, Oplog
from tests.support.logs import content, entries, entry
from tests.support.sim_disk import SimDisk

SEGMENT = 1000
BUDGET = 4 * SEGMENT


def opened(disk: SimDisk, **options: object) -> Oplog:
    return Oplog.open(disk, SEGMENT, BUDGET, **options)  # type: ignore[arg-type]


def filled(disk: SimDisk, last: int, size: int = 100) -> Oplog:
    log = opened(disk)
    for seq in range(1, last + 1):
        log.append([entry(seq, size)])
    log.sync()
    return log


def names(disk: SimDisk) -> list[str]:
    return disk.names(seg.FOLDER)


class TestAppending:
    def test_an_empty_log_has_nothing_and_touches_nothing(self) -> None:
        disk = SimDisk()
        log = opened(disk)
        assert (log.last, log.first_seq, log.segments, log.size, log.torn_bytes) == (
            None,
            0,
            0,
            0,
            0,
        )
        log.append([])
        log.sync()
        log.close()
        assert disk.calls == 0

    def test_what_was_appended_is_there_after_reopening(self) -> None:
        disk = SimDisk()
        log = filled(disk, 40)
        before = content(disk, log)
        log.close()
        again = opened(disk)
        assert again.last == Position(1, 1, 1, 40)
        assert content(disk, again) == before == {seq: entry(seq, 100)[1] for seq in range(1, 41)}
        assert again.torn_bytes == 0

    def test_many_entries_are_one_write(self) -> None:
        disk = SimDisk()
        log = filled(disk, 1)
        before = disk.calls
        log.append(entries(2, 5))
        assert disk.calls == before + 1
        log.sync()
        assert disk.calls == before + 2
        log.sync()
        assert disk.calls == before + 2, "nothing new, and synced all the same"

    def test_a_log_may_begin_anywhere_and_goes_on_across_epochs(self) -> None:
        disk = SimDisk()
        log = opened(disk)
        log.append([entry(71)])
        log.append([(Position(1, 1, 2, 72), b"of the next start")])
        log.append([(Position(2, 1, 1, 73), b"of the next reign")])
        log.close()
        log = opened(disk)
        assert (log.first_seq, log.last) == (71, Position(2, 1, 1, 73))
        assert len(content(disk, log)) == 3

    @pytest.mark.parametrize(
        "given",
        [
            [entry(12)],
            [entry(10)],
            [entry(11), entry(13)],
            [(Position(1, 1, 0, 11), b"of an older start")],
        ],
    )
    def test_what_does_not_continue_the_log_is_a_bug(
        self, given: list[tuple[Position, bytes]]
    ) -> None:
        disk = SimDisk()
        log = filled(disk, 10)
        with pytest.raises(AssertionError, match="does not continue"):
            log.append(given)
        assert log.last == Position(1, 1, 1, 10)

    def test_an_append_that_does_not_fit_goes_whole_to_the_next_segment(self) -> None:
        disk = SimDisk()
        log = filled(disk, 5)
        assert log.segments == 1
        log.append(entries(6, 8, 100))
        assert log.segments == 2
        assert len(content(disk, log)) == 8

    def test_an_entry_larger_than_a_segment_gets_one_of_its_size(self) -> None:
        disk = SimDisk()
        log = filled(disk, 3)
        log.append([entry(4, 5 * SEGMENT)])
        log.append([entry(5)])
        log.sync()
        assert log.segments == 3
        assert len(content(disk, log)) == 5
        log.trim(5)
        assert names(disk) == ["0000000000000003.log"] or log.segments == 1
        log.close()
        assert sorted(content(disk, opened(disk))) == [5]

    def test_describe(self) -> None:
        disk = SimDisk()
        log = filled(disk, 20)
        log.prepare_spare()
        assert log.describe() == {
            "bytes": 5 * SEGMENT,
            "budget_bytes": BUDGET,
            "segments": 4,
            "first_seq": 1,
            "last": "1.1.1:20",
            "synced_seq": 20,
            "torn_bytes": 0,
            "moved_aside": [],
            "spare": True,
        }


class TestSegments:
    def test_a_prepared_segment_is_used_without_touching_names(self) -> None:
        disk = SimDisk()
        log = filled(disk, 6)
        assert log.wants_spare
        log.prepare_spare()
        assert not log.wants_spare
        before = disk.calls
        log.append([entry(7, 100)])
        assert log.segments == 2
        assert disk.calls == before + 1
        assert log.wants_spare

    def test_a_prepared_segment_survives_reopening(self) -> None:
        disk = SimDisk()
        log = filled(disk, 6)
        log.prepare_spare()
        log.close()
        log = opened(disk)
        assert not log.wants_spare
        before = disk.calls
        log.append([entry(7, 100)])
        assert disk.calls == before + 1

    def test_trim_keeps_to_the_budget_and_to_what_is_needed(self) -> None:
        disk = SimDisk()
        log = filled(disk, 36)
        assert log.segments == 6
        assert log.trim(1) == 0
        assert log.trim(7) == 1
        assert log.first_seq == 7
        assert log.trim(12) == 0
        assert log.trim(1000) == 2
        assert (log.first_seq, log.segments) == (19, 3)
        assert log.trim(1000) == 0
        with pytest.raises(Compacted) as raised:
            LogReader(disk).read(18, 100, 36)
        assert raised.value.first_seq == 19
        assert len(content(disk, log)) == 18

    def test_one_segment_given_up_is_recycled_and_others_are_removed(self) -> None:
        disk = SimDisk()
        log = filled(disk, 36)
        log.trim(1000)
        assert names(disk) == [
            "0000000000000004.log",
            "0000000000000005.log",
            "0000000000000006.log",
            "spare-0000000000000001",
        ]
        log.prepare_spare()
        assert "0000000000000007.log" in names(disk)
        assert disk.content("oplog/0000000000000007.log").strip(b"\0").startswith(seg.MAGIC)
        assert not any(disk.content("oplog/0000000000000007.log")[seg.HEADER_BYTES :])

    def test_a_spare_of_another_size_becomes_a_segment_of_the_present_one(self) -> None:
        disk = SimDisk()
        filled(disk, 36).trim(1000)
        log = Oplog.open(disk, SEGMENT // 2, BUDGET)
        log.prepare_spare()
        assert len(disk.content("oplog/0000000000000007.log")) == SEGMENT // 2

    def test_the_number_of_a_segment_is_used_once(self) -> None:
        disk = SimDisk()
        log = filled(disk, 36)
        log.trim(1000)
        log.close()
        disk.rename("oplog/0000000000000006.log", "oplog/0000000000000006.log.damaged")
        log = opened(disk)
        log.prepare_spare()
        assert "0000000000000007.log" in names(disk)

    def test_beginning_anew_behind_what_the_files_have(self) -> None:
        disk = SimDisk()
        log = filled(disk, 30)
        log.start_after(Position(1, 1, 1, 80))
        assert (log.segments, log.first_seq, log.last) == (0, 0, Position(1, 1, 1, 80))
        log.append(entries(81, 83))
        log.close()
        log = opened(disk)
        assert sorted(content(disk, log)) == [81, 82, 83]
        with pytest.raises(AssertionError):
            log.start_after(Position(1, 1, 1, 83))

    def test_only_what_may_be_replayed_is_checked_when_the_caller_says_so(self) -> None:
        disk = SimDisk()
        filled(disk, 36).close()
        name = seg.name_of(2)
        data = bytearray(disk.content(name))
        data[seg.HEADER_BYTES + seg.RECORD_BYTES + 1] ^= 1
        disk.put(name, bytes(data))
        with pytest.raises(DamagedFile):
            opened(disk)
        with pytest.raises(DamagedFile):
            opened(disk, check_from_seq=12)
        log = opened(disk, check_from_seq=13)
        assert (log.first_seq, log.last) == (1, Position(1, 1, 1, 36))
        with pytest.raises(DamagedFile):
            LogReader(disk).read(7, 100, 36)
        assert LogReader(disk).read(13, 10_000, 36) == [frame for _, frame in entries(13, 36, 100)]

    def test_a_format_of_the_future_is_left_alone(self) -> None:
        disk = SimDisk()
        filled(disk, 3).close()
        data = bytearray(disk.content(seg.name_of(1)))
        data[8] = 2
        data[36:40] = seg._crc32(data[:36]).to_bytes(4, "little")
        disk.put(seg.name_of(1), bytes(data))
        calls = disk.calls
        with pytest.raises(FormatTooNew, match="format 2, expected at most 1"):
            opened(disk, damage="keep-prefix")
        with pytest.raises(FormatTooNew):
            LogReader(disk).read(1, 1, 3)
        assert disk.calls == calls

    def test_preparing_in_a_thread_beside_appends(self, tmp_path: Path) -> None:
        disk = RealDisk(tmp_path)
        log = Oplog.open(disk, 2000, 10_000)
        done = threading.Event()
        failures: list[BaseException] = []

        def prepare() -> None:
            try:
                while not done.is_set():
                    log.prepare_spare()
            except (OSError, StorageError, AssertionError) as error:
                failures.append(error)

        thread = threading.Thread(target=prepare)
        thread.start()
        try:
            for seq in range(1, 400):
                log.append([entry(seq, 300)])
                if seq % 7 == 0:
                    log.sync()
                if seq % 20 == 0:
                    log.trim(seq)
        finally:
            done.set()
            thread.join()
        assert failures == []
        log.close()
        log = Oplog.open(disk, 2000, 10_000)
        found = content(disk, log)  # type: ignore[arg-type]
        assert found == {seq: entry(seq, 300)[1] for seq in range(log.first_seq, 400)}
        log.close()


class TestFullDisk:
    def test_the_same_entries_can_be_appended_when_there_is_room(self) -> None:
        disk = SimDisk()
        log = filled(disk, 5)
        disk.fill(leave=300)
        for _ in range(3):
            with pytest.raises(OSError, match="No space") as raised:
                log.append(entries(6, 8, 100))
            assert raised.value.errno == errno.ENOSPC
        assert log.last == Position(1, 1, 1, 5)
        log.append([entry(6, 100)])
        log.sync()
        disk.capacity = None
        log.append(entries(7, 8, 100))
        log.close()
        assert len(content(disk, opened(disk))) == 8

    def test_a_prepared_segment_cannot_run_full(self) -> None:
        disk = SimDisk()
        log = filled(disk, 6)
        log.prepare_spare()
        disk.fill()
        for seq in range(7, 13):
            log.append([entry(seq, 100)])
        log.sync()
        with pytest.raises(OSError, match="No space"):
            log.append([entry(13, 100)])
        with pytest.raises(OSError, match="No space"):
            log.prepare_spare()
        assert log.wants_spare
        assert len(content(disk, log)) == 12

    def test_a_trimmed_segment_makes_room_on_a_full_disk(self) -> None:
        disk = SimDisk()
        log = filled(disk, 36)
        disk.fill()
        with pytest.raises(OSError, match="No space"):
            log.append([entry(37, 100)])
        log.trim(37)
        log.append([entry(37, 100)])
        log.close()

    def test_a_large_entry_that_fits_only_in_part_leaves_nothing(self) -> None:
        disk = SimDisk()
        log = filled(disk, 3)
        log.prepare_spare()
        disk.fill(leave=700)
        large = [entry(4, 300), entry(5, 300), entry(6, 5000)]
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                log.append(large)
        after = disk.kill()
        again = opened(after)
        assert sorted(content(after, again)) == [1, 2, 3]
        assert again.torn_bytes == 0
        log.append([entry(4, 300)])
        log.sync()
        after = disk.kill()
        assert sorted(content(after, opened(after))) == [1, 2, 3, 4]
        disk.capacity = None
        log.append(large[1:])
        log.close()
        assert len(content(disk, opened(disk))) == 6

    def test_closing_on_a_full_disk(self) -> None:
        disk = SimDisk()
        log = opened(disk)
        size = (SEGMENT - seg.HEADER_BYTES) // 2 - seg.RECORD_BYTES
        log.append(entries(1, 2, size))
        disk.fill()
        log.close()
        assert len(content(disk, opened(disk))) == 2


class TestFailingDisk:
    def test_after_a_failed_sync_every_call_raises(self) -> None:
        disk = SimDisk()
        log = filled(disk, 3)
        log.append([entry(4)])
        disk.syncs_to_fail = 1
        with pytest.raises(OSError, match="Input/output"):
            log.sync()
        for call in (
            lambda: log.append([entry(5)]),
            log.sync,
            log.prepare_spare,
            lambda: log.trim(3),
        ):
            with pytest.raises(StorageError, match="failed before"):
                call()
        calls = disk.calls
        log.close()
        assert disk.calls == calls, "a log that failed was written to"

    @pytest.mark.parametrize("whole", [False, True])
    def test_what_reads_back_after_a_failed_sync_is_on_disk_after_recovery(
        self, whole: bool
    ) -> None:
        """The system calls it clean and never writes it again, so recovery does."""
        for seed in range(10):
            disk = SimDisk()
            log = opened(disk)
            if not whole:
                log.append(entries(1, 3))
                log.sync()
            log.append([entry(4 if not whole else 1)])
            disk.syncs_to_fail = 1
            with pytest.raises(OSError, match="Input/output"):
                log.sync()
            killed = disk.kill()
            recovered = opened(killed)
            expected = content(killed, recovered)
            assert len(expected) == (1 if whole else 4)
            after = killed.crash(random.Random(seed))
            assert content(after, opened(after)) == expected

    def test_a_filled_segment_that_cannot_be_synced_fails_the_log(self) -> None:
        disk = SimDisk()
        log = opened(disk)
        for seq in range(1, 10):
            log.append([entry(seq, 100)])
        disk.syncs_to_fail = 1
        with pytest.raises(OSError, match="Input/output"):
            log.prepare_spare()
        with pytest.raises(StorageError):
            log.sync()

    @pytest.mark.parametrize("call", ["trim", "prepare_spare", "start_after"])
    def test_names_that_cannot_be_synced_fail_the_log(self, call: str) -> None:
        disk = SimDisk()
        log = filled(disk, 36)
        disk.syncs_to_fail = 1
        with pytest.raises(OSError, match="Input/output"):
            {
                "trim": lambda: log.trim(1000),
                "prepare_spare": log.prepare_spare,
                "start_after": lambda: log.start_after(Position(1, 1, 1, 99)),
            }[call]()
        with pytest.raises(StorageError):
            log.append([entry(37)])

    def test_segments_filled_between_syncs_are_synced_with_the_next(self) -> None:
        disk = SimDisk()
        log = opened(disk)
        for seq in range(1, 60):
            log.append([entry(seq, 100)])
        assert 0 < log.synced_seq < 59, "filled segments pile up"
        log.prepare_spare()
        assert log.synced_seq == 54
        log.sync()
        assert log.synced_seq == 59
