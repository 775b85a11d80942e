"""Only a node's own gateway may speak for others; whom it speaks for bears the wrong guesses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nun import messages as m
from nun.errors import AuthError, BadRequest
from nun.limits import ADDRESS_BYTES_MAX, SECRET_FAILURES_MAX
from tests.support.core_driver import SETTINGS, CoreDriver

SECRET = b"s" * 32


@pytest.fixture
def driver() -> CoreDriver:
    return CoreDriver(replace(SETTINGS, gateway_secret=SECRET))


def hello(driver: CoreDriver, peer: bytes, password: str, *origin: Any) -> int:
    """The status of the reply to an administrator's greeting."""
    message = [m.HELLO, 1, 1, b"client " + peer, None, "nun", password, *origin]
    driver.receive((peer, message))
    status: int = driver.sent.pop()[1][0]
    return status


@pytest.mark.parametrize(
    "origin",
    [None, [], [SECRET], [b"wrong", "1.2.3.4"], [SECRET, "x" * (ADDRESS_BYTES_MAX + 1)], [SECRET, 7], [b"", "a"]],
)  # fmt: skip
def test_nobody_else_speaks_for_others(driver: CoreDriver, origin: Any) -> None:
    assert hello(driver, b"x", "nun-pwd", origin) == BadRequest.code
    assert not driver.core.sessions


def test_a_node_without_a_gateway_believes_no_origin() -> None:
    assert hello(CoreDriver(), b"x", "nun-pwd", [b"", "1.2.3.4"]) == BadRequest.code


def test_wrong_guesses_count_against_whom_the_gateway_speaks_for(driver: CoreDriver) -> None:
    for index in range(SECRET_FAILURES_MAX):
        peer = b"guess%d" % index
        assert hello(driver, peer, "wrong", [SECRET, "10.0.0.9"]) == AuthError.code
    assert hello(driver, b"same", "nun-pwd", [SECRET, "10.0.0.9"]) == AuthError.code
    assert hello(driver, b"other", "nun-pwd", [SECRET, "10.0.0.1"]) == 0
    assert driver.core.sessions[b"other"].address == "10.0.0.1"
