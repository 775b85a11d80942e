"""What arbiters are made of: what a conflict is to them, how to remove a key, and ready-made handlers.

A handler is called with a conflict and returns what the key is to hold (text or bytes), or REMOVED. The handlers here
are pure: the same conflict always gives the same answer, wherever the arbiter runs. `docs/ARBITERS.md` has recipes.

I1  What only one side changed is as that side has it, wherever the base is known. (`numeric_max` asks for no base.)
I2  A removal wins against what is as it was at the base, and loses against what was changed, or may have been.
I3  Nothing is rounded: numbers are added exactly, and those within JSON are written as they came.
I4  What cannot be merged raises CannotMerge; no handler guesses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    Context,
    Decimal,
    DecimalException,
    Inexact,
    InvalidOperation,
    Overflow,
)
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from nun.errors import CannotMerge
from nun.limits import MERGED_DIGITS_MAX

__all__ = [
    "Answer",
    "CannotMerge",
    "Conflict",
    "Handler",
    "REMOVED",
    "Removed",
    "Side",
    "Skip",
    "json_merge",
    "keep",
    "newer",
    "numeric_max",
    "numeric_sum",
    "older",
    "set_union",
    "set_union_of",
]


class Removed(Enum):
    """Answers a conflict in the place of a value."""

    REMOVED = 0

    def __repr__(self) -> str:
        return "nun.REMOVED"


REMOVED: Final = Removed.REMOVED


class Skip(Exception):
    """A handler raises it to give a key back: somebody else is to decide. It does not count as a failure."""


class Side(Protocol):
    """One side of a conflict: a record as `decode` shows it."""

    @property
    def value(self) -> Any: ...
    @property
    def version(self) -> int: ...
    @property
    def op_id(self) -> int: ...
    @property
    def at(self) -> int: ...


class Conflict(Protocol):
    """What a handler is given.

    Attributes:
        base: the record that the proposed write was made on; None: the key was absent, or (`base_known` False) its
            value is no longer known.
        current: what the key holds; None: nothing.
        proposed: what the losing writer wrote; None: it removed the key.
        at: when it did (Unix milliseconds).

    A conflict may have a `decode` beside these, which says how its values are shown. Without one, values are taken
    for decoded JSON when one of them is neither text nor bytes.
    """

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


Answer = str | bytes | Removed
Handler = Callable[[Conflict], Answer]
Prefer = Literal["current", "proposed", "raise"]
T = TypeVar("T")


# One side as it is


def keep(conflict: Conflict) -> Answer:
    """What the key holds stays."""
    return _as_it_is(conflict, conflict.current)


def newer(conflict: Conflict) -> Answer:
    """What was written later; at the same time: with the higher op id. A key that holds nothing was written at 0."""
    return _as_it_is(conflict, conflict.proposed if _lead(conflict) > 0 else conflict.current)


def older(conflict: Conflict) -> Answer:
    """What was written earlier; at the same time: with the lower op id. A key that holds nothing was written at 0."""
    return _as_it_is(conflict, conflict.proposed if _lead(conflict) < 0 else conflict.current)


def _lead(conflict: Conflict) -> int:
    """Above 0 if the proposed write is the later one, below if it is the earlier one."""
    current, proposed = conflict.current, conflict.proposed
    lead = conflict.at - (0 if current is None else current.at)
    if lead or current is None or proposed is None:
        return lead  # a removal shows no op id: at the same time, what the key holds stays
    return proposed.op_id - current.op_id


def _as_it_is(conflict: Conflict, side: Side | None) -> Answer:
    if side is None:
        return REMOVED
    if not _is_decoded(conflict) and isinstance(side.value, str | bytes):
        return side.value
    with _json_rules(conflict):
        return _written(side.value)


# Merges of both sides


def json_merge(prefer: Prefer = "current") -> Handler:
    """A handler that merges JSON objects field by field, objects within them too; all else is a unit.

    A field that only one side changed, added or removed is as that side has it. One that both changed differently goes
    by `prefer`; where one of them removed it, the other one's value stays. Without a base, the fields of both are
    taken. The result is JSON with sorted fields and no spaces.

    Args:
        prefer: "current" or "proposed": that side's value; "raise": CannotMerge.
    """
    if prefer not in ("current", "proposed", "raise"):
        raise ValueError(
            f"prefer is 'current', 'proposed' or 'raise', not {prefer!r:.60}; json_merge() makes a handler, is none"
        )

    def merge_json(conflict: Conflict) -> Answer:
        def merge(base: Any, current: Any, proposed: Any) -> Any:
            return _merged_fields(conflict, prefer, (), base, current, proposed)

        with _json_rules(conflict):
            return _three_way(conflict, _object, merge, _same, _written)

    return merge_json


def set_union(conflict: Conflict) -> Answer:
    """JSON arrays as sets: what either side has, without what one of them removed since the base.

    The elements of the current value come first, in their order, then the new ones. The result is JSON without spaces.
    """
    with _json_rules(conflict):
        return _three_way(conflict, _elements, _united, _same_elements, _array_of)


def set_union_of(separator: str) -> Handler:
    """A handler like `set_union`, for text with separators: "a,b,c". Empty elements do not count."""
    if not isinstance(separator, str):
        kind = type(separator).__name__
        raise TypeError(f"separator is str, not {kind}; set_union_of(',') makes a handler, is none")
    if not separator:
        raise ValueError("separator is empty; expected the text that stands between elements")

    def unite_text(conflict: Conflict) -> Answer:
        def read(conflict: Conflict, name: str, side: Side) -> dict[str, Any]:
            text = _text(conflict, name, side)
            return {element: element for element in text.split(separator) if element}

        def write(elements: dict[str, Any]) -> str:
            text = separator.join(elements)
            return _written(text) if _is_decoded(conflict) else text

        return _three_way(conflict, read, _united, _same_elements, write)

    return unite_text


def numeric_max(conflict: Conflict) -> Answer:
    """The greater of two numbers, as it was written."""

    def greater(_: Any, current: tuple[Any, str], proposed: tuple[Any, str]) -> tuple[Any, str]:
        return proposed if proposed[0] > current[0] else current

    return _three_way(conflict, _number, greater, _same_number, _number_as_written)


def numeric_sum(conflict: Conflict) -> Answer:
    """What both sides added to the base, added up: current + proposed - base. An absent base is 0.

    Raises:
        CannotMerge: the base is not known any more, too.
    """
    if not conflict.base_known and not (conflict.current is None and conflict.proposed is None):
        raise CannotMerge(conflict.key, "a base that is no longer known", "the number it was")

    def add(base: Any, current: tuple[Any, str], proposed: tuple[Any, str]) -> tuple[Any, str]:
        total = _sum(conflict, current[0], proposed[0], 0 if base is None else base[0])
        return total, str(total)

    return _three_way(conflict, _number, add, _same_number, _number_as_written)


def _three_way(
    conflict: Conflict,
    read: Callable[[Conflict, str, Side], T],
    merge: Callable[[T | None, T, T], T],
    same: Callable[[T, T], bool],
    write: Callable[[T], str],
) -> Answer:
    """Reads what is there, decides about removals (I2), merges what is left. No base is None, known or not."""

    def side(name: str) -> T | None:
        found: Side | None = getattr(conflict, name)
        return None if found is None else read(conflict, name, found)

    base, current, proposed = side("base"), side("current"), side("proposed")
    if current is not None and proposed is not None:
        return write(merge(base, current, proposed))
    held = proposed if current is None else current
    if held is None or (base is not None and same(base, held)):
        return REMOVED
    return write(held)


# Reading values


def _is_decoded(conflict: Conflict) -> bool:
    """Whether values are decoded JSON: then text is a JSON string, and has to be written as one."""
    sides = (conflict.base, conflict.current, conflict.proposed)
    return getattr(conflict, "decode", None) == "json" or any(
        side is not None and not isinstance(side.value, str | bytes) for side in sides
    )


def _text(conflict: Conflict, name: str, side: Side) -> str:
    value = side.value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _unlike(conflict, name, value, "UTF-8 text") from None
    if not isinstance(value, str):
        raise _unlike(conflict, name, value, "text")
    return value


def _json(conflict: Conflict, name: str, side: Side, expected: str) -> Any:
    if _is_decoded(conflict):
        return side.value
    text = _text(conflict, name, side)
    try:
        return json.loads(text, parse_int=_Literal, parse_float=_Literal, parse_constant=_no_number)
    except ValueError:
        raise _unlike(conflict, name, text, expected) from None


class _Literal(NamedTuple):
    """A number of a JSON text, which is never looked at."""

    text: str


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _object(conflict: Conflict, name: str, side: Side) -> Any:
    value = _json(conflict, name, side, "a JSON object")
    if not isinstance(value, dict):
        raise _unlike(conflict, name, side.value, "a JSON object")
    return value


def _elements(conflict: Conflict, name: str, side: Side) -> dict[str, Any]:
    """The elements of an array by their text, each once."""
    value = _json(conflict, name, side, "a JSON array")
    if not isinstance(value, list):
        raise _unlike(conflict, name, side.value, "a JSON array")
    by_text: dict[str, Any] = {}
    for element in value:
        by_text.setdefault(_written(element), element)
    return by_text


_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_DECIMAL: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def _number(conflict: Conflict, name: str, side: Side) -> tuple[int | Decimal, str]:
    """A number and how it is written."""
    expected = f"a number of at most {MERGED_DIGITS_MAX} digits, such as 5 or 2.50"
    value = side.value
    if not _is_decoded(conflict):
        text = _text(conflict, name, side)
    elif isinstance(value, int | float):  # of true, the text is no number
        text = repr(value)
    else:
        raise _unlike(conflict, name, value, expected)
    if len(text) <= MERGED_DIGITS_MAX:
        if _INTEGER.fullmatch(text):
            return int(text), text
        if _DECIMAL.fullmatch(text):
            try:
                return Decimal(text), text
            except DecimalException:  # of an exponent beyond all bounds
                pass
    raise _unlike(conflict, name, value, expected)


def _unlike(conflict: Conflict, name: str, value: Any, expected: str) -> CannotMerge:
    return CannotMerge(conflict.key, f"{value!r:.60} as the {name} value", expected)


# Merging them

_ABSENT: Final = object()


def _merged_fields(
    conflict: Conflict,
    prefer: Prefer,
    path: tuple[str, ...],
    base: Any,
    current: dict[str, Any],
    proposed: dict[str, Any],
) -> dict[str, Any]:
    """Two objects. A base that is none has no fields: then each field was added, which is also what a union is."""
    fields = base if isinstance(base, dict) else {}
    merged = {}
    for name in {**current, **proposed}:
        here = (*path, name)
        was = fields.get(name, _ABSENT)
        ours, theirs = current.get(name, _ABSENT), proposed.get(name, _ABSENT)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            merged[name] = _merged_fields(conflict, prefer, here, was, ours, theirs)
            continue
        value = _merged_unit(was, ours, theirs)
        if value is _BOTH:
            if prefer == "raise":
                raise _both_changed(conflict, here, ours, theirs)
            value = ours if prefer == "current" else theirs
        if value is not _ABSENT:
            merged[name] = value
    return merged


_BOTH: Final = object()


def _merged_unit(base: Any, current: Any, proposed: Any) -> Any:
    """A field that is taken as a whole; _ABSENT: there is to be none; _BOTH: both sides changed it."""
    if _same(current, proposed) or _same(base, proposed):
        return current
    if _same(base, current) or current is _ABSENT:
        return proposed
    return current if proposed is _ABSENT else _BOTH


def _both_changed(
    conflict: Conflict, path: tuple[str, ...], current: Any, proposed: Any
) -> CannotMerge:
    place = "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in path)
    found = f"{place}: {_written(current):.60} as the current and {_written(proposed):.60} as the proposed value"
    return CannotMerge(conflict.key, found, "that at most one side changes a field")


def _united(
    base: dict[str, Any] | None, current: dict[str, Any], proposed: dict[str, Any]
) -> dict[str, Any]:
    """What both have, and what one of them has that was not there before."""
    before = base or {}
    return {
        text: element
        for text, element in {**current, **proposed}.items()
        if (text in current and text in proposed) or text not in before
    }


def _sum(conflict: Conflict, current: Any, proposed: Any, base: Any) -> int | Decimal:
    if all(isinstance(number, int) for number in (current, proposed, base)):
        total: int = current + proposed - base
        return total
    exact = Context(
        prec=MERGED_DIGITS_MAX,
        Emax=MAX_EMAX,
        Emin=MIN_EMIN,
        traps=[Inexact, InvalidOperation, Overflow],
    )
    try:
        return exact.subtract(exact.add(Decimal(current), Decimal(proposed)), Decimal(base))
    except DecimalException:
        found = f"{current!s:.60} + {proposed!s:.60} - {base!s:.60}"
        expected = f"a sum that {MERGED_DIGITS_MAX} digits can hold exactly"
        raise CannotMerge(conflict.key, found, expected) from None


# Comparing and writing them


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are written the same: 1, 1.0 and true are three."""
    if one is _ABSENT or other is _ABSENT:
        return one is other
    return _written(one) == _written(other)


