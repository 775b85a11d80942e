"""A pytest plugin for continuous integration: a test that is skipped without leave fails the run.

A skipped test proves nothing and is easily overlooked; bin/test loads this when CI=true.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

# Tests that may be skipped, by the start of their node id, each with the reason.
MAY_SKIP: dict[str, str] = {
    "tests/process/test_disk_full.py": "mounts a small file system, which a container may forbid",
}

_skipped: list[tuple[str, str]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append((report.nodeid, _reason(report.longrepr)))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append((report.nodeid, _reason(report.longrepr)))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and list(_unexcused()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for node_id, reason in _unexcused():
        terminalreporter.write_line(f"SKIPPED WITHOUT LEAVE {node_id}: {reason}", red=True)


def _unexcused() -> Iterator[tuple[str, str]]:
    for node_id, reason in _skipped:
        if not node_id.startswith(tuple(MAY_SKIP)):
            yield node_id, reason


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
