"""Loading: the state of a node as its files and its log have it. Reads only.

The files are read whole and walked row by row; every record's checksum is checked. Then the log is replayed: an entry
touches a database only if it is newer than that database's own files.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Iterator
from typing import NamedTuple

from nun.core import effects as fx
from nun.core import record
from nun.core.state import NodeState
from nun.errors import Compacted, DamagedFile
from nun.position import Position
from storage import layout
from storage.base import read_base
from storage.copying import was_taken
from storage.disk import Disk
from storage.manifest import Side
from storage.oplog import LogReader

_READ_BYTES = 4 * 1024 * 1024


class Loaded(NamedTuple):
    """What a node goes on from."""

    state: NodeState
    tables: dict[int, dict[bytes, bytes]]


def load(disk: Disk, reader: LogReader) -> Loaded:
    """Loads files and log.

    Raises:
        DamagedFile: a checksum does not match, or the log does not reach back to the files.
        FormatTooNew: a later version of Nun wrote them.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        base = read_base(disk)
        tables = {number: read_records(disk, side) for number, side in base.sides.items()}
        for number, migrated in base.migrated.items():
            tables[number] = migrated.records
        state = base.state
        seqs = {number: base.seq_of(number) for number in state.databases}
        start = min([base.seq, *seqs.values()]) + 1
        last = reader.last_seq()
        held = max([base.seq, base.newest, *seqs.values()])
        if last < held and (last or not was_taken(disk)):
            raise DamagedFile("oplog", 0, f"the log ends at seq {last}, the files hold {held}")
        bare = [info for info in state.databases.values() if info.number not in tables]
        for position, effects in entries(reader, start, last):
            seq = position.seq
            state.apply(position, effects)
            for change in fx.record_changes(effects):
                if seq > seqs.get(change.database, 0):
                    _change(tables.setdefault(change.database, {}), change)
        for info in bare:
            if info.number in state.databases:
                name = layout.file_name(info.name, layout.SIDE)
                raise DamagedFile(name, 0, f"expected the side file of database {info.name!r}")
        for number in state.databases:
            tables.setdefault(number, {})
        return Loaded(state, {number: tables[number] for number in state.databases})
    finally:
        if collecting:
            gc.enable()


def _change(table: dict[bytes, bytes], change: fx.RecordChange) -> None:
    for key, packed in zip(change.keys, change.records, strict=True):
        if packed is None:
            table.pop(key, None)
        else:
            table[key] = packed


def entries(reader: LogReader, start: int, last: int) -> Iterator[tuple[Position, list[fx.Effect]]]:
    """The entries of the log from `start` to `last`. Raises DamagedFile where it does not reach back."""
    seq = start
    while seq <= last:
        try:
            frames = reader.read(seq, _READ_BYTES, last)
        except Compacted as error:
            raise DamagedFile(
                "oplog", 0, f"the log begins at seq {error.first_seq}, the files end before {seq}"
            ) from error
        for frame in frames:
            yield fx.decode_entry(frame)
        seq += len(frames)


def read_records(disk: Disk, side: Side) -> dict[bytes, bytes]:
    """All records of one database's files, tombstones included, each checked."""
    rows = committed(disk, side, layout.ROWS, side.rows * layout.ROW.size)
    keys = committed(disk, side, layout.KEYS, side.keys_bytes)
    values = committed(disk, side, layout.VALUES, side.values_bytes)
    records: dict[bytes, bytes] = {}
    length_at = layout.LENGTH.unpack_from
    tail_at = layout.KEY_TAIL.unpack_from
    pack_head = record.pack_head
    crc32 = layout.crc32
    tail_bytes = layout.KEY_TAIL.size
    special = record.SPECIAL
    status_ok = layout.STATUS_OK
    over_absent = record.in_conflict(record.ABSENT)
    end = 0
    number = -1
    try:
        for number, (offset, word, op_id, crc) in enumerate(layout.ROW.iter_unpack(rows)):
            if offset != end:
                raise _bad_row(side, number, f"its record is at {offset}, expected {end}")
            key_end = offset + 8 + length_at(keys, offset)[0]
            end = key_end + tail_bytes
            key = keys[offset + 8 : key_end]
            if word < special and op_id:
                address = tail_at(keys, key_end)[1]
                value_end = address + 8 + length_at(values, address)[0]
                packed = pack_head(word, op_id) + values[address + 8 : value_end]
                if values[value_end : value_end + 4] != status_ok:
                    raise _bad_row(side, number, "the status of its value is not 0")
            elif word >= special:
                version, address = tail_at(keys, key_end)
                packed = layout.packed_of(word, op_id, version, address, values)
                if not op_id and packed != over_absent:
                    raise _bad_row(
                        side, number, "it has op id 0 and is not in conflict over nothing"
                    )
            elif word:
                raise _bad_row(side, number, "it is free and has a version")
            else:
                packed = b""
            if crc32(packed, crc32(keys[offset:end])) != crc:
                raise _bad_row(side, number, "the checksum does not match")
            if packed:
                records[key] = packed
    except (IndexError, ValueError, OverflowError, struct.error) as error:
        raise _bad_row(side, number, f"it does not lead to a record ({error})") from error
    if end != side.keys_bytes:
        raise DamagedFile(
            layout.file_name(side.name, layout.KEYS), end, f"expected to end at {side.keys_bytes}"
        )
    return records


def _bad_row(side: Side, number: int, detail: str) -> DamagedFile:
    name = layout.file_name(side.name, layout.ROWS)
    return DamagedFile(name, number * layout.ROW.size, f"record {number}: {detail}")


def committed(disk: Disk, side: Side, kind: str, size: int) -> bytes:
    """As much of a file as its side file says counts."""
    name = layout.file_name(side.name, kind)
    data = disk.view(name) if size and disk.exists(name) else b""
    if len(data) < size:
        raise DamagedFile(name, len(data), f"the file ends here, expected {size} bytes")
    return data[:size]
