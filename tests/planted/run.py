"""Applies each planted bug to a copy of the tree, runs the tests that must catch it, and prints who did.

    bin/plant                 all of them
    bin/plant --list          what there is
    bin/plant NAME ...        these

The exit status is 1 when a bug was not caught. Nothing in the working tree is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.planted.bugs import BUGS, Bug
from tests.support.node import ROOT

_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "data", "build"
)
_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=no-shrink")
_TIMEOUT_S = 600


def plant(bug: Bug, root: Path) -> None:
    """Writes the bug into the tree at `root`. Raises ValueError unless its place is found exactly once."""
    path = root / bug.file
    text = path.read_text() if path.exists() else ""
    count = text.count(bug.search)
    if count != 1:
        raise ValueError(f"{bug.name}: its text stands {count} times in {bug.file}, expected once")
    path.write_text(text.replace(bug.search, bug.replacement))


def run(bug: Bug) -> tuple[bool, str, float]:
    """Plants one bug; whether a test failed, the first line that says so, and how long it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nun-plant-") as folder:
        root = Path(folder) / "tree"
        shutil.copytree(ROOT, root, ignore=_LEFT_OUT)
        plant(bug, root)
        found = subprocess.run(
            [sys.executable, "-m", "pytest", *_OPTIONS, *bug.tests],
            cwd=root,
            env=environment(root),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    took = time.monotonic() - began
    lines = [line for line in found.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    caught = found.returncode == 1 and bool(lines) and lines[0].startswith("FAILED")
    return caught, lines[0] if lines else found.stdout[-300:] + found.stderr[-300:], took


def environment(root: Path) -> dict[str, str]:
    """Makes the copy, and not the installed tree, what `import nun` finds."""
    return {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}


def main(arguments: Sequence[str]) -> int:
    known = {bug.name: bug for bug in BUGS}
    if "--list" in arguments:
        for bug in BUGS:
            print(f"{bug.name:34} {bug.file:28} {bug.what}")
        return 0
    unknown = [name for name in arguments if name not in known]
    if unknown:
        print(f"no such bug: {', '.join(unknown)}; bin/plant --list shows them", file=sys.stderr)
        return 2
    chosen = [known[name] for name in arguments] or list(BUGS)
    missed = 0
    for bug in chosen:
        caught, by, took = run(bug)
        missed += not caught
        print(f"{'caught' if caught else 'MISSED':7} {bug.name:34} {took:5.1f} s  {by}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} planted bugs were caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
