"""Snapshots: the log since the last one, folded into the files. Only the storage writer uses this.

A snapshot is a function of the files and the log, so nobody else is asked. What changed since a database's files were
written is folded into an overlay; then

    incremental                                         reclaim, or a database new to files that are there
    1. new values, keys and rows behind what counts     1. all live records and tombstones into NAME.GENERATION.new
    2. sync these                                       2. sync these
    3. side file with counts and redo plan: rename      3. side file that names the new generation: rename
    4. the plan: updates in place, sync                 4. the renames

The rename in 3 is the commit. A crash before it leaves bytes that do not count; a crash after it is finished by
storage/base.py at the next start. At last `nun.state` is replaced. A database's files may be ahead of the state or
behind it: replay goes by the position of each.

I1  Nothing that counts is overwritten before the commit.
I2  The plan of one snapshot is carried out and synced before the next begins.
I3  The log is needed from the lowest position of all databases and the state on; `position` says it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, cast

from nun.core import effects as fx
from nun.core import record
from nun.core.state import NodeState
from nun.errors import DamagedFile, StorageError
from storage import layout, manifest, nundb
from storage.base import Base, apply_plan, finish, new_name, read_base
from storage.disk import Disk, File
from storage.manifest import Side
from storage.oplog import LogReader
from storage.recovery import committed, entries

SLICE_NS: Final = 2_000_000
RECLAIM_BYTES_MIN: Final = 1 << 20
_CHUNK_BYTES: Final = 4 << 20
_CHUNK_RECORDS: Final = 1_024

Overlay = dict[bytes, bytes | None]
Run = tuple[Sequence[bytes], Sequence[bytes]]  # keys and their records
Step = Callable[[], None] | None
Work = Generator[Step, None, None]


@dataclass
class SnapshotReport:
    """What a snapshot did."""

    seq: int
    databases: int = 0
    records: int = 0
    bytes: int = 0
    reclaimed: int = 0
    dropped: int = 0

    def describe(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class Store:
    """One database's files, as the writer knows them. `rows` maps a key to the number of its row."""

    side: Side
    rows: dict[bytes, int] = field(default_factory=dict)
    fresh: dict[bytes, bytes] | None = None  # the records of a database that came from NunDB

    def wasted(self) -> float:
        """Which share of the files is dead: values that nobody points at, or rows of dropped keys."""
        side = self.side
        wasted = 0.0
        if side.values_bytes >= RECLAIM_BYTES_MIN:
            wasted = 1 - side.live_values_bytes / side.values_bytes
        if side.keys_bytes >= RECLAIM_BYTES_MIN:
            wasted = max(wasted, side.free_rows / side.rows)
        return wasted


class Slices:
    """Says when it is time to let others work."""

    def __init__(self) -> None:
        self._until = time.monotonic_ns() + SLICE_NS

    def over(self) -> bool:
        now = time.monotonic_ns()
        if now < self._until:
            return False
        self._until = now + SLICE_NS
        return True


