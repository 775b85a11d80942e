"""The life of a directory, at random: databases come and go, snapshots of all or some, reclaims, crashes anywhere.

After every step the directory is loaded and held against a plain replay of the whole log. Seeded: a failure prints its
seed, and `NUN_SEED=... bin/test tests/property/test_snapshot_life.py` repeats it alone.
"""

from __future__ import annotations

import os
import random
import zlib
from typing import Any

import pytest

from nun.core import effects as fx
from nun.core.clock import TICK
from nun.position import Position
from storage.oplog import LogReader, Oplog
from storage.recovery import load
from storage.snapshot import Snapshots
from tests.support.core_driver import replay
from tests.support.sim_disk import Crashed, SimDisk
from tests.support.snapshots import every_kind

SEGMENT = 1 << 14
NAMES = ("a", "b", "ünï", "x/" * 60)
KEYS = [b"k%d" % number for number in range(6)]
STEPS = 40


class Life:
    """One directory on a simulated disk, and every entry that was ever made durable in it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.disk = SimDisk(seed)
        self.frames: list[bytes] = []
        self.living: dict[str, int] = {}
        self.next_number = 1
        self.op_id = TICK
        self.open()
        self.put((fx.EPOCH, b"c" * 16, {1: ["n", b"d" * 16, 1]}, 2))

    def open(self) -> None:
        self.log = Oplog.open(self.disk, SEGMENT, SEGMENT)
        self.snapshots = Snapshots(self.disk, LogReader(self.disk))
        self.snapshots.open()

    def put(self, *effects: Any) -> None:
        position = Position(1, 1, 1, len(self.frames) + 1)
        frame = fx.encode_entry(position, effects)
        self.log.append([(position, frame)])
        self.log.sync()
        self.frames.append(frame)

    def step(self) -> None:
        chance = self.random.random()
        if chance < 0.12 and len(self.living) < 3:
            name = self.random.choice([name for name in NAMES if name not in self.living])
            self.put((fx.DATABASE, self.next_number, name, {"strategy": "none"}))
            self.living[name] = self.next_number
            self.next_number += 1
        elif chance < 0.17 and self.living:
            name = self.random.choice(list(self.living))
            self.put((fx.DROP_DATABASE, self.living.pop(name)))
        elif chance < 0.55 and self.living:
            database = self.random.choice(list(self.living.values()))
            self.put(*(self.change(database) for _ in range(self.random.randint(1, 3))))
        elif chance < 0.9:
            self.snapshot()
        else:
            self.log.close()
            self.open()

    def change(self, database: int) -> tuple[Any, ...]:
        key = self.random.choice(KEYS)
        version = self.random.randint(1, 9)
        self.op_id += TICK
        chance = self.random.random()
        value = b"v" * self.random.choice([0, 3, 3, 700])
        if chance < 0.35:
            return (fx.PUT, database, self.op_id, version, 0, key, value)
        if chance < 0.6:
            packed = self.random.choice(every_kind(version, self.op_id, value))
            return (fx.RECORDS, database, self.op_id, [key], [packed], bytes(12))
        if chance < 0.8:
            return (fx.TOMBSTONE, database, self.op_id, version, 0, key)
        return (fx.DROP, database, [key])

    def snapshot(self) -> None:
        numbers = list(self.living.values())
        some = self.random.sample(numbers, self.random.randint(0, len(numbers)))
        chosen = None if self.random.random() < 0.5 else some
        reclaim = self.random.random() < 0.3
        if self.random.random() < 0.6:
            how = self.random.choice(["done", "not_done", "torn"])
            self.disk.crash_after(self.random.randint(1, 30), how)
        try:
            for blocking in self.snapshots.take(chosen, reclaim, len(self.frames)):
                if blocking is not None:
                    blocking()
            self.log.trim(self.snapshots.position + 1)
        except Crashed:
            self.recover()
        else:
            self.disk = self.disk.kill()
            self.open()

    def recover(self) -> None:
        """Starts again on what the crash left; recovery may be cut short too."""
        for _ in range(3):
            self.disk = (
                self.disk.crash(self.random) if self.random.random() < 0.6 else self.disk.kill()
            )
            if self.random.random() < 0.5:
                self.disk.crash_after(self.random.randint(1, 14), "done")
            try:
                self.open()
            except Crashed:
                continue
            self.disk = self.disk.kill()
            self.open()
            return
        self.disk = self.disk.crash(self.random)
        self.open()

    def check(self) -> None:
        state, tables = replay(self.frames)
        loaded = load(self.disk, LogReader(self.disk))
        assert loaded.state.dump() == state.dump()
        assert loaded.tables == {number: tables.get(number, {}) for number in state.databases}


def live(seed: int) -> None:
    print(f"NUN_SEED={seed}")
    life = Life(seed)
    for _ in range(STEPS):
        life.step()
        life.check()


def seeds(count: int) -> list[int]:
    given = os.environ.get("NUN_SEED")
    return [int(given)] if given else [zlib.crc32(b"life %d" % index) for index in range(count)]


@pytest.mark.parametrize("seed", seeds(60))
def test_a_directory_survives_its_life(seed: int) -> None:
    live(seed)


@pytest.mark.long
def test_five_thousand_lives() -> None:
    for _ in range(5_000):
        live(random.SystemRandom().getrandbits(32))
