"""`nun conflicts`, `resolve`, `arbiter`: what is in conflict; deciding it by hand, by program or at the terminal."""

from __future__ import annotations

import datetime
import difflib
import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import click

from nun.cli.output import as_bytes, on_one_line, plain, print_table, say, say_json
from nun.cli.settings import Settings, with_settings
from nun.client.conflicts import Conflict, Side
from nun.merge import REMOVED, Skip

HEADER: Final = ["key", "op id", "kind", "proposed", "current", "base", "made", "state", "reason"]
STATES: Final = ("open", "resolved", "decided", "expired", "refused", "all")
SHOWN_MAX: Final = 40
PEOPLE_LEASE_S: Final = 600.0
PROGRAM_LEASE_S: Final = 30.0
_CHOICES: Final = "k keep current, t take proposed, e edit, r remove, s skip, q quit"


@click.command()
@click.option("--state", type=click.Choice(STATES), default="open", show_default=True)
@click.option("--key", metavar="KEY", help="Of this key only.")
@click.option("--limit", type=click.IntRange(1), default=1_000, show_default=True, metavar="N")
@with_settings
def conflicts(settings: Settings, state: str, key: str | None, limit: int) -> None:
    """List the ledger of the database -d: writes that did not simply win, and what became of them."""
    with settings.client() as client:
        database = settings.open_database(client)
        wanted = None if state == "all" else state
        found = list(database.conflicts(state=wanted, key=key, limit=limit))
    if settings.json:
        for one in found:
            say_json(as_json(one))
        return
    print_table(None, HEADER, [row(one) for one in found])


def as_json(conflict: Conflict) -> dict[str, Any]:
    """An entry of the ledger, with what its key holds now while it is open."""
    current = conflict.current
    shown = None if current is None else plain(current._asdict())
    return {"id": conflict.id, **conflict.raw, "current": shown}


def row(conflict: Conflict) -> list[str]:
    made = datetime.datetime.fromtimestamp(conflict.at / 1_000).isoformat(" ", "milliseconds")
    return [
        _short(conflict.key),
        str(conflict.op_id),
        conflict.kind,
        _side(conflict.proposed),
        _side(conflict.current),
        _side(conflict.base) if conflict.base_known else "(not known)",
        made,
        conflict.state,
        conflict.reason,
    ]


def _side(side: Side | None) -> str:
    return "(nothing)" if side is None else _short(side.value)


def _short(value: Any) -> str:
    text = on_one_line(value) if isinstance(value, (str, bytes)) else str(value)
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 1]}…"


@click.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option("--keep", is_flag=True, help="What the key holds stays.")
@click.option("--take", type=int, metavar="OP_ID", help="The value of this entry (see conflicts).")
@click.option("--remove", is_flag=True, help="The key is removed.")
@with_settings
def resolve(
    settings: Settings, key: str, value: str | None, keep: bool, take: int | None, remove: bool
) -> None:
    """Resolve all that is in conflict on KEY with VALUE, or as an option says."""
    if [value is not None, keep, take is not None, remove].count(True) != 1:
        raise click.UsageError("expected one of VALUE, --keep, --take OP_ID, --remove")
    with settings.client() as client:
        database = settings.open_database(client)
        found = list(database.conflicts(key=key))
        proposals = [one for one in found if one.kind != "increment"]
        if not proposals:
            raise click.ClickException(f"key {key!r} is not in conflict")
        queue = database.queue(key)
        answer: Any = value
        if keep:
            answer = queue[-1].current or REMOVED
        elif take is not None:
            taken = [one for one in proposals if one.op_id == take]
            if not taken:
                raise click.ClickException(f"key {key!r} has no open entry {take}")
            answer = taken[0].proposed or REMOVED
        elif remove:
            answer = REMOVED
        result = database.resolve(queue[-1], answer)
    if settings.json:
        say_json({"key": key, "version": result.version, "left": result.value})
    elif result.value:
        say(f"version {result.version}; {result.value} later writes are still in conflict")
    else:
        say(f"version {result.version}")


