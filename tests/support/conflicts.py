"""Writers, arbiters and the ledger of a driven network core."""

from __future__ import annotations

import json
from typing import Any

from nun import messages as m
from nun.codec import unpack
from nun.core import record
from nun.errors import (
    ConflictPending,
)
from tests.support.core_driver import CoreDriver, DrivenClient, with_database
from tests.support.raw_client import Reply

BASE = m.ON_BASE


def made(**options: Any) -> CoreDriver:
    return with_database(**{"strategy": "arbiter", **options})


def put(client: DrivenClient, key: str, value: str, base: int | None = None) -> Reply:
    condition = None if base is None else [BASE, base, False]
    return client.write(m.SET, 1, key, value, condition)


def value_of(driver: CoreDriver, key: bytes) -> bytes | None:
    packed = driver.core.tables[1].records.get(key)
    return None if packed is None or not record.is_live(packed) else record.value_of(packed)


def entries(driver: CoreDriver) -> list[dict[str, Any]]:
    table = driver.core.tables[1]
    found = [json.loads(record.value_of(table.records[place])) for place in table.ledger]
    return sorted(found, key=lambda entry: int(entry["op_id"]))


def states(driver: CoreDriver) -> list[tuple[Any, str]]:
    return [(entry["value"], entry["state"]) for entry in entries(driver)]


def conflict_on(driver: CoreDriver, key: str = "k") -> tuple[DrivenClient, int, int]:
    """Two writers made on the same record; (the loser, the base, the loser's op id)."""
    one, two = driver.client(), driver.client()
    base = put(one, key, "old").op_id
    assert base is not None
    put(one, key, "first", base).value()
    lost = put(two, key, "second", base)
    assert lost.status == ConflictPending.code
    return two, base, int(lost.result[1][b"conflict"])


def claim(client: DrivenClient, arbiter: bytes = b"a1", lease_ms: int = 10_000) -> int:
    """Asks for a key; returns the number of the request."""
    number = client.next_number()
    client.driver.receive(client.message(number, m.CLAIM, 1, arbiter, 5_000, lease_ms))
    client.driver.sync()
    return number


def claimed(client: DrivenClient, arbiter: bytes = b"a1", lease_ms: int = 10_000) -> Any:
    reply = client.reply_to(claim(client, arbiter, lease_ms))
    return None if reply is None else reply.value()


def resolve(client: DrivenClient, offer: Any, value: str, **other: Any) -> Reply:
    attempt, key, _, shown, _, found, _ = offer
    op_ids = other.get("op_ids", [entry[0] for entry in found])
    return client.write(
        m.RESOLVE,
        1,
        key,
        m.SET,
        value,
        other.get("shown", shown),
        op_ids,
        other.get("attempt", attempt),
    )


def notices(client: DrivenClient) -> list[tuple[str, bytes]]:
    """(state, value) of the notices that the client gets."""
    client.request(m.OUTCOMES).value()
    found = []
    for peer, message in list(client.driver.sent):
        if peer == client.peer and message[0] == m.OUTCOME:
            told = unpack(message[2])
            found.append((told[b"state"].decode(), told[b"value"]))
            client.driver.sent.remove((peer, message))
    return found
