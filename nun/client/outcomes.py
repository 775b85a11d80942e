"""The iterators of outcomes, blocking and for an event loop.

An outcome is acknowledged when the next one is asked for, or when the iteration is closed in order: what the caller was
still working on when it died comes again.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from nun.client import operations as ops
from nun.client.notices import NoticeState, Outcome
from nun.errors import ConnectionLost

if TYPE_CHECKING:
    from nun.client.aio import AsyncClient
    from nun.client.sync import Client


class Outcomes:
    """What became of this client's local and losing writes. From `Client.outcomes`. One thread at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._port = client._port
        self._state = NoticeState(client._settings.decoding)
        self._last: Outcome | None = None
        session = self._port.session
        self._port.tell(lambda: session.outcomes(self._state, monotonic()))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Outcome:
        outcome = self.next_outcome()
        if outcome is None:
            raise StopIteration
        return outcome

    def next_outcome(self, timeout: float | None = None) -> Outcome | None:
        """The next outcome; None when the time is over or this was closed. Acknowledges the one before."""
        self._acknowledge()
        state = self._state
        until = None if timeout is None else monotonic() + timeout
        while not state.closed:
            outcome = state.take()
            if outcome is not None:
                self._last = outcome
                return outcome
            if until is not None and monotonic() >= until:
                return None
            self._port.wait_for(state, _nothing, until)
            if self._port.refusal is not None:
                raise ConnectionLost(self._port.refusal)
        return None

    def _acknowledge(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            self._client._run(ops.seen([last.op_id]))
            self._state.acknowledged(last.op_id)

    def close(self) -> None:
        """Acknowledges what was taken last, and ends the iteration."""
        if not self._state.closed:
            self._acknowledge()
            self._state.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self.close()
        self._state.closed = True


class AsyncOutcomes:
    """What became of this client's local and losing writes. From `AsyncClient.outcomes`. One task at a time."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._port = client._port
        self._state = NoticeState(client._settings.decoding)
        self._last: Outcome | None = None
        self._port.loop()
        self._port.session.outcomes(self._state, monotonic())
        self._port.serve()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        await self._acknowledge()
        state = self._state
        while not state.closed:
            outcome = state.take()
            if outcome is not None:
                self._last = outcome
                return outcome
            state.waiter = self._port.loop().create_future()
            try:
                await state.waiter
            finally:
                state.waiter = None
            if self._port.refusal is not None:
                raise ConnectionLost(self._port.refusal)
        raise StopAsyncIteration

    async def _acknowledge(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            await self._client._run(ops.seen([last.op_id]))
            self._state.acknowledged(last.op_id)

    async def close(self) -> None:
        """Acknowledges what was taken last, and ends the iteration."""
        state = self._state
        if not state.closed:
            await self._acknowledge()
            state.closed = True
            if state.waiter is not None and not state.waiter.done():
                state.waiter.set_result(None)


def _nothing() -> None:
    pass
