"""`nun repl`: commands at a prompt, in the words that NunDB's users know; or one a line from a pipe."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from nun.cli.admin import show_databases
from nun.cli.data import show_event
from nun.cli.output import on_one_line, plain, print_table, say, say_json
from nun.cli.settings import Settings, with_settings
from nun.cli.status import tables
from nun.errors import ConnectionLost, NunError, UnknownOutcome

if TYPE_CHECKING:
    import nun

_HISTORY: Final = Path("~/.nun_history")
_HISTORY_LINES: Final = 1_000
_KEYS_SHOWN: Final = 1_000
_REFUSED: Final = 1
_UNKNOWN: Final = 3


class SyntaxProblem(NunError):
    """A line that is no command; says what was expected."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One word of the prompt.

    Attributes:
        run: takes the words behind the name; the last of them may hold spaces.
        usage: what it takes. least: how many words it needs. most: how many it takes.
    """

    run: Callable[..., None]
    usage: str
    least: int
    most: int
    help: str


class Repl:
    """One session at the prompt: a client, and the database that was selected."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: nun.Client | None = None
        self._database: Any = None
        self.database_name = settings.database
        self.status = 0
        self.commands: Final = {
            "use-db": Command(self._use, "NAME TOKEN | NAME USER TOKEN", 2, 3, "select a database"),
            "get": Command(self._get, "KEY", 1, 1, "the value of a key"),
            "get-safe": Command(self._get_safe, "KEY", 1, 1, "version and value"),
            "set": Command(self._set, "KEY VALUE", 2, 2, "VALUE is the rest of the line"),
            "set-safe": Command(self._set_safe, "KEY VERSION VALUE", 3, 3, "refused when VERSION is old"),
            "remove": Command(self._remove, "KEY", 1, 1, "remove a key"),
            "increment": Command(self._increment, "KEY [N]", 1, 2, "add N (1) and show the sum"),
            "keys": Command(self._keys, "[PATTERN]", 0, 1, "prefix*, *suffix or a part"),
            "watch": Command(self._watch, "[PATTERN] [COUNT]", 0, 2, "show changes until Ctrl-C, or COUNT"),
            "auth": Command(self._auth, "USER PASSWORD", 2, 2, "log in as an administrator"),
            "databases": Command(self._databases, "", 0, 0, "list the databases"),
            "create-db": Command(self._create_db, "NAME TOKEN [STRATEGY]", 2, 3, "create a database"),
            "drop-db": Command(self._drop_db, "NAME", 1, 1, "drop a database and all it holds"),
            "create-user": Command(self._create_user, "USER TOKEN", 2, 2, "in the selected database"),
            "drop-user": Command(self._drop_user, "USER", 1, 1, "in the selected database"),
            "set-permissions": Command(self._permissions, "USER LIST", 2, 2, "LIST as in rw user:*|r *"),
            "snapshot": Command(self._snapshot, "[true|false] [NAME|NAME...]", 0, 2, "true: reclaim space"),
            "status": Command(self._status, "", 0, 0, "how the node is"),
            "help": Command(self._help, "", 0, 0, "this list"),
            "exit": Command(self._exit, "", 0, 0, "or Ctrl-D"),
        }  # fmt: skip
        self._aliases: Final = {"use": "use-db", "ls": "keys", "quit": "exit", "rm": "remove"}

    # The session --------------------------------------------------------------------------------------------------

    def run(self, lines: Iterator[str]) -> int:
        """Runs every line; returns the gravest exit status that one of them earned."""
        try:
            for line in lines:
                try:
                    self.do(line)
                except EOFError:
                    break
                except click.UsageError as error:
                    self.status = max(self.status, _REFUSED)
                    self._error(error.message)
                except NunError as error:
                    grave = isinstance(error, (UnknownOutcome, ConnectionLost))
                    self.status = max(self.status, _UNKNOWN if grave else _REFUSED)
                    self._error(str(error))
                sys.stdout.flush()
        finally:
            self.close()
        return self.status

    def do(self, line: str) -> None:
        """Runs one line. Raises NunError, and EOFError when the user is done."""
        name, _, rest = line.strip().partition(" ")
        if not name or name.startswith("#"):
            return
        command = self.commands.get(self._aliases.get(name, name))
        if command is None:
            raise SyntaxProblem(f"unknown command {name!r}; `help` lists them")
        words = rest.split(None, command.most - 1) if command.most else rest.split()
        if not command.least <= len(words) <= command.most:
            raise SyntaxProblem(f"expected: {name} {command.usage}".rstrip())
        command.run(*words)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = self._database = None

    def _error(self, text: str) -> None:
        sys.stdout.flush()
        sys.stderr.write(f"error: {text}\n")
        sys.stderr.flush()

    @property
    def client(self) -> nun.Client:
        if self._client is None:
            self._client = self._settings.client()
        return self._client

    @property
    def database(self) -> Any:
        if self._database is None:
            if self._settings.database is None:
                raise SyntaxProblem("no database is selected: use-db NAME TOKEN")
            self._database = self._settings.open_database(self.client)
            self.database_name = self._settings.database
        return self._database

    # Commands -----------------------------------------------------------------------------------------------------

    def _use(self, name: str, *secrets: str) -> None:
        user, token = secrets if len(secrets) == 2 else (None, secrets[0])
        settings = dataclasses.replace(
            self._settings, database=name, database_user=user, token=token
        )
        self._database = settings.open_database(self.client)
        self._settings, self.database_name = settings, name
        say("ok")

    def _auth(self, user: str, password: str) -> None:
        self.close()
        self._settings = dataclasses.replace(
            self._settings, admin_user=user, admin_password=password
        )
        self.client.databases()  # only an administrator may list them
        say("ok")

    def _get(self, key: str) -> None:
        entry = self.database.get(os.fsencode(key))
        say("(none)" if entry is None else on_one_line(entry.value))

    def _get_safe(self, key: str) -> None:
        entry = self.database.get(os.fsencode(key))
        say("(none)" if entry is None else f"{entry.version} {on_one_line(entry.value)}")

    def _set(self, key: str, value: str) -> None:
        result = self.database.set(os.fsencode(key), os.fsencode(value))
        say(f"ok version {result.version}")

    def _set_safe(self, key: str, version: str, value: str) -> None:
        number = _integer("VERSION", version)
        result = self.database.set(os.fsencode(key), os.fsencode(value), version=number)
        say(f"ok version {result.version}")

    def _remove(self, key: str) -> None:
        self.database.remove(os.fsencode(key))
        say("ok")

    def _increment(self, key: str, delta: str = "1") -> None:
        say(str(self.database.increment(os.fsencode(key), _integer("N", delta)).value))

    def _keys(self, pattern: str = "") -> None:
        found = self.database.keys(os.fsencode(pattern), limit=_KEYS_SHOWN)
        for key in found:
            say(on_one_line(key))
        if len(found) == _KEYS_SHOWN:
            say(f"(the first {_KEYS_SHOWN:,}; `nun keys` lists all)")

    def _watch(self, pattern: str = "*", count: str = "") -> None:
        left = _integer("COUNT", count) if count else 0
        with (
            contextlib.suppress(KeyboardInterrupt),
            contextlib.closing(self.database.watch(os.fsencode(pattern))) as events,
        ):
            for event in events:
                show_event(event, as_json=self._settings.json)
                sys.stdout.flush()
                left -= 1
                if left == 0:
                    return

    def _databases(self) -> None:
        show_databases(plain(self.client.databases()))

    def _create_db(self, name: str, token: str, strategy: str = "none") -> None:
        self.client.create_database(name, token=token, strategy=strategy)
        say("ok")

    def _drop_db(self, name: str) -> None:
        self.client.drop_database(name)
        say("ok")

    def _create_user(self, user: str, token: str) -> None:
        self.client.create_user(self._selected(), user, token)
        say("ok")

    def _drop_user(self, user: str) -> None:
        self.client.drop_user(self._selected(), user)
        say("ok")

    def _permissions(self, user: str, text: str) -> None:
        self.client.set_permissions(self._selected(), user, text)
        say("ok")

    def _selected(self) -> str:
        if self._settings.database is None:
            raise SyntaxProblem("no database is selected: use-db NAME TOKEN")
        return self._settings.database

    def _snapshot(self, reclaim: str = "false", names: str = "") -> None:
        if reclaim not in ("true", "false"):
            raise SyntaxProblem(f"expected true or false (to reclaim space), found {reclaim!r}")
        chosen = [name for name in names.split("|") if name]
        self.client.snapshot(chosen or None, reclaim=reclaim == "true")
        say("ok")

    def _status(self) -> None:
        found = plain(self.client.status())
        if self._settings.json:
            say_json(found)
            return
        for title, header, rows in tables(found):
            print_table(title, header, rows)

    def _help(self) -> None:
        width = max(len(f"{name} {command.usage}") for name, command in self.commands.items())
        for name, command in self.commands.items():
            say(f"{f'{name} {command.usage}':{width}}  {command.help}")

    def _exit(self) -> None:
        raise EOFError


