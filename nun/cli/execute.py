"""`nun exec`: commands in NunDB's language, sent to a node's HTTP address."""

from __future__ import annotations

from typing import Final

import click

from nun.cli.output import on_one_line, say, say_json
from nun.cli.over_http import NoAddress, Unreachable, commands_of, elements_of, post
from nun.cli.settings import Settings, with_settings
from nun.errors import AuthError, ConnectionLost

DEFAULT_HOST: Final = "http://127.0.0.1:3013"
_WELCOME: Final = "valid auth"


@click.command("exec")
@click.argument("commands")
@click.option(
    "--host",
    metavar="URL",
    envvar="NUN_HOST",
    default=DEFAULT_HOST,
    help=f"HTTP address of a node [{DEFAULT_HOST}].",
)
@with_settings
def exec_(settings: Settings, commands: str, host: str) -> None:
    """Run COMMANDS of NunDB's language, separated by `;`, and print a line for each.

    They go over HTTP to --host (NUN_HOST), as the administrator where --user and --password are given. What a
    command says is printed as it came, errors too; `empty` is NunDB's word for done. Without a reply: exit 3.
    """
    sent = commands_of(commands)
    login = settings.admin_user is not None
    if login:
        sent.insert(0, f"auth {settings.admin_user} {settings.admin_password or ''}")
    try:
        reply = post(host, "; ".join(sent), settings.timeout)
    except NoAddress as error:
        raise click.UsageError(f"--host {error}") from error
    except Unreachable as error:
        raise ConnectionLost(str(error)) from error
    found = elements_of(reply)
    if login:
        welcome = found.pop(0) if found else ""
        if welcome != _WELCOME:
            raise AuthError(f"the node does not know the administrator {settings.admin_user!r}")
        del sent[0]
    if not settings.json:
        for element in found:
            say(on_one_line(element))
    elif len(found) == len(sent):
        say_json([{"command": one, "reply": text} for one, text in zip(sent, found, strict=True)])
    else:  # a reply holds a `;` itself: which belongs to which cannot be told
        say_json([{"command": None, "reply": text} for text in found])
