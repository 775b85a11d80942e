"""A full disk: writes are refused with a clear error, reads go on, and with room again so do the writes."""

from __future__ import annotations

import errno
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nun
from nun.limits import KIB, MIB
from tests.support.node import ADMIN, Node, wait_until

pytestmark = pytest.mark.process

SETTINGS: dict[str, dict[str, Any]] = {
    "storage": {
        "fsync": "always",
        "segment_bytes": 256 * KIB,
        "oplog_bytes": 8 * MIB,
        "snapshot_interval_s": 0,
        "snapshot_log_bytes": 64 * MIB,
    }
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB in memory."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
    found = subprocess.run(mount, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {found.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path, leave: int) -> Path:
    """Takes all room of the disk but about this many bytes."""
    ballast = path / "ballast"
    with open(ballast, "wb") as file:
        free = os.statvfs(path)
        file.write(bytes(max(free.f_bavail * free.f_frsize - leave, 0)))
    return ballast


def fill_up(ballast: Path) -> None:
    """Takes what room is left, to the last byte."""
    with open(ballast, "ab", buffering=0) as file:
        for size in (64 * KIB, 4 * KIB, 1):
            while takes(file, size):
                pass


def takes(file: io.FileIO, size: int) -> bool:
    try:
        return file.write(bytes(size)) == size
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


def write_until_refused(database: Any, acked: dict[str, str]) -> nun.NunError:
    """Writes until the node refuses; returns the refusal.

    A write that was decided just before the disk ran full waits for room; that its outcome is unknown is the truth.
    """
    first = int(max(acked, default="k-1", key=lambda key: int(key[1:]))[1:]) + 1
    for number in range(first, first + 5000):
        key, value = f"k{number}", f"{number}:" + "x" * 2000
        try:
            database.set(key, value, timeout=1.0)
        except nun.ReadOnly as error:
            return error
        except nun.UnknownOutcome:
            continue
        acked[key] = value
    raise AssertionError("the disk never ran full")


def check(database: Any, acked: dict[str, str]) -> None:
    keys = list(acked)
    for key, entry in zip(keys, database.get_many(keys), strict=True):
        assert entry is not None, key
        assert entry.value == acked[key], key


def becomes_writable(database: Any) -> bool:
    try:
        database.set("probe", "v")
    except nun.ReadOnly:
        return False
    return True


def test_writes_are_refused_reads_go_on_and_room_heals(
    small_disk: Path, start_node: Callable[..., Node]
) -> None:
    node = start_node(SETTINGS, data_dir=small_disk / "data")
    acked: dict[str, str] = {}
    with nun.Client(node.address, **ADMIN, timeout=20.0) as client:
        client.create_database("d", token="t")
        database = client.database("d", token="t")
        ballast = fill(small_disk, 600 * KIB)
        for _ in range(2):
            refusal = write_until_refused(database, acked)
            assert isinstance(refusal, nun.ReadOnly)
            assert len(str(refusal)) > 10
            check(database, acked)
            with pytest.raises(nun.ReadOnly):
                database.increment("n", 1)
            assert database.keys("k1*", limit=10)
            ballast.unlink()
            wait_until(lambda: becomes_writable(database), "writes to be taken again")
            assert database.increment("n", 1).value >= 1
            ballast = fill(small_disk, 600 * KIB)
    ballast.unlink()
    node.kill("node")
    node.restart()
    with nun.Client(node.address, **ADMIN) as client:
        database = client.database("d", token="t")
        check(database, acked)
        assert database.get("n").value == "2"


def test_a_crash_on_a_full_disk_loses_nothing(
    small_disk: Path, start_node: Callable[..., Node]
) -> None:
    node = start_node(SETTINGS, data_dir=small_disk / "data")
    acked: dict[str, str] = {}
    with nun.Client(node.address, **ADMIN, timeout=20.0) as client:
        client.create_database("d", token="t")
        ballast = fill(small_disk, 400 * KIB)
        write_until_refused(client.database("d", token="t"), acked)
    node.kill("node")
    ballast.unlink()
    node.restart()
    with nun.Client(node.address, **ADMIN) as client:
        check(client.database("d", token="t"), acked)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_node_comes_up_on_a_full_disk_and_serves_reads(
    small_disk: Path, start_node: Callable[..., Node], how: str
) -> None:
    node = start_node(SETTINGS, data_dir=small_disk / "data")
    acked: dict[str, str] = {}
    with nun.Client(node.address, **ADMIN, timeout=20.0) as client:
        client.create_database("d", token="t")
        ballast = fill(small_disk, 400 * KIB)
        write_until_refused(client.database("d", token="t"), acked)
    epochs = set()
    for _ in range(4):
        fill_up(ballast)
        if how == "killed":
            node.kill("node")
        else:
            node.stop()
        fill_up(ballast)
        assert os.statvfs(small_disk).f_bavail == 0, "the disk is not full"
        epochs.add(node.launch().wait_ready()["epoch"])
        with nun.Client(node.address, timeout=20.0) as client:
            database = client.database("d", token="t")
            check(database, acked)
            wait_until(lambda: not becomes_writable(database), "writes to be refused")  # noqa: B023
            check(database, acked)
    assert len(epochs) == 4
    ballast.unlink()
    with nun.Client(node.address, timeout=20.0) as client:
        database = client.database("d", token="t")
        wait_until(lambda: becomes_writable(database), "writes to be taken again")
        check(database, acked)


def test_a_snapshot_that_finds_no_room_harms_nothing(
    small_disk: Path, start_node: Callable[..., Node]
) -> None:
    node = start_node(SETTINGS, data_dir=small_disk / "data")
    with nun.Client(node.address, **ADMIN, timeout=20.0) as client:
        client.create_database("d", token="t")
        database = client.database("d", token="t")
        values = {f"k{i}": f"{i}:" + "x" * 1000 for i in range(3000)}
        database.set_many(values)
        ballast = fill(small_disk, 300 * KIB)
        with pytest.raises(nun.NunError):
            client.snapshot(["d"])
        check(database, values)
        ballast.unlink()
        wait_until(lambda: becomes_writable(database), "writes to be taken again")
        client.snapshot(["d"])
        check(database, values)
    node.kill("node")
    node.restart()
    with nun.Client(node.address, **ADMIN) as client:
        check(client.database("d", token="t"), values)
