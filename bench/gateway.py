"""Rows 15, 16 and 19: the gateway under NunDB's clients: bodies of 2,000 commands over HTTP, 50 connections, one.

There is no NunDB beside it to compare with; the aims are multiples of what it was measured to do on a like machine.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Final

from bench.connections import SELECT, Http, Load, Tcp, Transport, WebSocket, connected
from bench.peers import DATABASE, DATABASE_TOKEN, Node, Peers
from bench.processes import free_port
from bench.report import Aim, Line, at_least
from bench.sampling import Plan, Series, per_second

COMMANDS: Final = 2_000
CONNECTIONS: Final = 50
SETS_AIM: Final = 1.8 * 146_000  # the middle of what NunDB did
GETS_AIM: Final = 1.8 * 254_000
WEBSOCKET_SETS_AIM: Final = 20_000
WEBSOCKET_GETS_AIM: Final = 40_000


def http_batches(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 15."""
    _, ports = served(peers, Http.name)
    link = http.client.HTTPConnection("127.0.0.1", ports[Http.name])
    peers.callback(link.close)
    sets = ";".join(f"set key{index:08d} value-{index:026d}" for index in range(COMMANDS))
    gets = ";".join(f"get key{index:08d}" for index in range(COMMANDS))
    for what, body, aim in (("sets", sets, SETS_AIM), ("gets", gets, GETS_AIM)):
        data = SELECT + b";" + body.encode()
        _post(link, data)
        rates = [
            per_second(lambda _, data=data: _post(link, data), plan.seconds)  # type: ignore[misc]
            for _ in range(plan.rounds)
        ]
        text = f"gateway, HTTP, {what}, {COMMANDS:,} a request, closed"
        yield Line(15, text, "commands/s", Series(tuple(rates)), aim=at_least(aim))


def _post(link: http.client.HTTPConnection, body: bytes) -> int:
    link.request("POST", "/", body)
    answer = link.getresponse().read()
    assert answer.count(b";") == COMMANDS, answer[:200]
    return COMMANDS


def websockets(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 16."""
    _, ports = served(peers, WebSocket.name)
    aims = (at_least(WEBSOCKET_SETS_AIM), at_least(WEBSOCKET_GETS_AIM))
    yield from _single(peers, plan, 16, WebSocket(), ports, 1)
    yield from _single(peers, plan, 16, WebSocket(), ports, CONNECTIONS, aims)


def transports(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 19."""
    _, ports = served(peers, Tcp.name, Http.name)
    for transport in (Tcp(), Http()):
        for count in (1, CONNECTIONS):
            yield from _single(peers, plan, 19, transport, ports, count)


def _single(
    peers: Peers,
    plan: Plan,
    row: int,
    transport: Transport,
    ports: dict[str, int],
    count: int,
    aims: tuple[Aim | None, Aim | None] = (None, None),
) -> Iterator[Line]:
    """So many connections, each with one command in flight."""
    load = Load(transport, ports[transport.name], count)
    peers.callback(load.close)
    for what, command, aim in (
        ("durable sets", b"set key%08d value", aims[0]),
        ("gets", b"get key%08d", aims[1]),
    ):
        rates = [load.rate(command, plan.seconds) for _ in range(plan.rounds)]
        text = f"gateway, {transport.name}, connections: {count}, {what}"
        yield Line(row, text, "commands/s", Series(tuple(rates)), aim=aim)


def served(peers: Peers, *transports: str) -> tuple[Node, dict[str, int]]:
    """A durable node whose gateway has these doors, with a database in it; and their ports."""
    ports = {name: free_port() for name in transports}
    settings = [f"gateway.{name}=127.0.0.1:{port}" for name, port in ports.items()]
    node = Node(peers.new_directory("gateway"), "always", 300, "node with a gateway", settings)
    peers.callback(node.close)
    with node.client() as client:
        client.create_database(DATABASE, token=DATABASE_TOKEN)
    for port in ports.values():
        connected(port).close()  # it listens a moment after the node is ready
    return node, ports
