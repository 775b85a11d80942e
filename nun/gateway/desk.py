"""What all conversations of a gateway share: the doors, watches, arbiters, tasks and counts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from nun.errors import NunError
from nun.gateway.arbiters import Arbiters
from nun.gateway.conversation import Conversation
from nun.gateway.doors import Doors
from nun.gateway.language import Reply
from nun.gateway.verbs import perform
from nun.gateway.watching import Watches

_AVERAGED: Final = 100  # of the moving average that `metrics-state` tells


class Desk:
    """See the module's docstring.

    Args:
        address, secret: of the network process.
        node: the name of this node.
        local: whether writes on a replica are answered at once.
        log: a structlog logger.

    Attributes:
        written: writes that clients have asked for, ever.
        read_ms: moving average of reads, in whole milliseconds as NunDB takes it.
    """

    def __init__(self, address: str, secret: bytes, node: str, local: bool, log: Any) -> None:
        self.node = node
        self.log = log
        self.written = 0
        self.read_ms = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.doors = Doors(address, secret, node, local, self.background, self._came_late)
        self.watches = Watches(self.background)
        self.arbiters = Arbiters(self.background)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something that nobody waits for; it is kept until its end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, NunError):
            self.fault(error, b"background")

    def fault(self, error: BaseException, what: bytes) -> None:
        """Something here failed in a way that nobody has foreseen."""
        self.log.error("gateway_fault", what=what[:64].decode("utf-8", "replace"), exc_info=error)

    def _came_late(self, outcome: Any) -> None:
        """A write that was answered before it was decided did not simply win. The ledger has it."""
        tell = self.log.debug if outcome.state == "resolved" else self.log.info
        tell("late_outcome", state=outcome.state, reason=outcome.reason, op_id=outcome.op_id)

    async def perform(self, conversation: Conversation, parts: list[bytes]) -> Reply:
        """A command that is no plain read or write."""
        return await perform(self, conversation, parts)

    def observe_read(self, seconds: float) -> None:
        self.read_ms += (int(seconds * 1_000) - self.read_ms) / _AVERAGED

    def left(self, conversation: Conversation) -> None:
        """A client is gone."""
        self.watches.left(conversation)
        self.arbiters.left(conversation)
        if conversation.selected is not None:
            self.watches.counted(conversation.selected.database, -1)
            conversation.selected = None

    async def close(self) -> None:
        """Ends all that was begun here."""
        for task in list(self._tasks):
            task.cancel()
        await self.doors.close()
