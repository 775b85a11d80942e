"""NunDB's data directories, written and read from its description alone: nothing here uses the code under test.

write(path, {"shop": Database({"$$token": (0, "t"), "k": (2, "v")}, strategy=2)})
read(path)["shop"].records["k"] == (2, "v")
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

NONE, NEWER, ARBITER = 0, 1, 2
REMOVED = -1


@dataclass
class Database:
    """Keys with version and value in the order of the file, and the strategy's number; None: no metadata."""

    records: dict[str, tuple[int, str]] = field(default_factory=dict)
    strategy: int | None = NONE
    number: int = 1


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def write(path: Path, databases: Mapping[str, Database]) -> Path:
    """Makes a directory as NunDB's snapshots leave it."""
    path.mkdir(parents=True, exist_ok=True)
    names: dict[str, int] = {}
    for number, (name, database) in enumerate(databases.items()):
        keys, values = b"", b""
        for key, (version, value) in database.records.items():
            names.setdefault(key, len(names))
            address = 0 if version == REMOVED else len(values)
            keys += text(key) + struct.pack("<iQ", version, address)
            values += text(value) + struct.pack("<i", 0)
        (path / f"{name}-nun.data.keys").write_bytes(keys)
        (path / f"{name}-nun.data.values").write_bytes(values)
        if database.strategy is not None:
            metadata = struct.pack("<Qi", number, database.strategy)
            (path / f"{name}-nun.madadata").write_bytes(metadata)
    mapped = b"".join(text(key) + struct.pack("<Q", number) for key, number in names.items())
    (path / "keys-nun.keys").write_bytes(struct.pack("<Q", len(names)) + mapped)
    operation = struct.pack("<QQQB", 1764000000000000000, 1, 1, 2)
    (path / "oplog-nun.op").write_bytes(operation)
    (path / "oplog").mkdir()
    (path / "oplog" / "oplog-nun-1764000000000000000.op").write_bytes(operation)
    (path / "is-oplog.valid").write_bytes(b"\x01")
    return path


def read(path: Path) -> dict[str, Database]:
    """What NunDB would load: every file to its last byte, the text at the address even of what was removed."""
    found = {}
    for file in sorted(path.glob("*-nun.data.keys")):
        name = file.name.removesuffix("-nun.data.keys")
        keys = file.read_bytes()
        values = (path / f"{name}-nun.data.values").read_bytes()
        database = Database()
        at = 0
        while at < len(keys):
            (length,) = struct.unpack_from("<Q", keys, at)
            key = keys[at + 8 : at + 8 + length].decode()
            version, address = struct.unpack_from("<iQ", keys, at + 8 + length)
            at += 20 + length
            (size,) = struct.unpack_from("<Q", values, address)
            value = values[address + 8 : address + 8 + size]
            (status,) = struct.unpack_from("<i", values, address + 8 + size)
            assert (len(value), status) == (size, 0), key
            if version != REMOVED:
                database.records[key] = (version, value.decode())
        assert at == len(keys)
        database.number, database.strategy = struct.unpack(
            "<Qi", (path / f"{name}-nun.madadata").read_bytes()
        )
        found[name] = database
    return found


def read_names(path: Path) -> dict[str, int]:
    """The names of all keys with their numbers, as NunDB's operation log counts them."""
    data = (path / "keys-nun.keys").read_bytes()
    (count,) = struct.unpack_from("<Q", data)
    at, names = 8, {}
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        key = data[at + 8 : at + 8 + length].decode()
        (names[key],) = struct.unpack_from("<Q", data, at + 8 + length)
        at += 16 + length
    assert at == len(data)
    return names


def shop() -> dict[str, Database]:
    """A directory with something of all that there is: what NunDB 0.1 left after a day."""
    chain = "$conflicts_k_1764000000000000299"
    return {
        "shop": Database(
            {
                "$$token": (0, "shop-token"),
                "$connections": (7, "3"),
                "$$user_ann": (1, "ann-token"),
                "$$permission_$ann": (1, "rw user-*|r k"),
                "name": (3, "mary"),
                "city": (0, "são joão\n"),
                "gone": (-1, ""),
                "odd": (-5, "kept"),
                "parked": (-2, "nobody remembers why"),
                "k": (-2, "v1"),
                chain: (0, "resolve 1764000000000000299 shop 2 k v1 v2"),
                "$conflicts_k_1764000000000000389": (
                    0,
                    f"resolve 1764000000000000389 shop 1 k {chain} v3",
                ),
                "said": (-2, "good morning"),
                "$conflicts_said_1764000000000000500": (
                    0,
                    "resolve 1764000000000000500 shop 4 said good morning good night",
                ),
                "$conflicts_said_1763000000000000001": (1, "resolved good morning"),
                "$conflicts_name_17": (0, "resolve 17 shop 1 name not what it holds"),
            },
            ARBITER,
        ),
        "plain": Database({"$$token": (0, "p"), "name": (1, "jose")}, NONE),
        "latest": Database({"$$token": (0, "l"), "name": (1, "anna")}, None),
        "$admin": Database({"$$token": (0, "admin secret"), "shop": (1, "{}")}, NEWER),
    }
