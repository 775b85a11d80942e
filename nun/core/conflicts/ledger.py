"""The ledger: writes that did not simply win, and what became of them.

An entry is a record of its key's database, under the system key `$conflicts_KEY_OPID` (op id in decimal): a JSON object

    state                   see below
    kind                    of the losing write: "set", "remove", "increment"
    previous                op id of the entry before it in the key's queue; 0: it was the first
    database, key
    value, base, op_id      what it wrote (value, or delta of an increment), and on which record
    at, bound               when it was stamped (Unix ms), and how far that may be wrong
    client_id, request      whose it was
    base_value              of the record `base`, where that was still known and no entry before it in the queue has it
    current                 what the key held instead: value, version, op_id; null where it held nothing, or where an
                            entry before it in the queue says so
    opened, decided         when (Unix ms)
    reason, decider         why, and who decided: a strategy, an arbiter's client id, "timeout"
    close_call              true where `at` could not tell the writes apart
    result                  op id of the record that closed it

What may become of it stands in `LIFE`.

Read rights follow the key's. The writer is told too: a *notice* waits in the state until it has been seen.

I1  A losing write has exactly one entry, found by its op id; opening it again changes nothing (P7).
I2  A write whose database is gone has no place for an entry: its notice carries the value.
I3  The state holds no large value twice: a notice of one is abridged, and made whole from the entry when it is sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core import record
from nun.core.conflicts.ledger_keys import (
    entry_key,
    hidden_bytes,
    key_and_op_id,
    shown_bytes,
)
from nun.core.proposals.outbox import Item, Operation
from nun.core.record import ABSENT
from nun.limits import NOTICE_BYTES_MAX

if TYPE_CHECKING:
    from nun.core.network import NetworkCore

OPEN: Final = "open"
RESOLVED: Final = "resolved"
DECIDED: Final = "decided"
EXPIRED: Final = "expired"
REFUSED: Final = "refused"
STATES: Final = (OPEN, RESOLVED, DECIDED, EXPIRED, REFUSED)
NEW: Final = "new"  # no entry yet
LIFE: Final[dict[str, dict[str, str]]] = {
    NEW: {
        "strategy `arbiter`, or its key is in conflict": OPEN,
        "strategy `newer` or `older`": DECIDED,
        "was acknowledged, and cannot be accepted": REFUSED,
    },
    OPEN: {
        "a resolution names it": RESOLVED,
        "an increment, and nothing before it is open": RESOLVED,
        "waited longer than the timeout": EXPIRED,
        "an increment that cannot be added": REFUSED,
        "its database is dropped": REFUSED,
    },
    RESOLVED: {},
    DECIDED: {},
    EXPIRED: {},
    REFUSED: {},
}
KIND_NAMES: Final = {m.SET: "set", m.REMOVE: "remove", m.INCREMENT: "increment"}
_KINDS: Final = {name: kind for kind, name in KIND_NAMES.items()}
_BASE: Final = re.compile(rb', "base": (\d+)')
_HEAD: Final = re.compile(rb'\{"state": "(\w+)", "kind": "(\w+)", "previous": (\d+)')


class Write(NamedTuple):
    """A write that did not simply win.

    Attributes:
        kind: SET, REMOVE or INCREMENT; argument: value, None, or delta.
        base: op id of the record that it was made on; 0: the key was absent.
        at_ms, bound_ms: when it was stamped.
        late: it was acknowledged before it was decided, and is never merely refused.
    """

    database: int
    key: bytes
    kind: int
    argument: Any
    base: int
    op_id: int
    at_ms: int
    bound_ms: int
    client_id: bytes
    request: int
    late: bool = False


def write_of(item: Item, operation: Operation, database: int) -> Write:
    """One operation of an item."""
    return Write(
        database,
        operation.key,
        operation.kind,
        operation.argument,
        operation.base,
        operation.op_id,
        item.at_ms,
        item.bound_ms,
        item.client_id,
        item.number,
        late=True,
    )


def lost(write: Write) -> fx.Effect:
    """Says in the log which write an entry of the ledger is about: should that be cut off, it is proposed again."""
    return (
        fx.LOST,
        write.database,
        write.kind,
        write.key,
        write.argument,
        write.base,
        write.op_id,
        write.at_ms,
        write.bound_ms,
    )


def head_of(packed: bytes | None) -> tuple[str, int, int] | None:
    """(state, kind, previous) of the record of an entry, without reading all of it; None where it is none."""
    if packed is None or not record.is_live(packed):
        return None
    found = _HEAD.match(packed, record.HEAD_BYTES)
    if found is None:
        return None  # it came from a NunDB directory
    return found[1].decode(), _KINDS[found[2].decode()], int(found[3])


def base_in(packed: bytes) -> int:
    """The op id of the base whose value an entry holds, without reading all of it; 0: it holds none."""
    if b'"base_value": {' not in packed:  # within a text it would stand with backslashes
        return 0
    found = _BASE.search(packed)
    return 0 if found is None else int(found[1])


def entry_of(write: Write, database: str, state: str, previous: int = 0) -> dict[str, Any]:
    """What the ledger says of a write, but for what became of it."""
    return {
        "state": state,
        "kind": KIND_NAMES[write.kind],
        "previous": previous,
        "database": database,
        "key": shown_bytes(write.key),
        "value": shown_bytes(write.argument),
        "base": 0 if write.base == record.UNKNOWN_BASE else write.base,
        "base_known": write.base != record.UNKNOWN_BASE,
        "op_id": write.op_id,
        "at": write.at_ms,
        "bound": write.bound_ms,
        "client_id": write.client_id.hex(),
        "request": write.request,
    }


def write_in(database: int, entry: dict[str, Any]) -> Write:
    """The write that an entry is about."""
    return Write(
        database,
        hidden_bytes(entry["key"]),
        _KINDS[entry["kind"]],
        hidden_bytes(entry["value"]),
        entry["base"] if entry["base_known"] else record.UNKNOWN_BASE,
        entry["op_id"],
        entry["at"],
        entry["bound"],
        bytes.fromhex(entry["client_id"]),
        entry["request"],
        late=True,
    )


def _is_same(one: Write, other: Write) -> bool:
    """Whether two writes of one key are the same operation; a request may have several."""
    asked = ("client_id", "request", "kind", "argument")
    return all(getattr(one, name) == getattr(other, name) for name in asked)


def shown_record(packed: bytes | None) -> dict[str, Any] | None:
    """A record as an entry shows it."""
    if packed is None or not record.is_live(packed):
        return None
    return {
        "value": shown_bytes(record.value_of(packed)),
        "version": record.version_of(packed),
        "op_id": record.op_id_of(packed),
    }


def dumped(entry: dict[str, Any]) -> bytes:
    """An entry as it is stored."""
    return json.dumps(entry, ensure_ascii=False).encode()


def notice_of(write: Write, entry: dict[str, Any], current: bytes | None) -> dict[str, Any]:
    """What the writer is told."""
    return {
        "database": entry["database"].encode(),
        "key": write.key,
        "kind": write.kind,
        "value": write.argument,
        "base": entry["base"],
        "op_id": write.op_id,
        "at": write.at_ms,
        "client_id": write.client_id,
        "request": write.request,
        "state": entry["state"],
        "reason": entry["reason"],
        "decided": entry["decided"],
        "current": record.shown(current),
        "entry": entry_key(write.key, write.op_id),
    }


def _abridged(told: dict[str, Any]) -> bytes:
    """A notice; where it would be large, without what its entry holds."""
    notice = pack(told)
    if len(notice) > NOTICE_BYTES_MAX and "entry" in told:
        notice = pack({**told, "value": None, "current": None, "abridged": True})
    return notice


def whole(core: NetworkCore, notice: bytes) -> bytes:
    """A notice with the values that its entry holds, as long as that is there."""
    told = unpack(notice)
    if not told.get(b"abridged"):
        return notice
    info = core.state.database_named(told[b"database"].decode("utf-8", "replace"))
    table = None if info is None else core.tables.get(info.number)
    packed = ABSENT if table is None else table.records.get(told[b"entry"], ABSENT)
    if table is not None and record.is_live(packed):
        entry = json.loads(record.value_of(packed))
        told[b"value"] = hidden_bytes(entry["value"])
        if entry["state"] == REFUSED and entry.get("current") is not None:
            current = entry["current"]
            value = hidden_bytes(current["value"])
            told[b"current"] = record.live(current["version"], current["op_id"], value)
        else:
            told[b"current"] = record.shown(table.records.get(told[b"key"]))
    return pack(told)


class Ledger:
    """Writes entries and notices, on the primary."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core

    def read(self, database: int, key: bytes, op_id: int) -> dict[str, Any]:
        """The entry of a write."""
        packed = self._core.tables[database].records[entry_key(key, op_id)]
        entry: dict[str, Any] = json.loads(record.value_of(packed))
        return entry

    def has(self, database: int, key: bytes, op_id: int) -> bool:
        """Whether a write has an entry."""
        table = self._core.tables.get(database)
        return table is not None and record.is_live(table.records.get(entry_key(key, op_id)))

    def has_request(self, write: Write) -> bool:
        """Whether a write has an entry, be it under another op id of its request.

        One of its own op id is its own: of an increment that was displaced it has what that came to. Where that was
        cleaned away, its writer was told long ago.
        """
        table = self._core.tables[write.database]
        if entry_key(write.key, write.op_id) in table.records:
            return True
        for place in table.entries(entry_key(write.key, 0)[:-1]):
            packed = table.records.get(place)
            if packed is None or head_of(packed) is None or key_and_op_id(place)[0] != write.key:
                continue
            held = write_in(write.database, json.loads(record.value_of(packed)))
            if _is_same(held, write):
                return True
        return False

    def put(self, database: int, places: Sequence[bytes], entries: Iterable[dict[str, Any]]) -> int:
        """Stores entries; returns how many bytes they are."""
        new = []
        core = self._core
        stamp = 0
        table = core.tables[database]
        for place, entry in zip(places, entries, strict=True):
            stamp = core.stream.clock.reserve(core.unix_ms)
            version = record.version_of(table.records.get(place, ABSENT)) + 1
            new.append(record.live(version, stamp, dumped(entry)))
            table.replace(place, new[-1])
        core.stream.add((fx.MADE, database, stamp, list(places), new, False))
        core.stream.entry().changes.append(fx.RecordChange(database, places, new))
        return sum(map(len, new))

    def tell(self, write: Write, entry: dict[str, Any], current: bytes | None) -> None:
        """Leaves a notice for the writer."""
        if write.client_id:
            self._notice(write, notice_of(write, entry, current))

    def _notice(self, write: Write, told: dict[str, Any]) -> None:
        core = self._core
        notice = _abridged(told)
        pending = core.stream.add((fx.NOTICE, write.client_id, write.op_id, notice))
        core.outcomes.push(pending, write.client_id, write.op_id, notice)

    def close_at_once(
        self,
        write: Write,
        state: str,
        reason: str,
        current: bytes | None,
        *,
        close_call: bool = False,
        decider: str = "",
    ) -> None:
        """Records a write that is decided without having been open; `current`: what the key holds instead."""
        core = self._core
        assert state in LIFE[NEW].values()
        place = entry_key(write.key, write.op_id)
        if place in core.tables[write.database].records:
            return
        name = core.state.databases[write.database].name
        entry = entry_of(write, name, state)
        entry["current"] = shown_record(current)
        entry["opened"] = entry["decided"] = core.unix_ms
        entry["reason"], entry["decider"] = reason, decider
        if close_call:
            entry["close_call"] = True
        self.put(write.database, [place], [entry])
        core.conflicts.closed_now(write.database, place)
        if write.late:
            self.tell(write, entry, current)

    def refuse(self, item: Item, operation: Operation, database: int | None, reason: str) -> None:
        """Records a write that is finally refused, and tells its writer."""
        core = self._core
        write = write_of(item, operation, database or 0)
        if database is not None:
            current = core.tables[database].records.get(write.key)
            self.close_at_once(write, REFUSED, reason, current)
            return
        name = item.database.decode("utf-8", "replace")
        entry = {**entry_of(write, name, REFUSED), "reason": reason, "decided": core.unix_ms}
        self.tell_without_entry(write, entry)

    def tell_without_entry(self, write: Write, entry: dict[str, Any]) -> None:
        """Leaves a notice that carries the value itself: its database has no place for an entry any more."""
        told = notice_of(write, entry, None)
        del told["entry"]
        if write.client_id:
            self._notice(write, told)


def count(core: NetworkCore) -> dict[str, int]:
    """How many entries there are, in all and of each state (P7)."""
    counts = dict.fromkeys(STATES, 0)
    for table in core.tables.values():
        for place in table.ledger:
            head = head_of(table.records.get(place))
            if head is not None:
                counts[head[0]] += 1
    return {"opened": sum(counts.values()), **counts}
