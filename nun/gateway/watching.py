"""Change notices. One watch of the node serves all clients that watch the same key as the same user.

`$connections` is counted here: how many clients have selected a database on this node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
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


class Feed:
    """One watch of the node, and the clients that it is for.

    If the node ends it, a client cannot be told: its connection is ended, and it comes again.
    """

    def __init__(self, selected: Selected, key: bytes, scope: int) -> None:
        self.selected = selected
        self.hearers: dict[Conversation, None] = {}
        self._watch = open_watch(selected, key, scope)
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def begun(self) -> None:
        """Waits until the node serves it. Raises what the node refuses."""
        await asyncio.shield(self._begun)

    async def serve(self, heard: Callable[[Event], Awaitable[None]]) -> None:
        """Hands each event on, until the watch ends."""
        try:
            await self._watch
            self._begun.set_result(None)
            async for event in self._watch:
                await heard(event)
        except NunError as error:
            if not self._begun.done():
                self._begun.set_exception(error)
                self._begun.exception()  # nobody may be waiting
            else:
                for conversation in list(self.hearers):
                    conversation.drop()

    async def close(self) -> None:
        await self._watch.close()


class Watches:
    """See the module's docstring.

    Args:
        background: keeps a task until it ends.
    """

    def __init__(self, background: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._background = background
        self._feeds: dict[tuple[Selected, bytes], Feed] = {}
        self._counts: dict[bytes, int] = {}
        self._count_hearers: dict[bytes, dict[Conversation, None]] = {}

    # Keys

    async def watch(self, conversation: Conversation, selected: Selected, key: bytes) -> None:
        """Has a client hear of changes of a key from now on. Raises what the node refuses."""
        if key == CONNECTIONS:
            self._count_hearers.setdefault(selected.database, {})[conversation] = None
            return
        place = (selected, key)
        feed = self._feeds.get(place)
        if feed is None:
            feed = self._feeds[place] = Feed(selected, key, WATCH_KEY)
            self._background(self._serve(place, feed))
        feed.hearers[conversation] = None
        await feed.begun()

    async def _serve(self, place: tuple[Selected, bytes], feed: Feed) -> None:
        try:
            await feed.serve(partial(self._tell, feed))
        finally:
            if self._feeds.get(place) is feed:
                del self._feeds[place]

    async def _tell(self, feed: Feed, event: Event) -> None:
        value: bytes | None
        if event.kind == "set":
            value = event.value
            if event.key.startswith(CONFLICTS):
                value = await conflict_value(feed.selected, event.key, event.value)
        elif event.kind == "removed":
            value = None
        else:
            return
        notices = language.change_notices(event.key, event.version, value)
        for conversation in list(feed.hearers):
            conversation.notify(notices)

    def unwatch(self, conversation: Conversation, selected: Selected, key: bytes | None) -> None:
        """Ends a client's watch of a key, or all of its in a database."""
        if key in (None, CONNECTIONS):
            self._count_hearers.get(selected.database, {}).pop(conversation, None)
        for place, feed in list(self._feeds.items()):
            if place[0] is selected and key in (None, place[1]):
                self._drop(place, feed, conversation)

    def left(self, conversation: Conversation) -> None:
        """A client is gone."""
        for hearers in self._count_hearers.values():
            hearers.pop(conversation, None)
        for place, feed in list(self._feeds.items()):
            self._drop(place, feed, conversation)

    def _drop(self, place: tuple[Selected, bytes], feed: Feed, conversation: Conversation) -> None:
        if conversation in feed.hearers:
            del feed.hearers[conversation]
            if not feed.hearers:
                del self._feeds[place]
                self._background(feed.close())

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
