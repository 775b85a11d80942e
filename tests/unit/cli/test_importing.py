"""The importer against a node that fails in every way: nothing is left out, the later of equal keys wins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from nun.cli.importing import BadRecordError, Importer, Pace
from nun.cli.journal import Progress
from nun.cli.records import Flaw, Row
from nun.errors import (
    BatchError,
    ConnectionLost,
    NoSuchDatabase,
    NunError,
    Overloaded,
    PermissionDenied,
    UnknownOutcome,
)
from tests.support.node import seeded


class Store:
    """A node that can fail."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.calls = 0
        self.failures: dict[int, NunError] = {}
        self.refused: set[bytes] = set()
        self.by_result = False
        self.most_at_once = 0
        self._now = 0

    async def set_many(self, rows: Mapping[bytes, bytes]) -> object:
        self.calls += 1
        failure = self.failures.get(self.calls)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(0)
        self._now -= 1
        if isinstance(failure, UnknownOutcome):
            self.data.update(rows)  # it happened, and the reply was lost
        if failure is not None:
            raise failure
        refusals = {key: PermissionDenied(f"no {key!r}") for key in rows if key in self.refused}
        if refusals and not self.by_result:
            raise next(iter(refusals.values()))
        self.data.update({key: value for key, value in rows.items() if key not in refusals})
        if refusals:
            raise BatchError("some failed", [refusals.get(key) for key in rows])
        return None


class Run:
    """One import of rows into a store, and what was told meanwhile."""

    def __init__(self, store: Store, rows: list[Row | Flaw], **settings: Any) -> None:
        self.flaws: list[Flaw] = []
        self.states: list[Progress] = []
        self.waits: list[NunError] = []
        skip_bad = settings.pop("skip_bad", False)
        self.importer = Importer(
            store.set_many,
            iter(rows),
            settings.pop("progress", Progress()),
            pace=Pace(**{"batch_records": 3, "retry_for_s": 5.0, **settings}),
            skip_bad=skip_bad,
            tell_bad=self.flaws.append,
            tell_progress=self.states.append,
            tell_waiting=lambda error, seconds: self.waits.append(error),  # noqa: ARG005
        )

    def go(self) -> Progress:
        return asyncio.run(self.importer.run())


def rows_of(*keys: str) -> list[Row | Flaw]:
    return [
        Row(key.encode(), f"{key}{number}".encode(), number, number, 10 * number)
        for number, key in enumerate(keys, 1)
    ]


def test_all_records_arrive_several_batches_at_a_time() -> None:
    store = Store()
    run = Run(store, rows_of(*"abcdefghijklmnopqrst"))
    assert run.go() == Progress(offset=200, line=20, records=20)
    assert len(store.data) == 20
    assert store.most_at_once == 4
    assert [state.offset for state in run.states] == [30, 60, 90, 120, 150, 180, 200]


def test_batches_are_bounded_in_bytes() -> None:
    store = Store()
    Run(store, rows_of(*"abcdef"), batch_bytes=5).go()
    assert store.calls == 3


def test_an_empty_input_is_no_request() -> None:
    store = Store()
    assert Run(store, []).go() == Progress()
    assert store.calls == 0


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionLost("gone"),
        UnknownOutcome("late", "timeout"),
        Overloaded("busy", retry_after_ms=1),
    ],
)
def test_it_outlasts_a_node_that_is_away(failure: NunError) -> None:
    store = Store()
    store.failures = {2: failure, 5: failure, 6: failure}
    run = Run(store, rows_of(*"abcdefghijkl"))
    assert run.go().records == 12
    assert len(store.data) == 12
    assert failure in run.waits


def test_it_gives_up_when_it_was_told_to() -> None:
    store = Store()
    store.failures = {number: ConnectionLost("gone") for number in range(2, 100)}
    run = Run(store, rows_of(*"abcdefghijkl"), retry_for_s=0.2)
    with pytest.raises(ConnectionLost):
        run.go()
    assert run.importer.progress.records == 3


