"""NunDB's text language: commands taken apart, replies put together, to the byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nun.core import record
from nun.gateway import language as lang
from nun.gateway.verbs import ADMINISTRATIVE, VERBS
from nun.nundb import arbitrating


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b"get a", [b"get", b"a"]),
        (b"\n\nset a b c d;;\n", [b"set", b"a", b"b c d"]),
        (b"keys ", [b"keys", b""]),
        (b"set  x", [b"set", b"", b"x"]),
        (b"set a\nb c\nd", [b"set", b"ab", b"cd"]),
        (b"", [b""]),
    ],
)
def test_commands_are_split_as_nundb_does(line: bytes, parts: list[bytes]) -> None:
    assert lang.split(line) == parts


@pytest.mark.parametrize(
    ("text", "version"),
    [(b"7", 7), (b"-1", -1), (b"x", -1), (b"", -1), (b"1795511697135", -1), (b"-5", -5)],
)
def test_versions_that_are_none_say_that_none_was_given(text: bytes, version: int) -> None:
    assert lang.version_in(text) == version


def test_deltas() -> None:
    assert [lang.delta_in(text) for text in (b"", b"x", b"5", b"-3", b"9" * 30)] == [1, 1, 5, -3, 1]


def test_records_are_told_with_their_versions() -> None:
    assert lang.told_value(None).messages == (b"value <Empty>\n",)
    assert lang.told_value_and_version(None).messages == (b"value-version 1 <Empty>\n",)
    live = record.live(3, 77, b"two words")
    assert lang.told_value_and_version(live).messages == (b"value-version 3 two words\n",)
    gone = record.tombstone(4, 78)
    assert lang.told_value_and_version(gone).messages == (b"value-version 4 <Empty>\n",)
    assert lang.op_id_of(live) == 77


def test_a_newline_in_a_value_ends_no_reply() -> None:
    stored = record.live(1, 1, b"x\nok \nvalue y")
    assert lang.told_value(stored).messages == (b"value x ok  value y\n",)
    assert lang.change_notices(b"k\nz", 2, b"a\nb") == (
        b"changed k z a b\n",
        b"changed-version k z 2 a b\n",
    )


ENTRY: dict[str, Any] = {
    "state": "open",
    "kind": "set",
    "previous": 0,
    "database": "shop",
    "key": "name",
    "value": "jose",
    "op_id": 12,
    "current": {"value": "mary", "version": 2, "op_id": 9},
}


def test_conflicts_read_as_nundb_writes_them() -> None:
    assert lang.open_text(ENTRY) == b"resolve 12 shop 2 name mary jose"
    later = {**ENTRY, "previous": 12, "op_id": 13, "current": None, "value": "ana"}
    assert lang.open_text(later) == b"resolve 13 shop -2 name $conflicts_name_12 ana"
    assert lang.open_text(later, b"both") == b"resolve 13 shop -2 name both ana"
    closed = json.dumps({**ENTRY, "state": "resolved"}).encode()
    assert lang.conflict_text(closed, record.live(3, 20, b"both")) == b"resolved both"
    assert lang.conflict_text(b"resolve 1 a 2 b c d", None) == b"resolve 1 a 2 b c d"


def test_promises_that_the_client_would_leave_open_are_settled() -> None:
    assert lang.promised(lang.DONE) is lang.DONE
    assert lang.promised(lang.DENIED) is lang.DENIED
    assert lang.promised(lang.failed("full")).settles == lang.REFUSED
    assert lang.promised(lang.failed("full"), twice=True).settles == lang.REFUSED_TWICE
    kept = lang.in_conflict(b"k", 5)
    assert (kept.error, kept.settles) == (b"$$conflitct unresolved $conflicts_k_5", lang.KEPT)
    assert lang.promised(kept) is kept
    assert lang.unpromised(lang.STALE).settles == 0


def test_whoever_may_write_may_arbitrate() -> None:
    assert arbitrating(b"rw *|q x|rwa y") == "rwa *|r x|rwa y"


def test_all_verbs_that_need_an_administrator_exist() -> None:
    assert set(VERBS) >= ADMINISTRATIVE


def test_many_values_are_told_as_each_is_told_alone() -> None:
    plain = [record.live(version, version << 40, b"value %d" % version) for version in range(1, 40)]
    others = [
        None,
        record.live(1, 2, b""),
        record.live(1, 2, b"two\nlines"),
        record.live(0x0A, 0x0A0A, b"x"),  # newlines in its head
        record.tombstone(3, 4),
        record.shown(record.in_conflict(plain[0])),
    ]
    records = [*plain, *others, *plain]
    assert lang.told_values(records) == [lang.told_value(one).messages[0] for one in records]
