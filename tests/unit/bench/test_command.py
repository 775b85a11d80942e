"""What bin/bench understands of its arguments, and that one failing row leaves the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bench import main as command
from bench.peers import Peers
from bench.processes import Unavailable
from bench.report import Failure, Line
from bench.sampling import Plan, Series


@pytest.mark.parametrize(
    ("text", "chosen"), [("3", [3]), ("7,1", [1, 7]), ("1-4,12", [1, 2, 3, 4, 12]), ("2,2", [2])]
)
def test_rows_are_numbers_and_ranges(text: str, chosen: list[int]) -> None:
    assert command.rows(text) == chosen


@pytest.mark.parametrize(
    "text", ["", "0", str(max(command.ROWS) + 1), "a", "1-", "-3", "4-1", "1;2", "1-x"]
)
def test_rows_that_do_not_exist_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.arguments([f"--rows={text}"])
    assert "--rows" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--seconds=0"], ["--rounds=0"], ["--chart=figures.pdf"]])
def test_bad_options_are_refused(given: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.arguments(given)


def test_quick_is_a_plan_that_single_options_still_override() -> None:
    assert command.plan_of(command.arguments([])) == Plan()
    assert command.plan_of(command.arguments(["--quick"])) == Plan.quick()
    plan = command.plan_of(command.arguments(["--quick", "--rounds=9"]))
    assert (plan.rounds, plan.seconds) == (9, Plan.quick().seconds)


def test_a_row_that_fails_half_way_keeps_its_lines_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def half(_peers: Peers, _plan: Plan) -> Iterator[Line]:
        yield Line(1, "first", "ms", Series((1.0,)))
        raise Unavailable("no redis-server")

    def broken(_peers: Peers, _plan: Plan) -> Iterator[Line]:
        raise ValueError("wrong")

    fake = ModuleType("bench.fake")
    fake.__dict__.update(half=half, broken=broken)
    monkeypatch.setitem(sys.modules, "bench.fake", fake)
    monkeypatch.setattr(command, "ROWS", {1: ("fake", "half"), 2: ("fake", "broken")})
    results: list[Line | Failure] = []
    command.measure(1, tmp_path, Plan(), results)
    command.measure(2, tmp_path, Plan(), results)
    assert results == [
        Line(1, "first", "ms", Series((1.0,))),
        Failure(1, "no redis-server"),
        Failure(2, "ValueError: wrong"),
    ]
    assert list(tmp_path.iterdir()) == []
