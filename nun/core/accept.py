"""The accept rule: whether a write may replace the record that a key holds now, and the version that it makes.

A tombstone counts as absent, but keeps its version. Nothing is accepted on a key in conflict. On a record of version v
with op id o:

    the write says      accepted when                        new version
    plain               always                               v + 1
    ON_BASE b           b = o; b = 0: the key is absent      v + 1
    ON_VERSION n        n >= v                               n + 1
    IF_VERSION n        n = v                                v + 1
    increment           always; 64-bit integers              v + 1

Version -1 is "no version given". A version that cannot be counted up is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from nun.core import record
from nun.core.keyspace import Table
from nun.core.record import ABSENT, SPECIAL, UNKNOWN_BASE
from nun.errors import BadRequest, NotANumber, VersionConflict
from nun.limits import VERSION_MAX
from nun.messages import IF_VERSION, ON_BASE, ON_VERSION, PLAIN

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
_INTEGER = re.compile(rb"[+-]?[0-9]{1,20}\Z")

Condition = Sequence[Any] | None


def check_condition(condition: Any) -> None:
    """Raises BadRequest unless this is a condition: None or [kind, number, refuse]."""
    if condition is None:
        return
    match condition:
        case [int() as kind, int() as number, bool()] if not isinstance(number, bool):
            if kind == ON_BASE and 0 <= number < 2**64:
                return
            if kind == PLAIN:
                return
            if kind in (ON_VERSION, IF_VERSION):
                if number < -1 or (kind == IF_VERSION and number < 0):
                    raise BadRequest(f"version {number}: a client may not send negative versions")
                if number >= VERSION_MAX:
                    raise BadRequest(f"version {number}: expected at most {VERSION_MAX - 1}")
                return
    raise BadRequest("a condition is [kind, number, refuse]: kind 0 to 3, an integer, a boolean")


def next_version(key: bytes, old: bytes, condition: Condition) -> int:
    """The version of the record that replaces `old` (ABSENT where there is none).

    Raises:
        VersionConflict: the condition does not hold; carries the current record.
        BadRequest: the version cannot be counted up.
    """
    word, op_id = record.unpack_head(old)
    version: int = word & ~SPECIAL
    new = version + 1
    if word >= SPECIAL and record.is_in_conflict(old):
        raise conflict(key, old, "it is in conflict")
    if condition is not None:
        kind, number, _ = condition
        alive = record.is_live(old)
        if kind == ON_VERSION and number != -1:
            if number < version:
                raise conflict(key, old, f"version {number} is older than {version}")
            new = number + 1
        elif kind == IF_VERSION and number != version:
            raise conflict(key, old, f"expected version {number}, found {version}")
        elif kind == ON_BASE and number != (op_id if alive else 0):
            was = f"op id {number}" if number else "an absent key"
            found = f"op id {op_id}" if alive else "an absent key"
            raise conflict(key, old, f"made on {was}, found {found}")
    if new > VERSION_MAX:
        raise BadRequest(
            f"key {key.decode('utf-8', 'replace')!r}: version {version} cannot be counted up"
        )
    return new


def refuses(condition: Condition) -> bool:
    """Whether a write is to be refused under every strategy."""
    return condition is not None and (bool(condition[2]) or condition[0] == IF_VERSION)


def base_of(condition: Condition, key: bytes, old: bytes, table: Table) -> int:
    """The op id of the record that a write was made on, as far as it says so or that can be told."""
    if condition is not None and condition[0] == ON_BASE:
        return int(condition[1])
    if condition is not None and condition[0] == ON_VERSION and condition[1] != -1:
        if record.version_of(old) == condition[1]:
            return record.op_id_of(old)
        return table.base_of_version(key, condition[1]) or UNKNOWN_BASE
    return record.op_id_of(old)


def conflict(key: bytes, old: bytes, why: str) -> VersionConflict:
    """The refusal that carries what the key holds now."""
    current = None if old is ABSENT else record.shown(old)
    shown = key.decode("utf-8", "replace")
    return VersionConflict(f"key {shown!r}: {why}", key=key, current=current)


def incremented(key: bytes, old: bytes, delta: int) -> int:
    """The sum that an increment makes; an absent key counts from 0. Raises NotANumber."""
    text = record.value_of(old) if record.is_live(old) else b"0"
    if not _INTEGER.match(text) or not INT_MIN <= int(text) <= INT_MAX:
        raise NotANumber(
            f"key {key.decode('utf-8', 'replace')!r} does not hold a 64-bit integer", key=key
        )
    total = int(text) + delta
    if not INT_MIN <= total <= INT_MAX:
        raise NotANumber(
            f"key {key.decode('utf-8', 'replace')!r}: {int(text)} + {delta} leaves the range of 64 bits",
            key=key,
        )
    return total


def is_refusal(answer: Any) -> bool:
    """Whether an operation of a batch was answered by [code, message, key]; a sum is [version, value]."""
    return isinstance(answer, list) and len(answer) == 3
