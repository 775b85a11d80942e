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
from dataclasses import dataclass, field
from typing import Any, Final

from nun import messages as m
from nun.codec import enclosed, pack, unpack
from nun.core import effects as fx
from nun.core.access import PERMISSION_PREFIX, Doorkeeper, Rights
from nun.core.admin_requests import AdminRequests
from nun.core.batch_requests import BatchRequests
from nun.core.clock import Clock, unix_ms_of
from nun.core.data_requests import DataRequests
from nun.core.keyspace import Table
from nun.core.metrics import Metrics
from nun.core.session_requests import SessionRequests
from nun.core.sessions import Session
from nun.core.state import Member, NodeState, Row
from nun.core.stream import PendingEntry, Stream
from nun.core.watch_requests import WatchRequests
from nun.core.watching import Watches
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
)
from nun.position import Epoch, Position
from nun.version import VERSION

RETRY_AFTER_MS: Final = 50
TOMBSTONES_DROPPED_MAX: Final = 10_000  # in one tick
SHOWS_NOTHING: Final = (BadRequest, Overloaded, ReadOnly, SessionUnknown, TooLarge)
REQUEST_NAMES: Final = {
    getattr(m, name): name.lower()
    for name in [
        "HELLO",
        "PING",
        "USE",
        "GET",
        "GET_MANY",
        "SET",
        "REMOVE",
        "INCREMENT",
        "SET_MANY",
        "BATCH",
        "KEYS",
        "WATCH",
        "CREDIT",
        "UNWATCH",
        "BYE",
        "CREATE_DATABASE",
        "ALTER_DATABASE",
        "DROP_DATABASE",
        "DATABASES",
        "CREATE_USER",
        "DROP_USER",
        "SET_PERMISSIONS",
        "SNAPSHOT",
        "STATUS",
    ]
}


@dataclass(frozen=True)
class Settings:
    """What an operator has set, as far as decisions depend on it."""

    name: str
    directory: bytes  # id of the data directory
    admin_user: str
    admin_password: str
    tombstone_retention_s: float
    sessions_max: int
    watches_max: int
    watches_per_session_max: int
    unread_bytes_max: int
    pending_bytes_max: int
    request_rows_bytes_max: int
    databases_max: int


@dataclass(slots=True)
class Output:
    """What is to be done, in this order."""

    publish: bytes | None = None
    sends: list[tuple[bytes, bytes]] = field(default_factory=list)  # (routing id, frame)
    to_writer: list[tuple[Any, ...]] = field(default_factory=list)
    log_reads: list[tuple[int, int]] = field(default_factory=list)  # (watch, first seq)
    secrets: list[tuple[int, str, bytes, bytes]] = field(
        default_factory=list
    )  # (ticket, "hash" or "check", given, stored)
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # for the log


