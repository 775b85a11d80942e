"""Where the `nun` command begins: the list of commands, and what each way of ending means to the shell.

Exit statuses:
    0    done
    1    refused: the node, or the input, said no; nothing more was changed (a missing key counts as refused)
    2    usage or configuration
    3    not known to be done: the outcome is unknown, or no node could be reached in time
    130  interrupted (Ctrl-C); 141 the reader of the output went away
Messages go to stderr (with --json as one JSON object), results to stdout.

Commands are imported when they are called, so that `nun get` does not pay for what `nun import` needs.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any, Final

import click

from nun.cli.settings import connection_options, remember
from nun.version import VERSION

DONE: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNKNOWN: Final = 3
INTERRUPTED: Final = 128 + signal.SIGINT
READER_GONE: Final = 128 + signal.SIGPIPE

# name -> (module of nun.cli, attribute, help in the list of commands), in the order of the list
COMMANDS: Final = {
    "get": ("data", "get", "Print the value of a key."),
    "set": ("data", "set_", "Give a key a value."),
    "remove": ("data", "remove", "Remove a key."),
    "increment": ("data", "increment", "Add to a number and print the sum."),
    "keys": ("data", "keys", "List keys: all, prefix*, *suffix or a part."),
    "watch": ("data", "watch", "Print every change of a key, a prefix or all."),
    "import": ("transfer", "import_", "Load JSON lines, CSV or TSV; restartable."),
    "export": ("transfer", "export", "Write a database as JSON lines, CSV or TSV."),
    "create-db": ("admin", "create_db", "Create a database."),
    "alter-db": ("admin", "alter_db", "Change the options of a database."),
    "drop-db": ("admin", "drop_db", "Drop a database and all it holds."),
    "databases": ("admin", "databases", "List the databases."),
    "create-user": ("admin", "create_user", "Create a user of a database."),
    "drop-user": ("admin", "drop_user", "Drop a user of a database."),
    "set-permissions": ("admin", "set_permissions", "Say what a user may do with which keys."),
    "snapshot": ("admin", "snapshot", "Write what changed to the keys and values files."),
    "cluster": ("cluster", "cluster", "Show every node of the cluster."),
    "promote": ("cluster", "promote", "Make a node the primary."),
    "conflicts": ("conflicts", "conflicts", "List writes in conflict, and what became of them."),
    "resolve": ("conflicts", "resolve", "Resolve what is in conflict on a key."),
    "arbiter": ("conflicts", "arbiter", "Decide conflicts by program or at the terminal."),
    "outcomes": ("cluster", "outcomes", "Print what became of a client's losing writes."),
    "status": ("status", "status", "Show how the node is."),
    "keygen": ("keygen", "keygen", "Make a CURVE key pair."),
    "exec": ("execute", "exec_", "Run commands of NunDB's language over HTTP."),
    "bench": ("bench", "bench", "Measure sets and gets against a running node."),
    "repl": ("repl", "repl", "Type commands at a prompt."),
}


class Commands(click.Group):
    """The group of all commands; loads one when it is called and turns what it raises into an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"nun.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        from nun.errors import ConfigError, ConnectionLost, NunError, UnknownOutcome

        try:
            outcome = super().invoke(ctx)
            sys.stdout.flush()
            return outcome
        except NunError as error:
            from nun.cli.output import complain

            complain(error, as_json=bool(ctx.obj and ctx.obj.get("json")))
            if isinstance(error, (UnknownOutcome, ConnectionLost)):
                ctx.exit(UNKNOWN)
            ctx.exit(USAGE if isinstance(error, ConfigError) else REFUSED)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # What is still in the buffer can go nowhere; the interpreter must not complain about it at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(READER_GONE)


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""Every option stands before or after the command. Environment: NUN_SERVER, NUN_USER,
    NUN_PASSWORD (or NUN_PWD), NUN_DATABASE, NUN_TOKEN, NUN_SERVER_KEY. Exit status: 0 done, 1 refused, 2 usage or
    configuration, 3 outcome unknown or no node reached.""",
)
@click.version_option(VERSION, "--version", prog_name="nun", message="%(prog)s %(version)s")
@connection_options
@click.pass_context
def nun(ctx: click.Context, /, **given: Any) -> None:
    """Talk to a Nun node."""
    remember(ctx, given)


def main(arguments: list[str] | None = None) -> None:
    """The entry point: runs one command and exits with its status."""
    try:
        status = nun.main(arguments, prog_name="nun", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.Abort:
        status = INTERRUPTED
    sys.exit(status if isinstance(status, int) else DONE)


if __name__ == "__main__":
    main()
