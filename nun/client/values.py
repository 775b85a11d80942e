"""What goes in and what comes out: keys, values, conditions, and how bytes are shown.

Keys and values are text or bytes on the way in and bytes on the wire. `decode` says what comes out: "utf-8" text,
"json" what the JSON text means, None bytes. Keys come out as text, with decode=None as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeGuard

from nun.codec import pack
from nun.core.record import CONFLICT_KIND, HEAD_BYTES
from nun.errors import BadRequest, TooLarge
from nun.limits import BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX
from nun.messages import IF_VERSION, ON_BASE, ON_VERSION, PLAIN

IN_CONFLICT_BYTES: Final = HEAD_BYTES + 2  # before the value of a key in conflict: head, kind, 0
_value_of = itemgetter(slice(HEAD_BYTES, None))


class Unset(Enum):
    """Stands for an argument that was left out, where None means something."""

    UNSET = 0


UNSET: Final = Unset.UNSET

Condition = tuple[int, int, bool]


class Decoding(NamedTuple):
    """How the bytes of keys and values are shown."""

    name: str | None
    key: Callable[[bytes], Any]
    value: Callable[[bytes], Any]
    values: Callable[[Sequence[bytes | None]], list[Any]]  # of packed records, None for absent ones


def _raw(data: bytes) -> bytes:
    return data


def _key_text(key: bytes) -> str:
    # A key that a NunDB directory brought along need not be UTF-8: it must not make a whole listing fail.
    return key.decode("utf-8", "surrogateescape")


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError("the value is not UTF-8 text: decode=None gives bytes") from error


def _json(value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"the value is not JSON: {error}") from error


def is_live(record: bytes | None) -> TypeGuard[bytes]:
    """Whether this record of a reply holds a value."""
    return record is not None and (record[3] < 0x80 or record[HEAD_BYTES] == CONFLICT_KIND)


def value_bytes(record: bytes) -> bytes:
    """The value of a record of a reply, of a key in conflict too."""
    return record[HEAD_BYTES:] if record[3] < 0x80 else record[IN_CONFLICT_BYTES:]


def _each(show: Callable[[bytes], Any]) -> Callable[[Sequence[bytes | None]], list[Any]]:
    def values(records: Sequence[bytes | None]) -> list[Any]:
        return [
            show(value_bytes(record)) if record is not None and is_live(record) else None
            for record in records
        ]

    return values


_texts_one_by_one = _each(_text)


def _texts(records: Sequence[Any]) -> list[Any]:
    """All values as text by one decode, where all are there and none holds a NUL.

    The tail of a tombstone is the byte 0, and that of a key in conflict holds one: either among the records makes the
    count come out wrong too.
    """
    if len(records) < 2:
        return _texts_one_by_one(records)
    try:
        texts = b"\0".join(map(_value_of, records)).decode().split("\0")
    except (TypeError, UnicodeDecodeError):
        return _texts_one_by_one(records)
    return texts if len(texts) == len(records) else _texts_one_by_one(records)


_DECODINGS: Final[dict[str | None, Decoding]] = {
    "utf-8": Decoding("utf-8", _key_text, _text, _texts),
    "json": Decoding("json", _key_text, _json, _each(_json)),
    None: Decoding(None, _raw, _raw, _each(_raw)),
}
TEXT: Final = _DECODINGS["utf-8"]


def decoding_named(name: str | None) -> Decoding:
    """The decoding of this name. Raises ValueError."""
    try:
        return _DECODINGS[name]
    except (KeyError, TypeError):
        raise ValueError(f"decode is 'utf-8', 'json' or None, not {name!r}") from None


# Checks. They cost little and are not the last word: the node has its own.


def check_key(key: Any) -> None:
    """Raises TypeError or TooLarge."""
    if not isinstance(key, str | bytes):
        raise TypeError(f"a key is str or bytes, not {type(key).__name__}: {key!r:.60}")
    if len(key) > KEY_BYTES_MAX:
        raise too_large("KEY_BYTES_MAX", KEY_BYTES_MAX, len(key), "a key")


def check_value(key: Any, value: Any) -> None:
    """Raises TypeError or TooLarge."""
    if not isinstance(value, str | bytes):
        raise TypeError(f"the value of key {key!r:.60} is str or bytes, not {type(value).__name__}")
    if len(value) > VALUE_BYTES_MAX:
        raise too_large("VALUE_BYTES_MAX", VALUE_BYTES_MAX, len(value), f"the value of {key!r:.60}")


def check_delta(key: Any, delta: Any) -> None:
    """Raises TypeError or BadRequest."""
    if isinstance(delta, bool) or not isinstance(delta, int):
        raise TypeError(f"the increment of key {key!r:.60} is int, not {type(delta).__name__}")
    if not -(2**63) <= delta < 2**63:
        raise BadRequest(f"the increment of key {key!r:.60} has more than 64 bits")


def check_deltas(keys: Iterable[Any], deltas: list[Any]) -> None:
    """Raises TypeError or BadRequest that names the key of the first that is no 64-bit integer."""
    if deltas and ({*map(type, deltas)} != {int} or not _all_64_bits(deltas)):
        for key, delta in zip(keys, deltas, strict=True):
            check_delta(key, delta)


def _all_64_bits(numbers: list[int]) -> bool:
    return min(numbers) >= -(2**63) and max(numbers) < 2**63


def check_name(name: Any, what: str) -> None:
    """Raises TypeError unless `name` can be a name, a token or the like."""
    if not isinstance(name, str | bytes):
        raise TypeError(f"{what} is str or bytes, not {type(name).__name__}")


def _all_text_or_bytes(items: list[Any]) -> bool:
    """Whether msgpack would encode each of these as a text: joining is the cheapest way to know."""
    try:
        "".join(items)
    except TypeError:
        return all(map(isinstance, items, repeat((str, bytes))))
    return True


def check_keys(keys: list[Any]) -> None:
    """Raises TypeError that shows the first key of a wrong type, or TooLarge."""
    if len(keys) > BATCH_OPERATIONS_MAX:
        raise too_large("BATCH_OPERATIONS_MAX", BATCH_OPERATIONS_MAX, len(keys), "a batch")
    if not _all_text_or_bytes(keys):
        for key in keys:
            check_key(key)


def check_values(keys: Iterable[Any], values: list[Any]) -> None:
    """Raises TypeError that names the key of the first value of a wrong type."""
    if not _all_text_or_bytes(values):
        for key, value in zip(keys, values, strict=True):
            check_value(key, value)


def packed_columns(keys: list[Any], arguments: list[Any]) -> bytes:
    """The payload of a batch. Raises TooLarge or ValueError (text that is no Unicode)."""
    payload = pack((keys, arguments))
    if len(payload) > BATCH_BYTES_MAX:
        raise too_large("BATCH_BYTES_MAX", BATCH_BYTES_MAX, len(payload), "a batch")
    return payload


def columns(items: Any) -> tuple[list[Any], list[Any]]:
    """Keys and values of a mapping or of an iterable of pairs."""
    if hasattr(items, "keys") and hasattr(items, "values"):
        return list(items.keys()), list(items.values())
    pairs: Iterable[tuple[Any, Any]] = items
    keys, values = [], []
    for key, value in pairs:
        keys.append(key)
        values.append(value)
    return keys, values


def too_large(limit: str, bound: int, found: int, what: str) -> TooLarge:
    return TooLarge(
        f"{what} of {found} is above {limit} = {bound}", limit=limit, bound=bound, found=found
    )


def condition_of(
    base: Any, version: int | None, if_version: int | None, on_conflict: str
) -> Condition | None:
    """The condition of a write as it goes over the wire; None for a plain one.

    Raises:
        TypeError: more than one of base, version, if_version; or of a wrong type.
        BadRequest: a version that no client may send; `on_conflict` that is neither of its two words.
    """
    if on_conflict not in ("strategy", "refuse"):
        raise BadRequest(f"on_conflict is 'strategy' or 'refuse', not {on_conflict!r}")
    refuse = on_conflict == "refuse"
    if (base is not UNSET) + (version is not None) + (if_version is not None) > 1:
        raise TypeError("a write takes at most one of base, version and if_version")
    if base is not UNSET:
        return (ON_BASE, _op_id_of(base), refuse)
    if version is not None:
        return (ON_VERSION, _checked_version("version", version, -1), refuse)
    if if_version is not None:
        return (IF_VERSION, _checked_version("if_version", if_version, 0), True)
    return (PLAIN, 0, True) if refuse else None


def _op_id_of(base: Any) -> int:
    if base is None:
        return 0
    op_id: Any = getattr(base, "op_id", base)
    if isinstance(op_id, bool) or not isinstance(op_id, int):
        kind = type(base).__name__
        raise TypeError(f"base is an Entry, a Result, an op id or None (absent), not {kind}")
    if not 0 <= op_id < 2**64:
        raise BadRequest(f"base={op_id}: an op id has 64 bits")
    return int(op_id)


def _checked_version(name: str, version: Any, least: int) -> int:
    if isinstance(version, bool) or not isinstance(version, int):
        raise TypeError(f"{name} is int, not {type(version).__name__}")
    if version < least:
        raise BadRequest(f"{name}={version}: a client may not send negative versions")
    return int(version)