class NetworkCore:
    """Decides everything that the network process does. See the module's docstring.

    Args:
        settings: from the configuration.
        epoch: the epoch that begins with this process.
        cluster_id: of the data directory.
        state: as recovered.
        tables: the records of each database, as recovered.
        random: gives a fresh 64-bit secret each time it is called; the only source of chance.
        now_ns: monotonic time at the start.
    """

    def __init__(
        self,
        settings: Settings,
        epoch: Epoch,
        cluster_id: bytes,
        state: NodeState,
        tables: dict[int, dict[bytes, bytes]],
        random: Callable[[], int],
        now_ns: int,
    ) -> None:
        self.settings = settings
        self.state = state
        self.cluster_id = cluster_id
        self.stream = Stream(state, epoch, Clock(epoch.node, state.highest_op_id))
        self.tables = {number: Table(tables.get(number)) for number in state.databases}
        self.random = random
        self.now_ns = self.started_ns = now_ns
        self.unix_ms = 0
        self.sessions: dict[bytes, Session] = {}
        self.doorkeeper = Doorkeeper(random().to_bytes(8, "little") * 4)
        self.metrics = Metrics()
        self.out = Output()
        self.disk_full: str | None = None
        self.turn_bytes = 0  # what this turn has taken in: it counts as pending too
        self._rights: dict[tuple[int, bytes], Rights] = {}
        self.watches = Watches(self.stream, self.tables, self.send)
        self.greetings = SessionRequests(self)
        self.data = DataRequests(self)
        self.batches = BatchRequests(self)
        self.admin = AdminRequests(self)
        self._handlers: dict[int, tuple[int, Callable[[Session, list[Any]], None]]] = {
            **self.greetings.handlers(),
            **WatchRequests(self).handlers(),
            **self.data.handlers(),
            **self.batches.handlers(),
            **self.admin.handlers(),
        }

    def begin(self, unix_ms: int) -> None:
        """Begins the epoch: its first entry carries cluster id and member list."""
        self.unix_ms = unix_ms
        epoch = self.stream.epoch
        me = Member(self.settings.name, self.settings.directory, epoch.start)
        members = {**self.state.members, epoch.node: me}
        next_number = max(self.state.next_number, epoch.node + 1)
        self.stream.add((fx.EPOCH, self.cluster_id, members, next_number))
        self.close()

    def take_output(self) -> Output:
        """What has to be done now. The caller performs it, then calls `settle`."""
        self.out.log_reads, self.watches.reads = self.watches.reads, []
        out, self.out = self.out, Output()
        return out

    def settle(self) -> None:
        """Does the memory work that was put off until the entry was on its way."""
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
        self.turn_bytes = 0
        self.close()

    def made_durable(self, seq: int, now_ns: int) -> None:
        """Everything up to this entry is durable here: its replies and events may go."""
        self.now_ns = now_ns
        released = self.stream.release(seq)
        if not released:
            return
        sends = self.out.sends
        for entry in released:
            sends += entry.replies
            for kind, started_ns, count in entry.timed:
                self.metrics.latency[kind].observe(now_ns - started_ns, count)
        self.settle()
        self.watches.feed(released)

    def entries_wanted(self, seq: int) -> None:
        """The storage writer missed entries from this one on."""
        self.out.to_writer.append((m.ENTRIES, self.stream.frames_from(seq)))
        self.out.notes.append(("entries_sent_again", {"from_seq": seq}))

    def log_read(self, watch: int, frames: Sequence[bytes] | None) -> None:
        """The log was read for a watch; None: it no longer reaches back so far."""
        self.settle()
        if frames is None:
            self.watches.compacted(watch)
        else:
            self.watches.log_read(watch, frames)

    def disk_changed(self, full: bool, text: str) -> None:
        """The storage writer's disk ran full, or has room again."""
        self.disk_full = text if full else None
        self.out.notes.append(("disk_full" if full else "disk_has_room", {"detail": text}))

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
        self._drop_old_tombstones()
        self._forget_clients()
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
        if len(frame) > RECEIPT_ABOVE_BYTES:
            receipt = session.owe(len(frame))
            frame = enclosed(frame, m.RECEIPT, receipt)
        if waits_for is None:
            self.out.sends.append((session.peer, frame))
        else:
            waits_for.replies.append((session.peer, frame))

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
            found = self._handlers.get(kind) if type(kind) is int else None
            if found is None:
                raise BadRequest(f"unknown kind of request: {kind!r}")
            length, handler = found
            if len(message) != length:
                raise BadRequest(
                    f"{REQUEST_NAMES[kind]} is an array of {length}, found {len(message)}"
                )
            if session.unread_bytes > self.settings.unread_bytes_max and kind != m.PING:
                raise Overloaded(
                    f"{session.unread_bytes} bytes of replies are unread: read them first",
                    limit="unread_bytes_max",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            self.metrics.requests[kind] += 1
            handler(session, message)
        except RequestError as error:
            if isinstance(error, BadRequest):
                self.metrics.malformed += 1
            self.refuse(peer, number, error)

    # What requests share

    def grant(self, session: Session, database: Any) -> tuple[Table, Rights]:
        """The table of a database that this session has selected, and what it may do there."""
        if type(database) is not int:
            raise BadRequest("a database is named by the number that selecting it gave")
        granted = session.grants.get(database)
        table = self.tables.get(database)
        if table is None:
            session.grants.pop(database, None)
            raise NoSuchDatabase(f"there is no database number {database}", database=database)
        if granted is None:
            raise AuthError(f"database number {database} is not selected on this connection")
        return table, granted[1]

    def begin_write(self, session: Session, number: int, floor: Any) -> Row | None:
        """Admits a write, or gives the row that says what became of it when it came before."""
        if type(floor) is not int or not 0 <= floor <= number or number < 1:
            raise BadRequest("a write has a number from 1 and a floor from 0 to its number")
        client = self.state.clients.get(session.client_id)
        if client is None:
            again = number <= session.highest_number
            if again and session.born <= self.state.horizon:
                raise OutcomeExpired("what became of this client's requests is forgotten")
        else:
            row = client.rows.get(number)
            if row is not None:
                return row
            if number < client.floor:
                raise OutcomeExpired(f"request {number} is below the floor {client.floor}")
            if len(client.rows) >= REQUEST_ROWS_PER_CLIENT_MAX:
                raise Overloaded(
                    "too many requests above the floor: show that answers have arrived",
                    limit="REQUEST_ROWS_PER_CLIENT_MAX",
                    retry_after_ms=RETRY_AFTER_MS,
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
        return self.stream.add(
            (fx.OUTCOME, session.client_id, number, floor, status, op_id, result)
        )

    def rights_of(self, database: int, user: bytes, admin: bool) -> Rights:
        """The rights of a user in a database: one object each, so that a change reaches every session."""
        key = (database, b"" if admin else user)
        rights = self._rights.get(key)
        if rights is None:
            rights = self._rights[key] = Rights(admin)
            if not admin:
                self.refresh_rights(database, user)
        return rights

    def refresh_rights(self, database: int, user: bytes) -> None:
        """Reads a user's permission record again."""
        rights = self._rights.get((database, user))
        if rights is not None:
            packed = self.tables[database].records.get(PERMISSION_PREFIX + user)
            alive = packed is not None and packed[3] < 0x80
            rights.set_record(packed[12:] if packed is not None and alive else None, user)

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

    def _drop_old_tombstones(self) -> None:
        oldest_ms = self.unix_ms - self.settings.tombstone_retention_s * 1_000
        left = TOMBSTONES_DROPPED_MAX
        for number, table in self.tables.items():
            old: list[bytes] = []
            for key, op_id in table.tombstones.items():
                if unix_ms_of(op_id) >= oldest_ms or len(old) >= left:
                    break
                old.append(key)
            if old:
                left -= len(old)
                entry = self.stream.add((fx.DROP, number, old))
                entry.changes.append(fx.RecordChange(number, old, (None,) * len(old)))
                for key in old:
                    table.replace(key, None)

    def _forget_clients(self) -> None:
        bound = self.settings.request_rows_bytes_max
        if self.state.rows_bytes > bound:
            ids, horizon = self.state.least_recent_clients(self.state.rows_bytes - bound * 3 // 4)
            self.stream.add((fx.FORGET, ids, horizon))
            self.out.notes.append(("request_rows_forgotten", {"clients": len(ids)}))

    # For operators

    def describe(self) -> dict[str, Any]:
        """What `status` tells of this core."""
        return {
            "node": self.settings.name,
            "version": VERSION,
            "role": "primary",
            "cluster_id": self.cluster_id.hex(),
            "uptime_s": round((self.now_ns - self.started_ns) / 1e9, 3),
            "epoch": str(self.stream.epoch),
            "position": str(Position.at(self.stream.epoch, self.stream.last_seq)),
            "durable": self.stream.durable_seq,
            "pending": {
                "entries": len(self.stream.pending),
                "bytes": self.stream.pending_bytes,
            },
            "databases": {
                info.name: {
                    "number": number,
                    "strategy": info.strategy,
                    "keys": self.tables[number].live,
                    "tombstones": len(self.tables[number].tombstones),
                    "bytes": self.tables[number].bytes,
                }
                for number, info in self.state.databases.items()
            },
            "sessions": len(self.sessions),
            "watches": len(self.watches),
            "clients_remembered": len(self.state.clients),
            "request_rows_bytes": self.state.rows_bytes,
            "read_only": self.disk_full,
            "events_sent": self.watches.sent_events,
            **self.metrics.describe(REQUEST_NAMES),
        }