def _same_elements(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys()


def _same_number(one: tuple[Any, str], other: tuple[Any, str]) -> bool:
    return bool(one[0] == other[0])


def _number_as_written(number: tuple[Any, str]) -> str:
    return number[1]


def _array_of(elements: dict[str, Any]) -> str:
    return f"[{','.join(elements)}]"


def _written(value: Any) -> str:
    """JSON in its stable form. Raises ValueError and RecursionError: see `_json_rules`."""
    if isinstance(value, dict):
        return (
            f"{{{','.join(f'{_string(name)}:{_written(value[name])}' for name in sorted(value))}}}"
        )
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, str):
        return _string(value)
    return value.text if isinstance(value, _Literal) else json.dumps(value, allow_nan=False)


def _string(value: str) -> str:
    try:
        value.encode()
    except (
        UnicodeEncodeError
    ):  # half a surrogate pair: JSON has an escape for it, UTF-8 has nothing
        return json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def _json_rules(conflict: Conflict) -> Iterator[None]:
    """Turns what the standard library says about values that are no JSON, or nest deeper than it goes."""
    try:
        yield
    except RecursionError:
        raise CannotMerge(conflict.key, "JSON that nests too deep", "less depth") from None
    except ValueError as error:  # NaN and the infinities, which a lenient reader lets in
        raise CannotMerge(conflict.key, f"a number that is no JSON ({error})", "JSON") from None
