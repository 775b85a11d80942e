"""Loading: which bytes count, which do not, and what a directory without some of its files is told."""

from __future__ import annotations

from typing import Any

import pytest

from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.errors import DamagedFile, StorageError
from storage import layout
from storage.base import finish, read_base
from storage.oplog import LogReader
from storage.recovery import load
from storage.snapshot import Snapshots
from tests.support.sim_disk import SimDisk
from tests.support.snapshots import Node, every_kind, recovered, view

KINDS = ("keys", "values", "rows")


def shop() -> Node:
    """A database with dead values, records of every kind, a dropped key and an empty value."""
    node = Node(SimDisk())
    node.create(1, "shop")
    node.set_many(1, ["a", "bb", "ccc", "gone"], "first")
    node.set_every_kind(1, b"old")
    node.take()
    node.set_many(1, ["a", "bb"], "")
    node.set_every_kind(1, b"new")
    node.put((fx.TOMBSTONE, 1, node.op, 2, 0, b"ccc"), (fx.DROP, 1, [b"gone"]))
    node.op += TICK
    node.take()
    return node


def file(kind: str) -> str:
    return f"shop-nun.data.{kind}"


@pytest.mark.parametrize("kind", [*KINDS, "side", "state"])
def test_every_cut_is_found(kind: str) -> None:
    node = shop()
    name = "nun.state" if kind == "state" else file(kind)
    content = node.disk.content(name)
    for size in range(len(content)):
        disk = node.disk.kill()
        disk.put(name, content[:size])
        with pytest.raises(StorageError, match=name.replace(".", r"\.")):
            load(disk, LogReader(disk))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_named(kind: str) -> None:
    node = shop()
    node.disk.remove(file(kind))
    with pytest.raises(DamagedFile) as caught:
        load(node.disk, LogReader(node.disk))
    assert caught.value.file == file(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_behind_what_counts_are_not_there(kind: str) -> None:
    """A crashed snapshot leaves such; the next one writes over them."""
    node = shop()
    truth = view(recovered(node.disk))
    node.disk.put(file(kind), node.disk.content(file(kind)) + b"\xff" * 100)
    assert view(recovered(node.disk)) == truth
    again = Node(node.disk)
    again.set_many(1, ["new"], "value")
    again.take()
    assert record.value_of(view(recovered(node.disk))["shop"].pop(b"new")) == b"value"


def test_a_flipped_byte_of_values_is_found_or_belongs_to_no_record() -> None:
    """Dead values may rot; no wrong record is served for it."""
    node = shop()
    truth = view(recovered(node.disk))
    content = node.disk.content(file("values"))
    found = 0
    for at in range(len(content)):
        disk = node.disk.kill()
        disk.put(file("values"), content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
        try:
            assert view(recovered(disk)) == truth
        except DamagedFile:
            found += 1
    live = node.snapshots.describe()["databases"]["shop"]["live_values_bytes"]
    assert found == live


@pytest.mark.parametrize("kind", ["keys", "rows"])
def test_a_flipped_byte_of_keys_and_rows_is_found_though_a_plan_is_carried_out_again(
    kind: str,
) -> None:
    """What the plan of the last snapshot covers is written anew at the start; all else is refused."""
    node = shop()
    truth = view(recovered(node.disk))
    content = node.disk.content(file(kind))
    for at in range(len(content)):
        disk = node.disk.kill()
        disk.put(file(kind), content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
        with pytest.raises(DamagedFile):
            load(disk, LogReader(disk))
        try:
            assert view(recovered(disk)) == truth
        except DamagedFile:
            pass


def test_a_row_of_op_id_0_is_free_or_a_conflict_over_nothing() -> None:
    """Whatever else has such a head is damage, though its checksum is right."""
    over_nothing = record.in_conflict(record.ABSENT)
    written = [packed for version in (0, 1) for packed in every_kind(version, 1, b"value")]
    written.append(record.pack_head(record.SPECIAL | 1, 1) + over_nothing[12:])
    loaded = 0
    for packed in written:
        node = Node(SimDisk())
        node.create(1, "shop")
        node.set_records(1, {b"k": packed})
        node.take()
        head = record.pack_head(record.unpack_head(packed)[0], 0)
        crc = layout.checksum(node.disk.content(file("keys")), head + packed[12:])
        node.disk.put(file("rows"), bytes(8) + head + crc.to_bytes(4, "little"))
        if packed == over_nothing:
            assert view(recovered(node.disk))["shop"] == {b"k": over_nothing}
            loaded += 1
        else:
            with pytest.raises(DamagedFile, match="record 0"):
                recovered(node.disk)
    assert loaded == 2


def test_records_swapped_between_two_keys_are_found() -> None:
    """Each of them is whole; their places are not theirs."""
    node = Node(SimDisk())
    node.create(1, "shop")
    node.set_many(1, ["a", "b"], "v")
    node.take()
    rows = node.disk.content(file("rows"))
    node.disk.put(file("rows"), rows[24:] + rows[:24])
    with pytest.raises(DamagedFile, match="expected 0"):
        load(node.disk, LogReader(node.disk))


def test_files_of_another_snapshot_of_the_same_database_are_found() -> None:
    """As when only one of the files was restored from a backup."""
    node = Node(SimDisk())
    node.create(1, "shop")
    node.set_many(1, ["a", "b"], "old")
    node.take()
    old = {kind: node.disk.content(file(kind)) for kind in KINDS}
    node.set_many(1, ["a", "b"], "newer")
    node.take(reclaim=True)
    for kind in KINDS:
        disk = node.disk.kill()
        disk.put(file(kind), old[kind])
        with pytest.raises(DamagedFile):
            recovered(disk)


def test_side_files_without_state_and_log_are_not_an_empty_node() -> None:
    """Only the files of the databases were restored: nothing says what else there was."""
    node = shop()
    node.disk.remove("nun.state")
    for name in node.disk.names("oplog"):
        node.disk.remove(f"oplog/{name}")
    with pytest.raises(DamagedFile, match="the files hold 7"):
        recovered(node.disk)


def test_without_the_state_a_whole_log_gives_everything_again() -> None:
    node = shop()
    truth = view(recovered(node.disk))
    node.disk.remove("nun.state")
    assert view(recovered(node.disk)) == truth


def test_a_log_that_begins_behind_the_files_is_told() -> None:
    node = Node(SimDisk())
    node.create(1, "shop")
    node.take()
    kept = {name: node.disk.content(name) for name in node.disk.names()}
    for number in range(60):
        node.set_many(1, [str(number)], "v" * 1000)
    node.take()
    node.log._budget = 0  # gives up all that the snapshot holds
    node.log.trim(node.snapshots.position + 1)
    assert node.log.first_seq > 3
    for name, content in kept.items():
        node.disk.put(name, content)
    with pytest.raises(DamagedFile, match="the log begins at seq"):
        recovered(node.disk)


def test_loading_changes_nothing() -> None:
    node = shop()
    node.disk.put("shop-nun.data.keys.9.new", b"left")
    calls = node.disk.calls
    load(node.disk, LogReader(node.disk))
    read_base(node.disk)
    assert node.disk.calls == calls


def test_finishing_takes_only_what_snapshots_make() -> None:
    node = shop()
    strangers = ["notes.tmp", "notes.new", "README"]
    ours = ["nun.state.tmp", "shop-nun.data.side.tmp", "shop-nun.madadata.tmp"]
    ours += ["shop-nun.data.keys.7.new"]
    for name in strangers + ours:
        node.disk.put(name, b"x")
    assert finish(node.disk) == sorted(
        (f"removed {name}" for name in ours), key=lambda line: (line.endswith("new"), line)
    )
    assert set(strangers) <= set(node.disk.names())
    assert finish(node.disk) == []


@pytest.mark.parametrize("name", ["shop", "a/b", "50%"])
def test_two_starts_are_as_one(name: str) -> None:
    node = Node(SimDisk())
    node.create(1, name)
    node.set_many(1, ["a"], "v")
    node.take()
    node.set_many(1, ["a"], "w")
    node.take()
    before: dict[str, Any] = {name: node.disk.content(name) for name in node.disk.names()}
    for _ in range(2):
        Snapshots(node.disk, LogReader(node.disk)).open()
    assert {name: node.disk.content(name) for name in node.disk.names()} == before
