"""Requests that begin, feed and end watches. What watches are sent is decided in nun/core/requests/watching.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nun import messages as m
from nun.errors import BadRequest, Overloaded
from nun.position import Position

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.requests.sessions import Session

Handler = Callable[["Session", list[Any]], None]


class WatchRequests:
    """The handlers of WATCH, CREDIT and UNWATCH."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler)."""
        return {
            m.WATCH: (8, self._watch),
            m.CREDIT: (5, self._credit),
            m.UNWATCH: (4, self._unwatch),
        }

    def _watch(self, session: Session, message: list[Any]) -> None:
        _, _, number, database, scope, key, since, credit = message
        _, rights = self._core.grant(session, database)
        if scope not in (m.WATCH_KEY, m.WATCH_PREFIX, m.WATCH_ALL) or not isinstance(key, bytes):
            raise BadRequest("a watch has a scope (1 key, 2 prefix, 3 all) and a key or prefix")
        if type(credit) is not int or credit <= 0:
            raise BadRequest("the credit of a watch is a positive number of bytes")
        if scope == m.WATCH_KEY:
            rights.check("r", key)
        for name, count in (
            ("watches_per_session_max", len(session.watches)),
            ("watches_max", len(self._core.watches)),
        ):
            if count >= getattr(self._core.settings, name):
                raise Overloaded(f"{count} watches are open", limit=name, retry_after_ms=1_000)
        self._core.settle()
        position = self._position(since)
        watch = self._core.watches.begin(
            session.peer, session.token, (database, scope, key, rights), position, credit
        )
        session.watches[watch.number] = watch
        durable = self._core.stream.durable_seq
        epoch = self._core.state.epoch_of(durable) or self._core.stream.epoch
        self._core.reply(session, number, watch.number, position=Position.at(epoch, durable))
        self._core.watches.start(watch, position)

    @staticmethod
    def _position(since: Any) -> Position | None:
        if since is None:
            return None
        match since:
            case [int(), int(), int(), int()] if all(0 <= part < 2**63 for part in since):
                return Position(*since)
        raise BadRequest("a position is [reign, node, start, seq]")

    def _credit(self, session: Session, message: list[Any]) -> None:
        _, _, _, watch, size = message
        if type(size) is not int or size <= 0:
            raise BadRequest("credit is a positive number of bytes")
        if type(watch) is not int:
            raise BadRequest("a watch is named by the number that asking for it gave")
        if watch in session.watches:
            self._core.settle()
            self._core.watches.credit(watch, size, self._core.now_ns)

    def _unwatch(self, session: Session, message: list[Any]) -> None:
        _, _, number, watch = message
        ended = type(watch) is int and session.watches.pop(watch, None) is not None
        if ended:
            self._core.watches.end(watch)
            self._core.watches.begin_copies()
        self._core.reply(session, number, ended)
