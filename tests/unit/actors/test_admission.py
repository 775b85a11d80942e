"""Nodes with keys let in only the nodes that they know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from actors import sockets
from actors.admission import admit_only
from actors.sockets import Curve

PATIENCE_MS = 5_000
REFUSED_MS = 600


def pair() -> Curve:
    public, secret = zmq.curve_keypair()
    return Curve(public.decode(), secret.decode())


@pytest.fixture
def server() -> Iterator[tuple[sockets.Context, str, Curve, Curve]]:
    """(context, address of a node's ROUTER, its keys, the keys of the one node that it knows)."""
    context: sockets.Context = zmq.Context()
    mine, known = pair(), pair()
    guard = admit_only(context, [known.public_key])
    router = sockets.node_requests_router(context, "tcp://127.0.0.1:*", mine)
    address = router.getsockopt_string(zmq.LAST_ENDPOINT)
    try:
        yield context, address, mine, known
    finally:
        assert router.poll(0) == 0, "a request of somebody who was refused came through"
        guard.stop()
        router.close(0)
        context.destroy(0)


def ask(context: sockets.Context, address: str, keys: Curve, server_key: str) -> sockets.Socket:
    dealer = sockets.node_requests_dealer(context, address, "other", keys, server_key)
    if dealer.poll(REFUSED_MS, zmq.POLLOUT):  # connected: only then is there room for a request
        dealer.send(b"hello", zmq.NOBLOCK)
    return dealer


def test_a_node_that_is_known_comes_in() -> None:
    context: sockets.Context = zmq.Context()
    mine, known = pair(), pair()
    guard = admit_only(context, [known.public_key])
    router = sockets.node_requests_router(context, "tcp://127.0.0.1:*", mine)
    address = router.getsockopt_string(zmq.LAST_ENDPOINT)
    dealer = sockets.node_requests_dealer(context, address, "other", known, mine.public_key)
    try:
        assert dealer.poll(PATIENCE_MS, zmq.POLLOUT)
        dealer.send(b"hello")
        assert router.poll(PATIENCE_MS)
        assert router.recv_multipart() == [b"other", b"hello"]
    finally:
        guard.stop()
        context.destroy(0)


@pytest.mark.parametrize("who", ["without keys", "with keys that nobody knows"])
def test_others_are_refused(server: tuple[sockets.Context, str, Curve, Curve], who: str) -> None:
    context, address, mine, _ = server
    keys = Curve() if who == "without keys" else pair()
    dealer = ask(context, address, keys, mine.public_key)
    try:
        assert dealer.poll(REFUSED_MS) == 0
    finally:
        dealer.close(0)
