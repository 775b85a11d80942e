"""bin/bootstrap.sh: installs once, again when something changed, never twice at once, from any folder.

A fake Python stands in for the real one: it logs what pip is asked for instead of doing it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
"-c import sys"*) exit "${FAKE_TOO_OLD:-0}" ;;
"-c import ensurepip"*) exit "${FAKE_NO_VENV:-0}" ;;
"-c import pip"*) exit 0 ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "venv" >>"$FAKE_LOG" ;;
"-m pip")
    for last; do :; done
    echo "pip $last" >>"$FAKE_LOG"
    sleep "${FAKE_PIP_TAKES:-0}"
    exit "${FAKE_PIP_STATUS:-0}"
    ;;
*) echo "run $*" >>"$FAKE_LOG" ;;
esac
"""


class Checkout:
    """A copy of bin/ and setup.cfg in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root / "check out"
        self.log = root / "log"
        shutil.copytree(ROOT / "bin", self.root / "bin")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        self.python = root / "fake-python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def run(
        self, command: str | Path = "bin/nun", *arguments: str, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("NUN_", "FAKE_")) and name != "CI"
        }
        ours = {"NUN_PYTHON": str(self.python), "FAKE_LOG": str(self.log)}
        return subprocess.run(
            [self.root / command, *arguments],
            env={**inherited, **ours, **environ},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def installs(self) -> list[str]:
        return [line for line in self.logged() if line.startswith("pip")]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_first_use_installs_and_the_second_is_silent(checkout: Checkout) -> None:
    first = checkout.run("bin/nun", "get", "a b")
    assert first.returncode == 0
    assert first.stdout == ""
    assert "first use" in first.stderr
    assert checkout.logged() == ["venv", f"pip {checkout.root}", "run -P -m nun.cli.main get a b"]
    second = checkout.run("bin/nun")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert len(checkout.installs()) == 1


def test_a_symlink_from_elsewhere_finds_the_checkout(checkout: Checkout, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "nun"
    link.parent.mkdir()
    link.symlink_to(checkout.root / "bin" / "nun")
    assert checkout.run(link).returncode == 0
    assert checkout.installs() == [f"pip {checkout.root}"]


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml"])
def test_a_changed_requirement_installs_again(checkout: Checkout, name: str) -> None:
    checkout.run()
    with (checkout.root / name).open("a") as file:
        file.write("\n# changed\n")
    checkout.run()
    assert len(checkout.installs()) == 2


def test_a_moved_checkout_installs_again(checkout: Checkout) -> None:
    checkout.run()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    checkout.run()
    assert checkout.installs()[-1] == f"pip {checkout.root}"


def test_extras_add_up(checkout: Checkout) -> None:
    checkout.run("bin/nun")
    checkout.run("bin/test")
    checkout.run("bin/nun")
    checkout.run("bin/test")
    assert checkout.installs() == [f"pip {checkout.root}", f"pip {checkout.root}[dev]"]
    with (checkout.root / "setup.cfg").open("a") as file:
        file.write("\n# changed\n")
    checkout.run("bin/nun")
    assert len(checkout.installs()) == 3


def test_concurrent_first_uses_install_once(checkout: Checkout) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: checkout.run(FAKE_PIP_TAKES="0.3"), range(4)))
    assert [run.returncode for run in runs] == [0] * 4
    assert len(checkout.installs()) == 1
    assert len([line for line in checkout.logged() if line.startswith("run")]) == 4


def test_a_failed_installation_is_told_and_tried_again(checkout: Checkout) -> None:
    failed = checkout.run(FAKE_PIP_STATUS="1")
    assert failed.returncode == 1
    assert "installation failed" in failed.stderr
    assert not [line for line in checkout.logged() if line.startswith("run")]
    assert checkout.run().returncode == 0
    assert len(checkout.installs()) == 2


def test_an_old_python_is_refused(checkout: Checkout) -> None:
    run = checkout.run(FAKE_TOO_OLD="1")
    assert run.returncode == 1
    assert "Python 3.11 or newer is needed" in run.stderr


def test_a_python_without_venv_is_told(checkout: Checkout) -> None:
    run = checkout.run(FAKE_NO_VENV="1")
    assert run.returncode == 1
    assert "python3-venv" in run.stderr


def test_assertions_are_never_stripped(checkout: Checkout) -> None:
    probe = checkout.root / "bin" / "probe"
    probe.write_text(
        '#!/bin/sh\n. "$(dirname -- "$0")/bootstrap.sh"\necho "[${PYTHONOPTIMIZE-}]"\n'
    )
    probe.chmod(0o755)
    assert checkout.run("bin/probe", PYTHONOPTIMIZE="1").stdout == "[]\n"


def test_bin_test_leaves_long_tests_out_unless_told(checkout: Checkout) -> None:
    checkout.run("bin/test", "-x")
    checkout.run("bin/test", "--all", "-x")
    checkout.run("bin/test", "-x", CI="true")
    checkout.run("bin/test", "tests/unit", "-x")
    checkout.run("bin/test", "--all", "-k", "name")
    runs = [line.removeprefix("run -m pytest ") for line in checkout.logged()]
    parallel = "--numprocesses=auto --dist=worksteal"
    assert [line for line in runs if line.startswith("-m")] == [
        f"-m not process and not long {parallel} -x",
        f"-m process and not long {parallel} -x",
        f"-m not process {parallel} -x",
        f"-m process {parallel} -x",
        f"-m not process and not long {parallel} -p tests.support.no_skips -x",
        f"-m process and not long {parallel} -p tests.support.no_skips -x",
        "-m not long tests/unit -x",
        "-m  -k name",
    ]
