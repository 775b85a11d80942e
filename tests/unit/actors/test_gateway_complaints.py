"""What libraries say of peers is told once in a while; what is the gateway's own fault, every time."""

from __future__ import annotations

import logging
import sys
from typing import Any

from aiohttp.http_exceptions import BadStatusLine

from actors.gateway_complaints import Complaints


class Log:
    def __init__(self) -> None:
        self.said: list[tuple[str, str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.said.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self.said.append(("error", event, fields))


def record(text: str, error: BaseException | None = None) -> logging.LogRecord:
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    return logging.LogRecord("picows.server", logging.ERROR, "", 0, text, None, info)


def test_peers_are_told_of_once_a_minute_with_their_number() -> None:
    now = [100.0]
    log = Log()
    complaints = Complaints(log, lambda: now[0])
    for _ in range(50):
        complaints.handle(record("broken\nframe " + "x" * 500))
    now[0] += 61
    complaints.handle(record("no HTTP", BadStatusLine("GET / HTTP/9.9")))
    assert [(level, event, one["times"]) for level, event, one in log.said] == [
        ("warning", "protocol_broken", 1),
        ("warning", "protocol_broken", 50),
    ]
    first, second = (one["first"] for _, _, one in log.said)
    assert first == ("broken frame " + "x" * 500)[:200]
    assert "HTTP/9.9" in second
    assert log.said[0][2]["library"] == "picows"


def test_a_fault_is_told_each_time() -> None:
    log = Log()
    complaints = Complaints(log, lambda: 0.0)
    fault = ZeroDivisionError()
    complaints.handle(record("handler failed", fault))
    complaints.handle(record("handler failed", fault))
    told = ("error", "gateway_fault", {"what": "picows.server", "exc_info": fault})
    assert log.said == [told, told]
