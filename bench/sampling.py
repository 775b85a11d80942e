"""How a figure is taken: variants in turn, several rounds, medians.

S1  What is compared is sampled in one run in alternation (A B A B ...), so that a machine that slows
    down slows both.
S2  A ratio is taken round by round, from neighbours in time; the figure is the median of these, and
    their extremes are shown.
S3  Nothing is started, connected or allocated within the time that is measured.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

Sample = Callable[[], float]


@dataclass(frozen=True)
class Plan:
    """`seconds` per sample, `rounds` of all variants, `keys` where a row speaks of a million."""

    seconds: float = 1.0
    rounds: int = 5
    keys: int = 1_000_000

    @classmethod
    def quick(cls) -> Plan:
        """A first look: figures wobble, and the large rows are a tenth of their size."""
        return cls(seconds=0.2, rounds=3, keys=100_000)


@dataclass(frozen=True)
class Series:
    """The samples of one variant, one per round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)

    @property
    def spread(self) -> float:
        """The distance between the extremes as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def over(self, other: Series) -> Series:
        """The ratio to another variant, round by round (S2)."""
        pairs = zip(self.samples, other.samples, strict=True)
        return Series(tuple(ours / theirs for ours, theirs in pairs))


def alternate(variants: Mapping[str, Sample], rounds: int) -> dict[str, Series]:
    """Samples the variants in turn, `rounds` times (S1), after one that is thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for sample in variants.values():
        sample()
    for _ in range(rounds):
        for name, sample in variants.items():
            gc.collect()
            taken[name].append(sample())
    return {name: Series(tuple(samples)) for name, samples in taken.items()}


def per_second(work: Callable[[int], int], seconds: float) -> float:
    """Operations a second: `work(i)` does its i-th piece and says how many operations that was."""
    done = turn = 0
    start = perf_counter()
    end = start + seconds
    now = start
    while now < end:
        done += work(turn)
        turn += 1
        now = perf_counter()
    return done / (now - start)


async def per_second_in_flight(
    work: Callable[[int], Awaitable[int]], seconds: float, width: int
) -> float:
    """`per_second` with `width` pieces in flight at any time."""
    turns = itertools.count()
    done = 0
    start = perf_counter()
    end = start + seconds

    async def lane() -> None:
        nonlocal done
        while perf_counter() < end:
            count = await work(next(turns))
            done += (
                count  # in one step: `done += await ...` would lose what other lanes add meanwhile
            )

    await asyncio.gather(*(lane() for _ in range(width)))
    return done / (perf_counter() - start)


def median_us(work: Callable[[int], object], seconds: float) -> float:
    """The median time of one call, in microseconds."""
    times: list[float] = []
    note = times.append
    start = now = perf_counter()
    end = start + seconds
    turn = 0
    while now < end:
        work(turn)
        turn += 1
        after = perf_counter()
        note(after - now)
        now = after
    return statistics.median(times) * 1e6
