"""`nun get`, `set`, `remove`, `increment`, `keys`, `watch`: one key, or a few, of one database."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from nun.cli.output import on_one_line, record, say, say_bytes, say_json, warn
from nun.cli.settings import Settings, with_settings
from nun.client.levels import LEVELS
from nun.limits import KEYS_PAGE_MAX, VALUE_BYTES_MAX
from nun.position import Position

REFUSED: Final = 1


class AckLevel(click.ParamType[str | int]):
    """`local`, `primary`, `majority`, `all`, or a number of replicas."""

    name = "level"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        if value in LEVELS:
            return str(value)
        return self.fail(f"{value!r}: expected {', '.join(LEVELS)} or a number", param, ctx)


_ack_option = click.option(
    "--ack",
    type=AckLevel(),
    metavar="LEVEL",
    help="How far the write goes first: local, primary, majority, all, or a number of replicas.",
)


def _condition_options(command: Any) -> Any:
    for option in (
        _ack_option,
        click.option("--if-absent", is_flag=True, help="Only when the key holds nothing."),
        click.option(
            "--if-version", type=int, metavar="N", help="Only when the key's version is N."
        ),
        click.option(
            "--version",
            type=int,
            metavar="N",
            help="NunDB's rule: only when N >= the key's version.",
        ),
    ):
        command = option(command)
    return command


def _condition(given: dict[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        name: given[name] for name in ("version", "if_version") if given.get(name) is not None
    }
    if given.get("if_absent"):
        chosen["base"] = None
    if len(chosen) > 1:
        raise click.UsageError("--if-absent, --if-version and --version exclude each other")
    if given.get("ack") is not None:
        chosen["ack"] = given["ack"]
    return chosen


def _tell_written(settings: Settings, key: str, result: Any) -> None:
    if settings.json:
        say_json({"key": key, **record(result)})
    else:
        tentative = ", tentative" if result.status == "tentative" else ""
        say(f"version {result.version}{tentative}")


@click.command(short_help="Print the value of a key.")
@click.argument("key")
@click.option("--at", metavar="POSITION", help="Once this position is shown, as in 1.1.3:42.")
@click.option(
    "--level", type=click.Choice(["majority"]), help="Only what no change of primary takes back."
)
@with_settings
def get(settings: Settings, key: str, at: str | None, level: str | None) -> int:
    """Print the value of KEY and a newline. A missing key is told on stderr, with exit status 1."""
    view: dict[str, Any] = {"at": at, "level": level}
    view = {name: given for name, given in view.items() if given is not None}
    with settings.client() as client:
        entry = settings.open_database(client).get(os.fsencode(key), **view)
    if entry is None:
        if settings.json:
            say_json(None)
        else:
            warn(f"no key {key!r}")
        return REFUSED
    if settings.json:
        say_json(record(entry))
    else:
        say_bytes(entry.value)
    return 0


@click.command("set", short_help="Give a key a value.")
@click.argument("key")
@click.argument("value", required=False)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Take the value from a file, as it is; - for standard input.",
)
@_condition_options
@with_settings
def set_(settings: Settings, key: str, value: str | None, file: Path | None, **given: Any) -> None:
    """Give KEY a VALUE, and print the version it has now."""
    if (value is None) == (file is None):
        raise click.UsageError("expected VALUE or --file")
    condition = _condition(given)
    with settings.client() as client:
        database = settings.open_database(client)
        content = os.fsencode(value) if value is not None else _content(file)
        _tell_written(settings, key, database.set(os.fsencode(key), content, **condition))


def _content(file: Path | None) -> bytes:
    assert file is not None
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if str(file) == "-" else stack.enter_context(file.open("rb"))
        return source.read(VALUE_BYTES_MAX + 1)  # what is longer, the node refuses


@click.command(short_help="Remove a key.")
@click.argument("key")
@_condition_options
@with_settings
def remove(settings: Settings, key: str, **given: Any) -> None:
    """Remove KEY; what is not there can be removed too."""
    condition = _condition(given)
    with settings.client() as client:
        result = settings.open_database(client).remove(os.fsencode(key), **condition)
        _tell_written(settings, key, result)


@click.command(
    short_help="Add to a number and print the sum.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("key")
@click.argument("delta", type=int, default=1)
@_ack_option
@with_settings
def increment(settings: Settings, key: str, delta: int, ack: str | int | None) -> None:
    """Add DELTA (1, and negative ones too) to the integer in KEY and print the sum."""
    far: dict[str, Any] = {} if ack is None else {"ack": ack}
    with settings.client() as client:
        result = settings.open_database(client).increment(os.fsencode(key), delta, **far)
    if settings.json:
        say_json({"key": key, **record(result)})
    else:
        say(str(result.value))


@click.command(short_help="List keys: all, prefix*, *suffix or a part.")
@click.argument("pattern", default="")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many [all].")
@click.option("--after", metavar="KEY", help="Only keys behind this one.")
@with_settings
def keys(settings: Settings, pattern: str, limit: int | None, after: str | None) -> None:
    """List the keys that match PATTERN in their order, one a line."""
    left = limit
    last: Any = None if after is None else os.fsencode(after)
    with settings.client() as client:
        database = settings.open_database(client)
        while left is None or left > 0:
            page = min(KEYS_PAGE_MAX, left or KEYS_PAGE_MAX)
            found = database.keys(os.fsencode(pattern), limit=page, after=last)
            if not found:
                return
            for key in found:
                if settings.json:
                    say_json(key)
                else:
                    say(on_one_line(key))
            last = found[-1]
            left = None if left is None else left - len(found)


@click.command(short_help="Print every change of a key, a prefix or all.")
@click.argument("pattern", default="*")
@click.option(
    "--since", metavar="POSITION", help="Begin behind this position, as in 1.1.3:42 [now]."
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many events.")
@with_settings
def watch(settings: Settings, pattern: str, since: str | None, count: int | None) -> None:
    """Print one line for every change of what PATTERN names: a key, a prefix (user:*), or all (*).

    Columns, separated by tabs: position, kind, key, version, value; tabs, line breaks and backslashes in keys and
    values are escaped. `compacted` means: forget what was seen; the state follows, then `current`.
    """  # fmt: skip
    try:
        start = None if since is None else Position.parse(since)
    except ValueError as error:
        raise click.UsageError(f"--since: {error}") from error
    with settings.client() as client:
        database = settings.open_database(client)
        with contextlib.closing(database.watch(os.fsencode(pattern), since=start)) as events:
            for seen, event in enumerate(events, 1):
                show_event(event, as_json=settings.json)
                sys.stdout.flush()
                if seen == count:
                    return


def show_event(event: Any, *, as_json: bool) -> None:
    """One line."""
    if as_json:
        say_json(record(event))
        return
    columns = [
        str(event.position),
        event.kind,
        on_one_line(event.key),
        "" if event.version is None else str(event.version),
        on_one_line(event.value),
    ]
    say("\t".join(columns).rstrip("\t"))
