"""Arbiters of NunDB's kind: all of a database's get every conflict, and answer with `resolve`.

The ledger of a database is watched as long as an arbiter is connected; what is open when one comes is told first. Of
a key whose queue is long they get one entry after the other, each with what the key holds by then: NunDB sends all at
once, with the names of records in the place of values, for which its client waits in a way that fails.

As long as there is one it is known to the whole cluster, as nun's own arbiters are (`no_arbiter = "reject"` asks for
that); a gateway claims no keys.

A resolution closes the one entry that it names, which must be the oldest of its key. It goes to the node like any
write, so rights, order and durability are the node's.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nun.client import conflicts as ledger
from nun.core.conflicts.ledger import OPEN
from nun.core.conflicts.ledger_keys import entry_key, hidden_bytes, key_and_op_id
from nun.errors import ClaimLost, NunError
from nun.gateway import language
from nun.gateway.language import CONFLICTS, DONE, Reply, failed
from nun.gateway.watching import Feed, read
from nun.messages import WATCH_PREFIX

if TYPE_CHECKING:
    from nun.client.results import Event
    from nun.gateway.conversation import Conversation
    from nun.gateway.doors import Selected

_TRIES: Final = 20
_PAUSE_S: Final = 0.05  # a replica shows what the primary has decided a moment later
_PAGE: Final = 1_000
_PRESENT_MS: Final = 10_000  # how long one request says that somebody is there
_PRESENT_AGAIN_S: Final = 0.5
# For the primary to know of an arbiter, before it is told that it is one.
_PRESENT_PATIENCE_S: Final = 5.0


class _Desk:
    """The arbiters of one database who come as the same user."""

    def __init__(self, selected: Selected) -> None:
        self.selected = selected
        self.feed = Feed(selected, CONFLICTS, WATCH_PREFIX)
        self.open: dict[int, dict[str, Any]] = {}  # op id -> entry
        self.shown: dict[int, int] = {}  # op id -> op id of the record that arbiters saw with it
        self.joining = 0
        self.name = secrets.token_bytes(8)  # what the primary knows it by
        self.present = asyncio.Event()  # the primary knows of it
        self.over = False
        self.closed: set[int] = (
            set()
        )  # while somebody joins: what a page read before may still call open


class Arbiters:
    """See the module's docstring.

    I1  A resolution is fenced by the record that arbiters saw with the entry: if the key holds another by then, it is
        refused and the entry is shown again. So no value is written over that no arbiter has seen.
    """

    def __init__(self, background: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._background = background
        self._desks: dict[Selected, _Desk] = {}

    async def join(self, conversation: Conversation, selected: Selected) -> None:
        """Makes a client an arbiter, and tells it what is open. Raises what the node refuses."""
        desk = self._desks.get(selected)
        if desk is None:
            desk = self._desks[selected] = _Desk(selected)
            self._background(self._serve(desk))
            self._background(self._be_present(desk))
        desk.joining += 1
        try:
            await desk.feed.begun()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PRESENT_PATIENCE_S):
                    await desk.present.wait()
            for entry in await self._open(selected, None):
                if entry["op_id"] not in desk.closed:
                    desk.open.setdefault(entry["op_id"], entry)
            if not conversation.closed:
                desk.feed.hearers[conversation] = None
        finally:
            desk.joining -= 1
            if not desk.joining:
                desk.closed.clear()
            self._end_if_unused(desk)
        for entry in list(desk.open.values()):
            await self._offer(desk, entry, (conversation,))

    def left(self, conversation: Conversation) -> None:
        """A client is gone."""
        for desk in list(self._desks.values()):
            if conversation in desk.feed.hearers:
                del desk.feed.hearers[conversation]
                self._end_if_unused(desk)

    def _end_if_unused(self, desk: _Desk) -> None:
        in_use = desk.joining or desk.feed.hearers
        if not in_use and self._desks.get(desk.selected) is desk:
            del self._desks[desk.selected]
            self._background(desk.feed.close())
            self._background(self._leave(desk))

    async def _serve(self, desk: _Desk) -> None:
        try:
            await desk.feed.serve(partial(self._heard, desk))
        finally:
            if self._desks.get(desk.selected) is desk:
                del self._desks[desk.selected]
                self._background(self._leave(desk))

    async def _be_present(self, desk: _Desk) -> None:
        """Has the primary count a desk as an arbiter, until it is over."""
        selected, patience_ms = desk.selected, 0
        while not desk.over:
            request = ledger.claim(selected.grant, desk.name, patience_ms, 0)
            try:
                await selected.client._run(request, patience_ms / 1_000 + selected.client._timeout)
            except NunError:
                await asyncio.sleep(_PRESENT_AGAIN_S)
                continue
            patience_ms = _PRESENT_MS
            desk.present.set()

    async def _leave(self, desk: _Desk) -> None:
        """Nobody is there any more; what waits to say otherwise is answered."""
        desk.over = True
        with contextlib.suppress(NunError):
            await desk.selected.client._run(ledger.leave(desk.selected.grant, desk.name))

    async def _heard(self, desk: _Desk, event: Event) -> None:
        if event.kind == "compacted":  # what is open is told anew
            desk.open.clear()
        elif event.kind == "removed":
            await self._closed(desk, key_and_op_id(event.key)[1])
        elif event.kind == "set" and (entry := language.entry_in(event.value)) is not None:
            op_id = entry["op_id"]
            if entry["state"] != OPEN:
                await self._closed(desk, op_id)
            elif op_id not in desk.open:
                desk.open[op_id] = entry
                await self._offer(desk, entry, tuple(desk.feed.hearers))

    async def _closed(self, desk: _Desk, op_id: int) -> None:
        """An entry is open no more: what waited for it is the next."""
        if desk.joining:
            desk.closed.add(op_id)
        desk.open.pop(op_id, None)
        desk.shown.pop(op_id, None)
        for entry in [one for one in desk.open.values() if one["previous"] == op_id]:
            await self._offer(desk, entry, tuple(desk.feed.hearers))

    async def _offer(
        self, desk: _Desk, entry: dict[str, Any], arbiters: Sequence[Conversation]
    ) -> None:
        """Asks arbiters about an entry, if it is the next of its key."""
        if entry["kind"] == "increment" or entry["previous"] in desk.open:
            return
        record = await read(desk.selected, hidden_bytes(entry["key"]))
        desk.shown[entry["op_id"]] = language.op_id_of(record)
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
        """Closes the entry of a write with a value. Raises what the node refuses."""
        desk = self._desks.get(selected)
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            queue = {entry["op_id"]: entry for entry in await self._open(selected, key)}
            if op_id not in queue:
                return DONE  # somebody else was first
            if queue[op_id]["previous"] in queue:
                continue  # that was closed a moment ago, or is still open
            held = language.op_id_of(await read(selected, key))
            shown = held if desk is None else desk.shown.get(op_id, held)
            request = ledger.resolve(selected.grant, key, value, shown, [op_id], 0)
            try:
                await selected.client._run(request)
            except ClaimLost:
                if desk is not None and held != shown:
                    await self._offer(desk, queue[op_id], tuple(desk.feed.hearers))
                    return failed(b"%s holds another value by now: it is shown again" % key)
                continue
            return DONE
        first = min(queue)
        return failed(b"$conflicts_%s_%d is to be resolved first" % (key, first))
