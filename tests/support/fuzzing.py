"""Messages that no client should send: random bytes, random values, and good messages with something wrong in them."""

from __future__ import annotations

import random
from typing import Any

from nun import messages as m
from nun.codec import pack

# One good message of each kind; None stands for the session's token.
TEMPLATES: list[list[Any]] = [
    [m.HELLO, 1, 5, b"client", None, None, None],
    [m.HELLO, 1, 5, b"client", 7, b"nobody", b"wrong"],
    [m.PING, None, 5, None],
    [m.USE, None, 5, b"d", None, b"wrong"],
    [m.GET, None, 5, 1, b"k1"],
    [m.GET_MANY, None, 5, 1, [b"k1", b"k2"]],
    [m.SET, None, 5, 0, 1, b"k1", b"damage", None],
    [m.SET, None, 5, 0, 1, b"k1", b"damage", [m.ON_VERSION, 3, False]],
    [m.REMOVE, None, 5, 0, 1, b"k1", None],
    [m.INCREMENT, None, 5, 0, 1, b"n", 1],
    [m.SET_MANY, None, 5, 0, 1, pack([[b"k1", b"k2"], [b"damage", b"damage"]])],
    [m.BATCH, None, 5, 0, 1, True, bytes([m.SET, m.GET]), pack([[b"k1", b"k2"], [b"x", None]]), {}],
    [m.KEYS, None, 5, 1, b"k*", 10, None],
    [m.WATCH, None, 5, 1, m.WATCH_PREFIX, b"k", [1, 1, 1, 2], 1000],
    [m.CREDIT, None, 0, 1, 1000],
    [m.UNWATCH, None, 5, 1],
    [m.BYE, None, 5],
    [m.CREATE_DATABASE, None, 5, 0, b"other", b"t", {}],
    [m.ALTER_DATABASE, None, 5, 0, b"d", b"t2", {b"strategy": b"none"}],
    [m.DROP_DATABASE, None, 5, 0, b"d"],
    [m.DATABASES, None, 5],
    [m.CREATE_USER, None, 5, 0, b"d", b"eve", b"t"],
    [m.DROP_USER, None, 5, 0, b"d", b"reader"],
    [m.SET_PERMISSIONS, None, 5, 0, b"d", b"reader", b"rwix *"],
    [m.SNAPSHOT, None, 5, None, True],
    [m.STATUS, None, 5],
]


class Fuzz:
    """Makes messages: random bytes, random values, and good messages with something wrong in them."""

    def __init__(self, source: random.Random) -> None:
        self.random = source

    def value(self, depth: int = 0) -> Any:
        source = self.random
        match source.randrange(12 if depth < 4 else 9):
            case 0:
                return None
            case 1:
                return source.random() < 0.5
            case 2:
                return source.choice([0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1])
            case 3:
                return source.randrange(-300, 300)
            case 4 | 5:
                return source.randbytes(source.randrange(20))
            case 6:
                return source.choice(
                    ["", "$$token", "$$user_all", "k1", "a" * 5000, "\u0000\uffff"]
                )
            case 7:
                return source.random() * 10 ** source.randrange(-300, 300)
            case 8:
                return source.choice([b"d", b"k1", b"n", b"\xff\xfe", b"$connections"])
            case 9:
                return {source.randrange(9): self.value(depth + 1) for _ in range(3)}
            case _:
                return [self.value(depth + 1) for _ in range(source.randrange(6))]

    def message(self, token: Any) -> bytes:
        source = self.random
        shape = source.randrange(10)
        if shape == 0:
            return source.randbytes(source.randrange(60))
        if shape == 1:
            return pack(self.value())
        good = [token if item is None and i == 1 else item for i, item in enumerate(self.pick())]
        if shape == 2:
            packed = bytearray(pack(good))
            for _ in range(source.randrange(1, 4)):
                packed[source.randrange(len(packed))] ^= 1 << source.randrange(8)
            return bytes(packed)
        if shape == 3:
            packed = bytearray(pack(good))
            return bytes(packed[: source.randrange(len(packed))])
        if shape == 4:
            return pack(good) + source.randbytes(source.randrange(1, 9))
        if shape == 5:
            del good[source.randrange(len(good))]
        elif shape == 6:
            good.insert(source.randrange(len(good) + 1), self.value())
        else:
            for _ in range(source.randrange(1, 3)):
                at = source.randrange(len(good))
                if at != 1 or source.random() < 0.1:
                    good[at] = self.value()
        return pack(good)

    def pick(self) -> list[Any]:
        return list(self.random.choice(TEMPLATES))

    def frames(self, token: Any) -> list[bytes]:
        message = self.message(token)
        if self.random.random() < 0.03:
            return self.random.choice([[b"", message], [message, message], [b"peer", b"", message]])
        return [message]
