"""Logs: what a line holds and in which order, how faults look, what never reaches them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from actors.logs import configure_logging
from nun.config import LogConfig


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_a_line_is_one_object_in_a_fixed_order(capfd: pytest.CaptureFixture[str]) -> None:
    log = configure_logging(LogConfig(), "node1", "writer")
    log.info("ready", address="tcp://x", level="not the level", key=b"\xff\x00k", path=Path("a"))
    (line,) = lines(capfd)
    assert list(line)[:5] == ["time", "level", "event", "node", "actor"]
    assert (line["level"], line["event"], line["node"], line["actor"]) == (
        "info",
        "ready",
        "node1",
        "writer",
    )
    assert datetime.fromisoformat(line["time"]).utcoffset() is not None
    assert (line["key"], line["path"]) == ("\\xff\x00k", "a")


def test_lower_levels_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    log = configure_logging(LogConfig(level="warning"), "n", "a")
    log.debug("no")
    log.info("no")
    log.warning("yes")
    log.error("yes")
    assert [line["level"] for line in lines(capfd)] == ["warning", "error"]


def test_a_fault_has_its_traceback_in_one_line_and_no_values_of_variables(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log = configure_logging(LogConfig(), "n", "a")
    password = "geheim"
    try:
        raise RuntimeError(f"{len(password)} letters")
    except RuntimeError:
        log.critical("fault", exc_info=True, story=None)
    text = capfd.readouterr().err
    assert "geheim" not in text
    (line,) = (json.loads(part) for part in text.splitlines())
    assert "Traceback" in line["exception"]
    assert "RuntimeError: 6 letters" in line["exception"]


def test_every_thread_knows_node_and_actor(capfd: pytest.CaptureFixture[str]) -> None:
    log = configure_logging(LogConfig(), "n", "a")
    thread = threading.Thread(target=lambda: log.info("from a thread"))
    thread.start()
    thread.join()
    (line,) = lines(capfd)
    assert (line["node"], line["actor"]) == ("n", "a")


def test_pretty_is_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    log = configure_logging(LogConfig(format="pretty"), "node1", "writer")
    log.warning("gap", from_seq=3)
    try:
        raise ValueError("broken")
    except ValueError:
        log.critical("fault", exc_info=True)
    text = capfd.readouterr().err
    assert "gap" in text.splitlines()[0]
    assert "from_seq=3" in text.splitlines()[0]
    assert "ValueError: broken" in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text.splitlines()[0])


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    log = configure_logging(LogConfig(), "n", "a")
    kept = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    os.close(reader)
    try:
        log.error("into a pipe without a reader")
        os.close(2)
        log.error("into nothing")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
