"""A cluster of real nodes under test, each with its own processes, directory and ports on loopback.

With `proxied`, all that nodes say to each other goes through proxies of the tests (tests/support/proxy.py), and every
link, of a pair of nodes, can be cut, delayed and throttled. Clients talk to the nodes directly.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil

import nun
from tests.support.node import ADMIN, Node, Settings, wait_until
from tests.support.ports import free_port
from tests.support.proxy import Faults, Proxy

DATABASE = "d"
TOKEN = "t"


class Cluster:
    """Nodes named node1, node2, ...; node1 is the first primary.

    Args:
        directory: holds one directory a node.
        nodes: how many.
        settings: tables of every node's configuration.
        each: a node's number -> tables of its own, over those of all.
        proxied: put proxies between the nodes.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        settings: Settings | None = None,
        each: Mapping[int, Settings] | None = None,
        proxied: bool = False,
    ) -> None:
        numbers = range(1, nodes + 1)
        self._stack = ExitStack()
        self.links = {frozenset(pair): Faults() for pair in itertools.combinations(numbers, 2)}
        listen = {number: free_port() for number in numbers}
        publish = {number: free_port() for number in numbers}
        self._proxies: list[tuple[int, Proxy]] = []
        self._bound = {
            number: (f"tcp://127.0.0.1:{listen[number]}", f"tcp://127.0.0.1:{publish[number]}")
            for number in numbers
        }
        shown_listen, shown_publish = listen, publish
        if proxied:
            shown_listen = {number: self._proxy(number, listen[number]) for number in numbers}
            shown_publish = {number: self._proxy(number, publish[number]) for number in numbers}
        self.nodes: list[Node] = []
        for number in numbers:
            tables: dict[str, dict[str, Any]] = {
                "node": {"name": f"node{number}"},
                "replication": {
                    "listen": f"tcp://127.0.0.1:{listen[number]}",
                    "publish": f"tcp://127.0.0.1:{publish[number]}",
                    "advertise": f"tcp://127.0.0.1:{shown_publish[number]}",
                    "primary": "node1",
                    "peers": {
                        f"node{other}": f"tcp://127.0.0.1:{shown_listen[other]}"
                        for other in numbers
                        if other != number
                    },
                },
            }
            for more in (settings or {}, (each or {}).get(number, {})):
                for table, keys in more.items():
                    tables.setdefault(table, {}).update(keys)
            data_dir = tables["node"].pop("data_dir", None)
            self.nodes.append(Node(directory / f"node{number}", tables, data_dir=data_dir))

    def _proxy(self, number: int, port: int) -> int:
        """Puts a proxy before a port of a node; returns the port to connect to instead."""
        proxy = Proxy(port, lambda source: self._link_of(number, source))
        self._proxies.append((number, proxy))
        return proxy.port

    def _link_of(self, number: int, port: int) -> Faults:
        """Which node's replicator connects from this port, and so over which link."""
        for other, node in enumerate(self.nodes, 1):
            pid = node.pids().get("replicator")
            if other == number or pid is None:
                continue
            try:
                ends = psutil.Process(pid).net_connections("tcp4")
            except psutil.Error:
                continue
            if any(end.laddr[1] == port for end in ends):
                return self.links[frozenset((number, other))]
        return Faults()  # it is gone already

    def isolate(self, number: int) -> None:
        """Cuts every link of a node."""
        for pair, faults in self.links.items():
            if number in pair:
                faults.cut = True

    def reset(self, number: int) -> None:
        """Ends the connections that others have to a node; they connect again."""
        for whose, proxy in self._proxies:
            if whose == number:
                proxy.reset()

    def addresses_among_nodes(self, number: int) -> tuple[str, str]:
        """Where a node listens for others, and where it publishes."""
        return self._bound[number]

    def heal(self) -> None:
        for faults in self.links.values():
            faults.heal()

    def __enter__(self) -> Self:
        with ExitStack() as started:  # a start that fails leaves nothing behind
            for _, proxy in self._proxies:
                started.enter_context(proxy)
            for node in self.nodes:
                started.callback(node.close)
                node.launch()
            for node in self.nodes:
                node.wait_ready()
            with self.client(0) as client:
                wait_until(
                    lambda: (
                        len([one for one in client.cluster() if one["number"]]) == len(self.nodes)
                    ),
                    "all nodes to be members",
                    60.0,
                )
                client.create_database(DATABASE, token=TOKEN, ack="all")
            self._stack = started.pop_all()
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

    def wait_decided(self) -> None:
        """Waits until no node holds writes that are not decided and settled."""

        def decided() -> bool:
            waiting = 0
            for index in range(len(self.nodes)):
                with self.client(index) as client:
                    waiting += client.status()["outbox"]
            return not waiting

        wait_until(decided, "all outboxes to be empty", 60.0)

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
