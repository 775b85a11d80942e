"""The queue of a key in conflict: its open entries, in order of arrival (see nun/core/conflicts/decisions.py)."""

from __future__ import annotations

from typing import NamedTuple

from nun import messages as m


class Open(NamedTuple):
    """An open entry."""

    op_id: int
    kind: int
    opened_ms: int
    size: int


class Queue:
    """The open entries of one key, oldest first."""

    __slots__ = ("bases", "bytes", "entries")

    def __init__(self) -> None:
        self.entries: list[Open] = []
        self.bytes = 0
        self.bases: dict[int, int] = {}  # op id of a base -> of the entry that holds its value

    def add(self, entry: Open) -> None:
        self.entries.append(entry)
        self.bytes += entry.size

    @property
    def shown(self) -> list[Open]:
        """Those before the first increment: what an arbiter is asked about."""
        for index, entry in enumerate(self.entries):
            if entry.kind == m.INCREMENT:
                return self.entries[:index]
        return self.entries
