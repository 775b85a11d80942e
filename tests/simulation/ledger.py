"""The ledger in the end: it balances, and whoever lost a write was told (P7).

L1  Entry and notice name a write that was asked for, and its client. A write that stands in the ledger holds no key;
    but where a promotion was forced, one that could not be told from a repeat may have been one.
    That one write of a key has one entry is the model's to say (M7).
L2  Who was told that its write is done, and has lost it since, has one notice; so has everyone whose write waited.
L3  Whoever listens has been told of each of its own, unless it was acknowledged before.
L4  Every node counts the same; the primary's queues are those of the history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from nun.core import effects as fx
from nun.core import record
from nun.core.conflicts import ledger
from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX
from tests.simulation.model import OPEN, Model
from tests.simulation.process import Failed

_TOO_LATE: Final = "it came too late to be told from a repeat"


def doubtful(model: Model) -> set[int]:
    """Op ids of writes that the ledger has since nobody could tell any more whether they had been done."""
    return {told["op_id"] for told in model.entries.values() if told.get("reason") == _TOO_LATE}


def notices_of(effects: Iterable[Any]) -> Counter[tuple[str, int]]:
    """(client, op id) of every notice in a history."""
    return Counter((effect[1].decode(), effect[2]) for effect in effects if effect[0] == fx.NOTICE)


def check_ledger(
    writes: Sequence[Any],
    model: Model,
    changes: Iterable[Any],
    clients: Sequence[Any],
    unsure: Collection[int],
) -> None:
    """L1 to L3.

    Args:
        unsure: op ids of writes that the ledger may have though they were done.
    """
    asked = {(write.client, write.number): write for write in writes}
    known = {write.client for write in writes}  # others ask by hand, in stories
    acked = {op_id for write in writes for op_id in write.acked.values() if write.ending == "done"}
    won = {
        (change.key.decode(), change.op_id)
        for change in changes
        if not change.made and not change.key.startswith(CONFLICT_PREFIX)
    }
    for told in model.entries.values():
        client = bytes.fromhex(told["client_id"]).decode()
        write = asked.get((client, told["request"]))
        if client in known and (write is None or told["key"] not in write.keys):
            raise Failed(f"P7: nobody asked for what an entry tells of: {told}")
        wrote = (told["key"], told["op_id"])
        if wrote in won and told["state"] != "decided" and told["op_id"] not in unsure:
            raise Failed(f"P7: {told['key']} holds a write that the ledger has too: {told}")
        count = model.notices[client, told["op_id"]]
        waited = told["state"] in ("resolved", "expired") or "result" in told
        if told["state"] == OPEN or not (waited or wrote in won or told["op_id"] in acked):
            expected = (0,) if told["state"] == OPEN else (0, 1)
        else:
            expected = (1,)
        if client and count not in expected:
            raise Failed(f"P7: {client} has {count} notices, expected {expected}, of {told}")
    for client in clients:
        missing = unheard(client, model.notices)
        if missing:
            raise Failed(f"P7: {client.name} was not told of {missing}")


def check_counts(model: Model, database: int, nodes: Iterable[Any]) -> None:
    """L4"""
    states = Counter(
        told["state"]
        for place, told in model.entries.items()
        if record.is_live(model.records.get(place))
    )
    queues = {key: queue for (where, key), queue in model.queues.items() if where == database}
    for node in nodes:
        core = node.network.core
        found = ledger.count(core)
        expected = {state: states[state] for state in ledger.STATES}
        if found != {"opened": sum(expected.values()), **expected}:
            raise Failed(f"P7: {node.name} counts {found}, the history has {expected}")
        held = {
            key: [one.op_id for one in queue.entries]
            for key, queue in core.conflicts.queues.get(database, {}).items()
        }
        if held != (queues if core.decides else {}):
            raise Failed(f"P7: {node.name} has the queues {held}, the history {queues}")


def unheard(client: Any, notices: Iterable[tuple[str, int]]) -> list[int]:
    """What a client that listens was not told of; nothing where it does not listen."""
    if client.told is None:
        return []
    return [op_id for name, op_id in notices if name == client.name and op_id not in client.told]
