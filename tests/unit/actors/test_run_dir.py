"""The run directory: private, one for each supervisor, cleared of what dead ones left."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.run_dir import run_directory


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Short enough for sockets below it, as pytest's own folders are not."""
    with tempfile.TemporaryDirectory(prefix="nun-t-") as name:
        yield Path(name) / "data"


def test_it_is_private_and_gone_at_the_end(data_dir: Path) -> None:
    with run_directory(data_dir) as path:
        assert path.parent == data_dir / "run"
        for folder in (data_dir, data_dir / "run", path):
            assert folder.stat().st_mode & 0o777 == 0o700
        (path / "control").touch()
    assert not path.exists()
    assert data_dir.exists()


def test_two_supervisors_on_one_directory_have_each_their_own(data_dir: Path) -> None:
    with run_directory(data_dir) as first:
        (first / "control").touch()
        with run_directory(data_dir) as second:
            assert first != second
        assert (first / "control").exists()


def test_what_dead_supervisors_left_is_cleared_away_and_nothing_else(data_dir: Path) -> None:
    dead, foreign = data_dir / "run" / "dead", data_dir / "run" / "foreign"
    dead.mkdir(parents=True)
    foreign.mkdir()
    (dead / "lock").touch()
    (dead / "control").touch()
    (data_dir / "run" / "note.txt").touch()
    with run_directory(data_dir):
        assert not dead.exists()
        assert (data_dir / "run" / "note.txt").exists()


def test_it_is_locked_while_it_is_used(data_dir: Path) -> None:
    with run_directory(data_dir) as path:
        other = os.open(path / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


def test_a_long_path_moves_it_to_the_systems_folder(data_dir: Path) -> None:
    long = data_dir / ("x" * 100)
    with run_directory(long) as path:
        assert path.parent == Path(tempfile.gettempdir())
        assert path.stat().st_mode & 0o777 == 0o700
        assert long.is_dir()
    assert not path.exists()


def test_a_file_in_its_place_is_an_error(data_dir: Path) -> None:
    data_dir.touch()
    with pytest.raises(OSError, match="exists"), run_directory(data_dir):
        pass
    with pytest.raises(NotADirectoryError), run_directory(data_dir / "below"):
        pass
