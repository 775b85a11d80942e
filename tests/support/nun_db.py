"""Nodes as NunDB's own tests start them, and `nun-db exec` as those talk to them.

nodes = Cluster(tmp_path, 3)
nodes.start()
assert nodes[0].exec("cluster-state") ...
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from actors.nun_db_options import NODES, STREAM
from tests.support.node import ROOT, Node
from tests.support.ports import free_port

USER = "mateus"
OFFSET = 10_000
_CODES = re.compile(r"\\(u\{([0-9a-f]+)\}|.)")
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}


def free_tcp_port() -> int:
    """A port that is free, as are those which are derived from it."""
    return free_port(OFFSET, OFFSET + NODES, OFFSET + STREAM)


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUN_")}
    return {**inherited, "NUN_VENV": sys.prefix, **more}


def nun_db(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs bin/nun-db."""
    return subprocess.run(
        [ROOT / "bin" / "nun-db", *arguments],
        env=environment(**environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def reply_of(stdout: str) -> str:
    """The reply that `nun-db exec` printed, unescaped."""
    last = stdout.splitlines()[-1]
    assert last.startswith('Response "'), stdout
    assert last.endswith('"'), stdout
    return _CODES.sub(
        lambda found: chr(int(found[2], 16)) if found[2] else _SHORT.get(found[1], found[1]),
        last[10:-1],
    )


class NunDb(Node):
    """One node that `bin/nun-db start` runs.

    Args:
        directory: for the copy of its log, and for its data unless `dbs` is given.
        tcp: the port of its TCP address.
        replicate: the addresses of the cluster.
        external: how others know it.
        dbs: NUN_DBS_DIR.
    """

    def __init__(
        self,
        directory: Path,
        tcp: int | None = None,
        replicate: str = "",
        external: str = "",
        dbs: Path | None = None,
    ) -> None:
        tcp = tcp or free_tcp_port()
        self.tcp, self.http, self.websocket = (
            f"127.0.0.1:{port}" for port in (tcp, free_port(), free_port())
        )
        self.url = f"http://{self.http}"
        self._given = ["--replicate-address", replicate] if replicate else []
        self._given += ["--external-address", external] if external else []
        super().__init__(
            directory,
            environ={"NUN_VENV": sys.prefix, "NUN_DBS_DIR": str(dbs or directory / "dbs")},
        )
        self.address = f"tcp://127.0.0.1:{tcp + OFFSET}"

    def command(self) -> list[str]:
        addresses = ["--http-address", self.http, "--tcp-address", self.tcp]
        addresses += ["--ws-address", self.websocket, *self._given]
        return [str(ROOT / "bin" / "nun-db"), "-p", USER, "--user", USER, "start", *addresses]

    def exec(self, commands: str) -> str:
        """The reply to these commands, as NunDB's tests ask."""
        done = nun_db("-p", USER, "--user", USER, "--host", self.url, "exec", commands)
        assert done.returncode == 0, done.stderr
        return reply_of(done.stdout)


class Cluster:
    """Several nodes that name each other; it ends them.

    Args:
        directory: of all of them.
        count: how many.
        external: of the last one, with {port} for its port.
        shared: whether all get the same NUN_DBS_DIR.
    """

    def __init__(
        self, directory: Path, count: int = 3, external: str = "", shared: bool = False
    ) -> None:
        ports = [free_tcp_port() for _ in range(count)]
        replicate = ",".join(f"127.0.0.1:{port}" for port in ports)
        self.nodes = [
            NunDb(
                directory / f"node{number}",
                port,
                replicate,
                external.format(port=port) if number == count else "",
                directory / "dbs" if shared else None,
            )
            for number, port in enumerate(ports, 1)
        ]

    def start(self) -> None:
        """One after the other, each when the one before serves."""
        for node in self.nodes:
            node.start()

    def __getitem__(self, number: int) -> NunDb:
        return self.nodes[number]

    def __iter__(self) -> Iterator[NunDb]:
        return iter(self.nodes)

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.close()
