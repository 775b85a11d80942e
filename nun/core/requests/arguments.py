"""What clients may send as keys, values, deltas and payloads; and how many are checked at the cost of a few.

Every function raises BadRequest or TooLarge that names what was wrong and what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nun.core.accept import INT_MAX, INT_MIN
from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX
from nun.core.effects import keys_and_values
from nun.core.requests.access import (
    CONNECTIONS_KEY,
    PERMISSION_PREFIX,
    TOKEN_KEY,
    USER_PREFIX,
)
from nun.errors import BadRequest, TooLarge, WireError
from nun.limits import BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX

_MANAGED_KEYS: Final = (
    (USER_PREFIX, "create_user"),
    (PERMISSION_PREFIX, "set_permissions"),
    (TOKEN_KEY, "alter_database"),
    (CONNECTIONS_KEY, "nothing: it is computed"),
    (CONFLICT_PREFIX, "nothing: it is the ledger"),
)


def check_key(key: Any) -> None:
    """Raises BadRequest or TooLarge unless this may be a key."""
    if type(key) is not bytes or not key:
        raise BadRequest("a key is a text of at least one byte")
    if len(key) > KEY_BYTES_MAX and not key.startswith(b"$"):
        raise _too_large("KEY_BYTES_MAX", KEY_BYTES_MAX, len(key), "a key")
    if not key.isascii():
        _check_text(key)


def all_short(payload: bytes) -> bool:
    """Whether surely no text or binary in these msgpack bytes is longer than 255 bytes.

    Longer ones begin with one of four bytes; looking for those is fifty times cheaper than measuring each.
    """
    return not (0xC5 in payload or 0xC6 in payload or 0xDA in payload or 0xDB in payload)


def check_keys(keys: Sequence[Any], short: bool = False) -> bytes:
    """Checks many keys at the cost of a few calls; returns all of them, one after the other.

    Args:
        short: they are known to be no longer than 255 bytes.
    """
    try:
        joined = b"".join(keys)
    except TypeError as error:
        raise BadRequest("a key is a text of at least one byte") from error
    if (len(joined) > KEY_BYTES_MAX and not short) or not joined.isascii():
        longest = max(keys, key=len)
        if len(longest) > KEY_BYTES_MAX:
            check_key(longest)
        if not joined.isascii():
            for key in keys:
                _check_text(key)
    return joined


def check_managed(key: bytes) -> None:
    """Refuses writes to the keys that have a request of their own."""
    for prefix, instead in _MANAGED_KEYS:
        if key.startswith(prefix):
            raise BadRequest(
                f"key {key.decode('utf-8', 'replace')!r} is not written directly; use {instead}"
            )


def _check_text(key: bytes) -> None:
    try:
        key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"a key is UTF-8 text, found {key[:40]!r}") from error


def check_value(value: Any) -> None:
    """A value is bytes of a bounded length."""
    if type(value) is not bytes:
        raise BadRequest("a value is text or bytes")
    if len(value) > VALUE_BYTES_MAX:
        raise _too_large("VALUE_BYTES_MAX", VALUE_BYTES_MAX, len(value), "a value")


def check_delta(delta: Any) -> None:
    """An increment is a 64-bit integer."""
    if type(delta) is not int or not INT_MIN <= delta <= INT_MAX:
        raise BadRequest(f"an increment is a 64-bit integer, found {delta!r:.40}")


def _too_large(limit: str, bound: int, found: int, what: str) -> TooLarge:
    return TooLarge(
        f"{what} of {found} is above {limit} = {bound}", limit=limit, bound=bound, found=found
    )


def check_values(values: Sequence[Any], short: bool = False) -> None:
    """Checks many values at the cost of a few calls; `short` as in `check_keys`."""
    if short:
        try:
            b"".join(values)  # the cheapest way to find one that is not bytes
        except TypeError as error:
            raise BadRequest("a value is text or bytes") from error
    else:
        for value in values:
            check_value(value)


def columns(payload: Any) -> tuple[list[Any], list[Any]]:
    """The two columns of a batch: keys and arguments."""
    if type(payload) is not bytes:
        raise BadRequest("the payload of a batch is the msgpack bytes of two arrays")
    if len(payload) > BATCH_BYTES_MAX:
        raise _too_large("BATCH_BYTES_MAX", BATCH_BYTES_MAX, len(payload), "a batch")
    try:
        keys, arguments = keys_and_values(payload)
    except WireError as error:
        raise BadRequest(f"the payload of a batch: {error}") from error
    if len(keys) > BATCH_OPERATIONS_MAX:
        raise _too_large("BATCH_OPERATIONS_MAX", BATCH_OPERATIONS_MAX, len(keys), "a batch")
    return keys, arguments


def check_floor(number: int, floor: Any) -> None:
    """The head of a write. Raises BadRequest."""
    if type(floor) is not int or not 0 <= floor <= number or number < 1:
        raise BadRequest("a write has a number from 1 and a floor from 0 to its number")
