"""Cutting the log back: what is above the cut never comes again, what is below stays, whatever crashes."""

from __future__ import annotations

import random

import pytest

from nun.position import Position
from storage.oplog import LogReader, Oplog
from tests.support.sim_disk import Crashed, How, SimDisk

SEGMENT = 700
LAST = 14


def entry(seq: int, epoch: int = 1) -> tuple[Position, bytes]:
    return Position(epoch, 1, 1, seq), b"entry %d of epoch %d" % (seq, epoch) + bytes(60)


def a_log(disk: SimDisk) -> Oplog:
    log = Oplog.open(disk, SEGMENT, 10**6)
    for seq in range(1, LAST + 1):
        log.append([entry(seq)])
        log.sync()
    return log


def content(disk: SimDisk, first: int = 1) -> list[bytes]:
    reader = LogReader(disk)
    last = reader.last_seq()
    found: list[bytes] = []
    while first + len(found) <= last:
        found += reader.read(first + len(found), 10**6, last)
    return found


@pytest.mark.parametrize("cut", range(LAST + 1))
def test_the_log_ends_at_the_cut_and_goes_on_from_there(cut: int) -> None:
    disk = SimDisk()
    log = a_log(disk)
    assert log.segments > 2
    log.truncate_after(cut)
    assert (0 if log.last is None else log.last.seq) == cut
    for seq in range(cut + 1, cut + 4):
        log.append([entry(seq, epoch=2)])
    log.sync()
    expected = [entry(seq)[1] for seq in range(1, cut + 1)]
    expected += [entry(seq, epoch=2)[1] for seq in range(cut + 1, cut + 4)]
    assert content(disk) == expected
    again = Oplog.open(disk.kill(), SEGMENT, 10**6)
    assert again.last == Position(2, 1, 1, cut + 3)
    assert not again.torn_bytes


@pytest.mark.parametrize("cut", range(LAST + 1))
def test_a_segment_that_recovery_passed_over_is_cut_as_any_other(cut: int) -> None:
    disk = SimDisk()
    a_log(disk)
    disk = disk.kill()
    log = Oplog.open(disk, SEGMENT, 10**6, check_from_seq=LAST)
    log.truncate_after(cut)
    log.append([entry(cut + 1, epoch=2)])
    log.sync()
    assert content(disk) == [
        *(entry(seq)[1] for seq in range(1, cut + 1)),
        entry(cut + 1, epoch=2)[1],
    ]


@pytest.mark.parametrize("how", ["done", "not_done", "torn"])
@pytest.mark.parametrize("cut", [0, 3, 9, 13])
def test_a_crash_at_every_call_leaves_a_log_that_ends_between(how: How, cut: int) -> None:
    whole = SimDisk()
    log = a_log(whole)
    before = whole.calls
    log.truncate_after(cut)
    calls = whole.calls - before
    assert calls > 1
    for call in range(1, calls + 1):
        disk = SimDisk(call)
        log = a_log(disk)
        disk.crash_after(call, how)
        with pytest.raises(Crashed):
            log.truncate_after(cut)
        after = disk.crash(random.Random(call))
        again = Oplog.open(after, SEGMENT, 10**6)
        last = 0 if again.last is None else again.last.seq
        assert cut <= last <= LAST
        assert content(after) == [entry(seq)[1] for seq in range(1, last + 1)]
        again.truncate_after(cut)
        assert content(after) == [entry(seq)[1] for seq in range(1, cut + 1)]
