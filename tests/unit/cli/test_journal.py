"""The progress journal: it gives back what was saved, and only to the run that it belongs to."""

from __future__ import annotations

import os
from pathlib import Path

from nun.cli.journal import Journal, Progress, identity_of

STATE = Progress(offset=10, line=2, records=3, bad=1, last_key="61")


def test_it_gives_back_what_was_saved(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", {"input": {"size": 3}})
    assert journal.load() == (None, "")
    journal.save(STATE)
    assert Journal(tmp_path / "j", {"input": {"size": 3}}).load() == (STATE, "")
    assert os.listdir(tmp_path) == ["j"]
    journal.discard()
    journal.discard()
    assert journal.load() == (None, "")


def test_another_run_does_not_go_on_with_it(tmp_path: Path) -> None:
    Journal(tmp_path / "j", {"input": 1, "database": "shop"}).save(STATE)
    found, problem = Journal(tmp_path / "j", {"input": 1, "database": "other"}).load()
    assert found is None
    assert "database differs" in problem


def test_a_broken_journal_is_told(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for text in ("", "{", "[]", '{"version": 9}', '{"version": 1, "subject": {}}',
                 '{"version": 1, "subject": {}, "progress": {"what": 1}}'):  # fmt: skip
        path.write_text(text)
        found, problem = Journal(path).load()
        assert found is None
        assert problem


def test_a_changed_input_has_another_identity(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"one\n")
    first = identity_of(path)
    assert identity_of(path) == first
    path.write_bytes(b"two\n")
    os.utime(path, ns=(first["modified_ns"], first["modified_ns"]))
    assert identity_of(path) != first
