"""Clients that arbitrate, well and badly; and what is known of claims, from what each conflict manager hears and says.

A1  A key is offered to one arbiter at a time; a claim is good until its lease is over, its key changes, or its arbiter
    leaves or gives it back.
A2  A resolution with an attempt is accepted only if that claim was good when it was asked.
A3  What an arbiter answers is the merge of what it was shown, and it closes what it names: see `check_merged`.
A4  Whoever asks is offered at once what is free, but not at once what it has just given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from nun import messages as m
from nun.client.request import Request
from nun.core import record
from nun.core.conflicts.ledger_keys import hidden_bytes
from nun.errors import ClaimLost
from tests.simulation.client import Client, outcome
from tests.simulation.conflicting import NUMBERS
from tests.simulation.model import Model
from tests.simulation.oracle import value_in
from tests.simulation.process import Failed
from tests.simulation.world import MS

_MS_NS: Final = 1_000_000
_HABITS: Final = (
    ("answer", 40),
    ("answer_part", 10),
    ("answer_late", 10),
    ("answer_twice", 8),
    ("answer_elsewhere", 8),
    ("answer_by_hand", 6),
    ("give_back", 7),
    ("forget", 5),
    ("die", 4),
    ("leave", 4),
)
Key = tuple[int, bytes]


def merged(key: bytes, values: Iterable[bytes | None]) -> bytes | None:
    """What an arbiter makes of values: of numbers the highest, else all words that stand in any. None: nothing."""
    held = [value for value in values if value is not None]
    if not held:
        return None
    if key.startswith(b"m"):
        return b"%d" % max(map(int, held))
    return b" ".join(sorted({word for value in held for word in value.split()}))


def check_merged(model: Model, arbiters: Iterable[str]) -> None:
    """A3, of every resolution in a history."""
    known = set(arbiters)
    for closing in model.closings:
        if closing.named is None:
            continue
        database, key = closing.key
        entries = [model.entry(database, key, op_id) for op_id in closing.named]
        if not {bytes.fromhex(entry["decider"]).decode() for entry in entries} <= known:
            continue  # resolved by a story
        if model.forced and key.decode() in NUMBERS:
            continue  # an increment that was decided anew keeps its op id, and may have come to another sum
        values = [value_in(closing.before), *(hidden_bytes(entry["value"]) for entry in entries)]
        if closing.argument != merged(key, values):
            raise Failed(f"P1: {closing}: expected the merge of {values}")


class Claims:
    """A1 and A2, looking over the shoulder of every conflict manager.

    Attributes:
        passed: (key, attempt) of every claim that was good when a resolution came.
    """

    def __init__(self) -> None:
        self.passed: set[tuple[Key, int]] = set()

    def watch(self, node: Any) -> None:
        def told(what: str, process: Any) -> None:
            if what == "started" and process.name == "conflicts" and process.actor is not None:
                _Manager(self, node.name, process.actor.core)

        node.watchers.append(told)


class _Manager:
    """One life of a conflict manager."""

    def __init__(self, claims: Claims, name: str, core: Any) -> None:
        self._all = claims
        self._name = name
        self._core = core
        self._asked: dict[int, tuple[bytes, int]] = {}  # ticket -> arbiter, lease
        self._asking: dict[
            int, tuple[bytes, int, list[bytes]]
        ] = {}  # -> arbiter, database, not these
        self._open: set[Key] = set()  # keys with something to be asked about
        self._back: dict[Key, tuple[bytes, int]] = {}  # given back: by whom, when
        self._claims: dict[Key, tuple[bytes, int, int]] = {}  # -> arbiter, attempt, until
        self._said = len(core.out)
        self._hear, self._tick, self._take = core.hear, core.ticked, core.take_output
        core.hear, core.ticked, core.take_output = self.hear, self.ticked, self.take_output

    def hear(self, message: Sequence[Any]) -> None:
        expected: tuple[int, Key, int, bool] | None = None
        match message:
            case [m.CONFLICTS_ARE, keys]:
                self._claims.clear()
                self._asking.clear()
                self._open = {(database, key) for database, key, entries, _ in keys if entries}
            case [m.CONFLICT_IS, database, key, entries, _, closed]:
                if closed or not entries:
                    self._claims.pop((database, key), None)
                (self._open.add if entries else self._open.discard)((database, key))
            case [m.CLAIM_WANTED, ticket, arbiter, database, _, lease_ms, _, skipped]:
                self._asked[ticket] = (arbiter, lease_ms * _MS_NS)
                self._asking[ticket] = (arbiter, database, skipped)
            case [m.CLAIM_RELEASED, arbiter, database, key, attempt]:
                held = self._claims.get((database, key))
                if held is not None and held[:2] == (arbiter, attempt):
                    del self._claims[database, key]
                    self._back[database, key] = (arbiter, self._core.now_ns)
            case [m.ARBITER_GONE, arbiter]:
                claims, asking = self._claims.items(), self._asking.items()
                self._claims = {key: held for key, held in claims if held[0] != arbiter}
                self._asking = {ticket: one for ticket, one in asking if one[0] != arbiter}
            case [m.CLAIM_CHECK, ticket, database, key, attempt]:
                held = self._claims.get((database, key))
                good = held is not None and held[1] == attempt
                expected = (ticket, (database, key), attempt, good)
        self._hear(message)
        self._listen(expected)

    def ticked(self, now_ns: int, unix_ms: int) -> None:
        self._claims = {key: held for key, held in self._claims.items() if held[2] > now_ns}
        self._tick(now_ns, unix_ms)
        self._listen(None)

    def take_output(self) -> Any:
        self._said = 0
        return self._take()

    def _listen(self, expected: tuple[int, Key, int, bool] | None) -> None:
        """What it has said just now."""
        said, self._said = self._core.out[self._said :], len(self._core.out)
        for message in said:
            if message[0] == m.OFFER:
                self._asking.pop(message[1], None)
            match message:
                case (m.OFFER, ticket, database, key, attempt) if key is not None:
                    if (database, key) in self._claims:
                        held = self._claims[database, key]
                        raise Failed(f"{self._name} offers {key!r}, which is claimed: {held}")
                    arbiter, lease_ns = self._asked[ticket]
                    until_ns = self._core.now_ns + lease_ns
                    self._claims[database, key] = (arbiter, attempt, until_ns)
                case (m.CLAIM_IS, ticket, good):
                    if expected is None or expected[0] != ticket or expected[3] != good:
                        raise Failed(f"{self._name} says {message}, expected {expected}")
                    if good:
                        self._all.passed.add((expected[1], expected[2]))

        for arbiter, database, skipped in self._asking.values():
            for key in self._open - self._claims.keys():
                by, at_ns = self._back.get(key, (b"", 0))
                given_back = by == arbiter and self._core.now_ns - at_ns <= 100 * MS
                if key[0] == database and key[1] not in skipped and not given_back:
                    raise Failed(
                        f"{self._name} does not offer {key}, which is free, to {arbiter!r}"
                    )


class Arbiter:
    """One arbiter. It asks for a key, looks at it for a while, and answers, or does not."""

    def __init__(self, simulation: Any, client: Client, well_behaved: bool = False) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.client = client
        self.well_behaved = well_behaved
        rng = self.world.rng
        self.lease_ms = 1_000 if well_behaved else rng.choice((150, 400, 1_500, 6_000))
        self.haste_ns = rng.choice((20, 100, 400)) * MS
        self.stopping = False
        self._soon(50)

    def _soon(self, ms: int) -> None:
        self.world.after(self.world.between(1, ms) * MS, self._claim)

    def _ask(self, kind: int, arguments: tuple[Any, ...], seconds: float, answered: Any) -> None:
        if not self.client.closed:
            request = Request(kind, self.client.grant, arguments, _result)
            self.client.ask(request, seconds, answered)

    def _claim(self) -> None:
        if self.stopping or self.client.closed:
            return
        patience_ms = self.world.rng.choice((0, 300, 1_000))
        arguments = (self.client.name.encode(), patience_ms, self.lease_ms)
        self._ask(m.CLAIM, arguments, 3.0, self._offered)

    def _offered(self, request: Request) -> None:
        ending, offer = outcome(request)
        self.simulation.tally["claim " + (ending if offer is not None else "in vain")] += 1
        if ending != "done" or offer is None:
            self._soon(200)
            return
        habits, weights = zip(*_HABITS, strict=True)
        habit = "answer" if self.well_behaved else self.world.rng.choices(habits, weights)[0]
        self.world.note("arbiter", self.client.name, habit, offer[1])
        getattr(self, "_" + habit)(offer)

    def _later(self, offer: Any, ns: int, **how: Any) -> None:
        self.world.after(ns, lambda: self._resolve(offer, **how))

    def _resolve(
        self,
        offer: Any,
        count: int | None = None,
        by_hand: bool = False,
        then: Any = None,
    ) -> None:
        attempt, key, current, shown, _, entries, _ = offer
        named = entries[:count]
        values = [None if current is None else record.value_of(current)]
        value = merged(key, [*values, *(entry[2] for entry in named)])
        kind = m.REMOVE if value is None else m.SET
        op_ids = [entry[0] for entry in named]
        asked = 0 if by_hand else attempt
        database = self.client.grant.number

        def answered(request: Request) -> None:
            ending, result = outcome(request)
            name = type(result).__name__ if ending == "refused" else ending
            self.simulation.tally["resolution " + name] += 1
            if ending == "refused" and not isinstance(result, ClaimLost):
                self.world.note("resolution refused", self.client.name, repr(result))
            if ending == "done":
                self.simulation.acked_resolutions[request.op_id] = key
                if asked and ((database, key), asked) not in self.simulation.claims.passed:
                    raise Failed(f"a resolution of {key!r} with attempt {asked} was accepted")
            (then or (lambda: self._soon(100)))()

        self._ask(m.RESOLVE, (key, kind, value, shown, op_ids, asked), 4.0, answered)

    # Habits

    def _answer(self, offer: Any) -> None:
        self._later(offer, self.world.between(1 * MS, self.haste_ns))

    def _answer_part(self, offer: Any) -> None:
        self._later(offer, self.world.between(1 * MS, self.haste_ns), count=1)

    def _answer_late(self, offer: Any) -> None:
        self._later(offer, (self.lease_ms + self.world.between(0, 1_000)) * MS)

    def _answer_twice(self, offer: Any) -> None:
        self._later(offer, 1 * MS, then=lambda: self._resolve(offer))

    def _answer_elsewhere(self, offer: Any) -> None:
        if len(self.client.addresses) > 1:
            self.client.move()
        self._answer(offer)

    def _answer_by_hand(self, offer: Any) -> None:
        self._later(offer, self.world.between(1 * MS, 2 * self.haste_ns), by_hand=True)

    def _give_back(self, offer: Any) -> None:
        attempt, key, *_ = offer
        arguments = (self.client.name.encode(), key, attempt)
        self._ask(m.RELEASE, arguments, 3.0, lambda _: self._resolve(offer))

    def _forget(self, _: Any) -> None:
        self._soon(300)

    def _die(self, _: Any) -> None:
        """Without a word."""
        self.client.close()
        self.world.after(self.world.between(50, 1_000) * MS, self._another)

    def _leave(self, _: Any) -> None:
        self.client.ask(Request(m.BYE, None, (), _result), 1.0, lambda _: None)
        self.world.after(20 * MS, self.client.close)
        self.world.after(self.world.between(50, 1_000) * MS, self._another)

    def _another(self) -> None:
        if not self.simulation.healed:
            self.simulation.arbitrate()


def _result(request: Request) -> Any:
    return request.result