@click.command()
@click.option("--python", "target", metavar="MODULE:FUNCTION", help="A handler to be called.")
@click.option("--interactive", is_flag=True, help="Decide at this terminal.")
@click.option("--dry-run", is_flag=True, help="Show what the handler answers, and change nothing.")
@click.option("--lease", type=click.FloatRange(0.1), metavar="SECONDS", help="For one key.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many.")
@with_settings
def arbiter(
    settings: Settings,
    target: str | None,
    interactive: bool,
    dry_run: bool,
    lease: float | None,
    workers: int,
    count: int | None,
) -> None:
    """Decide conflicts of the database -d, as they come up, until interrupted.

    The handler gets a conflict (.key .base .current .proposed, each .value .version .op_id) and returns the value that
    the key is to hold, or nun.REMOVED. Values are bytes here. Ready-made ones: nun.merge:set_union and others.
    """  # fmt: skip
    if bool(target) == interactive:
        raise click.UsageError("expected either --python MODULE:FUNCTION or --interactive")
    handler = ask if interactive else load(target or "")
    with settings.client() as client:
        database = settings.open_database(client)
        if dry_run:
            for conflict, answer in database.try_arbiter(handler):
                _tell(settings, conflict, answer)
            return
        ended = threading.Event()
        told = _Told(settings, handler, count, ended)
        seconds = lease or (PEOPLE_LEASE_S if interactive else PROGRAM_LEASE_S)
        workers = 1 if interactive else workers
        with database.arbiter(
            told, lease=seconds, workers=workers, background=True, done=told.done
        ) as running:
            if not settings.json:
                say("waiting for conflicts")
                sys.stdout.flush()
            while running.alive and not ended.wait(0.2):
                pass
        if running.error is not None:
            raise running.error


class _Told:
    """A handler that says what it has answered, and ends the arbiter after so many."""

    def __init__(
        self,
        settings: Settings,
        handler: Callable[[Conflict], Any],
        count: int | None,
        ended: threading.Event,
    ) -> None:
        self._settings = settings
        self._handler = handler
        self._left = count
        self._ended = ended

    def __call__(self, conflict: Conflict) -> Any:
        if self._ended.is_set():
            raise Skip("the arbiter ends")
        try:
            return self._handler(conflict)
        except _Quit:
            self._ended.set()
            raise Skip("quit") from None

    def done(self, conflict: Conflict, answer: Any) -> None:
        """A resolution was accepted."""
        _tell(self._settings, conflict, answer)
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._ended.set()


def _tell(settings: Settings, conflict: Conflict, answer: Any) -> None:
    if settings.json:
        shown: Any = None if answer is REMOVED else answer
        if isinstance(answer, Exception):
            shown = {"error": repr(answer)}
        say_json({"id": conflict.id, "key": conflict.key, "answer": shown})
    else:
        text = "removed" if answer is REMOVED else _short(answer)
        if isinstance(answer, Exception):
            text = f"failed: {answer!r}"
        elif isinstance(answer, Side):
            text = _short(answer.value)
        say(f"{_short(conflict.key)}\t{conflict.op_id}\t{text}")
    sys.stdout.flush()


def load(target: str) -> Callable[[Conflict], Any]:
    """The handler that MODULE:FUNCTION names, importable from the present directory too."""
    module, colon, name = target.partition(":")
    if not colon or not module or not name:
        raise click.UsageError(f"--python {target!r}: expected MODULE:FUNCTION")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"--python {target!r}: {error}") from None
    if not callable(found):
        raise click.UsageError(f"--python {target!r}: it cannot be called")
    handler: Callable[[Conflict], Any] = found
    return handler


# At the terminal


class _Quit(Exception):
    """The person at the terminal has had enough."""


def ask(conflict: Conflict) -> Any:
    """Shows a conflict and asks what the key is to hold."""
    say(f"\n{on_one_line(conflict.key)}   conflict {conflict.op_id}, written by {conflict.origin}")
    for line in difference(conflict):
        say(line)
    while True:
        chosen = click.prompt(f"[{_CHOICES}]", default="s", show_default=False).strip().lower()
        match chosen[:1]:
            case "k":
                return conflict.current or REMOVED
            case "t":
                return conflict.proposed or REMOVED
            case "r":
                return REMOVED
            case "s":
                raise Skip("skipped at the terminal")
            case "q":
                raise _Quit
            case "e":
                edited = click.edit(_text(conflict.proposed or conflict.current))
                if edited is not None:
                    return edited.rstrip("\n")
                say("nothing was saved")


def difference(conflict: Conflict) -> list[str]:
    """What each side made of the base, line by line."""
    lines: list[str] = []
    base = _text(conflict.base).splitlines() if conflict.base_known else []
    if not conflict.base_known:
        lines.append("  the record that it was made on is not known any more")
    for name, side in (("current", conflict.current), ("proposed", conflict.proposed)):
        if side is None:
            lines.append(f"--- {name}: nothing (removed, or absent)")
            continue
        made = _text(side).splitlines()
        changes = list(difflib.unified_diff(base, made, "base", name, lineterm="", n=2))
        lines += changes or [f"--- {name}: as the base", *(f"  {line}" for line in made)]
    return lines


def _text(side: Side | None) -> str:
    if side is None:
        return ""
    return as_bytes(side.value).decode("utf-8", "backslashreplace")
