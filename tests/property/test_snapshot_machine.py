"""Snapshots against a plain dict of records: every kind of effect and of snapshot, crashes at any call, damage.

Beside the seeded lives (test_snapshot_life.py), whose truth is a replay of the log by the product's own code, the model
here decides by itself what each effect makes of a record; and what hypothesis finds, it shrinks. The log is always
durable: what may be lost of it is the matter of test_oplog_machine.py.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.errors import StorageError
from nun.position import Position
from storage.oplog import LogReader, Oplog
from storage.recovery import load
from storage.snapshot import Snapshots
from tests.support.sim_disk import Crashed, SimDisk
from tests.support.snapshots import KINDS, every_kind

SEGMENT = 1 << 14
HEAD_BYTES = 12
NAMES = ["a", "b", "ünï"]
KEYS = [b"k%d" % number for number in range(8)]
HOWS = ["done", "not_done", "torn"]

keys = st.sampled_from(KEYS)
some_keys = st.lists(keys, min_size=1, max_size=6, unique=True)
values = st.sampled_from([b"", b"v", b"other", b"w" * 300, b"x" * 5000])
kinds = st.integers(0, KINDS - 1)
picks = st.integers(0, 5)
versions = st.integers(1, 1000)
crashes = st.none() | st.tuples(st.integers(1, 40), st.sampled_from(HOWS), st.integers(0, 9))


class SnapshotMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.disk = SimDisk()
        self.seq = 0
        self.op_id = TICK
        self.next_number = 1
        self.numbers: dict[str, int] = {}
        self.model: dict[int, dict[bytes, bytes]] = {}  # database -> key -> packed record
        self.open()
        self.put((fx.EPOCH, b"c" * 16, {1: ["n", b"d" * 16, 1]}, 2))

    def open(self) -> None:
        self.log = Oplog.open(self.disk, SEGMENT, 2 * SEGMENT)
        self.snapshots = Snapshots(self.disk, LogReader(self.disk))
        self.snapshots.open()

    def put(self, *effects: Any) -> None:
        self.seq += 1
        position = Position(1, 1, 1, self.seq)
        self.log.append([(position, fx.encode_entry(position, effects))])
        self.log.sync()

    def database(self, pick: int) -> tuple[int, dict[bytes, bytes]]:
        number = list(self.numbers.values())[pick % len(self.numbers)]
        return number, self.model[number]

    def next_op_id(self, count: int = 1) -> int:
        first = self.op_id
        self.op_id += count * TICK
        return first

    # Databases

    @precondition(lambda self: len(self.numbers) < len(NAMES))
    @rule(pick=picks)
    def create(self, pick: int) -> None:
        free = [name for name in NAMES if name not in self.numbers]
        name = free[pick % len(free)]
        self.put((fx.DATABASE, self.next_number, name, {"strategy": "none"}))
        self.numbers[name] = self.next_number
        self.model[self.next_number] = {}
        self.next_number += 1

    @precondition(lambda self: len(self.numbers) > 1)
    @rule(pick=picks)
    def drop_database(self, pick: int) -> None:
        name = list(self.numbers)[pick % len(self.numbers)]
        number = self.numbers.pop(name)
        del self.model[number]
        self.put((fx.DROP_DATABASE, number))

    # Records

    @precondition(lambda self: self.numbers)
    @rule(pick=picks, key=keys, value=values, version=versions)
    def write(self, pick: int, key: bytes, value: bytes, version: int) -> None:
        number, records = self.database(pick)
        op_id = self.next_op_id()
        self.put((fx.PUT, number, op_id, version, 0, key, value))
        records[key] = record.live(version, op_id, value)

    @precondition(lambda self: self.numbers)
    @rule(pick=picks, chosen=some_keys, version=versions)
    def remove(self, pick: int, chosen: list[bytes], version: int) -> None:
        number, records = self.database(pick)
        effects = []
        for key in chosen:
            op_id = self.next_op_id()
            effects.append((fx.TOMBSTONE, number, op_id, version, 0, key))
            records[key] = record.tombstone(version, op_id)
        self.put(*effects)

    @precondition(lambda self: self.numbers)
    @rule(pick=picks, chosen=some_keys)
    def forget(self, pick: int, chosen: list[bytes]) -> None:
        number, records = self.database(pick)
        self.put((fx.DROP, number, chosen))
        for key in chosen:
            records.pop(key, None)

    @precondition(lambda self: self.numbers)
    @rule(pick=picks, chosen=some_keys, value=values)
    def write_many(self, pick: int, chosen: list[bytes], value: bytes) -> None:
        number, records = self.database(pick)
        absent = bytes(HEAD_BYTES)
        plain = [key for key in chosen if key not in records or records[key][3] < 0x80]
        assume(plain)
        heads = b"".join(records.get(key, absent)[:HEAD_BYTES] for key in plain)
        first = self.next_op_id(len(plain))
        given = [value + b"%d" % index for index in range(len(plain))]
        self.put((fx.PUTS, number, first, heads, pack([plain, given])))
        for index, key in enumerate(plain):
            version = record.version_of(records[key]) + 1 if key in records else 1
            records[key] = record.live(version, first + index * TICK, given[index])

    @precondition(lambda self: self.numbers)
    @rule(
        pick=picks,
        changes=st.lists(st.tuples(keys, kinds, values), min_size=1, max_size=6),
        version=versions,
    )
    def change_many(self, pick: int, changes: list[tuple[bytes, int, bytes]], version: int) -> None:
        """A mixed batch of all kinds of records: a key may stand in it twice, and the later record counts."""
        number, records = self.database(pick)
        packed = [every_kind(version, self.next_op_id(), value)[kind] for _, kind, value in changes]
        chosen = [key for key, _, _ in changes]
        heads = bytes(HEAD_BYTES * len(changes))
        self.put((fx.RECORDS, number, self.op_id - TICK, chosen, packed, heads))
        records.update(zip(chosen, packed, strict=True))

    # Snapshots

    @rule(crash=crashes)
    def snapshot_all(self, crash: Any) -> None:
        self.snapshot(None, False, crash)

    @rule(crash=crashes)
    def reclaim_all(self, crash: Any) -> None:
        self.snapshot(None, True, crash)

    @rule(chosen=st.sets(picks), reclaim=st.booleans(), crash=crashes)
    def snapshot_some(self, chosen: set[int], reclaim: bool, crash: Any) -> None:
        some = [number for at, number in enumerate(self.numbers.values()) if at in chosen]
        self.snapshot(some, reclaim, crash)

    def snapshot(self, chosen: list[int] | None, reclaim: bool, crash: Any) -> None:
        if crash is not None:
            self.disk.crash_after(crash[0], crash[1])
        try:
            for blocking in self.snapshots.take(chosen, reclaim, self.seq):
                if blocking is not None:
                    blocking()
            self.log.trim(self.snapshots.position + 1)
        except Crashed:
            self.disk = self.disk.crash(random.Random(crash[2]))
        else:
            self.disk = self.disk.kill()
        self.open()

    @rule(calls=st.integers(1, 15), how=st.sampled_from(HOWS), seed=st.integers(0, 9))
    def crash_while_starting(self, calls: int, how: Any, seed: int) -> None:
        self.disk = self.disk.kill()
        self.disk.crash_after(calls, how)
        try:
            self.open()
        except Crashed:
            self.disk = self.disk.crash(random.Random(seed))
        else:
            self.disk = self.disk.kill()
        self.open()

    # What must hold

    @rule(file=st.integers(0, 30), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def damage(self, file: int, place: float, bit: int) -> None:
        """A flipped bit is told, or it is in nothing that counts; on a copy, for life goes on."""
        names = [name for name in self.disk.names() if self.disk.content(name)]
        assume(names)
        name = names[file % len(names)]
        copy = self.disk.kill()
        content = bytearray(copy.content(name))
        content[int(place * len(content))] ^= 1 << bit
        copy.put(name, bytes(content))
        try:
            Oplog.open(copy, SEGMENT, 2 * SEGMENT)
            Snapshots(copy, LogReader(copy)).open()
            loaded = load(copy, LogReader(copy))
        except StorageError:
            return
        assert loaded.tables == self.model, f"damage of {name} was served"

    @invariant()
    def loads_what_the_model_holds(self) -> None:
        loaded = load(self.disk, LogReader(self.disk))
        assert loaded.tables == self.model
        names = {info.name: number for number, info in loaded.state.databases.items()}
        assert names == self.numbers
        assert loaded.state.position == Position(1, 1, 1, self.seq)


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        SnapshotMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_snapshots_and_the_model_agree() -> None:
    run(examples=400, steps=30)


@pytest.mark.long
def test_snapshots_for_long() -> None:
    run(examples=5_000, steps=60)
