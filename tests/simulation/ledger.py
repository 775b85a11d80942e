"""The ledger in the end: it balances, and whoever lost a write was told (P7).

L1  A losing write has one entry and one notice in the history; a write that stands in it has none.
L2  Entry and notice name a write that was asked for, and its client; of one write of a key one entry at most.
L3  Whoever listens has been told of each of its own, unless it was acknowledged before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from nun.core import effects as fx
from nun.core.access import CONFLICT_PREFIX
from tests.simulation.process import Failed


def notices_of(effects: Iterable[Any]) -> Counter[tuple[str, int]]:
    """(client, op id) of every notice in a history."""
    return Counter((effect[1].decode(), effect[2]) for effect in effects if effect[0] == fx.NOTICE)


def check_ledger(
    writes: Sequence[Any], effects: Iterable[Any], changes: Iterable[Any], clients: Sequence[Any]
) -> None:
    """L1 to L3."""
    asked = {(write.client, write.number): write for write in writes}
    known = {write.client for write in writes}  # others ask by hand, in stories
    notices = notices_of(effects)
    entries: dict[tuple[str, int], dict[str, Any]] = {}
    won: set[tuple[str, int]] = set()
    requests: set[tuple[Any, ...]] = set()
    for change in changes:
        key = change.key.decode()
        if not change.key.startswith(CONFLICT_PREFIX):
            won.add((key, change.op_id))
            continue
        told = json.loads(change.value)
        client = bytes.fromhex(told["client_id"]).decode()
        request = (client, told["request"], told["key"])
        write = asked.get(request[:2])
        if client in known and (write is None or told["key"] not in write.keys):
            raise Failed(f"P7: nobody asked for what entry {key} tells of: {told}")
        if (client, told["op_id"]) in entries or request in requests:
            raise Failed(f"P7: two entries for one write: {told}")
        if key != f"{CONFLICT_PREFIX.decode()}{told['key']}_{told['op_id']}":
            raise Failed(f"P7: entry {key} tells of another write: {told}")
        entries[client, told["op_id"]] = told
        requests.add(request)
    if set(entries) != set(notices) or any(count != 1 for count in notices.values()):
        raise Failed(f"P7: entries {sorted(entries)}, notices {sorted(notices.items())}")
    for _, op_id in entries:
        key = entries[_, op_id]["key"]
        if (key, op_id) in won:
            raise Failed(f"P7: {key} holds the write with op id {op_id}, and the ledger too")
    for client in clients:
        missing = unheard(client, notices)
        if missing:
            raise Failed(f"P7: {client.name} was not told of {missing}")


def unheard(client: Any, notices: Iterable[tuple[str, int]]) -> list[int]:
    """What a client that listens was not told of; nothing where it does not listen."""
    if client.told is None:
        return []
    return [op_id for name, op_id in notices if name == client.name and op_id not in client.told]
