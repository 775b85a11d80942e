"""The data directory: one holder, and a start that is never used twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nun.errors import DamagedFile, DirectoryInUse, FormatTooNew, StorageError
from storage import directory
from storage.directory import (
    NODE,
    DataDirectory,
    Identity,
    begin_start,
    read_identity,
    write_identity,
)
from storage.oplog import Oplog
from tests.support.logs import entry
from tests.support.sim_disk import Crashed, How, SimDisk

KNOWN = Identity(b"0123456789abcdef", 7, 41, b"d" * 16, (3, 2))


class TestIdentity:
    def test_a_new_directory_gets_one_and_each_start_raises_it(self) -> None:
        disk = SimDisk()
        assert read_identity(disk) is None
        first = begin_start(disk)
        assert (len(first.cluster_id), first.node, first.start) == (16, 1, 1)
        assert begin_start(disk) == first._replace(start=2)
        assert read_identity(disk) == first._replace(start=2)
        assert begin_start(SimDisk()).cluster_id != first.cluster_id

    @pytest.mark.parametrize("how", ["done", "not_done", "torn"])
    def test_a_crash_at_every_call_uses_no_start_twice(self, how: How) -> None:
        count = SimDisk()
        begin_start(count)
        for start in (0, 41):
            for call in range(1, count.calls + 2):
                disk = SimDisk(call)
                if start:
                    write_identity(disk, KNOWN)
                disk.crash_after(call, how)
                told = start
                try:
                    told = begin_start(disk).start
                    disk.sync_names()
                except Crashed:
                    pass
                for seed in range(8):
                    for after in (disk.crash(random.Random(seed)), disk.kill()):
                        assert begin_start(after).start > told
                        known = read_identity(after)
                        assert known is not None
                        assert not start or known.cluster_id == KNOWN.cluster_id

    def test_a_full_disk_takes_any_number_of_starts(self) -> None:
        disk = SimDisk()
        first = begin_start(disk)
        for number in range(2, 300):
            disk.fill()
            assert begin_start(disk) == first._replace(start=number)
            disk = disk.kill() if number % 2 else disk.crash(random.Random(number))

    def test_every_byte_flipped_and_every_length_cut_is_noticed(self) -> None:
        disk = SimDisk()
        write_identity(disk, KNOWN)
        whole = disk.content(NODE)
        unpadded = 16 + len(directory.pack(KNOWN))
        for place in range(len(whole)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            for damaged in (bytes(flipped), whole[:place]):
                disk.put(NODE, damaged)
                if len(damaged) == unpadded:  # as it was written once, without zeros behind it
                    assert read_identity(disk) == KNOWN
                    continue
                with pytest.raises(DamagedFile, match="NODE: damaged at byte"):
                    begin_start(disk)
                assert disk.content(NODE) == damaged
        disk.put(NODE, whole)
        assert read_identity(disk) == KNOWN

    @pytest.mark.parametrize(
        "body",
        [
            b"\xc1",
            b"",
            directory.pack([]),
            directory.pack([bytes(16), 1, 1]),
            directory.pack([b"short", 1, 1, bytes(16), None]),
            directory.pack([bytes(16), 0, 1, bytes(16), None]),
            directory.pack([b"", 1, 1, bytes(16), None]),
            directory.pack([bytes(16), 1024, 1, bytes(16), None]),
            directory.pack([bytes(16), 1, 0, bytes(16), None]),
            directory.pack([bytes(16), 1, "1", bytes(16), None]),
            directory.pack([bytes(16), 1, 1, b"short", None]),
            directory.pack([bytes(16), 1, 1, bytes(16), 3]),
            directory.pack([bytes(16), 1, 1, bytes(16), [3]]),
        ],
    )
    def test_what_is_no_identity_is_damage(self, body: bytes) -> None:
        disk = SimDisk()
        crc = directory._checksum(b"NUNNODE1", body)
        disk.put(
            NODE, b"NUNNODE1" + crc.to_bytes(4, "little") + len(body).to_bytes(4, "little") + body
        )
        with pytest.raises(DamagedFile):
            read_identity(disk)

    def test_a_format_of_the_future_is_left_alone(self) -> None:
        disk = SimDisk()
        crc = directory._checksum(b"NUNNODE2", b"new")
        disk.put(NODE, b"NUNNODE2" + crc.to_bytes(4, "little") + b"\3\0\0\0new")
        with pytest.raises(FormatTooNew, match="NODE"):
            begin_start(disk)

    def test_a_log_without_an_identity_is_not_adopted(self) -> None:
        disk = SimDisk()
        log = Oplog.open(disk, 1000, 4000)
        log.append([entry(1)])
        log.close()
        with pytest.raises(StorageError, match="NODE is missing"):
            begin_start(disk)


HOLDER = """
import sys
from pathlib import Path
from storage.directory import DataDirectory
held = DataDirectory.open(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


class TestHolding:
    def test_it_is_made_with_its_parents(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b"
        held = DataDirectory.open(path)
        assert path.is_dir()
        assert held.identity is None
        identity = held.begin_start()
        assert held.identity == identity
        held.close()
        again = DataDirectory.open(path)
        assert again.begin_start().start == identity.start + 1
        again.close()

    def test_a_second_holder_is_told_who_holds_it(self, tmp_path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(DirectoryInUse, match=rf"in use by process {process.pid}"):
                DataDirectory.open(tmp_path, patience_s=0.05)
            process.kill()
            DataDirectory.open(tmp_path).close()

    def test_a_file_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(StorageError, match=r"cannot be used.*expected a directory"):
                DataDirectory.open(path)

    def test_a_directory_whose_rights_say_no(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(StorageError, match="may not write"):
            DataDirectory.open(tmp_path)
