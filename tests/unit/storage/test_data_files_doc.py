"""docs/DATA_FILES.md against the code: its way to read a directory by hand, and the magics that it names."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.position import Position
from storage import copying, directory, layout, manifest, segment
from storage.disk import RealDisk
from storage.oplog import LogReader, Oplog
from storage.snapshot import Snapshots
from tests.support.snapshots import every_kind

DOCUMENT = (Path(__file__).parents[3] / "docs" / "DATA_FILES.md").read_text(encoding="utf-8")


def test_reading_by_hand_shows_what_a_snapshot_wrote(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    log = Oplog.open(disk, 1 << 16, 1 << 20)
    kinds = every_kind(3, 10 * TICK, b"held")
    keys = [b"kind %d" % number for number in range(len(kinds))]
    entries = [
        [
            (fx.EPOCH, b"c" * 16, {1: ["node1", b"d" * 16, 1]}, 2),
            (fx.DATABASE, 1, "shop", {"strategy": "none"}),
        ],
        [(fx.PUTS, 1, TICK, bytes(24), pack([["name", "color"], ["mary", "blue"]]))],
        [(fx.TOMBSTONE, 1, 9 * TICK, 2, 2 * TICK, b"color")],
        [(fx.RECORDS, 1, 10 * TICK, keys, kinds, bytes(12 * len(kinds)))],
    ]
    for seq, effects in enumerate(entries, 1):
        position = Position(1, 1, 1, seq)
        log.append([(position, fx.encode_entry(position, effects))])
    log.sync()
    snapshots = Snapshots(disk, LogReader(disk))
    snapshots.open()
    for blocking in snapshots.take(None, False, len(entries)):
        if blocking is not None:
            blocking()
    code = re.search(r"```python\n(.*?)```", DOCUMENT, re.S)
    assert code is not None
    said = io.StringIO()
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        with contextlib.redirect_stdout(said):
            exec(
                re.sub(r'open\("([^"]+)", "rb"\)\.read\(\)', r'READ("\1")', code[1]),
                {"READ": lambda name: Path(name).read_bytes()},
            )
    finally:
        os.chdir(before)
        log.close()
    shown = ["name 1 b'mary'"]
    for key, packed in zip(keys, kinds, strict=True):
        if record.is_live(packed):
            version = -2 if record.is_in_conflict(packed) else 3
            shown.append(f"{key.decode()} {version} b'held'")
    assert said.getvalue().splitlines() == shown


def test_the_magics_and_sizes_that_it_names_are_those_of_the_code() -> None:
    for magic in (*manifest.SIDE_MAGICS, manifest.STATE_MAGIC, segment.MAGIC):
        assert f"`{magic.decode()}`" in DOCUMENT
    assert "`NUNNODE1`" in DOCUMENT
    assert directory.NODE == "NODE"
    assert "`NUNOUTBX`" in DOCUMENT
    for name in (copying.PLAN, copying.READY, copying.TAKEN):
        assert f"`{name}`" in DOCUMENT
    assert f"One row of {layout.ROW.size} bytes" in DOCUMENT
    assert f"| 0 | {layout.LENGTH.size} | offset of the key's record in the keys file |" in DOCUMENT
