"""The ledger: writes that did not simply win, and what became of them.

An entry is a record of its key's database, under the system key `$conflicts_KEY_OPID` (op id in decimal): a JSON object

    database, key, kind     of the losing write
    value, base, op_id, at  what it wrote (value, or delta of an increment), on which record, stamped when (Unix ms)
    client_id, request      whose it was
    current                 what the key held instead: value, version, op_id; null where it held nothing
    state, reason, decided  "refused", why, and when (Unix ms)

Read rights follow the key's. The writer is told too: a *notice* waits in the state until it has been seen.

I1  A losing write has exactly one entry, found by its op id; opening it again changes nothing (P7).
I2  A write whose database is gone has no place for an entry: its notice carries the value.
I3  The state holds no large value twice: a notice of one is abridged, and made whole from the entry when it is sent.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core import record
from nun.core.access import CONFLICT_PREFIX
from nun.core.outbox import Item, Operation
from nun.core.record import ABSENT
from nun.limits import NOTICE_BYTES_MAX

if TYPE_CHECKING:
    from nun.core.network import NetworkCore

REFUSED: Final = "refused"
KIND_NAMES: Final = {m.SET: "set", m.REMOVE: "remove", m.INCREMENT: "increment"}


def entry_key(key: bytes, op_id: int) -> bytes:
    """Where the entry of a losing write stands."""
    return b"%s%s_%d" % (CONFLICT_PREFIX, key, op_id)


def readable(told: dict[str, Any]) -> bytes:
    """An entry as JSON, for people and programs alike; bytes that are no text stand as `{"base64": ...}`."""
    shown: dict[str, Any] = {name: _shown(value) for name, value in told.items()}
    shown["kind"] = KIND_NAMES.get(told["kind"], str(told["kind"]))
    shown["client_id"] = told["client_id"].hex()
    current = told.get("current")
    if current is not None:
        shown["current"] = None
        if record.is_live(current):
            shown["current"] = {
                "value": _shown(record.value_of(current)),
                "version": record.version_of(current),
                "op_id": record.op_id_of(current),
            }
    return json.dumps(shown, ensure_ascii=False).encode()


def _shown(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


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
    if record.is_live(packed):
        shown = json.loads(record.value_of(packed))
        told[b"value"] = _hidden(shown["value"])
        current = shown["current"]
        if current is not None:
            value = _hidden(current["value"])
            told[b"current"] = record.live(current["version"], current["op_id"], value)
    return pack(told)


def _hidden(shown: Any) -> Any:
    """What `_shown` was given."""
    match shown:
        case str():
            return shown.encode()
        case {"base64": text}:
            return base64.b64decode(text)
    return shown


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
            value = readable(told)
            new = record.live(1, stamp, value)
            core.stream.add((fx.PUT, database, stamp, 1, record.op_id_of(ABSENT), place, value))
            table.replace(place, new)
            core.stream.entry().changes.append(fx.RecordChange(database, (place,), (new,)))
            told["entry"] = place
        notice = _abridged(told)
        entry = core.stream.add((fx.NOTICE, item.client_id, op_id, notice))
        core.outcomes.push(entry, item.client_id, op_id, notice)


def count(core: NetworkCore) -> dict[str, int]:
    """How many entries there are; every one of them is closed so far (P7)."""
    opened = sum(1 for table in core.tables.values() for _ in table.ordered(None, CONFLICT_PREFIX))
    return {"opened": opened, REFUSED: opened}