def test_a_hopeless_error_ends_it_at_once() -> None:
    store = Store()
    store.failures = {1: NoSuchDatabase("no such database")}
    run = Run(store, rows_of(*"abcdefghijkl"), skip_bad=True)
    with pytest.raises(NoSuchDatabase):
        run.go()
    assert run.waits == []
    assert run.importer.progress == Progress()


@pytest.mark.parametrize("by_result", [False, True])
def test_refused_records_are_found_one_by_one(by_result: bool) -> None:
    store = Store()
    store.refused = {b"b", b"h", b"k"}
    store.by_result = by_result
    run = Run(store, rows_of(*"abcdefghijk"), skip_bad=True)
    done = run.go()
    assert (done.records, done.bad, done.offset) == (8, 3, 110)
    assert sorted(store.data) == [b"a", b"c", b"d", b"e", b"f", b"g", b"i", b"j"]
    assert [flaw.line for flaw in run.flaws] == [2, 8, 11]
    assert "no b'b'" in run.flaws[0].reason


@pytest.mark.parametrize("by_result", [False, True])
def test_the_first_refused_record_ends_it_unless_told_to_skip(by_result: bool) -> None:
    store = Store()
    store.refused = {b"e"}
    store.by_result = by_result
    run = Run(store, rows_of(*"abcdefghijk"))
    with pytest.raises(BadRecordError, match="line 5: no b'e'"):
        run.go()
    assert run.importer.progress == Progress(offset=30, line=3, records=3)


def test_a_flaw_of_the_input_ends_it_behind_the_records_before() -> None:
    store = Store()
    rows = rows_of(*"abcdefg")
    rows[4] = Flaw(5, "no JSON", 5, 50)
    run = Run(store, rows)
    with pytest.raises(BadRecordError, match="line 5: no JSON"):
        run.go()
    assert sorted(store.data) == [b"a", b"b", b"c", b"d"]
    assert run.importer.progress == Progress(offset=40, line=4, records=4)


def test_flaws_of_the_input_are_counted_when_skipped() -> None:
    store = Store()
    rows = rows_of(*"abcdefg")
    for number in (1, 3, 4, 5, 6):
        rows[number] = Flaw(number + 1, "bad", number + 1, 10 * number + 10)
    run = Run(store, rows, skip_bad=True)
    assert run.go() == Progress(offset=70, line=7, records=2, bad=5)
    assert len(run.flaws) == 5


def test_the_later_of_equal_keys_wins_whatever_fails() -> None:
    choice = seeded("test_the_later_of_equal_keys_wins_whatever_fails")
    for _ in range(100):
        keys = [choice.choice("abcdefg") for _ in range(choice.randrange(1, 60))]
        rows = rows_of(*keys)
        store = Store()
        store.failures = {
            choice.randrange(1, 30): choice.choice(
                [Overloaded("busy", retry_after_ms=0), UnknownOutcome("late", "lost")]
            )
            for _ in range(choice.randrange(4))
        }
        run = Run(store, rows, batch_records=choice.randrange(1, 6), first_wait_s=0)
        run.go()
        expected = {row.key: row.value for row in rows if isinstance(row, Row)}
        assert store.data == expected
        offsets = [state.offset for state in run.states]
        assert offsets == sorted(offsets)
        assert offsets[-1] == 10 * len(rows)


def test_a_run_that_goes_on_counts_from_where_it_stood() -> None:
    store = Store()
    run = Run(store, rows_of("a", "b"), progress=Progress(offset=5, line=1, records=7, bad=2))
    assert run.go() == Progress(offset=20, line=2, records=9, bad=2)


def test_nothing_is_left_behind_when_it_is_cut_short() -> None:
    store = Store()
    run = Run(store, rows_of(*"abcdefghijklmnop"))

    async def cut_short() -> set[asyncio.Task[Any]]:
        task = asyncio.ensure_future(run.importer.run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    assert asyncio.run(cut_short()) == set()
