"""Requests about the cluster: what the other nodes are, and a change of primary. The replicator answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nun import messages as m
from nun import peer_messages as pm
from nun.errors import BadRequest, NodeFault, PermissionDenied, from_wire
from nun.limits import NAME_BYTES_MAX

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.requests.sessions import Session

Handler = Callable[["Session", list[Any]], None]

PATIENCE_NS = 30_000_000_000


class ClusterRequests:
    """The handlers of CLUSTER and PROMOTE."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._tickets = 0
        self._asked: dict[int, tuple[bytes, int, int, int]] = {}  # -> peer, token, number, since

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler)."""
        return {
            m.CLUSTER: (3, self.describe),
            m.PROMOTE: (5, self.promote),
            m.CHECK: (4, self.check),
        }

    def describe(self, session: Session, message: list[Any]) -> None:
        """What is known of every member."""
        self._admin(session)
        if self._core.settings.clustered:
            self._ask(session, message[2], lambda ticket: (pm.ASK_CLUSTER, ticket))
        else:
            self._core.reply(session, message[2], [self._alone()])

    def promote(self, session: Session, message: list[Any]) -> None:
        """Makes a node the primary."""
        _, _, number, name, force = message
        self._admin(session)
        if type(name) is not bytes or not 0 < len(name) <= NAME_BYTES_MAX:
            raise BadRequest(f"the name of a node is a text of 1 to {NAME_BYTES_MAX} bytes")
        if type(force) is not bool:
            raise BadRequest("force is true or false")
        if not self._core.settings.clustered:
            raise BadRequest("this node is not one of a cluster: its replication.listen is not set")
        self._ask(session, number, lambda ticket: (pm.PROMOTE_ASKED, ticket, name, force))

    def check(self, session: Session, message: list[Any]) -> None:
        """Has every node make digests of what it holds; `cluster` shows them when they are there."""
        _, _, number, floor = message
        self._admin(session)
        core = self._core
        row = core.begin_write(session, number, floor)
        if row is not None:
            waits_for = core.stream.at(row.position.seq)
            core.reply(session, number, None, position=row.position, waits_for=waits_for)
            return
        core.digests.decide()
        entry = core.outcome(session, number, floor, 0, 0, None)
        core.reply(session, number, None, position=entry.position, waits_for=entry)

    def answered(self, message: Sequence[Any]) -> None:
        """The replicator's answer to one of these."""
        kind, ticket = message[0], message[1]
        asked = self._asked.pop(ticket, None)
        core = self._core
        session = core.sessions.get(asked[0]) if asked is not None else None
        if asked is None or session is None or session.token != asked[1]:
            return
        if kind == pm.CLUSTER_IS:
            core.reply(session, asked[2], message[2])
            return
        _, _, status, text, fields = message
        if status:
            error = from_wire(
                status, text.decode(), {_text(name): value for name, value in fields.items()}
            )
            core.refuse(session.peer, asked[2], error)
        else:
            core.reply(session, asked[2], fields)

    def tick(self) -> None:
        """Gives up what the replicator does not answer: it may have been started anew."""
        core = self._core
        for ticket, (peer, _, number, since_ns) in list(self._asked.items()):
            if core.now_ns - since_ns > PATIENCE_NS:
                del self._asked[ticket]
                core.refuse(peer, number, NodeFault("the replicator did not answer"))

    def _ask(
        self, session: Session, number: int, question: Callable[[int], tuple[Any, ...]]
    ) -> None:
        self._tickets += 1
        self._asked[self._tickets] = (session.peer, session.token, number, self._core.now_ns)
        self._core.out.to_replicator.append(question(self._tickets))

    def _alone(self) -> dict[str, Any]:
        """The one member of a cluster without replication."""
        core = self._core
        last = core.digests.last
        return {
            "name": core.settings.name,
            "number": core.number,
            "address": core.settings.address,
            "gateway": None,
            "role": core.roles.name,
            "epoch": str(core.stream.epoch),
            "position": str(core.state.position),
            "durable": core.local_durable,
            "lag_entries": 0,
            "lag_bytes": 0,
            "lag_ms": 0,
            "link": "self",
            "clock_offset_ms": 0.0,
            "clock_bound_ms": 0.0,
            "self": True,
            "digests": None if last is None else last[1],
            "digests_at": None if last is None else str(last[0]),
            "problem": None,
        }

    def _admin(self, session: Session) -> None:
        if not session.admin:
            raise PermissionDenied("this is for administrators")


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
