"""Conflicts as programs see them: what an arbiter is shown and answers, and entries of the ledger. Pure.

An arbiter is shown a key with its queue, one proposal after the other. What it answers to the first is what the key
holds for the second, and so on; the last answer goes out as one resolution that closes all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nun.client.notices import Outcome
from nun.client.request import Grant, Request, nothing
from nun.client.results import Entry, Result
from nun.client.values import TEXT, Decoding, check_key, check_value
from nun.core.clock import unix_ms_of
from nun.core.conflicts.ledger_keys import entry_key, hidden_bytes, key_and_op_id
from nun.core.record import op_id_of, value_of, version_of
from nun.errors import BadRequest
from nun.limits import KEYS_PAGE_MAX
from nun.merge import REMOVED
from nun.messages import CLAIM, CONFLICTS, RELEASE, REMOVE, RESOLVE, SET

Text = str | bytes


class Side(NamedTuple):
    """A record, or what a write proposed. `at`: when it was made (Unix ms), as far as known; version 0: none yet."""

    value: Any
    version: int
    op_id: int
    at: int


class Conflict(NamedTuple):
    """A write in conflict.

    Attributes:
        id: of the conflict: the key of its entry in the ledger.
        base: the record that the write was made on; None: the key was absent, or (`base_known` False) it is not known.
        current: what the key holds; None: nothing.
        proposed: what the write wants; None: that the key be removed.
        at: when the write was made (Unix ms, the primary's clock).
        origin: the client id of the writer.
        attempt: of the claim, 0 where there is none.
        state, reason, decider, opened, decided: as the ledger says (times in Unix ms).
        raw: the whole entry of the ledger; empty in the hands of an arbiter.
        decode: how values are shown, as the client was told.
    """

    id: str
    key: Any
    base: Side | None
    base_known: bool
    current: Side | None
    proposed: Side | None
    at: int
    origin: str
    op_id: int
    attempt: int = 0
    kind: str = "set"
    state: str = "open"
    reason: str = ""
    decider: str = ""
    opened: int = 0
    decided: int = 0
    close_call: bool = False
    previous: int = 0
    raw: Any = None
    decode: str | None = "utf-8"


def encoded(value: Any, decoding: Decoding) -> bytes | None:
    """What a handler answered, as bytes; None: the key is to be removed.

    Raises:
        TypeError: it is no answer. TooLarge.
    """
    if value is REMOVED:
        return None
    if value is None:
        raise TypeError(
            "the handler returned None: expected the value that the key is to hold, or nun.REMOVED"
        )
    if isinstance(value, Side):
        value = value.value
        if decoding.name == "json":
            value = json.dumps(value, ensure_ascii=False)
    elif decoding.name == "json" and not isinstance(value, str | bytes):
        value = json.dumps(value, ensure_ascii=False)
    check_value("", value)
    return value.encode() if isinstance(value, str) else bytes(value)


class Offer:
    """A key that this arbiter has claimed, folded over its queue."""

    def __init__(self, claimed: Sequence[Any], decoding: Decoding) -> None:
        self.attempt, self.key, current, self.shown, self._version, self._entries, self.more = (
            claimed
        )
        self._decoding = decoding
        self._held = None if current is None else _side(current, decoding)
        self._current = self._held
        self._answer: bytes | None = None
        self._next = 0

    def conflicts(self) -> Iterator[Conflict]:
        """Each proposal in turn; `answered` is to be called before the next."""
        for entry in self._entries:
            op_id, kind, argument, base, base_record, at_ms, origin, _ = entry
            known = base_record is not None or base == 0
            side = None if base_record is None else _side(base_record, self._decoding)
            if base == self.shown:
                side, known = self._held, True
            proposed = None
            if kind == SET:
                proposed = Side(self._decoding.value(argument), 0, op_id, at_ms)
            yield Conflict(
                f"$conflicts_{self.key.decode('utf-8', 'replace')}_{op_id}",
                self._decoding.key(self.key),
                side,
                known,
                self._current,
                proposed,
                at_ms,
                origin.hex(),
                op_id,
                self.attempt,
                "set" if kind == SET else "remove",
                decode=self._decoding.name,
            )

    def answered(self, value: Any) -> None:
        """What the handler made of the present proposal. Raises TypeError, TooLarge."""
        op_id, _, _, _, _, at_ms, *_ = self._entries[self._next]
        self._next += 1
        self._answer = encoded(value, self._decoding)
        if self._answer is None:
            self._current = None
        else:
            self._current = Side(self._decoding.value(self._answer), self._version, op_id, at_ms)

    def resolution(self, grant: Grant) -> Request:
        """The request that closes all of it."""
        op_ids = [entry[0] for entry in self._entries]
        return resolve(grant, self.key, self._answer, self.shown, op_ids, self.attempt)


def _side(packed: bytes, decoding: Decoding) -> Side:
    op_id = op_id_of(packed)
    return Side(decoding.value(value_of(packed)), version_of(packed), op_id, unix_ms_of(op_id))


# The ledger


def conflict_of(place: bytes, data: bytes, decoding: Decoding) -> Conflict:
    """An entry of the ledger; `current` as it says itself."""
    entry = json.loads(data)
    key, op_id = key_and_op_id(place)
    proposed = None
    if entry["kind"] != "remove":
        value = hidden_bytes(entry["value"])
        shown = decoding.value(value) if isinstance(value, bytes) else value
        proposed = Side(shown, 0, op_id, entry["at"])
    return Conflict(
        place.decode("utf-8", "replace"),
        decoding.key(key),
        _shown_side(entry.get("base_value"), decoding),
        entry["base_known"] and (entry["base"] == 0 or entry.get("base_value") is not None),
        _shown_side(entry.get("current"), decoding),
        proposed,
        entry["at"],
        entry["client_id"],
        op_id,
        0,
        entry["kind"],
        entry["state"],
        entry.get("reason", ""),
        entry.get("decider", ""),
        entry.get("opened", 0),
        entry.get("decided", 0),
        entry.get("close_call", False),
        entry["previous"],
        entry,
        decoding.name,
    )


def completed(found: Sequence[Conflict], held: dict[Any, Entry | None]) -> list[Conflict]:
    """Entries with what their keys hold now, where they are open, and with bases that others of them have."""
    bases = {(one.key, one.base.op_id): one.base for one in found if one.base is not None}
    made = []
    for conflict in found:
        one = conflict
        if one.state == "open":
            entry = held.get(one.key)
            current = None
            if entry is not None:
                at = unix_ms_of(entry.op_id)
                current = Side(entry.value, entry.held_version, entry.op_id, at)
                bases.setdefault((one.key, entry.op_id), current)
            one = one._replace(current=current)
        base = bases.get((one.key, one.raw["base"]))
        if one.base is None and base is not None:
            one = one._replace(base=base, base_known=True)
        made.append(one)
    return made


def _shown_side(shown: dict[str, Any] | None, decoding: Decoding) -> Side | None:
    if shown is None:
        return None
    value = decoding.value(hidden_bytes(shown["value"]))
    return Side(value, shown["version"], shown["op_id"], unix_ms_of(shown["op_id"]))


def outcome_of(place: bytes, data: bytes, current: Any, decoding: Decoding) -> Outcome | None:
    """What became of a write, as its entry says; None while it is open."""
    conflict = conflict_of(place, data, decoding)
    if conflict.state == "open":
        return None
    return Outcome(
        conflict.state,
        conflict.reason,
        conflict.raw["database"],
        conflict.kind,
        conflict.key,
        None if conflict.proposed is None else conflict.proposed.value,
        conflict.op_id,
        conflict.raw["request"],
        current,
        conflict.id,
    )


def place_of(key: Text, op_id: int) -> bytes:
    """The key of the ledger's entry of a write."""
    raw = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key
    return entry_key(raw, op_id)


# Requests


def claim(grant: Grant, arbiter: bytes, patience_ms: int, lease_ms: int) -> Request:
    """One key in conflict, or None after the patience; with a lease of 0 None, and the arbiter counts as there."""
    return Request(CLAIM, grant, (arbiter, patience_ms, lease_ms), _as_it_is)


def release(grant: Grant, arbiter: bytes, offer: Offer) -> Request:
    return Request(RELEASE, grant, (arbiter, offer.key, offer.attempt), nothing)


def leave(grant: Grant, arbiter: bytes) -> Request:
    """All claims of an arbiter, which asks no more."""
    return Request(RELEASE, grant, (arbiter, b"", 0), nothing)


def resolve(
    grant: Grant, key: Text, value: bytes | None, shown: int, op_ids: Sequence[int], attempt: int
) -> Request:
    """Closes entries with a value; None: with a removal."""
    check_key(key)
    kind = REMOVE if value is None else SET
    arguments = (key, kind, value, shown, list(op_ids), attempt)
    return Request(RESOLVE, grant, arguments, _resolved)


def _resolved(request: Request) -> Result:
    version, left = request.result
    return Result(version, request.op_id, request.position, left)


def page(
    grant: Grant, state: str | None, key: Text | None, limit: int | None, after: bytes | None
) -> Request:
    """A page of the ledger: the answer is ([(entry's key, JSON), ...], where to go on or None)."""
    if key is not None:
        check_key(key)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise BadRequest(f"limit is an int of at least 1, or None, not {limit!r}")
    size = KEYS_PAGE_MAX if limit is None else min(limit, KEYS_PAGE_MAX)
    return Request(CONFLICTS, grant, (state, key, size, after), _as_it_is, TEXT)


def _as_it_is(request: Request) -> Any:
    return request.result


def in_order(found: Sequence[Conflict]) -> list[Conflict]:
    """The open entries of a key in the order of its queue, up to the first increment."""
    after = {one.previous: one for one in found}
    known = {one.op_id for one in found}
    one = next((first for previous, first in after.items() if previous not in known), None)
    queue: list[Conflict] = []
    while one is not None and one.kind != "increment":
        queue.append(one)
        one = after.get(one.op_id)
    return queue


def until(queue: Sequence[Conflict], conflict: Conflict) -> list[Conflict]:
    """The entries of a queue up to this one. Raises BadRequest."""
    for index, one in enumerate(queue):
        if one.op_id == conflict.op_id:
            return list(queue[: index + 1])
    raise BadRequest(f"{conflict.id} is not open, or an increment is before it")
