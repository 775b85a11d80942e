"""What the files of a directory say, before the log: the start of every load and of every snapshot.

`finish` is for the one who writes (the storage writer at its start): it completes what a crash interrupted. `read_base`
is for everybody after that; both the network process's load and the writer's fold start from what it returns, so they
agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nun.core import effects as fx
from nun.core.state import NodeState
from storage import layout, nundb
from storage.disk import Disk
from storage.manifest import STATE, Side, read_side, read_state, sync, sync_names
from storage.nundb import Migrated


@dataclass(slots=True)
class Base:
    """The state of the last snapshot, and where each database's records are."""

    state: NodeState
    seqs: dict[int, int] = field(default_factory=dict)  # of databases without later changes
    sides: dict[int, Side] = field(default_factory=dict)
    migrated: dict[int, Migrated] = field(default_factory=dict)
    newest: int = (
        0  # the last entry that any side file holds, even one that the state does not name
    )

    @property
    def seq(self) -> int:
        """The last entry that the state holds."""
        return self.state.position.seq if self.state.position is not None else 0

    def seq_of(self, database: int) -> int:
        """The last entry that a database's files hold.

        A database of the state always has files, but for one that was dropped later in the log and whose name was
        given to another: nothing of it is wanted any more.
        """
        if database in self.migrated:
            return 0
        side = self.sides.get(database)
        return max(side.seq, self.seqs.get(database, 0)) if side is not None else self.seq


def sides(disk: Disk) -> list[Side]:
    """All side files of the directory."""
    names = [name for name in disk.names() if layout.stem_of(name, layout.SIDE) is not None]
    return [read_side(disk, name) for name in names]


def read_base(disk: Disk) -> Base:
    """Reads state and side files, and what NunDB left. Changes nothing. Raises DamagedFile, FormatTooNew."""
    known = read_state(disk)
    state, seqs = known or (NodeState(), {})
    base = Base(state, seqs)
    found = {side.number: side for side in sides(disk)}
    base.newest = max((side.seq for side in found.values()), default=0)
    for number, living in state.databases.items():
        side = found.get(number)
        if side is not None and side.name == living.name:
            base.sides[number] = side
    for name in nundb.find(disk, {side.name for side in found.values()}):
        info = state.database_named(name)
        if info is None and known is None:
            number = state.next_database
            migrated = nundb.read(disk, name, number)
            state.take_database((fx.DATABASE, number, name, migrated.options))
            base.migrated[number] = migrated
        elif info is not None and "migrated_from" in info.options and not seqs.get(info.number):
            base.migrated[info.number] = nundb.read(disk, name, info.number)
    return base


def finish(disk: Disk) -> list[str]:
    """Completes committed snapshots and clears away uncommitted ones; returns what was done, for the log."""
    done: list[str] = []
    sync_names(disk)  # what is seen may not be durable yet, and what follows relies on it
    known = {side.name: side for side in sides(disk)}
    for name in disk.names():
        if name.endswith(".tmp") and _is_ours(name):
            disk.remove(name)
            done.append(f"removed {name}")
    for side in known.values():
        for kind in layout.KINDS:
            made = new_name(side, kind)
            if disk.exists(made):
                disk.rename(made, layout.file_name(side.name, kind))
                done.append(f"renamed {made}")
    for name in disk.names():
        if name.endswith(".new") and _is_ours(name):
            disk.remove(name)
            done.append(f"removed {name}")
    sync_names(disk)
    for side in known.values():
        if side.plan:
            apply_plan(disk, side)
    return done


def _is_ours(name: str) -> bool:
    """Whether a snapshot could have made this file; anything else in the directory is left alone."""
    return name.startswith(f"{STATE}.") or "-nun." in name


def new_name(side: Side, kind: str) -> str:
    """The name that a reclaim's file has until the commit is carried out."""
    return f"{layout.file_name(side.name, kind)}.{side.generation}.new"


def apply_plan(disk: Disk, side: Side) -> None:
    """Writes the updates in place that a committed snapshot planned, durably."""
    for kind in (layout.KEYS, layout.ROWS):
        updates = [(offset, data) for of, offset, data in side.plan if of == kind]
        name = layout.file_name(side.name, kind)
        if not updates or not disk.exists(
            name
        ):  # a dropped database, half removed; else the load will tell
            continue
        file = disk.open(name)
        try:
            for offset, data in updates:
                file.write(offset, data)
            sync(file)
        finally:
            file.close()
