"""Batches in databases whose records are signed: what is decided in bulk is what the whole rule decides."""

from __future__ import annotations

from typing import Any

import pytest

from nun import messages as m
from nun.codec import pack
from nun.core import record
from nun.core.keyspace import Table
from nun.errors import NotANumber
from tests.support.conflicts import made, put
from tests.support.core_driver import CoreDriver, DrivenClient

KINDS = bytes([m.SET, m.SET, m.INCREMENT, m.SET, m.REMOVE, m.SET, m.SET])
KEYS = ["a", "b", "n", "new", "a", "a", "b"]
ARGUMENTS = ["1", "2", 5, "3", None, "4", "6"]
WHOLE_RULE = {6: [0, 0, False]}  # a condition that always holds: nothing is decided in bulk


def batch(client: DrivenClient, conditions: Any = None, atomic: bool = False) -> Any:
    payload = pack([KEYS, ARGUMENTS])
    return client.write(m.BATCH, 1, atomic, KINDS, payload, conditions)


def begun(**options: Any) -> tuple[CoreDriver, DrivenClient]:
    driver = made(**options)
    client = driver.client()
    for key in ("a", "b", "n"):
        put(client, key, "7").value()
    return driver, client


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "newer"},
        {"strategy": "older"},
        {"strategy": "newer", "prefixes": {"b": "older"}},
        {"strategy": "newer", "prefixes": {"b": "arbiter"}},
    ],
)
def test_what_is_decided_in_bulk_is_what_the_whole_rule_decides(options: dict[str, Any]) -> None:
    tables, frames, answers = [], [], []
    for conditions in (None, WHOLE_RULE):
        driver, client = begun(**options)
        answers.append(batch(client, conditions).value())
        tables.append(driver.core.tables[1])
        frames.append(driver.frames)
        again = Table(dict(tables[-1].records))
        for count in ("live", "special", "bytes"):
            assert getattr(tables[-1], count) == getattr(again, count), count
        driver.crash()
        assert driver.core.tables[1].records == tables[-1].records
        assert driver.core.state.highest_op_id >= max(map(record.op_id_of, again.records.values()))
    assert tables[0].records == tables[1].records
    assert frames[0] == frames[1]
    assert answers[0] == answers[1]


def test_an_atomic_batch_that_fails_leaves_signed_records_as_they_were() -> None:
    driver, client = begun(strategy="newer")
    put(client, "n", "no number").value()
    table = driver.core.tables[1]
    before = dict(table.records), table.live, table.special, table.bytes
    assert batch(client, atomic=True).status
    assert (table.records, table.live, table.special, table.bytes) == before
    assert batch(client).value()[2][0] == NotANumber.code
