"""The arithmetic behind the figures: rounds in turn, medians, ratios of neighbours."""

from __future__ import annotations

import asyncio

import pytest

from bench.sampling import Series, alternate, median_us, per_second, per_second_in_flight


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    ours = Series((10.0, 40.0, 30.0))
    theirs = Series((10.0, 10.0, 20.0))
    ratio = ours.over(theirs)
    assert ratio.samples == (1.0, 4.0, 1.5)
    assert ratio.median == 1.5  # the ratio of the medians would be 3
    assert (ratio.low, ratio.high) == (1.0, 4.0)


def test_series_of_different_rounds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Series((1.0, 2.0)).over(Series((1.0,)))


def test_spread_is_the_distance_of_the_extremes_over_the_median() -> None:
    assert Series((90.0, 100.0, 120.0)).spread == pytest.approx(0.3)
    assert Series((0.0,)).spread == 0.0


def test_variants_are_sampled_in_turn_after_one_that_does_not_count() -> None:
    calls: list[str] = []

    def sample(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    taken = alternate({"a": lambda: sample("a"), "b": lambda: sample("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert taken == {"a": Series((3.0, 5.0, 7.0)), "b": Series((4.0, 6.0, 8.0))}


def test_per_second_counts_what_the_work_says_over_the_time_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 0.4, 0.8, 1.25])
    monkeypatch.setattr("bench.sampling.perf_counter", lambda: next(clock))
    turns: list[int] = []

    def work(turn: int) -> int:
        turns.append(turn)
        return 1_000

    assert per_second(work, 1.0) == 3_000 / 1.25
    assert turns == [0, 1, 2]


def test_pieces_in_flight_are_as_many_as_asked_for_and_all_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("bench.sampling.perf_counter", lambda: now)
    running = most = 0
    turns: list[int] = []

    async def work(turn: int) -> int:
        nonlocal now, running, most
        turns.append(turn)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        now += 0.25
        return 10

    rate = asyncio.run(per_second_in_flight(work, 3.0, 4))
    assert most == 4
    assert turns == list(range(len(turns)))
    assert rate == pytest.approx(10 * len(turns) / now)


def test_the_median_round_trip_is_in_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.001, 0.003, 0.013])
    monkeypatch.setattr("bench.sampling.perf_counter", lambda: next(clock))
    assert median_us(lambda _: None, 0.01) == pytest.approx(2_000)
