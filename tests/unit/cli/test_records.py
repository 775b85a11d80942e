"""Records in files: what is read, where each ends, what is wrong with bad ones; writing is the inverse."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nun.cli import records
from nun.cli.records import CSV, JSON_LINES, TSV, Flaw, Layout, NotText, Row, Writer, read_records
from nun.errors import ConfigError
from nun.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX

JSON = Layout(JSON_LINES)


def read(data: bytes, layout: Layout = JSON, offset: int = 0, line: int = 0) -> list[Row | Flaw]:
    return list(read_records(io.BytesIO(data), layout, offset, line))


def pairs(data: bytes, layout: Layout = JSON) -> list[tuple[bytes, bytes]]:
    found = read(data, layout)
    assert not [row for row in found if isinstance(row, Flaw)]
    return [(row.key, row.value) for row in found if isinstance(row, Row)]


def test_json_values_that_are_no_text_are_stored_as_json() -> None:
    lines = [
        b'{"key": "a", "value": "text"}',
        b'{"key": "b", "value": 5}',
        b'{"key": "c", "value": {"x": [1, "\xc3\xa9"]}}',
        b'{"key_base64": "/w==", "value_base64": "AP8="}',
        b"",
        b'{"value": true, "key": "d", "more": 1}',
    ]
    assert pairs(b"\n".join(lines)) == [
        (b"a", b"text"),
        (b"b", b"5"),
        (b"c", '{"x": [1, "é"]}'.encode()),
        (b"\xff", b"\x00\xff"),
        (b"d", b"true"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON"),
        (b"[1]", "expected an object, found a list"),
        (b'{"value": "x"}', "'key' is missing"),
        (b'{"key": "x"}', "'value' is missing"),
        (b'{"key": "x", "value": null}', "'value' is null"),
        (b'{"key": 5, "value": "x"}', "'key': expected text, found a number"),
        (b'{"key": "", "value": "x"}', "the key is empty"),
        (b'{"key": "\xff", "value": "x"}', "not UTF-8"),
        (b'{"key": "\\ud800", "value": "x"}', "not UTF-8"),
        (b'{"key_base64": "?", "value": "x"}', "'key_base64'"),
        (b'{"key": "x", "value_base64": "a"}', "'value_base64'"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"key": "' + b"k" * (KEY_BYTES_MAX + 1) + b'", "value": ""}', "the key has 4097 bytes"),
        (b'{"key": "x", "value": "' + b"v" * (VALUE_BYTES_MAX + 1) + b'"}', "the value has"),
    ],
)
def test_bad_json_lines_are_told_and_the_next_is_read(line: bytes, reason: str) -> None:
    good = b'{"key": "good", "value": "1"}\n'
    first, flaw, last = read(good + line + b"\n" + good)
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(flaw, Flaw)
    assert reason in flaw.reason
    assert flaw.line == 2
    assert flaw.end == len(good) + len(line) + 1
    assert last.line == 3


def test_an_overlong_line_is_cut_off_without_being_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LINE_BYTES_MAX", 64)
    good = b'{"key": "good", "value": "1"}\n'
    data = good + b"x" * 1000 + b"\n" + good
    _, flaw, last = read(data)
    assert isinstance(flaw, Flaw)
    assert "longer than 64 bytes" in flaw.reason
    assert isinstance(last, Row)
    assert (last.line, last.end) == (3, len(data))


def test_csv_takes_the_columns_that_it_is_told() -> None:
    data = b'\xef\xbb\xbfid,key,value\r\n1,a,x\r\n2,b,"y,\r\n""z"""\r\n\r\n3,c,\r\n'
    assert pairs(data, Layout(CSV)) == [(b"a", b"x"), (b"b", b'y,\r\n"z"'), (b"c", b"")]
    assert pairs(data, Layout(CSV, True, "id", "key")) == [(b"1", b"a"), (b"2", b"b"), (b"3", b"c")]
    assert pairs(data, Layout(CSV, True, "1", "2")) == [(b"1", b"a"), (b"2", b"b"), (b"3", b"c")]


