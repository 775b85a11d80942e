"""The plugin that makes a test skipped without leave fail a run of continuous integration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("def test_it(): pass", 0, False),
        ("import pytest\ndef test_it(): pytest.skip('no redis here')", 1, True),
        ("import pytest\npytest.skip('not today', allow_module_level=True)", 1, True),
        ("import pytest\n@pytest.mark.xfail\ndef test_it(): assert False", 0, False),
    ],
)
def test_a_skip_without_leave_fails_the_run(
    tmp_path: Path, body: str, status: int, told: bool
) -> None:
    (tmp_path / "test_one.py").write_text(body + "\n")
    (tmp_path / "test_other.py").write_text("def test_other(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.no_skips", "-c", "/dev/null"]
    run = subprocess.run(
        [*command, "--rootdir", tmp_path, "-p", "no:cacheprovider", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == status, run.stdout
    assert ("SKIPPED WITHOUT LEAVE" in run.stdout) == told
