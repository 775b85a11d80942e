"""A simulated node: its disk, its clocks, and a supervisor that starts its processes anew as the real one does."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, Final

from actors.conflicts import ConflictManager
from actors.network import Network
from actors.replicator import Replicator
from actors.writer import Writer
from nun.config import Config
from nun.errors import StorageError
from storage.directory import DataDirectory
from tests.simulation.process import Child, Failed, Process
from tests.simulation.world import MS, SECOND, World
from tests.support.sim_disk import SimDisk

BEGAN_UNIX_NS: Final = 1_700_000_000 * SECOND
_GROUP: Final = ("writer", "network")  # where one of them dies, all start anew


class Clock:
    """A node's clocks: the monotonic one runs true but for its rate; the wall clock is off, and drifts."""

    def __init__(self, offset_ns: int = 0, drift_ppm: int = 0) -> None:
        self.offset_ns = offset_ns
        self.drift_ppm = drift_ppm

    def monotonic_ns(self, now: int) -> int:
        return SECOND + now + now * self.drift_ppm // 1_000_000

    def unix_ns(self, now: int) -> int:
        return BEGAN_UNIX_NS + self.offset_ns + now + now * self.drift_ppm // 1_000_000


class Directory(DataDirectory):
    """A data directory on a simulated disk, which nobody else wants."""

    def __init__(self, path: Any, disk: Any) -> None:
        super().__init__(path, -1)
        self.disk = disk

    def close(self) -> None:
        pass


