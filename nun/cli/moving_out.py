"""`nun export --to-nundb`: what a cluster holds, as a data directory that NunDB loads; by an administrator.

The directory is made beside its name and gets it when all of it is on the disk. What NunDB has no place for is left out
and told. Writers should rest meanwhile: every page is as it was when it was read.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from nun import nundb
from nun.cli.exporting import Exporter
from nun.cli.journal import Progress
from nun.cli.meter import Meter
from nun.cli.nundb_source import Source, sources
from nun.cli.output import duration_text, on_one_line, say_json, warn
from nun.cli.settings import Settings
from nun.client.results import DatabaseInfo
from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX
from nun.core.requests.access import PERMISSION_PREFIX, TOKEN_KEY, USER_PREFIX
from nun.errors import StorageError

TOKENS: Final = "tokens.json"
_TOKEN_BYTES: Final = 18
_SHOWN_MAX: Final = 20
_SAID_OTHERWISE: Final = ("strategy", "migrated_from")  # of a database's options

Tokens = dict[str, dict[str, Any]]  # database -> {"token": ..., "users": {name: token}}


@dataclass
class Report:
    """What was written of one database, and what NunDB has no place for."""

    name: str
    keys: int = 0
    users: int = 0
    conflicts: int = 0
    left: list[str] = field(default_factory=list)


def move_out(settings: Settings, folder: Path, given: Mapping[str, Any]) -> int:
    """Does it, and says what was done; the exit status."""
    began = time.monotonic()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise click.UsageError(f"{folder} is there already: expected a new or an empty directory")
    tokens = _Secrets(_read_tokens(given["tokens"]))
    try:
        parent = folder.resolve().parent
        part = Path(tempfile.mkdtemp(".part", folder.name + ".", parent))
    except OSError as error:
        raise click.UsageError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        reports = asyncio.run(_move(settings, part, tokens, given))
        tokens.write(part / TOKENS)
        _sync(part)
        part.rename(folder)
        _sync(parent)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    took = time.monotonic() - began
    if settings.json:
        shown = {"new_tokens": tokens.made, "seconds": round(took, 3)}
        say_json({"databases": [vars(one) for one in reports], **shown})
    elif not given["quiet"]:
        for one in reports:
            _tell(one)
        if tokens.made:
            warn(f"{tokens.made} tokens are new, for ours are hashed: {folder / TOKENS} has all")
        warn(f"exported {sum(one.keys for one in reports):,} keys in {duration_text(took)}")
    return 1 if any(one.left for one in reports) else 0


def _tell(one: Report) -> None:
    warn(f"{one.name}: {one.keys:,} keys, {one.users} users, {one.conflicts} open conflicts")
    for text in one.left[:_SHOWN_MAX]:
        warn(f"{one.name}: {text}")
    if len(one.left) > _SHOWN_MAX:
        warn(f"{one.name}: and {len(one.left) - _SHOWN_MAX:,} more; --json tells all")


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


# Tokens


def _read_tokens(path: Path | None) -> Tokens:
    """The tokens that were given. Raises click.UsageError."""
    if path is None:
        return {}
    if path.is_dir():
        return {one.name: _tokens_of(one) for one in sources(path, ())}
    found: Any
    expected = '{"DATABASE": {"token": "...", "users": {"NAME": "..."}}, ...}'
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path} cannot be read ({error}): expected {expected}") from error
    for told in found.values() if isinstance(found, dict) else (found,):
        users = told.get("users", {}) if isinstance(told, dict) else None
        if not isinstance(users, dict):
            raise click.UsageError(f"{path} has another form: expected {expected}")
        for token in (told.get("token", "-"), *users.values()):
            if not isinstance(token, str) or not token or any(map(str.isspace, token)):
                raise click.UsageError(f"{path}: a token of NunDB is a text without white space")
    return dict(found)


def _tokens_of(source: Source) -> dict[str, Any]:
    """The tokens that a database of NunDB has."""
    users = {name.decode(): token.decode() for name, token in source.users.items()}
    told: dict[str, Any] = {"users": users}
    if source.token is not None:
        told["token"] = source.token.decode()
    return told


class _Secrets:
    """Tokens for what is written: those that were given, new ones for the rest."""

    def __init__(self, given: Tokens) -> None:
        self._given = given
        self._used: Tokens = {}
        self.made = 0

    def database(self, name: str) -> str:
        token = self._of(self._given.get(name, {}).get("token"))
        self._used[name] = {"token": token, "users": {}}
        return token

    def user(self, database: str, name: str) -> str:
        token = self._of(self._given.get(database, {}).get("users", {}).get(name))
        self._used[database]["users"][name] = token
        return token

    def _of(self, known: str | None) -> str:
        if known is not None:
            return known
        self.made += 1
        return secrets.token_urlsafe(_TOKEN_BYTES)

    def write(self, path: Path) -> None:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(number, "w") as file:
            json.dump(self._used, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(number)


# Databases


async def _move(
    settings: Settings, part: Path, tokens: _Secrets, given: Mapping[str, Any]
) -> list[Report]:
    client = settings.async_client()
    try:
        found = {info.name: info for info in await client.databases()}
        for name in given["only"]:
            if name not in found:
                raise click.UsageError(f"there is no database {name!r}")
        names = given["only"] or sorted(found)
        reports = []
        with _Files(part) as files:
            for number, name in enumerate(dict.fromkeys(names), 1):
                mover = _Mover(client.database(name), found[name], files, tokens)
                reports.append(await mover.move(number, settings, given))
        return reports
    finally:
        await client.close()


class _Mover:
    """Writes one database."""

    def __init__(self, database: Any, info: DatabaseInfo, files: _Files, tokens: _Secrets) -> None:
        self._database = database
        self._info = info
        self._files = files
        self._tokens = tokens
        self._report = Report(info.name)
        self._waiting: dict[bytes, list[tuple[int, bytes]]] = {}  # key -> (made at, value)

    async def move(self, number: int, settings: Settings, given: Mapping[str, Any]) -> Report:
        info, report = self._info, self._report
        if "/" in info.name or info.name == nundb.ADMIN:
            report.left.append("NunDB cannot have a database of this name: all of it is left out")
            return report
        with Meter(info.name, settings, given["quiet"], None, Progress()) as meter:
            exporter = Exporter(
                self._database, retry_for_s=given["retry_for"], tell_waiting=meter.waiting
            )
            await exporter.outlast(self._conflicts)
            self._files.begin(info.name, number, self._strategy())
            self._files.put(TOKEN_KEY, 0, self._tokens.database(info.name).encode())
            await self._guarded(exporter)
            size = 0
            async for page in exporter.entries():
                for key, entry in page:
                    self._key(key, entry)
                size += sum(len(key) + len(entry.value) for key, entry in page)
                meter.move(Progress(offset=size, records=report.keys))
        for key in list(self._waiting):  # of keys that hold nothing
            self._put_waiting(key, 0, nundb.EMPTY)
        self._files.end()
        return report

    def _strategy(self) -> int:
        options, left = self._info.options, self._report.left
        strategy = str(options.get("strategy", "none"))
        if strategy not in nundb.STRATEGIES:
            left.append(f"NunDB has no strategy {strategy!r}: it is 'none' there")
            strategy = "none"
        for name in options:
            if name not in _SAID_OTHERWISE:
                left.append(f"NunDB has no option {name!r}")
        return nundb.STRATEGIES.index(strategy)

    async def _guarded(self, exporter: Exporter) -> None:
        """Users, permissions, and other keys that are for administrators."""
        database, files = self._database, self._files
        for place in await exporter.outlast(partial(database.keys, b"$$*")):
            if place == TOKEN_KEY:
                continue
            if place.startswith(USER_PREFIX):
                name = place.removeprefix(USER_PREFIX).decode()
                files.put(place, 0, self._tokens.user(self._info.name, name).encode())
                self._report.users += 1
                continue
            entry = await exporter.outlast(partial(database.get, place))
            if entry is not None and place.startswith(PERMISSION_PREFIX):
                files.put(place, 0, nundb.without_arbitrating(entry.value))
            elif entry is not None:
                self._key(place, entry)

    def _key(self, key: bytes, entry: Any) -> None:
        report, value = self._report, entry.value
        shown = on_one_line(key)
        if key.startswith(CONFLICT_PREFIX) and value.startswith(b"{"):
            return  # an entry of our ledger: if it is open, its record is made of it
        if not _is_text(value):
            report.left.append(f"{shown} is left out: its value is no UTF-8")
            self._waiting.pop(key, None)
            return
        version = entry.held_version
        if entry.in_conflict and key in self._waiting:
            self._put_waiting(key, version, value)
            version = nundb.IN_CONFLICT
        elif self._waiting.pop(key, None) is not None or entry.in_conflict:
            report.left.append(f"{shown}: what waits for it changed meanwhile; let writers rest")
        self._files.put(key, version, value)
        report.keys += 1

    # What waits for arbiters

    async def _conflicts(self) -> None:
        """Learns what waits, key by key, in order."""
        self._waiting.clear()
        queues: dict[bytes, dict[int, Any]] = {}
        async for one in self._database.conflicts("open"):
            queues.setdefault(one.key, {})[one.previous] = one
        for key, after in queues.items():
            for one in _in_order(after):
                if one.kind == "set" and _is_text(one.proposed.value):
                    self._waiting.setdefault(key, []).append((one.at, one.proposed.value))
                    continue
                what = one.kind if one.proposed is None else f"{one.kind} {one.proposed.value!r}"
                text = (
                    f"{on_one_line(key)}: conflict {one.op_id} is left out: NunDB keeps no {what}"
                )
                if text not in self._report.left:
                    self._report.left.append(text)

    def _put_waiting(self, key: bytes, version: int, held: bytes) -> None:
        """The records of what waits for a key, the first over what it holds, each other over the one before."""
        old, last = held, 0
        for at_ms, value in self._waiting.pop(key):
            place, last = nundb.place_of(key, at_ms, last)
            waiting = nundb.Waiting(place, key, last, version, value)
            self._files.put(place, 0, nundb.waiting_text(waiting, self._info.name.encode(), old))
            old = place
            self._report.conflicts += 1


def _in_order(after: dict[int, Any]) -> Iterator[Any]:
    """A queue, in the order in which each entry names the one before it."""
    known = {one.op_id for one in after.values()}
    one = next((first for previous, first in after.items() if previous not in known), None)
    while one is not None:
        yield one
        one = after.get(one.op_id)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Files:
    """The files of a directory while they are written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: set[bytes] = set()
        self._stack = ExitStack()
        self._address = 0
        self._metadata = b""
        self._name = ""
        self._map = self._open(nundb.KEYS_MAP)
        self._map.write(nundb.LENGTH.pack(0))

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *failure: object) -> None:
        with self._stack:
            self._map.seek(0)
            self._map.write(nundb.LENGTH.pack(len(self._names)))
            with self._open(nundb.LOG_VALID) as valid:
                valid.write(b"\x01")
                _finish(valid)
            _finish(self._map)

    def _open(self, name: str) -> BinaryIO:
        path = self._folder / name
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return self._stack.enter_context(open(number, "wb"))

    def begin(self, name: str, number: int, strategy: int) -> None:
        self._name = name
        self._keys, self._values = self._open(name + nundb.KEYS), self._open(name + nundb.VALUES)
        self._metadata = nundb.METADATA_ROW.pack(number, strategy)
        self._address = 0

    def put(self, key: bytes, version: int, value: bytes) -> None:
        self._keys.write(nundb.key_record(key, version, self._address))
        self._address += self._values.write(nundb.value_record(value))
        if key not in self._names:
            self._map.write(nundb.mapped_name(key, len(self._names)))
            self._names.add(key)

    def end(self) -> None:
        with self._open(self._name + nundb.METADATA) as metadata:
            metadata.write(self._metadata)
            _finish(metadata)
        for file in (self._keys, self._values):
            _finish(file)
            file.close()


def _finish(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
