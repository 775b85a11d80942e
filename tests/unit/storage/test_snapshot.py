"""Snapshots: what they hold, what a failed one leaves, and a crash at every call of each kind of them."""

from __future__ import annotations

import contextlib
import itertools
import random

import pytest

from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.errors import DamagedFile
from storage import layout, snapshot
from storage.oplog import LogReader
from storage.recovery import load
from storage.snapshot import Snapshots
from tests.support.sim_disk import Crashed, SimDisk
from tests.support.snapshots import (
    KINDS,
    Node,
    crash_everywhere,
    every_kind,
    nundb_files,
    recovered,
    values_bytes,
    view,
)


def two_databases() -> Node:
    node = Node(SimDisk())
    for number, name in ((1, "one"), (2, "two")):
        node.create(number, name)
        node.set_many(number, ["a", "b"], name * 100)
    return node


def drain(disk: SimDisk, databases: list[int] | None, reclaim: bool = False) -> None:
    node = Node(disk)
    node.take(databases, reclaim)


def loaded(node: Node) -> dict[str, dict[bytes, bytes]]:
    return view(load(node.disk, LogReader(node.disk)))


class TestCrashes:
    @pytest.mark.parametrize("reclaim", [False, True])
    @pytest.mark.parametrize("chosen", [[1], [2], []])
    def test_of_chosen_databases(self, chosen: list[int], reclaim: bool) -> None:
        """One is new, one is changed, one is dropped, and only some are asked for."""

        def prepare() -> SimDisk:
            node = two_databases()
            node.create(3, "dropped")
            node.set_every_kind(1, b"first")
            node.take()
            node.put((fx.DROP_DATABASE, 3))
            node.set_many(1, ["a", "c"], "later")
            node.set_every_kind(1, b"later")
            node.set_many(2, ["a"], "later")
            node.create(4, "new")
            node.set_many(4, ["x"], "y")
            node.set_every_kind(4, b"y")
            return node.disk

        crash_everywhere(prepare, lambda disk: drain(disk, chosen, reclaim))

    @pytest.mark.parametrize("pairs", [{}, {"k": "v", "l": ""}])
    def test_of_a_migration_with_a_log(self, pairs: dict[str, str]) -> None:
        def prepare() -> SimDisk:
            disk = SimDisk()
            nundb_files(disk, "shop", pairs)
            node = Node(disk)
            node.set_many(1, ["k"], "changed")
            node.create(2, "ours")
            return disk

        crash_everywhere(prepare, lambda disk: drain(disk, None))

    def test_of_the_second_snapshot_of_one_process(self) -> None:
        """The plan of the first is done, its counts are known only in memory."""

        def prepare() -> SimDisk:
            node = two_databases()
            node.take()
            return node.disk

        def work(disk: SimDisk) -> None:
            node = Node(disk)
            for value in ("first", "second"):
                node.set_many(1, ["a", value], value)
                node.take()

        disk = prepare()
        before = disk.calls
        work(disk)
        old = b"one" * 100
        whole = [{b"a": old, b"b": old}]
        for value in (b"first", b"second"):
            whole.append({**whole[-1], b"a": value, value: value})
        wrong = []
        for call in range(1, disk.calls - before + 1):
            for seed in range(4):
                disk = prepare()
                disk.crash_after(call, "torn")
                with pytest.raises(Crashed):
                    work(disk)
                records = view(recovered(disk.crash(random.Random(seed))))["one"]
                found = {key: packed[12:] for key, packed in records.items()}
                if found not in whole:
                    wrong.append((call, seed, found))
        assert not wrong, wrong[:3]

    def test_a_snapshot_after_a_crash_holds_the_same(self) -> None:
        """What a crash left must not get into the next snapshot."""

        node = two_databases()
        node.set_every_kind(1, b"first")
        node.take()
        node.set_many(1, ["b", "c"], "w" * 50)
        node.set_every_kind(1, b"later")
        truth = loaded(node)
        for call in range(1, 40):
            disk = node.disk.kill()
            disk.crash_after(call, "torn")
            with contextlib.suppress(Crashed):  # the last calls are more than it takes
                drain(disk, None)
            for seed in range(3):
                after = Node(disk.crash(random.Random(seed)))
                after.take(reclaim=seed == 0)
                assert loaded(after) == truth
                assert view(recovered(after.disk)) == truth


