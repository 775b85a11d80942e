"""A crash at every write boundary of the log's whole life, and again while it recovers from that."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from nun.position import Position
from storage.oplog import Oplog
from tests.support.logs import Written, entries, entry
from tests.support.sim_disk import Crashed, How, SimDisk

SEGMENT = 600
BUDGET = 3 * SEGMENT
HOWS: list[How] = ["done", "not_done", "torn"]


def opened(disk: SimDisk) -> Oplog:
    return Oplog.open(disk, SEGMENT, BUDGET)


def life(disk: SimDisk, written: Written) -> None:
    """Appends, rotates, prepares, recycles, trims, closes, opens again and goes on."""
    log = opened(disk)
    for seq in range(1, 12):
        written.append(log, [entry(seq, 80)])
        if seq % 2:
            written.sync(log)
        if seq in (3, 7):
            log.prepare_spare()
    written.append(log, entries(12, 15, 40))
    written.append(log, entries(16, 16, 900))
    written.sync(log)
    written.trim(log, 9)
    log.prepare_spare()
    for seq in range(17, 23):
        written.append(log, [entry(seq, 80)])
    written.trim(log, 16)
    written.sync(log)
    log.close()
    log = opened(disk)
    written.append(log, entries(23, 25, 100, start=2))
    written.sync(log)
    log.prepare_spare()
    written.trim(log, 24)
    written.append(log, entries(26, 31, 100, start=2))
    log.close()


def lazy_life(disk: SimDisk, written: Written) -> None:
    """As with fsync=never: many segments filled before anything is synced."""
    log = opened(disk)
    for seq in range(1, 40):
        written.append(log, [entry(seq, 50 + seq % 3)])
        if seq == 12:
            log.prepare_spare()
            written.synced = log.synced_seq
    written.trim(log, log.synced_seq)
    log.close()
    assert log.last is not None
    written.synced = log.last.seq


def behind_the_files(disk: SimDisk, written: Written) -> None:
    """The log lost what a snapshot has, and begins anew behind it."""
    log = opened(disk)
    written.append(log, entries(1, 12, 80))
    written.sync(log)
    written.frames = {}
    written.synced = 0
    written.trimmed_below = 91
    try:
        log.start_after(Position(1, 1, 2, 90))
    finally:
        written.frames = {position.seq: frame for position, frame in entries(1, 12, 80)}
    written.append(log, entries(91, 93, 80, start=2))
    written.sync(log)
    log.close()


def outcomes(disk: SimDisk, seed: int) -> list[tuple[str, SimDisk]]:
    """What the next start may find."""
    rng = random.Random(seed)
    killed = disk.kill()
    return [
        ("killed", killed),
        ("power lost", disk.crash(rng)),
        ("power lost otherwise", disk.crash(rng)),
        ("killed, then power lost", killed.crash(rng)),
    ]


def goes_on(disk: SimDisk, written: Written) -> None:
    """Recovers, judges, writes more, and finds that too."""
    log = opened(disk)
    written.recovered(disk, log)
    last = max(written.frames, default=log.last.seq if log.last is not None else 0)
    more = entries(last + 1, last + 4, 70, start=9)
    for one in more:
        written.append(log, [one])
    written.sync(log)
    for after in (disk.kill(), disk.crash(random.Random(last))):
        log = opened(after)
        assert log.torn_bytes == 0
        written.recovered(after, log)


@pytest.mark.parametrize("work", [life, lazy_life, behind_the_files])
@pytest.mark.parametrize("how", HOWS)
def test_a_crash_at_every_call(work: Callable[[SimDisk, Written], None], how: How) -> None:
    disk = SimDisk()
    work(disk, Written())
    calls = disk.calls
    assert calls > 10
    for call in range(1, calls + 1):
        disk, written = SimDisk(seed=call), Written()
        disk.crash_after(call, how)
        with pytest.raises(Crashed):
            work(disk, written)
        for name, after in outcomes(disk, seed=call):
            try:
                goes_on(after, Written(dict(written.frames), written.synced, written.trimmed_below))
            except BaseException as error:
                error.add_note(f"{work.__name__}: call {call} of {calls}, {how}, {name}")
                raise


@pytest.mark.parametrize("how", HOWS)
def test_a_crash_at_every_call_of_recovery(how: How) -> None:
    """The log is cut down to where recovery has something to do, then recovery is cut in turn."""
    disk = SimDisk()
    lazy_life(disk, Written())
    recoveries = 0
    for call in range(5, disk.calls, 3):
        disk, written = SimDisk(seed=call), Written()
        disk.crash_after(call, "torn")
        with pytest.raises(Crashed):
            lazy_life(disk, written)
        for name, after in outcomes(disk, seed=call):
            count = after.kill()
            opened(count)
            for inner in range(1, count.calls + 1):
                recoveries += 1
                again = after.kill()
                again.crash_after(inner, how)
                with pytest.raises(Crashed):
                    opened(again)
                for later, last in outcomes(again, seed=inner):
                    judged = Written(dict(written.frames), written.synced, written.trimmed_below)
                    try:
                        goes_on(last, judged)
                    except BaseException as error:
                        error.add_note(f"call {call}, {name}; recovery {inner}, {how}, {later}")
                        raise
    assert recoveries > 100


@pytest.mark.parametrize("how", HOWS)
def test_a_crash_while_damage_is_moved_aside(how: How) -> None:
    """Whatever a crash leaves of it, the next start keeps the same prefix."""
    whole = SimDisk()
    log = opened(whole)
    for seq in range(1, 16):
        log.append([entry(seq, 80)])
        log.sync()
    log.close()
    name = "oplog/0000000000000002.log"
    data = bytearray(whole.content(name))
    data[300] ^= 1
    whole.put(name, bytes(data))
    count = whole.kill()
    log = Oplog.open(count, SEGMENT, BUDGET, damage="keep-prefix")
    assert log.last is not None
    kept = log.last.seq
    assert 4 < kept < 8
    for call in range(1, count.calls + 1):
        disk = whole.kill()
        disk.crash_after(call, how)
        with pytest.raises(Crashed):
            Oplog.open(disk, SEGMENT, BUDGET, damage="keep-prefix")
        for what, after in outcomes(disk, seed=call):
            log = Oplog.open(after, SEGMENT, BUDGET, damage="keep-prefix")
            assert log.last is not None
            assert log.last.seq == kept, f"call {call}, {how}, {what}"
            evidence = [after.content(f"oplog/{n}") for n in after.names("oplog") if ".dam" in n]
            assert bytes(data) in evidence, f"call {call}, {how}, {what}"


def test_the_first_segment_lost_whole_takes_the_later_ones_along() -> None:
    """Nothing was synced, and of two segments only the second reached the disk."""
    disk = SimDisk()
    log = opened(disk)
    for seq in range(1, 9):
        log.append([entry(seq, 80)])
    name = "oplog/0000000000000001.log"
    data = disk.content(name)
    disk.put(name, data[:40].ljust(len(data), b"\0"))
    log = opened(disk)
    assert log.last is None
    assert log.torn_bytes > 0
    log.append(entries(1, 2))
    log.close()
    log = opened(disk)
    assert log.last == Position(1, 1, 1, 2)


def test_a_first_segment_that_found_no_room_at_first_is_durable_all_the_same() -> None:
    disk = SimDisk()
    log = opened(disk)
    disk.fill(leave=100)
    with pytest.raises(OSError, match="No space"):
        log.append([entry(1)])
    disk.capacity = None
    log.append([entry(1)])
    log.sync()
    for seed in range(20):
        assert opened(disk.crash(random.Random(seed))).last == Position(1, 1, 1, 1)


def test_what_was_cut_from_an_empty_segment_never_follows_new_entries() -> None:
    """The first record is torn and the second is whole; a new first one has the length of the old."""
    for seed in range(40):
        disk = SimDisk(seed)
        log = opened(disk)
        log.append(entries(1, 2, 80))
        disk = disk.kill()
        data = bytearray(disk.content("oplog/0000000000000001.log"))
        data[60] ^= 1
        disk.put("oplog/0000000000000001.log", bytes(data))
        log = opened(disk)
        assert log.last is None
        log.append([(Position(1, 1, 1, 1), b"another".ljust(80))])
        last = opened(disk.crash(random.Random(seed))).last
        assert last in (None, Position(1, 1, 1, 1))
