"""`nun create-db`, `drop-db`, `databases`, `create-user`, `drop-user`, `set-permissions`, `snapshot`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from nun.cli.output import bytes_text, duration_text, plain, print_table, say, say_json
from nun.cli.settings import Settings, with_settings
from nun.core.conflicts.strategies import (
    ARBITER,
    BY_OP_ID,
    KEEP,
    NEWER,
    OLDER,
    QUEUE,
    REJECT,
    STRATEGIES,
)


def _done(settings: Settings, line: str, result: object = None) -> None:
    if settings.json:
        say_json({"done": line} if result is None else result)
    else:
        say(line)


def _about_conflicts(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say what becomes of conflicts."""
    options = [
        click.option("--strategy", type=click.Choice(STRATEGIES), help="What decides conflicts."),
        click.option(
            "--prefix",
            "prefixes",
            multiple=True,
            metavar="PREFIX=STRATEGY",
            help="For keys that begin so; may be given many times.",
        ),
        click.option(
            "--no-arbiter", type=click.Choice((QUEUE, REJECT)), help="While none is there."
        ),
        click.option(
            "--conflict-timeout", type=click.FloatRange(0), metavar="SECONDS", help="0: never."
        ),
        click.option(
            "--conflict-fallback",
            type=click.Choice((KEEP, NEWER, OLDER)),
            help="What ends it then.",
        ),
        click.option(
            "--close-calls", type=click.Choice((BY_OP_ID, ARBITER)), help="Who decides them."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _chosen(given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as the client takes them. Raises click.UsageError."""
    prefixes = {}
    for pair in given.pop("prefixes"):
        prefix, equals, strategy = pair.rpartition("=")
        if not equals or strategy not in STRATEGIES:
            raise click.UsageError(
                f"--prefix {pair!r}: expected PREFIX=STRATEGY, the latter one of {', '.join(STRATEGIES)}"
            )
        prefixes[prefix] = strategy
    chosen = {name: value for name, value in given.items() if value is not None}
    return {**chosen, "prefixes": prefixes} if prefixes else chosen


@click.command("create-db")
@click.argument("name")
@click.argument("secret", metavar="[TOKEN]", required=False)
@_about_conflicts
@with_settings
def create_db(settings: Settings, name: str, secret: str | None, **given: Any) -> None:
    """Create the database NAME; who has TOKEN (or -t) may use it."""
    options = _chosen(given)
    token = secret or settings.token
    if token is None:
        raise click.UsageError("expected the token of the new database: as TOKEN, -t or NUN_TOKEN")
    with settings.client() as client:
        client.create_database(name, token=token, **options)
    _done(settings, f"created database {name}")


@click.command("alter-db")
@click.argument("name")
@click.option("--new-token", metavar="TOKEN", help="Who has it may use the database from now on.")
@_about_conflicts
@with_settings
def alter_db(settings: Settings, name: str, new_token: str | None, **given: Any) -> None:
    """Change options of the database NAME; what is left out stays. Open conflicts stay with arbiters."""
    options = _chosen(given)
    if not options and new_token is None:
        raise click.UsageError("expected something to change")
    with settings.client() as client:
        client.alter_database(name, token=new_token, **options)
    _done(settings, f"altered database {name}")


@click.command("drop-db")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_settings
def drop_db(settings: Settings, name: str, yes: bool) -> None:
    """Drop the database NAME with all it holds."""
    if not yes:
        click.confirm(f"Drop database {name} and all it holds?", abort=True, err=True)
    with settings.client() as client:
        client.drop_database(name)
    _done(settings, f"dropped database {name}")


@click.command()
@with_settings
def databases(settings: Settings) -> None:
    """List the databases."""
    with settings.client() as client:
        found = plain(client.databases())
    if settings.json:
        say_json(found)
    else:
        show_databases(found)


def show_databases(found: Any) -> None:
    """A table of what `databases` gives."""
    rows = [{"name": row} if isinstance(row, str) else row for row in _rows(found)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print_table(None, columns, [[_cell(name, row.get(name)) for name in columns] for row in rows])


def _rows(found: Any) -> list[Any]:
    if isinstance(found, Mapping):
        return [{"name": name, **_fields(value)} for name, value in found.items()]
    return list(found)


def _fields(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"": value}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    if name.endswith("bytes") and isinstance(value, (int, float)):
        return bytes_text(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@click.command("create-user")
@click.argument("name", metavar="USER")
@click.argument("secret", metavar="TOKEN")
@with_settings
def create_user(settings: Settings, name: str, secret: str) -> None:
    """Create USER of the database -d, who selects it with TOKEN. Without permissions a user may do nothing."""
    database = settings.database_name()
    with settings.client() as client:
        client.create_user(database, name, secret)
    _done(settings, f"created user {name} of {database}")


@click.command("drop-user")
@click.argument("name", metavar="USER")
@with_settings
def drop_user(settings: Settings, name: str) -> None:
    """Drop USER of the database -d."""
    database = settings.database_name()
    with settings.client() as client:
        client.drop_user(database, name)
    _done(settings, f"dropped user {name} of {database}")


@click.command("set-permissions")
@click.argument("name", metavar="USER")
@click.argument("permissions")
@with_settings
def set_permissions(settings: Settings, name: str, permissions: str) -> None:
    """Say what USER of the database -d may do: 'rw user:*,name|r *'.

    Letters: r read, w write, i increment, x remove, a arbitrate. Then patterns of keys, separated by commas; the next
    entry behind a |.
    """  # fmt: skip
    database = settings.database_name()
    with settings.client() as client:
        client.set_permissions(database, name, permissions)
    _done(settings, f"user {name} of {database} may: {permissions}")


@click.command()
@click.argument("names", nargs=-1, metavar="[DATABASE]...")
@click.option("--reclaim", is_flag=True, help="Write the files anew, without what is dead in them.")
@with_settings
def snapshot(settings: Settings, names: tuple[str, ...], reclaim: bool) -> None:
    """Write what changed since the last snapshot to the keys and values files: of the databases named, or of all."""
    with settings.client() as client:
        report = plain(client.snapshot(list(names) or None, reclaim=reclaim))
    if settings.json:
        say_json(report)
        return
    say("snapshot taken")
    if isinstance(report, Mapping):
        for name, value in report.items():
            say(f"  {name.replace('_', ' ')}: {_figure(name, value)}")


def _figure(name: str, value: Any) -> str:
    if name == "seconds":
        return duration_text(float(value))
    if name.endswith("_ms") and isinstance(value, (int, float)):
        return duration_text(value / 1000)
    return _cell(name, value)