def _integer(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SyntaxProblem(f"{what}: expected an integer, found {text!r}") from None


@click.command()
@with_settings
def repl(settings: Settings) -> int:
    """Type commands at a prompt (`help` lists them), or pipe them in, one a line."""
    session = Repl(settings)
    if sys.stdin.isatty():
        with _history(list(session.commands)):
            return session.run(_prompted(session))
    return session.run(iter(sys.stdin))


def _prompted(session: Repl) -> Iterator[str]:
    say("`help` lists the commands, Ctrl-D ends.")
    while True:
        try:
            yield input(f"{session.database_name or 'nun'}> ")
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")


@contextlib.contextmanager
def _history(words: list[str]) -> Iterator[None]:
    """Line editing, completion of command names, and a history file that only its owner may read."""
    try:
        import readline
    except ImportError:  # a Python that was built without it still has a prompt
        yield
        return
    path = _HISTORY.expanduser()
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    readline.set_completer_delims(" ")
    readline.set_completer(
        lambda text, number: [*(word for word in words if word.startswith(text)), None][number]
    )
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        _forget_secrets(readline)
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            readline.write_history_file(path)


def _forget_secrets(readline: Any) -> None:
    """Takes lines that hold a password or token out of the history."""
    secret = ("auth ", "use-db ", "use ", "create-db ", "create-user ")
    for number in range(readline.get_current_history_length(), 0, -1):
        if (readline.get_history_item(number) or "").lstrip().startswith(secret):
            readline.remove_history_item(number - 1)
