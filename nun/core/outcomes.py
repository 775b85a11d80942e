"""What became of losing writes, told to whose they were; and waiting for what becomes of a request.

    OUTCOMES        a session wants the notices of its client id: those that wait, and those to come
    OUTCOME         one notice; it comes again in every session until it is seen
    OUTCOMES_SEEN   a write: these need not come again
    WAIT            answered like the request of that number, once it is decided

I1  A notice is part of the state: it survives every node, and is sent only when it is durable (P3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nun import messages as m
from nun.codec import pack
from nun.core import effects as fx
from nun.core.levels import Level
from nun.core.stream import PendingEntry
from nun.core.views import check_patience
from nun.errors import BadRequest, LevelNotReached, Overloaded
from nun.limits import OUTCOMES_SEEN_MAX, WAITS_MAX

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.sessions import Session
    from nun.core.state import Row

Handler = Callable[["Session", list[Any]], None]


class Outcomes:
    """The handlers of OUTCOMES, OUTCOMES_SEEN and WAIT."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._waiting: dict[tuple[bytes, int], list[tuple[bytes, int, int, Level]]] = {}

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler)."""
        return {
            m.OUTCOMES: (3, self.outcomes),
            m.OUTCOMES_SEEN: (5, self.seen),
            m.WAIT: (6, self.wait),
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
        frame = pack((m.OUTCOME, op_id, notice))
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
        _, _, number, wanted, level, patience_ms = message
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
        if sum(map(len, self._waiting.values())) >= WAITS_MAX:
            raise Overloaded("too many wait for outcomes", limit="WAITS_MAX", retry_after_ms=1_000)
        self._waiting.setdefault((session.client_id, wanted), []).append(asked)

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

    def _answer(self, asked: tuple[bytes, int, int, Level], row: Row) -> None:
        peer, token, number, level = asked
        core = self._core
        session = core.sessions.get(peer)
        if session is None or session.token != token:
            return
        core.level = level
        result = row.result
        if row.status:
            text, *_ = result if isinstance(result, list) else ["it was refused"]
            result = [text, {}]
        core.reply(
            session,
            number,
            result,
            status=row.status,
            position=row.position,
            op_id=row.op_id,
            waits_for=core.stream.at(row.position.seq),
        )

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
