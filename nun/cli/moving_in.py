"""`nun import --from-nundb`: a NunDB directory, brought into a running cluster by an administrator.

All of the directory is read and checked before anything is changed. Then, database by database: it is made, its users
and permissions, its keys in batches, and at last what waits for arbiters is written again, as writes that conflict.

I1  What is there already is never written over: equal is done with, different is left and told.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from nun import nundb
from nun.cli.importing import Importer, Pace
from nun.cli.journal import Progress
from nun.cli.meter import Meter
from nun.cli.nundb_source import Source, sources
from nun.cli.output import duration_text, on_one_line, print_table, say_json, warn
from nun.cli.records import Flaw, Row
from nun.cli.settings import Settings
from nun.core.record import UNKNOWN_BASE
from nun.core.requests.access import EVERYONE, PERMISSION_PREFIX, USER_PREFIX, normalise_permissions
from nun.errors import (
    BadRequest,
    BatchError,
    ConflictPending,
    ConnectionLost,
    DatabaseExists,
    NunError,
    Overloaded,
    RequestError,
    TooLarge,
    UnknownOutcome,
    VersionConflict,
)
from nun.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX

_SHOWN_MAX: Final = 20  # of keys that are told one by one, on a terminal
_PAUSE_S: Final = 0.2
_REFUSALS: Final = (BadRequest, TooLarge)  # names and tokens that cannot be here


class CannotBeginError(NunError):
    """A database is there already and nobody said that this is meant, or it has no token."""


@dataclass
class Report:
    """What became of one database.

    Attributes:
        stored, equal: keys that were set, and keys that were there already with this value.
        differ: keys, users and conflicts that are left as they are here, with the reason.
        conflicts: that wait for arbiters now; again: that were there already.
    """

    name: str
    strategy: str
    keys: int
    created: bool = False
    stored: int = 0
    equal: int = 0
    users: int = 0
    conflicts: int = 0
    conflicts_known: int = 0
    differ: list[str] = field(default_factory=list)


def move_in(settings: Settings, folder: Path, given: Mapping[str, Any]) -> int:
    """Does it, and says what was done; the exit status."""
    began = time.monotonic()
    found = sources(folder, given["only"])
    if not (given["quiet"] or settings.json) or given["dry_run"]:
        _show(settings, folder, found)
    if given["dry_run"]:
        return 0
    reports = asyncio.run(_move(settings, found, given))
    took = time.monotonic() - began
    if settings.json:
        say_json({"databases": [vars(one) for one in reports], "seconds": round(took, 3)})
    elif not given["quiet"]:
        for one in reports:
            _tell(one)
        warn(f"imported {sum(one.stored for one in reports):,} keys in {duration_text(took)}")
    return 1 if any(one.differ for one in reports) else 0


def _show(settings: Settings, folder: Path, found: list[Source]) -> None:
    """What is in the directory."""
    shown: list[dict[str, Any]] = [
        {
            "database": one.name,
            "strategy": one.strategy,
            "keys": one.counts.keys,
            "bytes": one.counts.size,
            "users": len(one.users),
            "conflicts": one.conflicts,
            "not understood": len(one.left),
        }
        for one in found
    ]
    if settings.json:
        say_json({"directory": str(folder), "databases": shown})
        return
    cells = [
        [f"{value:,}" if type(value) is int else value for value in row.values()] for row in shown
    ]
    print_table(None, list(shown[0]), cells)


def _tell(one: Report) -> None:
    made = "created" if one.created else "was there"
    line = f"{one.name}: {made}; {one.stored:,} keys set, {one.equal:,} were there already"
    line += f", {one.users} users, {one.conflicts + one.conflicts_known} open conflicts"
    warn(line)
    for text in one.differ[:_SHOWN_MAX]:
        warn(f"{one.name}: {text}")
    if len(one.differ) > _SHOWN_MAX:
        warn(f"{one.name}: and {len(one.differ) - _SHOWN_MAX:,} more; --json tells all")


async def _move(settings: Settings, found: list[Source], given: Mapping[str, Any]) -> list[Report]:
    client = settings.async_client()
    try:
        mover = _Mover(client, settings, given)
        known = {info.name: info.options for info in await mover.outlast(client.databases)}
        for one in found:
            if one.name in known and not given["into_existing"]:
                raise CannotBeginError(
                    f"there is a database {one.name!r} already: --into-existing adds what it lacks, "
                    "and leaves what differs"
                )
            if one.name not in known and not (one.token or settings.token):
                raise CannotBeginError(
                    f"database {one.name!r} has no token in these files: give it one with -t"
                )
        return [await mover.move(one, known.get(one.name)) for one in found]
    finally:
        await client.close()


class _Mover:
    """Brings one database after the other."""

    def __init__(self, client: Any, settings: Settings, given: Mapping[str, Any]) -> None:
        self._client = client
        self._settings = settings
        self._given = given

    async def move(self, source: Source, options: Mapping[str, Any] | None) -> Report:
        strategy = source.strategy if options is None else str(options["strategy"])
        report = Report(source.name, strategy, source.counts.keys, options is None)
        if options is None:
            token = source.token or self._settings.token
            create = partial(self._client.create_database, source.name, token, source.strategy)
            try:
                await self.outlast(create, DatabaseExists)
            except _REFUSALS as error:
                report.created = False
                report.differ.append(f"all of it is left out: {error}")
                return report
        elif strategy != source.strategy:
            report.differ.append(f"its strategy is {strategy} here, and was {source.strategy}")
        database = self._client.database(source.name)
        await self._users(source, database, report)
        await self._keys(source, database, report)
        for key in source.waiting:
            await self._conflicts(source, key, database, report)
        for place, text in source.left.items():
            shown = f"{on_one_line(place)} is not understood, and left out"
            report.differ.append(f"{shown}: {on_one_line(text)}")
        return report

    async def _users(self, source: Source, database: Any, report: Report) -> None:
        there = set(await self.outlast(partial(database.keys, USER_PREFIX + b"*")))
        client, left = self._client, set()
        for user, token in source.users.items():
            try:
                if USER_PREFIX + user not in there:
                    await self.outlast(partial(client.create_user, source.name, user, token))
                report.users += 1
            except _REFUSALS as error:
                left.add(user)
                report.differ.append(f"user {on_one_line(user)!r} is left out: {error}")
        for user, text in source.permissions.items():
            wanted = permissions_here(text)
            place = PERMISSION_PREFIX + user
            held = await self.outlast(partial(database.get, place))
            name = on_one_line(user)
            if held is None and wanted and user not in left:
                await self.outlast(partial(client.set_permissions, source.name, user, wanted))
            elif held is None and user == EVERYONE:
                report.differ.append(
                    "who has the token alone might do nothing there, and may do all here"
                )
            elif held is not None and held.value.decode() != wanted:
                report.differ.append(
                    f"user {name!r} has other permissions here: {held.value.decode()}"
                )

    # Keys

    async def _keys(self, source: Source, database: Any, report: Report) -> None:
        given = self._given
        batches = _Batches(source, database)
        settings, total = self._settings, source.counts.size
        with Meter(source.name, settings, given["quiet"], total, Progress()) as meter:

            def bad(flaw: Flaw) -> None:
                report.differ.append(flaw.reason)

            importer = Importer(
                batches.send,
                _rows(source),
                Progress(),
                pace=Pace(
                    batch_records=given["batch"],
                    in_flight=given["in_flight"],
                    retry_for_s=given["retry_for"],
                ),
                skip_bad=True,
                tell_bad=bad,
                tell_progress=meter.move,
                tell_waiting=meter.waiting,
            )
            done = await importer.run()
        report.differ += batches.differ.values()
        report.equal = sum(batches.equal.values())
        report.stored = done.records - report.equal - len(batches.differ)

    # What waits

    async def _conflicts(self, source: Source, key: bytes, database: Any, report: Report) -> None:
        """Writes again what waits for an arbiter, unless it waits here, or was decided here, already."""

        async def told() -> Counter[bytes]:
            entries = [one async for one in database.conflicts(None, key)]
            return Counter(one.proposed.value for one in entries if one.proposed is not None)

        known = await self.outlast(told)
        for one in source.waiting[key]:
            if known[one.value]:
                known[one.value] -= 1
                report.conflicts_known += 1
                continue
            shown = f"{on_one_line(key)}: {on_one_line(one.value)!r} waited for an arbiter"
            if report.strategy != "arbiter":
                report.differ.append(
                    f"{shown}, and strategy {report.strategy} keeps nothing; left out"
                )
                continue
            try:
                await self.outlast(partial(database.set, key, one.value, base=UNKNOWN_BASE))
            except ConflictPending:
                report.conflicts += 1
            except RequestError as error:
                report.differ.append(f"{shown}, and is refused here: {error}")

    # The node may be away for a while

    async def outlast(
        self, ask: Callable[[], Awaitable[Any]], done: type[NunError] | None = None
    ) -> Any:
        """Asks again while the node is away; `done`: this error says that it was done before."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._given["retry_for"]
        again = False
        while True:
            try:
                return await ask()
            except UnknownOutcome as error:
                if error.reason == "expired" or loop.time() > give_up_at:
                    raise
                ask = error.retry  # as the same request: it takes effect once
            except (ConnectionLost, Overloaded):
                if loop.time() > give_up_at:
                    raise
                await asyncio.sleep(_PAUSE_S)
            except NunError as error:
                if again and done is not None and isinstance(error, done):
                    return None
                raise
            again = True