class TestFailures:
    @pytest.mark.parametrize("reclaim", [False, True])
    def test_a_full_disk_at_every_byte(self, reclaim: bool) -> None:
        """The snapshot fails, `open` puts it in order, and with room the next one works."""
        node = two_databases()
        node.set_every_kind(1, b"first")
        node.take()
        node.set_many(1, ["b", "c"], "w" * 90)
        node.set_every_kind(1, b"later")
        node.create(3, "three")
        truth = loaded(node)
        failed = 0
        for leave in range(0, 3000, 7):
            disk = node.disk.kill()
            snapshots = Snapshots(disk, LogReader(disk))
            snapshots.open()
            disk.fill(leave)
            try:
                run(snapshots, node.seq, reclaim)
            except OSError:
                failed += 1
                snapshots.open()
            assert view(load(disk, LogReader(disk))) == truth, leave
            disk.capacity = None
            run(snapshots, node.seq, reclaim)
            assert snapshots.position == node.seq
            assert view(load(disk, LogReader(disk))) == truth, leave
        assert failed > 30

    def test_one_that_is_given_up_anywhere(self) -> None:
        node = two_databases()
        node.take()
        node.set_many(1, ["b", "c"], "w")
        truth = loaded(node)
        steps = 0
        while True:
            steps += 1
            snapshots = Snapshots(node.disk.kill(), LogReader(node.disk))
            disk = snapshots._disk
            snapshots.open()
            work = snapshots.take(None, False, node.seq)
            for done, blocking in enumerate(work):
                if done == steps:
                    break
                if blocking is not None:
                    blocking()
            else:
                break
            work.close()
            snapshots.open()
            run(snapshots, node.seq, False)
            assert view(load(disk, LogReader(node.disk))) == truth
        assert steps > 3


def run(snapshots: Snapshots, seq: int, reclaim: bool = False) -> snapshot.SnapshotReport:
    work = snapshots.take(None, reclaim, seq)
    while True:
        try:
            blocking = next(work)
        except StopIteration as end:
            report: snapshot.SnapshotReport = end.value
            return report
        if blocking is not None:
            blocking()


class TestPositions:
    def test_the_log_is_needed_from_the_oldest_database_on(self) -> None:
        node = two_databases()
        node.take()
        first = node.seq
        node.set_many(1, ["a"], "x")
        node.set_many(2, ["a"], "x")
        node.take([1])
        assert node.snapshots.position == first
        node.take([2])
        assert node.snapshots.position == first + 2
        assert Node(node.disk).snapshots.position == first + 2

    def test_a_database_without_changes_does_not_hold_the_log(self) -> None:
        node = two_databases()
        node.take()
        node.set_many(1, ["a"], "x")
        calls = node.disk.content("two-nun.data.side")
        node.take()
        assert node.snapshots.position == node.seq
        assert node.disk.content("two-nun.data.side") == calls
        assert Node(node.disk).snapshots.position == node.seq

    def test_entries_that_touch_no_record_move_the_position(self) -> None:
        node = two_databases()
        node.take()
        node.put((fx.DATABASE, 2, "two", {"strategy": "newer"}))
        node.take()
        assert node.snapshots.position == node.seq


