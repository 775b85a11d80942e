"""The outbox file: items survive every crash, numbers are used once, damage is noticed."""

from __future__ import annotations

import random

import pytest

from nun.errors import DamagedFile
from storage.outbox import OUTBOX, Outbox, read_outbox
from tests.support.sim_disk import Crashed, How, SimDisk


def content(disk: SimDisk) -> list[tuple[int, bytes]]:
    return read_outbox(disk)[1]


def test_items_are_there_again_in_order() -> None:
    disk = SimDisk()
    outbox = Outbox(disk)
    outbox.append([(1, b"one"), (2, b"two")])
    outbox.append([(2, b"again"), (3, b"three")])
    again = Outbox(disk.kill())
    assert content(disk) == [(1, b"one"), (2, b"two"), (3, b"three")]
    assert (again.following, len(again)) == (4, 3)


def test_what_is_done_goes_and_its_numbers_are_not_used_again() -> None:
    disk = SimDisk()
    outbox = Outbox(disk)
    outbox.append([(number, b"x" * 100) for number in range(1, 6)])
    outbox.done(5)
    assert content(disk) == []
    again = Outbox(disk.kill())
    assert again.following == 6
    again.add([b"six"])
    assert content(again._disk) == [(6, b"six")]  # type: ignore[arg-type]


def test_some_that_are_done_leave_the_rest() -> None:
    disk = SimDisk()
    outbox = Outbox(disk)
    outbox.append([(number, bytes(400_000)) for number in range(1, 7)])
    outbox.done(4)
    assert [number for number, _ in content(disk)] == [5, 6]
    assert outbox.size < 900_000
    outbox.add([b"seven"])
    assert [number for number, _ in content(disk.kill())] == [5, 6, 7]


def life(disk: SimDisk) -> tuple[int, int]:
    """Appends and drops; returns (the last number that was durable, the last that was done), as far as it came."""
    durable = done = 0
    try:
        outbox = Outbox(disk)
        for number in range(1, 9):
            outbox.append([(number, b"item %d " % number * 40)])
            durable = number
            if number % 4 == 0:
                outbox.done(number)
                done = number
    except Crashed:
        pass
    return durable, done


@pytest.mark.parametrize("how", ["done", "not_done", "torn"])
def test_a_crash_at_every_call_loses_nothing_that_was_durable(how: How) -> None:
    whole = SimDisk()
    assert life(whole) == (8, 8)
    for call in range(1, whole.calls + 1):
        for seed in range(3):
            disk = SimDisk(seed)
            disk.crash_after(call, how)
            durable, done = life(disk)
            after = disk.crash(random.Random(seed))
            outbox = Outbox(after)
            numbers = [number for number, _ in content(after)]
            assert numbers == sorted(set(numbers))
            # What was being dropped when it crashed may be gone or not; what was not, is there.
            dropping = durable if durable % 4 == 0 else done
            assert {*range(dropping + 1, durable + 1)} <= {*numbers}
            assert outbox.following > durable
            for number, item in content(after):
                assert item == b"item %d " % number * 40


def test_every_byte_flipped_is_noticed_but_in_the_last_item() -> None:
    disk = SimDisk()
    outbox = Outbox(disk)
    outbox.append([(1, b"first"), (2, b"second"), (3, b"third")])
    whole = disk.content(OUTBOX)
    last = len(whole) - len(b"third") - 16
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        disk.put(OUTBOX, bytes(flipped))
        if place >= last:
            assert [number for number, _ in content(disk)] == [1, 2], "a torn tail"
        else:
            with pytest.raises(DamagedFile):
                read_outbox(disk)


def test_every_length_cut_keeps_the_items_before_it() -> None:
    disk = SimDisk()
    outbox = Outbox(disk)
    outbox.append([(1, b"first"), (2, b"second")])
    whole = disk.content(OUTBOX)
    ends = [20, 20 + 16 + 5, len(whole)]
    for length in range(len(whole)):
        disk.put(OUTBOX, whole[:length])
        if length < ends[0]:
            with pytest.raises(DamagedFile):
                read_outbox(disk)
        else:
            assert len(content(disk)) == sum(end <= length for end in ends[1:])


def test_no_room_leaves_it_as_it_was() -> None:
    disk = SimDisk()
    outbox = Outbox(disk)
    outbox.append([(1, b"first")])
    disk.fill(leave=5)
    with pytest.raises(OSError, match="No space"):
        outbox.append([(2, b"second")])
    disk.capacity = None
    outbox.append([(2, b"second")])
    assert content(disk) == [(1, b"first"), (2, b"second")]
