"""The ledger: writes that did not simply win, and what became of them.

An entry is a record of the database of its key, under the system key `$conflicts_KEY_OPID` (op id in decimal): a map

    database, key, kind     of the losing write
    value, base, op_id, at  what it wrote (value, or delta of an increment), on which record, stamped when (Unix ms)
    client_id, request      whose it was
    current                 the packed record that the key held instead, nil where there was none
    state, reason, decided  "refused", why, and when (Unix ms)

Read rights follow the key's. The writer is told too: a *notice* waits in the state until it has been seen.

I1  A losing write has exactly one entry, found by its op id; opening it again changes nothing (P7).
I2  A write whose database is gone has no place for an entry: its notice carries the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.outbox import Item, Operation
from nun.core.record import ABSENT

if TYPE_CHECKING:
    from nun.core.network import NetworkCore

CONFLICT_PREFIX: Final = b"$conflicts_"
REFUSED: Final = "refused"


def entry_key(key: bytes, op_id: int) -> bytes:
    """Where the entry of a losing write stands."""
    return b"%s%s_%d" % (CONFLICT_PREFIX, key, op_id)


def key_of_entry(entry: bytes) -> bytes:
    """The key that an entry is about: who may read that may read the entry."""
    return entry.removeprefix(CONFLICT_PREFIX).rpartition(b"_")[0]


class Ledger:
    """Opens and closes entries, on the primary."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core

    def refuse(self, item: Item, operation: Operation, database: int | None, reason: str) -> None:
        """Records a write that is finally refused, and tells its writer."""
        core = self._core
        key, op_id = operation.key, operation.op_id
        told: dict[str, Any] = {
            "database": item.database,
            "key": key,
            "kind": operation.kind,
            "value": operation.argument,
            "base": operation.base,
            "op_id": op_id,
            "at": item.at_ms,
            "client_id": item.client_id,
            "request": item.number,
            "state": REFUSED,
            "reason": reason,
            "decided": core.unix_ms,
        }
        if database is not None:
            table = core.tables[database]
            place = entry_key(key, op_id)
            if place in table.records:
                return
            told["current"] = table.records.get(key)
            stamp = core.stream.clock.reserve(core.unix_ms)
            value = pack(told)
            new = record.live(1, stamp, value)
            core.stream.add((fx.PUT, database, stamp, 1, record.op_id_of(ABSENT), place, value))
            table.replace(place, new)
            core.stream.entry().changes.append(fx.RecordChange(database, (place,), (new,)))
            told["entry"] = place
        notice = pack(told)
        entry = core.stream.add((fx.NOTICE, item.client_id, op_id, notice))
        core.outcomes.push(entry, item.client_id, op_id, notice)


def count(core: NetworkCore) -> dict[str, int]:
    """How many entries there are; every one of them is closed so far (P7)."""
    opened = sum(1 for table in core.tables.values() for _ in table.ordered(None, CONFLICT_PREFIX))
    return {"opened": opened, REFUSED: opened}
