"""Logs for operators: structlog, one JSON object a line on standard error.

    {"time": "2026-01-31T12:00:00.123456Z", "level": "info", "event": "ready", "node": "node1", "actor": "network", ...}

`format = "pretty"` gives the same as coloured text for a terminal. On hot paths a debug line is guarded by a flag
that was read once (`if child.debug: ...`): even a disabled call costs more than the look at a bool.

I1  A line is one write, so that the lines of a node's processes do not mix.
I2  A log that cannot be written (a full disk, a reader that is gone) never stops a node.
I3  A traceback is text without the values of variables: some of those are secrets.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from nun.config import LogConfig

# structlog loads rich where it is there, which takes a sixth of the time that a process of a node needs to start;
# nothing here uses it.
_rich = sys.modules.pop("rich", None)
sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    del sys.modules["rich"]
    if _rich is not None:
        sys.modules["rich"] = _rich

if TYPE_CHECKING:
    from structlog.typing import EventDict

_STDERR: Final = 2


def configure_logging(config: LogConfig, node: str, actor: str) -> Any:
    """Sets structlog up for this process; returns its logger, ready to use in every thread."""

    def in_order(_logger: Any, level: str, event_dict: EventDict) -> EventDict:
        head = {
            "time": event_dict.pop("time"),
            "level": level,
            "event": event_dict.pop("event", ""),
            "node": node,
            "actor": actor,
        }
        return {**head, **event_dict, **head}  # no field takes the place of these

    colours = config.format == "pretty" and sys.stderr.isatty()
    last: list[Any] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_json),
    ]
    if config.format == "pretty":
        last = [
            structlog.dev.ConsoleRenderer(
                colors=colours,
                timestamp_key="time",
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            in_order,
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[config.level.upper()]
        ),
        logger_factory=lambda *_: _Lines(),
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger().bind()


class _Lines:
    """Writes lines to standard error."""

    def msg(self, line: str) -> None:
        try:
            os.write(_STDERR, (line + "\n").encode("utf-8", "backslashreplace"))
        except OSError:
            pass  # I2

    debug = info = warning = error = critical = msg


def _json(event: EventDict, **_: Any) -> str:
    return json.dumps(event, default=_plain)


def _plain(value: Any) -> str:
    """What JSON has no notation for."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
