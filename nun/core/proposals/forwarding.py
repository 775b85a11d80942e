"""Proposals: requests that one node takes and the primary decides.

On a node that is not the primary, `Forwarding` hands what changes data to the replicator and gives the reply to the
client once the entry that it speaks of is shown here too: whoever wrote through a node reads its own writes there. On
the primary, `Proposals` decides them as if a client of its own had asked, in order, and sends the replies back.

    body of an item      [number of the item before it, its number, verdict, seen, the item]
        verdict, seen    what its node knows of the request, having seen the history up to that position: see
                         nun/core/proposals/repeats.py; the item: nun/core/proposals/outbox.py
    body of a proposal   [message, level, client id, born, again, admin, user, first op id, [at, bound]]
        message          the client's request; its floor as a plain number
        level            nil or [level, patience_ms]
        again            whether the client has used this number before, as far as the taking node knows
        user             who asks, in the database that the message names; nil for requests of administrators
        first op id      stamped where the request was taken; of a batch the i-th is `first + i * TICK`
        at, bound        when that was, by the primary's clock, and how far that may be wrong (ms)

I1  A proposal that may have been lost is made again, to whoever is primary then: its request id makes that harmless.
I2  A proposal is open until its reply has come, its session has ended, or it is too old; their bytes are bounded.
I3  A reply speaks of an entry of this node's history, or of none. Where a change of primary has cut that entry off, the
    request is proposed again.
I4  No two lives of a node give the same ticket: the reply to an earlier one's may be under way still, and would be
    taken for the answer to another client's request.
I5  What was never sent to any primary is refused after a while; of what was sent nobody here can say what became of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import enclosed, pack, unpack
from nun.core.clock import unix_ms_of
from nun.core.levels import Level
from nun.core.requests.sessions import Session
from nun.errors import BadRequest, NoPrimary, Overloaded, WireError
from nun.limits import (
    FORWARDED_AGAIN_MS,
    FORWARDED_KEPT_S,
    NO_PRIMARY_PATIENCE_MS,
    RECEIPT_ABOVE_BYTES,
)
from nun.position import Position

if TYPE_CHECKING:
    from nun.core.network import NetworkCore

_VIRTUAL: Final = b"\0proposal"  # no routing id of a ROUTER begins so: those are 0 and four bytes, or a client's choice
_MS_NS: Final = 1_000_000
_ITEM_PARTS: Final = 5
_TICKET_BITS: Final = 32  # of requests in one life; the start of the node above them
RETRY_AFTER_MS: Final = 50


@dataclass(slots=True)
class _Open:
    """A request that was handed on and is not answered."""

    peer: bytes
    token: int
    number: int
    body: bytes
    since_ns: int
    proposed_ns: int | None = None  # when it was last handed to the replicator
    sent: bool = False


@dataclass(order=True, slots=True)
class _Arrived:
    """A reply that waits for its entry to be shown here."""

    seq: int
    ticket: int
    position: Position | None = field(compare=False)
    open: _Open = field(compare=False)
    frame: bytes = field(compare=False)


class Forwarding:
    """What this node's clients asked for and the primary is to decide."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._open: dict[int, _Open] = {}
        self._arrived: list[_Arrived] = []
        self._tickets = core.start << _TICKET_BITS
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    def forward(self, session: Session, message: list[Any], user: bytes | None) -> None:
        """Hands a request on. Raises Overloaded."""
        core = self._core
        if self._bytes > core.settings.pending_bytes_max:
            raise Overloaded(
                f"{self._bytes} bytes wait for the primary",
                limit="pending_bytes_max",
                retry_after_ms=RETRY_AFTER_MS,
            )
        number = message[2]
        level = core.level
        told = None if level is None else [level.level, (level.deadline_ns - core.now_ns) // _MS_NS]
        again = number <= session.highest_number
        session.highest_number = max(session.highest_number, number)
        stamp = core.stream.clock.reserve(core.unix_ms, max(operations_of(message), 1))
        body = pack(
            (
                message,
                told,
                session.client_id,
                session.born,
                again,
                session.admin,
                user,
                stamp,
                core.stamped_at(session),
            )
        )
        self._tickets += 1
        self._open[self._tickets] = _Open(session.peer, session.token, number, body, core.now_ns)
        self._bytes += len(body)
        if core.roles.primary is not None:
            self._propose([self._tickets])

    def primary_changed(self) -> None:
        """Another primary, the same one anew, or none: whatever is open may have been lost."""
        if self._core.roles.primary is not None:
            self._propose(list(self._open))

    def take_open(self) -> list[tuple[int, bytes]]:
        """All that is open, for a node that has become primary itself; what its history has not is open again."""
        arrived, self._arrived = self._arrived, []
        for one in arrived:
            if self._stands(one):
                heapq.heappush(self._arrived, one)
            else:
                self._open_again(one)
        for open in self._open.values():
            if open.sent:  # the primary before may have decided it
                self._mark_again(open)
            open.sent = True
        return [(ticket, open.body) for ticket, open in self._open.items()]

    def _propose(self, tickets: Sequence[int]) -> None:
        core = self._core
        for ticket in tickets:
            self._open[ticket].proposed_ns = core.now_ns
            if self._open[ticket].sent:
                self._mark_again(self._open[ticket])
            self._open[ticket].sent = True
        bodies = [[ticket, self._open[ticket].body] for ticket in tickets]
        if bodies:
            core.out.to_replicator.append((pm.PROPOSE, bodies))

    @staticmethod
    def _mark_again(open: _Open) -> None:
        """From now on the proposal says that it is not the first of its number."""
        parts = unpack(open.body)
        parts[4] = True
        open.body = pack(parts)

    def answered(self, replies: Sequence[tuple[int, bytes]]) -> None:
        """Replies of the primary, as (ticket, frame)."""
        core = self._core
        for ticket, frame in replies:
            open = self._open.get(ticket)
            try:
                status, _, _, told, *_ = unpack(frame)
                position = None if told is None else Position(*told)
            except (WireError, ValueError, TypeError):
                continue
            if open is None or status == NoPrimary.code:
                continue  # a node that is no longer the primary decides nothing: it is proposed again
            self._drop(ticket)
            seq = 0 if position is None else position.seq
            arrived = _Arrived(seq, ticket, position, open, frame)
            if seq <= core.stream.durable_seq:
                self._give(arrived)
            else:
                heapq.heappush(self._arrived, arrived)

    def shown(self, seq: int) -> None:
        """Everything up to this entry is shown here."""
        while self._arrived and self._arrived[0].seq <= seq:
            self._give(heapq.heappop(self._arrived))

    def _give(self, arrived: _Arrived) -> None:
        if not self._stands(arrived):
            self._open_again(arrived)
            return
        open = arrived.open
        session = self._core.sessions.get(open.peer)
        if session is None or session.token != open.token:
            return
        frame = arrived.frame
        if len(frame) > RECEIPT_ABOVE_BYTES:
            frame = enclosed(frame, m.RECEIPT, session.owe(len(frame)))
        self._core.send(open.peer, frame)

    def _stands(self, arrived: _Arrived) -> bool:
        """Whether the entry that a reply speaks of is in this node's history."""
        state, position = self._core.state, arrived.position
        if position is None or state.epoch_of(position.seq) is None:  # so old that nothing tells
            return True
        return state.in_history(position)

    def _open_again(self, arrived: _Arrived) -> None:
        self._mark_again(arrived.open)
        arrived.open.proposed_ns = self._core.now_ns  # `tick` will, in a while
        self._open[arrived.ticket] = arrived.open
        self._bytes += len(arrived.open.body)

    def tick(self) -> None:
        """Proposes again what was not answered for a while; gives up what nobody waits for any more."""
        core = self._core
        again: list[int] = []
        for ticket, open in list(self._open.items()):
            session = core.sessions.get(open.peer)
            age_ns = core.now_ns - open.since_ns
            if session is None or session.token != open.token or age_ns > FORWARDED_KEPT_S * 10**9:
                self._drop(ticket)
            elif open.proposed_ns is None and age_ns > NO_PRIMARY_PATIENCE_MS * _MS_NS:
                self._drop(ticket)
                error = NoPrimary("no primary can be reached from this node", retry_after_ms=1_000)
                core.refuse(open.peer, open.number, error)
            elif open.proposed_ns is None or (
                core.now_ns - open.proposed_ns > FORWARDED_AGAIN_MS * _MS_NS
            ):
                again.append(ticket)
        if again and core.roles.primary is not None:
            self._propose(again)

    def _drop(self, ticket: int) -> None:
        self._bytes -= len(self._open.pop(ticket).body)


class Proposals:
    """What other nodes' clients asked for, on the primary.

    Attributes:
        sessions: by the routing id that stands for a proposal while it is being decided.
    """

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self.sessions: dict[bytes, Session] = {}

    def take(self, proposals: Sequence[Any]) -> None:
        """Decides [origin number, ticket, body] each, in order. Malformed ones are refused."""
        core = self._core
        for proposal in proposals:
            match proposal:
                case [int() as origin, int() as ticket, bytes() as body]:
                    peer = _VIRTUAL + origin.to_bytes(2, "little") + ticket.to_bytes(8, "little")
                    core.turn_bytes += len(body)
                    self._decide(peer, body)
        core.turn_bytes = 0
        core.close()

    def _decide(self, peer: bytes, body: bytes) -> None:
        core = self._core
        try:
            parts = unpack(body)
            if len(parts) == _ITEM_PARTS:
                if core.decides:
                    origin = int.from_bytes(peer[len(_VIRTUAL) : len(_VIRTUAL) + 2], "little")
                    core.items.decide(origin, *parts)
                return  # what became of it shows in the stream
            session, message, level = self._session(peer, parts)
        except (WireError, ValueError, TypeError):
            self.sessions[peer] = Session(peer, 0, b"", 0)
            core.refuse(peer, 0, BadRequest("a proposal is an array of nine"))
            return
        self.sessions[peer] = session
        if not core.decides:
            core.refuse(
                peer, message[2], NoPrimary("it is not the primary", retry_after_ms=RETRY_AFTER_MS)
            )
        elif unix_ms_of(session.stamp) > core.unix_ms + core.settings.max_clock_offset_ms:
            ahead = unix_ms_of(session.stamp) - core.unix_ms
            core.refuse(
                peer,
                message[2],
                BadRequest(
                    f"the clock of the node that took this is {ahead} ms ahead: expected at most "
                    f"max_clock_offset_ms = {core.settings.max_clock_offset_ms}"
                ),
            )
        else:
            core.level = level
            core.handle(session, message)
            core.level = None

    def _session(self, peer: bytes, parts: list[Any]) -> tuple[Session, list[Any], Level | None]:
        core = self._core
        message, told, client_id, born, again, admin, user, stamp, (at_ms, bound_ms) = parts
        session = Session(peer, 0, client_id, 0)
        session.virtual = True
        session.born = born
        session.admin = admin
        session.stamp = stamp
        session.stamped_at = (at_ms, bound_ms)
        number = message[2]
        session.highest_number = number if again else 0
        if user is not None:
            database = message[4]
            if database in core.tables:
                session.grants[database] = (user, core.rights.of(database, user, admin))
        level = None if told is None else Level(told[0], core.now_ns + told[1] * _MS_NS)
        return session, message, level

    def split(self, sends: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Takes the replies to proposals out of what is to be sent, and hands them to the replicator."""
        if not self.sessions:
            return sends
        mine = [(peer, frame) for peer, frame in sends if peer.startswith(_VIRTUAL)]
        if not mine:
            return sends
        core = self._core
        away: list[list[Any]] = []
        here: list[tuple[int, bytes]] = []
        for peer, frame in mine:
            self.sessions.pop(peer, None)
            origin = int.from_bytes(peer[len(_VIRTUAL) : len(_VIRTUAL) + 2], "little")
            ticket = int.from_bytes(peer[len(_VIRTUAL) + 2 :], "little")
            if origin == core.number:
                here.append((ticket, frame))
            else:
                away.append([origin, ticket, frame])
        if away:
            core.out.to_replicator.append((pm.DECISIONS, away))
        rest = [send for send in sends if not send[0].startswith(_VIRTUAL)]
        if here:
            core.out.sends = []  # it was the list that was taken apart above
            core.forwarding.answered(here)
            rest += core.out.sends
            core.out.sends = []
        return rest


def item_body(previous: int, number: int, verdict: int, seen: Position, item: bytes) -> bytes:
    """The body of a proposal that is an item of this node's outbox."""
    return pack((previous, number, verdict, seen, item))


def operations_of(message: Sequence[Any]) -> int:
    """How many operations a request has, so many op ids it takes."""
    kind = message[0]
    if kind == m.BATCH:
        kinds = message[6]
        return len(kinds) if type(kinds) is bytes else 0
    if kind == m.SET_MANY:
        payload = message[5]
        return _first_length(payload) if type(payload) is bytes else 0
    return 1


def _first_length(payload: bytes) -> int:
    """The length of the first array in the msgpack bytes of `[keys, values]`; 0 where that is something else."""
    head = payload[1] if len(payload) > 1 else 0
    if 0x90 <= head <= 0x9F:
        return head & 0x0F
    if head == 0xDC:
        return int.from_bytes(payload[2:4], "big")
    if head == 0xDD:
        return min(int.from_bytes(payload[2:6], "big"), len(payload))
    return 0
