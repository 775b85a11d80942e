"""Commands that no client of NunDB should send: noise, and good ones with something wrong in them."""

from __future__ import annotations

import random
import struct

# What a client says that has nothing but the user `fuzz`, who may write keys that begin with f.
COMMANDS: list[bytes] = [
    b"get canary", b"get-safe canary", b"set canary damage", b"set-safe canary 0 damage",
    b"set-safe canary -1 damage", b"set f1 value", b"set-safe f1 1 {\"_id\":1,\"value\":2}", b"increment f2",
    b"increment f2 7", b"increment canary 1", b"remove f1", b"remove canary", b"keys", b"keys f*", b"ls *y",
    b"watch f1", b"watch canary", b"watch $conflicts", b"unwatch f1", b"unwatch-all", b"arbiter",
    b"resolve 1 shop canary 1 damage", b"resolve x shop f1 1 v", b"get $connections", b"get $$token",
    b"set $$token damage", b"set $$permission_$fuzz rwix *", b"get $conflicts_f1_5", b"create-db other t",
    b"create-user eve t", b"set-permissions fuzz rwix *", b"snapshot true shop", b"cluster-state", b"metrics-state",
    b"debug list-dbs", b"list-commands", b"election candidate 1 x", b"election win", b"set-primary x",
    b"join 127.0.0.1:1", b"leave node1", b"rp 1 set canary damage", b"ack 1 x", b"replicate shop canary -1 damage",
    b"replicate-remove shop canary", b"replicate-since x 0",
]  # fmt: skip
TOKENS: list[bytes] = [
    b"use-db shop fuzz fuzz-pwd",
    b"use-db nowhere t",
    b"auth nun wrong",
]  # trying one is slow
_WORDS: list[bytes] = [
    b"", b" ", b"\0", b"\r", b"\n", b";", b"\x1b[2J", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", "é🦊".encode(), b"$",
    b"$$", b"$$user_fuzz", b"$conflicts_f1_1", b"-1", b"-2", b"-2147483648", b"2147483647", b"99999999999999999999",
    b"1e9", b"1_0", b"<Empty>", b"{", b"null", b"f*", b"*", b"%s%n", b"../../etc", b"\ncreate-db pwned t\n",
]  # fmt: skip


class TextFuzz:
    """Makes commands."""

    def __init__(self, source: random.Random) -> None:
        self.random = source

    def command(self) -> bytes:
        """One input; it may hold separators, and so be several commands."""
        source = self.random
        shape = source.randrange(12)
        if shape == 0:
            return source.randbytes(source.randrange(80))
        good = source.choice(COMMANDS if source.random() > 0.002 else TOKENS)
        if shape < 4:
            return good
        if shape < 7:
            return self._flipped(good)
        if shape == 7:
            return good[: source.randrange(len(good) + 1)]
        if shape == 8:
            return good + source.choice(_WORDS) + source.choice(COMMANDS)
        if shape == 9 and source.random() < 0.02:
            unit, most = source.choice(
                ((b"v", 500_000), (b" ", 50_000), (b"\xff", 50_000), (b"\n;", 5_000))
            )
            return good + b" " + unit * source.randrange(most)
        parts = good.split(b" ")
        parts[source.randrange(len(parts))] = source.choice(_WORDS)
        if source.random() < 0.2:
            parts.insert(source.randrange(len(parts) + 1), source.choice(_WORDS))
        return b" ".join(parts)

    def _flipped(self, good: bytes) -> bytes:
        source = self.random
        made = bytearray(good)
        for _ in range(source.randrange(1, 4)):
            at = source.randrange(len(made))
            match source.randrange(4):
                case 0:
                    made[at] ^= 1 << source.randrange(8)
                case 1:
                    made[at] = source.randrange(256)
                case 2:
                    made.insert(at, source.randrange(32))
                case _ if len(made) > 1:
                    del made[at]
        return bytes(made)

    def pieces(self, data: bytes, most: int = 4) -> list[bytes]:
        """The same bytes, cut at random places."""
        cuts = sorted(
            self.random.randrange(len(data) + 1) for _ in range(self.random.randrange(most))
        )
        return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    # WebSocket frames

    def frames(self, payload: bytes) -> bytes:
        """A message as a client may send it: text or binary, in one frame or several, with pings between them."""
        source = self.random
        opcode = 1 if source.random() < 0.8 else 2
        parts = self.pieces(payload) if source.random() < 0.2 else [payload]
        made = []
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            made.append(frame(opcode if index == 0 else 0, part, last, source.randbytes(4)))
            if source.random() < 0.05:
                made.append(frame(source.choice((9, 10)), source.randbytes(source.randrange(126))))
        return b"".join(made)

    def broken_frames(self) -> bytes:
        """What ends a WebSocket: against the protocol, too long, or a good-bye."""
        source = self.random
        noise = source.randbytes(source.randrange(1, 60))
        match source.randrange(9):
            case 0:
                return noise
            case 1:
                return frame(source.choice((3, 7, 11, 15)), noise)
            case 2:
                return bytes([0xC1 | source.choice((0x10, 0x20))]) + frame(1, noise)[1:]
            case 3:
                return b"\x81\xff" + struct.pack(">Q", 2**62) + noise
            case 4:
                return b"\x81\xff" + struct.pack(">Q", 100 * 2**20) + b"\0\0\0\0" + noise
            case 5:
                return b"\x81" + bytes([len(noise)]) + noise  # without a mask
            case 6:
                return frame(9, b"x" * 126)
            case 7:
                return frame(
                    8, source.choice((b"", b"\x03", b"\x03\xe8", b"\0\0", b"\x03\xe8\xff\xfe"))
                )
            case _:
                return frame(0, noise) + frame(1, noise, False) + frame(1, noise)


def frame(opcode: int, payload: bytes, last: bool = True, mask: bytes = b"\0\0\0\0") -> bytes:
    """A frame as a client sends it (RFC 6455, 5.2)."""
    size = len(payload)
    head = bytes([opcode | 0x80 * last])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65_536:
        head += b"\xfe" + struct.pack(">H", size)
    else:
        head += b"\xff" + struct.pack(">Q", size)
    if any(mask):
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        payload = (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")
    return head + mask + payload
