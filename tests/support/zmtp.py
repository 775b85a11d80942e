"""ZMTP 3 by hand, over a plain socket: for peers that no library would let one be."""

from __future__ import annotations

import socket

MORE = 0x01
_LONG = 0x02
_COMMAND = 0x04


def greeted(address: str) -> socket.socket:
    """A connection to a ZeroMQ socket without encryption, as a DEALER that may send frames now."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    peer = socket.create_connection((host, int(port)), timeout=20.0)
    peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    _read(peer, 64)
    ready = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    peer.sendall(frame(ready, _COMMAND))
    flags, size = _read(peer, 2)
    assert flags == _COMMAND, "the node answers READY with READY"
    _read(peer, size)
    return peer


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame on the wire."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | _LONG]) + len(body).to_bytes(8, "big") + body


def _read(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = peer.recv(size - len(data))
        assert more, "the node ended the connection"
        data += more
    return data
