"""The table says what was measured, against what, and whether the aim is met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report import (
    Failure,
    Line,
    at_least,
    at_most,
    bars,
    cells,
    document,
    figure,
    table,
    write_json,
)
from bench.sampling import Series

RATE = Line(1, "sets", "keys/s", Series((300.0, 330.0)), Series((200.0, 200.0)), "mset")
ABOUT = {"cpu": "a cpu", "cores": 2, "file_system": "ext4", "python": "3.11", "commit": "abc"}


def with_aim(line: Line, bound: float, least: bool = True) -> Line:
    aim = at_least(bound) if least else at_most(bound)
    return Line(line.row, line.what, line.unit, line.ours, line.theirs, line.peer, aim)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0123, "0.0123"),
        (1.0666, "1.07"),
        (53.24, "53.2"),
        (99.96, "100"),
        (812.4, "812"),
        (6540.0, "6,540"),
        (512_345.0, "512,000"),
    ],
)
def test_figures_have_three_digits_that_mean_something(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("bound", "least", "verdict"),
    [(1.5, True, "met"), (1.6, True, "MISSED"), (1.6, False, "met"), (1.5, False, "MISSED")],
)
def test_an_aim_speaks_of_the_ratio_to_the_peer(bound: float, least: bool, verdict: str) -> None:
    assert with_aim(RATE, bound, least).judged.median == pytest.approx(1.575)
    assert with_aim(RATE, bound, least).verdict == verdict


def test_without_a_peer_an_aim_speaks_of_our_own_figure() -> None:
    line = Line(8, "load", "ms", Series((12.0,)), aim=at_most(15))
    assert line.verdict == "met"
    assert cells(line) == ("8", "load", "12 ms", "", "", "12-12", "<= 15 ms", "met")


def test_a_line_shows_both_figures_behind_its_ratio() -> None:
    assert cells(with_aim(RATE, 1.5)) == (
        "1",
        "sets",
        "315 keys/s",
        "200 mset",
        "1.57 x",
        "1.50-1.65",
        ">= 1.5 x",
        "met",
    )


def test_how_far_an_aim_is_reached_points_the_same_way_for_rates_and_times() -> None:
    assert at_least(2.0).share(3.0) == 1.5
    assert at_most(30.0).share(20.0) == 1.5


def test_the_table_is_in_order_of_rows_and_counts_aims_met_missed_and_not_measured() -> None:
    late = Line(12, "events", "events/s", Series((90_000.0,)), aim=at_least(100_000))
    text = table([late, Failure(3, "no redis"), with_aim(RATE, 1.5), RATE])
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["1", "1", "12"]
    assert lines[4].endswith("MISSED")
    assert "row 3 NOT MEASURED: no redis" in lines
    assert lines[-1] == "1 of 2 aims met, 1 not measured"


def test_the_document_keeps_every_sample(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    write_json(path, [with_aim(RATE, 1.5), Failure(2, "why")], ABOUT)
    found = json.loads(path.read_text())
    assert found == json.loads(
        json.dumps(document([with_aim(RATE, 1.5), Failure(2, "why")], ABOUT))
    )
    assert found["machine"]["cores"] == 2
    first, second = found["results"]
    assert first["ours"] == [300.0, 330.0]
    assert first["theirs"] == [200.0, 200.0]
    assert (first["aim"], first["met"]) == (">= 1.5", True)
    assert second == {"row": 2, "failed": "why"}


def test_a_bar_is_a_line_with_an_aim_as_a_share_of_it() -> None:
    assert bars([RATE, Failure(2, "why")]) == []
    faster = Line(8, "load", "ms", Series((10.0, 20.0, 40.0)), aim=at_most(30))
    first, second = bars([faster, with_aim(RATE, 2.0)])
    assert first.label == "1  sets"
    assert (first.share, first.low, first.high) == pytest.approx((0.7875, 0.75, 0.825))
    assert first.text == "1.57 x  (aim >= 2 x)"
    assert not first.met
    assert (second.share, second.low, second.high) == (1.5, 0.75, 3.0)
    assert second.text == "20 ms  (aim <= 30 ms)"
    assert second.met