class _Batches:
    """Sends batches of keys.

    Attributes:
        equal: first key of a batch -> how many of it were there with this value.
        differ: key -> why it was left.
    """

    def __init__(self, source: Source, database: Any) -> None:
        self._source = source
        self._database = database
        self.equal: dict[bytes, int] = {}
        self.differ: dict[bytes, str] = {}

    async def send(self, items: Mapping[bytes, bytes]) -> None:
        """Sets those that are not there, with the version they had. Raises BatchError for what cannot be set."""
        keys = list(items)
        equal, absent = 0, []
        for key, entry in zip(keys, await self._database.get_many(keys), strict=True):
            if entry is None:
                absent.append(key)
            elif entry.value == items[key]:
                equal += 1
            else:
                self._differs(key, f"holds another value here, version {entry.held_version}")
        refused = await self._set(items, absent)
        self.equal.setdefault(keys[0], equal)
        if refused:
            raise BatchError(
                f"{len(refused)} keys were refused", [refused.get(key) for key in keys]
            )

    async def _set(
        self, items: Mapping[bytes, bytes], absent: list[bytes]
    ) -> dict[bytes, RequestError]:
        pipeline = self._database.pipeline()
        for key in absent:
            version = self._source.version(key) - 1
            pipeline.set(key, items[key], version=version, on_conflict="refuse")
        try:
            results = await pipeline.execute()
        except BatchError as error:
            results = error.results
        refused = {}
        for key, result in zip(absent, results, strict=True):
            if isinstance(result, VersionConflict):
                self._differs(key, "was written or removed here since")
            elif isinstance(result, RequestError):
                refused[key] = result
        return refused

    def _differs(self, key: bytes, why: str) -> None:
        self.differ.setdefault(key, f"{on_one_line(key)} {why}; left as it is")


def _rows(source: Source) -> Iterator[Row | Flaw]:
    """The keys of a database; their numbers stand for lines, and bytes so far for offsets."""
    end = 0
    for number, key in enumerate(source, 1):
        value = source.value(key)
        end += len(key) + len(value)
        if not key or len(key) > KEY_BYTES_MAX:
            shown = on_one_line(key[:40])
            yield Flaw(
                number,
                f"key {shown!r} of {len(key)} bytes is left out: expected 1 to {KEY_BYTES_MAX}",
                number,
                end,
            )
        elif len(value) > VALUE_BYTES_MAX:
            text = f"{on_one_line(key)} is left out: its value of {len(value)} bytes is above {VALUE_BYTES_MAX}"
            yield Flaw(number, text, number, end)
        else:
            yield Row(key, value, number, number, end)


def permissions_here(text: bytes) -> str:
    """A permission list of NunDB's as it is kept here; parts that name no key are nothing."""
    parts = [
        part for part in nundb.arbitrating(text).split("|") if part.partition(" ")[2].strip(" ,")
    ]
    return normalise_permissions("|".join(parts)) if parts else ""
