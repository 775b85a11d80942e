"""The blocking client, for any number of threads: the names that a caller uses, over nun/client/port.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self

from nun.client import operations as ops
from nun.client.arbiters import Arbiter, Arbitrated, Waiting
from nun.client.batch import Operations
from nun.client.levels import LEVEL_SHARE, Ack, ack_of, level_of, view_of
from nun.client.outcomes import Outcomes
from nun.client.port import Port
from nun.client.request import Grant, Request
from nun.client.results import DatabaseInfo, Entries, Entry, Event, Lazy, Result
from nun.client.settings import Settings
from nun.client.values import TEXT, UNSET, Decoding, condition_of
from nun.client.watches import CREDIT_DEFAULT, WatchState
from nun.errors import BatchError, ConflictPending, ConnectionLost
from nun.position import Position

SNAPSHOT_TIMEOUT_S = 600.0

Text = str | bytes


class Client(Waiting):
    """A client of a node, for any number of threads. Greets the node at once.

    Args:
        address: `tcp://host:port`, or a list of such: the next is tried when one does not answer.
        user, password: of an administrator; a client without them can still select databases by their token.
        client_id: goes with the number of each request, so that a retry is recognised; random unless an earlier client
            is to be resumed. Two clients at work must not share one.
        timeout: in seconds, for everything that waits and does not say otherwise.
        server_key: the node's CURVE public key (Z85); then everything is encrypted and the node is authenticated.
        decode: how values come out: "utf-8" as str, "json" as what the text means, None as bytes.

    Raises:
        ConnectionLost: no node answered in time.
        AuthError: wrong user or password.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        user: Text | None = None,
        password: Text | None = None,
        client_id: Text | None = None,
        timeout: float = 10.0,
        server_key: Text | None = None,
        decode: str | None = "utf-8",
    ) -> None:
        self._settings = Settings.checked(
            address, user, password, client_id, timeout, server_key, decode
        )
        self._timeout = timeout
        self._arbiters: list[Arbiter] = []
        self._port = Port(self._settings)
        try:
            self._run(ops.ping())
        except BaseException:
            self._port.close()
            raise

    def _run(self, request: Request, timeout: float | None = None, ack: Ack = None) -> Any:
        seconds = self._timeout if timeout is None else timeout
        if ack is not None:
            request.ack = ack_of(ack, seconds * LEVEL_SHARE)
        try:
            return self._port.run(request, seconds)
        except (ConflictPending, BatchError) as failure:
            self.attach(failure, request)
            raise

    def _watch(self, grant: Grant, key: bytes) -> Watch:
        """A watch of one key, whatever it looks like."""
        return Watch(self, WatchState(grant, key, None, CREDIT_DEFAULT, TEXT), None)

    def _again(self) -> Client:
        """Another connection to the same nodes, as a client of its own."""
        known = self._settings
        return Client(
            known.addresses,
            known.user,
            known.password,
            None,
            self._timeout,
            known.server_key,
            known.decoding.name,
        )

    def _write(self, request: Request, timeout: float | None, ack: Ack) -> Result:
        """Runs a write of one key; its result can be waited for."""
        result: Result = self._run(request, timeout, ack)
        result._wait = partial(self._wait_for, request, result)
        return result

    def _wait_for(
        self, write: Request, known: Result, level: str | int, timeout: float | None
    ) -> Result:
        seconds = self._timeout if timeout is None else timeout
        patience_ms = int(seconds * LEVEL_SHARE * 1_000)
        request = ops.wait(write.number, known, level_of(level), patience_ms)
        try:
            result: Result = self._run(request, seconds)
        except ConflictPending as pending:
            self.attach(pending, write)
            raise
        result._wait = partial(self._wait_for, write, result)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client holds a connection and cannot be pickled")

    def close(self) -> None:
        """Says goodbye and closes the connection. Whoever still waits gets an error; arbiters end."""
        for arbiter in self._arbiters:
            arbiter.stop()
        self._port.close()

    @property
    def client_id(self) -> bytes:
        """Hand it to a later client to go on as this one."""
        return self._settings.client_id

    # Databases

    def database(self, name: Text, token: Text | None = None, user: Text | None = None) -> Database:
        """Selects a database: by its own token, as a user with that user's, as an administrator without any.

        Raises:
            AuthError: wrong token, or no such user. NoSuchDatabase.
        """
        database = Database(self, Settings.grant(name, user, token))
        self._run(ops.ping(database._grant))
        return database

    def databases(self) -> list[DatabaseInfo]:
        """All databases: name and options."""
        found: list[DatabaseInfo] = self._run(ops.databases())
        return found

    def create_database(
        self, name: Text, token: Text, strategy: str = "none", *, ack: Ack = None, **options: Any
    ) -> Result:
        """Makes a database. Raises DatabaseExists.

        Args:
            strategy: what becomes of writes in conflict: "none", "newer", "older" or "arbiter".
            options: prefixes (a map of key prefixes to strategies), no_arbiter ("queue" or "reject"), conflict_timeout
                (seconds), conflict_fallback ("keep", "newer", "older"), close_calls ("op_id" or "arbiter").
        """
        result: Result = self._run(
            ops.create_database(name, token, {"strategy": strategy, **options}), ack=ack
        )
        return result

    def alter_database(self, name: Text, token: Text | None = None, **options: Any) -> Result:
        """Changes the token or options of a database; what is left out stays as it is."""
        result: Result = self._run(ops.alter_database(name, token, options))
        return result

    def drop_database(self, name: Text) -> Result:
        """Removes a database and all it holds."""
        result: Result = self._run(ops.drop_database(name))
        return result

    def create_user(self, database: Text, user: Text, token: Text) -> Result:
        """Makes a user of a database, or gives one a new token. A new user may do nothing yet."""
        result: Result = self._run(ops.create_user(database, user, token))
        return result

    def drop_user(self, database: Text, user: Text) -> Result:
        result: Result = self._run(ops.drop_user(database, user))
        return result

    def set_permissions(self, database: Text, user: Text, text: Text) -> Result:
        """Says what a user may do, as in "rw user:*|r *": kinds r w i x, a space, patterns."""
        result: Result = self._run(ops.set_permissions(database, user, text))
        return result

    # The node

    def snapshot(
        self,
        names: Iterable[Text] | None = None,
        reclaim: bool = False,
        timeout: float = SNAPSHOT_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Writes what changed to the keys/values files, of these databases or all; returns a report."""
        report: dict[str, Any] = self._run(ops.snapshot(names, reclaim), timeout)
        return report

    def status(self) -> dict[str, Any]:
        """What the node tells of itself."""
        told: dict[str, Any] = self._run(ops.status())
        return told

    # The cluster

    def cluster(self) -> list[dict[str, Any]]:
        """What the node that is asked knows of every member: role, epoch, position, lag, link, clock, problem."""
        told: list[dict[str, Any]] = self._run(ops.cluster())
        return told

    def check(self) -> Position:
        """Has every node make digests of what it holds at one entry; its position. `cluster` shows them, when they are
        made, as `digests` and `digests_at`: nodes that hold the same have the same."""
        at: Position = self._run(ops.check())
        return at

    def promote(
        self, name: Text, force: bool = False, timeout: float | None = None
    ) -> dict[str, Any]:
        """Makes a node the primary.

        Args:
            force: go on without a majority of the members; what only the others have comes back as conflicts.

        Raises:
            NodeFault: it did not become primary, and why. BadRequest: there is no such node.
        """
        told: dict[str, Any] = self._run(ops.promote(name, force), timeout)
        return told

    def outcomes(self) -> Outcomes:
        """What becomes of this client's local and losing writes, as it becomes known; at least once each."""
        return Outcomes(self)


class Database(Arbitrated):
    """One database as one user. From `Client.database`."""

    def __init__(self, client: Client, grant: Grant) -> None:
        self._client = client
        self._grant = grant
        self._decoding: Decoding = client._settings.decoding
        self._run = client._run
        self._write = client._write

    def get(
        self,
        key: Text,
        *,
        at: Position | str | None = None,
        level: str | None = None,
        timeout: float | None = None,
    ) -> Entry | None:
        """What the key holds, or None.

        Args:
            at: a position (of a Result, an Event) that must be shown first, on whichever node is asked.
            level: "majority" shows only what no change of primary can take back.

        Raises:
            LevelNotReached: not in time.
        """
        request = ops.get(self._grant, key, self._decoding)
        self._view(request, at, level, timeout)
        entry: Entry | None = self._run(request, timeout)
        return entry

    def _view(
        self,
        request: Request,
        at: Position | str | None,
        level: str | None,
        timeout: float | None,
    ) -> None:
        if at is not None or level is not None:
            seconds = self._client._timeout if timeout is None else timeout
            request.view = view_of(at, level, seconds * LEVEL_SHARE)

    def get_many(
        self,
        keys: Iterable[Text],
        *,
        at: Position | str | None = None,
        level: str | None = None,
        timeout: float | None = None,
    ) -> Entries:
        """For each key its Entry or None; `.values()` of it gives all values at once."""
        request = ops.get_many(self._grant, keys, self._decoding)
        if not request.args[0]:
            return Entries([], [], self._decoding)
        self._view(request, at, level, timeout)
        entries: Entries = self._run(request, timeout)
        return entries

    def set(
        self,
        key: Text,
        value: Text,
        *,
        base: Any = UNSET,
        version: int | None = None,
        if_version: int | None = None,
        on_conflict: str = "strategy",
        ack: Ack = None,
        timeout: float | None = None,
    ) -> Result:
        """Stores a value; durable when this returns.

        Args:
            base: the Entry or Result that the value was made on, or its op id; None: the key was absent.
            version: as NunDB's set-safe: accepted from the current version on.
            if_version: accepted only at exactly this version.
            on_conflict: "refuse" refuses whatever the strategy of the database says.
            ack: how far the write goes before this returns: "local" (durable at the node that is asked, and decided
                later), "primary", "majority", "all", or a number of replicas; None: as the node is configured.

        Raises:
            VersionConflict: the condition does not hold; `.current` is what the key holds.
            ConflictPending: it does not hold, and an arbiter will decide: the write is kept, do not retry it;
                `.wait(timeout)` gives the outcome.
            UnknownOutcome: no answer in time; `.retry()` asks again.
        """
        condition = condition_of(base, version, if_version, on_conflict)
        request = ops.set(self._grant, key, value, condition, self._decoding)
        return self._write(request, timeout, ack)

    def remove(
        self,
        key: Text,
        *,
        base: Any = UNSET,
        version: int | None = None,
        if_version: int | None = None,
        on_conflict: str = "strategy",
        ack: Ack = None,
        timeout: float | None = None,
    ) -> Result:
        """Removes a key, on the same conditions as `set`. Its version counts on."""
        condition = condition_of(base, version, if_version, on_conflict)
        request = ops.remove(self._grant, key, condition, self._decoding)
        return self._write(request, timeout, ack)

    def increment(
        self, key: Text, delta: int = 1, *, ack: Ack = None, timeout: float | None = None
    ) -> Result:
        """Adds to the integer that the key holds, exactly once; `.value` is the sum. Raises NotANumber."""
        request = ops.increment(self._grant, key, delta, self._decoding)
        return self._write(request, timeout, ack)

    def set_many(
        self,
        items: Mapping[Any, Any] | Iterable[tuple[Any, Any]],
        *,
        ack: Ack = None,
        timeout: float | None = None,
    ) -> Lazy[Result]:
        """Stores many values as one request. Raises BatchError, whose `.results` says what became of each."""
        request = ops.set_many(self._grant, items, self._decoding)
        results: Lazy[Result] = self._run(request, timeout, ack)
        return results

    def keys(
        self, pattern: Text = "", limit: int | None = None, after: Text | None = None
    ) -> list[Any]:
        """Keys in byte order that match `prefix*`, `*suffix` or a substring; all of them, or `limit` beyond `after`."""
        found: list[Any] = []
        for page in self._pages(pattern, limit, after):
            found += page
        return found

    def scan(self, pattern: Text = "", after: Text | None = None) -> Iterator[Any]:
        """The same keys one by one, fetched in pages as they are used."""
        for page in self._pages(pattern, None, after):
            yield from page

    def _pages(self, pattern: Text, limit: int | None, after: Text | None) -> Iterator[list[Any]]:
        left = limit
        while True:
            page, after = self._run(ops.keys(self._grant, pattern, left, after, self._decoding))
            yield page
            if left is not None:
                left -= len(page)
            if after is None or left == 0:
                return

    def pipeline(self, atomic: bool = False, *, ack: Ack = None) -> Pipeline:
        """Collects operations and sends them as one request; `atomic`: all or none."""
        return Pipeline(self, atomic, ack)

    def watch(
        self,
        pattern: Text,
        since: Position | str | None = None,
        credit: int = CREDIT_DEFAULT,
        *,
        timeout: float | None = None,
    ) -> Watch:
        """Events of one key, of a prefix ("user:*"), or of all ("*"): from now, or after a position.

        Args:
            since: where an earlier watch was (`Watch.position`).
            credit: bytes of events that may be on their way or waiting here: what a slow reader costs.
        """
        state = WatchState(self._grant, pattern, since, credit, self._decoding)
        return Watch(self._client, state, timeout)


class Pipeline(Operations):
    """Operations that go out as one request at the end of the `with` block.

    Raises BatchError there if any failed, with `.results` that hold each one's result or error.
    """

    def __init__(self, database: Database, atomic: bool, ack: Ack = None) -> None:
        super().__init__(database._grant, database._decoding, atomic)
        self._run = database._run
        self._ack = ack

    def execute(self, timeout: float | None = None) -> Lazy[Any] | list[Any]:
        """Sends what was collected; the pipeline is empty afterwards."""
        request = self._take()
        if request is not None:
            try:
                self.results = self._run(request, timeout, self._ack)
            except BatchError as error:
                self.results = error.results
                raise
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.execute()


class Watch:
    """Events, in order and complete, across lost links. From `Database.watch`.

    Iterate, or call `next_event`. One thread at a time.
    """

    def __init__(self, client: Client, state: WatchState, timeout: float | None) -> None:
        self._port = client._port
        self._state = state
        self._give_back = max(state.credit // 4, 1)
        session = self._port.session
        state.deadline = monotonic() + (client._timeout if timeout is None else timeout)
        try:
            self._port.wait_for(
                state,
                lambda: session.watch(state, monotonic()),
                ready=lambda: state.begun or state.error is not None,
            )
        except BaseException:
            self.close()
            raise
        if state.error is not None:
            raise state.error

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.next_event()
        if event is None:
            raise StopIteration
        return event

    def next_event(self, timeout: float | None = None) -> Event | None:
        """The next event; None when the time is over or the watch was closed.

        Raises what ended the watch: NoSuchDatabase, PermissionDenied, AuthError, ConnectionLost.
        """
        state = self._state
        event = state.take()
        if state.owed >= self._give_back:
            session, credit = self._port.session, state.take_owed()
            self._port.tell(lambda: session.give_credit(state, credit))
        if event is not None:
            return event
        until = None if timeout is None else monotonic() + timeout
        while True:
            if state.closed:
                return None
            if state.error is not None:
                raise state.error
            self._port.wait_for(state, _no_action, until)
            event = state.take()
            if event is not None or (until is not None and monotonic() >= until):
                return event
            if self._port.refusal is not None and state.error is None:
                raise ConnectionLost(self._port.refusal)

    @property
    def position(self) -> Position | None:
        """Where a later watch can go on (`since`) without missing anything."""
        return self._state.position

    @property
    def alive(self) -> bool:
        """Whether a node serves it at this moment, as far as is known here."""
        return self._state.number is not None

    def close(self) -> None:
        """Ends it; its iteration stops."""
        state = self._state
        if not state.closed:
            state.closed = True
            if self._port.refusal is None:
                session = self._port.session
                self._port.tell(lambda: session.unwatch(state, monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _no_action() -> None:
    pass
