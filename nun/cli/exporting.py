"""Reading a whole database out of a node: key by key in order, in pages, again after a lost connection.

Each value is as it was when its page was read; keys that come or go meanwhile may or may not be among them. What the
node computes or keeps for administrators (`$connections`, `$$...`) is left out: no import could set it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from nun.cli.output import as_bytes
from nun.errors import ConnectionLost, NunError, Overloaded, TooLarge, UnknownOutcome

KEYS_PER_PAGE: Final = 5_000
PAGE_BYTES_AIM: Final = 2 * 1024 * 1024  # of values asked for at once
_FIRST_VALUES: Final = 64  # before anything is known of their sizes
_VALUES_MAX: Final = 2_000
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 2.0

T = TypeVar("T")


class Source(Protocol):
    """What is used of an AsyncClient's database."""

    def keys(
        self, pattern: str = ..., *, limit: int = ..., after: Any = ...
    ) -> Awaitable[Sequence[Any]]: ...

    def get_many(self, keys: Sequence[Any]) -> Awaitable[Sequence[Any]]: ...


class Exporter:
    """One export.

    Args:
        retry_for_s: how long to wait for a node that is away.
        tell_waiting: told why and how long it will wait.
    """

    def __init__(
        self,
        source: Source,
        *,
        retry_for_s: float,
        tell_waiting: Callable[[NunError, float], None],
    ) -> None:
        self._source = source
        self._retry_for_s = retry_for_s
        self._tell_waiting = tell_waiting
        self._values_at_once = _FIRST_VALUES

    async def pages(
        self, pattern: str = "", after: bytes | None = None
    ) -> AsyncIterator[list[tuple[bytes, bytes]]]:
        """Key and value of all records behind a key, in the order of their keys."""
        async for page in self.entries(pattern, after):
            yield [(key, as_bytes(entry.value)) for key, entry in page]

    async def entries(
        self, pattern: str = "", after: bytes | None = None
    ) -> AsyncIterator[list[tuple[bytes, Any]]]:
        """The same with all that is known of a record."""
        while True:
            ask = partial(self._source.keys, pattern, limit=KEYS_PER_PAGE, after=after)
            found = await self.outlast(ask)
            keys = [as_bytes(key) for key in found]
            if not keys:
                return
            after = keys[-1]
            wanted = [key for key in keys if not key.startswith(b"$$") and key != b"$connections"]
            async for page in self._values(wanted):
                yield page

    async def _values(self, keys: list[bytes]) -> AsyncIterator[list[tuple[bytes, Any]]]:
        at = 0
        while at < len(keys):
            some = keys[at : at + self._values_at_once]
            try:
                entries = await self.outlast(partial(self._source.get_many, some))
            except TooLarge:
                if len(some) == 1:
                    raise
                self._values_at_once = max(1, len(some) // 2)
                continue
            at += len(some)
            found = zip(some, entries, strict=True)
            page = [(key, entry) for key, entry in found if entry is not None]
            size = sum(len(entry.value) for _, entry in page)
            fitting = PAGE_BYTES_AIM * len(some) // max(1, size)
            self._values_at_once = max(1, min(fitting, 4 * len(some), _VALUES_MAX))
            if page:
                yield page

    async def outlast(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Asks again while the node is away or overloaded, for as long as it was told to."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._retry_for_s
        wait = _FIRST_WAIT_S
        while True:
            try:
                return await ask()
            except (ConnectionLost, UnknownOutcome, Overloaded) as error:
                if loop.time() + wait > give_up_at:
                    raise
                self._tell_waiting(error, give_up_at - loop.time())
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)
