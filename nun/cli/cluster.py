"""`nun cluster`, `promote`, `outcomes`: the nodes together, who of them decides, and what became of losing writes."""

from __future__ import annotations

import sys
from time import monotonic, sleep
from typing import Any, Final

import click

from nun.cli.output import bytes_text, on_one_line, plain, print_table, say, say_json
from nun.cli.settings import Settings, with_settings
from nun.client.sync import Client

CHECK_PATIENCE_S: Final = 60.0
CHECK_PAUSE_S: Final = 0.2
HEADER: Final = [
    "node", "role", "address", "epoch", "position", "lag", "bytes", "ms", "link", "clock ms",
    "problem",
]  # fmt: skip


@click.command()
@click.option("--check", is_flag=True, help="Compare what the nodes hold; fails where it differs.")
@with_settings
def cluster(settings: Settings, check: bool) -> None:
    """Show every node: its role, how far it is, how far behind, its link and its clock, as the asked node sees it."""
    with settings.client() as client:
        members = _checked(client) if check else plain(client.cluster())
    if settings.json:
        say_json(members)
    else:
        print_table(None, HEADER, [row(member) for member in members])
    if check:
        digests = [member["digests"] for member in members]
        if any(digest is None or digest != digests[0] for digest in digests):
            raise click.ClickException("not every node is known to hold the same")
        if not settings.json:
            say(f"all hold the same at {members[0]['digests_at']}")


def _checked(client: Client) -> list[dict[str, Any]]:
    """The nodes with their digests of one entry; None for those that have not made theirs in time."""
    at = str(client.check())
    until = monotonic() + CHECK_PATIENCE_S
    while True:
        members: list[dict[str, Any]] = plain(client.cluster())
        late = [member for member in members if member["digests_at"] != at]
        if monotonic() >= until or all(member["link"] == "down" for member in late):
            break
        sleep(CHECK_PAUSE_S)
    for member in late:
        member["digests"] = None
    return members


def row(member: dict[str, Any]) -> list[str]:
    """One node's line of the table."""
    name = f"{member['name']} (asked)" if member.get("self") else member["name"]
    size = member.get("lag_bytes")
    return [
        name,
        member["role"],
        member.get("address") or "",
        member.get("epoch") or "",
        (member.get("position") or "").partition(":")[2],
        _number(member.get("lag_entries")),
        "" if size is None else bytes_text(size),
        _number(member.get("lag_ms")),
        member.get("link") or "",
        _clock(member),
        member.get("problem") or "",
    ]


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}"


def _clock(member: dict[str, Any]) -> str:
    offset, bound = member.get("clock_offset_ms"), member.get("clock_bound_ms")
    if offset is None or bound is None or member.get("self"):
        return ""
    return f"{offset:+.1f} ±{bound:.1f}"


@click.command()
@click.argument("name", metavar="NODE")
@click.option(
    "--force",
    is_flag=True,
    help="Go on without a majority: what only other nodes have may conflict.",
)
@click.option("--yes", is_flag=True, help="Do not ask before --force.")
@with_settings
def promote(settings: Settings, name: str, force: bool, yes: bool) -> None:
    """Make NODE the primary. Without --force nothing that a majority has is lost, or it is refused."""
    with settings.client() as client:
        if force and not yes and sys.stdin.isatty():
            for member in plain(client.cluster()):
                say(
                    f"  {member['name']}: {member['role']}, position {member.get('position')}, {member['link']}"
                )
            click.confirm("Go on without those that are down?", abort=True, err=True)
        told = plain(client.promote(name, force=force))
    if settings.json:
        say_json(told)
        return
    say(f"{told['node']} is primary in epoch {told['epoch']}")
    for position in told.get("at_stake", []):
        say(f"  not asked: {position}")


@click.command()
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many.")
@click.option(
    "--client-id", required=True, metavar="ID", help="Whose writes: as the client was given it."
)
@with_settings
def outcomes(settings: Settings, count: int | None, client_id: str) -> None:
    """Print what became of the local and losing writes of a client, one line each, as it becomes known.

    Columns, separated by tabs: state, database, key, value, op id, reason.
    """  # fmt: skip
    with settings.client(client_id=client_id) as client, client.outcomes() as found:
        for seen, outcome in enumerate(found, 1):
            if settings.json:
                say_json(outcome._asdict())
            else:
                value = outcome.value
                shown = on_one_line(value) if isinstance(value, (str, bytes)) else str(value)
                columns = [
                    outcome.state,
                    outcome.database,
                    on_one_line(outcome.key),
                    shown,
                    str(outcome.op_id),
                    outcome.reason,
                ]
                say("\t".join(columns))
            sys.stdout.flush()
            if seen == count:
                return
