"""What became of losing writes, told to whose they were; and waiting for what becomes of a request.

    OUTCOMES        a session wants the notices of its client id: those that wait, and those to come
    OUTCOME         one notice; it comes again in every session until it is seen
    OUTCOMES_SEEN   a write: these need not come again
    WAIT            answered like the request of that number, once it is decided; with `true` for its result where the
                    asker had its position and nothing more is remembered

I1  A notice is part of the state: it survives every node, and is sent only when it is durable (P3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nun import messages as m
from nun.codec import pack
from nun.core import effects as fx
from nun.core.conflicts import ledger
from nun.core.history import position_from
from nun.core.levels import Level
from nun.core.requests.views import check_patience
from nun.core.stream import PendingEntry
from nun.errors import BadRequest, LevelNotReached, OutcomeExpired, Overloaded
from nun.limits import OUTCOMES_SEEN_MAX, WAITS_MAX
from nun.position import Position

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.requests.sessions import Session
    from nun.core.state import Row

Handler = Callable[["Session", list[Any]], None]
Asked = tuple[bytes, int, int, Level]  # routing id, token, number of the WAIT, what it waits for


class Outcomes:
    """The handlers of OUTCOMES, OUTCOMES_SEEN and WAIT."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._waiting: dict[tuple[bytes, int], list[Asked]] = {}

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler)."""
        return {
            m.OUTCOMES: (3, self.outcomes),
            m.OUTCOMES_SEEN: (5, self.seen),
            m.WAIT: (7, self.wait),
        }

    # Notices

    def outcomes(self, session: Session, message: list[Any]) -> None:
        """Begins to send notices."""
        core = self._core
        session.outcomes = True
        entry = core.stream.newest()
        core.reply(session, message[2], None, waits_for=entry)
        for op_id, notice in core.state.notices.get(session.client_id, {}).items():
            self._send(entry, session.peer, op_id, notice)

    def push(self, entry: PendingEntry, client_id: bytes, op_id: int, notice: bytes) -> None:
        """A notice has come: it goes to the sessions of its client that are here, when it is durable."""
        for session in self._core.sessions.values():
            if session.outcomes and session.client_id == client_id:
                self._send(entry, session.peer, op_id, notice)

    def _send(self, entry: PendingEntry | None, peer: bytes, op_id: int, notice: bytes) -> None:
        frame = pack((m.OUTCOME, op_id, ledger.whole(self._core, notice)))
        if entry is None:
            self._core.send(peer, frame)
        else:
            entry.replies.append((peer, frame))

    def seen(self, session: Session, message: list[Any]) -> None:
        """The client has dealt with these."""
        _, _, number, floor, op_ids = message
        core = self._core
        if (
            not isinstance(op_ids, list)
            or len(op_ids) > OUTCOMES_SEEN_MAX
            or not all(type(op_id) is int and 0 <= op_id < 2**64 for op_id in op_ids)
        ):
            raise BadRequest(f"seen outcomes are an array of at most {OUTCOMES_SEEN_MAX} op ids")
        row = core.begin_write(session, number, floor)
        if row is None:
            core.stream.add((fx.SEEN, session.client_id, op_ids))
            entry = core.outcome(session, number, floor, 0, 0, None)
            core.reply(session, number, None, position=entry.position, waits_for=entry)
        else:
            waits_for = core.stream.at(row.position.seq)
            core.reply(session, number, None, position=row.position, waits_for=waits_for)

    # Waiting for a request

    def wait(self, session: Session, message: list[Any]) -> None:
        """Answers what became of a request of this client, when it is decided."""
        _, _, number, wanted, level, patience_ms, told = message
        core = self._core
        if type(wanted) is not int or type(patience_ms) is not int:
            raise BadRequest("wait takes the number of a request, a level and a patience")
        checked = core.levels.check(level, len(core.state.members))
        deadline_ns = core.now_ns + check_patience(patience_ms) * 1_000_000
        asked = (session.peer, session.token, number, Level(checked, deadline_ns))
        client = core.state.clients.get(session.client_id)
        row = client.rows.get(wanted) if client is not None else None
        if row is not None:
            self._answer(asked, row)
            return
        if told is not None and self._is_past(asked, _position(told)):
            return
        if client is not None and wanted < client.floor:
            raise OutcomeExpired(f"what became of request {wanted} is no longer remembered")
        if sum(map(len, self._waiting.values())) >= WAITS_MAX:
            raise Overloaded("too many wait for outcomes", limit="WAITS_MAX", retry_after_ms=1_000)
        self._waiting.setdefault((session.client_id, wanted), []).append(asked)

    def _is_past(self, asked: Asked, position: Position) -> bool:
        """Answers for a request that was decided at a position, when its row is gone and that entry has come."""
        core = self._core
        state = core.state
        peer, _, number, level = asked
        if state.position is None or position.seq > state.position.seq:
            return False
        if not state.in_history(position):
            text = f"{position} was cut off by a change of primary: what it did is proposed again"
            raise LevelNotReached(text, level="local")
        session = core.sessions[peer]
        waits_for = core.stream.at(position.seq)
        before, core.level = core.level, level
        core.reply(session, number, True, position=position, waits_for=waits_for)
        core.level = before
        return True

    def decided(self, effects: Sequence[fx.Effect]) -> None:
        """Requests were decided: whoever waits for one of them is answered."""
        if not self._waiting:
            return
        for effect in effects:
            if effect[0] == fx.OUTCOME:
                asked = self._waiting.pop((effect[1], effect[2]), None)
                client = self._core.state.clients.get(effect[1])
                row = client.rows.get(effect[2]) if client is not None else None
                for one in asked or ():
                    if row is not None:
                        self._answer(one, row)

    def _answer(self, asked: Asked, row: Row) -> None:
        peer, token, number, level = asked
        core = self._core
        session = core.sessions.get(peer)
        if session is None or session.token != token:
            return
        result = row.result
        if row.status:
            text, *key = result if isinstance(result, list) else ["it was refused"]
            result = [text, {"key": key[0], "conflict": row.op_id} if key and row.op_id else {}]
        before, core.level = core.level, level
        core.reply(
            session,
            number,
            result,
            status=row.status,
            position=row.position,
            op_id=row.op_id,
            waits_for=core.stream.at(row.position.seq),
        )
        core.level = before

    def tick(self) -> None:
        """Answers who has waited long enough."""
        core = self._core
        for key, waiting in list(self._waiting.items()):
            left = [asked for asked in waiting if asked[3].deadline_ns > core.now_ns]
            for peer, _, number, _ in waiting:
                if all(peer != asked[0] or number != asked[2] for asked in left):
                    text = f"request {key[1]} is not decided yet"
                    core.refuse(peer, number, LevelNotReached(text, level="decided"))
            if left:
                self._waiting[key] = left
            else:
                del self._waiting[key]


def _position(told: Any) -> Position:
    try:
        found = position_from(told)
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise BadRequest("wait takes the position of the request, or nil")
    return found