class Node:
    """One node.

    Attributes:
        up: whether its processes run, or are about to.
        slow_disk_ns: how long a sync takes at most.
    """

    def __init__(self, world: World, config: Config, clock: Clock) -> None:
        self.world = world
        self.config = config
        self.name = config.node.name
        self.clock = clock
        self.disk = Disk(self, world.rng.randrange(2**32))
        self.processes: dict[str, Process] = {}
        self.up = False
        self.stalled_until = 0
        self.slow_disk_ns = 2 * MS
        self.starts = 0
        self.failing_syncs = False  # some were made to
        self.watchers: list[Callable[[str, Any], None]] = []  # told ("started" | "killed", process)
        self._generation = 0

    @property
    def clustered(self) -> bool:
        return bool(self.config.replication.listen)

    # Starting

    def start(self) -> None:
        """Starts all its processes, in any order."""
        assert not self.up
        self.up = True
        self.starts += 1
        self._generation += 1
        names = ["writer", "network", "conflicts", *(["replicator"] if self.clustered else [])]
        self.world.rng.shuffle(names)
        for name in names:
            self._start_in(name, self.world.between(1 * MS, 20 * MS))

    def _start_in(self, name: str, ns: int) -> None:
        generation = self._generation

        def begin() -> None:
            if self.up and self._generation == generation:
                self.start_process(name)

        self.world.after(ns, begin)

    def start_process(self, name: str) -> None:
        process = self.processes[name] = Process(self, name)
        process.start(_MAKERS[name])
        self._tell("started", process)

    def _tell(self, what: str, process: Process) -> None:
        for watcher in self.watchers:
            watcher(what, process)

    def ready(self, name: str) -> None:
        pass

    def cannot_run(self, name: str, text: str) -> None:
        raise Failed(f"{self.name}.{name} cannot run: {text}")

    # Dying

    def died(self, process: Process, why: str) -> None:
        """A process died; the supervisor starts it, or all of them, anew."""
        if process.dead:
            return
        self.world.note("died", process.label, why)
        if process.name in _GROUP:
            self.restart(why, process)
        else:
            self._kill(process)
            self._start_in(process.name, self.world.between(20 * MS, 300 * MS))

    def ended(self, process: Process, status: int) -> None:
        """A process ended by itself."""
        self.died(process, f"with status {status}")

    def restart(self, why: str, process: Process | None = None) -> None:
        """All processes are killed and started anew from disk."""
        if process is not None and process.dead:
            return
        self.kill(why)
        self.world.after(self.world.between(30 * MS, 500 * MS), self._start_again(self._generation))

    def _start_again(self, generation: int) -> Callable[[], None]:
        def begin() -> None:
            if self._generation == generation and not self.up:
                self.start()

        return begin

    def kill(self, why: str) -> None:
        """Kill -9 of all of it: what was written stays written, synced or not."""
        if not self.up:
            return
        self.world.note("killed", self.name, why)
        self.up = False
        self._generation += 1
        for process in list(self.processes.values()):
            self._kill(process)
        self.stalled_until = 0
        self.disk = Disk.after(self, self.disk.kill())

    def _kill(self, process: Process) -> None:
        if not process.dead:
            process.kill()
            self._tell("killed", process)
        if self.processes.get(process.name) is process:
            del self.processes[process.name]

    def lose_power(self) -> None:
        """As kill, and what was not synced is lost or torn."""
        self.kill("power lost")
        self.disk = Disk.after(self, self.disk.crash(self.world.rng))

    def wipe(self) -> None:
        """As kill, and its data directory is lost: it comes back with an empty one."""
        self.kill("wiped")
        self.disk = Disk(self, self.world.rng.randrange(2**32))

    def set_back(self, copy: SimDisk) -> None:
        """As kill, and it comes back with an earlier copy of its data directory."""
        self.kill("set back")
        self.disk = Disk.after(self, copy.kill())

    def stall(self, ns: int, name: str | None = None) -> None:
        """SIGSTOP: the node, or one process of it, does nothing for a while."""
        until = self.world.now + ns
        if name is None:
            self.stalled_until = until
        elif name in self.processes:
            self.processes[name].stalled_until = until
        self.world.note("stalled", self.name, name, ns // MS)

    def excused(self, error: Exception) -> bool:
        """Whether an error of this kind was asked for: a disk that is full at a start, or a sync that fails."""
        if isinstance(error, StorageError) and isinstance(error.__cause__, OSError):
            error = error.__cause__
        if not isinstance(error, OSError):
            return False
        if error.errno == errno.EIO:
            return self.failing_syncs
        return self.disk.capacity is not None and error.errno == errno.ENOSPC

    def fail_syncs(self, count: int) -> None:
        """The next syncs fail."""
        self.failing_syncs = True
        self.disk.syncs_to_fail = count
        self.world.note("syncs fail", self.name, count)

    @property
    def network(self) -> Any:
        process = self.processes.get("network")
        return None if process is None else process.actor

    @property
    def writer(self) -> Any:
        process = self.processes.get("writer")
        return None if process is None else process.actor

    @property
    def manager(self) -> Any:
        process = self.processes.get("conflicts")
        return None if process is None else process.actor

    @property
    def replicator(self) -> Any:
        process = self.processes.get("replicator")
        return None if process is None else process.actor


class Disk(SimDisk):
    """The disk of a node: its syncs take time."""

    def __init__(self, node: Node, seed: int) -> None:
        super().__init__(seed)
        self._node = node
        node.world.disks[node.config.node.data_dir] = self

    @classmethod
    def after(cls, node: Node, left: SimDisk) -> Disk:
        """A disk with what is left of an earlier one."""
        disk = cls(node, 0)
        disk.__dict__.update({**left.__dict__, "_node": node})
        return disk

    def _call(self) -> Any:
        how = super()._call()
        process = self._node.world.current
        if process is not None:
            process.ahead += self._node.world.between(20_000, self._node.slow_disk_ns) // 8
        return how


class _Replicator(Replicator):
    """It reads the files of a copy from the simulated disk."""

    def read_copy(self, file: str, offset: int, size: int) -> bytes | None:
        disk = self.child.process.node.disk  # type: ignore[attr-defined]
        return disk.view(file)[offset : offset + size] or None if disk.exists(file) else None


def _writer(child: Child) -> Any:
    node = child.process.node
    directory = Directory(node.config.node.data_dir, node.disk)
    try:
        return Writer(child, directory)  # type: ignore[arg-type]
    except StorageError as error:
        child.fail(str(error))
        return None


_MAKERS: Final[Mapping[str, Callable[[Child], Any]]] = {
    "writer": _writer,
    "network": Network,  # type: ignore[dict-item]
    "replicator": _Replicator,
    "conflicts": ConflictManager,  # type: ignore[dict-item]
}
