"""The asyncio client: the same names as `sync`, with `await`, `async for` and `async with`.

A cancelled call is forgotten; if it was a write, it may still take effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self

from nun.client import operations as ops
from nun.client.aio_arbiters import AsyncArbitrated, AsyncWaiting
from nun.client.aio_port import AsyncPort
from nun.client.aio_watch import AsyncWatch
from nun.client.batch import Operations
from nun.client.levels import LEVEL_SHARE, Ack, ack_of, level_of, view_of
from nun.client.outcomes import AsyncOutcomes
from nun.client.request import Grant, Request
from nun.client.results import DatabaseInfo, Entries, Entry, Lazy, Result
from nun.client.settings import Settings
from nun.client.sync import SNAPSHOT_TIMEOUT_S
from nun.client.values import TEXT, UNSET, Decoding, condition_of
from nun.client.watches import CREDIT_DEFAULT, WatchState
from nun.errors import BatchError, ConflictPending
from nun.position import Position

Text = str | bytes


class AsyncClient(AsyncWaiting):
    """A client of a node, for one event loop; any number of requests may be under way. See `Client` for its arguments.

    It greets the node at the first request, or on `async with`.
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
        self._port = AsyncPort(self._settings)

    @classmethod
    def _of(cls, settings: Settings) -> Self:
        """A client with settings that are checked already."""
        client = cls.__new__(cls)
        client._settings = settings
        client._timeout = settings.timeout
        client._port = AsyncPort(settings)
        return client

    def _begin(self, request: Request, level: int | None = None) -> asyncio.Future[None]:
        """Sends a request with an ack level; the future is done when the request is."""
        if level is not None:
            request.ack = (level, int(self._timeout * LEVEL_SHARE * 1_000))
        return self._port.begin(request, self._timeout)

    async def _run(self, request: Request, timeout: float | None = None, ack: Ack = None) -> Any:
        seconds = self._timeout if timeout is None else timeout
        if ack is not None:
            request.ack = ack_of(ack, seconds * LEVEL_SHARE)
        try:
            return await self._port.run(request, seconds)
        except (ConflictPending, BatchError) as failure:
            self.attach(failure, request)
            raise

    def _watch(self, grant: Grant, key: bytes) -> AsyncWatch:
        """A watch of one key, whatever it looks like."""
        return AsyncWatch(self, WatchState(grant, key, None, CREDIT_DEFAULT, TEXT), None)

    def _again(self) -> AsyncClient:
        """Another connection to the same nodes, as a client of its own."""
        known = self._settings
        return AsyncClient(
            known.addresses,
            known.user,
            known.password,
            None,
            self._timeout,
            known.server_key,
            known.decoding.name,
        )

    async def _write(self, request: Request, timeout: float | None, ack: Ack) -> Result:
        """Runs a write of one key; its result can be waited for."""
        result: Result = await self._run(request, timeout, ack)
        result._wait = partial(self._wait_for, request, result)
        return result

    async def _wait_for(
        self, write: Request, known: Result, level: str | int, timeout: float | None
    ) -> Result:
        seconds = self._timeout if timeout is None else timeout
        patience_ms = int(seconds * LEVEL_SHARE * 1_000)
        request = ops.wait(write.number, known, level_of(level), patience_ms)
        try:
            result: Result = await self._run(request, seconds)
        except ConflictPending as pending:
            self.attach(pending, write)
            raise
        result._wait = partial(self._wait_for, write, result)
        return result

    async def __aenter__(self) -> Self:
        try:
            await self._run(ops.ping())
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncClient holds a connection and cannot be pickled")

    async def close(self) -> None:
        """Says goodbye and closes the connection. Whoever still waits gets an error."""
        self._port.close()

    @property
    def client_id(self) -> bytes:
        """Hand it to a later client to go on as this one."""
        return self._settings.client_id

    # Databases

    def database(
        self, name: Text, token: Text | None = None, user: Text | None = None
    ) -> AsyncDatabase:
        """Names a database; `await` it to know at once whether it is there and the token is good."""
        return AsyncDatabase(self, Settings.grant(name, user, token))

    async def databases(self) -> list[DatabaseInfo]:
        found: list[DatabaseInfo] = await self._run(ops.databases())
        return found

    async def create_database(
        self, name: Text, token: Text, strategy: str = "none", *, ack: Ack = None, **options: Any
    ) -> Result:
        result: Result = await self._run(
            ops.create_database(name, token, {"strategy": strategy, **options}), ack=ack
        )
        return result

    async def alter_database(self, name: Text, token: Text | None = None, **options: Any) -> Result:
        result: Result = await self._run(ops.alter_database(name, token, options))
        return result

    async def drop_database(self, name: Text) -> Result:
        result: Result = await self._run(ops.drop_database(name))
        return result

    async def create_user(self, database: Text, user: Text, token: Text) -> Result:
        result: Result = await self._run(ops.create_user(database, user, token))
        return result

    async def drop_user(self, database: Text, user: Text) -> Result:
        result: Result = await self._run(ops.drop_user(database, user))
        return result

    async def set_permissions(self, database: Text, user: Text, text: Text) -> Result:
        result: Result = await self._run(ops.set_permissions(database, user, text))
        return result

    # The node

    async def snapshot(
        self,
        names: Iterable[Text] | None = None,
        reclaim: bool = False,
        timeout: float = SNAPSHOT_TIMEOUT_S,
    ) -> dict[str, Any]:
        report: dict[str, Any] = await self._run(ops.snapshot(names, reclaim), timeout)
        return report

    async def status(self) -> dict[str, Any]:
        told: dict[str, Any] = await self._run(ops.status())
        return told

    # The cluster

    async def cluster(self) -> list[dict[str, Any]]:
        """What the node that is asked knows of every member: role, epoch, position, lag, link, clock, problem."""
        told: list[dict[str, Any]] = await self._run(ops.cluster())
        return told

    async def check(self) -> Position:
        """Has every node make digests of what it holds at one entry; its position. `cluster` shows them, when they are
        made, as `digests` and `digests_at`: nodes that hold the same have the same."""
        at: Position = await self._run(ops.check())
        return at

    async def promote(
        self, name: Text, force: bool = False, timeout: float | None = None
    ) -> dict[str, Any]:
        """Makes a node the primary.

        Args:
            force: go on without a majority of the members; what only the others have comes back as conflicts.

        Raises:
            NodeFault: it did not become primary, and why. BadRequest: there is no such node.
        """
        told: dict[str, Any] = await self._run(ops.promote(name, force), timeout)
        return told

    def outcomes(self) -> AsyncOutcomes:
        """What becomes of this client's local and losing writes, as it becomes known; at least once each."""
        return AsyncOutcomes(self)


