"""`nun status`: how the node is, for people and for health checks."""

from __future__ import annotations

from collections.abc import Mapping
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


def tables(found: Mapping[str, Any]) -> list[tuple[str | None, list[str], list[list[str]]]]:
    """One table of what stands alone, then one for each part: a row an item where all items have the same fields."""
    alone = {name: value for name, value in found.items() if not isinstance(value, (dict, list))}
    shown: list[tuple[str | None, list[str], list[list[str]]]] = []
    if alone:
        shown.append((None, ["", ""], [[_title(name), cell(name, alone[name])] for name in alone]))
    for name, value in found.items():
        if name in alone or not value:
            continue
        shown.append((_title(name), *_part(name, value)))
    return shown


def _part(name: str, value: Any) -> tuple[list[str], list[list[str]]]:
    if isinstance(value, list):
        items: list[tuple[str | None, Any]] = [(None, item) for item in value]
    else:
        items = list(value.items())
    if not all(isinstance(item, dict) for _, item in items):
        rows = [[] if key is None else [_title(key)] for key, _ in items]
        return [""] * (len(rows[0]) + 1), [
            [*row, cell(key or name, item)] for row, (key, item) in zip(rows, items, strict=True)
        ]
    columns = list(dict.fromkeys(column for _, item in items for column in item))
    named = items[0][0] is not None
    header = ([""] if named else []) + [_title(column) for column in columns]
    return header, [
        ([str(key)] if named else []) + [cell(column, item.get(column)) for column in columns]
        for key, item in items
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
    unit = name.rsplit("_", 1)[-1]
    if unit in ("bytes", "rss"):
        return bytes_text(value)
    seconds = {"s": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}.get(unit)
    if seconds is not None and "_" in name:
        return duration_text(value * seconds)
    if unit in ("pid", "number", "port", "start", "reign"):
        return str(value)
    if unit in ("percent", "cpu"):
        return f"{value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _title(name: str) -> str:
    for unit in ("_bytes", "_seconds", "_ms", "_us", "_ns", "_s", "_percent"):
        if name.endswith(unit) and len(name) > len(unit):
            name = name[: -len(unit)]
            break
    return name.replace("_", " ")
