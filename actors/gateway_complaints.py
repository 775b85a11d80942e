"""What the libraries under the web transports log about peers: a line a minute, with how many there were.

Left alone they write a traceback for each request that is no HTTP and a line for each broken frame, so that anybody
could fill the log without a password. What is no fault of a peer is told every time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from aiohttp.http_exceptions import HttpProcessingError
from picows import WSProtocolError

_AGAIN_S: Final = 60.0
_SHOWN_MAX: Final = 200  # characters
_LIBRARIES: Final = ("aiohttp", "picows")


class Complaints(logging.Handler):
    """See the module's docstring.

    Args:
        log: a structlog logger. clock: seconds.
    """

    def __init__(self, log: Any, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._clock = clock
        self._told_at = float("-inf")
        self._untold = 0

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, HttpProcessingError | WSProtocolError):
            self._log.error("gateway_fault", what=record.name, exc_info=error)
            return
        self._untold += 1
        now = self._clock()
        if now - self._told_at >= _AGAIN_S:
            text = record.getMessage() if error is None else f"{record.getMessage()}: {error}"
            self._log.warning(
                "protocol_broken",
                library=record.name.partition(".")[0],
                first=" ".join(text.split())[:_SHOWN_MAX],
                times=self._untold,
            )
            self._told_at, self._untold = now, 0


def hear_libraries(log: Any) -> None:
    """Has complaints of the libraries told through `log` from now on."""
    complaints = Complaints(log)
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers = [complaints]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