def test_tsv_without_a_header() -> None:
    assert pairs(b"a\tx\nb\ty z\n", Layout(TSV, False)) == [(b"a", b"x"), (b"b", b"y z")]
    assert pairs(b"a\tx\nb\ty\n", Layout(TSV, False, "2", "1")) == [(b"x", b"a"), (b"y", b"b")]


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        (Layout(CSV), "no column 'value', only key, word"),
        (Layout(CSV, True, "key", "3"), "no column '3'"),
        (Layout(CSV, True, "name", "word"), "no column 'name'"),
        (Layout(CSV, False, "name"), "expected the column's number"),
        (Layout(CSV, False, "0"), "expected the column's number"),
    ],
)
def test_a_column_that_is_not_there_is_a_clear_error(layout: Layout, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace("'", ".")):
        read(b"key,word\na,b\n", layout)


def test_an_empty_csv_has_no_records() -> None:
    assert read(b"", Layout(CSV)) == []
    assert read(b"key,value\n", Layout(CSV)) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"alone", "expected at least 2 fields, found 1"),
        (b'"x"y,z', "no CSV record"),
        (b"\xff,x", "not UTF-8"),
        (b",x", "the key is empty"),
    ],
)
def test_bad_csv_records_are_told_and_the_next_is_read(line: bytes, reason: str) -> None:
    flaw, last = read(b"key,value\n" + line + b"\ngood,1\n", Layout(CSV))
    assert isinstance(flaw, Flaw)
    assert reason in flaw.reason
    assert flaw.line == 2
    assert isinstance(last, Row)
    assert last.line == 3


def test_an_unclosed_quote_does_not_swallow_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "VALUE_BYTES_MAX", 100)
    data = b'key,value\na,"open\n' + b"x,1\n" * 100
    found = read(data, Layout(CSV))
    assert isinstance(found[0], Flaw)
    assert len([row for row in found if isinstance(row, Row)]) > 50


def test_every_end_is_a_place_to_go_on_from() -> None:
    for layout in (JSON, Layout(CSV), Layout(TSV), Layout(CSV, False)):
        records_ = [(b"a", b"1"), (b"b", b'x\n"y"\r\n,\tz'), (b"c", b""), (b"d", "é".encode())]
        writer = Writer(layout)
        data = writer.head() + writer.rows(records_)
        whole = read(data, layout)
        assert [(row.key, row.value) for row in whole if isinstance(row, Row)] == records_
        for number, row in enumerate(whole, 1):
            assert read(data, layout, row.end, row.last_line) == whole[number:]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(st.tuples(texts.filter(bool), texts), max_size=8),
    st.sampled_from([JSON, Layout(CSV), Layout(TSV), Layout(CSV, False)]),
)
def test_reading_is_the_inverse_of_writing(found: list[tuple[str, str]], layout: Layout) -> None:
    rows = [(key.encode(), value.encode()) for key, value in found]
    writer = Writer(layout)
    assert pairs(writer.head() + writer.rows(rows), layout) == rows


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.binary(max_size=9)), max_size=5))
def test_json_lines_hold_any_bytes(rows: list[tuple[bytes, bytes]]) -> None:
    assert pairs(Writer(JSON).rows(rows)) == rows


@given(st.binary(max_size=300), st.sampled_from([JSON, Layout(CSV, False), Layout(TSV, False)]))
def test_any_bytes_are_read_to_the_end(data: bytes, layout: Layout) -> None:
    found = read(data, layout)
    ends = [row.end for row in found]
    assert ends == sorted(set(ends))
    assert all(first.last_line < then.line for first, then in itertools.pairwise(found))


def test_csv_refuses_what_is_no_text() -> None:
    with pytest.raises(NotText, match="JSON lines"):
        Writer(Layout(CSV)).rows([(b"a", b"\xff")])


@pytest.mark.parametrize(
    ("name", "format_"),
    [("a.jsonl", "jsonl"), ("a.ndjson", "jsonl"), ("A.CSV", "csv"), ("a.tab", "tsv"), ("a", None)],
)
def test_the_extension_names_the_format(name: str, format_: str | None) -> None:
    assert records.format_of(name) == format_