class TestWork:
    def test_only_what_changed_is_written(self) -> None:
        node = Node(SimDisk())
        node.create(1, "shop")
        node.set_many(1, [f"{number:06}" for number in range(5000)], "v" * 30)
        node.take()
        before = {kind: node.disk.content(layout.file_name("shop", kind)) for kind in layout.KINDS}
        node.set_many(1, ["000007", "new"], "w" * 10)
        report = run(node.snapshots, node.seq)
        assert report.records == 2
        assert report.bytes < 200
        after = {kind: node.disk.content(layout.file_name("shop", kind)) for kind in layout.KINDS}
        assert after["values"].startswith(before["values"])
        assert len(after["keys"]) == len(before["keys"]) + layout.KEY_BYTES + 3

    def test_long_work_pauses(self) -> None:
        node = Node(SimDisk())
        node.create(1, "shop")
        for base in range(0, 50_000, 1000):
            node.set_many(1, [f"{base + number:06}" for number in range(1000)], "v" * 30)
        pauses = sum(step is None for step in _steps(node))
        assert pauses >= 3

    def test_a_reclaim_gives_dead_bytes_back(self) -> None:
        node = Node(SimDisk())
        node.create(1, "shop")
        for value in "abcdef":
            node.set_many(1, ["k", "l"], value * 1000)
            node.take()
        before = len(node.disk.content("shop-nun.data.values"))
        report = run(node.snapshots, node.seq, reclaim=True)
        after = len(node.disk.content("shop-nun.data.values"))
        assert report.reclaimed == before - after
        assert after == 2 * (1000 + layout.VALUE_BYTES)
        assert not [name for name in node.disk.names() if name.endswith((".new", ".tmp"))]

    def test_dead_values_and_dropped_keys_are_waste(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(snapshot, "RECLAIM_BYTES_MIN", 400)
        node = Node(SimDisk())
        node.create(1, "shop")
        node.set_many(1, list("abcdefghijklmnopqrst"), "")
        node.take()
        assert node.snapshots.wasteful(0.5) == []
        for key in b"abcdefghijklmno":
            node.put((fx.TOMBSTONE, 1, node.op, 2, 0, bytes([key])), (fx.DROP, 1, [bytes([key])]))
            node.op += TICK
        node.take()
        describe = node.snapshots.describe()["databases"]["shop"]
        assert (describe["rows"], describe["free_rows"]) == (20, 15)
        assert node.snapshots.wasteful(0.5) == [1]
        node.take(reclaim=True)
        assert node.snapshots.wasteful(0.5) == []
        assert node.snapshots.describe()["databases"]["shop"]["rows"] == 5

    def test_counts_stay_right_over_all_changes(self) -> None:
        """What the side file counts is what its files have."""
        seed = random.SystemRandom().getrandbits(32)
        print(f"seed {seed}")
        rng = random.Random(seed)
        node = Node(SimDisk())
        node.create(1, "shop")
        truth: dict[bytes, bytes] = {}
        for _ in range(120):
            key = rng.choice([b"a", b"b", b"c", b"d", b"e"])
            if rng.random() < 0.8:
                truth[key] = rng.choice(every_kind(2, node.op, b"v" * rng.randrange(5)))
                node.set_records(1, {key: truth[key]})
            else:
                truth.pop(key, None)
                node.put((fx.DROP, 1, [key]))
            node.take(reclaim=rng.random() < 0.1)
            check_files(node, truth)

    @pytest.mark.parametrize("reclaim", [False, True])
    def test_every_kind_of_record_becomes_every_other(self, reclaim: bool) -> None:
        node = Node(SimDisk())
        node.create(1, "shop")
        truth: dict[bytes, bytes] = {}
        for value in (b"old", b"newer"):
            changed, dropped = {}, []
            for first, last in itertools.product(range(KINDS + 1), repeat=2):
                kind = first if value == b"old" else last
                key = b"%d to %d" % (first, last)
                if kind < KINDS:
                    changed[key] = every_kind(2, node.op, value)[kind]
                else:
                    dropped.append(key)
            node.set_records(1, changed)
            node.put((fx.DROP, 1, dropped))
            truth = {key: packed for key, packed in truth.items() if key not in dropped} | changed
            node.take(reclaim=reclaim and value != b"old")
            check_files(node, truth)
            counts = node.snapshots.describe()["databases"]["shop"]
        assert (counts["values_bytes"] > counts["live_values_bytes"]) != reclaim

    def test_files_with_tails_are_not_for_programs_that_know_none(self) -> None:
        """Such a program refuses format 2; as soon as it could read the files again, it may."""
        node = Node(SimDisk())
        node.create(1, "shop")
        node.set_many(1, ["a", "b"], "v")
        node.put((fx.TOMBSTONE, 1, node.op, 2, 0, b"a"))
        for reclaim in (False, True):
            node.take(reclaim=reclaim)
            assert node.disk.content("shop-nun.data.side").startswith(b"NUNSIDE1")
        node.op += TICK
        node.set_records(1, {b"a": record.in_conflict(record.ABSENT)})
        node.take()
        node.put((fx.DROP, 1, [b"a"]))
        node = Node(node.disk)
        node.take()
        assert node.disk.content("shop-nun.data.side").startswith(b"NUNSIDE2")
        node.take(reclaim=True)
        assert node.disk.content("shop-nun.data.side").startswith(b"NUNSIDE1")

    def test_a_reclaim_refuses_a_record_that_was_changed(self) -> None:
        """It reads the files again; what does not match must not get a new checksum."""
        node = Node(SimDisk())
        node.create(1, "shop")
        node.set_every_kind(1, b"value")
        node.take()
        content = node.disk.content("shop-nun.data.values")
        for at in range(len(content)):
            disk = node.disk.kill()
            again = Node(disk)
            flipped = content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]
            disk.put("shop-nun.data.values", flipped)
            with pytest.raises(DamagedFile, match=r"shop-nun\.data\.rows"):
                again.take(reclaim=True)

    def test_a_dropped_database_leaves_no_file(self) -> None:
        node = two_databases()
        node.take()
        node.put((fx.DROP_DATABASE, 1))
        report = run(node.snapshots, node.seq)
        assert report.dropped == 1
        assert not [name for name in node.disk.names() if name.startswith("one-")]
        assert list(view(recovered(node.disk))) == ["two"]


def check_files(node: Node, truth: dict[bytes, bytes]) -> None:
    """The files hold these records, and their counts are those of them."""
    assert loaded(node)["shop"] == truth
    counts = node.snapshots.describe()["databases"]["shop"]
    assert counts["rows"] - counts["free_rows"] == len(truth)
    assert counts["live_values_bytes"] == sum(map(values_bytes, truth.values()))


def _steps(node: Node) -> list[object]:
    steps: list[object] = []
    for step in node.snapshots.take(None, False, node.seq):
        steps.append(step)
        if step is not None:
            step()
    return steps
