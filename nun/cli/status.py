"""`nun status`: how the node is, for people and for health checks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from nun.cli.output import bytes_text, duration_text, plain, print_table, say_json
from nun.cli.settings import Settings, with_settings


@click.command()
@with_settings
def status(settings: Settings) -> None:
    """Show version, role and position, databases, oplog and snapshots, processes, requests and latencies."""
    with settings.client() as client:
        found = plain(client.status())
    if settings.json:
        say_json(found)
        return
    for title, header, rows in tables(found):
        print_table(title, header, rows)


Shown = tuple[str | None, list[str], list[list[str]]]  # title, header, rows


def tables(found: Mapping[str, Any], title: str | None = None) -> list[Shown]:
    """One table of what stands alone, then one for each part, and for each part of a part."""
    alone = {name: value for name, value in found.items() if not isinstance(value, (dict, list))}
    shown: list[Shown] = []
    if alone:
        shown.append((title, ["", ""], [[_title(name), cell(name, alone[name])] for name in alone]))
    for name, value in found.items():
        if name in alone or not value:
            continue
        part = _title(name) if title is None else f"{title}: {_title(name)}"
        rows = value if isinstance(value, list) else list(value.values())
        if all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
            shown.append((part, *_rows(value)))
        elif isinstance(value, list):
            shown.append((part, [""], [[cell(name, item)] for item in value]))
        else:
            shown += tables(value, part)
    return shown


def _rows(
    value: list[dict[str, Any]] | dict[str, dict[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """A row an item, where all items have the same fields; the names of a dictionary lead its rows."""
    if isinstance(value, list):
        return [_title(name) for name in value[0]], [
            [cell(name, item) for name, item in row.items()] for row in value
        ]
    columns = [_title(name) for name in next(iter(value.values()))]
    return ["", *columns], [
        [key, *(cell(name, item) for name, item in row.items())] for key, row in value.items()
    ]


def cell(name: str, value: Any) -> str:
    """A figure in the unit that its name ends in."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "  ".join(f"{key} {cell(key, item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(cell(name, item) for item in value) or "-"
    if isinstance(value, (int, float)):
        return _number(name, value)
    return str(value)


def _number(name: str, value: float) -> str:
    if name.endswith("unix_ms"):
        return datetime.fromtimestamp(value / 1000, UTC).isoformat(" ", "seconds")
    unit = name.rsplit("_", 1)[-1]
    if unit in ("bytes", "rss"):
        return bytes_text(value)
    seconds = {"s": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}.get(unit)
    if seconds is not None and (name == "seconds" or "_" in name):
        return duration_text(value * seconds)
    if unit in ("pid", "number", "port", "start", "reign"):
        return str(value)
    if unit == "percent":
        return f"{value:.1f} %"
    if unit == "share":
        return f"{value:.1%}".replace("%", " %")
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _title(name: str) -> str:
    if name == "unix_ms":
        return "at"
    for unit in ("_bytes", "_unix_ms", "_seconds", "_ms", "_us", "_ns", "_s", "_percent"):
        if name.endswith(unit) and len(name) > len(unit):
            name = name[: -len(unit)]
            break
    return name.replace("_", " ")
