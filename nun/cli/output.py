"""What the `nun` command prints: values as they are, lines for people, JSON for machines.

Keys and values are bytes here. JSON shows them as text, or as `..._base64` where they are not UTF-8.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nun.errors import BatchError, ConfigError, NunError, RequestError, UnknownOutcome
from nun.position import Position

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_SHORT: Final = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\\": "\\\\"}


def as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def on_one_line(value: str | bytes | None) -> str:
    """The text of a key or value without line breaks or terminal controls: backslash escapes stand for them."""
    if value is None:
        return ""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return _CONTROLS.sub(lambda found: _SHORT.get(found[0], f"\\x{ord(found[0]):02x}"), text)


def field(name: str, value: str | bytes | None) -> dict[str, Any]:
    """`{name: text}`, or `{name_base64: ...}` for bytes that are not UTF-8."""
    if value is None or isinstance(value, str):
        return {name: value}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def plain(value: Any) -> Any:
    """A value that `json` can write: bytes as text, positions in their text form, objects by their fields."""
    if isinstance(value, Position):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if hasattr(value, "version") and hasattr(value, "op_id"):
        return record(value)
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def record(entry: Any) -> dict[str, Any]:
    """An entry or an event as JSON shows it."""
    shown: dict[str, Any] = {}
    for name in ("kind", "key", "value", "version", "op_id", "in_conflict", "position", "status"):
        found = getattr(entry, name, None)
        if isinstance(found, (str, bytes)) and name in ("key", "value"):
            shown.update(field(name, found))
        elif name in ("key", "value") and "kind" in shown:
            shown[name] = None
        elif found is not None:
            shown[name] = plain(found)
    return shown


def say(line: str) -> None:
    """One line for people."""
    sys.stdout.write(line + "\n")


def say_bytes(value: str | bytes) -> None:
    """A value and a newline, untouched."""
    sys.stdout.flush()
    sys.stdout.buffer.write(as_bytes(value) + b"\n")


def say_json(value: Any) -> None:
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")


def warn(line: str) -> None:
    sys.stderr.write(f"nun: {line}\n")
    sys.stderr.flush()


def complain(error: NunError, *, as_json: bool) -> None:
    """Shows an error on stderr."""
    if as_json:
        sys.stderr.write(json.dumps({"error": describe(error)}, ensure_ascii=False) + "\n")
    elif isinstance(error, ConfigError):
        for problem in error.problems:
            warn(problem)
    else:
        warn(str(error))


def describe(error: NunError) -> dict[str, Any]:
    """An error as JSON shows it."""
    shown: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, RequestError):
        shown.update({"code": error.code, "fields": plain(error.fields)})
    elif isinstance(error, UnknownOutcome):
        shown["reason"] = error.reason
    elif isinstance(error, ConfigError):
        shown["problems"] = error.problems
    elif isinstance(error, BatchError):
        shown["results"] = [
            describe(result) if isinstance(result, NunError) else plain(result)
            for result in error.results
        ]
    return shown


def bytes_text(count: float) -> str:
    """`1.5 MiB` and the like."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def duration_text(seconds: float) -> str:
    """`3 d 4 h`, `2 min 5 s`, `1.20 s`, `3.4 ms`, `12 us`: two units at most."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    whole = int(seconds)
    for unit, size, below, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {below}"
    return f"{whole // 60} min {whole % 60} s"


def print_table(title: str | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; coloured and fitted on a terminal, whole and plain elsewhere."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=10_000)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_header=any(header),
        pad_edge=False,
    )
    for name in header:
        numeric = bool(rows) and all(_is_number(row[len(table.columns)]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _is_number(cell: str) -> bool:
    return bool(cell) and (cell[0].isdigit() or cell[0] == "-")