class Snapshots:
    """All snapshots of a data directory.

    Args:
        disk: the data directory; nobody else writes to it.
        reader: of its log.
    """

    def __init__(self, disk: Disk, reader: LogReader) -> None:
        self._disk = disk
        self._reader = reader
        self._base = Base(NodeState())
        self._stores: dict[int, Store] = {}
        self.finished: list[str] = []

    def open(self) -> None:
        """Finishes what a crash interrupted and builds the index of every database."""
        self.finished = finish(self._disk)
        self._base = read_base(self._disk)
        self._stores = {}
        for number, side in self._base.sides.items():
            self._stores[number] = Store(side, self._index(side))
            side.seq = self._base.seq_of(number)
            self._remove_legacy(side)
        for number, migrated in self._base.migrated.items():
            side = Side(number, migrated.name)
            self._stores[number] = Store(side, fresh=migrated.records)
        if self._base.migrated and not self._disk.exists(manifest.STATE):
            if self._reader.last_seq():
                # Before the first entry there was nun.state: these were laid beside a log that knows nothing of them,
                # and their numbers may be taken there.
                names = ", ".join(migrated.name for migrated in self._base.migrated.values())
                raise StorageError(
                    f"files of NunDB ({names}) were added to a directory that is in use; expected a directory "
                    "without a log: start a new node on them, then export and import"
                )
            # Their numbers must outlive a crash between the first side file and the state.
            manifest.replace(
                self._disk, manifest.STATE, manifest.state_bytes(self._base.state, self._base.seqs)
            )
        self._remove_leftovers()

    def _index(self, side: Side) -> dict[bytes, int]:
        rows = committed(self._disk, side, layout.ROWS, side.rows * layout.ROW.size)
        keys = committed(self._disk, side, layout.KEYS, side.keys_bytes)
        starts = [offset for offset, _, _, _ in layout.ROW.iter_unpack(rows)]
        ends = [*starts[1:], side.keys_bytes] if starts else []
        tail = layout.KEY_TAIL.size
        found = (keys[start + 8 : end - tail] for start, end in zip(starts, ends, strict=True))
        return dict(zip(found, range(side.rows), strict=False))

    def _remove_leftovers(self) -> None:
        """Files of databases that were dropped: the commit of the drop was the state without them."""
        if self._base.state.position is None:
            return
        living = {layout.stem(store.side.name) for store in self._stores.values()}
        for name in self._disk.names():
            stem = layout.stem_of(name, layout.SIDE)
            if stem is not None and stem not in living:
                self._remove_files(stem)

    def _remove_files(self, stem: str) -> None:
        """Removes a database's files, the side file last: until then they are known to be ours."""
        for kinds in ((*layout.KINDS, layout.METADATA), (layout.SIDE,)):
            for kind in kinds:
                name = stem + layout.ending(kind)
                if self._disk.exists(name):
                    self._disk.remove(name)
            manifest.sync_names(self._disk)

    # What others ask

    @property
    def from_nundb(self) -> bool:
        """Whether files of NunDB were here before the first entry: the log alone does not make the state."""
        options = (info.options for info in self._base.state.databases.values())
        return any("migrated_from" in known for known in options)

    @property
    def position(self) -> int:
        """The last seq that state and all databases have: the log above it is needed."""
        seqs = [self._base.seq]
        seqs += [store.side.seq for store in self._stores.values()]
        return min(seqs)

    def wasteful(self, ratio: float) -> list[int]:
        """The databases of whose files more than this share is wasted."""
        return [number for number, store in self._stores.items() if store.wasted() > ratio]

    def describe(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "databases": {
                store.side.name: {
                    "seq": store.side.seq,
                    "rows": store.side.rows,
                    "free_rows": store.side.free_rows,
                    "keys_bytes": store.side.keys_bytes,
                    "values_bytes": store.side.values_bytes,
                    "live_values_bytes": store.side.live_values_bytes,
                    "generation": store.side.generation,
                    "migrating": store.fresh is not None,
                }
                for store in self._stores.values()
            },
        }

    # Taking one

    def take(
        self, databases: Collection[int] | None, reclaim: bool, up_to_seq: int
    ) -> Generator[Step, None, SnapshotReport]:
        """Takes a snapshot of these databases (None: all) as of entry `up_to_seq`.

        Yields None now and then, so that the caller can do other work, and callables that block (syncs), which the
        caller may run in a thread before it goes on. Raises OSError; then `open` has to be called again.
        """
        slices = Slices()
        report = SnapshotReport(up_to_seq)
        overlays: dict[int, Overlay] = {}
        state = self._base.state
        chosen = None if databases is None else set(databases)
        for number, store in self._stores.items():
            if store.fresh is not None and not up_to_seq:
                continue  # the first entry is still to say what becomes of it
            if (chosen is None or number in chosen) and (reclaim or store.fresh is not None):
                overlays[number] = {}
        for position, effects in entries(self._reader, self.position + 1, up_to_seq):
            state.apply(position, effects)
            for change in fx.record_changes(effects):
                number = change.database
                known = self._stores.get(number)
                if known is not None and chosen is not None and number not in chosen:
                    continue  # one without files is always taken along: the state will name it
                if known is None or position.seq > known.side.seq:
                    overlay = overlays.setdefault(number, {})
                    overlay.update(zip(change.keys, change.records, strict=True))
            if slices.over():
                yield None
        for number, info in state.databases.items():
            if number not in self._stores:
                self._stores[number] = self._new_store(number, info.name)
                overlays.setdefault(number, {})
        dropped = [number for number in self._stores if number not in state.databases]
        for number, overlay in overlays.items():
            if number in state.databases:
                store = self._stores[number]
                if reclaim or store.fresh is not None:
                    yield from self._reclaim(store, overlay, up_to_seq, slices, report)
                else:
                    yield from self._incremental(store, overlay, up_to_seq, slices, report)
        seqs = {}
        for number in state.databases:
            store = self._stores[number]
            if chosen is None or number in chosen:
                store.side.seq = up_to_seq
            seqs[number] = store.side.seq
        content = manifest.state_bytes(state, seqs)
        yield lambda: manifest.replace(self._disk, manifest.STATE, content)
        for number in dropped:
            name = self._stores.pop(number).side.name
            if name not in {store.side.name for store in self._stores.values()}:
                self._remove_files(layout.stem(name))
            report.dropped += 1
        return report

    def _new_store(self, number: int, name: str) -> Store:
        """The store of a database that has no files yet: they are made beside, as a reclaim makes them.

        So nothing of another database that had the name is written over, and files without a side file are never ours.
        """
        side_file = layout.file_name(name, layout.SIDE)
        generation = 0
        if self._disk.exists(side_file):
            generation = manifest.read_side(self._disk, side_file).generation
        return Store(Side(number, name, generation=generation), fresh={})

    def _commit(self, side: Side) -> Callable[[], None]:
        content = manifest.side_bytes(side)
        name = layout.file_name(side.name, layout.SIDE)
        return lambda: manifest.replace(self._disk, name, content)

    # Incremental

    def _incremental(
        self,
        store: Store,
        overlay: Overlay,
        up_to_seq: int,
        slices: Slices,
        report: SnapshotReport,
    ) -> Work:
        old = store.side
        side = replace(old, seq=up_to_seq, plan=[])
        files = {
            kind: self._disk.open(layout.file_name(side.name, kind), create=True)
            for kind in layout.KINDS
        }
        try:
            yield from self._build(store, overlay, side, files, slices)
            touched = [
                file
                for kind, file in files.items()
                if getattr(side, _COUNTS[kind]) != getattr(old, _COUNTS[kind])
            ]
            new_names = not old.rows and not old.keys_bytes
            yield lambda: self._sync(touched, new_names)
            yield self._commit(side)
            if side.plan:
                yield lambda: apply_plan(self._disk, side)
        finally:
            for file in files.values():
                file.close()
        store.side = side
        if not self._disk.exists(layout.file_name(side.name, layout.METADATA)):
            yield lambda: self._write_metadata(side)
        report.databases += 1
        report.records += len(overlay)
        report.bytes += (
            side.values_bytes
            - old.values_bytes
            + side.keys_bytes
            - old.keys_bytes
            + sum(len(data) for _, _, data in side.plan)
        )

    def _sync(self, files: list[File], new_names: bool) -> None:
        for file in files:
            manifest.sync(file)
        if new_names:
            manifest.sync_names(self._disk)

    def _build(
        self, store: Store, overlay: Overlay, side: Side, files: dict[str, File], slices: Slices
    ) -> Work:
        """Writes what is appended and plans what changes in place; `side` gets the new counts."""
        rows = store.rows
        appended = _Appended(side)
        for some, found in _chunks(overlay):
            if None in found or not rows.keys().isdisjoint(some):
                some, packed = self._changed(side, files, appended, rows, some, found)
            else:
                packed = cast(list[bytes], found)
            if some:
                rows.update(zip(some, range(side.rows, side.rows + len(some)), strict=True))
                appended.rows(some, packed)
            if appended.size > _CHUNK_BYTES:
                appended.write(files)
            if slices.over():
                yield None
        appended.write(files)

    def _changed(
        self,
        side: Side,
        files: dict[str, File],
        appended: _Appended,
        rows: dict[bytes, int],
        keys: list[bytes],
        records: list[bytes | None],
    ) -> tuple[list[bytes], list[bytes]]:
        """Plans the changes of those keys that have a row, and returns the others with their records."""
        new_keys, new_records = [], []
        for key, packed in zip(keys, records, strict=True):
            row = rows.get(key)
            if row is not None:
                self._plan(side, files, appended, row, key, packed)
            elif packed is not None:
                new_keys.append(key)
                new_records.append(packed)
        return new_keys, new_records

    def _plan(
        self,
        side: Side,
        files: dict[str, File],
        appended: _Appended,
        row: int,
        key: bytes,
        packed: bytes | None,
    ) -> None:
        """Plans the change of a key that has a row."""
        row_at = row * layout.ROW.size
        offset, word, op_id, _ = layout.ROW.unpack(files[layout.ROWS].read(row_at, layout.ROW.size))
        tail_at = offset + layout.LENGTH.size + len(key)
        free = layout.is_free(word, op_id)
        if not free:
            tail = files[layout.KEYS].read(tail_at, layout.KEY_TAIL.size)
            version, address = layout.KEY_TAIL.unpack(tail)
            side.live_values_bytes -= _values_bytes(files[layout.VALUES], word, version, address)
        side.free_rows += (packed is None) - free
        in_keys, row_tail = appended.change(key, packed)
        side.plan.append((layout.KEYS, tail_at, in_keys[-layout.KEY_TAIL.size :]))
        side.plan.append((layout.ROWS, row_at + layout.ROW_TAIL_OFFSET, row_tail))

    # Reclaim

    def _reclaim(
        self,
        store: Store,
        overlay: Overlay,
        up_to_seq: int,
        slices: Slices,
        report: SnapshotReport,
    ) -> Work:
        old = store.side
        side = Side(old.number, old.name, up_to_seq, generation=old.generation + 1)
        names = {kind: new_name(side, kind) for kind in layout.KINDS}
        files = {kind: self._disk.open(name, create=True) for kind, name in names.items()}
        rows: dict[bytes, int] = {}
        try:
            for file in files.values():
                file.truncate(0)
            appended = _Appended(side)
            for keys, records in self._runs(store, overlay):
                rows.update(zip(keys, range(side.rows, side.rows + len(keys)), strict=True))
                appended.rows(keys, records)
                if appended.size > _CHUNK_BYTES:
                    appended.write(files)
                if slices.over():
                    yield None
            appended.write(files)
            yield lambda: self._sync(list(files.values()), True)
            yield self._commit(side)
        finally:
            for file in files.values():
                file.close()
        yield lambda: self._rename(side, names)
        yield lambda: self._write_metadata(side)
        yield lambda: self._remove_legacy(side)
        report.databases += 1
        report.records += side.rows
        report.bytes += side.values_bytes + side.keys_bytes
        report.reclaimed += max(old.values_bytes - side.values_bytes, 0)
        store.side, store.rows, store.fresh = side, rows, None

    def _rename(self, side: Side, names: dict[str, str]) -> None:
        for kind, name in names.items():
            self._disk.rename(name, layout.file_name(side.name, kind))
        manifest.sync_names(self._disk)

    def _remove_legacy(self, side: Side) -> None:
        """NunDB's map of a database that is committed in our files: nothing reads it, and its tokens are clear."""
        name = nundb.legacy_file(side.name)
        if self._disk.exists(name):
            self._disk.remove(name)
            manifest.sync_names(self._disk)

    def _runs(self, store: Store, overlay: Overlay) -> Iterator[Run]:
        """All records of a database, tombstones included: those of the files that did not change, then the changed."""
        kept: Iterator[tuple[bytes, bytes]] = iter(())
        if store.fresh is not None:
            kept = (item for item in store.fresh.items() if item[0] not in overlay)
        elif store.side.rows:
            kept = self._unchanged(store.side, store.rows, overlay)
        while some := list(islice(kept, _CHUNK_RECORDS)):
            keys, records = zip(*some, strict=True)
            yield keys, records
        for changed, found in _chunks(overlay):
            if None not in found:
                yield changed, cast(list[bytes], found)
                continue
            some = [
                (key, packed)
                for key, packed in zip(changed, found, strict=True)
                if packed is not None
            ]
            if some:
                yield [key for key, _ in some], [packed for _, packed in some]

    def _unchanged(
        self, side: Side, rows: dict[bytes, int], overlay: Overlay
    ) -> Generator[tuple[bytes, bytes], None, None]:
        keys = self._disk.view(layout.file_name(side.name, layout.KEYS))
        values = self._disk.view(layout.file_name(side.name, layout.VALUES))
        table = self._disk.view(layout.file_name(side.name, layout.ROWS))
        for key, row in rows.items():
            if key in overlay:
                continue
            offset, word, op_id, crc = layout.ROW.unpack_from(table, row * layout.ROW.size)
            if layout.is_free(word, op_id):
                continue
            end = offset + layout.KEY_BYTES + len(key)
            try:
                version, address = layout.KEY_TAIL.unpack_from(keys, end - layout.KEY_TAIL.size)
                packed = layout.packed_of(word, op_id, version, address, values)
                if layout.checksum(keys[offset:end], packed) != crc:
                    raise ValueError("the checksum does not match")
            except (ValueError, OverflowError, struct.error) as error:
                name = layout.file_name(side.name, layout.ROWS)
                raise DamagedFile(name, row * layout.ROW.size, f"record {row}: {error}") from error
            yield key, packed

    def _write_metadata(self, side: Side) -> None:
        """NunDB's own 12 bytes, so that it could read the directory; nothing of ours depends on them."""
        strategies = {"none": 0, "newer": 1, "arbiter": 2}
        info = self._base.state.databases.get(side.number)
        strategy = strategies.get(info.strategy, 0) if info is not None else 0
        content = layout.METADATA_ROW.pack(side.number, strategy)
        manifest.replace(self._disk, layout.file_name(side.name, layout.METADATA), content)


