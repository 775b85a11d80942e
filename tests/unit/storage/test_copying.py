"""Copies of files: received in parts, checked, and put in the place of what was here, whatever crashes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nun.core import effects as fx
from nun.errors import DamagedFile, StorageError
from nun.position import Position
from storage import copying
from storage import segment as seg
from storage.disk import Disk, RealDisk
from storage.oplog import LogReader, Oplog
from storage.recovery import load
from storage.snapshot import Snapshots
from tests.support.sim_disk import Crashed, How, SimDisk
from tests.support.snapshots import every_kind, view

PART = 100


def filled(disk: Disk, name: str, count: int) -> None:
    """A directory with one database of so many keys, all of it in a snapshot."""
    log = Oplog.open(disk, 4096, 10**6)
    effects: list[list[fx.Effect]] = [
        [(fx.EPOCH, b"c" * 16, {1: ["n", b"d" * 16, 1]}, 2), (fx.DATABASE, 1, name, {})],
        [
            (fx.PUT, 1, 1024 + i * 1024, 1, 0, b"%s %d" % (name.encode(), i), b"v" * 30)
            for i in range(count)
        ],
    ]
    kinds = every_kind(2, 1 << 40, b"of a kind")
    chosen = [b"%s of kind %d" % (name.encode(), kind) for kind in range(len(kinds))]
    effects.append([(fx.RECORDS, 1, 1 << 40, chosen, kinds, bytes(12 * len(kinds)))])
    for seq, entry in enumerate(effects, 1):
        position = Position(1, 1, 1, seq)
        log.append([(position, fx.encode_entry(position, entry))])
    log.sync()
    snapshots = Snapshots(disk, LogReader(disk))
    snapshots.open()
    for blocking in snapshots.take(None, False, len(effects)):
        if blocking is not None:
            blocking()
    log.close()


def send(source: Disk, target: Disk, start: dict[str, int] | None = None) -> None:
    """All parts of a copy, each where the last one ended."""
    _, files = copying.files_of(source)
    for name, size in files:
        data = bytes(source.view(name))[:size]
        for offset in range((start or {}).get(name, 0), size, PART):
            copying.put(target, name, offset, data[offset : offset + PART])


def seen(_: object) -> None:
    """Nothing of what is here has to be kept."""


def records(disk: Disk) -> dict[str, dict[bytes, bytes]]:
    return view(load(disk, LogReader(disk)))


def test_a_copy_takes_the_place_of_what_was_here(tmp_path: Path) -> None:
    source, target = RealDisk(tmp_path / "source"), RealDisk(tmp_path / "target")
    for disk, name in ((source, "new"), (target, "old")):
        disk.root.mkdir()
        filled(disk, name, 50)
    wanted = records(source)
    copy_id, files = copying.files_of(source)
    copying.begin(target, copy_id, files)
    assert copying.in_progress(target) == (copy_id, {})
    send(source, target)
    assert records(target).keys() == {"old"}, "until all is here, nothing changes"
    brought = []
    copying.end(target, brought.append)
    assert [state.position for state in brought] == [Position(1, 1, 1, 3)]
    assert records(target).keys() == {"old"}
    assert copying.finish(target)
    assert not copying.finish(target)
    assert copying.was_taken(target)
    assert records(target) == wanted
    assert not [name for name in target.names() if name.startswith("old")]


def test_what_is_here_is_known_after_a_start() -> None:
    source, target = SimDisk(), SimDisk()
    filled(source, "new", 20)
    copy_id, files = copying.files_of(source)
    copying.begin(target, copy_id, files)
    name, size = max(files, key=lambda file: file[1])
    copying.put(target, name, 0, bytes(source.view(name))[:PART])
    assert size > PART
    after = target.crash(random.Random(1))
    assert copying.in_progress(after) == (copy_id, {name: PART})
    send(source, after, {name: PART})
    copying.end(after, seen)


def test_a_copy_that_is_dropped_leaves_what_was_here() -> None:
    source, target = SimDisk(), SimDisk()
    filled(source, "new", 20)
    filled(target, "old", 20)
    wanted = records(target)
    copying.drop(target)  # there is none
    copy_id, files = copying.files_of(source)
    copying.begin(target, copy_id, files)
    send(source, target)
    copying.drop(target)
    after = target.crash(random.Random(1))
    assert copying.in_progress(after) is None
    assert not after.names(copying.FOLDER)
    assert records(after) == wanted
    copying.begin(after, copy_id, files)
    send(source, after)
    copying.end(after, seen)
    with pytest.raises(StorageError, match="ready"):
        copying.drop(after)


def test_an_unchanged_snapshot_keeps_its_id_and_another_has_another() -> None:
    disk, other = SimDisk(), SimDisk()
    filled(disk, "new", 20)
    filled(other, "new", 21)
    assert copying.files_of(disk) == copying.files_of(disk.kill())
    assert copying.files_of(disk)[0] != copying.files_of(other)[0]
    assert copying.files_of(SimDisk()) == (b"", [])


def test_parts_that_do_not_fit_are_refused() -> None:
    target = SimDisk()
    with pytest.raises(StorageError, match="no copy is being received"):
        copying.put(target, "nun.state", 0, b"x")
    copying.begin(target, b"id", [("nun.state", 10)])
    for name, offset, data in (
        ("other", 0, b"x"),
        ("nun.state", 8, b"xxx"),
        ("nun.state", 5, b"x"),
    ):
        with pytest.raises(StorageError):
            copying.put(target, name, offset, data)
    with pytest.raises(DamagedFile, match="expected 10 bytes"):
        copying.end(target, seen)


@pytest.mark.parametrize("name", ["../NODE", "NODE", "LOCK", "oplog/0000000000000001.log", "x"])
def test_a_copy_has_no_files_but_those_of_snapshots(name: str) -> None:
    with pytest.raises(StorageError, match="has no file"):
        copying.begin(SimDisk(), b"id", [(name, 10)])


def test_damage_on_the_way_is_noticed(tmp_path: Path) -> None:
    source, target = RealDisk(tmp_path / "source"), RealDisk(tmp_path / "target")
    for disk in (source, target):
        disk.root.mkdir()
    filled(source, "new", 20)
    copy_id, files = copying.files_of(source)
    copying.begin(target, copy_id, files)
    send(source, target)
    name = next(name for name, _ in files if name.endswith("side"))
    copying.put(target, name, 20, b"\xff\xff\xff")
    with pytest.raises(DamagedFile):
        copying.end(target, seen)


@pytest.mark.parametrize("how", ["done", "not_done", "torn"])
def test_a_crash_at_every_call_leaves_the_old_or_the_new(how: How) -> None:
    def work(disk: SimDisk) -> None:
        copying.begin(disk, copy_id, files)
        send(source, disk)
        copying.end(disk, seen)
        copying.finish(disk)

    source = SimDisk()
    filled(source, "new", 6)
    copy_id, files = copying.files_of(source)
    whole = SimDisk()
    filled(whole, "old", 6)
    old = records(whole)
    before = whole.calls
    work(whole)
    for call in range(1, whole.calls - before + 1):
        disk = SimDisk(call)
        filled(disk, "old", 6)
        disk.crash_after(call, how)
        with pytest.raises(Crashed):
            work(disk)
        after = disk.crash(random.Random(call))
        copying.finish(after)
        found = records(after)
        assert found in (records(source), old), call


@pytest.mark.parametrize("how", ["done", "not_done", "torn"])
def test_a_log_that_is_cut_back_to_where_the_files_end_is_no_loss(how: How) -> None:
    """Whatever crashes: what the files hold is there, and no segment but with the leave to be without."""

    def begun(seed: int = 0) -> tuple[SimDisk, Oplog]:
        disk = SimDisk(seed)
        filled(disk, "own", 6)
        for name in disk.names(seg.FOLDER):
            disk.remove(f"{seg.FOLDER}/{name}")
        log = Oplog.open(disk, 4096, 10**6)
        log.start_after(Position(1, 1, 1, 3))
        for seq in (4, 5):
            position = Position(1, 1, 1, seq)
            put = (fx.PUT, 1, seq << 60, 1, 0, b"later", b"%d" % seq)
            log.append([(position, fx.encode_entry(position, [put]))])
            log.sync()
        return disk, log

    def work(disk: SimDisk, log: Oplog) -> None:
        copying.begin_log_anew(disk)
        log.truncate_after(3)

    whole, log = begun()
    before = whole.calls
    work(whole, log)
    held = records(whole)
    assert copying.was_taken(whole)
    assert b"later" not in held["own"]
    for call in range(1, whole.calls - before + 1):
        disk, log = begun(call)
        disk.crash_after(call, how)
        with pytest.raises(Crashed):
            work(disk, log)
        after = disk.crash(random.Random(call))
        found = records(after)
        found["own"].pop(b"later", None)
        assert found == held, call


@pytest.mark.parametrize("how", ["done", "not_done", "torn"])
def test_a_copy_that_is_begun_or_dropped_leaves_the_leave_to_be_without_a_log(how: How) -> None:
    def begun(seed: int = 0) -> SimDisk:
        disk = SimDisk(seed)
        filled(disk, "own", 6)
        copying.begin_log_anew(disk)
        for name in disk.names(seg.FOLDER):
            disk.remove(f"{seg.FOLDER}/{name}")
        disk.sync_names(seg.FOLDER)
        return disk

    def work(disk: SimDisk) -> None:
        copying.begin(disk, copy_id, files)
        send(source, disk)
        copying.drop(disk)

    source = SimDisk()
    filled(source, "other", 6)
    copy_id, files = copying.files_of(source)
    whole = begun()
    held = records(whole)
    before = whole.calls
    work(whole)
    assert records(whole) == held
    for call in range(1, whole.calls - before + 1):
        disk = begun(call)
        disk.crash_after(call, how)
        with pytest.raises(Crashed):
            work(disk)
        assert records(disk.crash(random.Random(call))) == held, call
