"""What is measured and what it is measured against: nodes, Redis, the bare echo and load processes.

Each is a process of its own on a free loopback port with its files in one temporary directory.
`Peers` ends them all by pid and removes the directory, also when it is interrupted; should it be
killed itself, the kernel ends them (Linux).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil
import zmq

import nun
from actors.processes import actor_of
from bench.processes import ROOT, Unavailable, Worker, descendants, end, free_port, kill, spawn
from bench.session import Session
from bench.workload import DATABASE, DATABASE_TOKEN

ADMIN_USER: Final = "nun"
ADMIN_PASSWORD: Final = "nun-pwd"
START_TIMEOUT_S: Final = 60.0
SPIN_US: Final = {"spin on": 300, "spin off": 0}


def until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, name: str
) -> None:
    """Calls `ready`, which waits a little by itself, until it is true. Raises Unavailable."""
    give_up = time.monotonic() + START_TIMEOUT_S
    while not ready():
        status = process.poll()
        if status is not None or time.monotonic() > give_up:
            state = "does not answer" if status is None else f"ended with status {status}"
            raise Unavailable(f"{name} {state}: {_last_lines(log)}")


def _last_lines(log: Path, count: int = 4) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-count:]) or "it logged nothing"


class Redis:
    """A Redis server of our own.

    Args:
        appendfsync: "always", or "no AOF" for a Redis that keeps no log.
        replica_of: the port of its master.
    """

    def __init__(self, directory: Path, appendfsync: str, replica_of: int | None = None) -> None:
        import redis  # only rows that need it may fail without it

        program = redis_server()
        directory.mkdir(parents=True)
        self.port = free_port()
        kept = ["--appendonly", "no"]
        if appendfsync != "no AOF":
            # Rewriting the log in the middle of a sample would only slow Redis down.
            kept = ["--appendonly", "yes", "--appendfsync", appendfsync]
            kept += ["--auto-aof-rewrite-percentage", "0"]
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(directory), *kept]
        if replica_of is not None:
            command += ["--replicaof", "127.0.0.1", str(replica_of)]
        with open(directory / "log", "wb") as log:
            self.process = spawn(command, log, stdout=log)
        self.client = redis.Redis(port=self.port, decode_responses=True)

        def answers() -> bool:
            try:
                return bool(self.client.ping())
            except redis.ConnectionError:
                time.sleep(0.01)
                return False

        try:
            until(answers, self.process, directory / "log", "redis-server")
        except BaseException:
            self.close()
            raise

    @property
    def rss(self) -> int:
        resident: int = psutil.Process(self.process.pid).memory_info().rss
        return resident

    def close(self) -> None:
        self.client.close()
        end(self.process)


def redis_server() -> str:
    """The program's path; installs Debian's package when we may. Raises Unavailable."""
    found = shutil.which("redis-server")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        print("bench: installing the package redis-server", file=sys.stderr)
        # RUNLEVEL keeps the package from starting a server of its own.
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "redis-server"]
        for command in (install, ["apt-get", "update", "-q"], install):
            done = subprocess.run(command, env=environment, stdout=sys.stderr.fileno(), check=False)
            if done.returncode == 0 and command is install:
                break
        found = shutil.which("redis-server")
    if found is None:
        raise Unavailable(
            "redis-server is not on PATH: install it (Debian: apt-get install redis-server) "
            "and run again; this row compares with Redis and says nothing without it"
        )
    return found


class Node:
    """A Nun node of our own, started by bin/nun-node.

    Attributes:
        address: where clients connect.
        ready_after_s: from the start of the process to its first answer to a client.
    """

    def __init__(
        self, directory: Path, fsync: str, spin_us: int, name: str, settings: Sequence[str] = ()
    ) -> None:
        directory.mkdir(parents=True)
        self.name = name
        self._directory = directory
        self._config = directory / "node.toml"
        self._config.write_text('[node]\nname = "bench"\n')
        self._settings = [f"storage.fsync={fsync}", f"network.spin_us={spin_us}", *settings]
        self.start()

    def start(self) -> None:
        """Starts the process on this directory and waits until it serves."""
        self.address = f"tcp://127.0.0.1:{free_port()}"
        settings = [
            f"node.data_dir={self._directory / 'data'}",
            f"network.listen={self.address}",
            *self._settings,
        ]
        command = [str(ROOT / "bin/nun-node"), "--config", str(self._config)]
        for setting in settings:
            command += ["--set", setting]
        log = self.log = self._directory / "log"
        began = time.perf_counter()
        with open(log, "ab") as out:
            self.process = spawn(command, out, stdout=out)
        with zmq.Context() as context, contextlib.closing(Session(context, self.address)) as probe:
            probe.greet()
            try:
                until(lambda: probe.greeted(0.02), self.process, log, "nun-node")
            except BaseException:
                end(self.process)
                raise
        self.ready_after_s = time.perf_counter() - began
        pids = ", ".join(f"{role} {pid}" for role, pid in self.pids().items())
        print(f"bench: {self.name}: {pids}", file=sys.stderr)

    def pids(self) -> dict[str, int]:
        """The processes of the node by what they are."""
        found = {"supervisor": self.process.pid}
        for child in descendants(self.process.pid):
            actor = actor_of(child)
            if actor is not None:
                found[actor] = child.pid
        return found

    @property
    def data_dir(self) -> Path:
        return self._directory / "data"

    @property
    def rss(self) -> int:
        """Resident bytes of the network process, which holds the keys."""
        resident: int = psutil.Process(self.pids()["network"]).memory_info().rss
        return resident

    def client(self) -> nun.Client:
        return nun.Client(self.address, user=ADMIN_USER, password=ADMIN_PASSWORD)

    def async_client(self) -> nun.AsyncClient:
        return nun.AsyncClient(self.address, user=ADMIN_USER, password=ADMIN_PASSWORD)

    def kill(self) -> None:
        """Ends all processes of the node at once, as a power cut would."""
        children = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        kill(children)

    def close(self) -> None:
        end(self.process)


class Peers:
    """All that one row starts; closing it leaves nothing behind.

    Args:
        place: where the temporary directory is made; it decides which disk is measured.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="nun-bench-", dir=place))
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._count = 0

    def new_directory(self, kind: str) -> Path:
        """A path of its own within the temporary directory; nothing is there yet."""
        self._count += 1
        return self.directory / f"{kind}{self._count}"

    def redis(self, appendfsync: str, replica_of: int | None = None) -> Redis:
        server = Redis(self.new_directory("redis"), appendfsync, replica_of)
        self._stack.callback(server.close)
        return server

    def node(self, fsync: str, spin: str = "spin on") -> Node:
        """A node that serves, with the database in place."""
        name = f"node fsync={fsync}, {spin}"
        node = Node(self.new_directory("node"), fsync, SPIN_US[spin], name)
        self._stack.callback(node.close)
        with node.client() as client:
            client.create_database(DATABASE, token=DATABASE_TOKEN)
        return node

    def cluster(self, fsync: str, spin: str = "spin on", nodes: int = 3) -> list[Node]:
        """A primary and its replicas, all following, with the database in place."""
        names = [f"node{number}" for number in range(1, nodes + 1)]
        listen = {name: f"tcp://127.0.0.1:{free_port()}" for name in names}
        made = []
        for name in names:
            others = ", ".join(f"{peer}='{listen[peer]}'" for peer in names if peer != name)
            settings = [
                f"node.name={name}",
                f"replication.listen={listen[name]}",
                f"replication.publish=tcp://127.0.0.1:{free_port()}",
                "replication.primary=node1",
                f"replication.peers={{{others}}}",
            ]
            node = Node(self.new_directory(name), fsync, SPIN_US[spin], f"{name}, {spin}", settings)
            self._stack.callback(node.close)
            made.append(node)
        with made[0].client() as client:
            until(
                lambda: sum(member["role"] == "replica" for member in client.cluster())
                == nodes - 1,
                made[0].process,
                made[0].log,
                "the cluster",
            )
            client.create_database(DATABASE, token=DATABASE_TOKEN, ack="all")
        return made

    def database(self, node: Node) -> Any:
        """The database of a node through a client that is closed when the row is over."""
        client = self._stack.enter_context(node.client())
        return client.database(DATABASE, token=DATABASE_TOKEN)

    def worker(self, module: str, *arguments: str) -> Worker:
        worker = Worker(module, *arguments)
        self._stack.callback(worker.close)
        return worker

    def echo(self) -> str:
        """Starts a bare echo and returns its address."""
        return self.worker("bench.echo").first

    def callback(self, leave: Callable[..., Any], *arguments: Any) -> None:
        """Calls this when the row is over."""
        self._stack.callback(leave, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
