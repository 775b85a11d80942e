"""`nun import` and `nun export` as commands: files, journals, what is told, and going on after an end in the middle."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nun.errors import ConnectionLost
from tests.support.node import seeded

SHOP = ("-d", "shop", "-t", "t")


def write_lines(path: Path, count: int) -> bytes:
    data = "".join(
        json.dumps({"key": f"k{number:05d}", "value": f"v{number}"}) + "\n"
        for number in range(count)
    ).encode()
    path.write_bytes(data)
    return data


class FailsAt:
    """Makes the node go away at the n-th call of a kind, for good."""

    def __init__(self, node: Any, kind: str, number: int) -> None:
        self.node, self.kind, self.left = node, kind, number
        self.call = node.call
        node.call = self

    def __call__(self, *what: Any) -> None:
        if what[0] == self.kind:
            self.left -= 1
            if self.left < 0:
                raise ConnectionLost("the node is away")
        self.call(*what)

    def heal(self) -> None:
        self.node.call = self.call


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.tsv"])
def test_what_is_exported_is_what_was_imported(
    nun: Callable[..., Any], node: Any, tmp_path: Path, name: str
) -> None:
    first, second = tmp_path / name, tmp_path / f"again-{name}"
    write_lines(tmp_path / "start.jsonl", 5000)
    assert nun(*SHOP, "import", str(tmp_path / "start.jsonl")).status == 0
    node.data[b"$connections"] = node.data[b"$$token"] = node.data[b"k00000"]
    assert nun(*SHOP, "export", str(first)).status == 0
    node.data.clear()
    run = nun(*SHOP, "import", str(first))
    assert (run.status, run.out) == (0, b"")
    assert "imported 5,000 records" in run.err
    assert len(node.data) == 5000
    assert nun(*SHOP, "export", str(second)).status == 0
    assert first.read_bytes() == second.read_bytes()
    if name.endswith("jsonl"):
        assert first.read_bytes() == (tmp_path / "start.jsonl").read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"again-{name}", "start.jsonl"])


def test_an_import_that_was_cut_short_goes_on(
    nun: Callable[..., Any], node: Any, tmp_path: Path
) -> None:
    choice = seeded("test_an_import_that_was_cut_short_goes_on")
    path = tmp_path / "data.jsonl"
    write_lines(path, 1000)
    for _ in range(10):
        node.data.clear()
        node.calls.clear()
        fault = FailsAt(node, "set_many", choice.randrange(1, 20))
        arguments = (*SHOP, "import", str(path), "--batch", "50", "--retry-for", "0")
        run = nun(*arguments)
        assert run.status == 3
        assert "call again to go on" in run.err
        sent = sum(call[1] for call in node.calls if call[0] == "set_many")
        fault.heal()
        run = nun(*arguments, "--json")
        assert run.status == 0
        shown = json.loads(run.out)
        assert shown["records"] == 1000
        assert 0 < shown["resumed_after"] <= sent
        assert len(node.data) == 1000
        # Going on does not begin again: at most what was in flight is sent twice.
        assert sum(call[1] for call in node.calls if call[0] == "set_many") <= 1000 + 4 * 50
        assert os.listdir(tmp_path) == ["data.jsonl"]


def test_a_changed_input_begins_at_the_start(
    nun: Callable[..., Any], node: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    write_lines(path, 1000)
    fault = FailsAt(node, "set_many", 5)
    arguments = (*SHOP, "import", str(path), "--batch", "50", "--retry-for", "0")
    nun(*arguments)
    fault.heal()
    write_lines(path, 1001)
    node.data.clear()
    run = nun(*arguments)
    assert run.status == 0
    assert "beginning at the start" in run.err
    assert "input differs" in run.err
    assert len(node.data) == 1001


def test_restart_forgets_the_journal(nun: Callable[..., Any], node: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_lines(path, 1000)
    journal = tmp_path / "elsewhere"
    arguments = (*SHOP, "import", str(path), "--batch", "50", "--journal", str(journal))
    fault = FailsAt(node, "set_many", 5)
    assert nun(*arguments, "--retry-for", "0").status == 3
    assert journal.exists()
    fault.heal()
    node.data.clear()
    assert nun(*arguments, "--restart").status == 0
    assert len(node.data) == 1000
    assert not journal.exists()


def test_bad_records(nun: Callable[..., Any], node: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"key": "a", "value": "1"}\nnonsense\n{"key": "b", "value": "2"}\n')
    run = nun(*SHOP, "import", str(path))
    assert run.status == 1
    assert "line 2: no JSON" in run.err
    assert sorted(node.data) == [b"a"]
    assert (tmp_path / "data.jsonl.nun-progress").exists()
    run = nun(*SHOP, "import", str(path), "--skip-bad", "--json")
    assert run.status == 1
    assert json.loads(run.out)["bad"] == 1
    assert sorted(node.data) == [b"a", b"b"]
    assert os.listdir(tmp_path) == ["data.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("data.txt",), "names no format"),
        (("missing.csv",), "does not exist"),
        (("data.csv",), "no column 'key', only a, b"),
        (("data.csv", "--in-flight", "0"), "--in-flight"),
        (("-", "--journal", "j"), "--journal"),
    ],
)
def test_what_cannot_be_imported_is_usage(
    nun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], problem: str
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("a\n")
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    run = nun(*SHOP, "import", *arguments)
    assert run.status == 2
    assert problem in run.err


def test_pipes(nun: Callable[..., Any], node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'{"key": "a", "value": "1"}\n{"key": "b", "value": "2"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert nun(*SHOP, "import", "-", "--quiet") == (0, b"", "")
    assert sorted(node.data) == [b"a", b"b"]
    assert nun(*SHOP, "export", "-", "--quiet") == (0, text, "")
    assert nun(*SHOP, "export", "-", "--format", "csv", "--quiet").out == b"key,value\na,1\nb,2\n"


def test_an_export_that_was_cut_short_goes_on(
    nun: Callable[..., Any], node: Any, tmp_path: Path
) -> None:
    choice = seeded("test_an_export_that_was_cut_short_goes_on")
    write_lines(tmp_path / "data.jsonl", 3000)
    nun(*SHOP, "import", str(tmp_path / "data.jsonl"), "--quiet")
    out = tmp_path / "out.csv"
    nun(*SHOP, "export", str(out), "--quiet")
    whole = out.read_bytes()
    for _ in range(5):
        out.unlink()
        fault = FailsAt(node, "get_many", choice.randrange(1, 4))
        arguments = (*SHOP, "export", str(out), "--retry-for", "0")
        run = nun(*arguments)
        assert run.status == 3
        assert "--resume goes on" in run.err
        assert not out.exists()
        fault.heal()
        node.calls.clear()
        with (tmp_path / "out.csv.part").open("ab") as part:
            part.write(b"half a rec")  # what a crash may leave behind the last known place
        assert nun(*arguments, "--resume").status == 0
        assert out.read_bytes() == whole
        assert sum(call[1] for call in node.calls if call[0] == "get_many") < 3000
        assert sorted(os.listdir(tmp_path)) == ["data.jsonl", "out.csv"]


def test_resume_without_a_beginning_is_a_whole_export(
    nun: Callable[..., Any], tmp_path: Path
) -> None:
    nun(*SHOP, "set", "a", "1")
    out = tmp_path / "out.jsonl"
    assert nun(*SHOP, "export", str(out), "--resume", "--quiet").status == 0
    assert out.read_bytes() == b'{"key": "a", "value": "1"}\n'


def test_an_export_that_csv_cannot_hold(nun: Callable[..., Any], tmp_path: Path) -> None:
    nun(*SHOP, "set", "a", os.fsdecode(b"\xff"))
    run = nun(*SHOP, "export", str(tmp_path / "out.csv"))
    assert run.status == 1
    assert "export as JSON lines" in run.err
    assert nun(*SHOP, "export", str(tmp_path / "out.jsonl")).status == 0
    assert b'"value_base64": "/w=="' in (tmp_path / "out.jsonl").read_bytes()


def test_where_nothing_can_be_written(nun: Callable[..., Any], tmp_path: Path) -> None:
    run = nun(*SHOP, "export", str(tmp_path / "no" / "out.jsonl"))
    assert run.status == 2
    assert "cannot be written" in run.err
