"""The oplog against a plain list of what was written to it, through full disks, kills and power losses.

The model is a dict of seq -> frame, the seq up to which nothing may be lost, and the seq below which entries may be
gone.
"""

from __future__ import annotations

import contextlib
import errno
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nun.errors import Compacted
from nun.position import Position
from storage.oplog import LogReader, Oplog
from tests.support.logs import Written, content, entry
from tests.support.sim_disk import Crashed, SimDisk

SEGMENT = 500
BUDGET = 3 * SEGMENT


class OplogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.disk = SimDisk()
        self.written = Written()
        self.start = 0
        self.reader = LogReader(self.disk)
        self.open()

    def open(self) -> None:
        self.start += 1
        self.log = Oplog.open(self.disk, SEGMENT, BUDGET)
        self.reader = LogReader(self.disk)

    @property
    def next_seq(self) -> int:
        return self.log.last.seq + 1 if self.log.last is not None else 1

    def batch(self, sizes: list[int]) -> list[tuple[Position, bytes]]:
        return [entry(seq, size, self.start) for seq, size in enumerate(sizes, start=self.next_seq)]

    @rule(sizes=st.lists(st.integers(0, 200), max_size=6))
    def append(self, sizes: list[int]) -> None:
        self.written.append(self.log, self.batch(sizes))

    @rule(size=st.integers(SEGMENT, 3 * SEGMENT))
    def append_a_large_one(self, size: int) -> None:
        self.written.append(self.log, self.batch([size]))

    @rule()
    def sync(self) -> None:
        self.log.sync()
        if self.log.last is not None:
            self.written.synced = self.log.last.seq

    @rule()
    def prepare_spare(self) -> None:
        self.log.prepare_spare()
        assert not self.log.wants_spare
        self.written.synced = max(self.written.synced, self.log.synced_seq)

    @rule(back=st.integers(0, 20))
    def trim(self, back: int) -> None:
        below = max(self.log.synced_seq + 1 - back, 0)
        self.written.trim(self.log, below)

    @rule(leave=st.integers(0, 2 * SEGMENT), sizes=st.lists(st.integers(0, 300), min_size=1))
    def append_on_a_full_disk(self, leave: int, sizes: list[int]) -> None:
        batch = self.batch(sizes)
        last = self.log.last
        self.disk.fill(leave)
        refused = None
        try:
            self.written.append(self.log, batch)
        except OSError as error:
            refused = error
        self.disk.capacity = None
        if refused is not None:
            assert refused.errno == errno.ENOSPC
            assert self.log.last == last
            self.log.append(batch)

    @rule()
    def close_and_reopen(self) -> None:
        self.log.close()
        last = self.log.last
        self.disk = self.disk.kill()
        self.open()
        assert self.log.last == last
        assert self.log.torn_bytes == 0
        self.written.recovered(self.disk, self.log, last.seq if last is not None else 0)

    @rule()
    def kill(self) -> None:
        last = self.log.last
        self.disk = self.disk.kill()
        self.open()
        assert self.log.last == last
        self.written.recovered(self.disk, self.log)

    @rule(seed=st.integers(0, 2**32))
    def lose_power(self, seed: int) -> None:
        self.disk = self.disk.crash(random.Random(seed))
        self.open()
        self.written.recovered(self.disk, self.log)

    @rule(
        seed=st.integers(0, 2**32),
        calls=st.integers(1, 6),
        how=st.sampled_from(["done", "not_done", "torn"]),
        doing=st.sampled_from(["append", "sync", "prepare_spare", "trim", "close", "append large"]),
        power=st.booleans(),
    )
    def crash_in_the_middle(self, seed: int, calls: int, how: str, doing: str, power: bool) -> None:
        self.disk.crash_after(calls, how)  # type: ignore[arg-type]
        try:
            for _ in range(calls):
                if doing.startswith("append"):
                    self.written.append(self.log, self.batch([900 if "large" in doing else 150]))
                elif doing == "sync":
                    self.written.append(self.log, self.batch([10, 10]))
                    self.written.sync(self.log)
                elif doing == "trim":
                    self.written.trim(self.log, self.log.synced_seq)
                elif doing == "prepare_spare":
                    self.log.prepare_spare()
                else:
                    self.log.close()
                    break
        except Crashed:
            pass
        self.disk = self.disk.crash(random.Random(seed)) if power else self.disk.kill()
        self.open()
        self.written.recovered(self.disk, self.log)

    @precondition(lambda self: self.log.last is not None and self.log.first_seq)
    @rule(data=st.data(), room=st.integers(0, 1000))
    def read(self, data: st.DataObject, room: int) -> None:
        assert self.log.last is not None
        from_seq = data.draw(st.integers(1, self.log.last.seq + 1))
        up_to = data.draw(st.integers(from_seq - 1, self.log.last.seq))
        if from_seq < self.log.first_seq and from_seq <= up_to:
            with contextlib.suppress(Compacted):  # an open file may still serve what is gone
                found = self.reader.read(from_seq, room, up_to)
                assert found == [self.written.frames[from_seq + i] for i in range(len(found))]
            return
        found = self.reader.read(from_seq, room, up_to)
        assert found == [self.written.frames[from_seq + i] for i in range(len(found))]
        assert bool(found) == (from_seq <= up_to)
        assert from_seq + len(found) - 1 <= up_to

    @invariant()
    def holds_what_was_written(self) -> None:
        found = content(self.disk, self.log)
        assert found == {seq: self.written.frames[seq] for seq in found}
        if self.log.last is not None and self.log.segments:
            assert max(found) == self.log.last.seq
        assert min(found, default=1) <= self.written.trimmed_below


QUICK = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


class TestOplog(OplogMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = QUICK


@pytest.mark.long
class TestOplogLong(OplogMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(QUICK, max_examples=2_000, stateful_step_count=60)
