"""The client's end of the protocol: numbers, handshakes, what is in flight, and what time has to say about it.

Pure: no socket, clock, thread or chance. The shell tells it what came and what time it is; it leaves frames in
`outbox`, targets that have become ready in `finished`, and says by `wants_link` that it needs a new link to `address`.

              opened                 reply to HELLO
    IDLE  -------------->  GREETING ----------------> READY
      ^                       |                         |
      +-----------------------+-------------------------+
        link broke, node silent, session unknown, bytes that are no message

I1  A session lives and dies with one link: what arrives on a link belongs to the session that was greeted on it.
I2  A request keeps its number for ever. It gets one when the node has said where to go on (`next_number`), so that the
    number of an earlier process with the same client id is never taken for a new request.
I3  The floor is the least number without an answer. `in_flight` is in order of numbers, so it is the first of it.
I4  A database is named on the wire by the number that USE gave on this very link; requests for it wait for that.
I5  Every request has a deadline, so everything in here ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from nun import messages as m
from nun.client.levels import ack_again
from nun.client.notices import NoticeState
from nun.client.request import (
    FLOORLESS,
    NEVER,
    SAYS_NOTHING_OF_EARLIER,
    WRITES,
    Grant,
    Request,
    ignore,
    is_error,
    nothing,
)
from nun.client.results import error_of
from nun.client.undecided import Undecided
from nun.client.values import TEXT
from nun.client.watches import WatchState
from nun.codec import pack, unpack
from nun.errors import (
    AuthError,
    BadRequest,
    ConnectionLost,
    LevelNotReached,
    NoPrimary,
    NoSuchDatabase,
    NotServing,
    OutcomeExpired,
    Overloaded,
    ReadOnly,
    RequestError,
    SessionUnknown,
    WireError,
)
from nun.limits import KIB
from nun.position import Position

RESEND_AFTER_S: Final = 1.0  # doubles each time
GREETING_PATIENCE_S: Final = (
    3.0  # doubles each time round; a third where there is another address to try
)
SILENCE_S: Final = 2.5  # a node that was asked and has said nothing for so long is given up
BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
STEADY_S: Final = 1.0  # a session that lived so long was good: the next attempt comes at once
RECEIPT_BYTES: Final = 256 * KIB  # a receipt covers all before it: one is shown per so many bytes
ELSEWHERE_AFTER_S: Final = 0.5  # a session that is younger asks the same node again
MOVE_AGAIN_S: Final = 2.0  # from a replica to the primary, not more often than that
PARKED_MAX: Final = 256  # writes that timed out and can still be asked about
_SENT_ONCE: Final = (m.PING, m.SNAPSHOT, m.PROMOTE)  # not again while the link holds


class Session:
    """See the module's docstring.

    Args:
        addresses: of nodes; the next one is tried when one does not answer.
        client_id: with a request's number, what makes a retry the same request.
        user, password: of an administrator, or None.
        origin: only from a node's own gateway: its secret, and the address that it speaks for.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        client_id: str | bytes,
        user: str | bytes | None,
        password: str | bytes | None,
        origin: tuple[bytes, str] | None = None,
    ) -> None:
        self.client_id = client_id
        self.wants_link = True
        self.outbox: deque[tuple[bytes, Request | None]] = deque()
        self.finished: list[Request | WatchState | NoticeState] = []
        self.in_flight: dict[int, Request] = {}
        self.generation = 1  # counts links
        self.token: int | None = None
        self.trouble = "nobody is there, or nobody answers"
        self._addresses = addresses
        self._at = 0
        self._user = user
        self._password = password
        self._origin = () if origin is None else (origin,)
        self._born: int | None = None
        self._next_number = 1
        self._greeting = 0  # number of the HELLO that waits for its answer
        self._greeting_until = NEVER
        self._open_at = 0.0
        self._attempts = 0
        self._ready_since = 0.0
        self._heard = 0.0
        self._unread = 0
        self._early: list[Request] = []  # made before the first HELLO's answer: without a number
        self._parked: dict[int, Request] = {}
        self._watches: list[WatchState] = []
        self._live: dict[int, WatchState] = {}
        self._notices: NoticeState | None = None
        self._undecided = Undecided()
        self._moved_at = float("-inf")
        self._closed = False

    @property
    def address(self) -> str:
        return self._addresses[self._at % len(self._addresses)]

    # Requests

    def begin(self, request: Request, now: float) -> bytes | None:
        """Takes a request in. Returns its frame if it is to be sent at once, else it follows in `outbox` by itself."""
        if self._born is None:
            self._early.append(request)
            return None
        request.number = number = self._next_number
        self._next_number = number + 1
        self.in_flight[number] = request
        request.sent_at = now
        grant = request.grant
        if self.token is None or (grant is not None and grant.generation != self.generation):
            self._hold(request, now)
            return None
        frame = self._encode(request)
        if frame is not None and self.outbox:
            self.outbox.append((frame, request))
            return None
        return frame

    def retry(self, request: Request, now: float) -> None:
        """Asks again, as the same request, for one that ended as unknown."""
        if request.done and request.unknown is None:
            return  # its answer has come meanwhile
        self._parked.pop(request.number, None)
        request.done = request.parked = False
        request.unknown = request.failure = None
        request.resends = 0
        request.sent_at = now
        if request.ack is not None:  # the node is as patient as its caller is now
            request.ack = ack_again(request.ack, request.deadline - now)
            request.patient_until = now + request.ack[1] / 1_000
        self.in_flight.setdefault(request.number, request)
        self._send(request, now)

    def forget(self, request: Request) -> None:
        """Nobody waits for this one any more; a late answer is ignored."""
        request.done = True
        self.in_flight.pop(request.number, None)
        if request in self._early:
            self._early.remove(request)

    def _send(self, request: Request, now: float) -> None:
        if not self._selected(request.grant):
            self._hold(request, now)
            return
        request.again = request.again or request.sent
        frame = self._encode(request)
        if frame is not None:
            self.outbox.append((frame, request))

    def _hold(self, request: Request, now: float) -> None:
        """The request waits for its session, or for its database to be selected in it."""
        if self.token is not None and request.grant is not None:
            self._use(request.grant, now)

    def _encode(self, request: Request) -> bytes | None:
        """The frame of a request in the present session; None when msgpack cannot take what it holds."""
        number = request.number
        head: tuple[Any, ...] = (request.kind, self.token, number)
        if request.kind in WRITES:
            floor = self._undecided.floor(min(next(iter(self.in_flight)), number))
            head = (*head, floor if request.ack is None else (floor, *request.ack))
        elif request.kind in FLOORLESS:
            head = (*head, 0)
        args = request.args if request.view is None else (*request.args, request.view)
        try:
            if request.grant is not None and request.kind != m.PING:
                return pack((*head, request.grant.number, *args))
            return pack((*head, *request.args))
        except (ValueError, TypeError, OverflowError) as error:
            self.in_flight.pop(number, None)
            self._fail(request, BadRequest(f"the request cannot be encoded: {error}"))
            return None

    def _fail(self, request: Request, failure: Exception) -> None:
        if not request.done:
            request.done = True
            request.failure = failure
            self.finished.append(request)

    def _lose(self, request: Request, reason: str, failure: Exception) -> None:
        """Ends a request that got no answer: `failure`, or unknown for a write that may have arrived.

        Such a write is parked: it stays in its place (I3), so that it can be asked about.
        """
        if request.parked:
            return
        if request.kind not in WRITES or not request.sent:
            self.in_flight.pop(request.number, None)
            self._fail(request, failure)
            return
        request.unknown = reason
        request.done = request.parked = True
        self.finished.append(request)
        self._parked[request.number] = request
        if len(self._parked) > PARKED_MAX:
            oldest = self._parked.pop(next(iter(self._parked)))
            oldest.parked = False
            self.in_flight.pop(oldest.number, None)

    # The link

    def opened(self, now: float) -> None:
        """The shell has a fresh link to `address`: greets."""
        self.wants_link = False
        self.outbox.clear()
        self._greeting = self._next_number
        self._next_number += 1
        self._greeting_until = now + self._patience()
        hello = (
            m.HELLO,
            m.PROTOCOL_VERSION,
            self._greeting,
            self.client_id,
            self._born,
            self._user,
            self._password,
            *self._origin,
        )
        self.outbox.append((pack(hello), None))

    def _patience(self) -> float:
        """How long this greeting may take."""
        several = len(self._addresses) > 1
        rounds = min(self._attempts // len(self._addresses), 3)
        patience: float = GREETING_PATIENCE_S / (3 if several else 1) * 2**rounds
        return patience

    def broken(self, now: float, why: str) -> None:
        """The link broke, or is of no use: the session is over and a new one is wanted."""
        if self._closed:
            return
        was_ready = self.token is not None
        self.trouble = why
        self.token = None
        self.generation += 1
        self.outbox.clear()
        self._unread = 0
        self._greeting_until = NEVER
        self._live.clear()
        for watch in self._watches:
            watch.stopped()
        for request in list(self.in_flight.values()):
            if request.then:
                del self.in_flight[request.number]
            elif request.kind in (m.SNAPSHOT, m.PROMOTE) and request.sent:
                self._lose(request, "lost", ConnectionLost(f"the link broke: {why}"))
        if was_ready and now - self._ready_since >= STEADY_S:
            self._attempts = 0
        else:
            self._at += not was_ready
            self._attempts += 1
        pause = BACKOFF_FIRST_S * 2 ** (self._attempts - 1) if self._attempts else 0.0
        self._open_at = now + min(pause, BACKOFF_MAX_S)
        self.wants_link = self._open_at <= now

    def close(self) -> bytes | None:
        """Ends everything; returns the last frame to send, if there is a session."""
        self._closed = True
        self.wants_link = False
        lost = ConnectionLost("the client was closed")
        for request in [*self._early, *self.in_flight.values()]:
            self._lose(request, "lost", lost)
        for watch in list(self._watches):
            self._end_watch(watch, lost)
        self.in_flight.clear()
        self._early.clear()
        self.outbox.clear()
        return None if self.token is None else pack((m.BYE, self.token, 0))

    # What comes

    def receive(self, frame: bytes, now: float) -> None:
        """Takes in one message of the node."""
        self._heard = now
        try:
            message = unpack(frame)
            head = message[0]
            if head < m.PROBE:
                _, number, result, position, op_id = message
                self._reply(head, number, result, position, op_id, now)
            elif head == m.RECEIPT:
                _, status, number, result, position, op_id, receipt = message
                self._reply(status, number, result, position, op_id, now)
                self._unread += len(frame)
                if self._unread >= RECEIPT_BYTES and self.token is not None:
                    self._unread = 0
                    self.outbox.append((pack((m.PING, self.token, 0, receipt)), None))
            elif head == m.EVENTS:
                _, number, body = message
                if (watch := self._live.get(number)) is not None:
                    if not watch.feed(body):
                        del self._live[number]
                        self._unwatch(number, now)  # `tick` asks for it anew
                    self.finished.append(watch)
            elif head == m.OUTCOME:
                _, op_id, notice = message
                if self._notices is not None:
                    self._notices.feed(op_id, notice)
                    self.finished.append(self._notices)
            elif head == m.WATCH_ENDED:
                _, number, code, text, fields = message
                if (watch := self._live.get(number)) is not None:
                    self._end_watch(watch, error_of(code, text, fields, TEXT))
        except (WireError, TypeError, ValueError, LookupError, AttributeError) as error:
            self.broken(now, f"the node sent what is no message: {error}")

    def _reply(
        self, status: int, number: int, result: Any, position: Any, op_id: Any, now: float
    ) -> None:
        request = self.in_flight.get(number)
        if request is None:
            if number and number == self._greeting:
                self._greeted(status, result, now)
            return
        if status and not is_error(result):
            raise WireError("an error reply is [status, number, [message, fields], ...]")
        if status == SessionUnknown.code:
            self.broken(now, "the node does not know the session")
            return
        if status in (NoPrimary.code, NotServing.code) and not request.parked:
            self._try_elsewhere(request, result, now)
            return
        if status == LevelNotReached.code and request.kind in WRITES:
            self._not_so_far(request, result, position, op_id, now)
            return
        if status in SAYS_NOTHING_OF_EARLIER and request.again and request.kind in WRITES:
            self._refused_again(request, status, result, now)
            return
        del self.in_flight[number]
        if request.parked:
            del self._parked[number]
        request.status = status
        request.result = result
        request.position = position
        request.op_id = op_id
        request.unknown, request.done = None, True
        if position is None and op_id and not status:
            request.hold = self._undecided.hold(number)
        if status:
            self._refused(request)
        if request.then is not None:
            request.then(request, now)
        elif not request.parked:
            self.finished.append(request)

    def _try_elsewhere(self, request: Request, result: Any, now: float) -> None:
        """The node cannot have it decided at present: another one may, or this one soon."""
        message, fields = result
        self.trouble = message.decode("utf-8", "replace")
        if len(self._addresses) > 1 and now - self._ready_since >= ELSEWHERE_AFTER_S:
            self._at += 1
            self.broken(now, self.trouble)
        else:
            self._ask_later(request, fields, now)

    @staticmethod
    def _ask_later(request: Request, fields: Any, now: float) -> None:
        pause = max(fields.get(b"retry_after_ms", 0) / 1_000, BACKOFF_FIRST_S)
        request.resends = 0
        request.sent_at = now + pause - RESEND_AFTER_S

    def _refused_again(self, request: Request, status: int, result: Any, now: float) -> None:
        """A write that was sent before is refused: it may have been taken then, and be decided yet."""
        if status in (Overloaded.code, ReadOnly.code):
            self._ask_later(request, result[1], now)
        elif not request.parked:
            request.status = status
            self._refused(request)
            self._lose(request, "lost", request.failure or self._late())

    def _not_so_far(
        self, request: Request, result: Any, position: Any, op_id: Any, now: float
    ) -> None:
        """A write is done, and its ack level was not reached in time. It keeps its place (I3)."""
        if request.parked or now < request.patient_until:
            return  # the answer to an earlier time of asking
        error = error_of(LevelNotReached.code, result[0], result[1], TEXT)
        told = None if position is None else Position(*position)
        request.fields = {**error.fields, "position": told, "op_id": op_id}
        request.unknown = "level"
        request.done = request.parked = True
        self._parked[request.number] = request
        self.finished.append(request)

    @staticmethod
    def _refused(request: Request) -> None:
        if request.status == OutcomeExpired.code:
            request.unknown = "expired"
        elif request.status in (AuthError.code, NoSuchDatabase.code) and request.grant is not None:
            request.grant.generation = 0  # taken away: the next request selects it anew
            request.grant.asked = 0

    def _greeted(self, status: int, result: Any, now: float) -> None:
        self._greeting = 0
        if status:
            message, fields = result
            self._not_greeted(error_of(status, message, fields, TEXT), now)
            return
        match result:
            case [int() as token, int() as born, int() as next_number, dict() as node] if (
                next_number < 2**62
            ):
                if self._moves_to_primary(node, now):
                    return
                self.token, self._born = token, born
            case _:
                raise WireError("the reply to hello is [token, born, next_number, {...}]")
        self._next_number = max(self._next_number, next_number)
        self._greeting_until = NEVER
        self._ready_since = now
        early, self._early = self._early, []
        for request in list(self.in_flight.values()):
            if not request.parked:
                self._send(request, now)
        for request in early:
            frame = self.begin(request, now)
            if frame is not None:
                self.outbox.append((frame, request))
        for watch in self._watches:
            watch.ask_at = now
            self._ask(watch, now)
        if self._notices is not None:
            self._ask_for_notices(now)

    def _moves_to_primary(self, node: dict[bytes, Any], now: float) -> bool:
        """Whether the session goes on at the primary, when that is another one of the addresses."""
        primary = node.get(b"primary_address")
        address = primary.decode("utf-8", "replace") if isinstance(primary, bytes) else ""
        if address == self.address or address not in self._addresses:
            return False
        if now - self._moved_at < MOVE_AGAIN_S:
            return False
        self._moved_at = now
        self.broken(now, f"{self.address} is not the primary")
        self._at = self._addresses.index(address)
        self._attempts = 0
        self._open_at = now
        self.wants_link = True
        return True

    def outcomes(self, notices: NoticeState, now: float) -> None:
        """Somebody wants the outcomes of this client's writes."""
        self._notices = notices
        if self.token is not None:
            self._ask_for_notices(now)

    def _ask_for_notices(self, now: float) -> None:
        request = Request(m.OUTCOMES, None, (), nothing)
        request.then = ignore
        frame = self.begin(request, now)
        if frame is not None:
            self.outbox.append((frame, request))

    def _not_greeted(self, error: RequestError, now: float) -> None:
        if isinstance(error, Overloaded):
            self.broken(now, f"the node took no session: {error}")
            pause = error.fields.get("retry_after_ms", 0) / 1_000
            self._open_at = max(self._open_at, now + pause)
            self.wants_link = False
            return
        # It would say the same again: whoever waits is told, and the next request tries anew.
        self.broken(now, f"the node refused the session: {error}")
        for request in [*self._early, *self.in_flight.values()]:
            self._lose(request, "lost", error)
        self._early.clear()
        for watch in list(self._watches):
            self._end_watch(watch, error)

    # Databases

    def _use(self, grant: Grant, now: float) -> None:
        """Asks the node for a database, unless that is under way."""
        if grant.asked == self.generation:
            return
        grant.asked = self.generation
        request = Request(m.USE, None, (grant.name, grant.user, grant.secret), nothing)

        def used(request: Request, now: float) -> None:
            self._used(grant, request, now)

        request.then = used
        frame = self.begin(request, now)
        if frame is not None:
            self.outbox.append((frame, request))

    def _used(self, grant: Grant, request: Request, now: float) -> None:
        held = [
            other
            for other in list(self.in_flight.values())
            if other.grant is grant and not other.parked
        ]
        if request.status == 0:
            match request.result:
                case [int() as number, dict() as options]:
                    grant.number, grant.options = number, options
                case _:
                    raise WireError("the reply to use is [database, {...}]")
            grant.generation = self.generation
            for other in held:
                self._send(other, now)
            for watch in self._watches:
                if watch.grant is grant:
                    self._ask(watch, now)
            return
        grant.asked = 0
        error = request.error()
        for other in held:
            self._lose(other, "lost", error)
        for watch in [watch for watch in self._watches if watch.grant is grant]:
            self._end_watch(watch, error)

    # Watches

    def watch(self, watch: WatchState, now: float) -> None:
        """Takes a watch in; it is asked for again after every lost link until it ends."""
        self._watches.append(watch)
        self._ask(watch, now)

    def unwatch(self, watch: WatchState, now: float) -> None:
        """Its owner has had enough."""
        watch.closed = True
        if watch in self._watches:
            self._watches.remove(watch)
        if watch.number is not None and self._live.pop(watch.number, None) is not None:
            self._unwatch(watch.number, now)
        watch.number = None

    def give_credit(self, watch: WatchState, credit: tuple[int, int]) -> None:
        """Returns the credit of what its owner has read; what was read of an earlier link's is void."""
        size, stream = credit
        if watch.is_of(stream) and self.token is not None:
            message = (m.CREDIT, self.token, 0, watch.number, size)
            self.outbox.append((pack(message), None))

    def _ask(self, watch: WatchState, now: float) -> None:
        if self.token is None or watch.asked:
            return
        if watch.grant.generation != self.generation:
            self._use(watch.grant, now)
            return
        watch.asked = True
        args = (watch.scope, watch.key, watch.resume_from(), watch.credit)
        request = Request(m.WATCH, watch.grant, args, nothing)

        def asked(request: Request, now: float) -> None:
            self._watching(watch, request, now)

        request.then = asked
        frame = self.begin(request, now)
        if frame is not None:
            self.outbox.append((frame, request))

    def _watching(self, watch: WatchState, request: Request, now: float) -> None:
        if request.status == 0:
            number = request.result
            if not isinstance(number, int):
                raise WireError("the reply to watch is a number")
            if watch.closed:
                self._unwatch(number, now)
                return
            position = request.position
            watch.started(number, None if position is None else Position(*position))
            self._live[number] = watch
            self.finished.append(watch)
            return
        error = request.error()
        if isinstance(error, Overloaded) and watch.begun:
            watch.asked = False
            watch.ask_at = now + max(error.fields.get("retry_after_ms", 0) / 1_000, BACKOFF_MAX_S)
        else:
            self._end_watch(watch, error)

    def _unwatch(self, number: int, now: float) -> None:
        request = Request(m.UNWATCH, None, (number,), nothing)
        request.then = ignore
        frame = self.begin(request, now)
        if frame is not None:
            self.outbox.append((frame, request))

    def _end_watch(self, watch: WatchState, error: Exception) -> None:
        if watch in self._watches:
            self._watches.remove(watch)
        if watch.number is not None:
            self._live.pop(watch.number, None)
            watch.number = None
        watch.error = error
        self.finished.append(watch)

    # Time

    def wakeup(self) -> float:
        """When `tick` has something to do next."""
        times = [self._greeting_until]
        if self.token is None and not self._greeting_under_way:
            times.append(self._open_at)
        times += [request.deadline for request in self._early]
        for request in self.in_flight.values():
            if not request.parked:
                times.append(min(request.deadline, self._resend_at(request)))
        for watch in self._watches:
            if not watch.begun:
                times.append(watch.deadline)
            if not watch.asked and self._selected(watch.grant):
                times.append(watch.ask_at)
        return min(times)

    @property
    def _greeting_under_way(self) -> bool:
        return self._greeting_until != NEVER

    def tick(self, now: float) -> None:
        """Time has passed: deadlines, sending again, giving up on a node."""
        if self._closed:
            return
        if now >= self._greeting_until:
            self.broken(now, f"{self.address} did not answer in time")
        if self.token is None and not self._greeting_under_way and now >= self._open_at:
            self.wants_link = True
        self._expire(now)
        if self.token is not None:
            self._send_again(now)
            for watch in self._watches:
                if not watch.asked and now >= watch.ask_at:
                    self._ask(watch, now)

    def _expire(self, now: float) -> None:
        waiting = [*self._early, *self.in_flight.values()]
        late = [request for request in waiting if request.deadline <= now and not request.parked]
        if late:
            self._early = [request for request in self._early if request.deadline > now]
        for request in late:
            self._lose(request, "timeout", self._late())
        for watch in [w for w in self._watches if not w.begun and w.deadline <= now]:
            self._end_watch(watch, self._late())

    def _late(self) -> ConnectionLost:
        return ConnectionLost(f"no answer in time from {self.address}: {self.trouble}")

    def _resend_at(self, request: Request) -> float:
        if request.kind in _SENT_ONCE or not request.sent or not self._selected(request.grant):
            return NEVER
        return float(request.sent_at + RESEND_AFTER_S * 2**request.resends)

    def _selected(self, grant: Grant | None) -> bool:
        """Whether requests for this database (None: for none) can go out now."""
        return self.token is not None and (grant is None or grant.generation == self.generation)

    def _send_again(self, now: float) -> None:
        due = [
            request
            for request in self.in_flight.values()
            if not request.parked and now >= self._resend_at(request)
        ]
        if not due:
            return
        if now - self._heard >= SILENCE_S and any(request.resends for request in due):
            self.broken(now, f"{self.address} is silent")
            return
        for request in due:
            request.resends += 1
            request.sent_at = now
            self._send(request, now)
        assert self.token is not None
        # Told apart by its answer: a node that works on it slowly, and one that is gone.
        ping = Request(m.PING, None, (None,), nothing)
        ping.then = ignore
        ping.deadline = now + SILENCE_S
        frame = self.begin(ping, now)
        if frame is not None:
            self.outbox.append((frame, ping))
