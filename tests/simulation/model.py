"""A plain model of records, queues and the ledger, fed with the effects of one history; it fails where they disagree.

It is told what was decided, entry by entry, and works out by itself what may follow from that:

M1  A client's write replaces what the key holds, one version on at least, and never touches a key in conflict.
M2  A key goes in conflict over what it holds, with one entry; it is in conflict exactly while it has open entries, and
    these are one chain by `previous`.
M3  Entries are closed from the oldest on: by a resolution those that it names, of the record that it was shown, and
    the increments next to them; by an expiry those that are due, as the fallback says. The value is what they come to.
M4  Over a whole conflict the version goes up by one; between, it stays.
M5  An entry that was opened or closed stays so; one notice for its writer comes with the end, and none before. Of what
    has no entry, since its database is gone, nobody knows that it was told once its writer has dealt with that: where a
    promotion was forced, so that two nodes may have it, it may be told again.
M6  A write whose value a fallback displaces, unseen by the one that it chooses, has an entry from the same moment on.
M7  One write of a key has one entry. When that has been cleaned away it may have another: its request came again as one
    that was acknowledged before it was decided, and is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nun import messages as m
from nun.codec import unpack
from nun.core import effects as fx
from nun.core import record
from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX, hidden_bytes
from nun.core.conflicts.strategies import Rules, rules_of, stamp_of
from nun.core.record import ABSENT
from nun.position import Position
from tests.simulation.oracle import changes_of, value_in
from tests.simulation.process import Failed

OPEN = "open"
REFUSED = "refused"
_CLOCKS_MS = 450  # by so much the clocks of two nodes differ
Key = tuple[int, bytes]


@dataclass
class Closing:
    """A record of a key in conflict was replaced: entries are being closed."""

    key: Key
    op_id: int
    before: bytes
    after: bytes
    named: list[int] | None  # None: nobody resolved it, it expired
    argument: bytes | None
    closed: list[int] = field(default_factory=list)


class Model:
    """See the module's docstring.

    Args:
        forced: a promotion was.

    Attributes:
        records: what each key holds.
        queues: the open entries of each key in conflict.
        entries: the ledger, and what it held before it was cleaned: (database, place) -> the entry as it last was.
        closings: every closing there was.
        notices: (client, op id) -> times.
        dropped: databases that are gone -> how many entries were open.
    """

    def __init__(self, forced: bool = False) -> None:
        self.forced = forced
        self.records: dict[Key, bytes] = {}
        self.queues: dict[Key, list[int]] = {}
        self.entries: dict[Key, dict[str, Any]] = {}
        self.closings: list[Closing] = []
        self.notices: Counter[tuple[str, int]] = Counter()
        self.dropped: dict[int, int] = {}
        self._bare: set[tuple[bytes, int]] = set()  # told without an entry
        self.rules: dict[int, Rules] = {}
        self._at = Position(0, 0, 0, 0)
        self._written_at: dict[
            int, int
        ] = {}  # op id of an expiry -> of the write whose value it chose
        self._closing: Closing | None = None
        self._resolved: fx.Effect | None = None
        self._touched: set[Key] = set()
        self._displaced: list[tuple[Key, int]] = []  # by expiries of the present entry
        self._told: dict[tuple[Any, ...], Key] = {}  # write of a key -> its newest entry

    def entry(self, database: int, key: bytes, op_id: int) -> dict[str, Any]:
        """The entry of a losing write."""
        return self.entries[database, b"%s%s_%d" % (CONFLICT_PREFIX, key, op_id)]

    def fail(self, promise: str, text: str) -> None:
        raise Failed(f"{promise}: entry {self._at}: {text}")

    # Entries

    def take(self, position: Position, effects: Sequence[fx.Effect]) -> None:
        """The next entry of the history."""
        self._at = position
        for effect in effects:
            kind = effect[0]
            if kind == fx.MADE:
                self._made(effect)
                continue
            if kind == fx.NOTICE:
                self._notice(effect)
                continue
            self._close()
            self._carried_out()
            if kind == fx.DATABASE:
                options = {_text(name): _plain(value) for name, value in effect[3].items()}
                self.rules[effect[1]] = rules_of(options, {})
            elif kind == fx.DROP_DATABASE:
                self._drop(effect[1])
            elif kind == fx.RESOLVED:
                self._resolved = effect
            elif kind == fx.LOST:
                self._lost(effect)
            elif kind == fx.DROP:
                for key in effect[2]:
                    if record.is_live(self.records.pop((effect[1], key), ABSENT)):
                        self.fail("P1", f"{key!r} is dropped, and lives")
            else:
                self._written(effect)
        self._close()
        self._carried_out()
        for key in self._touched:
            if record.is_in_conflict(self.records.get(key)) != bool(self.queues.get(key)):
                self.fail(
                    "P7",
                    f"{key} has open entries {self.queues.get(key)} and is {self.records.get(key)!r}",
                )
        self._touched.clear()
        for (database, key), op_id in self._displaced:
            place = (database, b"%s%s_%d" % (CONFLICT_PREFIX, key, op_id))
            if place not in self.entries:
                self.fail("P1", f"{key!r}: a fallback displaced {op_id}, and the ledger lacks it")
        self._displaced.clear()

    def _drop(self, database: int) -> None:
        """All of a database is gone; whoever waited in it has been told."""
        waiting = [
            self.entry(*place, op_id)
            for place, queue in self.queues.items()
            if place[0] == database
            for op_id in queue
        ]
        for entry in waiting:
            client = bytes.fromhex(entry["client_id"]).decode()
            if client and self.notices[client, entry["op_id"]] != 1:
                self.fail("P7", f"{client} is not told that {entry} is gone with its database")
        self.dropped[database] = len(waiting)
        self.closings = [closing for closing in self.closings if closing.key[0] != database]
        gone = [entry for place, entry in self.entries.items() if place[0] == database]
        self._bare |= {(bytes.fromhex(entry["client_id"]), entry["op_id"]) for entry in gone}
        for held in (self.records, self.queues, self.entries):
            for place in [place for place in held if place[0] == database]:
                del held[place]

    def _written(self, effect: fx.Effect) -> None:
        """M1"""
        told = changes_of(self._at, [effect])
        made = [
            (change.database, key, new)
            for change in fx.record_changes((effect,))
            for key, new in zip(change.keys, change.records, strict=True)
        ]
        for change, (database, key, new) in zip(told, made, strict=True):
            place = (database, key)
            old = self.records.get(place, ABSENT)
            if place in self.queues:
                self.fail("P7", f"{key!r} is in conflict, and is written by op id {change.op_id}")
            if change.replaced != record.op_id_of(old):
                self.fail(
                    "P1",
                    f"op id {change.op_id} of {key!r} says that it replaced {change.replaced}, "
                    f"and the key held {record.op_id_of(old)}",
                )
            if change.delta is not None:
                total = int(value_in(old) or b"0") + change.delta
                if value_in(new) != b"%d" % total:
                    self.fail("P1", f"{key!r} is incremented by {change.delta}: {old!r}, {new!r}")
            if record.version_of(new) <= record.version_of(old):
                self.fail("P1", f"{key!r} goes from {old!r} to {new!r}")
            self.records[place] = new

    # Conflicts

    def _made(self, effect: fx.Effect) -> None:
        _, database, _, keys, records, silent = effect
        for key, new in zip(keys, records, strict=True):
            place = (database, key)
            if key.startswith(CONFLICT_PREFIX):
                self._ledger(place, new)
                continue
            self._close()
            self._touched.add(place)
            old = self.records.get(place, ABSENT)
            if silent:
                if place in self.queues or new != record.in_conflict(old):
                    self.fail("P7", f"{key!r} goes in conflict from {old!r} to {new!r}")
                self.queues[place] = []
            else:
                self._begin_closing(place, old, new)
            self.records[place] = new

    def _lost(self, effect: fx.Effect) -> None:
        _, database, kind, key, argument, _, op_id, _, _ = effect
        if not database:  # it is gone, with its ledger: the notice alone tells of the write
            if all(op_id != told for _, told in self.notices):
                self.fail("P7", f"{op_id} lost on {key!r}, and nobody was told")
            return
        queue = self.queues.get((database, key), [])
        entry = self.entry(database, key, op_id)
        if entry["state"] == OPEN and queue[-1:] != [op_id]:
            self.fail("P7", f"{op_id} lost on {key!r}, whose queue is {queue}")
        kinds = {m.SET: "set", m.REMOVE: "remove", m.INCREMENT: "increment"}
        if (kinds[kind], argument) != (entry["kind"], hidden_bytes(entry["value"])):
            self.fail("P7", f"{effect} is not what its entry says: {entry}")

    def _ledger(self, place: Key, new: bytes) -> None:
        """An entry of the ledger is made, closed or cleaned."""
        known = self.entries.get(place)
        standing = record.is_live(self.records.get(place))
        self.records[place] = new
        if not record.is_live(new):
            if not standing or known is None or known["state"] == OPEN:
                self.fail("P7", f"{place[1]!r} is cleaned, it was {known}")
            return
        told = json.loads(record.value_of(new))
        key = (place[0], hidden_bytes(told["key"]))
        if place[1] != b"%s%s_%d" % (CONFLICT_PREFIX, key[1], told["op_id"]):
            self.fail("P7", f"{place[1]!r} tells of another write: {told}")
        self.entries[place] = told
        if not standing:
            self._opened(place, told)
            if told["state"] != OPEN:
                return
            queue = self.queues.get(key)
            if queue is None or told["previous"] != (queue[-1] if queue else 0):
                self.fail("P7", f"{told} joins the queue {queue}")
            else:
                queue.append(told["op_id"])
            return
        if known is None or known["state"] != OPEN or told["state"] == OPEN:
            self.fail("P7", f"{place[1]!r} was {known} and becomes {told}")
        closing = self._closing
        if closing is None or closing.key != key or told.get("result") != closing.op_id:
            self.fail("P7", f"{told} is closed, and nothing closes it: {closing}")
        else:
            closing.closed.append(told["op_id"])

    def _opened(self, place: Key, told: dict[str, Any]) -> None:
        """M7"""
        client = told["client_id"]
        # What a fallback had chosen is nobody's request, and may be displaced as often as one chooses.
        write = (place[0], client, told["request"] if client else told["op_id"], told["key"])
        before = self._told.get(write)
        cleaned = self.forced and before == place  # or `standing` would be what it was
        if before is not None and (
            (record.is_live(self.records.get(before)) and not cleaned) or told["state"] != REFUSED
        ):
            self.fail("P7", f"two entries for one write: {self.entries[before]}, {told}")
        if cleaned:
            self.notices.pop((bytes.fromhex(client).decode(), told["op_id"]), None)
        self._told[write] = place

    def _begin_closing(self, place: Key, old: bytes, new: bytes) -> None:
        if not self.queues.get(place):
            self.fail("P7", f"{place} is resolved, and is not in conflict")
        named, argument = None, None
        if self._resolved is not None:
            _, database, key, kind, argument, shown, named, op_id = self._resolved
            self._resolved = None
            if (database, key) != place or op_id != record.op_id_of(new):
                self.fail("P7", f"a resolution of {key!r} by {op_id} makes {new!r} of {place}")
            if shown != record.op_id_of(old) and (shown or record.is_live(old)):
                self.fail("P7", f"{key!r}: a resolution was shown {shown}, and it holds {old!r}")
            argument = argument if kind == m.SET else None
        op_id = record.op_id_of(new)
        self._closing = Closing(place, op_id, record.beneath(old), new, named, argument)
        self.closings.append(self._closing)

    def _close(self) -> None:
        """All entries that were to be closed are: M3 and M4."""
        closing, self._closing = self._closing, None
        if closing is None:
            return
        database, key = closing.key
        queue = self.queues[closing.key]
        count = len(closing.closed)
        if not count or closing.closed != queue[:count]:
            self.fail("P7", f"{key!r} with the queue {queue}: closed are {closing.closed}")
        value = self._value_of(closing)
        if value != value_in(closing.after):
            self.fail("P7", f"{closing} comes to {value!r}")
        rest = queue[count:]
        if rest and self.entry(database, key, rest[0])["kind"] == "increment":
            self.fail("P7", f"{key!r}: increment {rest[0]} waits for nobody")
        version = record.version_of(closing.before) + (not rest)
        if record.version_of(closing.after) != version:
            self.fail("P7", f"{closing} leaves {rest}: expected version {version}")
        if rest:
            self.queues[closing.key] = rest
        else:
            del self.queues[closing.key]

    def _carried_out(self) -> None:
        if self._resolved is not None:
            self.fail("P7", f"{self._resolved} closed nothing")

    def _value_of(self, closing: Closing) -> bytes | None:
        database, key = closing.key
        entries = [self.entry(database, key, op_id) for op_id in closing.closed]
        if closing.named is None:
            due = sum(
                entry["state"] == "expired" or entry["decider"] == "timeout" for entry in entries
            )
            value = self._fallen_back(closing, entries)
            waited = [
                each["decided"] - each["opened"] for each in entries if each["state"] == "expired"
            ]
            if min(waited) < self.rules[database].timeout_ms - _CLOCKS_MS:
                self.fail("P7", f"{closing}: not due yet: {entries}")
            if due != len(entries):
                self.fail("P7", f"{closing}: expired with {entries}")
            return value
        count = len(closing.named)
        if closing.closed[:count] != closing.named:
            self.fail("P7", f"{closing}: closed others than it names")
        if any(entry["state"] != "resolved" for entry in entries[:count]):
            self.fail("P7", f"{closing}: expected to be resolved: {entries[:count]}")
        value = closing.argument
        for entry in entries[count:]:
            value = self._added(value, entry)
        return value

    def _fallen_back(self, closing: Closing, entries: list[dict[str, Any]]) -> bytes | None:
        fallback, before = self.rules[closing.key[0]].fallback, closing.before
        value = value_in(before)
        op_id = record.op_id_of(before)
        best = (self._written_at.get(op_id, stamp_of(before).at_ms), op_id)
        seen: int | None = None  # what the chosen write had seen
        for entry in entries:
            stamp = (entry["at"], entry["op_id"])
            if entry["kind"] == "increment":
                value = self._added(value, entry)
            elif fallback != "keep" and (stamp > best) == (fallback == "newer"):
                value, best = hidden_bytes(entry["value"]), stamp
                seen = entry["base"] if entry["base_known"] else -1
        if op_id and seen not in (None, op_id) and op_id not in self._written_at:
            self._displaced.append((closing.key, op_id))
        self._written_at[closing.op_id] = best[0]
        return value

    def _added(self, value: bytes | None, entry: dict[str, Any]) -> bytes | None:
        if entry["kind"] != "increment":
            self.fail("P7", f"{entry} was closed, and nobody had named it")
        text = (value or b"0").decode()
        if not text.lstrip("+-").isdigit():
            if entry["state"] != REFUSED:
                self.fail("P7", f"{entry} was added to {text!r}")
            return value
        if entry["state"] == REFUSED:
            self.fail("P7", f"{entry} could be added to {text!r}")
        return b"%d" % (int(text) + int(entry["value"]))

    def _notice(self, effect: fx.Effect) -> None:
        """M5"""
        _, client, op_id, notice = effect
        told = unpack(notice)
        self.notices[client.decode(), op_id] += 1
        if self.forced:
            if (client, op_id) in self._bare or b"entry" not in told:
                self.notices[client.decode(), op_id] = 1
            if b"entry" not in told:
                self._bare.add((client, op_id))
        if self.notices[client.decode(), op_id] > 1:
            self.fail("P7", f"{client!r} is told twice of {op_id}")
        if b"entry" not in told:  # there is no place for one: its database is gone, or goes
            return
        places = [place for place in self.entries if place[1] == told[b"entry"]]
        if not places:
            self.fail("P7", f"{told} is about no entry")
        entry = self.entries[places[0]]
        if entry["state"] == OPEN or entry["state"] != told[b"state"].decode():
            self.fail("P7", f"{told} tells what the ledger does not: {entry}")
        if entry["client_id"] != client.hex() or entry["op_id"] != op_id:
            self.fail("P7", f"{client!r} is told of the write of another: {entry}")


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(name): _text(each) for name, each in value.items()}
    return _text(value)
