"""Clients under fire, and what they know: every write's fate, so that a checker can say what the database must hold.

A fate is *acknowledged* (the call returned), *refused* (it raised a RequestError) or *unknown* (UnknownOutcome, even
after asking again). Checkers accept an unknown write in both ways, an acknowledged one only as done, exactly once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import nun
from tests.support.node import ADMIN

PATIENCE_S = 60.0
STARVING_S = 10.0


def patiently(call: Callable[[], Any]) -> Any:
    """Runs a request over restarts of the node: asks again as the same request until its fate is known.

    Raises UnknownOutcome when the node says that it forgot the request.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except nun.UnknownOutcome as unknown:
            if unknown.reason == "expired" or time.monotonic() > deadline:
                raise
            call = unknown.retry
        except (nun.ConnectionLost, nun.Overloaded):
            if time.monotonic() > deadline:
                raise


class Worker(threading.Thread):
    """A thread with a client of its own that does one thing until told to stop; `check` re-raises what went wrong."""

    def __init__(self, address: str, token: str, progress: Progress, seed: int) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.token = token
        self.progress = progress
        self.random = random.Random(seed)
        self.halt = threading.Event()
        self.failure: BaseException | None = None
        self.unknown = 0
        self.stepped_at = time.monotonic()

    @property
    def starves(self) -> bool:
        """Whether it has got nothing done for long, while others may have."""
        return time.monotonic() - self.stepped_at > STARVING_S

    def run(self) -> None:
        try:
            with nun.Client(self.address, **ADMIN, timeout=PATIENCE_S) as client:
                database = patiently(lambda: client.database("crash", token=self.token))
                while not self.halt.is_set():
                    self.step(database)
                    self.stepped_at = time.monotonic()
                    self.progress.made()
                self.finish(database)
        except BaseException as error:
            self.failure = error
            self.progress.made(failed=True)

    def step(self, database: Any) -> None:
        raise NotImplementedError

    def finish(self, database: Any) -> None:
        """Last looks through the same client."""

    def check(self) -> None:
        if self.failure is not None:
            raise AssertionError(f"{type(self).__name__}: {self.failure!r}") from self.failure


class Progress:
    """Counts what all workers got done, so that a test can wait for more of it."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self.count = 0
        self.failed = False

    def made(self, failed: bool = False) -> None:
        with self._news:
            self.count += 1
            self.failed = self.failed or failed
            self._news.notify_all()

    def wait_for(self, more: int, timeout: float = PATIENCE_S) -> None:
        """Waits until this many more steps are done, or a worker failed."""
        with self._news:
            wanted = self.count + more
            done = self._news.wait_for(lambda: self.failed or self.count >= wanted, timeout)
        assert done, f"only {self.count - wanted + more} of {more} steps were done in {timeout:g} s"


class OwnKeys(Worker):
    """Writes keys that nobody else writes, one by one, in batches and in pipelines, and reads them back."""

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.prefix = name
        self.count = 0
        self.may_be: dict[str, set[str | None]] = {}  # what each key may hold now

    def step(self, database: Any) -> None:
        self.count += 1
        keys = [f"{self.prefix}:{self.random.randrange(40)}" for _ in range(8)]
        keys = list(dict.fromkeys(keys))
        value = f"{self.count:08d}"
        match self.random.randrange(6):
            case 0:
                keys = keys[:1]
                self.do(keys, None, lambda: database.remove(keys[0]))
            case 1:
                self.do(keys, value, lambda: database.set_many(dict.fromkeys(keys, value)))
            case 2:
                self.do(keys, value, lambda: self.atomic(database, keys, value))
            case 3:
                self.compare(database)
            case _:
                keys = keys[:1]
                self.do(keys, value, lambda: database.set(keys[0], value))

    def atomic(self, database: Any, keys: list[str], value: str) -> None:
        with database.pipeline(atomic=True) as pipe:
            for key in keys:
                pipe.set(key, value)

    def do(self, keys: list[str], value: str | None, call: Callable[[], Any]) -> None:
        before = {key: self.may_be.get(key, {None}) for key in keys}
        for key in keys:
            self.may_be[key] = before[key] | {value}
        try:
            patiently(call)
        except nun.UnknownOutcome:
            self.unknown += 1
        else:
            for key in keys:
                self.may_be[key] = {value}

    def compare(self, database: Any) -> None:
        keys = sorted(self.may_be)
        if not keys:
            return
        entries = patiently(lambda: database.get_many(keys))
        for key, entry in zip(keys, entries, strict=True):
            value = None if entry is None else entry.value
            assert value in self.may_be[key], f"{key} holds {value}, expected {self.may_be[key]}"
            self.may_be[key] = {value}

    def finish(self, database: Any) -> None:
        self.compare(database)


class Increments(Worker):
    """Increments keys shared by all, by one each time."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.done: dict[str, int] = {}

    def step(self, database: Any) -> None:
        key = f"counter:{self.random.randrange(3)}"
        try:
            patiently(lambda: database.increment(key, 1))
        except nun.UnknownOutcome:
            self.unknown += 1
        else:
            self.done[key] = self.done.get(key, 0) + 1


class CompareAndSet(Worker):
    """Counts up shared keys by reading and setting under a condition; a write counted twice or refused twice shows."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.done: dict[str, int] = {}

    def step(self, database: Any) -> None:
        key = f"shared:{self.random.randrange(3)}"
        entry = patiently(lambda: database.get(key))
        value = str(int(entry.value) + 1 if entry is not None else 1)
        condition: dict[str, Any] = {"base": entry}
        if entry is not None and self.random.random() < 0.5:
            condition = {"if_version": entry.version}
        try:
            result = patiently(lambda: database.set(key, value, **condition))
        except nun.VersionConflict:
            return
        except nun.UnknownOutcome:
            self.unknown += 1
            return
        self.done[key] = self.done.get(key, 0) + 1
        assert result.version == int(value), f"{key}: version {result.version}, value {value}"


class Reader(Worker):
    """Reads what the others write: nothing that was shown once may be taken back (P3)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: dict[str, tuple[int, int]] = {}

    def step(self, database: Any) -> None:
        keys = [f"counter:{i}" for i in range(3)] + [f"shared:{i}" for i in range(3)]
        for key, entry in zip(keys, patiently(lambda: database.get_many(keys)), strict=True):
            shown = (0, 0) if entry is None else (entry.version, entry.op_id)
            before = self.seen.get(key, (0, 0))
            text = f"{key}: shown version and op id {before}, later {shown}"
            assert shown >= before, text
            assert (shown[0] > before[0]) == (shown[1] > before[1]), text
            self.seen[key] = shown
