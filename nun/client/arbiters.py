"""Arbiters and the ledger, for threads: what `Database` offers about conflicts."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Self

from nun.client import conflicts as cf
from nun.client import operations as ops
from nun.client.conflicts import Conflict, Offer
from nun.client.notices import Outcome
from nun.client.results import Entry, Result
from nun.client.values import Decoding, decoding_named
from nun.errors import (
    BatchError,
    ClaimLost,
    ConflictPending,
    ConnectionLost,
    LevelNotReached,
    NoPrimary,
    NotServing,
    NunError,
    Overloaded,
    UnknownOutcome,
)
from nun.merge import Skip

if TYPE_CHECKING:
    from nun.client.request import Grant, Request
    from nun.client.sync import Client, Database

Handler = Callable[[Conflict], Any]
Done = Callable[[Conflict, Any], None]
Text = str | bytes

RAW: Final = decoding_named(None)
PASSING: Final = (ConnectionLost, UnknownOutcome, Overloaded, NoPrimary, NotServing)
PAUSE_S: Final = 0.2
log = logging.getLogger("nun.arbiter")


class Waiting:
    """Waiting for what became of writes that are in conflict; a part of `Client`."""

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

    def _became(
        self: Any, grant: Grant, key: Text, op_id: int, decoding: Decoding, timeout: float | None
    ) -> Outcome:
        """The outcome of a write, from its entry of the ledger; it is not told again by `outcomes`."""
        until = None if timeout is None else monotonic() + timeout
        place = cf.place_of(key, op_id)
        client: Client = self
        with client._watch(grant, place) as watch:
            while True:
                entry: Entry | None = client._run(ops.get(grant, place, RAW))
                if entry is not None:
                    held = client._run(ops.get(grant, key, decoding))
                    current = None if held is None else held.value
                    outcome = cf.outcome_of(place, entry.value, current, decoding)
                    if outcome is not None:
                        client._run(ops.seen([op_id]))
                        return outcome
                left = None if until is None else until - monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(
                        f"{place.decode('utf-8', 'replace')} is not decided after {timeout:g} s"
                    )
                watch.next_event(left)


class Arbiter:
    """Decides conflicts of one database, in threads of its own. From `Database.arbiter(..., background=True)`.

    Attributes:
        resolved: conflicts that its answers closed.
        failed: answers that were none: the handler raised, or returned None.
        lost: answers that came too late: the claim had ended, or the key had changed.
    """

    def __init__(
        self,
        database: Database,
        handler: Handler,
        lease: float,
        poll: float,
        workers: int,
        done: Done | None = None,
    ) -> None:
        if lease <= 0 or poll <= 0 or workers < 1:
            raise ValueError("lease and poll are seconds above 0, workers at least 1")
        self.resolved = self.failed = self.lost = 0
        self.error: NunError | None = None
        self._database = database
        self._handler = handler
        self._done = done
        self._lease_ms, self._poll_ms = max(int(lease * 1_000), 1), max(int(poll * 1_000), 1)
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._clients: list[Client] = []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    def start(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Ends it: what it has claimed goes to other arbiters at once."""
        self._halt.set()
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            client.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    @property
    def alive(self) -> bool:
        """Whether it goes on."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Waits until it ends. Raises what ended it."""
        while self.alive:
            for thread in self._threads:
                thread.join(0.2)
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _work(self) -> None:
        """One worker, with a connection of its own: a handler that takes its time holds up nobody else."""
        try:
            while not self._halt.is_set():
                try:
                    with self._database._client._again() as client:
                        with self._lock:
                            self._clients.append(client)
                        self._decide_with(client)
                except PASSING as error:
                    if not self._halt.is_set():
                        log.warning("an arbiter waits: %s", error)
                        self._halt.wait(PAUSE_S)
        except NunError as error:
            self.error = error
            self._halt.set()

    def _decide_with(self, client: Client) -> None:
        grant = self._database._grant.copy()
        name = secrets.token_bytes(8)
        patience_s = self._poll_ms / 1_000 + client._timeout
        while not self._halt.is_set():
            request = cf.claim(grant, name, self._poll_ms, self._lease_ms)
            try:
                claimed = client._run(request, patience_s)
            except PASSING as error:
                if client._port.refusal is not None:
                    raise
                log.warning("an arbiter waits: %s", error)
                self._halt.wait(PAUSE_S)
                continue
            if claimed is not None:
                self._decide(client, grant, name, Offer(claimed, self._database._decoding))

    def _decide(self, client: Client, grant: Grant, name: bytes, offer: Offer) -> None:
        shown = offer.key.decode("utf-8", "replace")
        answers: list[tuple[Conflict, Any]] = []
        try:
            for conflict in offer.conflicts():
                answer = self._handler(conflict)
                offer.answered(answer)
                answers.append((conflict, answer))
        except Exception as error:
            # Whatever the handler does wrong is its own affair: the key is somebody else's, and this one goes on.
            if not isinstance(error, Skip):
                self.failed += 1
                log.error("key %r: the handler failed: %r", shown, error)
            client._run(cf.release(grant, name, offer))
            return
        try:
            client._run(offer.resolution(grant))
        except (ClaimLost, LevelNotReached) as error:
            self.lost += 1
            log.warning("key %r: the answer came too late: %s", shown, error)
        else:
            self.resolved += len(answers)
            if self._done is not None:
                for conflict, answer in answers:
                    self._done(conflict, answer)


