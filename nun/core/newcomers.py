"""What a NunDB directory brought along, in the first entry of a node that begins on it.

Loaded are its records as they stand (storage/nundb.py). The first entry of all says what becomes of them here:

    $$token, $$user_NAME            in the clear          ->  their scrypt hashes
    $conflicts_KEY_OPID             resolve ...           ->  an open entry of the ledger; KEY is in conflict
                                    resolved ...          ->  gone: its value is in KEY, or was replaced since
                                    anything else         ->  stays a key that can be read, and is told

I1  Nothing is decided before it: whoever reads, and any snapshot, finds it done. So no file of ours holds a token.
I2  The log says which databases there were, though not what was in them: once they are dropped, it is all there is.
I3  A write that waits is never lost: where its record cannot be taken apart, the record stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun import nundb
from nun.core import effects as fx
from nun.core import record
from nun.core.conflicts import ledger
from nun.core.conflicts.ledger_keys import entry_key
from nun.core.record import ABSENT, UNKNOWN_BASE
from nun.core.requests.access import TOKEN_KEY, USER_PREFIX
from nun.core.state import NodeState

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.stream import Stream

Secrets = Mapping[tuple[int, bytes], bytes]  # (database, key) -> token or hash
_SHOWN_MAX: Final = 20


def secrets_in_clear(state: NodeState, tables: Mapping[int, Mapping[bytes, bytes]]) -> Secrets:
    """The tokens that have to be hashed before the first entry; none once there was one."""
    if state.position is not None:
        return {}
    return {
        (number, key): record.value_of(packed)
        for number, records in tables.items()
        for key, packed in records.items()
        if key == TOKEN_KEY or key.startswith(USER_PREFIX)
    }


class Newcomers:
    """Decides the first entry, on the primary.

    Attributes:
        hashes: of all the tokens that `secrets_in_clear` has named.
    """

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self.hashes: Secrets = {}
        self._opened = 0
        self._left: list[str] = []

    @property
    def _stream(self) -> Stream:
        return self._core.stream

    def take_in(self) -> None:
        """To be called within the first entry of all."""
        core = self._core
        if not core.tables:
            return
        for info in list(core.state.databases.values()):
            self._stream.add((fx.DATABASE, info.number, info.name, info.options))
        for (database, key), hashed in self.hashes.items():
            core.admin.put(database, key, hashed)
        for database, table in core.tables.items():
            if table.ledger:
                self._take_conflicts(database)
        fields: dict[str, Any] = {
            "databases": len(core.tables),
            "tokens_hashed": len(self.hashes),
            "conflicts": self._opened,
        }
        if self._left:
            fields |= {"not_understood": len(self._left), "records": self._left[:_SHOWN_MAX]}
        core.out.notes.append(("taken_in_from_nundb", fields))
        self.hashes = {}

    def _take_conflicts(self, database: int) -> None:
        """Opens what waits for arbiters, key by key, in the order in which it was written."""
        table = self._core.tables[database]
        waiting: dict[bytes, list[nundb.Waiting]] = {}
        gone = []
        for place in table.ledger:
            text = record.value_of(table.records[place])
            if nundb.is_resolved(text):
                gone.append(place)
                continue
            held = self._held(database, place)
            found = nundb.waiting_in(place, text, held)
            if found is None:
                self._left.append(place.decode("utf-8", "replace"))
            else:
                waiting.setdefault(found.key, []).append(found)
                gone.append(place)
        for place in gone:
            table.replace(place, None)
        if gone:
            self._stream.add((fx.DROP, database, gone))
            dropped = fx.RecordChange(database, gone, (None,) * len(gone))
            self._stream.entry().changes.append(dropped)
        for key, queue in waiting.items():
            queue.sort(key=lambda one: one.op_id)
            self._open(database, key, queue)

    def _held(self, database: int, place: bytes) -> bytes | None:
        key = nundb.key_of(place)
        packed = self._core.tables[database].records.get(key)
        return None if packed is None else record.value_of(packed)

    def _open(self, database: int, key: bytes, queue: list[nundb.Waiting]) -> None:
        """Puts a key in conflict, with these writes as its queue."""
        core = self._core
        table = core.tables[database]
        before = _as_it_was(table.records.get(key, ABSENT), queue)
        conflicting = record.in_conflict(before)
        op_id = record.op_id_of(before)
        self._stream.add((fx.MADE, database, op_id, [key], [conflicting], True))
        table.replace(key, conflicting)
        change = fx.RecordChange(database, (key,), (conflicting,), True)
        self._stream.entry().changes.append(change)
        name = core.state.databases[database].name
        places, entries = [], []
        previous = 0
        for one in queue:
            op_id = self._stream.clock.reserve(core.unix_ms)
            at_ms = min(one.unix_ms, core.unix_ms)
            write = ledger.Write(
                database, key, m.SET, one.value, UNKNOWN_BASE, op_id, at_ms, 0, b"", 0, late=True
            )
            entry = ledger.entry_of(write, name, ledger.OPEN, previous)
            if not previous:
                entry["current"] = ledger.shown_record(before)
            entry["opened"] = core.unix_ms
            places.append(entry_key(key, op_id))
            entries.append(entry)
            previous = op_id
        core.ledger.put(database, places, entries)
        self._opened += len(queue)


def _as_it_was(packed: bytes, queue: Iterable[nundb.Waiting]) -> bytes:
    """The record of a key with the version that it had before it went in conflict, where a record still tells it."""
    told = [one.version for one in queue if one.version is not None]
    if packed is ABSENT or not told:
        return packed
    version = max(record.version_of(packed), told[0])
    return record.live(version, record.op_id_of(packed), record.value_of(packed))
