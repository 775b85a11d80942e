"""Fixtures shared by all tests: real nodes, and the proof that nothing outlives its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.node import Node, adopt_orphans, leftovers, wait_until

# How fast a machine is at this moment is nothing that a test is about.
_UNTIMED = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("untimed", _UNTIMED)
hypothesis.settings.load_profile("untimed")

# For runs that only ask whether a test fails (bin/plant): the first failure will do.
hypothesis.settings.register_profile(
    "no-shrink",
    _UNTIMED,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    database=None,
    report_multiple_bugs=False,
)

_REPORT = pytest.StashKey[pytest.TestReport]()


def pytest_configure() -> None:
    adopt_orphans()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call":
        item.stash[_REPORT] = report
    return report


@pytest.fixture
def start_node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Node]]:
    """A function that starts a node with these settings; all of them are ended after the test."""
    nodes: list[Node] = []

    def start(settings: dict[str, dict[str, Any]] | None = None, **arguments: Any) -> Node:
        node = Node(tmp_path / f"node{len(nodes) + 1}", settings, **arguments)
        nodes.append(node)
        return node.start()

    yield start
    report = request.node.stash.get(_REPORT, None)
    for node in nodes:
        node.close()
        if report is None or report.failed:
            print(f"--- the log of {node.directory.name} ends so:\n{node.tail()}")


@pytest.fixture(autouse=True)
def no_process_outlives(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a process behind."""
    if request.node.get_closest_marker("process") is None:
        yield
        return
    before = {process.pid for process in leftovers()}
    yield

    def gone() -> bool:
        return all(process.pid in before for process in leftovers())

    wait_until(gone, "all processes that the test started to end", timeout=10)
