"""`nun import` and `nun export`: files, progress bars and journals around the importer and the exporter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from nun.cli.exporting import Exporter
from nun.cli.importing import Importer, Pace
from nun.cli.journal import Journal, Progress, identity_of
from nun.cli.meter import Meter
from nun.cli.output import warn
from nun.cli.records import FORMATS, JSON_LINES, Layout, Writer, format_of, read_records
from nun.cli.settings import Settings, with_settings
from nun.errors import NunError
from nun.limits import BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX

_SAVE_EVERY_S: Final = 0.2
_STANDARD: Final = "-"


def _file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option(
                "--format",
                "format_",
                type=click.Choice(FORMATS),
                help="Instead of what the file's extension says.",
            ),
            click.option(
                "--header/--no-header",
                default=True,
                help="CSV and TSV: whether the first line names the columns.",
            ),
            click.option(
                "--key-column",
                default="",
                metavar="NAME",
                help="CSV and TSV: column of the keys, by name or number [key, or the first].",
            ),
            click.option(
                "--value-column",
                default="",
                metavar="NAME",
                help="CSV and TSV: column of the values [value, or the second].",
            ),
            click.option(
                "--journal",
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="PATH",
                help="Where progress is kept [FILE.nun-progress].",
            ),
            click.option(
                "--retry-for",
                type=click.FloatRange(min=0),
                default=60.0,
                metavar="SECONDS",
                show_default=True,
                help="How long to wait for a node that is away or overloaded.",
            ),
            click.option("--quiet", is_flag=True, help="No progress bar and no summary."),
        )
    ):
        command = option(command)
    return command


@click.command("import", short_help="Load JSON lines, CSV or TSV; restartable.")
@click.argument(
    "file",
    type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False),
    required=False,
)
@_file_options
@click.option(
    "--from-nundb",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Bring in all databases of a NunDB data directory, as an administrator.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="With --from-nundb: only this database; repeat it for others.",
)
@click.option(
    "--into-existing",
    is_flag=True,
    help="With --from-nundb: add what a database lacks that is there already, and leave what differs.",
)
@click.option(
    "--dry-run", is_flag=True, help="With --from-nundb: check the files and say what they hold."
)
@click.option(
    "--skip-bad", is_flag=True, help="Tell bad records and go on; the exit status is 1 then."
)
@click.option("--restart", is_flag=True, help="Begin at the start, whatever the journal says.")
@click.option(
    "--batch",
    type=click.IntRange(1, BATCH_OPERATIONS_MAX),
    default=1_000,
    show_default=True,
    help="Records in one request.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Requests on their way at the same time.",
)
@with_settings
def import_(settings: Settings, file: Path | None, **given: Any) -> int:
    """Set every record of FILE (`-`: standard input) in the database.

    JSON lines look like {"key": "name", "value": "mary"}; a value that is not text is stored as its JSON text. How far
    the node has acknowledged is kept in a journal beside the file: an import that was cut short goes on from there when
    it is called again, and survives a restart of the node by itself.

    With --from-nundb there is no FILE: databases, users, permissions, keys with their versions and open conflicts come
    from the directory, which is only read. docs/MIGRATING.md tells more.
    """  # fmt: skip
    if given["from_nundb"] is not None:
        from nun.cli.moving_in import move_in

        if file is not None:
            raise click.UsageError("--from-nundb takes the place of FILE")
        return move_in(settings, given["from_nundb"], given)
    if file is None:
        raise click.UsageError("what is to be imported? A FILE, or --from-nundb DIR")
    return _import_file(settings, file, given)


def _import_file(settings: Settings, file: Path, given: dict[str, Any]) -> int:
    layout = _layout(file, given)
    standard = str(file) == _STANDARD
    readable_again = not standard and file.is_file()
    if not readable_again and given["journal"]:
        raise click.UsageError("--journal: a pipe cannot be read again from the middle")
    journal = None
    if readable_again:
        subject = {
            "input": identity_of(file),
            "database": settings.database_name(),
            "servers": list(settings.servers),
            "layout": [layout.format, layout.header, layout.key_column, layout.value_column],
        }
        journal = Journal(given["journal"] or _beside(file), subject)
    progress = _resume(journal, restart=given["restart"])
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if standard else stack.enter_context(file.open("rb"))
        total = file.stat().st_size if readable_again else None
        meter = stack.enter_context(Meter("import", settings, given["quiet"], total, progress))
        keeper = _Keeper(journal, meter)
        pace = Pace(
            batch_records=given["batch"],
            batch_bytes=min(1024 * 1024, BATCH_BYTES_MAX),
            in_flight=given["in_flight"],
            retry_for_s=given["retry_for"],
        )
        try:
            done = asyncio.run(
                _import(settings, source, layout, progress, pace, given["skip_bad"], keeper)
            )
        except (NunError, KeyboardInterrupt):
            keeper.save()
            if journal is not None and keeper.last.offset:
                meter.note(f"stopped after {keeper.last.records:,} records; call again to go on")
            raise
    if journal is not None:
        journal.discard()
    meter.summary(done)
    return 1 if done.bad else 0


async def _import(
    settings: Settings,
    source: BinaryIO,
    layout: Layout,
    progress: Progress,
    pace: Pace,
    skip_bad: bool,
    keeper: _Keeper,
) -> Progress:
    rows = read_records(source, layout, progress.offset, progress.line)
    # Not `async with`, which would want an answer at once: the importer waits for a node that is away.
    client = settings.async_client()
    try:
        database = client.database(**settings.database_arguments())
        importer = Importer(
            database.set_many,
            rows,
            progress,
            pace=pace,
            skip_bad=skip_bad,
            tell_bad=keeper.meter.flaw,
            tell_progress=keeper.move,
            tell_waiting=keeper.meter.waiting,
        )
        return await importer.run()
    finally:
        await client.close()


@click.command(short_help="Write a database as JSON lines, CSV or TSV.")
@click.argument(
    "file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False), required=False
)
@_file_options
@click.option(
    "--to-nundb",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write all databases as a data directory of NunDB, as an administrator.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="With --to-nundb: only this database; repeat it for others.",
)
@click.option(
    "--tokens",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="With --to-nundb: JSON with the tokens of databases and users, or the NunDB directory "
    "that had them; others get new ones.",
)
@click.option(
    "--pattern",
    default="",
    metavar="PATTERN",
    help="Only keys of this pattern: prefix*, *suffix or a part.",
)
@click.option("--resume", is_flag=True, help="Go on with an export that was cut short.")
@with_settings
def export(settings: Settings, file: Path | None, **given: Any) -> int:
    """Write all records of the database to FILE (`-`: standard output), sorted by key.

    The records are written to FILE.part, which becomes FILE when it is whole. Values that are not UTF-8 stand as
    "value_base64" in JSON lines; CSV and TSV cannot hold them.

    With --to-nundb there is no FILE: DIR is made such that NunDB can load it, and tokens.json in it says the tokens.
    """  # fmt: skip
    if given["to_nundb"] is not None:
        from nun.cli.moving_out import move_out

        if file is not None:
            raise click.UsageError("--to-nundb takes the place of FILE")
        return move_out(settings, given["to_nundb"], given)
    if file is None:
        raise click.UsageError("where to? A FILE, or --to-nundb DIR")
    return _export_file(settings, file, given)


def _export_file(settings: Settings, file: Path, given: dict[str, Any]) -> int:
    layout = _layout(file, given)
    standard = str(file) == _STANDARD
    if standard and (given["journal"] or given["resume"]):
        raise click.UsageError("--journal and --resume: standard output cannot be gone on with")
    journal = None
    if not standard:
        subject = {
            "output": file.name,
            "database": settings.database_name(),
            "servers": list(settings.servers),
            "pattern": given["pattern"],
            "layout": [layout.format, layout.header, layout.key_column, layout.value_column],
        }
        journal = Journal(given["journal"] or _beside(file), subject)
    part = file.with_name(file.name + ".part")
    resuming = given["resume"] and part.exists()
    progress = _resume(journal, restart=not resuming)
    with contextlib.ExitStack() as stack:
        try:
            target = sys.stdout.buffer if standard else stack.enter_context(_part(part, progress))
        except OSError as error:
            raise click.UsageError(f"{part} cannot be written: {error.strerror}") from error
        meter = stack.enter_context(Meter("export", settings, given["quiet"], None, progress))
        keeper = _Keeper(journal, meter, target)
        try:
            done = asyncio.run(_export(settings, target, layout, progress, given, keeper))
        except (NunError, KeyboardInterrupt):
            keeper.save()
            if journal is not None and keeper.last.records:
                meter.note(f"stopped after {keeper.last.records:,} records; --resume goes on")
            raise
        target.flush()
        if not standard:
            os.fsync(target.fileno())
    if journal is not None:
        os.replace(part, file)
        journal.discard()
    meter.summary(done)
    return 0


async def _export(
    settings: Settings,
    target: BinaryIO,
    layout: Layout,
    progress: Progress,
    given: dict[str, Any],
    keeper: _Keeper,
) -> Progress:
    writer = Writer(layout)
    offset, records = progress.offset, progress.records
    if not offset:
        offset += target.write(writer.head())
    after = bytes.fromhex(progress.last_key) or None
    client = settings.async_client()
    try:
        database = client.database(**settings.database_arguments())
        exporter = Exporter(
            database, retry_for_s=given["retry_for"], tell_waiting=keeper.meter.waiting
        )
        async for page in exporter.pages(given["pattern"], after):
            offset += target.write(writer.rows(page))
            records += len(page)
            progress = Progress(offset=offset, records=records, last_key=page[-1][0].hex())
            keeper.move(progress)
    finally:
        await client.close()
    return progress


def _layout(file: Path, given: dict[str, Any]) -> Layout:
    format_ = given["format_"] or format_of(file.name)
    if format_ is None:
        if str(file) != _STANDARD:
            raise click.UsageError(
                f"{file.name}: the extension names no format; say --format {'|'.join(FORMATS)}"
            )
        format_ = JSON_LINES
    return Layout(format_, given["header"], given["key_column"], given["value_column"])


def _beside(file: Path) -> Path:
    return file.with_name(file.name + ".nun-progress")


def _resume(journal: Journal | None, *, restart: bool) -> Progress:
    if journal is None or restart:
        return Progress()
    found, problem = journal.load()
    if problem:
        warn(f"beginning at the start: {problem}")
    return found or Progress()


@contextlib.contextmanager
def _part(path: Path, progress: Progress) -> Iterator[BinaryIO]:
    """The unfinished output, cut back to what the journal knows of."""
    with path.open("r+b" if progress.offset else "wb") as file:
        if os.fstat(file.fileno()).st_size < progress.offset:
            raise click.UsageError(
                f"{path} is shorter than its journal says; export without --resume"
            )
        file.truncate(progress.offset)
        file.seek(progress.offset)
        yield file


class _Keeper:
    """Writes the journal, seldom enough to cost nothing; never ahead of what an output file holds."""

    def __init__(
        self, journal: Journal | None, meter: Meter, target: BinaryIO | None = None
    ) -> None:
        self.meter = meter
        self.last = meter.progress
        self._journal = journal
        self._target = target
        self._saved_at = time.monotonic()

    def move(self, progress: Progress) -> None:
        self.last = progress
        self.meter.move(progress)
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        if self._journal is None or not self.last.offset:
            return
        if self._target is not None:
            self._target.flush()
            os.fsync(self._target.fileno())
        self._journal.save(self.last)
        self._saved_at = time.monotonic()
