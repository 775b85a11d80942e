"""The keys and values of all rows, in a fixed order: both sides meet the same cache misses."""

from __future__ import annotations

from typing import Final

KEYS: Final = 100_000
BATCH: Final = 1_000
KEY_DIGITS: Final = 8
VALUE_BYTES: Final = 32
DATABASE: Final = "bench"
DATABASE_TOKEN: Final = "bench-token"


def key(number: int) -> str:
    return f"{number:0{KEY_DIGITS}d}"


def value(number: int) -> str:
    return f"{number:0{VALUE_BYTES}d}"


def batches(keys: int = KEYS, salt: int = 0) -> list[dict[str, str]]:
    """All keys in their order, in batches of 1,000; another salt, other values."""
    return [
        {key(number): value(number + salt) for number in range(first, first + BATCH)}
        for first in range(0, keys, BATCH)
    ]
