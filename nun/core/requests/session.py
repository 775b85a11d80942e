"""Requests that begin, keep and end sessions.

I1  A session ends with its connection, or when it says so; with it end its watches.
I2  Sessions that have been idle are sent a probe now and then: one whose connection is gone shows itself by that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun.codec import pack
from nun.core.requests.access import Visitor
from nun.core.requests.sessions import Session
from nun.errors import AuthError, BadRequest, Overloaded
from nun.limits import (
    ADDRESS_BYTES_MAX,
    CLIENT_ID_BYTES_MAX,
    SECRET_BYTES_MAX,
    SESSION_PROBE_S,
    SESSION_PROBE_WHEN_FULL_S,
)
from nun.version import VERSION

if TYPE_CHECKING:
    from nun.core.network import NetworkCore

Handler = Callable[[Session, list[Any]], None]

_PROBE: Final = pack((m.PROBE,))


class SessionRequests:
    """The handlers of HELLO, PING and BYE."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._probed_ns = core.now_ns

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler). HELLO comes before there is a session."""
        return {m.PING: (4, self._ping), m.BYE: (3, self._bye)}

    def hello(self, peer: bytes, message: list[Any]) -> None:
        self._core.metrics.requests[m.HELLO] += 1
        if len(message) not in (7, 8):
            raise BadRequest(f"hello is an array of 7, found {len(message)}")
        _, protocol, number, client_id, born, user, password = message[:7]
        if protocol != m.PROTOCOL_VERSION:
            raise BadRequest(
                f"protocol version {protocol!r} is not spoken here: expected {m.PROTOCOL_VERSION}"
            )
        if not isinstance(client_id, bytes) or not 0 < len(client_id) <= CLIENT_ID_BYTES_MAX:
            raise BadRequest(f"a client id is 1 to {CLIENT_ID_BYTES_MAX} bytes")
        if born is not None and (type(born) is not int or not 0 <= born < 2**64):
            raise BadRequest("`born` is nil or what the reply to a hello gave")
        address = self._core.origins.get(peer, "")
        if len(message) == 8:
            address = self._spoken_for(message[7])
        admin = user is not None and self._is_admin(user, password, address, client_id)
        previous = self._core.sessions.get(peer)
        if previous is not None:
            self.end(previous, "greeted again")
        elif len(self._core.sessions) >= self._core.settings.sessions_max:
            self.probe(SESSION_PROBE_WHEN_FULL_S)
            raise Overloaded(
                f"{len(self._core.sessions)} sessions are open",
                limit="sessions_max",
                retry_after_ms=1_000,
            )
        session = Session(peer, self._core.random(), client_id, self._core.random())
        session.address = address
        session.admin = admin
        session.highest_number = 0 if born is None else number
        session.born = self._core.stream.clock.reserve(self._core.unix_ms) if born is None else born
        session.last_seen_ns = self._core.now_ns
        self._core.sessions[peer] = session
        client = self._core.state.clients.get(client_id)
        next_number = 1
        if client is not None:
            next_number = max(client.floor, max(client.rows, default=0) + 1, 1)
        node = {
            "node": self._core.settings.name,
            "version": VERSION,
            "cluster_id": self._core.cluster_id,
            "role": self._core.roles.name,
            "primary": self._core.roles.primary,
            "primary_address": self._core.roles.primary_address,
        }
        self._core.reply(session, number, [session.token, session.born, next_number, node])

    def _spoken_for(self, origin: Any) -> str:
        """The address that this node's own gateway speaks for. Raises BadRequest to anybody else."""
        match origin:
            case [bytes() as secret, bytes() as address] if len(address) <= ADDRESS_BYTES_MAX:
                known = self._core.settings.gateway_secret
                if known and self._core.doorkeeper.same(secret, known):
                    return address.decode("utf-8", "replace")
        raise BadRequest("hello is an array of 7: only a node's own gateway speaks for others")

    def _is_admin(self, user: Any, password: Any, address: str, client_id: bytes) -> bool:
        for what, given in (("user", user), ("password", password)):
            if not isinstance(given, bytes) or len(given) > SECRET_BYTES_MAX:
                raise BadRequest(f"a {what} is a text of at most {SECRET_BYTES_MAX} bytes")
        name = f"administrator {user[:64].decode('utf-8', 'replace')!r}"
        visitor = Visitor(name, address, client_id)
        doorkeeper = self._core.doorkeeper
        doorkeeper.admit(visitor, self._core.now_ns)
        same = doorkeeper.same
        good_user = same(user, self._core.settings.admin_user.encode())
        good_password = same(password, self._core.settings.admin_password.encode())
        if not (good_user and good_password):
            doorkeeper.failed(visitor, self._core.now_ns)
            self._core.out.notes.append(
                ("administrator_refused", {"user": name, "address": address})
            )
            raise AuthError(f"wrong password, or no such user: {name}")
        doorkeeper.succeeded(visitor)
        return True

    def _ping(self, session: Session, message: list[Any]) -> None:
        _, _, number, receipt = message
        if receipt is not None and (type(receipt) is not int or not session.clear(receipt)):
            raise BadRequest("this receipt was not given, or was shown before")
        if number:
            self._core.reply(session, number, None)

    def _bye(self, session: Session, message: list[Any]) -> None:
        if message[2]:
            self._core.reply(session, message[2], None)
        self.end(session, "bye")

    def end(self, session: Session, why: str) -> None:
        for number in session.watches:
            self._core.watches.end(number)
        del self._core.sessions[session.peer]
        self._core.arbitration.session_ended(session)
        self._core.watches.begin_copies()
        self._core.out.notes.append(
            ("session_ended", {"why": why, "client": session.client_id.hex()})
        )

    def tick(self) -> None:
        """Probes idle sessions."""
        if self._core.now_ns >= self._probed_ns + SESSION_PROBE_S * 1_000_000_000:
            self.probe(SESSION_PROBE_S)

    def probe(self, idle_s: int) -> None:
        """Sends something to sessions that have been idle so long, once in that time: those that are gone show."""
        if self._core.now_ns < self._probed_ns + idle_s * 1_000_000_000:
            return
        self._probed_ns = self._core.now_ns
        for session in self._core.sessions.values():
            if session.last_seen_ns < self._core.now_ns - idle_s * 1_000_000_000:
                self._core.send(session.peer, _PROBE)
