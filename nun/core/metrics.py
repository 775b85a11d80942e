"""Counters and latency quantiles of a process, cheap enough for the hot path."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from nun import messages

REQUEST_NAMES: Final = {
    getattr(messages, name): name.lower()
    for name in (
        "HELLO", "PING", "USE", "GET", "GET_MANY", "SET", "REMOVE", "INCREMENT", "SET_MANY", "BATCH", "KEYS",
        "WATCH", "CREDIT", "UNWATCH", "BYE", "CREATE_DATABASE", "ALTER_DATABASE", "DROP_DATABASE",
        "DATABASES", "CREATE_USER", "DROP_USER", "SET_PERMISSIONS", "SNAPSHOT", "STATUS", "PROMOTE",
        "CLUSTER", "OUTCOMES", "OUTCOMES_SEEN", "WAIT", "CHECK", "CLAIM", "RESOLVE", "RELEASE",
        "CONFLICTS",
    )
}  # fmt: skip


class Histogram:
    """Durations in nanoseconds, in buckets an eighth of a power of two wide: quantiles err by 12.5% at most."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0

    def observe(self, duration_ns: int, times: int = 1) -> None:
        exponent = max(duration_ns.bit_length() - 4, 0)
        self._buckets[exponent << 4 | duration_ns >> exponent] += times
        self.count += times

    def quantile_us(self, share: float) -> float:
        """The duration in microseconds that this share of the observations does not exceed; 0 when there are none."""
        left = share * self.count
        for bucket in sorted(self._buckets, key=_upper_ns):
            left -= self._buckets[bucket]
            if left <= 0:
                return _upper_ns(bucket) / 1_000
        return 0.0

    def describe(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "p50_us": self.quantile_us(0.5),
            "p90_us": self.quantile_us(0.9),
            "p99_us": self.quantile_us(0.99),
            "max_us": self.quantile_us(1.0),
        }


def _upper_ns(bucket: int) -> int:
    exponent, mantissa = bucket >> 4, bucket & 15
    return (mantissa + 1 << exponent) - 1


class Metrics:
    """What the network process counts."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.latency: dict[str, Histogram] = {"read": Histogram(), "write": Histogram()}
        self.malformed = 0
        self.floods = 0  # connections that were ended for a message without end

    def describe(self, names: dict[int, str]) -> dict[str, Any]:
        return {
            "requests": {names.get(kind, str(kind)): n for kind, n in self.requests.items()},
            "errors": dict(self.errors),
            "malformed": self.malformed,
            "floods": self.floods,
            "latency": {name: histogram.describe() for name, histogram in self.latency.items()},
        }
