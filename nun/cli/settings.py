"""Which node to talk to, and as whom: the options that every command has, and the environment behind them.

An option after the command wins over one before it, that one over the environment, that over the default. `--user`
with `--password` logs in as an administrator; `--user` with `--token` selects the database as that user of it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from nun.limits import REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    import nun
    from nun.client.sync import Database

DEFAULT_SERVER: Final = "tcp://127.0.0.1:5701"

R = TypeVar("R")

_OPTIONS: Final = (
    click.option(
        "--server",
        multiple=True,
        metavar="ADDRESS",
        help=f"Address of a node; repeat it or separate by commas [{DEFAULT_SERVER}].",
    ),
    click.option(
        "--user",
        metavar="NAME",
        help="Administrator (with --password) or user of the database (with --token).",
    ),
    click.option(
        "--password",
        metavar="SECRET",
        help="The administrator's; better given as NUN_PASSWORD, where no `ps` shows it.",
    ),
    click.option("-d", "--database", metavar="NAME", help="Database to work on."),
    click.option("-t", "--token", metavar="SECRET", help="Token of the database, or of its user."),
    click.option(
        "--server-key", metavar="KEY", help="The node's CURVE public key; encrypts the link."
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help=f"For each request [{REQUEST_TIMEOUT_S:g}].",
    ),
    click.option("--json", is_flag=True, help="Results and errors as JSON, for machines."),
)


@dataclass(frozen=True)
class Settings:
    """Where to connect and as whom."""

    servers: tuple[str, ...]
    admin_user: str | None
    admin_password: str | None
    database: str | None
    database_user: str | None
    token: str | None
    server_key: str | None
    timeout: float
    json: bool

    def client(self, **more: Any) -> nun.Client:
        """A client that gives bytes: the command line prints any value as it is."""
        import nun

        return nun.Client(list(self.servers), **self._client_arguments(), **more)

    def async_client(self) -> nun.AsyncClient:
        import nun

        return nun.AsyncClient(list(self.servers), **self._client_arguments())

    def _client_arguments(self) -> dict[str, Any]:
        return {
            "user": self.admin_user,
            "password": self.admin_password,
            "timeout": self.timeout,
            "server_key": self.server_key,
            "decode": None,
        }

    def database_arguments(self) -> dict[str, Any]:
        """Name, user and token of the database. Raises click.UsageError that says what is missing."""
        if self.token is None:
            raise click.UsageError(
                "the database wants its token, or that of a user: -t or NUN_TOKEN"
            )
        return {"name": self.database_name(), "user": self.database_user, "token": self.token}

    def database_name(self) -> str:
        if self.database is None:
            raise click.UsageError("which database? Name it with -d NAME or NUN_DATABASE.")
        return self.database

    def open_database(self, client: nun.Client) -> Database:
        return client.database(**self.database_arguments())


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def with_settings(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options and passes them, resolved, as the first argument."""

    @functools.wraps(command)
    def invoke(*args: Any, **given: Any) -> R:
        ctx = click.get_current_context()
        mine = {name: given.pop(name) for name in _NAMES}
        merged = remember(ctx, mine)
        return command(resolve(merged, os.environ), *args, **given)

    return connection_options(invoke)


_NAMES: Final = ("server", "user", "password", "database", "token", "server_key", "timeout", "json")


def remember(ctx: click.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """Lays options over those given before the command; errors are shown by the same ones."""
    root = ctx.find_root()
    before = root.obj or {}
    root.obj = {**before, **{name: value for name, value in given.items() if value}}
    return dict(root.obj)


def resolve(given: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Options, environment and defaults, in this order. Raises click.UsageError."""
    servers = given.get("server") or (environ.get("NUN_SERVER") or DEFAULT_SERVER,)
    addresses = tuple(part.strip() for text in servers for part in text.split(",") if part.strip())
    for address in addresses:
        if not address.startswith(("tcp://", "ipc://")):
            raise click.UsageError(
                f"--server {address!r} is no address: expected one such as {DEFAULT_SERVER}"
            )
    if not addresses:
        raise click.UsageError(f"--server is empty: expected an address such as {DEFAULT_SERVER}")
    token = given.get("token") or environ.get("NUN_TOKEN")
    user = given.get("user") or environ.get("NUN_USER")
    password = given.get("password")
    # `--user mary --token t` means the database's mary, even where the environment holds the administrator's password.
    as_database_user = bool(user and token and not password) and (
        bool(given.get("user")) or not _password(environ)
    )
    if as_database_user:
        admin_user = admin_password = None
    else:
        admin_user, admin_password = user, password or _password(environ)
        if admin_user is None:
            admin_password = None
    return Settings(
        servers=addresses,
        admin_user=admin_user,
        admin_password=admin_password,
        database=given.get("database") or environ.get("NUN_DATABASE"),
        database_user=user if as_database_user else None,
        token=token,
        server_key=given.get("server_key") or environ.get("NUN_SERVER_KEY"),
        timeout=given.get("timeout") or REQUEST_TIMEOUT_S,
        json=bool(given.get("json")),
    )


def _password(environ: Mapping[str, str]) -> str | None:
    return environ.get("NUN_PASSWORD") or environ.get("NUN_PWD")
