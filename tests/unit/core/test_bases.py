"""The records that were replaced last."""

from __future__ import annotations

import pytest

from nun.core import bases, record
from nun.core.bases import Bases
from nun.core.keyspace import Table


def test_the_later_of_two_records_counts_however_they_came() -> None:
    kept = Bases()
    kept.add(b"a", b"1")
    kept.add_many([b"a", b"b", b"b"], [b"2", b"3", b"4"], 3)
    assert list(kept.of(b"a")) == [b"2"]
    kept.add_many([b"a"], [b"5"], 1)
    kept.add(b"a", b"6")
    kept.add(b"b", b"7")
    assert [list(kept.of(key)) for key in (b"a", b"b", b"c")] == [[b"6"], [b"7"], []]


@pytest.mark.parametrize("bound", ["BASES_MAX", "BASES_BYTES_MAX"])
def test_two_generations_are_kept(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, bound, 4)
    kept = Bases()
    for value in (b"1", b"2", b"3"):
        kept.add(b"a", value)
    kept.add_many([b"a"], [b"4"], 1)
    assert list(kept.of(b"a")) == [b"4", b"3"]
    kept.add_many([b"b", b"b"], [b"5", b"6"], 2)
    assert list(kept.of(b"a")) == [b"4"]
    for _ in range(3):
        kept.add(b"b", b"7")
    assert list(kept.of(b"a")) == []


def test_a_table_keeps_what_it_is_told_though_the_teller_goes_on_with_its_list() -> None:
    table = Table()
    table.keep_bases(True)
    old = [record.live(1, 7, b"v")]
    table.replaced([b"k"], old)
    old.clear()
    assert table.base_of(b"k", 7) == record.live(1, 7, b"v")
    table.keep_bases(False)
    assert table.base_of(b"k", 7) is None
