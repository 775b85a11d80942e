"""`bin/nun-db`: the command line of NunDB's own binary, for scripts that start it and talk to it.

    nun-db [-u USER] [-p PASSWORD] [--host URL] exec COMMANDS | create-db -d NAME -t TOKEN | start [...]

Options before the command are global. An option wins over the environment (NUN_USER, NUN_PWD, and those of `start`).
`start` runs actors/nun_db.py in this process; what it was given goes there by the environment, where no `ps` shows it.

Exit status, as NunDB's: 0 for every reply, whatever it says; 101 where NunDB panics: something that `exec` or
`create-db` need is missing, no reply came, the command line is none; 1 for a `start` that is refused at once.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Mapping
from typing import Final, NoReturn

import click

from nun.cli.over_http import NoAddress, Unreachable, post
from nun.version import VERSION

NUNDB_VERSION: Final = "0.1"
PANIC: Final = 101
CREATE_HOST: Final = "http://127.0.0.1:3013"
EXEC_HOST: Final = "http://localhost:3013"
_QUIET: Final = ("off", "error", "warn")
_SHORT: Final = {"\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_START: Final = {
    "ws_address": "NUN_WS_ADDR",
    "http_address": "NUN_HTTP_ADDR",
    "tcp_address": "NUN_TCP_ADDR",
    "replicate_address": "NUN_REPLICATE_ADDR",
    "external_address": "NUN_EXTERNAL_ADDR",
}


def debug_text(text: str) -> str:
    """A text as Rust's `{:?}` shows it: in double quotes, what cannot be seen as an escape."""
    return '"' + "".join(map(_shown, text)) + '"'


def _shown(character: str) -> str:
    short = _SHORT.get(character)
    if short is not None:
        return short
    # Marks that would merge with the character before them are escaped too.
    if character.isprintable() and unicodedata.category(character) not in ("Mn", "Me"):
        return character
    return f"\\u{{{ord(character):x}}}"


def starting_line(now_ns: int) -> str:
    """NunDB's first line of log."""
    seconds, rest = divmod(now_ns, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"[{stamp}.{rest:09d}Z nun_db] nundb starting!"


def _fail(text: str) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.write(f"nun-db: {text}\n")
    sys.exit(PANIC)


def _given(ctx: click.Context) -> dict[str, str | None]:
    found: dict[str, str | None] = ctx.ensure_object(dict)
    return found


def _send(ctx: click.Context, host: str, commands: str) -> None:
    given = _given(ctx)
    missing = [
        text
        for name, text in (("user", "-u USER or NUN_USER"), ("password", "-p PASSWORD or NUN_PWD"))
        if not given[name]
    ]
    if missing:
        _fail(f"{' and '.join(missing)} must stand before the command")
    body = f"auth {given['user']} {given['password']}; {commands}"
    try:
        reply = post(given["host"] or host, body)
    except NoAddress as error:
        _fail(f"--host: {error}")
    except Unreachable as error:
        _fail(f"cannot reach {error}")
    print("Response " + debug_text(reply))


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["--help"]})
@click.option("-u", "--user", metavar="USER", envvar="NUN_USER", help="Administrator [NUN_USER].")
@click.option("-p", "password", metavar="PASSWORD", envvar="NUN_PWD", help="Theirs [NUN_PWD].")
@click.option("-h", "--host", metavar="URL", help=f"HTTP address of a node [{CREATE_HOST}].")
@click.version_option(
    NUNDB_VERSION, "-V", "--version", message=f"Nun-db {NUNDB_VERSION} (nun {VERSION})"
)
@click.pass_context
def nun_db(ctx: click.Context, /, **given: str | None) -> None:
    """NunDB's binary, as Nun has it: the same commands, options, environment and output."""
    _given(ctx).update(given)
    if os.environ.get("NUN_LOG_LEVEL", "info").lower() not in _QUIET:
        print(starting_line(time.time_ns()))


@nun_db.command("exec", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("commands", metavar="COMMANDS")
@click.pass_context
def exec_(ctx: click.Context, commands: str) -> None:
    """Run COMMANDS, separated by `;`, as the administrator, and print the reply."""
    _send(ctx, EXEC_HOST, commands)


@nun_db.command("create-db", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-d", "name", metavar="NAME", required=True, help="Name of the database.")
@click.option("-t", "--db-token", "token", metavar="TOKEN", required=True, help="Its token.")
@click.pass_context
def create_db(ctx: click.Context, name: str, token: str) -> None:
    """Create a database of strategy `none`."""
    _send(ctx, CREATE_HOST, f"create-db {name} {token};")


@nun_db.command(context_settings={"help_option_names": ["--help"]})
@click.option("-w", "--ws-address", metavar="HOST:PORT", help="WebSocket [0.0.0.0:3012].")
@click.option("-h", "--http-address", metavar="HOST:PORT", help="HTTP [0.0.0.0:3013].")
@click.option(
    "-t", "--tcp-address", metavar="HOST:PORT", help="TCP, clients and nodes [0.0.0.0:3014]."
)
@click.option(
    "-r",
    "--replicate-address",
    metavar="HOST:PORT,...",
    help="TCP addresses of all nodes of the cluster.",
)
@click.option(
    "-e", "--external-address", metavar="HOST:PORT", help="How the others reach the TCP address."
)
@click.pass_context
def start(ctx: click.Context, /, **given: str | None) -> NoReturn:
    """Run a node until SIGINT or SIGTERM."""
    sys.stdout.flush()
    before = _given(ctx)
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "actors.nun_db"]
    os.execve(sys.executable, command, environment_of(os.environ, {**before, **given}))


def environment_of(environ: Mapping[str, str], given: Mapping[str, str | None]) -> dict[str, str]:
    """The environment with what was given by options in it."""
    variables = {"user": "NUN_USER", "password": "NUN_PWD", **_START}
    chosen = {variable: given.get(name) for name, variable in variables.items()}
    return {**environ, **{name: value for name, value in chosen.items() if value is not None}}


def main(arguments: list[str] | None = None) -> None:
    """The entry point: runs one command and exits with its status."""
    try:
        status = nun_db.main(arguments, prog_name="nun-db", standalone_mode=False)
    except click.ClickException as error:
        sys.stdout.flush()
        error.show()
        starts = isinstance(error, click.UsageError) and error.ctx and error.ctx.info_name
        status = 1 if starts == "start" else PANIC
    except click.Abort:
        status = 130
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
