"""The list of planted bugs stays true: each still has its place in the code; in the long run each is caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planted.bugs import BUGS, Bug
from tests.planted.run import run
from tests.support.node import ROOT

_NAMES = [bug.name for bug in BUGS]


def test_names_are_unique() -> None:
    assert len(set(_NAMES)) == len(_NAMES)


@pytest.mark.parametrize("bug", BUGS, ids=_NAMES)
def test_its_place_stands_once_and_its_tests_exist(bug: Bug) -> None:
    text = (ROOT / bug.file).read_text()
    assert text.count(bug.search) == 1, f"{bug.file} has changed: find the bug's new place"
    assert bug.search != bug.replacement
    for word in bug.tests:
        if word.startswith("tests/"):
            assert Path(ROOT / word.partition("::")[0]).exists(), word


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", BUGS, ids=_NAMES)
def test_it_is_caught(bug: Bug) -> None:
    caught, by, _ = run(bug)
    assert caught, f"{bug.what}: no test failed\n{by}"
