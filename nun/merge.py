"""What arbiters are made of: what a conflict is to them, and how to say that a key is to be removed."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, Protocol


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
    """What a handler is given; see nun/client/conflicts.py."""

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
