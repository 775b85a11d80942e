"""Keys in order while others come and go, and the open entries of the ledger among them."""

from __future__ import annotations

import json
import random
from collections.abc import Collection

import pytest

from nun import messages as m
from nun.core import record
from nun.core.conflicts import arbitration, ledger
from nun.core.conflicts.ledger_keys import entry_key
from nun.core.keyspace import Table
from nun.core.ordered import OrderedKeys
from tests.support.conflicts import claimed, conflict_on, entries, made, put, resolve


@pytest.mark.parametrize("seed", range(20))
def test_they_come_in_order_each_at_least_once(seed: int) -> None:
    source = random.Random(seed)
    keys: dict[bytes, None] = {}
    order = OrderedKeys(keys)
    for _ in range(300):
        for _ in range(source.choice([1, 10, 500])):
            key = b"%x" % source.randrange(4_000)
            if key not in keys:
                keys[key] = None
                order.added((key,))
            elif source.random() < 0.7:
                del keys[key]
                order.removed()
        after = b"%x" % source.randrange(4_000) if source.random() < 0.5 else None
        prefix = source.choice([b"", b"", b"a", b"12"])
        found = list(order.beyond(after, prefix))
        assert found == sorted(found)
        assert all(key.startswith(prefix) and (after is None or key > after) for key in found)
        assert {key for key in found if key in keys} == {
            key for key in keys if key.startswith(prefix) and (after is None or key > after)
        }


def entry(state: str) -> bytes:
    return record.live(1, 1, json.dumps({"state": state, "kind": "set", "previous": 0}).encode())


@pytest.mark.parametrize("seed", range(10))
def test_a_table_knows_its_open_entries(seed: int) -> None:
    source = random.Random(seed)
    table = Table()
    for turn in range(400):
        place = entry_key(b"k%d" % source.randrange(40), source.randrange(3))
        made = source.choice([None, record.tombstone(2, 2), *map(entry, ledger.STATES)])
        table.replace(place, made)
        if turn % 50 == 49:
            table = Table(dict(table.records))  # as a node that was started anew
        wanted = [
            place
            for place, packed in sorted(table.records.items())
            if (ledger.head_of(packed) or ("",))[0] == ledger.OPEN
        ]
        found = dict.fromkeys(place for place in table.open_entries(None, b"") if place in wanted)
        assert list(found) == wanted
        kept = dict.fromkeys(place for place in table.entries(b"") if place in table.ledger)
        assert list(kept) == sorted(table.ledger)


def test_the_entry_of_a_request_is_found_without_the_order_of_all_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = made()
    client = driver.client()
    for number in range(100):
        put(client, f"key{number}", "v")
    for key in ("k", "k_1", "l"):
        conflict_on(driver, key)
    sizes = []

    def counted(keys: Collection[bytes]) -> list[bytes]:
        sizes.append(len(keys))
        return sorted(keys)

    monkeypatch.setattr("nun.core.ordered.sorted", counted, raising=False)
    writes = [ledger.write_in(1, one) for one in entries(driver)]
    has = driver.core.ledger.has_request
    assert [write.key for write in writes] == [b"k", b"k_1", b"l"]
    assert [has(write) for write in writes] == [True] * 3
    assert [has(write._replace(op_id=1)) for write in writes] == [True] * 3
    others = [write._replace(op_id=1, request=write.request + 9) for write in writes]
    assert not any(map(has, others))
    assert not has(writes[0]._replace(key=b"l"))
    assert sum(sizes) == 3, "the ledger alone was put in order, once"


def test_open_conflicts_are_found_however_many_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbitration, "KEYS_SCAN_MAX", 10)
    driver = made()
    client = driver.client()
    for number in range(20):
        conflict_on(driver, f"a{number}")
        resolve(client, claimed(client), "x").value()
    for number in range(3):
        conflict_on(driver, f"b{number}")
    for _ in range(2):
        page, after = client.request(m.CONFLICTS, 1, "open", None, 100, None).value()
        places = [place for place, _ in page]
        assert [place.partition(b"_")[2][:2] for place in places] == [b"b0", b"b1", b"b2"]
        assert after is None
        driver.restart()
        client = driver.client()
