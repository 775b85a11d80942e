"""What simulated clients do: reads and writes of every kind at every ack level, and what they expect of the answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from nun import messages as m
from nun.client import operations as ops
from nun.client.request import Request
from nun.client.values import TEXT
from nun.codec import unpack
from nun.core import effects as fx
from nun.core.accept import is_refusal
from nun.core.clock import TICK
from nun.errors import VersionConflict
from nun.position import Position
from tests.simulation.client import Client, outcome, with_level
from tests.simulation.process import Failed
from tests.simulation.reads import Read
from tests.simulation.world import MS

KEYS: Final = tuple(f"k{i}" for i in range(5))
COUNTERS: Final = tuple(f"n{i}" for i in range(2))
SETS: Final = tuple(f"s{i}" for i in range(2))


@dataclass
class Write:
    """One write request and what became of it.

    Attributes:
        values: the values that it sets, each of them unique in the run.
        acked: op ids that were acknowledged as done, by key.
        bases: op ids of the records that it was made on, where it says so.
        unsure: keys to be removed: where there is nothing, nothing is done.
        pending: those op ids that were acknowledged as kept in the queue of their key.
        ending: "" while it is under way, else "done", "refused", "pending" or "unknown".
    """

    kind: str
    client: str
    level: int | None
    keys: list[str]
    values: list[str]
    delta: int = 0
    element: str = ""
    acked: dict[str, int] = field(default_factory=dict)
    bases: list[int] = field(default_factory=list)
    unsure: set[str] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)
    position: Position | None = None
    ending: str = ""
    number: int = 0


class Worker:
    """One client that does one thing after the other until it is told to stop."""

    kinds: tuple[str, ...] = (
        "get",
        "view",
        "set",
        "safe",
        "if_version",
        "remove",
        "increment",
        "set_many",
        "batch",
        "element",
    )
    weights: tuple[int, ...] = (5, 2, 5, 3, 2, 2, 5, 2, 2, 3)
    refusing = True  # its read-and-write pairs are to be refused rather than queued

    def __init__(self, simulation: Any, client: Client, levels: list[int | None]) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.client = client
        self.levels = levels
        self.entries: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        self.elements: set[str] = set()
        self.stopping = False
        self.idle = True
        self.retries = 0
        self.tally: Counter[str] = Counter()
        self._count = 0
        self._next()

    @property
    def finished(self) -> bool:
        return self.stopping and self.idle

    # One after the other

    def _next(self) -> None:
        self.idle = True
        self.world.after(self.world.between(2 * MS, self.simulation.pause_ns), self._begin)

    def _begin(self) -> None:
        if self.stopping:
            return
        self.idle = False
        rng = self.world.rng
        kind = rng.choices(self.kinds, self.weights)[0]
        if rng.random() < 0.01 and len(self.client.addresses) > 1:
            self.client.move()
        getattr(self, "_" + kind)(rng)

    def _unique(self) -> str:
        self._count += 1
        return f"{self.client.name}:{self._count}"

    def _ask(self, request: Request, answered: Any) -> None:
        self.client.ask(request, self.world.rng.choice((0.5, 2.0, 4.0)), answered)

    # Reads

    def _get(self, rng: Any) -> None:
        key = rng.choice(self._looked_at())
        request = ops.get(self.client.grant, key, TEXT)

        def answered(request: Request) -> None:
            ending, entry = outcome(request)
            self.tally["get " + ending] += 1
            if ending == "done" and entry is not None:
                self.entries[key] = entry
                if not entry.in_conflict:
                    self.versions[key] = entry.version
                self.simulation.oracle.shown_record(
                    self._there(), entry.op_id, f"{key}={entry.value}"
                )
            elif ending == "done":
                self.entries.pop(key, None)
            self._next()

        self._ask(request, answered)

    def _view(self, rng: Any) -> None:
        """A read at the position of some write, at what is settled, or both."""
        key = rng.choice(self._looked_at())
        simulation = self.simulation
        request = ops.get(self.client.grant, key, TEXT)
        known = [write.position for write in simulation.writes[-10:] if write.position]
        at = rng.choice(known) if known and rng.random() < 0.6 else None
        majority = at is None or rng.random() < 0.4
        request.view = (at, majority, 1_500)
        began = self.world.now

        def answered(request: Request) -> None:
            ending, entry = outcome(request)
            self.tally["view " + ending] += 1
            if ending == "done":
                op_id = 0 if entry is None else entry.op_id
                there = self._there()
                simulation.reads.append(
                    Read(self.client.name, there, key, at, majority, began, self.world.now, op_id)
                )
                if entry is not None:
                    simulation.oracle.shown_record(there, op_id, f"{key}={entry.value}")
            self._next()

        self._ask(request, answered)

    def _looked_at(self) -> tuple[str, ...]:
        return (*KEYS, *COUNTERS, *SETS)

    def _there(self) -> str:
        """The name of the node that the link goes to."""
        name: str = self.simulation.node_at(self.client.there).name
        return name

    # Writes

    def _write(self, request: Request, write: Write) -> None:
        simulation = self.simulation
        simulation.writes.append(write)
        with_level(request, write.level)

        def answered(request: Request) -> None:
            write.number = request.number
            ending, result = outcome(request)
            if ending == "unknown":
                reason = result.reason
                if reason in ("timeout", "lost", "level") and self.retries < 12:
                    self.retries += 1
                    if self.world.chance(0.5) and len(self.client.addresses) > 1:
                        self.client.move()
                    self.client.retry(request, 3.0, answered)
                    return
                write.ending = "unknown"
            elif ending == "refused":
                self._refused(write, request, result)
            else:
                self._done(write, request, result)
            self.tally[f"{write.kind} {write.ending}"] += 1
            simulation.world.note(
                "answer", self.client.name, write.kind, write.ending, str(write.position)
            )
            self.retries = 0
            self._next()

        self._ask(request, answered)

    def _refused(self, write: Write, _: Request, error: Exception) -> None:
        """Most refusals say that nothing was done; some, that it was done and has not come far enough."""
        name = type(error).__name__
        write.ending = "unknown" if name in _DONE_MAYBE else "refused"
        self.tally[name] += 1

    def _done(self, write: Write, request: Request, result: Any) -> None:
        write.ending = "done"
        if write.kind in ("set_many", "batch", "many"):
            op_ids = [request.op_id + i * TICK for i in range(len(write.keys))]
        else:
            op_ids = [request.op_id]
        if request.op_id:  # else nothing was there to be changed
            each = zip(write.keys, op_ids, strict=True)
            write.acked = {key: op_id for key, op_id in each if key not in write.unsure}
        position = request.position
        if position is not None:
            write.position = Position(*position)
        tentative = getattr(result, "status", "committed") == "tentative"
        if not tentative:
            self.simulation.oracle.shown([self._there()], write.position, write.kind)

    def _level(self, rng: Any) -> int | None:
        return rng.choice(self.levels)

    def _set(self, rng: Any) -> None:
        key, value = rng.choice(KEYS), self._unique()
        write = Write("set", self.client.name, self._level(rng), [key], [value])
        self._write(ops.set(self.client.grant, key, value, None, TEXT), write)

    def _safe(self, rng: Any) -> None:
        key, value = rng.choice(KEYS), self._unique()
        entry = self.entries.get(key)
        condition = (m.ON_BASE, 0 if entry is None else entry.op_id, False)
        write = Write("safe", self.client.name, self._level(rng), [key], [value])
        write.bases = [condition[1]]
        self._write(ops.set(self.client.grant, key, value, condition, TEXT), write)

    def _if_version(self, rng: Any) -> None:
        key, value = rng.choice(KEYS), self._unique()
        condition = (m.IF_VERSION, self.versions.get(key, 0), False)
        write = Write("if_version", self.client.name, self._level(rng), [key], [value])
        self._write(ops.set(self.client.grant, key, value, condition, TEXT), write)

    def _remove(self, rng: Any) -> None:
        key = rng.choice(KEYS)
        write = Write("remove", self.client.name, self._level(rng), [key], [])
        self._write(ops.remove(self.client.grant, key, None, TEXT), write)

    def _increment(self, rng: Any) -> None:
        key, delta = rng.choice(COUNTERS), rng.randrange(1, 10)
        write = Write("increment", self.client.name, self._level(rng), [key], [], delta)
        self._write(ops.increment(self.client.grant, key, delta, TEXT), write)

    def _set_many(self, rng: Any) -> None:
        keys = rng.sample(KEYS, rng.randrange(2, 5))
        values = [self._unique() for _ in keys]
        level = self._level(rng)
        write = Write("set_many", self.client.name, level, keys, values)
        request = ops.set_many(self.client.grant, dict(zip(keys, values, strict=True)), TEXT)
        self._write(request, write)

    def _batch(self, rng: Any) -> None:
        """An atomic batch: two sets, one of them with a condition."""
        keys = rng.sample(KEYS, 2)
        values = [self._unique() for _ in keys]
        conditions = {}
        entry = self.entries.get(keys[0])
        if entry is not None:
            conditions[0] = (m.ON_BASE, entry.op_id, False)
        write = Write("batch", self.client.name, self._level(rng), keys, values)
        request = ops.batch(
            self.client.grant, True, bytes([m.SET, m.SET]), keys, values, conditions, TEXT
        )
        self._write(request, write)

    def _element(self, rng: Any) -> None:
        """Adds an element of its own to a set, by reading it and writing it back on that base."""
        key, element = rng.choice(SETS), self._unique()

        def read(request: Request) -> None:
            ending, entry = outcome(request)
            if ending != "done":
                self._next()
                return
            held = "" if entry is None else entry.value
            refuse = self.refusing or rng.random() < 0.3
            condition = (m.ON_BASE, 0 if entry is None else entry.op_id, refuse)
            value = f"{held} {element}"
            level = self._level(rng)
            if level == m.ACK_LOCAL and self.refusing:
                level = None
            write = Write("element", self.client.name, level, [key], [value], 0, element)
            write.bases = [condition[1]]
            self._write(ops.set(self.client.grant, key, value, condition, TEXT), write)

        self._ask(ops.get(self.client.grant, key, TEXT), read)


_KINDS: Final = (
    "get",
    "view",
    "set",
    "safe",
    "if_version",
    "remove",
    "increment",
    "set_many",
    "batch",
    "element",
)
_WEIGHTS: Final = (5, 2, 5, 3, 2, 2, 5, 2, 2, 3)
_DONE_MAYBE: Final = ("LevelNotReached", "NoPrimary", "ConnectionLost", "OutcomeExpired")


def refused_keys(outcome: Any) -> set[str]:
    """Of a batch that was decided one operation after the other: the keys of those that were refused."""
    match outcome[6]:
        case [bytes() as packed, *_] if not outcome[4]:
            refusals = filter(is_refusal, unpack(packed))
            return {key.decode() for _, _, key in refusals if key is not None}
    return set()


def check_exactly_once(
    writes: list[Write], changes: list[Any], told: set[int], aliases: dict[int, int]
) -> None:
    """No value was written twice, and counters hold the sum of what was added.

    Args:
        told: op ids of those that may have added nothing.
        aliases: op ids that were acknowledged -> under which their request was decided.
    """
    seen: dict[bytes, int] = {}
    for change in changes:
        if change.made:  # an entry of the ledger, or what several writes came to
            continue
        if change.value is not None and change.delta is None and b":" in change.value:
            before = seen.setdefault(change.value, change.op_id)
            if before != change.op_id:
                raise Failed(f"{change.value!r} was written twice: op ids {before}, {change.op_id}")
    added: dict[int, int] = {}  # op id -> by how much a counter grew
    held: dict[bytes, int] = {}
    for change in changes:
        if change.key.decode() in COUNTERS and change.value is not None:
            now = int(change.value)
            added[change.op_id] = now - held.get(change.key, 0)
            held[change.key] = now
    for write in writes:
        if write.kind == "increment" and write.acked:
            acked = write.acked[write.keys[0]]
            op_id = aliases.get(acked, acked)
            found = added.get(op_id)
            if found != write.delta and not told & {acked, op_id}:
                raise Failed(f"P1: an increment by {write.delta} was acknowledged, found {found}")


def check_requests(effects: list[Any], forced: bool = False) -> None:
    """No request has two outcomes in one history.

    Where a promotion was forced, a database that was dropped may be made again, rather than one be lost that was not
    made here before: the request may have been decided, with nobody left who could tell.
    """
    seen: dict[tuple[bytes, int], Any] = {}
    made = False
    for effect in effects:
        made = made or effect[0] == fx.DATABASE
        if effect[0] == fx.OUTCOME:
            request = (effect[1], effect[2])
            if request in seen and not (made and forced):
                raise Failed(f"request {request} was decided twice: {seen[request]}, {effect}")
            seen[request] = effect
            made = False


def check_elements(
    writes: list[Write],
    values: dict[str, str],
    told: set[int],
    unsure: set[int],
    aliases: dict[int, int],
    forced: bool = False,
) -> None:
    """Every element that was acknowledged is in its set, once; one that the ledger has is not.

    Args:
        forced: a promotion was. What was refused in a history that is gone since, and asked for elsewhere before, may
            be done in the one that holds.
        told: op ids in the ledger. unsure: of those that may be lost.
        aliases: op ids that were acknowledged -> under which their request was decided. A write that was acknowledged
            in a history that is gone, and decided anew in the one that holds, is there as any other.
    """
    for write in writes:
        if write.kind != "element" or write.ending not in ("done", "refused"):
            continue
        held = values.get(write.keys[0], "").split()
        count = held.count(write.element)
        op_ids = {*write.acked.values()}
        op_ids |= {aliases[op_id] for op_id in op_ids if op_id in aliases}
        expected = write.ending == "done" and not told & op_ids
        either = unsure & op_ids or (forced and write.ending == "refused")
        if count != expected and not (either and count <= 1):
            raise Failed(
                f"P1: element {write.element} ({write.ending}) stands {count} times in {write.keys[0]}"
            )


__all__ = [
    "VersionConflict",
    "Worker",
    "Write",
    "check_elements",
    "check_exactly_once",
    "check_requests",
    "refused_keys",
]
