"""Logs for operators: structlog, one JSON object a line on standard error.

Each line has time (UTC), level, event, node, actor, and fields. `format = "pretty"` gives coloured text for a terminal.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from nun.config import LogConfig


def configure_logging(config: LogConfig, node: str, actor: str) -> None:
    """Sets structlog up for this process."""
    level = logging.getLevelName(config.level.upper())
    renderer: Any = structlog.processors.JSONRenderer()
    if config.format == "pretty":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.StackInfoRenderer(),
            *([] if config.format == "pretty" else [structlog.processors.dict_tracebacks]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(node=node, actor=actor)
