"""Local writes whose outcome somebody may still ask for: the node keeps what became of them as long as they are held.

A node drops what it remembers of requests below the floor that later writes carry. So the floor stays at the oldest
local write whose Result still lives; not for ever, or a program that keeps all Results would make nodes keep all rows.
"""

from __future__ import annotations

from typing import Final
from weakref import ref

HELD_BACK_MAX: Final = 1_000  # by how many numbers a Result may hold the floor back


class Hold:
    """Lives as long as the Result of the write."""

    __slots__ = ("__weakref__",)


class Undecided:
    """The holds of one session, by number of the request."""

    def __init__(self) -> None:
        self._holds: dict[int, ref[Hold]] = {}

    def hold(self, number: int) -> Hold:
        """A local write was answered."""
        hold = Hold()
        self._holds[number] = ref(hold)
        return hold

    def floor(self, floor: int) -> int:
        """The floor, or the number of the oldest write below it that is held."""
        while self._holds:
            number = next(iter(self._holds))
            if number >= floor:
                break
            if self._holds[number]() is not None and floor - number <= HELD_BACK_MAX:
                return number
            del self._holds[number]
        return floor
