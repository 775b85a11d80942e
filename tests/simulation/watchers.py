"""Clients that watch, and what they must have been shown (P6).

W1  What a watch gave out between its start, or `current`, and its end, or `compacted`, is every matching event of one
    history, in order, once. Which history: the one of the last entry that it showed.
W2  What it was told between `compacted` and `current` is the state at the position of `current`.
W3  A watch whose position was cut off is told `compacted`, and goes on in the history that remains.
W4  What was shown and is not in the history in the end was cut off by a promotion: no restart takes it back (P3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from nun.client.watches import WatchState
from nun.position import NOTHING, Position
from tests.simulation.client import Client
from tests.simulation.oracle import Oracle
from tests.simulation.process import Failed
from tests.simulation.workload import COUNTERS, KEYS, SETS
from tests.simulation.world import MS

_PATTERNS: Final = ("*", "*", "k*", "n*", "$*", *KEYS, *COUNTERS, *SETS)
Shown = tuple[str, str, int, str | None]  # kind, key, op id, value


@dataclass
class Life:
    """One watch from its start to its end.

    Attributes:
        start: after which entry it begins; None until it is known.
        unsure: what was shown by a node that found no primary.
        goes_on: from where another watch can go on, it said when it was ended.
    """

    name: str
    pattern: str
    start: Position | None
    events: list[Any] = field(default_factory=list)
    ended: bool = False
    unsure: set[Position] = field(default_factory=set)
    goes_on: Position | None = None

    @property
    def last(self) -> Position | None:
        """The last position that it told of; None while it is being told the state."""
        for event in reversed(self.events):
            if event.kind == "current":
                break
            if event.kind == "compacted":
                return None
        return self.events[-1].position if self.events else self.start

    def sees(self, key: str) -> bool:
        pattern = self.pattern
        return key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern


class Watcher:
    """A client that watches something, now and then elsewhere or anew from where it was."""

    def __init__(self, simulation: Any, client: Client) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.client = client
        self.lives: list[Life] = []
        self.troubles = 0
        self._watch: WatchState
        client.on_read, client.on_event = self._read, self._event
        rng = self.world.rng
        self.credit = rng.choice((60, 400, 100_000))
        client.read_delay_ns = rng.choice((0, 0, 5, 300)) * MS
        self._begin(rng.choice(_PATTERNS), rng.choice((None, None, NOTHING)))

    def _begin(self, pattern: str, since: Position | None) -> None:
        life = Life(f"{self.client.name}.{len(self.lives) + 1}", pattern, since)
        self.lives.append(life)
        self._watch = self.client.watch(pattern, since, self.credit)
        self.world.after(self.world.between(200, 4_000) * MS, self._another)

    def _another(self) -> None:
        """It ends its watch and begins another, mostly from where that was; or its link goes elsewhere."""
        if self.client.closed or self.simulation.healed:
            return
        rng = self.world.rng
        if rng.random() < 0.3 and len(self.client.addresses) > 1:
            self.client.move()
            self.world.after(self.world.between(200, 4_000) * MS, self._another)
            return
        life = self.lives[-1]
        self.client.unwatch(self._watch)
        life.ended, life.goes_on = True, self._watch.position
        if rng.random() < 0.6 and life.goes_on is not None:
            self._begin(life.pattern, life.goes_on)
        else:
            self._begin(rng.choice(_PATTERNS), self._somewhere(rng))

    def _somewhere(self, rng: Any) -> Position | None:
        """Now, the beginning, or the position that some write was answered with: it may be gone again."""
        known = [write.position for write in self.simulation.writes[-30:] if write.position]
        return rng.choice((None, NOTHING, rng.choice(known) if known else None))

    def _read(self, watch: WatchState) -> None:
        """There is something to look at, or it has begun, or ended."""
        if watch is not self._watch:
            return
        life = self.lives[-1]
        if watch.error is not None and not life.ended:
            life.ended, life.goes_on = True, watch.position
            self.troubles += 1
            self.world.note("watch ended", life.name, str(watch.error))
            self.world.after(200 * MS, lambda: self._anew(life))
        elif life.start is None and watch.begun:
            life.start = watch.resume_from()
            self._durable(life.start)

    def _anew(self, life: Life) -> None:
        """Goes on with a watch that has ended, unless another was begun meanwhile."""
        if life is self.lives[-1]:
            self._begin(life.pattern, life.goes_on)

    def _event(self, watch: WatchState, event: Any) -> None:
        life = self.lives[-1]
        if watch is not self._watch or life.ended:
            return
        life.events.append(event)
        if event.kind != "compacted":
            self._durable(event.position)

    def _durable(self, position: Position | None) -> None:
        if position is None or not position.seq:
            return
        nodes = [self.simulation.node_at(address) for address in dict.fromkeys(self.client.told_by)]
        cores = [node.network.core for node in nodes if node.network is not None]
        if any(core is not None and core.roles.name == "waiting" for core in cores):
            # It finds no primary, and serves its log as it stands: that may be lost there (docs/REPLICATION.md).
            self.lives[-1].unsure.add(position)
            return
        names = [node.name for node in nodes]
        self.simulation.oracle.shown(names, position, f"an event to {self.client.name}")

    def settle_down(self) -> None:
        """It reads at once from now on."""
        self.client.read_delay_ns = 0
        self.client.read_on()

    def caught_up(self, oracle: Oracle, history: list[Position], database: int) -> bool:
        """Whether it was shown the last event there is for it."""
        life = self.lives[-1]
        last = life.last
        if life.ended or last is None:
            return False
        if last.seq > history[-1].seq or (last.seq and history[last.seq - history[0].seq] != last):
            return False
        return not any(
            any(_events(oracle, position, life, database)) for position in history[last.seq :]
        )


def _events(oracle: Oracle, position: Position, life: Life, database: int) -> Iterator[Shown]:
    """What an entry has for a watch."""
    for change in oracle.decoded[position]:
        if change.database == database and life.sees(change.key.decode()):
            kind = "removed" if change.value is None else "set"
            value = None if change.value is None else change.value.decode()
            yield kind, change.key.decode(), change.op_id, value


def check_watch(oracle: Oracle, life: Life, history: list[Position], database: int) -> None:
    """W1 to W4 of one watch; `history` is the one in the end, from seq 1."""
    at = life.start
    got: list[Any] = []
    for event in life.events:
        if event.kind == "compacted":
            if at is not None:
                _check_run(oracle, life, at, got, database)
            at, got = None, []
        elif event.kind == "current":
            if at is not None:
                raise Failed(f"P6: {life.name} is told current and was not told compacted")
            _check_state(oracle, life, event.position, got, database)
            at, got = event.position, []
        else:
            got.append(event)
        if event.kind in ("set", "removed") and at is not None:
            _check_kept(oracle, life, event, history)
    if at is not None:
        _check_run(oracle, life, at, got, database)
        goal = life.goes_on if life.ended else history[-1]
        if goal is not None and (life.ended or goal.seq >= at.seq):
            _check_run(oracle, life, at, got, database, goal)


def _check_kept(oracle: Oracle, life: Life, event: Any, history: list[Position]) -> None:
    """W4"""
    position = event.position
    if position in life.unsure:
        return
    there = history[min(position.seq, len(history)) - 1]  # what was cut off need not be replaced
    if there == position:
        return
    # A promotion above it has cut it off, unless the same primary went on after it and had lost it. Which primary, says
    # reign and node together: candidates that cannot see each other may begin the same reign one after the other, and
    # the later one, whose number is higher, has never heard of what the other decided. It need not have heard of a
    # later start of an older primary either: then it goes on from more of an earlier start.
    primary = position[:2]
    if oracle.forced and any(epoch[:2] > primary for epoch in oracle.epochs):
        return  # that one may be gone without a trace, and the same primary goes on with what was left to it
    if history[-1][:2] <= primary or any(
        each[:2] == primary and each > position for each in reversed(history)
    ):
        raise Failed(f"P3: {life.name} was shown {event}, and now {there} stands there")


def _check_run(
    oracle: Oracle,
    life: Life,
    at: Position,
    got: list[Any],
    database: int,
    goal: Position | None = None,
) -> None:
    """W1; with a goal: all up to it was shown."""
    upto = goal or (got[-1].position if got else at)
    path = oracle.path(at, upto)
    if path is None:
        raise Failed(f"P6: {life.name} on {life.pattern} goes from {at} on and shows {upto}")
    expected = [
        (position, *event)
        for position in path
        for event in _events(oracle, position, life, database)
    ]
    shown = [_plain(event) for event in got]
    count = len(shown) if goal is None else len(expected)
    if shown[:count] != expected[:count] or count > len(expected):
        i = next(i for i in range(count + 1) if shown[i : i + 1] != expected[i : i + 1])
        raise Failed(
            f"P6: {life.name} on {life.pattern} from {at}: event {i} is {shown[i : i + 1]}, "
            f"the history has {expected[i : i + 1]}"
        )


def _check_state(
    oracle: Oracle, life: Life, position: Position, got: list[Any], database: int
) -> None:
    """W2"""
    path = oracle.path(NOTHING, position)
    if path is None:
        raise Failed(f"P6: {life.name} is told the state at {position}, which is in no history")
    state: dict[str, Shown] = {}
    for each in path:
        for event in _events(oracle, each, life, database):
            state[event[1]] = event
    expected = {event for event in state.values() if event[0] == "set"}
    found = [_plain(event)[1:] for event in got]
    if len(found) != len(expected) or set(found) != expected:
        raise Failed(
            f"P6: {life.name} on {life.pattern} is told a state at {position} with "
            f"{set(found) - expected} and without {expected - set(found)}"
        )


def _plain(event: Any) -> tuple[Any, ...]:
    return event.position, event.kind, event.key, event.op_id, event.value
