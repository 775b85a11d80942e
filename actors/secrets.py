"""Tokens and passwords at rest: scrypt hashes, computed in threads, never on a process's loop.

A stored secret is the text `scrypt$LOG2_N$R$P$SALT$HASH`, salt and hash in base64. What a NunDB directory brought along
in the clear is hashed before the node's first entry.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import Final

_LOG2_N: Final = 14
_R: Final = 8
_P: Final = 1
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
_KIND: Final = b"scrypt"


def _scrypt(secret: bytes, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    memory = 128 * r * (1 << log2_n) + (1 << 20)
    return hashlib.scrypt(
        secret, salt=salt, n=1 << log2_n, r=r, p=p, maxmem=memory, dklen=_HASH_BYTES
    )


def hash_secret(secret: bytes) -> str:
    """The text to store. Takes tens of milliseconds and 16 MiB, on purpose."""
    salt = os.urandom(_SALT_BYTES)
    hashed = _scrypt(secret, salt, _LOG2_N, _R, _P)
    parts = (base64.b64encode(salt).decode(), base64.b64encode(hashed).decode())
    return f"scrypt${_LOG2_N}${_R}${_P}${parts[0]}${parts[1]}"


def check_secret(secret: bytes, stored: bytes) -> bool:
    """Whether `secret` is the one that was stored. What cannot be read matches nothing."""
    try:
        kind, log2_n, r, p, salt, hashed = stored.split(b"$")
        expected = base64.b64decode(hashed, validate=True)
        found = _scrypt(secret, base64.b64decode(salt, validate=True), int(log2_n), int(r), int(p))
    except ValueError:
        return False
    return kind == _KIND and hmac.compare_digest(found, expected)
