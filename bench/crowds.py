"""Row 20: many WebSocket connections at the gateway: a change that all of them watch, and idle ones."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time
from collections.abc import Iterator
from typing import Final

import psutil

from bench.connections import PATIENCE_S, Tcp, Transport, WebSocket
from bench.gateway import served
from bench.peers import Node, Peers
from bench.processes import Unavailable
from bench.report import Line
from bench.sampling import Plan, Series

WATCHERS: Final = 500
IDLE: Final = 5_000
IDLE_TCP: Final = 100
CHANGES: Final = 20  # a round


def many_connections(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 20."""
    _allow_descriptors(IDLE + WATCHERS + IDLE_TCP + 200)
    node, ports = served(peers, WebSocket.name, Tcp.name)
    yield from _fan_out(node, ports[WebSocket.name], plan)
    for transport, count in ((WebSocket(), IDLE), (Tcp(), IDLE_TCP)):
        yield from _idle(node, transport, ports[transport.name], count, plan)


def _fan_out(node: Node, port: int, plan: Plan) -> Iterator[Line]:
    websocket = WebSocket()
    before = _resident(node)
    with contextlib.ExitStack() as stack:
        links = _opened(stack, websocket, port, WATCHERS)
        for link in links:
            link.sendall(websocket.framed(b"watch hot"))
        for link in links:
            _drain(link, b"ok \n")
        each = (_resident(node) - before) / WATCHERS
        writer = stack.enter_context(contextlib.closing(websocket.connect(port)))
        poll = stack.enter_context(contextlib.closing(select.epoll()))
        by_descriptor = {link.fileno(): link for link in links}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.EPOLLIN)
        halves, tails = [], []
        for round_ in range(plan.rounds):
            times: list[float] = []
            for turn in range(CHANGES):
                times += _one_change(writer, by_descriptor, poll, b"%d.%d" % (round_, turn))
            times.sort()
            halves.append(times[len(times) // 2] * 1e3)
            tails.append(times[len(times) * 99 // 100] * 1e3)
    what = f"a change seen by {WATCHERS} WebSocket watchers"
    yield Line(20, f"{what}, p50", "ms", Series(tuple(halves)))
    yield Line(20, f"{what}, p99", "ms", Series(tuple(tails)))
    yield Line(20, "... memory of the gateway for each of them", "KiB", Series((each / 1024,)))


def _one_change(
    writer: socket.socket, links: dict[int, socket.socket], poll: select.epoll, value: bytes
) -> list[float]:
    """How long after it was sent each watcher had the notice, in seconds."""
    began = time.perf_counter()
    writer.sendall(WebSocket().framed(b"set hot " + value))
    times = []
    received = dict.fromkeys(links, b"")
    while len(times) < len(links):
        ready = poll.poll(PATIENCE_S)
        assert ready, "watchers are not told"
        for descriptor, _ in ready:
            received[descriptor] += links[descriptor].recv(4_096)
            notices = received[descriptor]
            if b"changed-version" in notices and notices.endswith(value + b"\n"):
                times.append(time.perf_counter() - began)
                received[descriptor] = b""
    _drain(writer, b"ok \n")
    return times


def _idle(node: Node, transport: Transport, port: int, count: int, plan: Plan) -> Iterator[Line]:
    before = _resident(node)
    with contextlib.ExitStack() as stack:
        _opened(stack, transport, port, count)
        each = (_resident(node) - before) / count
        processes = [psutil.Process(pid) for pid in node.pids().values()]
        shares = []
        for _ in range(plan.rounds):
            used = sum(_cpu_s(process) for process in processes)
            began = time.perf_counter()
            time.sleep(plan.seconds)
            spent = sum(_cpu_s(process) for process in processes) - used
            shares.append(100 * spent / (time.perf_counter() - began))
    what = f"{count:,} idle {transport.name} connections"
    yield Line(20, f"{what}: CPU of the whole node", "% of a core", Series(tuple(shares)))
    if count == IDLE:  # so few others are lost in the rounding of pages
        yield Line(20, "... memory of the gateway for each of them", "KiB", Series((each / 1024,)))


def _opened(
    stack: contextlib.ExitStack, transport: Transport, port: int, count: int
) -> list[socket.socket]:
    return [stack.enter_context(contextlib.closing(transport.connect(port))) for _ in range(count)]


def _drain(link: socket.socket, end: bytes) -> None:
    received = b""
    while not received.endswith(end):
        received += link.recv(4_096)


def _resident(node: Node) -> int:
    size: int = psutil.Process(node.pids()["gateway"]).memory_info().rss
    return size


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _allow_descriptors(wanted: int) -> None:
    """Of this process and, as they inherit it, of the node's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise Unavailable(
                f"{wanted} open files are needed, and {hard} are allowed (ulimit -Hn)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
