"""A cluster on one machine: `nun-cluster`. It starts one supervisor a node, passes their logs on, and ends with them.

One JSON line on standard output says when all nodes can serve:

    {"nodes": [{"name": "node1", "address": "tcp://127.0.0.1:5701", "pid": 123}, ...]}

SIGTERM, SIGINT and SIGHUP stop all nodes cleanly. A node that ends by itself is told and stays down: its data directory
can be started by hand, with the command that stands in the log. The exit status is 0 after an orderly stop, else the
first that a node ended with.
"""

from __future__ import annotations

import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from actors.logs import configure_logging
from nun.config import LogConfig

ROOT: Final = Path(__file__).resolve().parents[1]
NODES_MAX: Final = 9
STOP_PATIENCE_S: Final = 40.0
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LINE_BYTES: Final = 65_536


@dataclass
class Node:
    """One node of the cluster."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    ready: bool = False
    rest: bytes = b""  # of its log: a line that has not ended


class Cluster:
    """Starts and watches the nodes.

    Args:
        count: how many.
        data_dir: holds one data directory a node.
        base_port: client address of node i is base_port + 100 i + 1; the next two ports are for the other nodes.
        settings: `section.key=value` each, for all nodes.
    """

    def __init__(
        self, count: int, data_dir: Path, base_port: int, settings: Sequence[str], log: Any
    ) -> None:
        self.log = log
        self.selector = selectors.DefaultSelector()
        self.stopping_since: float | None = None
        self.status = 0
        self.told = False
        self.nodes = [
            self._start(i, count, data_dir, base_port, settings) for i in range(1, count + 1)
        ]

    def _start(
        self, number: int, count: int, data_dir: Path, base_port: int, settings: Sequence[str]
    ) -> Node:
        def port(node: int, offset: int) -> str:
            return f"tcp://127.0.0.1:{base_port + 100 * node + offset}"

        name = f"node{number}"
        peers = ", ".join(f"node{i} = '{port(i, 2)}'" for i in range(1, count + 1) if i != number)
        chosen = [
            f"node.name={name}",
            f"node.data_dir={data_dir / name}",
            f"network.listen={port(number, 1)}",
            f"replication.listen={port(number, 2)}",
            f"replication.publish={port(number, 3)}",
            "replication.primary=node1",
            f"replication.peers={{{peers}}}",
            *settings,
        ]
        command = [
            sys.executable,
            *(["-P"] if sys.flags.safe_path else []),
            "-m",
            "actors.supervisor",
        ]
        command += ["--config", str(ROOT / "conf" / "node1.toml")]
        for setting in chosen:
            command += ["--set", setting]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        self.log.info("node_started", name=name, pid=process.pid, command=shlex.join(command))
        node = Node(name, port(number, 1), process)
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        self.selector.register(process.stderr, selectors.EVENT_READ, node)
        return node

    def run(self) -> int:
        """Runs until all nodes have ended; returns the exit status."""
        wake, self._wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        self.selector.register(wake, selectors.EVENT_READ, None)
        while self.selector.get_map() and len(self.selector.get_map()) > 1:
            for key, _ in self.selector.select(timeout=1.0):
                if key.data is None:
                    if any(number in _STOP_SIGNALS for number in os.read(wake, 64)):
                        self._stop()
                else:
                    self._read(key.data)
            if self.stopping_since is not None:
                self._hurry(time.monotonic() - self.stopping_since)
        return self.status

    def _read(self, node: Node) -> None:
        """Passes on what a node logs, and looks for the line that says it serves."""
        assert node.process.stderr is not None
        data = os.read(node.process.stderr.fileno(), _LINE_BYTES)
        if not data:
            self.selector.unregister(node.process.stderr)
            self._ended(node, node.process.wait())
            return
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
        *lines, node.rest = (node.rest + data).split(b"\n")
        node.rest = node.rest[-_LINE_BYTES:]
        for line in lines:
            if b'"ready"' in line and _is_ready(line):
                node.ready = True
        if not self.told and all(one.ready for one in self.nodes):
            self.told = True
            nodes = [
                {"name": one.name, "address": one.address, "pid": one.process.pid}
                for one in self.nodes
            ]
            print(json.dumps({"nodes": nodes}), flush=True)

    def _ended(self, node: Node, status: int) -> None:
        if self.stopping_since is None or status:
            self.log.error("node_ended", name=node.name, status=status)
            self.status = self.status or (status if status > 0 else 1)
        if self.stopping_since is None and not self.told:
            self._stop()  # it cannot become the cluster that was asked for

    def _stop(self) -> None:
        """Replicas first: a primary that stops knows then who has what."""
        if self.stopping_since is not None:
            self._kill()
            return
        self.stopping_since = time.monotonic()
        for node in reversed(self.nodes):
            if node.process.poll() is None:
                node.process.terminate()

    def _hurry(self, waited_s: float) -> None:
        if waited_s > STOP_PATIENCE_S:
            self._kill()

    def _kill(self) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                self.log.error("node_killed", name=node.name)
                node.process.kill()


def _is_ready(line: bytes) -> bool:
    """Whether a line of a node's log says that it serves as a part of the cluster."""
    try:
        told = json.loads(line)
    except ValueError:
        return False
    return told.get("event") == "ready" and told.get("role") in ("primary", "replica")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), default=3, show_default=True)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Holds one data directory a node.",
)
@click.option(
    "--base-port",
    type=click.IntRange(1_024, 64_000),
    default=5_600,
    show_default=True,
    help="The client address of node i is this + 100 i + 1.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override one key of every node's configuration.",
)
def main(nodes: int, data_dir: Path, base_port: int, settings: tuple[str, ...]) -> None:
    """Run a cluster of Nun nodes on this machine, in the foreground."""
    log = configure_logging(LogConfig(), "", "cluster")
    sys.exit(Cluster(nodes, data_dir.absolute(), base_port, settings, log).run())


if __name__ == "__main__":
    main()
