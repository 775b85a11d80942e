"""Arbiters of NunDB's kind: all of a database's get every conflict, and answer with `resolve`.

The ledger of a database is watched as long as an arbiter is connected; what is open when one comes is told first. Of
a key whose queue is long they get one entry after the other, each with what the key holds by then: NunDB sends all at
once, with the names of records in the place of values, for which its client waits in a way that fails.

A resolution closes the one entry that it names, which must be the oldest of its key. It goes to the node like any
write, so rights, order and durability are the node's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from nun.client import conflicts as ledger
from nun.client.aio_watch import AsyncWatch
from nun.core.ledger_keys import entry_key, hidden_bytes
from nun.errors import ClaimLost, NunError
from nun.gateway import language
from nun.gateway.language import CONFLICTS, DONE, Reply, failed
from nun.gateway.watching import open_watch, read
from nun.messages import WATCH_PREFIX

if TYPE_CHECKING:
    from nun.gateway.conversation import Conversation
    from nun.gateway.doors import Selected

_TRIES: Final = 20
_PAUSE_S: Final = 0.05  # a replica shows what the primary has decided a moment later
_PAGE: Final = 1_000


class _Desk:
    """The arbiters of one database who come as the same user."""

    def __init__(self, watch: AsyncWatch) -> None:
        self.watch = watch
        self.arbiters: dict[Conversation, None] = {}
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open: dict[int, dict[str, Any]] = {}  # op id -> entry


class Arbiters:
    """See the module's docstring."""

    def __init__(self, background: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._background = background
        self._desks: dict[Selected, _Desk] = {}

    async def join(self, conversation: Conversation, selected: Selected) -> None:
        """Makes a client an arbiter, and tells it what is open. Raises what the node refuses."""
        desk = self._desks.get(selected)
        if desk is None:
            desk = self._desks[selected] = _Desk(open_watch(selected, CONFLICTS, WATCH_PREFIX))
            self._background(self._serve(selected, desk))
        await asyncio.shield(desk.begun)
        for entry in await self._open(selected, None):
            desk.open.setdefault(entry["op_id"], entry)
        desk.arbiters[conversation] = None
        for entry in list(desk.open.values()):
            await self._offer(selected, desk, entry, (conversation,))

    def left(self, conversation: Conversation) -> None:
        """A client is gone."""
        for selected, desk in list(self._desks.items()):
            if conversation in desk.arbiters:
                del desk.arbiters[conversation]
                if not desk.arbiters:
                    del self._desks[selected]
                    self._background(desk.watch.close())

    async def _serve(self, selected: Selected, desk: _Desk) -> None:
        try:
            await desk.watch
            desk.begun.set_result(None)
            async for event in desk.watch:
                if event.kind == "set":
                    await self._heard(selected, desk, event.value)
        except NunError as error:  # the selection was taken back, or the node goes down
            if not desk.begun.done():
                desk.begun.set_exception(error)
                desk.begun.exception()
        finally:
            if self._desks.get(selected) is desk:
                del self._desks[selected]

    async def _heard(self, selected: Selected, desk: _Desk, data: bytes) -> None:
        entry = language.entry_in(data)
        if entry is None:
            return
        op_id = entry["op_id"]
        if entry["state"] != "open":
            desk.open.pop(op_id, None)
            for one in [one for one in desk.open.values() if one["previous"] == op_id]:
                await self._offer(selected, desk, one, tuple(desk.arbiters))
        elif op_id not in desk.open:
            desk.open[op_id] = entry
            await self._offer(selected, desk, entry, tuple(desk.arbiters))

    async def _offer(
        self,
        selected: Selected,
        desk: _Desk,
        entry: dict[str, Any],
        arbiters: Sequence[Conversation],
    ) -> None:
        """Asks arbiters about an entry, if it is the next of its key."""
        if entry["kind"] == "increment" or entry["previous"] in desk.open:
            return
        text = language.open_text(entry)
        if entry["previous"]:
            record = await read(selected, hidden_bytes(entry["key"]))
            text = language.open_text(entry, language.value_of(record))
        for conversation in arbiters:
            conversation.notify((text,))

    async def _open(self, selected: Selected, key: bytes | None) -> list[dict[str, Any]]:
        """The open entries of a database or a key, oldest first."""
        found: list[dict[str, Any]] = []
        after: bytes | None = None
        while True:
            request = ledger.page(selected.grant, "open", key, _PAGE, after)
            await selected.client._run(request)
            page, after = request.result
            entries = [language.entry_in(data) for _, data in page]
            found += [one for one in entries if one is not None]
            if after is None:
                return sorted(found, key=lambda one: one["op_id"])

    async def open_places(self, selected: Selected) -> list[bytes]:
        """The keys of all open entries, oldest first."""
        found = await self._open(selected, None)
        return [entry_key(hidden_bytes(one["key"]), one["op_id"]) for one in found]

    async def resolve(self, selected: Selected, op_id: int, key: bytes, value: bytes) -> Reply:
        """Closes the entry of a write with a value."""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            queue = await self._open(selected, key)
            op_ids = [entry["op_id"] for entry in queue]
            if op_id not in op_ids:
                return DONE  # somebody else was first
            if op_ids[0] != op_id and not _follows(queue, op_id):
                continue  # its predecessor was closed a moment ago, or is still open
            record = await read(selected, key)
            request = ledger.resolve(
                selected.grant, key, value, language.op_id_of(record), [op_id], 0
            )
            try:
                await selected.client._run(request)
            except ClaimLost:
                continue
            return DONE
        return failed(b"$conflicts_%s_%d is to be resolved first" % (key, op_ids[0]))


def _follows(queue: list[dict[str, Any]], op_id: int) -> bool:
    """Whether no entry before this one is open."""
    known = {entry["op_id"] for entry in queue}
    return any(entry["op_id"] == op_id and entry["previous"] not in known for entry in queue)
