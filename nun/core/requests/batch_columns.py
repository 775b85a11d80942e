"""Batches decided by column: a few calls over all keys instead of several for each.

A column is plain sets of distinct live or absent keys, or increments of keys that hold integers. `plan_*` says what
would become of it without changing anything, or None where the accept rule has to look at each operation. What was
planned is published first and stored later, by `store`, while the storage writer is busy.

I1  Between a plan and its `store` nothing else is stored in the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import compress, repeat
from operator import add, itemgetter
from typing import Any, Final, NamedTuple

from nun import messages as m
from nun.core import effects as fx
from nun.core import record
from nun.core.accept import INT_MAX, INT_MIN
from nun.core.clock import TICK
from nun.core.keyspace import Table
from nun.core.record import ABSENT, HEAD_BYTES
from nun.limits import VERSION_MAX

_value_of = itemgetter(slice(HEAD_BYTES, None))
_SURE_INTEGERS: Final = re.compile(rb"-?[0-9]{1,18}(?:,-?[0-9]{1,18})*\Z")
ByKind = dict[int, tuple[list[bytes], list[Any]]]


def by_kind(kinds: bytes, keys: Sequence[bytes], arguments: Sequence[Any]) -> ByKind:
    """Kind of operation -> keys and arguments of all operations of that kind, in their order."""
    return {
        kind: (list(compress(keys, chosen)), list(compress(arguments, chosen)))
        for kind, chosen in (
            (kind, kinds.translate(is_kind)) for kind, is_kind in m.IS_KIND.items() if kind in kinds
        )
    }


class Sets(NamedTuple):
    """Plain sets that are decided and not yet stored; `new` is filled when they are."""

    keys: Sequence[bytes]
    values: Sequence[bytes]
    old: Sequence[bytes]
    heads: bytes
    new: list[bytes]

    def effect(self, database: int, first_op_id: int, payload: bytes) -> fx.Effect:
        return (fx.PUTS, database, first_op_id, self.heads, payload)

    def store(self, table: Table, first_op_id: int) -> None:
        self.new.extend(record.successors(self.heads, first_op_id, TICK, self.values))
        table.put_many(self.keys, self.new, self.old)


def plan_sets(table: Table, keys: Sequence[bytes], values: Sequence[bytes]) -> Sets | None:
    """The keys must be distinct."""
    old = list(map(table.records.get, keys, repeat(ABSENT)))
    heads = record.heads(old)
    if max(record.versions_of_heads(heads), default=0) >= VERSION_MAX:  # or a tombstone
        return None
    return Sets(keys, values, old, heads, [])


class Sums(NamedTuple):
    """Increments that are decided and not yet stored; `new` is filled when they are.

    `distinct` are the keys in the order in which each first comes, `old` and `heads` what they hold.
    """

    keys: Sequence[bytes]
    deltas: Sequence[int]
    distinct: Sequence[bytes]
    old: Sequence[bytes]
    heads: bytes
    sums: bytes
    new: list[bytes]

    def effect(self, database: int, first_op_id: int) -> fx.Effect:
        deltas = record.pack_integers(self.deltas)
        return (fx.SUMS, database, first_op_id, self.heads, self.keys, deltas, self.sums)

    def store(self, table: Table, first_op_id: int) -> None:
        self.new.extend(record.counted(self.heads, first_op_id, TICK, self.keys, self.sums))
        last = self.new
        if len(self.distinct) != len(self.keys):
            last = list(dict(zip(self.keys, self.new, strict=True)).values())
        table.put_many(self.distinct, last, self.old)


def plan_increments(table: Table, keys: Sequence[bytes], deltas: Sequence[int]) -> Sums | None:
    distinct = list(dict.fromkeys(keys))
    old = list(map(table.records.get, distinct, repeat(ABSENT)))
    heads = record.heads(old)
    if max(record.versions_of_heads(heads)) > VERSION_MAX - len(keys):  # or a tombstone
        return None
    joined = b",".join(map(_value_of, old))
    # What an absent key holds is empty here, and no integer: it goes the other way.
    if joined.count(b",") != len(distinct) - 1 or _SURE_INTEGERS.match(joined) is None:
        return None
    held = map(int, joined.decode().split(","))
    if len(distinct) == len(keys):
        sums = list(map(add, held, deltas))
    else:
        sums = _running(dict(zip(distinct, held, strict=True)), keys, deltas)
    if min(sums) < INT_MIN or max(sums) > INT_MAX:
        return None
    return Sums(keys, deltas, distinct, old, heads, record.pack_integers(sums), [])


def _running(held: dict[bytes, int], keys: Sequence[bytes], deltas: Iterable[int]) -> list[int]:
    """Each key's sum after each of its increments."""
    sums = []
    for key, delta in zip(keys, deltas, strict=True):
        total = held[key] = held[key] + delta
        sums.append(total)
    return sums


class Columns(NamedTuple):
    """A batch whose gets, sets and increments are of different keys: each kind can be decided by itself."""

    table: Table
    sets: Sets | None
    increments: Sums | None

    def told(self) -> dict[int, Any]:
        """What became of the writes, by kind of operation; see `BATCH` in docs/PROTOCOL.md."""
        told: dict[int, Any] = {}
        if self.sets is not None:
            told[m.SET] = self.sets.heads
        if self.increments is not None:
            told[m.INCREMENT] = [self.increments.heads, self.increments.sums]
        return told


def plan(table: Table, chosen: ByKind) -> Columns | None:
    """A batch without conditions; None where it must be decided one operation after the other."""
    if m.REMOVE in chosen:
        return None
    gets, _ = chosen.get(m.GET, ([], []))
    sets, values = chosen.get(m.SET, ([], []))
    increments, deltas = chosen.get(m.INCREMENT, ([], []))
    written = {*sets}
    counted = {*increments}
    apart = written.isdisjoint(gets) and written.isdisjoint(counted) and counted.isdisjoint(gets)
    if not apart or len(written) != len(sets):
        return None
    planned_sets = plan_sets(table, sets, values) if sets else None
    planned_sums = plan_increments(table, increments, deltas) if increments else None
    if (sets and planned_sets is None) or (increments and planned_sums is None):
        return None
    return Columns(table, planned_sets, planned_sums)


def read(table: Table, keys: Iterable[bytes]) -> list[bytes | None]:
    """The records of these keys; None where there is no value."""
    return [
        found if found is None or found[3] < 0x80 else record.shown(found)
        for found in map(table.records.get, keys)
    ]