class AsyncDatabase(AsyncArbitrated):
    """One database as one user. From `AsyncClient.database`. See `Database` for the arguments."""

    def __init__(self, client: AsyncClient, grant: Grant) -> None:
        self._client = client
        self._grant = grant
        self._decoding: Decoding = client._settings.decoding
        self._run = client._run
        self._write = client._write

    def __await__(self) -> Generator[Any, None, Self]:
        return self._selected().__await__()

    async def _selected(self) -> Self:
        await self._run(ops.ping(self._grant))
        return self

    async def get(
        self,
        key: Text,
        *,
        at: Position | str | None = None,
        level: str | None = None,
        timeout: float | None = None,
    ) -> Entry | None:
        request = ops.get(self._grant, key, self._decoding)
        self._view(request, at, level, timeout)
        entry: Entry | None = await self._run(request, timeout)
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

    async def get_many(
        self,
        keys: Iterable[Text],
        *,
        at: Position | str | None = None,
        level: str | None = None,
        timeout: float | None = None,
    ) -> Entries:
        request = ops.get_many(self._grant, keys, self._decoding)
        if not request.args[0]:
            return Entries([], [], self._decoding)
        self._view(request, at, level, timeout)
        entries: Entries = await self._run(request, timeout)
        return entries

    async def set(
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
        condition = condition_of(base, version, if_version, on_conflict)
        request = ops.set(self._grant, key, value, condition, self._decoding)
        return await self._write(request, timeout, ack)

    async def remove(
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
        condition = condition_of(base, version, if_version, on_conflict)
        request = ops.remove(self._grant, key, condition, self._decoding)
        return await self._write(request, timeout, ack)

    async def increment(
        self, key: Text, delta: int = 1, *, ack: Ack = None, timeout: float | None = None
    ) -> Result:
        request = ops.increment(self._grant, key, delta, self._decoding)
        return await self._write(request, timeout, ack)

    async def set_many(
        self,
        items: Mapping[Any, Any] | Iterable[tuple[Any, Any]],
        *,
        ack: Ack = None,
        timeout: float | None = None,
    ) -> Lazy[Result]:
        request = ops.set_many(self._grant, items, self._decoding)
        results: Lazy[Result] = await self._run(request, timeout, ack)
        return results

    async def keys(
        self, pattern: Text = "", limit: int | None = None, after: Text | None = None
    ) -> list[Any]:
        found: list[Any] = []
        async for page in self._pages(pattern, limit, after):
            found += page
        return found

    async def scan(self, pattern: Text = "", after: Text | None = None) -> AsyncIterator[Any]:
        async for page in self._pages(pattern, None, after):
            for key in page:
                yield key

    async def _pages(
        self, pattern: Text, limit: int | None, after: Text | None
    ) -> AsyncIterator[list[Any]]:
        left = limit
        while True:
            request = ops.keys(self._grant, pattern, left, after, self._decoding)
            page, after = await self._run(request)
            yield page
            if left is not None:
                left -= len(page)
            if after is None or left == 0:
                return

    def pipeline(self, atomic: bool = False, *, ack: Ack = None) -> AsyncPipeline:
        return AsyncPipeline(self, atomic, ack)

    def watch(
        self,
        pattern: Text,
        since: Position | str | None = None,
        credit: int = CREDIT_DEFAULT,
        *,
        timeout: float | None = None,
    ) -> AsyncWatch:
        """Asked for at once, in order with other requests; `await` it to know that it is served."""
        state = WatchState(self._grant, pattern, since, credit, self._decoding)
        return AsyncWatch(self._client, state, timeout)


class AsyncPipeline(Operations):
    """Operations that go out as one request at the end of the `async with` block."""

    def __init__(self, database: AsyncDatabase, atomic: bool, ack: Ack = None) -> None:
        super().__init__(database._grant, database._decoding, atomic)
        self._run = database._run
        self._ack = ack

    async def execute(self, timeout: float | None = None) -> Lazy[Any] | list[Any]:
        request = self._take()
        if request is not None:
            try:
                self.results = await self._run(request, timeout, self._ack)
            except BatchError as error:
                self.results = error.results
                raise
        return self.results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.execute()
