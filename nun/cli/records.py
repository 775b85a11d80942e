"""Records in files: JSON lines, CSV and TSV, read with the byte offset behind each record, and written.

Readers never stop at a bad record: they say where it is and what is wrong with it, and go on with the next one. They
hold one record in memory, and no record can be longer than the limits of a key and a value allow.

JSON lines: `{"key": "name", "value": "mary"}`; a value that is not text is stored as its JSON text; bytes that are not
UTF-8 stand as `key_base64` or `value_base64`. CSV and TSV: quoted as RFC 4180 says, UTF-8, a header line or none.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple

from nun.errors import ConfigError, NunError
from nun.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX

JSON_LINES: Final = "jsonl"
CSV: Final = "csv"
TSV: Final = "tsv"
FORMATS: Final = (JSON_LINES, CSV, TSV)
_EXTENSIONS: Final = {
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": JSON_LINES,
    ".csv": CSV,
    ".tsv": TSV,
    ".tab": TSV,
}
_DELIMITERS: Final = {CSV: ",", TSV: "\t"}
# JSON may spell one byte of text in six characters; other fields of a record may be as large again.
LINE_BYTES_MAX: Final = 8 * (KEY_BYTES_MAX + VALUE_BYTES_MAX)
_BOM: Final = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """One record to store."""

    key: bytes
    value: bytes
    line: int  # where it begins, counted from 1
    last_line: int
    end: int  # the byte offset behind it


class Flaw(NamedTuple):
    """A record that cannot be stored."""

    line: int
    reason: str
    last_line: int
    end: int


@dataclass(frozen=True)
class Layout:
    """How a file holds its records. Columns are names of the header, or numbers from 1 where there is none."""

    format: str
    header: bool = True
    key_column: str = ""
    value_column: str = ""


def format_of(name: str) -> str | None:
    """The format that a file's extension stands for."""
    for extension, format_ in _EXTENSIONS.items():
        if name.lower().endswith(extension):
            return format_
    return None


class _Lines:
    """The lines of a file, with the offset and number of the last one given; overlong ones are cut off and told."""

    def __init__(self, file: BinaryIO, offset: int, line: int) -> None:
        self._file = file
        self.offset = offset
        self.line = line
        self.overlong = False

    def next(self) -> bytes:
        """The next line with its end, or b"" at the end of the file."""
        text = self._file.readline(LINE_BYTES_MAX)
        self.offset += len(text)
        self.line += bool(text)
        self.overlong = len(text) == LINE_BYTES_MAX and not text.endswith(b"\n")
        if self.overlong:
            while (rest := self._file.readline(LINE_BYTES_MAX)) and self._count(rest):
                if rest.endswith(b"\n"):
                    break
        if self.line == 1 and text.startswith(_BOM):
            return text[len(_BOM) :] or b"\n"
        return text

    def _count(self, rest: bytes) -> int:
        self.offset += len(rest)
        return len(rest)


def read_records(
    file: BinaryIO, layout: Layout, offset: int = 0, line: int = 0
) -> Iterator[Row | Flaw]:
    """The records of a file from a byte offset on, which must lie between two records.

    Args:
        file: open in binary mode and at its start; seekable when `offset` is not 0.
        line: how many lines lie before the offset.

    Raises:
        ConfigError: the header has no such column (at the first record).
    """
    if layout.format == JSON_LINES:
        if offset:
            file.seek(offset)
        return _read_json_lines(_Lines(file, offset, line))
    return _read_delimited(file, layout, offset, line)


def _read_json_lines(lines: _Lines) -> Iterator[Row | Flaw]:
    loads = json.loads
    while text := lines.next():
        if not text.strip():
            continue
        if lines.overlong:
            yield _flaw(lines, lines.line, f"longer than {LINE_BYTES_MAX} bytes")
            continue
        try:
            found = loads(text)
            if type(found) is not dict:
                raise ValueError(f"expected an object, found {_kind(found)}")
            key = _bytes_of(found, "key")
            value = _bytes_of(found, "value")
            yield _checked(lines, lines.line, key, value)
        except UnicodeError:
            yield _flaw(lines, lines.line, "not UTF-8 text")
        except json.JSONDecodeError as error:
            yield _flaw(lines, lines.line, f"no JSON: {error.msg} (column {error.colno})")
        except RecursionError:
            yield _flaw(lines, lines.line, "no JSON that can be read: nested too deeply")
        except ValueError as error:
            yield _flaw(lines, lines.line, str(error))


def _bytes_of(found: dict[str, Any], name: str) -> bytes:
    value = found.get(name)
    if type(value) is str:
        return value.encode()
    if value is not None and name == "value":
        return json.dumps(value, ensure_ascii=False).encode()
    if value is not None:
        raise ValueError(f"{name!r}: expected text, found {_kind(value)}")
    packed = found.get(f"{name}_base64")
    if type(packed) is not str:
        problem = "is null" if name in found else "is missing"
        raise ValueError(f"{name!r} {problem}")
    try:
        return base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise ValueError(f"'{name}_base64': {error}") from error


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _flaw(lines: _Lines, began: int, reason: str) -> Flaw:
    return Flaw(began, reason, lines.line, lines.offset)


