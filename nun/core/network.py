"""The network process's core: sessions and requests in; entries, replies and watch events out.

Who feeds it: actors/network.py, with whatever one turn of its loop has drained. What goes out is collected in `out`,
to be performed in the order of its fields; after that the loop calls `settle`, so that memory work of large batches
overlaps the storage writer's sync.

I1  One owner: only this core decides what a key holds; everything that changes data leaves as an entry.
I2  No reply and no event shows what is not durable (P3): it waits in the entry that it depends on.
I3  A request that is refused before it is decided changes nothing and is not remembered; what the accept rule refuses
    is a logged outcome like any other.
I4  Bytes from outside raise nothing past `requests_received` but become an error reply (P8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from nun import messages as m
from nun.codec import enclosed, pack, unpack
from nun.core import effects as fx
from nun.core.clock import TICK, Clock
from nun.core.conflicts.arbitration import Arbitration
from nun.core.conflicts.decisions import Conflicts
from nun.core.conflicts.ledger import Ledger
from nun.core.conflicts.outcomes import Outcomes
from nun.core.digests import Digests
from nun.core.housekeeping import Housekeeping
from nun.core.keyspace import Table
from nun.core.levels import Level, Levels
from nun.core.metrics import REQUEST_NAMES, Metrics
from nun.core.output import Output
from nun.core.proposals.forwarding import Forwarding, Proposals
from nun.core.proposals.items import Items
from nun.core.proposals.repeats import Held
from nun.core.proposals.tentative import Tentative
from nun.core.replica import Adopter
from nun.core.requests.access import Doorkeeper, Rights
from nun.core.requests.admin import AdminRequests
from nun.core.requests.arguments import check_floor
from nun.core.requests.batch import BatchRequests
from nun.core.requests.cluster import ClusterRequests
from nun.core.requests.data import DataRequests
from nun.core.requests.kinds import (
    DECIDED_BY_PRIMARY,
    IN_A_DATABASE,
    SHOWS_NOTHING,
    VIEWED,
    WRITES_TO_KEYS,
)
from nun.core.requests.session import SessionRequests
from nun.core.requests.sessions import Session
from nun.core.requests.shared_rights import SharedRights
from nun.core.requests.views import Views, level_of
from nun.core.requests.watch import WatchRequests
from nun.core.requests.watching import Watches
from nun.core.roles import Roles
from nun.core.settings import Settings
from nun.core.state import NodeState, Row
from nun.core.stream import PendingEntry, Stream
from nun.errors import (
    AuthError,
    BadRequest,
    NoSuchDatabase,
    OutcomeExpired,
    Overloaded,
    ReadOnly,
    RequestError,
    SessionUnknown,
    TooLarge,
    WireError,
    to_wire,
)
from nun.limits import (
    BATCH_BYTES_MAX,
    RECEIPT_ABOVE_BYTES,
    REQUEST_ROWS_PER_CLIENT_MAX,
    REQUEST_TIMEOUT_S,
)
from nun.peer_messages import ROLE_PRIMARY
from nun.position import Epoch, Position

RETRY_AFTER_MS: Final = 50
CLEANED_MAX: Final = 1_000  # entries of the ledger, in one tick

_PATIENCE_NS: Final = int(REQUEST_TIMEOUT_S * 1e9)


class NetworkCore:
    """Decides everything that the network process does. See the module's docstring.

    Args:
        settings: from the configuration.
        number: of this node in its cluster.
        start: which start of this data directory this is.
        cluster_id: of the data directory.
        state: as recovered.
        tables: the records of each database, as recovered.
        random: gives a fresh 64-bit secret each time it is called; the only source of chance.
        now_ns: monotonic time at the start.
        held: what its outbox holds.
    """

    def __init__(
        self,
        settings: Settings,
        number: int,
        start: int,
        cluster_id: bytes,
        state: NodeState,
        tables: dict[int, dict[bytes, bytes]],
        random: Callable[[], int],
        now_ns: int,
        held: Held | None = None,
    ) -> None:
        self.settings = settings
        self.state = state
        self.cluster_id = cluster_id
        self.number = number
        self.start = start
        self.stream = Stream(state, Clock(number, state.highest_op_id))
        self.local_durable = self.stream.last_seq
        self.strayed = False  # memory and disk have parted: what is here counts no more
        self.level: Level | None = None  # of the request that is being handled, None when none is
        self.clock_offset_ms = self.clock_bound_ms = 0  # from the primary's clock, on a replica
        self.tables = {number: Table(tables.get(number)) for number in state.databases}
        self.random = random
        self.now_ns = self.started_ns = now_ns
        self.unix_ms = 0
        self.sessions: dict[bytes, Session] = {}
        self.doorkeeper = Doorkeeper(random().to_bytes(8, "little") * 4)
        self.metrics = Metrics()
        self.out = Output()
        self.disk_full: str | None = None
        self.log_full = 0  # bytes of log that no majority has, when they are too many
        self.origins: dict[bytes, str] = {}  # the addresses of those who greet in this turn
        self.turn_bytes = 0  # what this turn has taken in: it counts as pending too
        self.rights = SharedRights(self)
        self.watches = Watches(self.stream, self.tables, self.send)
        self.levels = Levels(self.send)
        self.roles = Roles(self)
        self.adopter = Adopter(self)
        self.forwarding = Forwarding(self)
        self.proposals = Proposals(self)
        self.views = Views(self)
        self.cluster = ClusterRequests(self)
        self.housekeeping = Housekeeping(self)
        self.digests = Digests(self)
        self.outcomes = Outcomes(self)
        self.ledger = Ledger(self)
        self.arbitration = Arbitration(self)
        self.conflicts = Conflicts(self)
        self.items = Items(self)
        self.tentative = Tentative(self, held or Held())
        self.greetings = SessionRequests(self)
        self.data = DataRequests(self)
        self.batches = BatchRequests(self)
        self.admin = AdminRequests(self)
        answering = (
            *(self.greetings, WatchRequests(self), self.data, self.batches),
            *(self.admin, self.cluster, self.outcomes, self.arbitration),
        )
        self._handlers: dict[int, tuple[int, Callable[[Session, list[Any]], None]]] = {
            kind: handler for room in answering for kind, handler in room.handlers().items()
        }

    @property
    def decides(self) -> bool:
        """Whether this node is the primary."""
        return self.roles.role == ROLE_PRIMARY

    def session_at(self, peer: bytes) -> Session | None:
        """The session of a connection, or the one that stands for a proposal."""
        return self.sessions.get(peer) or self.proposals.sessions.get(peer)

    def begin(self, unix_ms: int) -> None:
        """Begins an epoch, on a node that has no replicator to ask."""
        assert not self.settings.clustered
        self.unix_ms = unix_ms
        self.roles.be_primary(self.state.epochs[-1][0].reign if self.state.epochs else 1)

    def take_output(self) -> Output:
        """What has to be done now. The caller performs it, then calls `settle`."""
        out = self.out
        out.sends = self.proposals.split(out.sends)
        out.log_reads, self.watches.reads = self.watches.reads, []
        missing = self.adopter.missing()
        if missing:
            out.log_reads.append((0, missing))
        self.out = Output()
        return out

    def settle(self) -> None:
        """Does the memory work that was put off until the entry was on its way."""
        if self.batches.put_off:
            self.batches.settle()

    # Events

    def requests_received(
        self, batch: Sequence[tuple[bytes, bytes]], now_ns: int, unix_ms: int
    ) -> None:
        """What clients sent, as (routing id, body), in order of arrival."""
        self.now_ns = now_ns
        self.unix_ms = unix_ms
        for peer, body in batch:
            self.turn_bytes += len(body)
            self._request(peer, body)
        self.level = None
        self.turn_bytes = 0
        self.origins.clear()
        self.close()

    def made_durable(self, seq: int, now_ns: int, epoch: Epoch | None = None) -> None:
        """Everything up to this entry, of this epoch, is durable here."""
        self.now_ns = now_ns
        if epoch is not None and epoch != self.stream.epoch:
            self.roles.check_disk(seq, epoch)
        if self.strayed:
            return
        self.local_durable = max(seq, self.local_durable)
        if not self.settings.clustered:
            self.levels.settled = self.local_durable
        self.release()
        self.roles.check_stepped_down()

    def release(self) -> None:
        """Lets replies and events go that depend on what is durable: here, and on a replica at the primary too."""
        durable = self.local_durable
        if not self.decides:
            durable = min(durable, self.roles.primary_durable)
        released = self.stream.release(durable)
        if not released:
            return
        sends = self.out.sends
        for entry in released:
            sends += entry.replies
            for level, peer, frame in entry.leveled:
                self.levels.wait(entry.seq, level, peer, frame)
            self.out.to_replicator += entry.to_replicator
            if entry.writes:
                self.metrics.latency["write"].observe(self.now_ns - entry.began_ns, entry.writes)
        self.settle()
        self.watches.feed(released)
        if self.settings.clustered:
            shown = self.stream.durable_seq  # the disk may be ahead of what was adopted here
            self.forwarding.shown(shown)
            self.tentative.settled(self.levels.settled)
            self.views.shown(shown)

    def entries_received(self, frames: Sequence[bytes], now_ns: int, unix_ms: int) -> None:
        """Entries and beats that the replicator has handed on from the primary."""
        self.now_ns = now_ns
        self.unix_ms = unix_ms
        if not self.decides and not self.strayed and self.adopter.take(frames):
            self.release()
            self.roles.begin_if_ready()

    def replicator_says(self, message: Sequence[Any], now_ns: int, unix_ms: int) -> None:
        """A message of nun/peer_messages.py."""
        self.now_ns = now_ns
        self.unix_ms = unix_ms
        self.settle()
        self.roles.hear(message)

    def manager_says(self, message: Sequence[Any], now_ns: int, unix_ms: int) -> None:
        """A message of the conflict manager, see nun/messages.py."""
        self.now_ns = now_ns
        self.unix_ms = unix_ms
        if not self.strayed:
            self.settle()
            self.arbitration.manager_says(message)

    def outbox_durable(self, number: int, now_ns: int) -> None:
        """The storage writer has items of the outbox up to this one on disk."""
        self.now_ns = now_ns
        self.tentative.durable(number)

    def entries_wanted(self, seq: int) -> None:
        """The storage writer missed entries from this one on."""
        self.out.to_writer.append((m.ENTRIES, self.stream.frames_from(seq)))
        self.out.notes.append(("entries_sent_again", {"from_seq": seq}))

    def log_read(self, watch: int, frames: Sequence[bytes] | None) -> None:
        """The log was read for a watch, or (0) for this node itself; None: it no longer reaches back so far."""
        self.settle()
        if not watch:
            self.adopter.reading = False
            if frames is None and not self.decides and not self.strayed:
                # A snapshot has taken the place of what this process was not handed: it is on disk, and only there.
                self.roles.stray(
                    f"the log no longer reaches back to seq {self.stream.last_seq + 1}"
                )
            if not self.decides and not self.strayed and self.adopter.take(frames or ()):
                self.release()
                self.roles.begin_if_ready()
        elif frames is None:
            self.watches.compacted(watch)
        else:
            self.watches.log_read(watch, frames)

    def disk_changed(self, full: bool, text: str) -> None:
        """The storage writer's disk ran full, or has room again."""
        self.disk_full = text if full else None
        self.out.notes.append(("disk_full" if full else "disk_has_room", {"detail": text}))

    def log_changed(self, full: bool, size: int) -> None:
        """The log holds more than it may that must be kept for members that are away; or has room again."""
        self.log_full = size if full else 0
        self.out.notes.append(("log_full" if full else "log_has_room", {"bytes": size}))

    def peer_gone(self, peer: bytes, why: str) -> None:
        """A client's connection cannot be reached any more, or it does not read what it is sent."""
        session = self.sessions.get(peer)
        if session is not None:
            self.greetings.end(session, why)

    def ticked(self, now_ns: int, unix_ms: int) -> None:
        """Time has passed: probes, retention, eviction. To be called about once a second."""
        self.now_ns = now_ns
        self.unix_ms = unix_ms
        self.settle()
        self.greetings.tick()
        self.watches.tick(now_ns)
        self.cluster.tick()
        if self.decides:
            self.housekeeping.tick()
            self.conflicts.clean(CLEANED_MAX)
            self.digests.tick()
            self.close()

    def beat(self, now_ns: int) -> None:
        """A tenth of a second has passed: deadlines of what waits for other nodes, and work in small parts."""
        self.now_ns = now_ns
        self.levels.tick(now_ns)
        self.views.tick()
        self.forwarding.tick()
        self.outcomes.tick()
        self.tentative.tick()
        self.digests.beat()
        self.close()

    # Replies

    def send(self, peer: bytes, frame: bytes) -> None:
        self.out.sends.append((peer, frame))

    def reply(
        self,
        session: Session,
        number: int,
        result: Any,
        *,
        status: int = 0,
        position: Position | None = None,
        op_id: int = 0,
        waits_for: PendingEntry | None = None,
    ) -> None:
        """Answers a request, at once or when the entry that the answer depends on is durable."""
        frame = pack((status, number, result, position, op_id))
        if len(frame) > RECEIPT_ABOVE_BYTES and not session.virtual:
            receipt = session.owe(len(frame))
            frame = enclosed(frame, m.RECEIPT, receipt)
        level = self.level
        if level is not None and level.level != m.ACK_PRIMARY and not status:
            self._reply_at(level, session.peer, frame, position, waits_for)
        elif waits_for is None:
            self.out.sends.append((session.peer, frame))
        else:
            waits_for.replies.append((session.peer, frame))

    def _reply_at(
        self,
        level: Level,
        peer: bytes,
        frame: bytes,
        position: Position | None,
        waits_for: PendingEntry | None,
    ) -> None:
        """Answers once an ack level is reached: of a write for its entry, of a read for all that is shown."""
        if waits_for is None and position is None:
            waits_for = self.stream.newest()
        if waits_for is not None:
            waits_for.leveled.append((level, peer, frame))
        else:
            seq = self.stream.last_seq if position is None else position.seq
            self.levels.wait(seq, level, peer, frame)

    def refuse(self, peer: bytes, number: int, error: RequestError) -> None:
        """Answers with an error; one that may show what was decided waits until all of that is durable."""
        code, body = to_wire(error)
        self.metrics.errors[type(error).__name__] += 1
        frame = pack((code, number, body, None, 0))
        entry = None if isinstance(error, SHOWS_NOTHING) else self.stream.newest()
        if entry is None:
            self.out.sends.append((peer, frame))
        else:
            entry.replies.append((peer, frame))

    # Requests

    def _request(self, peer: bytes, body: bytes) -> None:
        number = 0
        self.level = None  # a greeting has none either
        try:
            try:
                message = unpack(body)
            except WireError as error:
                raise BadRequest(str(error)) from error
            if not isinstance(message, list) or len(message) < 3:
                raise BadRequest("a request is an array [kind, token, number, ...]")
            kind, token, given = message[0], message[1], message[2]
            if type(given) is not int or not 0 <= given < 2**63:
                raise BadRequest("the number of a request is an integer from 0 to 2**63 - 1")
            number = given
            if kind == m.HELLO:
                self.greetings.hello(peer, message)
                return
            session = self.sessions.get(peer)
            if session is None or session.token != token:
                raise SessionUnknown("this connection has no session of that token: greet first")
            session.last_seen_ns = self.now_ns
            if session.unread_bytes > self.settings.unread_bytes_max and kind != m.PING:
                raise Overloaded(
                    f"{session.unread_bytes} bytes of replies are unread: read them first",
                    limit="unread_bytes_max",
                    retry_after_ms=RETRY_AFTER_MS,
                )
        except RequestError as error:
            self._refused(peer, number, error)
        else:
            self.handle(session, message)

    def _refused(self, peer: bytes, number: int, error: RequestError) -> None:
        if isinstance(error, BadRequest):
            self.metrics.malformed += 1
        self.refuse(peer, number, error)

    def handle(self, session: Session, message: list[Any]) -> None:
        """Does what a request asks for, or refuses it. Its ack level, when it came apart from it, is in `level`."""
        kind = message[0]
        try:
            found = self._handlers.get(kind) if type(kind) is int else None
            if found is None:
                raise BadRequest(f"unknown kind of request: {kind!r}")
            length, handler = found
            if len(message) != length:
                if kind in VIEWED and len(message) == length + 1:
                    self.views.read(session, message)
                    return
                raise BadRequest(
                    f"{REQUEST_NAMES[kind]} is an array of {length}, found {len(message)}"
                )
            if kind in DECIDED_BY_PRIMARY:
                if type(message[3]) is list:
                    message[3], level, deadline_ns = level_of(message[3], self.now_ns)
                    self.level = Level(
                        self.levels.check(level, len(self.state.members)), deadline_ns
                    )
                if not self.decides:
                    self._take_or_forward(session, message)
                    return
            self.metrics.requests[kind] += 1
            handler(session, message)
        except RequestError as error:
            self._refused(session.peer, message[2], error)

    def _take_or_forward(self, session: Session, message: list[Any]) -> None:
        """Takes a local write, or hands it to the primary: who asks is known here, what that may is judged there."""
        level = self.settings.ack if self.level is None else self.level.level
        if level == m.ACK_LOCAL and message[0] in WRITES_TO_KEYS:
            self.metrics.requests[message[0]] += 1
            if self.tentative.is_old(session.client_id, message[2]):
                self.level = Level(m.ACK_PRIMARY, self.now_ns)
                self._handlers[message[0]][1](session, message)
            else:
                self.tentative.take(session, message)
            return
        user: bytes | None = None
        if message[0] in IN_A_DATABASE:
            self.grant(session, message[4])
            user = session.grants[message[4]][0]
        if message[0] == m.CLAIM:
            self.arbitration.came(session, message)
        elif message[0] == m.RELEASE:
            self.arbitration.went(session, message)
        self.metrics.requests[message[0]] += 1
        self.forwarding.forward(session, message, user)

    # What requests share

    def grant(self, session: Session, database: Any) -> tuple[Table, Rights]:
        """The table of a database that this session has selected, and what it may do there."""
        if type(database) is not int:
            raise BadRequest("a database is named by the number that selecting it gave")
        granted = session.grants.get(database)
        table = self.tables.get(database)
        if table is None:
            session.grants.pop(database, None)
            raise NoSuchDatabase(f"database number {database} was dropped", database=database)
        if granted is None:
            raise AuthError(f"database number {database} is not selected on this connection")
        return table, granted[1]

    def begin_write(
        self, session: Session, number: int, floor: Any, waited: bool = False
    ) -> Row | None:
        """Admits a write, or gives the row that says what became of it when it came before, or while it `waited`."""
        check_floor(number, floor)
        if self.level is None and self.settings.ack != m.ACK_PRIMARY:
            self.level = Level(self.settings.ack, self.now_ns + _PATIENCE_NS)
        client = self.state.clients.get(session.client_id)
        if client is not None:
            if (row := client.rows.get(number)) is not None:
                return row
            if number < client.floor:
                raise OutcomeExpired(f"request {number} is below the floor {client.floor}")
            if (
                len(client.rows) >= REQUEST_ROWS_PER_CLIENT_MAX
                and sum(row >= floor for row in client.rows) >= REQUEST_ROWS_PER_CLIENT_MAX
            ):
                raise Overloaded(
                    "too many requests above the floor: show that answers have arrived",
                    limit="REQUEST_ROWS_PER_CLIENT_MAX",
                    retry_after_ms=RETRY_AFTER_MS,
                )
        again = number <= session.highest_number and not waited
        if again and self.state.may_have_forgotten(client, number, session.born):
            raise OutcomeExpired("what became of this client's requests is forgotten")
        if self.levels.live < self.settings.min_replicas:
            raise Overloaded(
                f"{self.levels.live} replicas follow: expected at least {self.settings.min_replicas}",
                limit="min_replicas",
                retry_after_ms=RETRY_AFTER_MS,
            )
        if self.log_full:
            raise Overloaded(
                f"the log holds {self.log_full} bytes that no majority of the members has: more nodes must be up",
                limit="oplog_bytes",
                retry_after_ms=1_000,
            )
        if self.disk_full is not None:
            raise ReadOnly(f"no writes at present: {self.disk_full}", reason="disk full")
        pending = self.stream.pending_bytes + self.turn_bytes
        if pending > self.settings.pending_bytes_max and self.stream.pending:
            raise Overloaded(
                f"{pending} bytes wait to become durable",
                limit="pending_bytes_max",
                retry_after_ms=RETRY_AFTER_MS,
            )
        if number > session.highest_number:
            session.highest_number = number
        return None

    def outcome(
        self, session: Session, number: int, floor: int, status: int, op_id: int, result: Any
    ) -> PendingEntry:
        """Logs what became of a request, so that a retry gets the same answer."""
        if self.tentative.repeats:
            self.tentative.repeats.decided((session.client_id, number), status, result)
        effect = (fx.OUTCOME, session.client_id, number, floor, status, op_id, result)
        entry = self.stream.add(effect)
        entry.writes += 1
        entry.began_ns = self.now_ns
        return entry

    def stamp(self, session: Session, count: int = 1) -> int:
        """Issues `count` op ids for a request, or takes those that it was stamped with where it was taken."""
        first = session.stamp
        if not first:
            return self.stream.clock.reserve(self.unix_ms, count)
        session.stamp = 0
        self.stream.clock.observe(first + (count - 1) * TICK)
        return first

    def stamped_at(self, session: Session) -> tuple[int, int]:
        """When a request was made, on the common clock, and how far that may be wrong; in milliseconds."""
        if session.stamped_at is not None:
            return session.stamped_at
        if self.decides:
            return self.unix_ms, 0
        return self.unix_ms - self.clock_offset_ms, self.clock_bound_ms

    def check_reply_size(self, size: int) -> None:
        if size > BATCH_BYTES_MAX:
            raise TooLarge(
                f"the answer would be {size} bytes: ask for fewer keys at once",
                limit="BATCH_BYTES_MAX",
                bound=BATCH_BYTES_MAX,
                found=size,
            )

    # Housekeeping

    def close(self) -> None:
        """Ends the turn's entry: what was decided is to be published."""
        frame = self.stream.close()
        if frame is not None:
            assert self.out.publish is None, "one entry a turn"
            self.out.publish = frame
