"""What clients do where writes come in conflict: writes with every kind of condition, alone and in batches."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from nun import messages as m
from nun.client import operations as ops
from nun.client.request import Request
from nun.client.values import TEXT
from nun.core.clock import TICK
from nun.core.record import UNKNOWN_BASE
from nun.errors import BatchError, ConflictPending
from tests.simulation.model import Model
from tests.simulation.process import Failed
from tests.simulation.workload import COUNTERS, KEYS, SETS, Worker, Write

NUMBERS: Final = tuple(f"m{i}" for i in range(2))
STRATEGIES: Final = ("none", "newer", "older", "arbiter", "arbiter", "arbiter")


def options_of(rng: Any) -> dict[str, Any]:
    """What a database says about conflicts."""
    options: dict[str, Any] = {"strategy": rng.choice(STRATEGIES)}
    if rng.random() < 0.3:
        prefixes = rng.sample(("k1", "k", "s", "m", "m0"), rng.randrange(1, 4))
        options["prefixes"] = {prefix: rng.choice(STRATEGIES) for prefix in prefixes}
    if rng.random() < 0.3:
        options["close_calls"] = "arbiter"
    if rng.random() < 0.4:
        options["conflict_timeout_s"] = rng.choice((1, 2, 3))
        options["conflict_fallback"] = rng.choice(("keep", "newer", "older"))
    if rng.random() < 0.2:
        options["no_arbiter"] = "reject"
    return options


class ConflictWorker(Worker):
    """A worker that looks at what it read before, and writes to keys in conflict too."""

    kinds = (*Worker.kinds, "version", "refuse", "safe_remove", "number", "bump", "many")
    weights = (8, 2, 3, 8, 1, 1, 2, 1, 2, 4, 3, 1, 2, 4, 4, 4)
    refusing = False

    def _refused(self, write: Write, request: Request, error: Exception) -> None:
        if isinstance(error, ConflictPending):
            write.ending = "pending"
            write.acked = {write.keys[0]: error.conflict}
            write.pending = {error.conflict}
        elif isinstance(error, BatchError) and not request.status:
            write.ending = "done"
            for index, (key, answer) in enumerate(zip(write.keys, request.result, strict=True)):
                op_id = request.op_id + index * TICK
                if not isinstance(answer, list) or len(answer) != 3:
                    if key not in write.unsure:
                        write.acked[key] = op_id
                elif answer[0] == ConflictPending.code:
                    write.acked[key] = answer[2][b"conflict"]
                    write.pending.add(write.acked[key])
        else:
            super()._refused(write, request, error)

    def _element(self, rng: Any) -> None:
        """As its kind does, or on what was read a while ago: that comes in conflict more often."""
        key = rng.choice(SETS)
        entry = self.entries.get(key)
        if entry is None or rng.random() < 0.5:
            super()._element(rng)
            return
        element = self._unique()
        condition = (m.ON_BASE, entry.op_id, rng.random() < 0.1)
        value = f"{entry.value} {element}"
        write = Write("element", self.client.name, self._level(rng), [key], [value], 0, element)
        write.bases = [entry.op_id]
        self._write(ops.set(self.client.grant, key, value, condition, TEXT), write)

    def _base(self, key: str) -> int:
        entry = self.entries.get(key)
        return 0 if entry is None else entry.op_id

    def _version(self, rng: Any) -> None:
        key, value = rng.choice(KEYS), self._unique()
        condition = (m.ON_VERSION, self.versions.get(key, 0), False)
        write = Write("version", self.client.name, self._level(rng), [key], [value])
        self._write(ops.set(self.client.grant, key, value, condition, TEXT), write)

    def _refuse(self, rng: Any) -> None:
        key, value = rng.choice(KEYS), self._unique()
        write = Write("refuse", self.client.name, self._level(rng), [key], [value])
        condition = (m.PLAIN, 0, True)
        self._write(ops.set(self.client.grant, key, value, condition, TEXT), write)

    def _safe_remove(self, rng: Any) -> None:
        key = rng.choice(KEYS)
        condition = (m.ON_BASE, self._base(key), False)
        write = Write("safe_remove", self.client.name, self._level(rng), [key], [])
        write.bases = [condition[1]]
        self._write(ops.remove(self.client.grant, key, condition, TEXT), write)

    def _number(self, rng: Any) -> None:
        """A key that is counted with, and set too."""
        key = rng.choice(NUMBERS)
        condition = (m.ON_BASE, self._base(key), False)
        write = Write("number", self.client.name, self._level(rng), [key], [])
        write.bases = [condition[1]]
        value = str(rng.randrange(10**6))
        self._write(ops.set(self.client.grant, key, value, condition, TEXT), write)

    def _bump(self, rng: Any) -> None:
        key, delta = rng.choice(NUMBERS), rng.randrange(1, 10)
        write = Write("bump", self.client.name, self._level(rng), [key], [], delta)
        self._write(ops.increment(self.client.grant, key, delta, TEXT), write)

    def _many(self, rng: Any) -> None:
        """A batch of everything, each on its own."""
        keys = rng.sample((*KEYS, *NUMBERS), rng.randrange(2, 6))
        kinds, arguments, conditions = [], [], {}
        for index, key in enumerate(keys):
            kind = rng.choice((m.SET, m.SET, m.REMOVE))
            if key in NUMBERS:
                kind = m.INCREMENT
            kinds.append(kind)
            value = {m.SET: self._unique(), m.REMOVE: None, m.INCREMENT: rng.randrange(1, 10)}
            arguments.append(value[kind])
            if kind != m.INCREMENT and rng.random() < 0.7:
                conditions[index] = (m.ON_BASE, self._base(key), rng.random() < 0.1)
        write = Write("many", self.client.name, self._level(rng), keys, [])
        write.unsure = {key for key, kind in zip(keys, kinds, strict=True) if kind == m.REMOVE}
        request = ops.batch(
            self.client.grant, False, bytes(kinds), keys, arguments, conditions, TEXT
        )
        self._write(request, write)

    def _looked_at(self) -> tuple[str, ...]:
        return (*KEYS, *COUNTERS, *SETS, *NUMBERS)


def check_bases(
    writes: Iterable[Write], changes: Iterable[Any], taken: dict[int, int], told: Collection[int]
) -> None:
    """P1: what a write has not seen, and has replaced all the same, is in the ledger.

    Args:
        taken: op id -> base of what was taken or cut off, and decided as an item of an outbox.
        told: op ids in the ledger.
    """
    bases = dict(taken)
    for write in writes:
        for key, base in zip(write.keys, write.bases, strict=False):
            if key in write.acked:
                bases.setdefault(write.acked[key], base)
    known = {}
    for change in changes:
        known[change.op_id] = change
        base = bases.get(change.op_id)
        if change.made or change.delta is not None or base in (None, UNKNOWN_BASE):
            continue
        replaced = known.get(change.replaced)
        if change.replaced in (base, 0) or (replaced is not None and replaced.value is None):
            continue
        if change.replaced not in told:
            raise Failed(f"P1: {change} was made on {base}: what it replaced is not in the ledger")


def check_sets(
    writes: Iterable[Write],
    model: Model,
    values: dict[str, str],
    done: dict[Any, int],
    doubtful: Collection[int] = (),
) -> None:
    """Every element that was acknowledged, or resolved, is in its set, once; what was refused, or is open, is not.

    Not where strategies or fallbacks may choose one side: they lose elements that were there before. And what was
    shown before it was decided stands there, once, by others who had read it and whose own writes stand.

    Where a promotion was forced (`model.forced`), what was refused or kept open in a history that is gone may be done
    in this one, if it was asked for elsewhere too, or is proposed again.

    Args:
        doubtful: op ids of writes that the ledger may have though they were done.
    """
    writes = [write for write in writes if write.kind == "element"]
    entries = {told["op_id"]: told for told in model.entries.values()}
    chosen = {told["key"] for told in entries.values() if told["state"] in ("decided", "expired")}
    read: dict[str, list[Write]] = {}
    for write in writes:
        for element in write.values[0].split():
            if element != write.element:
                read.setdefault(element, []).append(write)
    for write in writes:
        key = write.keys[0]
        if key in chosen or not write.ending or write.ending == "unknown":
            continue
        entry = _entry_of(write, entries, done)
        expected = {_stands(write, entry)}
        if entry is not None and entry["state"] in ("open", "refused"):
            readers = read.get(write.element, ())
            found = {_stands(each, _entry_of(each, entries, done)) for each in readers}
            expected = {True} if True in found else {False, None in found}
        count = values.get(key, "").split().count(write.element)
        elsewhere = entry is None and write.ending in ("refused", "pending")
        if model.forced and (elsewhere or (entry is not None and entry["op_id"] in doubtful)):
            expected = {False, True}
        if count not in expected:
            raise Failed(
                f"P1: element {write.element} ({write.ending}, {entry}) stands {count} times in {key}"
            )


def _entry_of(write: Write, entries: dict[int, Any], done: dict[Any, int]) -> Any:
    """What the ledger has of a write of one key; None where it has nothing."""
    request = (write.client.encode(), write.number)
    return entries.get(done.get(request) or write.acked.get(write.keys[0], 0))


def _stands(write: Write, entry: Any) -> bool | None:
    """Whether a write is in what its key holds; None where its client cannot tell, and the ledger does not."""
    if entry is not None:
        return bool(entry["state"] == "resolved")
    return None if write.ending in ("", "unknown") else write.ending == "done"
