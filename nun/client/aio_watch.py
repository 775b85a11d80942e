"""The iterator of a watch for an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nun.client.results import Event
from nun.client.watches import WatchState
from nun.errors import ConnectionLost
from nun.position import Position

if TYPE_CHECKING:
    from nun.client.aio import AsyncClient


class AsyncWatch:
    """Events, in order and complete, across lost links. From `AsyncDatabase.watch`. One task at a time."""

    def __init__(self, client: AsyncClient, state: WatchState, timeout: float | None) -> None:
        self._port = port = client._port
        self._state = state
        self._give_back = max(state.credit // 4, 1)
        port.loop()
        now = monotonic()
        state.deadline = now + (client._timeout if timeout is None else timeout)
        port.session.watch(state, now)
        port.serve()

    def __await__(self) -> Generator[Any, None, Self]:
        return self._served().__await__()

    async def _served(self) -> Self:
        state = self._state
        while not state.begun:
            if state.error is not None:
                raise state.error
            if state.closed:
                raise ConnectionLost("the watch was closed")
            await self._something()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self.next_event()
        if event is None:
            raise StopAsyncIteration
        return event

    async def next_event(self, timeout: float | None = None) -> Event | None:
        """The next event; None when the time is over or the watch was closed. Raises what ended the watch."""
        if timeout is None:
            return await self._next_event()
        try:
            async with asyncio.timeout(timeout):
                return await self._next_event()
        except TimeoutError:
            return None

    async def _next_event(self) -> Event | None:
        state, port = self._state, self._port
        while True:
            event = state.take()
            if state.owed >= self._give_back and port.refusal is None:
                port.session.give_credit(state, state.take_owed())
                port.serve()
            if event is not None:
                return event
            if state.closed:
                return None
            if state.error is not None:
                raise state.error
            await self._something()

    async def _something(self) -> None:
        """Waits until the session has something for this watch."""
        state = self._state
        state.waiter = self._port.loop().create_future()
        try:
            await state.waiter
        finally:
            state.waiter = None

    @property
    def position(self) -> Position | None:
        """Where a later watch can go on (`since`) without missing anything."""
        return self._state.position

    @property
    def alive(self) -> bool:
        """Whether a node serves it at this moment, as far as is known here."""
        return self._state.number is not None

    async def close(self) -> None:
        """Ends it; its iteration stops."""
        state, port = self._state, self._port
        if not state.closed:
            state.closed = True
            if port.refusal is None:
                port.session.unwatch(state, monotonic())
                port.serve()
            if state.waiter is not None and not state.waiter.done():
                state.waiter.set_result(None)

    async def __aenter__(self) -> Self:
        try:
            return await self
        except BaseException:
            await self.close()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
