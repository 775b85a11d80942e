"""Reads that ask for more than what is shown now: for a position that this node has yet to show, or for settled state.

    view   [position or nil, majority, patience_ms]

I1  A read at a position is answered from a state that holds that position, or not at all.
I2  A majority read is answered when everything that was shown at the moment of reading is settled.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nun import messages as m
from nun.core.levels import Level
from nun.errors import BadRequest, LevelNotReached
from nun.limits import PATIENCE_MS_MAX
from nun.position import Position

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.requests.sessions import Session


class Views:
    """Reads that wait for a position."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._waiting: list[tuple[int, int, Position, int, bytes, int, list[Any]]] = []
        self._order = 0

    def read(self, session: Session, message: list[Any]) -> None:
        """A GET or GET_MANY with a view as its last element."""
        core = self._core
        view = message.pop()
        match view:
            case [None, bool() as majority, int() as patience_ms]:
                position = None
            case [
                [int(), int(), int(), int()] as parts,
                bool() as majority,
                int() as patience_ms,
            ] if all(0 <= part < 2**63 for part in parts):
                position = Position(*parts)
            case _:
                raise BadRequest("a view is [position or nil, majority, patience in milliseconds]")
        deadline_ns = core.now_ns + check_patience(patience_ms) * 1_000_000
        if majority:
            core.level = Level(m.ACK_MAJORITY, deadline_ns)
        if position is None or not self._must_wait(position):
            core.handle(session, message)
            return
        if majority:
            message.append([None, True, patience_ms])
        self._order += 1
        waiting = (
            position.seq,
            self._order,
            position,
            deadline_ns,
            session.peer,
            session.token,
            message,
        )
        heapq.heappush(self._waiting, waiting)

    def _must_wait(self, position: Position) -> bool:
        """Whether the position is still to come. Raises BadRequest when another entry stands there."""
        core = self._core
        if position.seq == 0:
            return False
        if position.seq > core.stream.durable_seq:
            return True
        if not core.state.in_history(position):
            raise BadRequest(
                f"position {position} is not in this node's history, which has "
                f"{core.state.epoch_of(position.seq)} there"
            )
        return False

    def shown(self, seq: int) -> None:
        """Everything up to this entry is shown: reads that wait for it are answered."""
        while self._waiting and self._waiting[0][0] <= seq:
            _, _, position, _, peer, token, message = heapq.heappop(self._waiting)
            session = self._core.sessions.get(peer)
            if session is not None and session.token == token:
                if not self._core.state.in_history(position):
                    error = BadRequest(f"position {position} is not in this node's history")
                    self._core.refuse(peer, message[2], error)
                else:
                    self._core.handle(session, message)
                    self._core.level = None

    def tick(self) -> None:
        """Refuses what has waited long enough."""
        core = self._core
        late = [item for item in self._waiting if item[3] <= core.now_ns]
        if late:
            self._waiting = [item for item in self._waiting if item[3] > core.now_ns]
            heapq.heapify(self._waiting)
            for _, _, position, _, peer, _, message in late:
                shown = core.stream.durable_seq
                text = f"position {position} is not here yet: this node shows seq {shown}"
                core.refuse(peer, message[2], LevelNotReached(text, level="position"))


def check_patience(patience_ms: int) -> int:
    """Raises BadRequest unless this is a time in milliseconds that a request may wait."""
    if not 0 <= patience_ms <= PATIENCE_MS_MAX:
        raise BadRequest(f"a patience is 0 to {PATIENCE_MS_MAX} milliseconds, found {patience_ms}")
    return patience_ms


def level_of(slot: Sequence[Any], now_ns: int) -> tuple[int, Any, int]:
    """(floor, level, deadline) of what stands in the place of a floor: `[floor, level, patience_ms]`."""
    match slot:
        case [int() as floor, level, int() as patience_ms]:
            return floor, level, now_ns + check_patience(patience_ms) * 1_000_000
    raise BadRequest(
        "in the place of a floor stands an integer, or [floor, level, patience in milliseconds]"
    )
