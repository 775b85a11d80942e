"""A simulated life in which little is remembered of requests: clients are forgotten all along, and known anew.

Of any kind. What was done and forgotten must not be done again (P4), and whoever was forgotten must be served on.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Final

from nun.config import Config
from tests.simulation.simulation import Simulation

_ROWS_BYTES: Final = 1_200  # two clients or three


@cache
def forgetful(kind: type[Simulation]) -> type[Simulation]:
    """Lives of this kind, of nodes that remember little."""

    def config(self: Any, i: int, count: int) -> Config:
        found = kind._config(self, i, count)
        return replace(found, limits=replace(found.limits, request_rows_bytes_max=_ROWS_BYTES))

    return type(f"Forgetful{kind.__name__}", (kind,), {"_config": config})
