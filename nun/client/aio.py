"""The asyncio client: the same names as `sync`, with `await`, `async for` and `async with`.

Everything runs in one event loop. ZeroMQ's file descriptor is edge-triggered: any call on the socket may swallow the
edge, a send too. So after every send, and after every edge, what has come is drained until nothing is left.

A cancelled call is forgotten; if it was a write, it may still take effect.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self

from nun.client import operations as ops
from nun.client.aio_arbiters import AsyncArbitrated, AsyncWaiting
from nun.client.aio_watch import AsyncWatch
from nun.client.batch import Operations
from nun.client.levels import LEVEL_SHARE, Ack, ack_of, level_of, view_of
from nun.client.link import Link
from nun.client.outcomes import AsyncOutcomes
from nun.client.request import NEVER, Grant, Request
from nun.client.results import DatabaseInfo, Entries, Entry, Lazy, Result
from nun.client.session import RESEND_AFTER_S, Session
from nun.client.settings import Settings
from nun.client.sync import SNAPSHOT_TIMEOUT_S
from nun.client.values import TEXT, UNSET, Decoding, condition_of
from nun.client.watches import CREDIT_DEFAULT, WatchState
from nun.errors import BatchError, ConflictPending, ConnectionLost
from nun.position import Position

_TICK_S = 0.02  # timers closer together than this are one

Text = str | bytes


class _Port:
    """Link and session in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.session: Session = settings.session()
        self.refusal: str | None = None
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER

    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop. Raises ConnectionLost when the client is closed, RuntimeError in another loop."""
        if self.refusal is not None:
            raise ConnectionLost(self.refusal)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                raise RuntimeError(
                    "an AsyncClient belongs to the event loop that it was first used in"
                )
            if os.getpid() != self._pid:
                raise ConnectionLost(
                    "a client cannot be used after a fork: make one in each process"
                )
            self._loop = loop
        return loop

    async def run(self, request: Request, timeout: float) -> Any:
        """Sends a request and waits for its answer."""
        loop = self.loop()
        now = monotonic()
        request.deadline = now + timeout
        request.waiter = loop.create_future()
        session = self.session
        frame = session.begin(request, now)
        if frame is not None:
            if self._link is not None and self._link.send(frame):
                request.sent = True
            else:
                session.outbox.append((frame, request))
        self._soon(loop)
        self._wake_at(loop, min(request.deadline, now + RESEND_AFTER_S))
        return await self._answer(request)

    async def _answer(self, request: Request) -> Any:
        try:
            await request.waiter
        except asyncio.CancelledError:
            if not request.done:
                self.session.forget(request)
            raise
        if request.unknown is not None:
            return request.answer(lambda timeout: self._retry(request, timeout))
        return request.answer()

    async def _retry(self, request: Request, timeout: float | None) -> Any:
        loop = self.loop()
        now = monotonic()
        request.deadline = now + (self._settings.timeout if timeout is None else timeout)
        request.waiter = loop.create_future()
        self.session.retry(request, now)
        if request.done:
            request.waiter.set_result(None)
        self.serve()
        return await self._answer(request)

    def serve(self) -> None:
        """After something was asked of the session: sends, and sees to the next timer."""
        loop = self.loop()
        self._serve_link(loop)
        self._hand_out()
        self._soon(loop)
        self._wake_at(loop, self.session.wakeup())

    def close(self) -> None:
        if self.refusal is not None:
            return
        self.refusal = "the client was closed"
        if self._timer is not None:
            self._timer.cancel()
        last = self.session.close()
        self._drop_link(last)
        self._hand_out()

    # The loop's callbacks

    def _soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drains once for all that is sent in this turn of the loop."""
        if not self._draining:
            self._draining = True
            loop.call_soon(self._drain)

    def _drain(self) -> None:
        """Takes in everything that has come, and sends what that leads to."""
        self._draining = False
        if self.refusal is not None or self._loop is None:
            return
        session, link = self.session, self._link
        if link is not None and link.readable():
            generation = session.generation
            now = monotonic()
            while (frame := link.receive()) is not None:
                session.receive(frame, now)
                if session.generation != generation:
                    break
        if session.outbox or session.wants_link:
            self._serve_link(self._loop)
        if session.finished:
            self._hand_out()
        if session.token is None:
            self._wake_at(self._loop, session.wakeup())

    def _monitored(self) -> None:
        """The monitor has something to say."""
        link, session = self._link, self.session
        if link is None or self._loop is None:
            return
        while (why := link.broke()) is not None:
            self._drain()
            if self._link is link:
                session.broken(monotonic(), why)
                break
        self._tick()

    def _wake_at(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if when < self._timer_at - _TICK_S and when != NEVER:
            if self._timer is not None:
                self._timer.cancel()
            delay = max(when - monotonic(), _TICK_S)
            self._timer_at = monotonic() + delay
            self._timer = loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, NEVER
        if self.refusal is None:
            self.session.tick(monotonic())
            self.serve()

    def _serve_link(self, loop: asyncio.AbstractEventLoop) -> None:
        """Opens a link when the session wants one, and sends what it has to send."""
        session = self.session
        if session.wants_link:
            self._drop_link()
            link = self._link = self._settings.link(session.address)
            for fd, callback in zip(link.fds, (self._drain, self._monitored), strict=True):
                loop.add_reader(fd, callback)
                loop.call_soon(callback)  # an edge comes only after a first look found nothing
            session.opened(monotonic())
        link_now, outbox = self._link, session.outbox
        while outbox and link_now is not None:
            frame, request = outbox[0]
            if request is None or not request.done:
                if not link_now.send(frame):
                    break
                if request is not None:
                    request.sent = True
            outbox.popleft()
            self._soon(loop)

    def _drop_link(self, last: bytes | None = None) -> None:
        if self._link is not None:
            if self._loop is not None and not self._loop.is_closed():
                for fd in self._link.fds:
                    self._loop.remove_reader(fd)
            self._link.close(last)
            self._link = None

    def _hand_out(self) -> None:
        finished = self.session.finished
        for target in finished:
            waiter = target.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        finished.clear()


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
        self._port = _Port(self._settings)

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
