"""Rows 8 to 11: snapshots, loading, starting and memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from bench.peers import Peers
from bench.report import Line, at_most
from bench.sampling import Plan, Sample, Series, alternate
from bench.workload import BATCH, DATABASE, DATABASE_TOKEN, VALUE_BYTES, batches, key, value
from nun.codec import pack
from nun.core import effects as fx
from nun.core.clock import TICK, Clock
from nun.core.record import ABSENT, pack_head
from nun.limits import MIB
from nun.position import Epoch, Position
from storage import recovery
from storage.directory import DataDirectory
from storage.oplog import LogReader, Oplog
from storage.snapshot import Snapshots

NUMBER: Final = 1  # of the only database
SEGMENT_BYTES: Final = 16 * MIB
BUDGET_BYTES: Final = 1024 * MIB
SMALL: Final = 10_000
CHANGED: Final = 1_000
START_ROUNDS: Final = 3
NOT_GROWING: Final = at_most(
    1.5
)  # ten times the keys; cache misses and dirty pages may show, the total must not


class Store:
    """The files of a node without the node: a log that we append to, and its snapshots."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.directory = DataDirectory.open(path)
        identity = self.directory.begin_start()
        self.disk = self.directory.disk
        self.log = Oplog.open(self.disk, SEGMENT_BYTES, BUDGET_BYTES)
        self._epoch = Epoch(1, identity.node, identity.start)
        self._clock = Clock(identity.node)
        self._heads: dict[str, bytes] = {}
        self.seq = 0
        self.snapshots = Snapshots(self.disk, LogReader(self.disk))
        self.snapshots.open()
        self._append([[fx.EPOCH, identity.cluster_id, {identity.node: ["bench", b"", 1]}, 2]])
        self._append([[fx.DATABASE, NUMBER, DATABASE, {"strategy": "none"}]])

    def _append(self, effects: list[Any]) -> None:
        self.seq += 1
        position = Position.at(self._epoch, self.seq)
        self.log.append([(position, fx.encode_entry(position, effects))])

    def put(self, batch: dict[str, str]) -> None:
        """One entry of plain sets, as the network process would decide it."""
        first = self._clock.reserve(1_800_000_000_000, len(batch))
        heads = b"".join(self._heads.get(name, ABSENT) for name in batch)
        payload = pack([list(batch), list(batch.values())])
        self._append([[fx.PUTS, NUMBER, first, heads, payload]])
        for place, name in enumerate(batch):
            version = int.from_bytes(self._heads.get(name, ABSENT)[:4], "little") + 1
            self._heads[name] = pack_head(version, first + place * TICK)

    def snapshot_ms(self, expected: int) -> float:
        """Takes a snapshot of all that is in the log and says how long it took."""
        self.log.sync()
        size = self._values_bytes()
        start = perf_counter()
        for blocking in self.snapshots.take(None, False, self.seq):
            if blocking is not None:
                blocking()
        took = (perf_counter() - start) * 1000
        grown = self._values_bytes() - size
        if grown < expected * VALUE_BYTES:
            raise AssertionError(f"{expected} values were to be written, the files grew by {grown}")
        return took

    def _values_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._path.rglob("*.data.values*"))

    def load_ms(self, expected: int) -> float:
        """Loads everything into memory, as a starting node does, and says how long it took."""
        start = perf_counter()
        loaded = recovery.load(self.disk, LogReader(self.disk))
        took = (perf_counter() - start) * 1000
        found = len(loaded.tables[NUMBER])
        if found != expected:
            raise AssertionError(f"{found} records were loaded, {expected} were written")
        return took

    def close(self) -> None:
        self.log.close()
        self.directory.close()


# Row 8 --------------------------------------------------------------------------------------------


