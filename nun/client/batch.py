"""A pipeline while it is filled: columns, no object per operation."""

from __future__ import annotations

from typing import Any

from nun.client import operations
from nun.client.request import Grant, Request
from nun.client.results import Lazy
from nun.client.values import UNSET, Condition, Decoding, Unset, condition_of
from nun.messages import GET, INCREMENT, REMOVE, SET


class Operations:
    """Single operations that go out as one request, in order.

    Attributes:
        results: after it was executed: for each operation, in order, a Result, or an Entry or None for `get`; where one
            failed its error.
    """

    def __init__(self, grant: Grant, decoding: Decoding, atomic: bool) -> None:
        self._grant = grant
        self._decoding = decoding
        self._atomic = atomic
        self._operations: list[Any] = []  # kind, key, argument, and so on
        self._add = self._operations.extend
        self._conditions: dict[int, Condition] = {}
        self.results: Lazy[Any] | list[Any] = []

    def __len__(self) -> int:
        """How many operations wait."""
        return len(self._operations) // 3

    def get(self, key: str | bytes) -> None:
        self._add((GET, key, None))

    def set(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        base: Any = UNSET,
        version: int | None = None,
        if_version: int | None = None,
        on_conflict: str = "",
    ) -> None:
        if base is not UNSET or version is not None or if_version is not None or on_conflict:
            self._on_condition(base, version, if_version, on_conflict)
        self._add((SET, key, value))

    def remove(
        self,
        key: str | bytes,
        *,
        base: Any = UNSET,
        version: int | None = None,
        if_version: int | None = None,
        on_conflict: str = "",
    ) -> None:
        if base is not UNSET or version is not None or if_version is not None or on_conflict:
            self._on_condition(base, version, if_version, on_conflict)
        self._add((REMOVE, key, None))

    def increment(self, key: str | bytes, delta: int = 1) -> None:
        self._add((INCREMENT, key, delta))

    def _on_condition(
        self, base: Any | Unset, version: int | None, if_version: int | None, on_conflict: str
    ) -> None:
        condition = condition_of(base, version, if_version, on_conflict or "strategy")
        if condition is not None:
            self._conditions[len(self)] = condition

    def _take(self) -> Request | None:
        """All that was collected, as one request; None when there is nothing."""
        columns, self._operations = self._operations, []
        conditions, self._conditions = self._conditions, {}
        self._add = self._operations.extend
        self.results = []
        if not columns:
            return None
        return operations.batch(
            self._grant,
            self._atomic,
            bytes(columns[0::3]),
            columns[1::3],
            columns[2::3],
            conditions,
            self._decoding,
        )
