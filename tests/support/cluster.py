"""A cluster of real nodes under test, each with its own processes, directory and ports on loopback."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import nun
from tests.support.node import ADMIN, Node, Settings, free_port, wait_until

DATABASE = "d"
TOKEN = "t"


class Cluster:
    """Nodes named node1, node2, ...; node1 is the first primary.

    Args:
        directory: holds one directory a node.
        nodes: how many.
        settings: tables of every node's configuration.
    """

    def __init__(self, directory: Path, nodes: int = 3, settings: Settings | None = None) -> None:
        names = [f"node{number}" for number in range(1, nodes + 1)]
        listen = {name: f"tcp://127.0.0.1:{free_port()}" for name in names}
        self.nodes: list[Node] = []
        for name in names:
            tables: dict[str, dict[str, Any]] = {
                "node": {"name": name},
                "replication": {
                    "listen": listen[name],
                    "publish": f"tcp://127.0.0.1:{free_port()}",
                    "primary": "node1",
                    "peers": {peer: address for peer, address in listen.items() if peer != name},
                },
            }
            for table, keys in (settings or {}).items():
                tables.setdefault(table, {}).update(keys)
            self.nodes.append(Node(directory / name, tables))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for node in self.nodes:
            self._stack.callback(node.close)
            node.launch()
        for node in self.nodes:
            node.wait_ready()
        with self.client(0) as client:
            wait_until(
                lambda: len([one for one in client.cluster() if one["number"]]) == len(self.nodes),
                "all nodes to be members",
            )
            client.create_database(DATABASE, token=TOKEN, ack="all")
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    def client(self, *which: int, **known: Any) -> nun.Client:
        """A client of these nodes (of all, when none is named), the first of them first."""
        addresses = [self.nodes[index].address for index in which] or self.addresses
        return nun.Client(addresses, **ADMIN, **{"timeout": 15.0, **known})

    def wait_role(self, index: int, role: str) -> dict[str, Any]:
        """Waits until a node plays this role; returns its status."""
        with self.client(index) as client:

            def found() -> dict[str, Any] | None:
                status = client.status()
                return status if status["role"] == role else None

            told: dict[str, Any] = wait_until(found, f"node {index + 1} to be {role}", 30.0)
            return told

    def wait_same(self) -> None:
        """Waits until all nodes that run show the same position."""
        running = [
            index
            for index, node in enumerate(self.nodes)
            if node.process is not None and node.process.poll() is None
        ]
        clients = [self.client(index) for index in running]
        try:

            def same() -> bool:
                return len({client.status()["position"] for client in clients}) == 1

            wait_until(same, "all nodes to be at the same position", 30.0)
        finally:
            for client in clients:
                client.close()