def small_snapshot(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 8: 10,000 new records to the files, and back to memory; then a client's view of it."""
    snapshots: list[float] = []
    loads: list[float] = []
    for _ in range(plan.rounds + 1):
        path = peers.new_directory("store")
        store = Store(path)
        for batch in batches(SMALL):
            store.put(batch)
        snapshots.append(store.snapshot_ms(SMALL))
        loads.append(store.load_ms(SMALL))
        store.close()
        shutil.rmtree(path)
    yield Line(
        8, "snapshot of 10,000 new records", "ms", Series(tuple(snapshots[1:])), aim=at_most(10)
    )
    yield Line(8, "load of 10,000 records", "ms", Series(tuple(loads[1:])), aim=at_most(15))
    yield Line(8, "snapshot of 10,000 new, client's view", "ms", _client_snapshots(peers, plan))


def _client_snapshots(peers: Peers, plan: Plan) -> Series:
    node = peers.node("always")
    times = []
    with node.client() as client:
        database = client.database(DATABASE, token=DATABASE_TOKEN)
        for turn in range(plan.rounds + 1):
            for batch in batches(SMALL):
                database.set_many({f"{turn}:{name}": text for name, text in batch.items()})
            start = perf_counter()
            client.snapshot([DATABASE])
            times.append((perf_counter() - start) * 1000)
    return Series(tuple(times[1:]))


# Row 9 --------------------------------------------------------------------------------------------


def incremental_snapshot(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 9: 1,000 changed records among a million, and among a tenth of that, in turn."""
    variants: dict[str, Sample] = {}
    for keys in (plan.keys, plan.keys // 10):
        store = Store(peers.new_directory("store"))
        peers.callback(store.close)
        for batch in batches(keys):
            store.put(batch)
        store.snapshot_ms(keys)
        variants[f"{keys:,}"] = _changes(store, keys)
    taken = alternate(variants, plan.rounds)
    large, small = taken.values()
    total, tenth = taken
    yield Line(9, f"snapshot of 1,000 changed of {total}", "ms", large, aim=at_most(50))
    yield Line(
        9, f"the same, of {total} and of {tenth}", "ms", large, small, f"of {tenth}", NOT_GROWING
    )


def _changes(store: Store, keys: int) -> Sample:
    turn = 0

    def sample() -> float:
        nonlocal turn
        turn += 1
        step = keys // CHANGED
        store.put({key(number + turn % step): value(turn) for number in range(0, keys, step)})
        return store.snapshot_ms(CHANGED)

    return sample


# Row 10 -------------------------------------------------------------------------------------------


def start(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 10: from starting the process to its first answer, with all keys on disk."""
    node = peers.node("never")
    database = peers.database(node)
    for batch in batches(plan.keys):
        database.set_many(batch)
    node.kill()
    replays, loads = [], []
    for _ in range(START_ROUNDS):
        node.start()
        replays.append(node.ready_after_s)
        node.kill()
    node.start()
    for _ in range(START_ROUNDS):
        node.close()  # a clean end takes a snapshot
        node.start()
        loads.append(node.ready_after_s)
    what = f"start with {plan.keys:,} keys"
    yield Line(10, f"{what} in the files", "s", Series(tuple(loads)), aim=at_most(4))
    yield Line(10, f"{what} in the log only, after kill -9", "s", Series(tuple(replays)))


# Row 11 -------------------------------------------------------------------------------------------


def memory(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 11: what the resident memory of the process that holds the keys grows by, per key."""
    node = peers.node("never")
    server = peers.redis("no AOF")
    database = peers.database(node)
    warm = {f"warm:{name}": text for name, text in batches(BATCH)[0].items()}
    database.set_many(warm)
    server.client.mset(warm)
    before = node.rss, server.rss
    for batch in batches(plan.keys):
        database.set_many(batch)
        server.client.mset(batch)
    after = node.rss, server.rss
    ours, theirs = (
        Series(((late - early) / plan.keys,)) for early, late in zip(before, after, strict=True)
    )
    what = f"memory per key, {plan.keys:,} keys"
    yield Line(11, what, "bytes", ours, theirs, "Redis", at_most(1.5))
