"""What arbiters are made of: what a conflict is to a handler, what it may answer, and ready-made handlers.

A handler gets a conflict and returns the value that the key is to hold, REMOVED, or raises `Skip`. Those here:

    keep, newer, older          one of the two sides
    json_merge(prefer)          objects field by field, against the base
    set_union                   JSON arrays as sets, against the base; set_union_of(separator) for separated text
    numeric_max, numeric_sum    numbers; the sum of both changes

Against the base means: what only one side changed is taken from that side; what one side removed stays removed. Where
the base is not known, nothing counts as removed. A side that removed the whole key wins over one that left it alone,
and loses against one that changed it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Final, Literal, Protocol

from nun.errors import CannotMerge


class Removed(Enum):
    """Answers a conflict in the place of a value."""

    REMOVED = 0

    def __repr__(self) -> str:
        return "nun.REMOVED"


REMOVED: Final = Removed.REMOVED


class Skip(Exception):
    """A handler raises it to give a key back: somebody else is to decide. It does not count as a failure."""


class Side(Protocol):
    """One side of a conflict: a record as `decode` shows it. `at`: when it was made (Unix ms)."""

    @property
    def value(self) -> Any: ...
    @property
    def version(self) -> int: ...
    @property
    def op_id(self) -> int: ...
    @property
    def at(self) -> int: ...


class Conflict(Protocol):
    """What a handler is given; nun.Conflict says what each is."""

    @property
    def id(self) -> str: ...
    @property
    def key(self) -> Any: ...
    @property
    def attempt(self) -> int: ...
    @property
    def base(self) -> Side | None: ...
    @property
    def base_known(self) -> bool: ...
    @property
    def current(self) -> Side | None: ...
    @property
    def proposed(self) -> Side | None: ...
    @property
    def at(self) -> int: ...
    @property
    def op_id(self) -> int: ...


Handler = Callable[[Conflict], Any]
Prefer = Literal["current", "proposed", "raise"]


def _value(side: Side | None) -> Any:
    return REMOVED if side is None else side.value


# One of the two sides


def keep(conflict: Conflict) -> Any:
    """What the key holds stays."""
    return _value(conflict.current)


def newer(conflict: Conflict) -> Any:
    """The side that was made later; the op id decides where that is the same."""
    return _value(conflict.proposed if _is_later(conflict) else conflict.current)


def older(conflict: Conflict) -> Any:
    """The side that was made earlier."""
    return _value(conflict.current if _is_later(conflict) else conflict.proposed)


def _is_later(conflict: Conflict) -> bool:
    current = conflict.current
    if current is None:
        return True
    return (conflict.at, conflict.op_id) > (current.at, current.op_id)


# Three-way merges


def _sides(conflict: Conflict, read: Callable[[Conflict, Side], Any]) -> tuple[Any, Any, Any] | Any:
    """(base, current, proposed) as `read` understands them, base None where there is none; or the answer itself.

    Where a side removed the key there is nothing to merge.
    """
    current, proposed = conflict.current, conflict.proposed
    base = None if conflict.base is None else read(conflict, conflict.base)
    if current is not None and proposed is not None:
        return base, read(conflict, current), read(conflict, proposed)
    left = current if current is not None else proposed
    if left is None:
        return REMOVED
    unchanged = base is not None and read(conflict, left) == base
    return REMOVED if unchanged else _value(left)


def json_merge(prefer: Prefer = "raise") -> Handler:
    """Merges JSON objects field by field, nested ones too; arrays and scalars are taken whole.

    Args:
        prefer: the side that wins where both changed a field; "raise": then CannotMerge names it.
    """

    def handler(conflict: Conflict) -> Any:
        sides = _sides(conflict, _json_object)
        if not isinstance(sides, tuple):
            return sides
        merged = _merged(conflict, prefer, "", *sides)
        return json.dumps(merged, ensure_ascii=False, sort_keys=True)

    return handler


_MISSING: Final = object()


def _merged(
    conflict: Conflict,
    prefer: Prefer,
    path: str,
    base: dict[str, Any] | None,
    current: dict[str, Any],
    proposed: dict[str, Any],
) -> dict[str, Any]:
    merged = {}
    for name in dict.fromkeys([*current, *proposed]):
        ours, theirs = current.get(name, _MISSING), proposed.get(name, _MISSING)
        before = _MISSING if base is None else base.get(name, _MISSING)
        found = _field(conflict, prefer, f"{path}.{name}", before, ours, theirs, base is not None)
        if found is not _MISSING:
            merged[name] = found
    return merged


def _field(
    conflict: Conflict, prefer: Prefer, path: str, before: Any, ours: Any, theirs: Any, known: bool
) -> Any:
    """What becomes of one field; _MISSING: it goes."""
    if _same(ours, theirs):
        return ours
    if known and _same(before, ours):
        return theirs
    if known and _same(before, theirs):
        return ours
    if not known and (ours is _MISSING or theirs is _MISSING):
        return theirs if ours is _MISSING else ours
    if isinstance(ours, dict) and isinstance(theirs, dict):
        nested = before if isinstance(before, dict) else None
        return _merged(conflict, prefer, path, nested, ours, theirs)
    if prefer == "raise":
        raise CannotMerge(
            f"key {conflict.key!r}: both sides changed {path[1:]!r}", key=conflict.key
        )
    return ours if prefer == "current" else theirs


def _same(one: Any, other: Any) -> bool:
    """As JSON: 1 is not true."""
    if one is _MISSING or other is _MISSING:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _json_object(conflict: Conflict, side: Side) -> dict[str, Any]:
    found = _json(conflict, side, "a JSON object")
    if not isinstance(found, dict):
        raise _not_understood(conflict, side, "a JSON object")
    return found


def _json(conflict: Conflict, side: Side, expected: str) -> Any:
    if not isinstance(side.value, str | bytes):
        return side.value  # decode="json" has read it
    try:
        return json.loads(side.value)
    except ValueError:
        raise _not_understood(conflict, side, expected) from None


def _not_understood(conflict: Conflict, side: Side, expected: str) -> CannotMerge:
    return CannotMerge(
        f"key {conflict.key!r}: expected {expected}, found {side.value!r:.60}", key=conflict.key
    )


def set_union(conflict: Conflict) -> Any:
    """The union of two JSON arrays, less what one side removed: the current elements in their order, then new ones."""
    sides = _sides(conflict, _json_array)
    if not isinstance(sides, tuple):
        return sides
    return json.dumps(_union(*sides), ensure_ascii=False)


def set_union_of(separator: str) -> Handler:
    """The same for text whose elements stand between separators, such as "a,b,c"."""

    def read(_conflict: Conflict, side: Side) -> list[Any]:
        text = _text(side)
        return text.split(separator) if text else []

    def handler(conflict: Conflict) -> Any:
        sides = _sides(conflict, read)
        if not isinstance(sides, tuple):
            return sides
        return separator.join(_union(*sides))

    return handler


def _json_array(conflict: Conflict, side: Side) -> list[Any]:
    found = _json(conflict, side, "a JSON array")
    if not isinstance(found, list):
        raise _not_understood(conflict, side, "a JSON array")
    return found


def _union(base: list[Any] | None, current: list[Any], proposed: list[Any]) -> list[Any]:
    before, ours, theirs = _keys(base or ()), _keys(current), _keys(proposed)
    gone = {key for key in before if key not in ours or key not in theirs}
    both = {
        **_keyed(current),
        **{key: one for key, one in _keyed(proposed).items() if key not in ours},
    }
    return [one for key, one in both.items() if key not in gone]


def _key(element: Any) -> Hashable:
    return json.dumps(element, sort_keys=True)


def _keys(elements: Iterable[Any]) -> set[Hashable]:
    return set(map(_key, elements))


def _keyed(elements: Iterable[Any]) -> dict[Hashable, Any]:
    return {_key(one): one for one in elements}


# Numbers


def numeric_max(conflict: Conflict) -> Any:
    """The greater of two numbers."""
    sides = _sides(conflict, _number)
    if not isinstance(sides, tuple):
        return sides
    _, current, proposed = sides
    return str(max(current, proposed))


def numeric_sum(conflict: Conflict) -> Any:
    """Both changes: current + proposed - base; an absent base counts as 0. Raises CannotMerge where it is not known."""
    if not conflict.base_known:
        raise CannotMerge(
            f"key {conflict.key!r}: the number that it was made on is not known any more",
            key=conflict.key,
        )
    sides = _sides(conflict, _number)
    if not isinstance(sides, tuple):
        return sides
    base, current, proposed = sides
    return str(current + proposed - (base or 0))


def _number(conflict: Conflict, side: Side) -> int | Decimal:
    if isinstance(side.value, int) and not isinstance(side.value, bool):
        return side.value
    text = _text(side).strip()
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise _not_understood(conflict, side, "a number") from None
    if not number.is_finite():
        raise _not_understood(conflict, side, "a number")
    return number


def _text(side: Side) -> str:
    value = side.value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
