"""Requests about databases, users, permissions, snapshots and status; and selecting a database.

Secrets are hashed and checked by scrypt, off the network loop: the request waits under a ticket until the result comes
back, and is then decided like any other. A good check is remembered, so that only the first costs that much.

I1  Stored are only hashes: of the database's token under `$$token`, of a user's under `$$user_NAME`.
I2  A changed secret or a dropped user takes the selection away from every session that got in by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nun import messages as m
from nun.core import effects as fx
from nun.core import record
from nun.core.conflicts.strategies import check_options
from nun.core.housekeeping import describe
from nun.core.keyspace import Table
from nun.core.levels import Level
from nun.core.record import ABSENT
from nun.core.requests.access import (
    EVERYONE,
    PERMISSION_PREFIX,
    TOKEN_KEY,
    USER_PREFIX,
    Visitor,
    normalise_permissions,
)
from nun.core.state import DatabaseInfo
from nun.errors import (
    AuthError,
    BadRequest,
    DatabaseExists,
    NodeFault,
    NoPrimary,
    NoSuchDatabase,
    Overloaded,
    PermissionDenied,
    RequestError,
    TooLarge,
    from_wire,
)
from nun.limits import (
    NAME_BYTES_MAX,
    PERMISSIONS_BYTES_MAX,
    SECRET_BYTES_MAX,
    SECRET_CHECKS_WAITING_MAX,
)

if TYPE_CHECKING:
    from nun.core.network import NetworkCore
    from nun.core.requests.sessions import Session

STORAGE_PATIENCE_NS = 1_500_000_000

Handler = Callable[["Session", list[Any]], None]


@dataclass(slots=True)
class _Waiting:
    """A request that waits for a secret to be hashed or checked."""

    peer: bytes
    token: int
    number: int
    decides: bool  # what comes of it is decided here: a write
    level: Level | None
    go_on: Callable[[Session, str | None], None]


@dataclass(slots=True)
class _Asked:
    """A request that waits for an answer of the storage writer; a snapshot takes as long as it takes."""

    peer: bytes
    token: int
    number: int
    since_ns: int
    snapshot: bool


def check_name(name: Any, what: str) -> bytes:
    """Raises BadRequest unless this may name a database or a user."""
    if type(name) is not bytes or not 0 < len(name) <= NAME_BYTES_MAX:
        raise BadRequest(f"the name of a {what} is a text of 1 to {NAME_BYTES_MAX} bytes")
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the name of a {what} is UTF-8 text, found {name!r}") from error
    if not text.isprintable() or any(character.isspace() for character in text):
        raise BadRequest(
            f"the name of a {what} has no white space or control characters, found {text!r}"
        )
    return name


def check_secret(secret: Any, what: str) -> bytes:
    """Raises BadRequest unless this may be a token or password."""
    if type(secret) is not bytes or not 0 < len(secret) <= SECRET_BYTES_MAX:
        raise BadRequest(f"a {what} is a text of 1 to {SECRET_BYTES_MAX} bytes")
    return secret


class AdminRequests:
    """The handlers of requests about everything but keys and values."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self._stream = core.stream
        self._tickets = 0
        self._waiting: dict[int, _Waiting] = {}
        self._asked: dict[int, _Asked] = {}

    def handlers(self) -> dict[int, tuple[int, Handler]]:
        """Kind of request -> (length of its array, handler)."""
        return {
            m.USE: (6, self.use),
            m.CREATE_DATABASE: (7, self.create_database),
            m.ALTER_DATABASE: (7, self.alter_database),
            m.DROP_DATABASE: (5, self.drop_database),
            m.DATABASES: (3, self.databases),
            m.CREATE_USER: (7, self.create_user),
            m.DROP_USER: (6, self.drop_user),
            m.SET_PERMISSIONS: (7, self.set_permissions),
            m.SNAPSHOT: (5, self.snapshot),
            m.STATUS: (3, self.status),
        }

    # Selecting a database

    def use(self, session: Session, message: list[Any]) -> None:
        _, _, number, name, user, secret = message
        info = self._database(name)
        if session.admin and secret is None:
            self._grant(session, number, info, EVERYONE)
            return
        named = EVERYONE if user is None else check_name(user, "user")
        check_secret(secret, "token")
        who = f"user {named.decode()!r} of database {info.name!r}"
        core = self._core
        doorkeeper = core.doorkeeper
        visitor = Visitor(who, session.address, session.client_id)
        doorkeeper.admit(visitor, core.now_ns)
        key = TOKEN_KEY if user is None else USER_PREFIX + named
        packed = core.tables[info.number].records.get(key)
        if packed is None or not record.is_live(packed):
            doorkeeper.failed(visitor, core.now_ns)
            raise AuthError(f"wrong token, or no such user: {who}")
        stored = record.value_of(packed)
        if doorkeeper.knows(secret, stored):
            doorkeeper.succeeded(visitor)
            self._grant(session, number, info, named)
            return
        doorkeeper.admit_unknown(visitor, core.now_ns)

        def checked(session: Session, good: str | None) -> None:
            if good is None:
                doorkeeper.failed(visitor, core.now_ns)
                raise AuthError(f"wrong token, or no such user: {who}")
            doorkeeper.remember(secret, stored)
            doorkeeper.succeeded(visitor)
            if core.tables.get(info.number) is None:
                raise NoSuchDatabase(f"there is no database {info.name!r}", database=info.name)
            if core.tables[info.number].records.get(key) != packed:
                raise AuthError(f"the token was changed at this moment: {who}")
            self._grant(session, number, info, named)

        self._secret(session, number, ("check", secret, stored), checked)

    def _grant(self, session: Session, number: int, info: DatabaseInfo, user: bytes) -> None:
        rights = self._core.rights.of(info.number, user, session.admin)
        session.grants[info.number] = (user, rights)
        waits_for = self._stream.newest()
        self._core.reply(session, number, [info.number, info.options], waits_for=waits_for)

    def revoke(self, database: int, user: bytes | None = None) -> None:
        """Takes the selection of a database from sessions, and the watches that go with it: of this user, or all."""
        for session in self._core.sessions.values():
            granted = session.grants.get(database)
            if granted is not None and (user is None or (granted[0] == user and not session.admin)):
                del session.grants[database]
                watches = session.watches.values()
                ended = [watch for watch in watches if watch.group.database == database]
                self._core.watches.end_all(
                    ended, AuthError("the token was changed, or the user dropped")
                )
                for watch in ended:
                    del session.watches[watch.number]

    # Databases

    def create_database(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, name, secret, options = message
        self._admin(session)
        check_name(name, "database")
        check_secret(secret, "token")
        checked = {"strategy": "none", **check_options(options)}
        if self._repeated(session, number, floor):
            return

        def hashed(session: Session, text: str | None) -> None:
            core = self._core
            if self._repeated(session, number, floor, waited=True):
                return
            if core.state.database_named(name.decode()) is not None:
                raise DatabaseExists(
                    f"database {name.decode()!r} exists already", database=name.decode()
                )
            if len(core.state.databases) >= core.settings.databases_max:
                raise Overloaded(
                    f"there are {len(core.state.databases)} databases",
                    limit="databases_max",
                    retry_after_ms=1_000,
                )
            database = core.state.next_database
            self._stream.add((fx.DATABASE, database, name.decode(), checked))
            core.tables[database] = Table()
            core.conflicts.refresh(database)
            assert text is not None
            self.put(database, TOKEN_KEY, text.encode())
            self._done(session, number, floor, database)

        self._secret(session, number, ("hash", secret, b""), hashed)

    def alter_database(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, name, secret, options = message
        self._admin(session)
        self._database(name)
        checked = check_options(options)
        if secret is not None:
            check_secret(secret, "token")
        if self._repeated(session, number, floor):
            return

        def hashed(session: Session, text: str | None) -> None:
            info = self._database(name)
            if self._repeated(session, number, floor, waited=True):
                return
            self._stream.add((fx.DATABASE, info.number, info.name, {**info.options, **checked}))
            self._core.conflicts.refresh(info.number)
            self._core.arbitration.options_changed()
            if text is not None:
                self.put(info.number, TOKEN_KEY, text.encode())
                self.revoke(info.number, EVERYONE)
            self._done(session, number, floor, info.number)

        if secret is None:
            hashed(session, None)
        else:
            self._secret(session, number, ("hash", secret, b""), hashed)

    def drop_database(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, name = message
        self._admin(session)
        check_name(name, "database")
        if self._repeated(session, number, floor):
            return
        info = self._database(name)
        core = self._core
        core.settle()
        core.conflicts.database_dropped(info.number)
        self.database_dropped(info.number)
        self._stream.add((fx.DROP_DATABASE, info.number))
        self._done(session, number, floor, info.number)

    def database_dropped(self, number: int) -> None:
        """Forgets the records of a database and whoever looks at them; the state has it still.

        Or not yet: a replica may get one entry that makes it and drops it, and nobody has looked at it then.
        """
        core = self._core
        info = core.state.databases.get(number)
        if core.tables.pop(number, None) is None or info is None:
            return
        for watch in core.watches.end_database(number, info.name):
            for other in core.sessions.values():
                other.watches.pop(watch.number, None)
        self.revoke(number)

    def databases(self, session: Session, message: list[Any]) -> None:
        self._admin(session)
        found = [
            [info.name, info.number, info.options]
            for info in sorted(self._core.state.databases.values(), key=lambda info: info.name)
        ]
        self._core.reply(session, message[2], found, waits_for=self._stream.newest())

    # Users

    def create_user(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, name, user, secret = message
        self._admin(session)
        self._database(name)
        check_name(user, "user")
        check_secret(secret, "token")
        if user == EVERYONE:
            raise BadRequest("user 'all' is the database's own token: use alter_database")
        if self._repeated(session, number, floor):
            return

        def hashed(session: Session, text: str | None) -> None:
            info = self._database(name)
            if self._repeated(session, number, floor, waited=True):
                return
            assert text is not None
            self.put(info.number, USER_PREFIX + user, text.encode())
            self.revoke(info.number, user)
            self._done(session, number, floor, info.number)

        self._secret(session, number, ("hash", secret, b""), hashed)

    def drop_user(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, name, user = message
        self._admin(session)
        info = self._database(name)
        check_name(user, "user")
        if self._repeated(session, number, floor):
            return
        if user == EVERYONE:
            raise BadRequest("user 'all' is the database's own token and cannot be dropped")
        if not self._remove(info.number, USER_PREFIX + user):
            raise BadRequest(f"there is no user {user.decode()!r} in database {info.name!r}")
        self._remove(info.number, PERMISSION_PREFIX + user)
        self._core.rights.refresh(info.number, user)
        self.revoke(info.number, user)
        self._done(session, number, floor, info.number)

    def set_permissions(self, session: Session, message: list[Any]) -> None:
        _, _, number, floor, name, user, text = message
        self._admin(session)
        info = self._database(name)
        check_name(user, "user")
        if type(text) is not bytes or len(text) > PERMISSIONS_BYTES_MAX:
            raise TooLarge(
                f"a permission list is a text of at most {PERMISSIONS_BYTES_MAX} bytes",
                limit="PERMISSIONS_BYTES_MAX",
                bound=PERMISSIONS_BYTES_MAX,
                found=len(text) if type(text) is bytes else 0,
            )
        try:
            normal = normalise_permissions(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRequest("a permission list is UTF-8 text") from error
        if self._repeated(session, number, floor):
            return
        self.put(info.number, PERMISSION_PREFIX + user, normal.encode())
        self._core.rights.refresh(info.number, user)
        self._done(session, number, floor, info.number)

    # Operations

    def snapshot(self, session: Session, message: list[Any]) -> None:
        _, _, number, names, reclaim = message
        self._admin(session)
        if names is not None and not isinstance(names, list):
            raise BadRequest("snapshot takes an array of database names, or nil for all")
        if type(reclaim) is not bool:
            raise BadRequest("reclaim is true or false")
        numbers = None if names is None else [self._database(name).number for name in names]
        self._ask(session, number, m.TAKE_SNAPSHOT, numbers, reclaim)

    def status(self, session: Session, message: list[Any]) -> None:
        self._admin(session)
        self._ask(session, message[2], m.ASK_STORAGE)

    def _ask(self, session: Session, number: int, kind: int, *arguments: Any) -> None:
        self._tickets += 1
        snapshot = kind == m.TAKE_SNAPSHOT
        asked = _Asked(session.peer, session.token, number, self._core.now_ns, snapshot)
        self._asked[self._tickets] = asked
        self._core.out.to_writer.append((kind, self._tickets, *arguments))

    def snapshot_taken(self, ticket: int, error: str | None, report: dict[str, Any]) -> None:
        """The storage writer took a snapshot that a client asked for."""
        asked = self._asked.pop(ticket, None)
        session = self._session(asked)
        if asked is not None and session is not None:
            if error is None:
                self._core.reply(session, asked.number, report)
            else:
                self._core.refuse(session.peer, asked.number, NodeFault(error))

    def storage_described(
        self, ticket: int, storage: dict[str, Any] | None, processes: dict[str, Any]
    ) -> None:
        """The storage writer described its files: the answer to `status` is complete."""
        asked = self._asked.pop(ticket, None)
        session = self._session(asked)
        if asked is not None and session is not None:
            told = {**describe(self._core), "storage": storage, "processes": processes}
            self._core.reply(session, asked.number, told)

    def overdue(self, now_ns: int) -> list[int]:
        """Tickets of `status` requests that the storage writer has not answered in good time."""
        return [
            ticket
            for ticket, asked in self._asked.items()
            if not asked.snapshot and now_ns - asked.since_ns > STORAGE_PATIENCE_NS
        ]

    # Secrets

    def secret_done(self, ticket: int, text: str | None, now_ns: int, unix_ms: int) -> None:
        """A secret was hashed (text: the hash) or checked (text: not None when it was good)."""
        core = self._core
        core.now_ns = now_ns
        core.unix_ms = unix_ms
        waiting = self._waiting.pop(ticket, None)
        session = core.session_at(waiting.peer) if waiting is not None else None
        if waiting is None or session is None or session.token != waiting.token:
            return
        core.settle()
        core.level = waiting.level
        try:
            if waiting.decides and not core.decides:
                raise NoPrimary("this node is no longer the primary", retry_after_ms=50)
            waiting.go_on(session, text)
        except RequestError as error:
            core.refuse(session.peer, waiting.number, error)
        core.level = None
        core.close()

    def _secret(
        self,
        session: Session,
        number: int,
        work: tuple[str, bytes, bytes],
        go_on: Callable[[Session, str | None], None],
    ) -> None:
        for waiting in self._waiting.values():
            if (waiting.peer, waiting.token, waiting.number) == (
                session.peer,
                session.token,
                number,
            ):
                return  # a retry of what is under way: one answer is enough
        if len(self._waiting) >= SECRET_CHECKS_WAITING_MAX:
            raise Overloaded(
                "too many secrets are being checked",
                limit="SECRET_CHECKS_WAITING_MAX",
                retry_after_ms=1_000,
            )
        self._tickets += 1
        self._waiting[self._tickets] = _Waiting(
            session.peer, session.token, number, work[0] == "hash", self._core.level, go_on
        )
        self._core.out.secrets.append((self._tickets, *work))

    # Shared

    def _admin(self, session: Session) -> None:
        if not session.admin:
            raise PermissionDenied("this is for administrators: greet with user and password")

    def _database(self, name: Any) -> DatabaseInfo:
        check_name(name, "database")
        info = self._core.state.database_named(name.decode())
        if info is None:
            raise NoSuchDatabase(f"there is no database {name.decode()!r}", database=name.decode())
        return info

    def _session(self, asked: _Asked | None) -> Session | None:
        session = self._core.session_at(asked.peer) if asked is not None else None
        return session if session is not None and asked and session.token == asked.token else None

    def _repeated(self, session: Session, number: int, floor: Any, waited: bool = False) -> bool:
        """Answers a retry of what was done before, or while it `waited` for a secret; False when it is new."""
        row = self._core.begin_write(session, number, floor, waited)
        if row is None:
            return False
        if row.status:
            raise from_wire(row.status, "refused before", {})
        self._core.reply(
            session,
            number,
            row.result,
            position=row.position,
            waits_for=self._stream.at(row.position.seq),
        )
        return True

    def _done(self, session: Session, number: int, floor: int, result: Any) -> None:
        entry = self._core.outcome(session, number, floor, 0, 0, result)
        self._core.reply(session, number, result, position=entry.position, waits_for=entry)

    def put(self, database: int, key: bytes, value: bytes) -> None:
        """Sets a system key, as an administrator's own write."""
        self._core.settle()
        table = self._core.tables[database]
        old = table.records.get(key, ABSENT)
        version = record.version_of(old) + 1
        op_id = self._stream.clock.reserve(self._core.unix_ms)
        new = record.live(version, op_id, value)
        self._stream.add((fx.PUT, database, op_id, version, record.op_id_of(old), key, value))
        table.replace(key, new)
        self._stream.entry().changes.append(fx.RecordChange(database, (key,), (new,)))

    def _remove(self, database: int, key: bytes) -> bool:
        """Removes a system key; False when it holds nothing."""
        self._core.settle()
        table = self._core.tables[database]
        old = table.records.get(key)
        if old is None or not record.is_live(old):
            return False
        version = record.version_of(old) + 1
        op_id = self._stream.clock.reserve(self._core.unix_ms)
        new = record.tombstone(version, op_id)
        self._stream.add((fx.TOMBSTONE, database, op_id, version, record.op_id_of(old), key))
        table.replace(key, new)
        self._stream.entry().changes.append(fx.RecordChange(database, (key,), (new,)))
        return True
