"""The records of one database in memory, and their keys in order.

A Table is owned by the network process. Its keys and records are packed `bytes`.

I1  `live` counts the keys that have a value, `bytes` the lengths of all records and keys, `special` the records that
    are more than head and value.
I2  `tombstones` holds exactly the keys whose record is a tombstone, oldest first; `ledger` the keys of the ledger.
I3  Where bases are kept (nun/core/bases.py), they are told of every record that is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nun.core import record
from nun.core.bases import Bases
from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX, OPEN_BEGINS
from nun.core.ordered import OrderedKeys
from nun.core.record import ABSENT, HEAD_BYTES

Page = tuple[list[bytes], bytes | None]  # keys, and the key to go on after when there may be more


class Pattern:
    """NunDB's patterns: `prefix*`, `*suffix`, else a substring; an empty one matches all."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.prefix: bytes | None = None
        self.suffix: bytes | None = None
        if text.endswith(b"*"):
            self.prefix = text.replace(b"*", b"")
        elif text.startswith(b"*"):
            self.suffix = text.replace(b"*", b"")

    def matches(self, key: bytes) -> bool:
        if self.prefix is not None:
            return key.startswith(self.prefix)
        if self.suffix is not None:
            return key.endswith(self.suffix)
        return self.text in key


class Table:
    """Keys, records and counts of one database."""

    def __init__(self, records: dict[bytes, bytes] | None = None) -> None:
        self.records: dict[bytes, bytes] = {} if records is None else records
        self.tombstones: dict[bytes, int] = {}
        self.ledger: dict[bytes, None] = {}
        self._bases: Bases | None = None  # None: they are not kept
        self.special = 0  # records that are not what a reader gets: tombstones, signed, in conflict
        self.live = 0
        self.bytes = 0
        self._order = OrderedKeys(self.records)
        self._ledger_order = OrderedKeys(self.ledger)
        self._open: dict[bytes, None] = {}  # entries of the ledger
        self._open_order = OrderedKeys(self._open)
        if self.records:
            self._count()

    def _count(self) -> None:
        special = [(key, packed) for key, packed in self.records.items() if packed[3] >= 0x80]
        self.special = len(special)
        removed = [
            (record.op_id_of(packed), key) for key, packed in special if record.is_tombstone(packed)
        ]
        self.tombstones = {key: op_id for op_id, key in sorted(removed)}
        entries = [key for key in self.records if key.startswith(CONFLICT_PREFIX)]
        self.ledger.update((key, None) for key in entries if record.is_live(self.records[key]))
        self._open.update((key, None) for key in self.ledger if _is_open_entry(self.records[key]))
        dead = sum(not record.is_live(packed) for _, packed in special)
        self.live = len(self.records) - dead
        self.bytes = sum(map(len, self.records)) + sum(map(len, self.records.values()))

    # Changing

    def put_many(self, keys: Sequence[bytes], new: Sequence[bytes], old: Sequence[bytes]) -> None:
        """Stores live records for distinct keys of which none holds a special one; `old` is what they replace."""
        records = self.records
        before = len(records)
        records.update(zip(keys, new, strict=True))
        size = sum(map(len, old))
        self.bytes += sum(map(len, new)) - size
        if self._bases is not None:
            self._bases.add_many(keys, old, size)
        added = len(records) - before
        if added:
            self.live += added
            fresh = [key for key, was in zip(keys, old, strict=True) if was is ABSENT]
            self.bytes += sum(map(len, fresh)) + len(ABSENT) * added
            self._order.added(fresh)

    def replace(self, key: bytes, new: bytes | None) -> bytes | None:
        """Stores one record (None drops the key) and returns what it replaced."""
        records = self.records
        old = records.get(key)
        if key.startswith(CONFLICT_PREFIX):
            self._ledger_changed(key, new)
        elif self._bases is not None and old is not None and not record.is_in_conflict(new):
            self._bases.add(key, old)
        if new is None:
            if old is None:
                return None
            del records[key]
            self._order.removed()
            self.bytes -= len(key) + len(old)
            self._uncount(key, old)
            return old
        records[key] = new
        if old is None:
            self.bytes += len(key) + len(new)
            self._order.added((key,))
        else:
            self.bytes += len(new) - len(old)
            self._uncount(key, old)
        if new[3] >= 0x80:
            self.special += 1
        if new[3] < 0x80 or record.is_live(new):
            self.live += 1
        elif record.is_tombstone(new):
            self.tombstones[key] = record.op_id_of(new)
        return old

    def _ledger_changed(self, key: bytes, new: bytes | None) -> None:
        if new is not None and record.is_live(new):
            if key not in self.ledger:
                self.ledger[key] = None
                self._ledger_order.added((key,))
            opened = _is_open_entry(new)
        else:
            if key in self.ledger:
                del self.ledger[key]
                self._ledger_order.removed()
            opened = False
        if opened and key not in self._open:
            self._open[key] = None
            self._open_order.added((key,))
        elif not opened and key in self._open:
            del self._open[key]
            self._open_order.removed()

    # Bases

    def keep_bases(self, wanted: bool) -> None:
        """Whether to keep the records that were replaced last: conflicts show them to arbiters."""
        if not wanted:
            self._bases = None
        elif self._bases is None:
            self._bases = Bases()

    def replaced(self, keys: Sequence[bytes], old: Sequence[bytes]) -> None:
        """Takes note of records that were replaced without `put_many` or `replace`."""
        if self._bases is not None:
            self._bases.add_many(keys, list(old), sum(map(len, old)))

    def base_of(self, key: bytes, op_id: int) -> bytes | None:
        """The record of this op id that the key held before, if it is still known."""
        for packed in () if self._bases is None else self._bases.of(key):
            if record.op_id_of(packed) == op_id:
                return record.beneath(packed) if record.is_in_conflict(packed) else packed
        return None

    def base_of_version(self, key: bytes, version: int) -> int | None:
        """The op id of the record of this version that the key held before, if it is still known."""
        for packed in () if self._bases is None else self._bases.of(key):
            if packed is not ABSENT and record.version_of(packed) == version:
                return record.op_id_of(packed)
        return None

    def _uncount(self, key: bytes, old: bytes) -> None:
        if old[3] >= 0x80:
            self.special -= 1
        if old[3] < 0x80 or record.is_live(old):
            self.live -= 1
        else:
            self.tombstones.pop(key, None)

    # Reading

    def ordered(self, after: bytes | None, prefix: bytes) -> Iterator[bytes]:
        """Keys that begin with `prefix`, in byte order, beyond `after`; some may be tombstones or gone."""
        return self._order.beyond(after, prefix)

    def entries(self, prefix: bytes) -> Iterator[bytes]:
        """As `ordered`, of the ledger alone: the order of all other keys is not made for it."""
        return self._ledger_order.beyond(None, prefix)

    def open_entries(self, after: bytes | None, prefix: bytes) -> Iterator[bytes]:
        """As `ordered`, of the open entries of the ledger alone."""
        return self._open_order.beyond(after, prefix)

    def page(self, pattern: Pattern, after: bytes | None, limit: int, scan_max: int) -> Page:
        """Up to `limit` live keys that match, and the key to go on after when there may be more.

        Looks at no more than `scan_max` keys, so a page may be short, even empty, and still not be the last.
        """
        found: list[bytes] = []
        records = self.records
        previous = None
        for scanned, key in enumerate(self.ordered(after, pattern.prefix or b"")):
            if len(found) == limit or scanned == scan_max:
                return found, previous
            if key != previous and pattern.matches(key):
                packed = records.get(key)
                if record.is_live(packed):
                    found.append(key)
            previous = key
        return found, None


def _is_open_entry(packed: bytes) -> bool:
    return packed.startswith(OPEN_BEGINS, HEAD_BYTES)