def _checked(lines: _Lines, began: int, key: bytes, value: bytes) -> Row | Flaw:
    if not key:
        return _flaw(lines, began, "the key is empty")
    for name, found, bound in (("key", key, KEY_BYTES_MAX), ("value", value, VALUE_BYTES_MAX)):
        if len(found) > bound:
            return _flaw(lines, began, f"the {name} has {len(found)} bytes, more than {bound}")
    return Row(key, value, began, lines.line, lines.offset)


def _read_delimited(file: BinaryIO, layout: Layout, offset: int, line: int) -> Iterator[Row | Flaw]:
    csv.field_size_limit(VALUE_BYTES_MAX + 1)  # an unclosed quote must not swallow the whole file
    lines = _Lines(file, 0, 0)
    reader = _csv_reader(lines, layout.format)
    names: list[str] | None = None
    if layout.header:
        names = next(reader, None)
        if names is None:
            return
    key_at, value_at = _columns(names, layout)
    if offset:
        file.seek(offset)
        lines.offset, lines.line = offset, line
        reader = _csv_reader(lines, layout.format)
    while True:
        began = lines.line + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except UnicodeError:
            yield _flaw(lines, began, "not UTF-8 text")
        except csv.Error as error:
            yield _flaw(lines, began, f"no {layout.format.upper()} record: {error}")
        else:
            if not fields:
                continue
            if len(fields) <= max(key_at, value_at):
                wanted = max(key_at, value_at) + 1
                yield _flaw(lines, began, f"expected at least {wanted} fields, found {len(fields)}")
                continue
            yield _checked(lines, began, fields[key_at].encode(), fields[value_at].encode())


def _csv_reader(lines: _Lines, format_: str) -> Iterator[list[str]]:
    """csv takes exactly the lines of the record that it returns, so `lines.offset` is always the end of one."""

    class Texts:
        def __iter__(self) -> Iterator[str]:
            return self

        def __next__(self) -> str:
            text = lines.next()
            if not text:
                raise StopIteration
            if lines.overlong:
                raise csv.Error(f"a line longer than {LINE_BYTES_MAX} bytes")
            return text.decode()

    return csv.reader(Texts(), delimiter=_DELIMITERS[format_], strict=True)


def _columns(names: list[str] | None, layout: Layout) -> tuple[int, int]:
    """Where key and value stand. Raises ConfigError that names the columns there are."""
    places = []
    for number, (option, wanted, usual) in enumerate(
        (
            ("--key-column", layout.key_column, "key"),
            ("--value-column", layout.value_column, "value"),
        )
    ):
        if names is None:
            if wanted and not (wanted.isascii() and wanted.isdigit() and int(wanted) > 0):
                raise ConfigError(
                    [f"{option} {wanted!r}: without a header, expected the column's number, from 1"]
                )
            places.append(int(wanted) - 1 if wanted else number)
        elif (wanted or usual) in names:
            places.append(names.index(wanted or usual))
        elif wanted.isascii() and wanted.isdigit() and 0 < int(wanted) <= len(names):
            places.append(int(wanted) - 1)
        else:
            raise ConfigError(
                [
                    f"the header has no column {wanted or usual!r}, only {', '.join(names)}: "
                    f"say {option}, or --no-header"
                ]
            )
    return places[0], places[1]


class NotText(NunError):
    """A record that a format of text cannot hold."""


class Writer:
    """Turns records into the bytes of a file. Raises NotText for what the format cannot hold."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def head(self) -> bytes:
        if self._layout.format == JSON_LINES or not self._layout.header:
            return b""
        return self._delimited(
            [(self._layout.key_column or "key", self._layout.value_column or "value")]
        )

    def rows(self, records: Iterable[tuple[bytes, bytes]]) -> bytes:
        if self._layout.format == JSON_LINES:
            return "".join(_json_line(key, value) for key, value in records).encode()
        texts = []
        for key, value in records:
            try:
                texts.append((key.decode(), value.decode()))
            except UnicodeDecodeError:
                raise NotText(
                    f"key {key!r}: {self._layout.format.upper()} holds only text and this record is "
                    "not UTF-8; export as JSON lines"
                ) from None
        return self._delimited(texts)

    def _delimited(self, rows: Iterable[tuple[str, str]]) -> bytes:
        text = io.StringIO(newline="")
        delimiter = _DELIMITERS[self._layout.format]
        where_needed = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        always = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in rows:
            # Two things that must be quoted and that csv does not see: a bare carriage return, and what a reader
            # would take for a byte order mark.
            odd = "\r" in row[0] or "\r" in row[1] or row[0].startswith("\ufeff")
            (always if odd else where_needed).writerow(row)
        return text.getvalue().encode()


def _json_line(key: bytes, value: bytes) -> str:
    try:
        return json.dumps({"key": key.decode(), "value": value.decode()}, ensure_ascii=False) + "\n"
    except UnicodeDecodeError:
        shown: dict[str, str] = {}
        for name, content in (("key", key), ("value", value)):
            try:
                shown[name] = content.decode()
            except UnicodeDecodeError:
                shown[f"{name}_base64"] = base64.b64encode(content).decode()
        return json.dumps(shown, ensure_ascii=False) + "\n"
