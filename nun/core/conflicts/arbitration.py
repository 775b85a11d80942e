"""Requests of arbiters, and the talk with the conflict manager.

    CLAIM       an arbiter asks for a key in conflict; answered when there is one, or with nil after its patience; with
                a lease of 0 it wants none, and only says that it is there
    RESOLVE     closes the entries that it names; with an attempt only while that claim lasts
    RELEASE     gives a claim back
    CONFLICTS   a page of the ledger

Arbiters connect to any node; what they ask is handed to the primary like a write, so that claims are in one place: the
primary's conflict manager. The manager knows keys and claims; what an arbiter is shown is read here.

I1  What an arbiter is shown is durable when it gets it (P3).
I2  A request that waits for the manager is answered once, by what the manager says, or refused when this node ceases to
    be the primary; asked again meanwhile, it is the same request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nun import messages as m
from nun.core import record
from nun.core.conflicts import ledger
from nun.core.conflicts.ledger import Write
from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX, hidden_bytes, key_and_op_id
from nun.core.conflicts.queues import Queue
from nun.core.levels import Level
from nun.core.record import ABSENT
from nun.core.requests.arguments import check_key, check_value
from nun.core.requests.views import check_patience
from nun.errors import BadRequest, ClaimLost, NoPrimary, Overloaded, RequestError
from nun.limits import (
    CLAIM_BYTES_MAX,
    CLAIM_ENTRIES_MAX,
    CLAIMS_WAITING_MAX,
    CLIENT_ID_BYTES_MAX,
    KEYS_PAGE_MAX,
    KEYS_SCAN_MAX,
    LEASE_MS_MAX,
    MANAGER_HEARD_EVERY,
    MANAGER_UNHEARD_MAX,
)

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.requests.sessions import Session
    from nun.core.state import Row

Handler = Callable[["Session", list[Any]], None]


@dataclass(slots=True)
class _Waiting:
    """A request that waits for the conflict manager."""

    peer: bytes
    token: int
    client_id: bytes
    message: list[Any]
    attempt: int
    level: Level | None
    skipped: list[bytes] = field(default_factory=list)


class Arbitration:
    """See the module's docstring."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._tickets = 0
        self._waiting: dict[int, _Waiting] = {}
        self._asked: dict[tuple[bytes, int], int] = {}  # (client id, number) -> ticket
        self._arbiters: dict[bytes, dict[bytes, tuple[int, bytes]]] = {}
        # client id -> its arbiters here -> database and user
        self._unheard = 0  # messages that the manager has not told to have heard
        self._behind = False  # something was not told

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler)."""
        return {
            m.CLAIM: (8, self.claim),
            m.RESOLVE: (11, self.resolve),
            m.RELEASE: (8, self.release),
            m.CONFLICTS: (8, self.conflicts),
        }

    # What the manager is told

    def _tell_manager(self, message: tuple[Any, ...]) -> None:
        """Tells the manager, unless so much waits for it that it is told all anew when it has caught up."""
        if self._unheard < MANAGER_UNHEARD_MAX:
            self._unheard += 1
            self._core.out.to_manager.append(message)
        else:
            self._behind = True

    def _heard(self, count: int) -> None:
        self._unheard = max(self._unheard - count, 0)
        if self._behind and self._unheard < MANAGER_HEARD_EVERY:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """A manager that knows nothing, or not all: claims of its earlier life are over."""
        self._behind = False
        self._unheard = 0
        self._core.conflicts.arbiters = {}
        if self._core.decides:
            self._tell_all()
            for ticket, waiting in self._waiting.items():
                self._ask(ticket, waiting)
        else:
            self._tell_manager((m.CONFLICTS_ARE, []))

    def began(self) -> None:
        """This node decides from now on."""
        self._core.conflicts.arbiters = {}
        self._tell_all()

    def ended(self) -> None:
        """This node decides nothing more."""
        for ticket in list(self._waiting):
            waiting = self._take(ticket)
            session = self._session(waiting)
            if session is not None and waiting is not None:
                error = NoPrimary("this node is no longer the primary", retry_after_ms=50)
                self._core.refuse(session.peer, waiting.message[2], error)
        self._tell_manager((m.CONFLICTS_ARE, []))

    def _tell_all(self) -> None:
        conflicts = self._core.conflicts
        found = [
            (queue.entries[0].opened_ms, database, key, queue)
            for database, queues in conflicts.queues.items()
            for key, queue in queues.items()
        ]
        found.sort(key=lambda one: one[:3])
        told = [
            [database, key, len(queue.shown), conflicts.deadline_ms(database, opened_ms)]
            for opened_ms, database, key, queue in found
        ]
        self._tell_manager((m.CONFLICTS_ARE, told))

    def options_changed(self) -> None:
        """Deadlines may have changed."""
        for database, queues in self._core.conflicts.queues.items():
            for key, queue in queues.items():
                self.changed(database, key, queue, closed=False)

    def changed(self, database: int, key: bytes, queue: Queue, *, closed: bool) -> None:
        """Entries joined a queue, or were closed."""
        deadline = 0
        if queue.entries:
            deadline = self._core.conflicts.deadline_ms(database, queue.entries[0].opened_ms)
        told = (m.CONFLICT_IS, database, key, len(queue.shown), deadline, closed)
        self._tell_manager(told)

    def came(self, session: Session, message: list[Any]) -> None:
        """An arbiter asks at this node."""
        database, arbiter = message[4], message[5]
        if type(arbiter) is bytes:
            known = self._arbiters.setdefault(session.client_id, {})
            known[arbiter] = (database, session.grants[database][0])

    def went(self, session: Session, message: list[Any]) -> None:
        """An arbiter that asked at this node leaves."""
        arbiter, key = message[5], message[6]
        if type(arbiter) is bytes and not key:
            self._arbiters.get(session.client_id, {}).pop(arbiter, None)

    def session_ended(self, session: Session) -> None:
        """A client has left: its arbiters have too, and the primary is told at once."""
        core = self._core
        for arbiter, (database, user) in sorted(self._arbiters.pop(session.client_id, {}).items()):
            if core.decides:
                self._tell_manager((m.ARBITER_GONE, arbiter))
            elif core.roles.primary is not None:
                number = session.highest_number + 1
                message = [m.RELEASE, session.token, number, 0, database, arbiter, b"", 0]
                core.forwarding.forward(session, message, user)

    # What it says

    def manager_says(self, message: Sequence[Any]) -> None:
        """One message of the conflict manager."""
        core = self._core
        match message:
            case [m.MANAGER_UP]:
                self._begin_anew()
            case [m.HEARD, int() as count]:
                self._heard(count)
            case [m.ARBITERS_ARE, list() as counts]:
                core.conflicts.arbiters = dict(counts)
            case [m.OFFER, ticket, database, key, attempt]:
                self._offered(ticket, database, key, attempt)
            case [m.CLAIM_IS, ticket, good]:
                self._checked(ticket, good)
            case [m.EXPIRE, database, key]:
                if core.decides:
                    core.conflicts.expire(database, key)
        core.level = None
        core.close()

    # Waiting

    def _wait(self, session: Session, message: list[Any], attempt: int) -> None:
        asked = (session.client_id, message[2])
        ticket = self._asked.get(asked)
        if ticket is not None:  # asked again: over another connection, it may be
            waiting = self._waiting[ticket]
            waiting.peer, waiting.token = session.peer, session.token
            return
        if len(self._waiting) >= CLAIMS_WAITING_MAX:
            raise Overloaded(
                "too many arbiters wait", limit="CLAIMS_WAITING_MAX", retry_after_ms=1_000
            )
        self._tickets += 1
        waiting = _Waiting(
            session.peer, session.token, session.client_id, message, attempt, self._core.level
        )
        self._waiting[self._tickets] = waiting
        self._asked[asked] = self._tickets
        self._ask(self._tickets, waiting)

    def _ask(self, ticket: int, waiting: _Waiting) -> None:
        message = waiting.message
        told: tuple[Any, ...]
        if message[0] == m.CLAIM:
            _, _, _, _, database, arbiter, patience_ms, lease_ms = message
            told = (
                m.CLAIM_WANTED,
                ticket,
                arbiter,
                database,
                patience_ms,
                lease_ms,
                waiting.attempt,
                waiting.skipped,
            )
        else:
            told = (m.CLAIM_CHECK, ticket, message[4], message[5], waiting.attempt)
        self._tell_manager(told)

    def _take(self, ticket: int) -> _Waiting | None:
        waiting = self._waiting.pop(ticket, None)
        if waiting is not None:
            del self._asked[waiting.client_id, waiting.message[2]]
        return waiting

    def _session(self, waiting: _Waiting | None) -> Session | None:
        session = None if waiting is None else self._core.session_at(waiting.peer)
        if session is None or waiting is None or session.token != waiting.token:
            return None
        return session

    # Claims

    def claim(self, session: Session, message: list[Any]) -> None:
        _, _, _, _, database, arbiter, patience_ms, lease_ms = message
        self._core.grant(session, database)
        if type(arbiter) is not bytes or not 0 < len(arbiter) <= CLIENT_ID_BYTES_MAX:
            raise BadRequest(f"an arbiter is named by 1 to {CLIENT_ID_BYTES_MAX} bytes")
        if type(patience_ms) is not int or type(lease_ms) is not int:
            raise BadRequest("patience and lease are milliseconds")
        check_patience(patience_ms)
        if not 0 <= lease_ms <= LEASE_MS_MAX:
            raise BadRequest(f"a lease is 0 to {LEASE_MS_MAX} milliseconds, found {lease_ms}")
        attempt = self._core.stream.clock.reserve(self._core.unix_ms)
        if not session.virtual:
            self.came(session, message)
        self._wait(session, message, attempt)

    def release(self, session: Session, message: list[Any]) -> None:
        _, _, number, _, database, arbiter, key, attempt = message
        self._core.grant(session, database)
        if type(arbiter) is not bytes or type(key) is not bytes or type(attempt) is not int:
            raise BadRequest("a claim is given back by arbiter, key and attempt")
        self.went(session, message)
        told: tuple[Any, ...] = (m.CLAIM_RELEASED, arbiter, database, key, attempt)
        self._tell_manager(told if key else (m.ARBITER_GONE, arbiter))
        self._core.reply(session, number, None)

    def _offered(self, ticket: int, database: int, key: bytes | None, attempt: int) -> None:
        core = self._core
        waiting = self._waiting.get(ticket)
        session = self._session(waiting)
        if waiting is None or session is None:
            if waiting is not None:
                self._take(ticket)
                self._tell_manager((m.ARBITER_GONE, waiting.message[5]))
            return
        core.level = waiting.level
        if key is None:
            self._take(ticket)
            core.reply(session, waiting.message[2], None)
            return
        queue = core.conflicts.queue_of(database, key)
        try:
            _, rights = core.grant(session, database)
            allowed = rights.allows("a", key) and rights.allows("r", key)
        except RequestError as error:
            self._take(ticket)
            core.refuse(session.peer, waiting.message[2], error)
            return
        if queue is None or not allowed:
            # Not for this arbiter, or gone meanwhile: something else, perhaps.
            arbiter = waiting.message[5]
            self._tell_manager((m.CLAIM_RELEASED, arbiter, database, key, attempt))
            if not allowed:
                waiting.skipped.append(key)
            waiting.attempt = core.stream.clock.reserve(core.unix_ms)
            self._ask(ticket, waiting)
            return
        self._take(ticket)
        offer = [attempt, key, *self._shown(database, key, queue)]
        core.reply(session, waiting.message[2], offer, waits_for=core.stream.newest())

    def _shown(self, database: int, key: bytes, queue: Queue) -> list[Any]:
        """What an arbiter is shown of a key: [record or nil, its op id, version, entries, how many more]."""
        core = self._core
        held = core.tables[database].records[key]
        beneath = record.beneath(held)
        entries: list[Any] = []
        size = 0
        for one in queue.shown[:CLAIM_ENTRIES_MAX]:
            entry = core.ledger.read(database, key, one.op_id)
            write = ledger.write_in(database, entry)
            base = self._base_of(database, key, queue, write)
            size += one.size
            if entries and size > CLAIM_BYTES_MAX:
                break
            entries.append(
                [
                    write.op_id,
                    write.kind,
                    write.argument,
                    write.base,
                    base,
                    write.at_ms,
                    write.client_id,
                    write.request,
                ]
            )
        current = None if beneath is ABSENT else record.shown(beneath)
        op_id, version = record.op_id_of(held), record.version_of(held)
        return [current, op_id, version, entries, len(queue.entries) - len(entries)]

    def _base_of(self, database: int, key: bytes, queue: Queue, write: Write) -> bytes | None:
        """The record that a write was made on, where that is still known."""
        holder = queue.bases.get(write.base)
        if holder is None or not self._core.ledger.has(database, key, holder):
            return None
        shown = self._core.ledger.read(database, key, holder).get("base_value")
        if shown is None:
            return None
        return record.live(shown["version"], shown["op_id"], hidden_bytes(shown["value"]))

    # Resolutions

    def resolve(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, key, kind, value, shown, op_ids, attempt = message
        core = self._core
        _, rights = core.grant(session, database)
        check_key(key)
        rights.check("a", key)
        if kind not in (m.SET, m.REMOVE):
            raise BadRequest("a conflict is resolved by a set (6) or a remove (7)")
        if kind == m.SET:
            check_value(value)
        if (
            not isinstance(op_ids, list)
            or not all(
                type(op_id) is int and 0 <= op_id < 2**64 for op_id in (*op_ids, shown, attempt)
            )
            or not 0 < len(op_ids) <= CLAIM_ENTRIES_MAX
        ):
            raise BadRequest(
                f"a resolution names the op id that was shown, 1 to {CLAIM_ENTRIES_MAX} entries, and an attempt"
            )
        row = core.begin_write(session, number, floor)
        if row is not None:
            self._tell(session, number, row)
        elif attempt:
            self._wait(session, message, attempt)
        else:
            self._decide(session, message)

    def _checked(self, ticket: int, good: bool) -> None:
        waiting = self._take(ticket)
        session = self._session(waiting)
        if waiting is None or session is None:
            return
        message = waiting.message
        self._core.level = waiting.level
        try:
            row = self._core.begin_write(session, message[2], message[3], waited=True)
            if row is not None:
                self._tell(session, message[2], row)
            elif good:
                self._decide(session, message)
            else:
                shown = message[5].decode("utf-8", "replace")
                raise ClaimLost(f"key {shown!r}: this claim has ended", key=message[5])
        except RequestError as error:
            self._core.refuse(session.peer, message[2], error)

    def _decide(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, database, key, kind, value, shown, op_ids, _ = message
        core = self._core
        core.settle()
        core.conflicts.check_named(database, key, shown, op_ids)
        at_ms, bound_ms = core.stamped_at(session)
        op_id = core.stamp(session)
        argument = value if kind == m.SET else None
        resolution = Write(
            database, key, kind, argument, shown, op_id, at_ms, bound_ms, session.client_id, number
        )
        decider = session.client_id.hex()
        version, left = core.conflicts.resolve(resolution, shown, op_ids, decider)
        core.outcome(session, number, floor, 0, op_id, [version, left])
        row = core.state.clients[session.client_id].rows[number]
        self._tell(session, number, row)

    def _tell(self, session: Session, number: int, row: Row) -> None:
        self._core.reply(
            session,
            number,
            row.result if not row.status else [str(row.result[0]), {}],
            status=row.status,
            position=row.position,
            op_id=row.op_id,
            waits_for=self._core.stream.at(row.position.seq),
        )

    # Listing

    def conflicts(self, session: Session, message: list[Any]) -> None:
        _, _, number, database, state, key, limit, after = message
        core = self._core
        table, rights = core.grant(session, database)
        core.settle()
        if not all(part is None or type(part) is bytes for part in (state, key, after)):
            raise BadRequest(
                "conflicts takes a state, a key and an entry to go on after, each may be nil"
            )
        wanted = None if state is None else state.decode("utf-8", "replace")
        if wanted is not None and wanted not in ledger.STATES:
            raise BadRequest(f"state {wanted!r:.40}: expected one of {', '.join(ledger.STATES)}")
        if type(limit) is not int or limit < 1:
            raise BadRequest("the limit of conflicts is a positive integer")
        prefix = CONFLICT_PREFIX if key is None else CONFLICT_PREFIX + key + b"_"
        found: list[list[bytes]] = []
        size = 0
        last = None
        ordered = table.open_entries if wanted == ledger.OPEN else table.ordered
        for scanned, place in enumerate(ordered(after, prefix)):
            if (
                len(found) == min(limit, KEYS_PAGE_MAX)
                or scanned == KEYS_SCAN_MAX
                or size > CLAIM_BYTES_MAX
            ):
                core.reply(session, number, [found, last], waits_for=core.stream.newest())
                return
            if place == last:
                continue
            last = place
            packed = table.records.get(place)
            head = ledger.head_of(packed)
            if head is None or packed is None or (wanted is not None and head[0] != wanted):
                continue
            about = key_and_op_id(place)[0]
            if (key is None or about == key) and rights.allows("r", place):
                found.append([place, record.value_of(packed)])
                size += len(packed)
        core.reply(session, number, [found, None], waits_for=core.stream.newest())
