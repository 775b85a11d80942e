"""Outcomes: what became of a client's local and losing writes, delivered at least once."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from nun.client.values import Decoding, is_live, value_bytes
from nun.codec import unpack
from nun.messages import INCREMENT, REMOVE, SET

_KINDS = {SET: "set", REMOVE: "remove", INCREMENT: "increment"}


class Outcome(NamedTuple):
    """What became of one write.

    Attributes:
        state: "resolved", "decided", "expired" or "refused". reason: why, as a sentence.
        database, key, value: what was written where; of an increment the delta, of a removal None.
        op_id: of the write. request: its number.
        current: the value that the key holds instead, or None.
        entry: the key of the ledger's entry, None where the database is gone.
    """

    state: str
    reason: str
    database: str
    kind: str
    key: Any
    value: Any
    op_id: int
    request: int
    current: Any
    entry: str | None


class NoticeState:
    """Outcomes as the session hears them. An outcome that was told is told again until it is acknowledged."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._waiting: deque[Outcome] = deque()
        self._told: set[int] = set()  # op ids that are here, or were taken and not yet acknowledged
        self.waiter: Any = None  # the shell's
        self.closed = False
        self.error: Exception | None = None

    @property
    def ready(self) -> bool:
        return bool(self._waiting) or self.error is not None or self.closed

    def feed(self, op_id: int, notice: bytes) -> None:
        """One notice came. Raises WireError, ValueError or KeyError on what is none."""
        if op_id in self._told:
            return
        self._told.add(op_id)
        told: dict[bytes, Any] = unpack(notice)
        value = told[b"value"]
        current = told.get(b"current")
        entry = told.get(b"entry")
        decoding = self._decoding
        self._waiting.append(
            Outcome(
                told[b"state"].decode(),
                told[b"reason"].decode(),
                told[b"database"].decode("utf-8", "replace"),
                _KINDS.get(told[b"kind"], str(told[b"kind"])),
                decoding.key(told[b"key"]),
                decoding.value(value) if isinstance(value, bytes) else value,
                op_id,
                told[b"request"],
                decoding.value(value_bytes(current)) if is_live(current) else None,
                None if entry is None else entry.decode("utf-8", "replace"),
            )
        )

    def take(self) -> Outcome | None:
        """The next outcome, None when none waits."""
        return self._waiting.popleft() if self._waiting else None

    def acknowledged(self, op_id: int) -> None:
        """The node knows that it was dealt with."""
        self._told.discard(op_id)
