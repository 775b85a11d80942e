"""Ack levels and views as callers write them, and as they go over the wire."""

from __future__ import annotations

from typing import Any, Final

from nun.errors import BadRequest
from nun.messages import ACK_ALL, ACK_LOCAL, ACK_MAJORITY, ACK_PRIMARY
from nun.position import Position

LEVELS: Final = {
    "primary": ACK_PRIMARY,
    "local": ACK_LOCAL,
    "majority": ACK_MAJORITY,
    "all": ACK_ALL,
}

Ack = str | int | None
LEVEL_SHARE: Final = 0.9  # of a timeout, so that the node's answer comes before the client gives up


def level_of(ack: str | int) -> int:
    """The number of an ack level. Raises TypeError or BadRequest."""
    if isinstance(ack, str):
        if ack in LEVELS:
            return LEVELS[ack]
    elif isinstance(ack, bool) or not isinstance(ack, int):
        raise TypeError(f"ack is str or int, not {type(ack).__name__}")
    elif ack >= 0:
        return ack
    names = ", ".join(map(repr, LEVELS))
    raise BadRequest(f"ack {ack!r}: expected {names} or a number of replicas")


def ack_of(ack: Ack, timeout: float) -> tuple[int, int] | None:
    """[level, patience in milliseconds] of a write; None leaves it to the node."""
    return None if ack is None else (level_of(ack), max(int(timeout * 1_000), 0))


def ack_again(ack: tuple[int, int], timeout: float) -> tuple[int, int]:
    """The same level for a request that is asked again, with the patience of this time."""
    return ack[0], max(int(timeout * LEVEL_SHARE * 1_000), 0)


def view_of(
    at: Position | str | None, level: str | None, timeout: float
) -> tuple[Any, bool, int] | None:
    """The view of a read; None where it asks for nothing more. Raises TypeError or BadRequest."""
    if level not in (None, "majority"):
        raise BadRequest(f"level {level!r}: expected None or 'majority'")
    if isinstance(at, str):
        try:
            at = Position.parse(at)
        except ValueError as error:
            raise BadRequest(str(error)) from error
    elif at is not None and not isinstance(at, Position):
        raise TypeError(f"at is a Position, its text or None, not {type(at).__name__}")
    if at is None and level is None:
        return None
    return at, level == "majority", max(int(timeout * 1_000), 0)
