"""The conflict manager's core: who arbitrates what, and until when. It decides about attention, never about data.

    key:      waiting --- an arbiter asks ---> claimed --- resolved, expired --------------> gone, or waiting again
                 ^                               |
                 +--- lease over, given back, ---+
                      arbiter gone

The network process tells it which keys are in conflict and passes on what arbiters ask; it answers with offers. It
holds nothing that is not elsewhere: started anew, it asks what is in conflict, and claims of its earlier life are over.

I1  A key is claimed by at most one arbiter; each claim has an attempt of its own, and only the present attempt's
    resolution passes. Attempts are op ids: they never come again.
I2  Keys are offered in the order in which they came to wait. One that was given back goes to the end.
I3  A deadline is told once for each state of a key; whether anything is due is for the network process to say.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nun import messages as m
from nun.limits import MANAGER_HEARD_EVERY

Key = tuple[int, bytes]  # database, key
_MS_NS: Final = 1_000_000
_PRESENT_NS: Final = 2_000_000_000  # an arbiter is there for so long after it last asked
_AGAIN_MS: Final = (
    1_000  # a deadline that was told is told again after this, while its key is in conflict
)
_BACK_NS: Final = 100_000_000  # an arbiter does not get back at once what it gave back


@dataclass(slots=True)
class _Claim:
    """A key in the hands of an arbiter."""

    arbiter: bytes
    attempt: int
    until_ns: int


@dataclass(slots=True)
class _Asking:
    """An arbiter that waits for something to decide."""

    ticket: int
    arbiter: bytes
    database: int
    until_ns: int
    lease_ns: int
    attempt: int
    skipped: frozenset[bytes]


@dataclass(slots=True)
class _Arbiter:
    """What is known of an arbiter: its claims, and until when it counts as connected."""

    database: int
    present_ns: int = 0
    claims: set[Key] = field(default_factory=set)


class ConflictManagerCore:
    """See the module's docstring. What it wants sent to the network process is collected in `out`."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self.unix_ms = 0
        self.out: list[tuple[Any, ...]] = [(m.MANAGER_UP,)]
        self._waiting: dict[int, dict[bytes, None]] = {}  # database -> keys, in the order of I2
        self._back: dict[Key, tuple[bytes, int]] = {}  # given back: by whom, not before
        self._claims: dict[Key, _Claim] = {}
        self._arbiters: dict[bytes, _Arbiter] = {}
        self._asking: dict[int, _Asking] = {}
        self._deadlines: list[tuple[int, Key]] = []
        self._deadline_of: dict[Key, int] = {}
        self._told: dict[int, int] = {}
        self._heard = 0

    def take_output(self) -> list[tuple[Any, ...]]:
        out, self.out = self.out, []
        return out

    def describe(self) -> dict[str, int]:
        return {
            "waiting": sum(map(len, self._waiting.values())),
            "claimed": len(self._claims),
            "arbiters": len(self._arbiters),
            "asking": len(self._asking),
        }

    # What the network process says

    def hear(self, message: Sequence[Any]) -> None:
        match message:
            case [m.CONFLICTS_ARE, list() as keys]:
                self._begin(keys)
            case [m.CONFLICT_IS, database, key, entries, deadline, closed]:
                if closed and (database, key) in self._claims:
                    self._wait_again((database, key))
                self._changed((database, key), entries, deadline)
            case [
                m.CLAIM_WANTED,
                ticket,
                arbiter,
                database,
                patience_ms,
                lease_ms,
                attempt,
                skipped,
            ]:
                self._asked(
                    _Asking(
                        ticket,
                        arbiter,
                        database,
                        self.now_ns + patience_ms * _MS_NS,
                        lease_ms * _MS_NS,
                        attempt,
                        frozenset(skipped),
                    )
                )
            case [m.CLAIM_RELEASED, arbiter, database, key, attempt]:
                claim = self._claims.get((database, key))
                if claim is not None and (claim.arbiter, claim.attempt) == (arbiter, attempt):
                    self._back[database, key] = (arbiter, self.now_ns + _BACK_NS)
                    self._wait_again((database, key))
            case [m.ARBITER_GONE, arbiter]:
                self._gone(arbiter)
            case [m.CLAIM_CHECK, ticket, database, key, attempt]:
                claim = self._claims.get((database, key))
                good = claim is not None and claim.attempt == attempt
                self.out.append((m.CLAIM_IS, ticket, good))
        self._heard += 1
        if self._heard == MANAGER_HEARD_EVERY:
            self.out.append((m.HEARD, self._heard))
            self._heard = 0
        self._tell_presence()
        self._offer()

    def ticked(self, now_ns: int, unix_ms: int) -> None:
        """Time has passed: leases, patience and deadlines."""
        self.now_ns, self.unix_ms = now_ns, unix_ms
        for key, claim in list(self._claims.items()):
            if claim.until_ns <= now_ns:
                self._wait_again(key)
        for ticket, asking in list(self._asking.items()):
            if asking.until_ns <= now_ns:
                self._nothing(ticket)
        while self._deadlines and self._deadlines[0][0] <= unix_ms:
            deadline, key = heapq.heappop(self._deadlines)
            if self._deadline_of.get(key) == deadline:
                self.out.append((m.EXPIRE, *key))
                self._deadline(key, unix_ms + _AGAIN_MS)
        for name, arbiter in list(self._arbiters.items()):
            if arbiter.present_ns <= now_ns and not arbiter.claims:
                del self._arbiters[name]
        self._offer()
        self._tell_presence()

    # Keys

    def _begin(self, keys: Iterable[Any]) -> None:
        """All that is in conflict now; what was known before counts no more."""
        self._waiting, self._claims, self._back = {}, {}, {}
        self._deadlines, self._deadline_of, self._told = [], {}, {}
        self._asking.clear()
        self._arbiters.clear()
        for database, key, entries, deadline in keys:
            self._changed((database, key), entries, deadline)

    def _changed(self, key: Key, entries: int, deadline: int) -> None:
        """A key is in conflict with so many entries to be asked about, or is not any more."""
        database, name = key
        waiting = self._waiting.setdefault(database, {})
        if not entries:
            waiting.pop(name, None)
            self._end_claim(key)
            self._back.pop(key, None)
            self._deadline_of.pop(key, None)
            return
        if key not in self._claims:
            waiting.setdefault(name)
        self._deadline(key, deadline)

    def _deadline(self, key: Key, deadline: int) -> None:
        if not deadline:
            self._deadline_of.pop(key, None)
        elif self._deadline_of.get(key) != deadline:
            self._deadline_of[key] = deadline
            heapq.heappush(self._deadlines, (deadline, key))

    def _wait_again(self, key: Key) -> None:
        self._end_claim(key)
        self._waiting.setdefault(key[0], {})[key[1]] = None

    def _end_claim(self, key: Key) -> None:
        claim = self._claims.pop(key, None)
        if claim is not None and claim.arbiter in self._arbiters:
            self._arbiters[claim.arbiter].claims.discard(key)

    # Arbiters

    def _asked(self, asking: _Asking) -> None:
        arbiter = self._arbiters.setdefault(asking.arbiter, _Arbiter(asking.database))
        arbiter.present_ns = max(arbiter.present_ns, asking.until_ns + _PRESENT_NS)
        self._asking[asking.ticket] = asking

    def _gone(self, name: bytes) -> None:
        """An arbiter has left: its claims end at once."""
        arbiter = self._arbiters.pop(name, None)
        if arbiter is not None:
            for key in sorted(arbiter.claims):
                self._wait_again(key)
        for ticket in [ticket for ticket, one in self._asking.items() if one.arbiter == name]:
            self._nothing(ticket)

    def _nothing(self, ticket: int) -> None:
        """There is nothing for one who asks, or it has left."""
        asking = self._asking.pop(ticket)
        self.out.append((m.OFFER, ticket, asking.database, None, 0))

    def _offer(self) -> None:
        """Gives what waits to those who ask, in order."""
        for ticket, asking in list(self._asking.items()):
            if not asking.lease_ns:  # it asks for nothing, and says that it is there
                if asking.until_ns <= self.now_ns:
                    self._nothing(ticket)
                continue
            waiting = self._waiting.get(asking.database)
            if not waiting:
                continue
            name = self._first_for(asking, waiting)
            if name is None:
                continue
            key = (asking.database, name)
            del waiting[name]
            del self._asking[ticket]
            self._back.pop(key, None)
            until_ns = self.now_ns + asking.lease_ns
            self._claims[key] = _Claim(asking.arbiter, asking.attempt, until_ns)
            arbiter = self._arbiters[asking.arbiter]
            arbiter.claims.add(key)
            self.out.append((m.OFFER, ticket, *key, asking.attempt))

    def _first_for(self, asking: _Asking, waiting: dict[bytes, None]) -> bytes | None:
        for name in waiting:
            by, not_before_ns = self._back.get((asking.database, name), (b"", 0))
            held_back = by == asking.arbiter and not_before_ns > self.now_ns
            if name not in asking.skipped and not held_back:
                return name
        return None

    def _tell_presence(self) -> None:
        counts: dict[int, int] = {}
        for arbiter in self._arbiters.values():
            counts[arbiter.database] = counts.get(arbiter.database, 0) + 1
        if counts != self._told:
            self._told = counts
            self.out.append((m.ARBITERS_ARE, [list(item) for item in sorted(counts.items())]))
