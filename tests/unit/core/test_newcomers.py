"""The first entry of a node that begins on files of NunDB: tokens, open conflicts, and what cannot be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.core.conflicts.ledger import head_of
from nun.core.conflicts.ledger_keys import entry_key
from nun.core.network import NetworkCore
from nun.core.newcomers import secrets_in_clear
from nun.core.state import NodeState
from tests.support.core_driver import CLUSTER, SETTINGS

NOW_MS = 1_764_100_000_000
OP = 1_764_000_000_000_000_000
Records = dict[str, tuple[int, str]]


def resolve(key: str, number: int, version: int, old: str, new: str) -> tuple[str, tuple[int, str]]:
    """A record of NunDB for a write that waits."""
    place = f"$conflicts_{key}_{OP + number}"
    return place, (0, f"resolve {OP + number} shop {version} {key} {old} {new}")


class Start:
    """A core that begins on one database; what its first entry holds."""

    def __init__(self, records: Records, strategy: str = "arbiter") -> None:
        state = NodeState()
        state.take_database((fx.DATABASE, 1, "shop", {"strategy": strategy}))
        table = {
            key.encode(): record.live(version, (1 << 32 | at + 1) * TICK, value.encode())
            for at, (key, (version, value)) in enumerate(sorted(records.items()))
        }
        self.clear = dict(secrets_in_clear(state, {1: table}))
        before = dict(table)
        chances = iter(range(1, 100))
        self.core = NetworkCore(SETTINGS, 1, 1, CLUSTER, state, {1: table}, chances.__next__, 1)
        self.core.roles.newcomers.hashes = {
            key: b"hash of " + was for key, was in self.clear.items()
        }
        self.core.begin(NOW_MS)
        self.core.close()
        out = self.core.take_output()
        assert out.publish is not None
        self.position, effects = fx.decode_entry(out.publish)
        self.state_of_log = NodeState()
        self.state_of_log.apply(self.position, effects)
        for change in fx.record_changes(effects):
            for key, packed in zip(change.keys, change.records, strict=True):
                if packed is None:
                    before.pop(key)
                else:
                    before[key] = packed
        self.replayed = before
        self.records = self.core.tables[1].records
        [self.told] = [fields for event, fields in out.notes if event == "taken_in_from_nundb"]

    def queue(self, key: str) -> list[tuple[str, dict[str, Any] | None]]:
        """(value, current) of the open entries of a key, oldest first."""
        queue = self.core.conflicts.queue_of(1, key.encode())
        if queue is None:
            return []
        found = [
            json.loads(record.value_of(self.records[entry_key(key.encode(), one.op_id)]))
            for one in queue.entries
        ]
        return [(entry["value"], entry.get("current")) for entry in found]

    def held(self, key: str) -> tuple[int, bytes, bool]:
        packed = self.records[key.encode()]
        version, value = record.version_of(packed), record.value_of(packed)
        return version, value, record.is_in_conflict(packed)


def test_all_of_it_is_in_the_first_entry_and_replays_to_the_same() -> None:
    start = Start(
        dict(
            [
                ("$$token", (0, "t")),
                ("$$user_ann", (1, "u")),
                ("k", (1, "v1")),
                resolve("k", 1, 2, "v1", "v2"),
                resolve("k", 2, 1, f"$conflicts_k_{OP + 1}", "v3 and more"),
                ("$conflicts_k_5", (1, "resolved v0")),
            ]
        )
    )
    assert start.position.seq == 1
    assert start.replayed == start.records
    assert start.clear == {(1, b"$$token"): b"t", (1, b"$$user_ann"): b"u"}
    assert record.value_of(start.records[b"$$token"]) == b"hash of t"
    assert start.held("k") == (2, b"v1", True)
    [(first, current), (second, behind)] = start.queue("k")
    assert (first, second, behind) == ("v2", "v3 and more", None)
    assert current == {"value": "v1", "version": 2, "op_id": record.op_id_of(start.records[b"k"])}
    assert [key for key in start.records if key.startswith(b"$conflicts_k_176")] == []
    assert b"$conflicts_k_5" not in start.records
    assert start.told == {"databases": 1, "tokens_hashed": 2, "conflicts": 2}
    assert sum(head_of(packed) is not None for packed in start.records.values()) == 2


def test_the_log_says_which_databases_there_were() -> None:
    """A node that is given the log alone, once they are dropped, must not give their numbers again."""
    start = Start({"k": (1, "v")})
    assert start.state_of_log.dump() == start.core.state.dump()
    assert (start.state_of_log.next_database, start.state_of_log.databases[1].name) == (2, "shop")


def test_where_old_ends_is_known_from_what_the_key_holds() -> None:
    start = Start(dict([("k", (1, "a b c")), resolve("k", 1, 4, "a b c", "d e")]))
    assert start.queue("k") == [
        ("d e", {"value": "a b c", "version": 4, "op_id": (1 << 32 | 2) * TICK})
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"resolve {OP} shop 1 k neither here nor there",
        f"resolve {OP + 1} shop 1 k v1 v2",
        f"resolve {OP} shop 1 other v1 v2",
        f"resolve {OP} shop 1 k",
        f"resolve {OP} shop one k v1 v2",
        "resolve",
        "anything else",
        "",
        '{"state": "open"}',
    ],
)
def test_what_cannot_be_taken_apart_stays_readable_and_is_told(text: str) -> None:
    place = f"$conflicts_k_{OP}"
    start = Start({"k": (1, "v1"), place: (0, text)})
    assert record.value_of(start.records[place.encode()]) == text.encode()
    assert start.queue("k") == []
    assert start.held("k") == (1, b"v1", False)
    assert start.told["records"] == [place]


@pytest.mark.parametrize(
    "place", ["$conflicts_", "$conflicts_k", "$conflicts__7", "$conflicts_k_x7"]
)
def test_names_that_are_no_records_are_left_alone(place: str) -> None:
    assert Start({place: (0, "resolve 7 shop 1 k a b")}).told["records"] == [place]


def test_a_key_that_is_gone_is_in_conflict_over_nothing() -> None:
    start = Start(dict([resolve("k", 1, 3, "v1", "v2")]))
    assert start.queue("k") == [("v2", None)]
    assert record.is_in_conflict(start.records[b"k"])
    assert not record.is_live(start.records[b"k"])


@pytest.mark.parametrize("strategy", ["none", "newer", "arbiter"])
def test_what_waits_waits_under_every_strategy(strategy: str) -> None:
    start = Start(dict([("k", (7, "v1")), resolve("k", 1, 3, "v1", "v2")]), strategy)
    assert start.held("k") == (7, b"v1", True)  # its own version, where it has one


@pytest.mark.parametrize("version", [-2, 2**31 - 1, 2**31, 10**30])
def test_versions_that_say_nothing_are_not_taken(version: int) -> None:
    start = Start(dict([("k", (1, "v1")), resolve("k", 1, version, "v1", "v2")]))
    assert start.held("k") == (1, b"v1", True)


def test_the_queue_is_in_the_order_of_writing_whatever_the_names_sort_like() -> None:
    records = dict([("k", (1, "v")), resolve("k", 0, 1, "v", "third")])
    records["$conflicts_k_9"] = (0, "resolve 9 shop 1 k v first")
    records["$conflicts_k_10"] = (0, "resolve 10 shop 1 k $conflicts_k_9 second")
    assert [value for value, _ in Start(records).queue("k")] == ["first", "second", "third"]


def test_system_keys_never_go_in_conflict() -> None:
    place = f"$conflicts_$$token_{OP}"
    start = Start({"$$token": (0, "t"), place: (0, f"resolve {OP} shop 0 $$token t u")})
    assert start.told["records"] == [place]


def test_a_later_epoch_takes_nothing_in() -> None:
    start = Start(dict([("$$token", (0, "t")), ("k", (1, "v1")), resolve("k", 1, 2, "v1", "v2")]))
    state = NodeState.load(start.core.state.dump())
    assert secrets_in_clear(state, {1: dict(start.records)}) == {}
    tables = {1: dict(start.records)}
    again = NetworkCore(SETTINGS, 1, 2, CLUSTER, state, tables, iter(range(9)).__next__, 1)
    again.begin(NOW_MS + 1)
    assert again.tables[1].records == start.records
    assert len(again.conflicts.queues[1][b"k"].entries) == 1
