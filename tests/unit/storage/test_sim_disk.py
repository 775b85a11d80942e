"""The simulated disk keeps what a real one keeps, and loses what a real one may lose."""

import errno
import random

import pytest

from tests.support.sim_disk import Crashed, SimDisk

SEEDS = range(60)


def test_synced_bytes_survive_and_unsynced_ones_take_every_fate() -> None:
    disk = SimDisk()
    file = disk.open("a", create=True)
    disk.sync_names()
    file.write(0, b"synced")
    file.sync()
    file.write(6, b"later!")
    left = {disk.crash(random.Random(seed)).content("a") for seed in SEEDS}
    assert all(content.startswith(b"synced") for content in left)
    assert {b"synced", b"syncedlater!"} <= left
    assert any(6 < len(content) < 12 for content in left), "no write was torn"


def test_unsynced_writes_are_lost_independently() -> None:
    disk = SimDisk()
    file = disk.open("a", create=True)
    disk.sync_names()
    file.write(0, b"-" * 8)
    file.sync()
    file.write(0, b"one!")
    file.write(4, b"two!")
    left = {disk.crash(random.Random(seed)).content("a") for seed in SEEDS}
    assert {b"one!----", b"----two!", b"one!two!", b"-" * 8} <= left


def test_torn_writes_have_holes() -> None:
    disk = SimDisk()
    file = disk.open("a", create=True)
    disk.sync_names()
    file.write(0, bytes(2048))
    file.sync()
    file.write(0, b"x" * 2048)
    left = [disk.crash(random.Random(seed)).content("a") for seed in SEEDS]
    assert any(b"x\0" in content and b"\0x" in content for content in left)


def test_names_are_durable_only_when_synced() -> None:
    disk = SimDisk()
    disk.open("folder/a", create=True)
    disk.sync_names()
    assert {disk.crash(random.Random(seed)).exists("folder/a") for seed in SEEDS} == {True, False}
    disk.sync_names("folder")
    disk.rename("folder/a", "folder/b")
    left = {tuple(disk.crash(random.Random(seed)).names("folder")) for seed in SEEDS}
    assert left == {("a",), ("b",)}
    disk.sync_names("folder")
    disk.remove("folder/b")
    left = {tuple(disk.crash(random.Random(seed)).names("folder")) for seed in SEEDS}
    assert left == {(), ("b",)}


def test_a_folder_is_a_name_of_the_root() -> None:
    disk = SimDisk()
    disk.open("folder/a", create=True)
    disk.sync_names("folder")
    assert {disk.crash(random.Random(seed)).exists("folder/a") for seed in SEEDS} == {True, False}
    assert {disk.kill().crash(random.Random(s)).exists("folder/a") for s in SEEDS} == {True, False}
    disk.sync_names()
    assert {disk.crash(random.Random(seed)).exists("folder/a") for seed in SEEDS} == {True}


def test_a_rename_replaces_and_the_replaced_file_stays_readable() -> None:
    disk = SimDisk()
    disk.put("a", b"old")
    disk.put("b", b"new")
    open_file = disk.open("a")
    disk.rename("b", "a")
    assert disk.names() == ["a"]
    assert disk.content("a") == b"new"
    assert open_file.read(0, 9) == b"old"


def test_a_kill_loses_nothing_written_and_syncs_nothing() -> None:
    disk = SimDisk()
    disk.open("a", create=True).write(0, b"x")
    killed = disk.kill()
    assert killed.content("a") == b"x"
    left = {
        bytes(after.content("a")) if after.exists("a") else None
        for after in (killed.crash(random.Random(seed)) for seed in SEEDS)
    }
    assert left == {None, b"", b"x"}
    disk.open("a").write(0, b"y")
    assert killed.content("a") == b"x"


@pytest.mark.parametrize(("how", "kept"), [("done", b"ab"), ("not_done", b"")])
def test_the_nth_call_crashes_and_all_after_it(how: str, kept: bytes) -> None:
    disk = SimDisk()
    file = disk.open("a", create=True)
    disk.crash_after(1, how)  # type: ignore[arg-type]
    with pytest.raises(Crashed):
        file.write(0, b"ab")
    for call in (
        lambda: file.write(0, b"c"),
        lambda: file.read(0, 1),
        file.sync,
        lambda: disk.names(),
        lambda: disk.open("b", create=True),
        lambda: disk.sync_names(),
    ):
        with pytest.raises(Crashed):
            call()
    assert disk.kill().content("a") == kept


def test_torn_calls_leave_a_part() -> None:
    lengths = set()
    for seed in SEEDS:
        disk = SimDisk(seed)
        file = disk.open("a", create=True)
        disk.crash_after(1, "torn")
        with pytest.raises(Crashed):
            file.write(0, b"abcdef")
        content = disk.kill().content("a")
        assert b"abcdef".startswith(content)
        lengths.add(len(content))
    assert lengths == set(range(7))


def test_every_mutating_call_is_a_boundary() -> None:
    disk = SimDisk()
    file = disk.open("a", create=True)
    file.write(0, b"x")
    file.truncate(0)
    file.sync()
    disk.rename("a", "b")
    disk.remove("b")
    disk.sync_names()
    assert disk.calls == 7
    file.read(0, 1)
    disk.names()
    disk.exists("a")
    assert disk.calls == 7


def test_a_full_disk_takes_what_fits_and_lets_bytes_be_overwritten() -> None:
    disk = SimDisk()
    file = disk.open("a", create=True)
    file.write(0, b"1234")
    disk.fill(leave=2)
    with pytest.raises(OSError, match="No space") as raised:
        file.write(4, b"5678")
    assert raised.value.errno == errno.ENOSPC
    assert disk.content("a") == b"123456"
    file.write(0, b"abcd")
    with pytest.raises(OSError, match="No space"):
        file.truncate(100)
    assert disk.free_bytes() == 0
    disk.capacity = None
    file.write(4, b"5678")
    assert disk.content("a") == b"abcd5678"


def test_what_a_failed_sync_covered_is_never_synced() -> None:
    disk = SimDisk()
    file = disk.open("a", create=True)
    disk.sync_names()
    file.write(0, b"x")
    disk.syncs_to_fail = 1
    with pytest.raises(OSError, match="Input/output") as raised:
        file.sync()
    assert raised.value.errno == errno.EIO
    file.sync()
    assert disk.content("a") == b"x"
    assert {disk.crash(random.Random(seed)).content("a") for seed in SEEDS} == {b"", b"x"}


def test_the_same_seed_crashes_the_same_way() -> None:
    disk = SimDisk()
    file = disk.open("a", create=True)
    for i in range(20):
        file.write(i * 700, bytes([i]) * 700)
    first = disk.crash(random.Random(5))
    second = disk.crash(random.Random(5))
    assert first.names() == second.names()
    assert [first.content(name) for name in first.names()] == [
        second.content(name) for name in second.names()
    ]


def test_files_that_are_not_there_and_files_that_are_closed() -> None:
    disk = SimDisk()
    for call in (
        lambda: disk.open("a"),
        lambda: disk.view("a"),
        lambda: disk.rename("a", "b"),
        lambda: disk.remove("a"),
    ):
        with pytest.raises(FileNotFoundError):
            call()
    file = disk.open("a", create=True)
    file.close()
    with pytest.raises(OSError, match="closed"):
        file.read(0, 1)
