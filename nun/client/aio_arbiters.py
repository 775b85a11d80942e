"""Arbiters and the ledger, for an event loop: what `AsyncDatabase` offers about conflicts."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from nun.client import conflicts as cf
from nun.client import operations as ops
from nun.client.arbiters import PASSING, PAUSE_S, RAW, Done, log
from nun.client.conflicts import Conflict, Offer
from nun.client.notices import Outcome
from nun.client.results import Result
from nun.client.values import Decoding
from nun.errors import BatchError, ClaimLost, ConflictPending, LevelNotReached, NunError
from nun.merge import Skip

if TYPE_CHECKING:
    from nun.client.aio import AsyncClient, AsyncDatabase
    from nun.client.request import Grant, Request

AsyncHandler = Callable[[Conflict], Any | Awaitable[Any]]
Text = str | bytes


class AsyncWaiting:
    """Waiting for what became of writes that are in conflict; a part of `AsyncClient`."""

    def attach(self, failure: NunError, request: Request) -> None:
        """Has ConflictPending know how to wait, in the results of a batch too."""
        grant = request.grant
        if grant is None:
            return
        if isinstance(failure, ConflictPending):
            key = request.args[0]
            failure.waits = lambda timeout=None: self._became(
                grant, key, failure.conflict, request.decoding, timeout
            )
        elif isinstance(failure, BatchError) and hasattr(failure.results, "waits"):
            failure.results.waits = lambda key, op_id, timeout=None: self._became(
                grant, key, op_id, request.decoding, timeout
            )

    async def _became(
        self: Any, grant: Grant, key: Text, op_id: int, decoding: Decoding, timeout: float | None
    ) -> Outcome:
        """The outcome of a write, from its entry of the ledger; it is not told again by `outcomes`."""
        until = None if timeout is None else monotonic() + timeout
        place = cf.place_of(key, op_id)
        client: AsyncClient = self
        async with client._watch(grant, place) as watch:
            while True:
                entry = await client._run(ops.get(grant, place, RAW))
                if entry is not None:
                    held = await client._run(ops.get(grant, key, decoding))
                    current = None if held is None else held.value
                    outcome = cf.outcome_of(place, entry.value, current, decoding)
                    if outcome is not None:
                        await client._run(ops.seen([op_id]))
                        return outcome
                left = None if until is None else until - monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(
                        f"{place.decode('utf-8', 'replace')} is not decided after {timeout:g} s"
                    )
                await watch.next_event(left)


class AsyncArbiter:
    """Decides conflicts of one database, in tasks. From `AsyncDatabase.arbiter`. The counts are those of `Arbiter`."""

    def __init__(
        self,
        database: AsyncDatabase,
        handler: AsyncHandler,
        lease: float,
        poll: float,
        workers: int,
        done: Done | None,
    ) -> None:
        if lease <= 0 or poll <= 0 or workers < 1:
            raise ValueError("lease and poll are seconds above 0, workers at least 1")
        self.resolved = self.failed = self.lost = 0
        self._database = database
        self._handler = handler
        self._done = done
        self._lease_ms, self._poll_ms = max(int(lease * 1_000), 1), max(int(poll * 1_000), 1)
        self._workers = workers
        self._task: asyncio.Task[None] | None = None

    def start(self) -> Self:
        """Runs in a task of its own."""
        self._task = asyncio.create_task(self.run())
        return self

    async def stop(self) -> None:
        """Ends it: what it has claimed goes to other arbiters at once. Raises what had ended it before."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def run(self) -> None:
        """Runs until it is cancelled, or one of the workers cannot go on; raises what that met."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._work())
        except BaseExceptionGroup as met:
            raise met.exceptions[0] from None

    async def _work(self) -> None:
        while True:
            try:
                async with self._database._client._again() as client:
                    await self._decide_with(client)
            except PASSING as error:
                log.warning("an arbiter waits: %s", error)
                await asyncio.sleep(PAUSE_S)

    async def _decide_with(self, client: AsyncClient) -> None:
        grant = self._database._grant.copy()
        name = secrets.token_bytes(8)
        patience_s = self._poll_ms / 1_000 + client._timeout
        while True:
            request = cf.claim(grant, name, self._poll_ms, self._lease_ms)
            claimed = await client._run(request, patience_s)
            if claimed is not None:
                await self._decide(client, grant, name, Offer(claimed, self._database._decoding))

    async def _decide(self, client: AsyncClient, grant: Grant, name: bytes, offer: Offer) -> None:
        shown = offer.key.decode("utf-8", "replace")
        answers: list[tuple[Conflict, Any]] = []
        try:
            for conflict in offer.conflicts():
                answer = self._handler(conflict)
                if inspect.isawaitable(answer):
                    answer = await answer
                offer.answered(answer)
                answers.append((conflict, answer))
        except Exception as error:
            # Whatever the handler does wrong is its own affair: the key is somebody else's, and this one goes on.
            if not isinstance(error, Skip):
                self.failed += 1
                log.error("key %r: the handler failed: %r", shown, error)
            await client._run(cf.release(grant, name, offer))
            return
        try:
            await client._run(offer.resolution(grant))
        except (ClaimLost, LevelNotReached) as error:
            self.lost += 1
            log.warning("key %r: the answer came too late: %s", shown, error)
        else:
            self.resolved += len(answers)
            if self._done is not None:
                for conflict, answer in answers:
                    self._done(conflict, answer)


class AsyncArbitrated:
    """What a database offers about its conflicts; a part of `AsyncDatabase`."""

    async def arbiter(
        self: Any,
        handler: AsyncHandler,
        *,
        lease: float = 30.0,
        poll: float = 5.0,
        workers: int = 1,
        background: bool = False,
        done: Done | None = None,
    ) -> AsyncArbiter:
        """Decides this database's conflicts until it is cancelled; with `background` in a task, until it is stopped.

        See `Database.arbiter`; the handler may be a coroutine function.
        """
        arbiter = AsyncArbiter(self, handler, lease, poll, workers, done)
        if background:
            return arbiter.start()
        await arbiter.run()
        return arbiter

    async def try_arbiter(self: Any, handler: AsyncHandler) -> AsyncIterator[tuple[Conflict, Any]]:
        """A dry run over all open conflicts: each with what the handler answers, or the exception it raised."""
        async for conflict in self.conflicts():
            if conflict.kind == "increment":
                continue
            try:
                answer = handler(conflict)
                if inspect.isawaitable(answer):
                    answer = await answer
            except Exception as error:  # the caller is to see it, and the rest
                answer = error
            yield conflict, answer

    async def conflicts(
        self: Any,
        state: str | None = "open",
        key: Text | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> AsyncIterator[Conflict]:
        """Entries of the ledger, in order of their keys. See `Database.conflicts`."""
        left = limit
        mark = None if after is None else after.encode()
        while True:
            found, mark = await self._run(cf.page(self._grant, state, key, left, mark))
            made = [cf.conflict_of(place, data, self._decoding) for place, data in found]
            waiting = list({one.key: None for one in made if one.state == "open"})
            held = {}
            if waiting:
                held = dict(zip(waiting, await self.get_many(waiting), strict=True))
            for one in cf.completed(made, held):
                yield one
            if left is not None:
                left -= len(found)
            if mark is None or left == 0:
                return

    async def queue(self: Any, key: Text) -> list[Conflict]:
        """What is open on a key, oldest first, up to the first increment."""
        return cf.in_order([one async for one in self.conflicts(key=key)])

    async def resolve(
        self: Any, conflict: Conflict, value: Any, *, timeout: float | None = None
    ) -> Result:
        """Closes a conflict and all that came before it in its key's queue. See `Database.resolve`."""
        found = await self.queue(conflict.key)
        names = [one.op_id for one in cf.until(found, conflict)]
        shown = 0 if conflict.current is None else conflict.current.op_id
        answer = cf.encoded(value, self._decoding)
        request = cf.resolve(self._grant, conflict.key, answer, shown, names, 0)
        result: Result = await self._run(request, timeout)
        return result