class Arbitrated:
    """What a database offers about its conflicts; a part of `Database`."""

    _client: Client
    _grant: Grant
    _decoding: Decoding

    def arbiter(
        self: Any,
        handler: Handler,
        *,
        lease: float = 30.0,
        poll: float = 5.0,
        workers: int = 1,
        background: bool = False,
        done: Done | None = None,
    ) -> Arbiter:
        """Decides this database's conflicts: `handler(conflict)` returns what the key is to hold, or nun.REMOVED.

        Runs until the client is closed; with `background` in threads of its own, until it is stopped. A handler that
        raises gives the key back, and the arbiter goes on.

        Args:
            lease: how many seconds the handler has for one key; then another arbiter gets it.
            poll: how long one request waits for a conflict to come up.
            workers: how many keys at the same time.
            done: called with (conflict, answer) for each that was resolved.

        Raises:
            AuthError, NoSuchDatabase: what ended it. PermissionDenied.
        """
        arbiter = Arbiter(self, handler, lease, poll, workers, done).start()
        if not background:
            self._client._arbiters.append(arbiter)
            arbiter.join()
        return arbiter

    def try_arbiter(self, handler: Handler) -> Iterator[tuple[Conflict, Any]]:
        """A dry run over all open conflicts: each with what the handler answers, or the exception it raised.

        Claims and changes nothing. Each is shown what the key holds now.
        """
        for conflict in self.conflicts():
            if conflict.kind == "increment":
                continue
            try:
                yield conflict, handler(conflict)
            except Exception as error:  # the caller is to see it, and the rest
                yield conflict, error

    def conflicts(
        self: Any,
        state: str | None = "open",
        key: Text | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Iterator[Conflict]:
        """Entries of the ledger, in order of their keys, fetched in pages as they are used.

        Args:
            state: "open", "resolved", "decided", "expired", "refused"; None: all.
            key: of this key only.
            limit: no more than so many.
            after: the id of the one to go on after.
        """
        left = limit
        mark = None if after is None else after.encode()
        while True:
            found, mark = self._run(cf.page(self._grant, state, key, left, mark))
            yield from self._conflicts_of(found)
            if left is not None:
                left -= len(found)
            if mark is None or left == 0:
                return

    def _conflicts_of(self: Any, found: list[Any]) -> list[Conflict]:
        made = [cf.conflict_of(place, data, self._decoding) for place, data in found]
        waiting = list({one.key: None for one in made if one.state == "open"})
        held = dict(zip(waiting, self.get_many(waiting), strict=True)) if waiting else {}
        return cf.completed(made, held)

    def queue(self: Any, key: Text) -> list[Conflict]:
        """What is open on a key, oldest first, up to the first increment: that is added when nothing is before it."""
        return cf.in_order(list(self.conflicts(key=key)))

    def resolve(
        self: Any,
        conflict: Conflict,
        value: Any,
        *,
        timeout: float | None = None,
    ) -> Result:
        """Closes a conflict and all that came before it in its key's queue, with a value or nun.REMOVED.

        Args:
            conflict: one of `conflicts()`.

        Raises:
            ClaimLost: what the key holds, or its queue, has changed since.
            BadRequest: it is not open.
        """
        names = [one.op_id for one in cf.until(self.queue(conflict.key), conflict)]
        shown = 0 if conflict.current is None else conflict.current.op_id
        answer = cf.encoded(value, self._decoding)
        request = cf.resolve(self._grant, conflict.key, answer, shown, names, 0)
        result: Result = self._run(request, timeout)
        return result
