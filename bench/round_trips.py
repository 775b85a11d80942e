"""Rows 5 and 6: one operation at a time, the median of its round trip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import zmq

from bench.peers import SPIN_US, Peers
from bench.report import Line, at_most
from bench.sampling import Plan, Sample, alternate, median_us
from bench.workload import KEYS, batches, key, value
from nun.codec import pack
from nun.core import record
from nun.messages import GET

NAMES: Final = [key(number) for number in range(KEYS)]


def single_get(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 5: against a bare echo over TCP, of the mean length of a request and its reply."""
    variants: dict[str, Sample] = {"echo": _echo(peers, plan)}
    for spin in SPIN_US:
        database = peers.database(peers.node("always", spin))
        for batch in batches():
            database.set_many(batch)
        variants[spin] = _gets(database, plan)
    taken = alternate(variants, plan.rounds)
    for spin, bound in (("spin on", 1.0), ("spin off", 1.35)):
        what = f"get, round trip p50, {spin}"
        yield Line(5, what, "us", taken[spin], taken["echo"], "bare echo", at_most(bound))


def payload_bytes() -> int:
    """The mean length of a get and its reply."""
    request = pack([GET, 2**63, 100_000, 1, key(0)])
    found = record.live(1, 2**60, value(0).encode())
    reply = pack([0, 100_000, found, [1, 1, 1, 100_000], 2**60])
    return (len(request) + len(reply)) // 2


def _echo(peers: Peers, plan: Plan) -> Sample:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(peers.echo())
    peers.callback(context.destroy)
    payload = bytes(payload_bytes())

    def work(_: int) -> bytes:
        socket.send(payload)
        return socket.recv()

    return lambda: median_us(work, plan.seconds)


def _gets(database: Any, plan: Plan) -> Sample:
    get = database.get
    return lambda: median_us(lambda turn: get(NAMES[turn % KEYS]).value, plan.seconds)


def durable_set(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 6: against redis-py `set` at `appendfsync always`."""
    client = peers.redis("always").client
    text = value(1)
    variants: dict[str, Sample] = {
        "redis": lambda: median_us(lambda turn: client.set(NAMES[turn % KEYS], text), plan.seconds)
    }
    for spin in SPIN_US:
        variants[spin] = _sets(peers.database(peers.node("always", spin)), plan)
    taken = alternate(variants, plan.rounds)
    for spin, bound in (("spin on", 1.25), ("spin off", 1.65)):
        what = f"durable set, round trip p50, {spin}"
        yield Line(6, what, "us", taken[spin], taken["redis"], "set", at_most(bound))


def _sets(database: Any, plan: Plan) -> Sample:
    put = database.set
    text = value(1)
    return lambda: median_us(lambda turn: put(NAMES[turn % KEYS], text), plan.seconds)
