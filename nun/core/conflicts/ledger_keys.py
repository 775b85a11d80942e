"""Where entries of the ledger stand, and how bytes look in them. For the node and for the client library."""

from __future__ import annotations

import base64
from typing import Any, Final

CONFLICT_PREFIX: Final = b"$conflicts_"  # the ledger: $conflicts_KEY_OPID
OPEN_BEGINS: Final = b'{"state": "open"'  # the value of an open entry


def entry_key(key: bytes, op_id: int) -> bytes:
    """Where the entry of a losing write stands."""
    return b"%s%s_%d" % (CONFLICT_PREFIX, key, op_id)


def key_and_op_id(place: bytes) -> tuple[bytes, int]:
    """Reads `entry_key` back."""
    key, _, op_id = place.removeprefix(CONFLICT_PREFIX).rpartition(b"_")
    return key, int(op_id)


def shown_bytes(value: Any) -> Any:
    """Bytes as text, for people and programs alike; what is no text stands as `{"base64": ...}`."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def hidden_bytes(shown: Any) -> Any:
    """What `shown_bytes` was given."""
    match shown:
        case str():
            return shown.encode()
        case {"base64": text}:
            return base64.b64decode(text)
    return shown
