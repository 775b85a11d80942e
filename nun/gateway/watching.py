"""Change notices. One watch of the node serves all clients that watch the same key as the same user.

`$connections` is counted here: how many clients have selected a database on this node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from nun.client.aio_watch import AsyncWatch
from nun.client.request import Request, nothing
from nun.client.values import decoding_named
from nun.client.watches import CREDIT_DEFAULT, WatchState
from nun.errors import NunError
from nun.gateway import language
from nun.gateway.language import CONFLICTS, CONNECTIONS
from nun.messages import GET, WATCH_KEY

if TYPE_CHECKING:
    from nun.client.results import Event
    from nun.gateway.conversation import Conversation
    from nun.gateway.doors import Selected

_RAW = decoding_named(None)


def open_watch(selected: Selected, key: bytes, scope: int) -> AsyncWatch:
    """A watch of one key, or of a prefix, whatever they look like."""
    state = WatchState(selected.grant, key, None, CREDIT_DEFAULT, _RAW)
    state.scope, state.key = scope, key
    return AsyncWatch(selected.client, state, None)


class Shared:
    """One watch of the node, and who hears it."""

    def __init__(self, watch: AsyncWatch) -> None:
        self.watch = watch
        self.hearers: dict[Conversation, None] = {}
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Watches:
    """See the module's docstring.

    Args:
        background: keeps a task until it ends.
    """

    def __init__(self, background: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._background = background
        self._shared: dict[tuple[Selected, bytes], Shared] = {}
        self._counts: dict[bytes, int] = {}
        self._count_hearers: dict[bytes, dict[Conversation, None]] = {}

    # Keys

    async def watch(self, conversation: Conversation, selected: Selected, key: bytes) -> None:
        """Has a client hear of changes of a key from now on. Raises what the node refuses."""
        if key == CONNECTIONS:
            self._count_hearers.setdefault(selected.database, {})[conversation] = None
            return
        place = (selected, key)
        shared = self._shared.get(place)
        if shared is None:
            shared = self._shared[place] = Shared(open_watch(selected, key, WATCH_KEY))
            self._background(self._serve(place, shared))
        shared.hearers[conversation] = None
        await asyncio.shield(shared.begun)

    async def _serve(self, place: tuple[Selected, bytes], shared: Shared) -> None:
        """Hands the events of a watch to all who hear it."""
        try:
            await shared.watch
            shared.begun.set_result(None)
            async for event in shared.watch:
                await self._tell(place[0], event, shared)
        except NunError as error:
            if not shared.begun.done():
                shared.begun.set_exception(error)
                shared.begun.exception()
        finally:
            if self._shared.get(place) is shared:
                del self._shared[place]

    async def _tell(self, selected: Selected, event: Event, shared: Shared) -> None:
        value: bytes | None
        if event.kind == "set":
            value = event.value
            if event.key.startswith(CONFLICTS):
                value = await conflict_value(selected, event.key, event.value)
        elif event.kind == "removed":
            value = None
        else:
            return
        notices = language.change_notices(event.key, event.version, value)
        for conversation in list(shared.hearers):
            conversation.notify(notices)

    def unwatch(self, conversation: Conversation, selected: Selected, key: bytes | None) -> None:
        """Ends a client's watch of a key, or all of its in a database."""
        if key in (None, CONNECTIONS):
            self._count_hearers.get(selected.database, {}).pop(conversation, None)
        for place, shared in list(self._shared.items()):
            if place[0] is selected and key in (None, place[1]):
                self._drop(place, shared, conversation)

    def left(self, conversation: Conversation) -> None:
        """A client is gone."""
        for hearers in self._count_hearers.values():
            hearers.pop(conversation, None)
        for place, shared in list(self._shared.items()):
            self._drop(place, shared, conversation)

    def _drop(
        self, place: tuple[Selected, bytes], shared: Shared, conversation: Conversation
    ) -> None:
        if conversation in shared.hearers:
            del shared.hearers[conversation]
            if not shared.hearers:
                del self._shared[place]
                self._background(shared.watch.close())

    # Connections

    def count(self, database: bytes) -> int:
        return self._counts.get(database, 0)

    def counted(self, database: bytes, change: int) -> None:
        """A client has selected a database, or left it."""
        count = self._counts[database] = self._counts.get(database, 0) + change
        notices = language.change_notices(CONNECTIONS, count, b"%d" % count)
        for conversation in list(self._count_hearers.get(database, ())):
            conversation.notify(notices)


async def conflict_value(selected: Selected, place: bytes, data: bytes) -> bytes:
    """What a record of the ledger reads as for NunDB's clients."""
    entry = language.entry_in(data)
    if entry is None or entry["state"] == "open":
        return language.conflict_text(data, None)
    return language.conflict_text(data, await read(selected, key_in(place)))


def key_in(place: bytes) -> bytes:
    """The key that a record of the ledger is about."""
    return place.removeprefix(CONFLICTS).rpartition(b"_")[0]


async def read(selected: Selected, key: bytes) -> bytes | None:
    """A key's record as the node gives it."""
    request = Request(GET, selected.grant, (key,), nothing)
    await selected.client._run(request)
    record: bytes | None = request.result
    return record