def _chunks(overlay: Overlay) -> Iterator[tuple[list[bytes], list[bytes | None]]]:
    """The keys and records of an overlay, some at a time."""
    keys, records = iter(overlay), iter(overlay.values())
    while some := list(islice(keys, _CHUNK_RECORDS)):
        yield some, list(islice(records, _CHUNK_RECORDS))


_COUNTS: Final = {
    layout.KEYS: "keys_bytes",
    layout.VALUES: "values_bytes",
    layout.ROWS: "rows",
}


def _values_bytes(values: File, word: int, version: int, address: int) -> int:
    """How much of the values file a record takes of which the row and the keys file say this."""

    def size_at(address: int) -> int:
        length: int = layout.LENGTH.unpack(values.read(address, layout.LENGTH.size))[0]
        return length + layout.VALUE_BYTES

    if word < record.SPECIAL:
        return size_at(address)
    address = layout.address_of_special(version, address)
    if address < 0:
        return 0
    size = size_at(address)
    return size + size_at(address + size)


class _Appended:
    """Bytes that go behind what counts, collected and then written with one call a file."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._parts: dict[str, list[bytes]] = {kind: [] for kind in layout.KINDS}
        self._at = {
            layout.KEYS: side.keys_bytes,
            layout.VALUES: side.values_bytes,
            layout.ROWS: side.rows * layout.ROW.size,
        }
        self.size = 0

    def rows(self, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        """Appends records with rows of their own; in bulk when all of them have values."""
        if not layout.all_live(records):
            for key, packed in zip(keys, records, strict=True):
                self.row(key, packed)
            return
        side = self._side
        encoded = layout.encode(keys, records, side.keys_bytes, side.values_bytes)
        self._parts[layout.KEYS].append(encoded.keys)
        self._parts[layout.VALUES].append(encoded.values)
        self._parts[layout.ROWS].append(encoded.rows)
        side.keys_bytes += len(encoded.keys)
        side.values_bytes += len(encoded.values)
        side.live_values_bytes += len(encoded.values)
        side.rows += len(records)
        self.size += len(encoded.keys) + len(encoded.values) + len(encoded.rows)

    def row(self, key: bytes, packed: bytes) -> None:
        """Appends a record with a row of its own."""
        side = self._side
        in_keys, row_tail = self.change(key, packed)
        self._parts[layout.KEYS].append(in_keys)
        self._parts[layout.ROWS].append(layout.LENGTH.pack(side.keys_bytes) + row_tail)
        side.keys_bytes += len(in_keys)
        side.rows += 1

    def change(self, key: bytes, packed: bytes | None) -> tuple[bytes, bytes]:
        """Appends what a record has in the values file; returns the record of the keys file and the end of its row."""
        if packed is None:
            in_keys = layout.keys_record(key, layout.REMOVED, 0)
            return in_keys, layout.ROW_TAIL.pack(0, 0, layout.checksum(in_keys, b""))
        side = self._side
        word, op_id = record.unpack_head(packed)
        if word < record.SPECIAL:
            in_values = layout.values_record(packed[record.HEAD_BYTES :])
            in_keys = layout.keys_record(key, word, side.values_bytes)
        else:
            in_keys, in_values = layout.encode_special(key, packed, side.values_bytes)
            if in_values:
                side.format = manifest.FORMAT_WITH_TAILS
        size = len(in_values)
        if size:
            self._parts[layout.VALUES].append(in_values)
            side.values_bytes += size
            side.live_values_bytes += size
            self.size += size
        return in_keys, layout.ROW_TAIL.pack(word, op_id, layout.checksum(in_keys, packed))

    def write(self, files: dict[str, File]) -> None:
        for kind, parts in self._parts.items():
            if parts:
                data = b"".join(parts)
                files[kind].write(self._at[kind], data)
                self._at[kind] += len(data)
                parts.clear()
        self.size = 0
