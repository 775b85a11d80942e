"""Which directory a node gets, where several are started in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.shared_directory import Claim, claim

A, B, C = "127.0.0.1:3017", "127.0.0.1:3018", "127.0.0.1:3016"


def member(directory: Path, name: str, tcp: str | None = None) -> Claim:
    return claim(directory, name, tcp or name, alone=False)


def alone(directory: Path, tcp: str) -> Claim:
    return claim(directory, tcp, tcp, alone=True)


def test_the_first_owns_the_root_and_all_go_on_where_they_were(tmp_path: Path) -> None:
    root = tmp_path / "dbs"
    claims = [member(root, name) for name in (A, B, C)]
    paths = [each.path for each in claims]
    assert paths == [root, root / "nodes" / B, root / "nodes" / C]
    assert {each.owner for each in claims} == {A}
    for each in claims:
        each.release()
    assert [member(root, name).path for name in (C, B, A)] == [*reversed(paths)]


def test_a_member_takes_no_place_of_another_that_does_not_run(tmp_path: Path) -> None:
    member(tmp_path, A).release()
    assert member(tmp_path, B).path == tmp_path / "nodes" / B


def test_members_with_the_same_port_on_shared_storage_are_two(tmp_path: Path) -> None:
    member(tmp_path, "alpha:3014", "0.0.0.0:3014").release()
    assert member(tmp_path, "beta:3014", "0.0.0.0:3014").path == tmp_path / "nodes" / "beta:3014"


def test_one_on_its_own_goes_on_under_another_port(tmp_path: Path) -> None:
    alone(tmp_path, A).release()
    moved = alone(tmp_path, B)
    assert (moved.path, moved.owner) == (tmp_path, A)


def test_one_on_its_own_leaves_alone_who_runs(tmp_path: Path) -> None:
    first = alone(tmp_path, A)
    second = alone(tmp_path, B)
    assert second.path == tmp_path / "nodes" / B
    first.release()
    second.release()
    assert alone(tmp_path, B).path == tmp_path / "nodes" / B, "it has a place of its own now"
    assert alone(tmp_path, A).path == tmp_path


def test_one_that_was_on_its_own_joins_a_cluster_with_what_it_has(tmp_path: Path) -> None:
    alone(tmp_path, "0.0.0.0:3014").release()
    assert member(tmp_path, "alpha:3014", "0.0.0.0:3014").path == tmp_path


def test_a_claim_that_was_cut_short_takes_nothing_from_who_was_sent_away(tmp_path: Path) -> None:
    first = member(tmp_path, A)
    member(tmp_path, B)
    first.release()
    (tmp_path / "NUN-DB").write_text("")
    assert member(tmp_path, B).path == tmp_path / "nodes" / B
    assert member(tmp_path, A).path == tmp_path


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        alone(tmp_path / "file" / "dbs", A)
