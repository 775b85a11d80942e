"""The exporter: pages that fit, in order, whatever the node says in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from nun.cli import exporting
from nun.cli.exporting import Exporter
from nun.errors import ConnectionLost, NunError, Overloaded, TooLarge


class Source:
    """A database whose answers may be at most so many bytes."""

    def __init__(self, data: dict[bytes, bytes], bytes_max: int = 1 << 30) -> None:
        self.data = data
        self.bytes_max = bytes_max
        self.failures: list[NunError | None] = []
        self.asked: list[int] = []

    def _fail(self) -> None:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure

    async def keys(self, pattern: str = "", *, limit: int = 0, after: Any = None) -> list[bytes]:
        assert pattern == "p"
        self._fail()
        return [key for key in sorted(self.data) if after is None or key > after][:limit]

    async def get_many(self, keys: Sequence[bytes]) -> list[Any]:
        self._fail()
        self.asked.append(len(keys))
        values = [self.data[key] for key in keys]
        if sum(map(len, values)) > self.bytes_max:
            raise TooLarge("too much for one answer")
        gone = b"gone"
        return [None if value == gone else SimpleNamespace(value=value) for value in values]


def export(
    source: Source, retry_for_s: float = 5.0
) -> tuple[list[tuple[bytes, bytes]], list[NunError]]:
    waits: list[NunError] = []
    exporter = Exporter(
        source, retry_for_s=retry_for_s, tell_waiting=lambda error, seconds: waits.append(error)  # noqa: ARG005
    )  # fmt: skip

    async def collect() -> list[tuple[bytes, bytes]]:
        return [row async for page in exporter.pages("p") for row in page]

    return asyncio.run(collect()), waits


def test_pages_are_sized_by_what_the_values_weigh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "KEYS_PER_PAGE", 400)
    monkeypatch.setattr(exporting, "PAGE_BYTES_AIM", 10_000)
    data = {b"%04d" % number: b"x" * (10 if number < 500 else 1000) for number in range(1000)}
    source = Source(data, bytes_max=40_000)
    rows, _ = export(source)
    assert rows == sorted(data.items())
    assert max(source.asked) > 100
    assert source.asked[-1] <= 10


def test_what_went_away_meanwhile_is_left_out() -> None:
    rows, _ = export(Source({b"a": b"1", b"b": b"gone", b"$$secret": b"x", b"$connections": b"3"}))
    assert rows == [(b"a", b"1")]


def test_one_value_that_never_fits_is_an_error() -> None:
    with pytest.raises(TooLarge):
        export(Source({b"a": b"xx", b"b": b"xx"}, bytes_max=1))


def test_it_outlasts_a_node_that_is_away() -> None:
    source = Source({b"a": b"1"})
    source.failures = [ConnectionLost("gone"), None, Overloaded("busy"), None]
    rows, waits = export(source)
    assert rows == [(b"a", b"1")]
    assert len(waits) == 2
    source.failures = [ConnectionLost("gone")] * 99
    with pytest.raises(ConnectionLost):
        export(source, retry_for_s=0.2)
