"""A log that grows and its snapshots, without processes; and files such as NunDB leaves them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.position import Position
from storage.oplog import LogReader, Oplog
from storage.recovery import Loaded, load
from storage.snapshot import Snapshots
from tests.support.sim_disk import Crashed, SimDisk

SEGMENT = 1 << 14
SIGNATURE = record.Signature(1_700_000_000_123, 40, b"mary", 7, ((5 * TICK, 1_700_000_000_000),))


def every_kind(version: int, op_id: int, value: bytes) -> list[bytes]:
    """One record of every kind: with a value or removed, signed or not, in conflict over each of these and nothing."""
    plain = [
        record.live(version, op_id, value),
        record.tombstone(version, op_id),
        record.signed(version, op_id, SIGNATURE, value),
        record.signed(version, op_id, SIGNATURE, None),
    ]
    return plain + [record.in_conflict(packed) for packed in (*plain, record.ABSENT)]


KINDS = len(every_kind(1, 1, b""))


def values_bytes(packed: bytes) -> int:
    """What a record has in the values file: a record of the value, and one of the tail where there is such."""
    if packed[3] < 0x80:
        return len(packed)  # the twelve bytes beside a value are as many as those of the head
    return 0 if packed[12] == record.TOMBSTONE_KIND else len(packed) + 12


class Node:
    """A log that grows and its snapshots, without processes."""

    def __init__(self, disk: Any) -> None:
        self.disk = disk
        self.log = Oplog.open(disk, SEGMENT, 1 << 30)
        self.snapshots = Snapshots(disk, LogReader(disk))
        self.snapshots.open()
        self.seq = self.log.last.seq if self.log.last else 0
        self.op = (self.seq + 1_000_000) * TICK * 1000 + 1
        if not self.seq:
            self.put((fx.EPOCH, b"c" * 16, {1: ["n", b"d" * 16, 1]}, 2))

    def put(self, *effects: Any) -> None:
        self.seq += 1
        position = Position(1, 1, 1, self.seq)
        self.log.append([(position, fx.encode_entry(position, effects))])
        self.log.sync()

    def create(self, number: int, name: str) -> None:
        self.put((fx.DATABASE, number, name, {"strategy": "none"}))

    def set_many(self, number: int, keys: list[str], value: str) -> None:
        heads = bytes(12 * len(keys))
        self.put((fx.PUTS, number, self.op, heads, pack([keys, [value] * len(keys)])))
        self.op += len(keys) * TICK

    def set_records(self, number: int, records: dict[bytes, bytes]) -> None:
        heads = bytes(12 * len(records))
        self.put((fx.RECORDS, number, self.op, list(records), list(records.values()), heads))
        self.op += len(records) * TICK

    def set_every_kind(self, number: int, value: bytes) -> None:
        """Gives one key a record of each kind."""
        records = every_kind(3, self.op, value)
        self.set_records(number, {b"kind %d" % at: packed for at, packed in enumerate(records)})

    def take(self, databases: list[int] | None = None, reclaim: bool = False) -> None:
        for step in self.snapshots.take(databases, reclaim, self.seq):
            if step is not None:
                step()


def recovered(disk: Any) -> Loaded:
    Oplog.open(disk, SEGMENT, 1 << 30)
    Snapshots(disk, LogReader(disk)).open()
    return load(disk, LogReader(disk))


def view(loaded: Loaded) -> dict[str, dict[bytes, bytes]]:
    return {info.name: loaded.tables[n] for n, info in loaded.state.databases.items()}


def crash_everywhere(prepare: Callable[[], SimDisk], work: Callable[[SimDisk], None]) -> None:
    """Whatever call of `work` the power fails at, what is loaded afterwards is what the log says."""
    disk = prepare()
    before = disk.calls
    work(disk)
    calls = disk.calls - before
    truth = view(recovered(disk.kill()))
    wrong = []
    for n in range(1, calls + 1):
        for how in ("done", "not_done", "torn"):
            for seed in range(3):
                disk = prepare()
                disk.crash_after(n, how)
                with pytest.raises(Crashed):
                    work(disk)
                after = disk.crash(random.Random(seed))
                try:
                    found = view(recovered(after))
                except Exception as error:
                    wrong.append((n, how, seed, repr(error)))
                else:
                    if found != truth:
                        wrong.append((n, how, seed, f"{found!r:.80} != {truth!r:.80}"))
    assert not wrong, f"{len(wrong)} of {calls * 9}, such as {wrong[:3]}"


def nundb_files(disk: Any, name: str, pairs: dict[str, str]) -> None:
    keys, values = b"", b""
    for key, value in pairs.items():
        keys += struct.pack("<Q", len(key.encode())) + key.encode()
        keys += struct.pack("<iQ", 0, len(values))
        values += struct.pack("<Q", len(value.encode())) + value.encode() + bytes(4)
    write(disk, f"{name}-nun.data.keys", keys)
    write(disk, f"{name}-nun.data.values", values)
    write(disk, f"{name}-nun.madadata", struct.pack("<Qi", 0, 0))


def write(disk: Any, name: str, content: bytes) -> None:
    if isinstance(disk, SimDisk):
        disk.put(name, content)
    else:
        file = disk.open(name, create=True)
        file.write(0, content)
        file.close()
