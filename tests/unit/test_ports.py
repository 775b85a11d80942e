"""The ports that nodes under test get."""

from __future__ import annotations

from collections import deque

from tests.support.ports import free_port


def test_a_port_is_not_given_again_soon_though_all_have_been_given() -> None:
    of_late: deque[int] = deque(maxlen=60)
    for _ in range(400):
        first = free_port(10_000, 11_100, 12_300)
        for port in (
            first,
            first + 10_000,
            first + 11_100,
            first + 12_300,
            free_port(),
            free_port(),
        ):
            assert port not in of_late
            of_late.append(port)
