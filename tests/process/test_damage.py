"""P9: bytes that changed on disk are found when the node starts: a clear line, an exit, and none of them served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import nun
from tests.support.node import ADMIN, Node

pytestmark = pytest.mark.process

MARK = b"a value that is easy to find"


def flip(path: Path, inside: bytes) -> None:
    """Changes one bit of a file, where these bytes stand."""
    data = bytearray(path.read_bytes())
    at = data.index(inside) + len(inside) // 2
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("snapshot", "pattern", "inside", "names"),
    [
        (True, "shop-nun.data.values", MARK, "shop-nun.data."),
        (True, "shop-nun.data.keys", b"the key", "shop-nun.data."),
        (False, "oplog/*.log", MARK, "oplog/"),
    ],
    ids=["values", "keys", "log"],
)
def test_a_flipped_bit_is_refused_by_name(
    start_node: Callable[..., Node], snapshot: bool, pattern: str, inside: bytes, names: str
) -> None:
    node = start_node({"storage": {"snapshot_interval_s": 0}})
    with nun.Client(node.address, **ADMIN) as client:
        client.create_database("shop", token="t")
        database = client.database("shop", token="t")
        database.set("the key", MARK)
        database.set("another", "later")
        if snapshot:
            client.snapshot(["shop"])
        else:
            for number in range(3):  # behind the damage, so that it cannot be a torn tail
                database.set("more", str(number))
    node.kill("node")
    flip(next(p for p in node.data_dir.glob(pattern) if inside in p.read_bytes()), inside)
    node.launch()
    assert node.wait_exit() == 3, node.tail()
    text = node.tail(20)
    assert names in text, text
    assert ": damaged at byte " in text, text
    assert "Traceback" not in text, text
