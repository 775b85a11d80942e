"""What NunDB left in a directory, read byte by byte, and that none of its own defects came along."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from nun.core import effects as fx
from nun.core import record
from nun.core.clock import TICK
from nun.errors import DamagedFile, StorageError
from storage import copying, nundb
from storage.oplog import LogReader
from storage.recovery import load
from storage.snapshot import Snapshots
from tests.support.sim_disk import Crashed, SimDisk
from tests.support.snapshots import Node, recovered, view

TOKEN_KEY = bytes.fromhex("0700000000000000 2424746f6b656e 00000000 0000000000000000")
TOKEN_VALUE = bytes.fromhex("0300000000000000 616263 00000000")


def key_record(key: str, version: int, address: int) -> bytes:
    encoded = key.encode()
    return struct.pack("<Q", len(encoded)) + encoded + struct.pack("<iQ", version, address)


def value_record(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(4)


def legacy_map(pairs: list[tuple[str, str]]) -> bytes:
    texts = [text.encode() for pair in pairs for text in pair]
    return struct.pack("<Q", len(pairs)) + b"".join(
        struct.pack("<Q", len(text)) + text for text in texts
    )


def directory(
    rows: list[tuple[str, int, str]], name: str = "shop", strategy: int | None = 0
) -> SimDisk:
    """Keys with versions and values, each value at the next free place."""
    disk = SimDisk()
    keys, values = b"", b""
    for key, version, value in rows:
        keys += key_record(key, version, 0 if version == -1 else len(values))
        values += value_record(value)
    disk.put(f"{name}-nun.data.keys", keys)
    disk.put(f"{name}-nun.data.values", values)
    if strategy is not None:
        disk.put(f"{name}-nun.madadata", struct.pack("<Qi", 1, strategy))
    return disk


def read(disk: SimDisk, name: str = "shop") -> dict[str, tuple[int, str]]:
    records = nundb.read(disk, name, 1).records
    return {
        key.decode(): (record.version_of(packed), record.value_of(packed).decode())
        for key, packed in records.items()
    }


def as_nundb_reads(disk: SimDisk, name: str) -> dict[str, tuple[int, str]]:
    """NunDB's own way: key after key, and the text at every address, even of those that were removed."""
    keys = disk.content(f"{name}-nun.data.keys")
    values = disk.content(f"{name}-nun.data.values")
    found = {}
    at = 0
    while at < len(keys):
        (length,) = struct.unpack_from("<Q", keys, at)
        key = keys[at + 8 : at + 8 + length].decode()
        version, address = struct.unpack_from("<iQ", keys, at + 8 + length)
        at += 20 + length
        (size,) = struct.unpack_from("<Q", values, address)
        assert address + 8 + size <= len(values), key
        value = values[address + 8 : address + 8 + size].decode()
        if version != -1:
            found[key] = (version, value)
    return found


class TestReading:
    def test_golden_bytes(self) -> None:
        disk = SimDisk()
        disk.put("shop-nun.data.keys", TOKEN_KEY)
        disk.put("shop-nun.data.values", TOKEN_VALUE)
        disk.put("shop-nun.madadata", bytes.fromhex("0100000000000000 02000000"))
        found = nundb.read(disk, "shop", 3)
        assert found.options == {"strategy": "arbiter", "migrated_from": "nundb"}
        assert found.records == {b"$$token": record.live(0, (3 << 32 | 1) * TICK, b"abc")}

    def test_the_last_of_several_records_of_a_key_counts(self) -> None:
        assert read(directory([("a", 1, "old"), ("b", 4, "x"), ("a", 2, "new")])) == {
            "a": (2, "new"),
            "b": (4, "x"),
        }

    def test_a_removed_key_is_not_there_whatever_lies_before(self) -> None:
        """NunDB's `increment` made duplicates of which `remove` marked only one: the key came back."""
        assert read(directory([("a", 1, "1"), ("a", 1, "2"), ("a", -1, "")])) == {}
        assert read(directory([("a", -1, ""), ("a", 1, "again")])) == {"a": (1, "again")}

    def test_a_removed_key_needs_no_value(self) -> None:
        disk = SimDisk()
        disk.put("shop-nun.data.keys", key_record("a", -1, 0))
        assert read(disk) == {}

    @pytest.mark.parametrize("version", [-2, -3, -(2**31)])
    def test_negative_versions_are_normalised(self, version: int) -> None:
        assert read(directory([("a", version, "kept")])) == {"a": (1, "kept")}

    def test_the_highest_version_stays(self) -> None:
        assert read(directory([("a", 2**31 - 1, "v")])) == {"a": (2**31 - 1, "v")}

    @pytest.mark.parametrize(
        ("number", "strategy"), [(0, "none"), (1, "newer"), (2, "arbiter"), (9, "none")]
    )
    def test_strategies(self, number: int, strategy: str) -> None:
        found = nundb.read(directory([("a", 1, "v")], strategy=number), "shop", 1)
        assert found.options["strategy"] == strategy

    def test_metadata_from_before_strategies_say_none_and_others_are_damage(self) -> None:
        disk = directory([("a", 1, "v")])
        disk.put("shop-nun.madadata", struct.pack("<Q", 1))
        assert nundb.read(disk, "shop", 1).options["strategy"] == "none"
        for size in (0, 7, 11, 13):
            disk.put("shop-nun.madadata", bytes(size))
            with pytest.raises(DamagedFile, match=r"shop-nun\.madadata.*12 or 8 bytes"):
                nundb.read(disk, "shop", 1)

    def test_a_key_that_is_no_text_is_damage(self) -> None:
        disk = directory([("a", 1, "v")])
        keys = disk.content("shop-nun.data.keys")
        disk.put("shop-nun.data.keys", keys + keys.replace(b"a", b"\xff"))
        with pytest.raises(DamagedFile, match="no UTF-8") as caught:
            nundb.read(disk, "shop", 1)
        assert (caught.value.file, caught.value.offset) == ("shop-nun.data.keys", len(keys) + 8)

    @pytest.mark.parametrize("length", [29, 2**32, 2**63, 2**64 - 1])
    def test_a_length_beyond_the_file_is_damage(self, length: int) -> None:
        for kind in ("keys", "values"):
            disk = directory([("a", 1, "v")])
            name = f"shop-nun.data.{kind}"
            disk.put(name, struct.pack("<Q", length) + disk.content(name)[8:])
            with pytest.raises(DamagedFile, match=f"{length} bytes does not fit") as caught:
                nundb.read(disk, "shop", 1)
            assert (caught.value.file, caught.value.offset) == (name, 0)

    def test_who_may_write_may_arbitrate(self) -> None:
        found = read(directory([("$$permission_$ann", 1, "rw a,b*|r *|")]))
        assert found == {"$$permission_$ann": (1, "rwa a,b*|r *|")}

    def test_without_metadata_the_strategy_is_newer(self) -> None:
        found = nundb.read(directory([("a", 1, "v")], strategy=None), "shop", 1)
        assert found.options["strategy"] == "newer"

    def test_the_count_of_connections_is_not_data(self) -> None:
        assert read(directory([("$connections", 7, "3"), ("a", 1, "v")])) == {"a": (1, "v")}

    def test_empty_keys_and_values_and_all_of_unicode(self) -> None:
        assert read(directory([("", 1, ""), ("clé 🗝", 2, "värde\n")])) == {
            "": (1, ""),
            "clé 🗝": (2, "värde\n"),
        }

    @pytest.mark.parametrize("kind", ["keys", "values"])
    def test_every_short_file_is_named(self, kind: str) -> None:
        whole = directory([("a", 1, "first"), ("b", 2, "second")])
        name = f"shop-nun.data.{kind}"
        content = whole.content(name)
        for size in range(1, len(content)):
            disk = whole.kill()
            disk.put(name, content[:size])
            if kind == "keys" and size == len(content) // 2:
                assert read(disk) == {"a": (1, "first")}  # nothing in NunDB's files tells how many
                continue
            with pytest.raises(DamagedFile) as caught:
                nundb.read(disk, "shop", 1)
            assert caught.value.file == name

    @pytest.mark.parametrize("address", [1, 17, 2**63, 2**64 - 1])
    def test_an_address_that_leads_nowhere_is_damage(self, address: int) -> None:
        disk = SimDisk()
        disk.put("shop-nun.data.keys", key_record("a", 1, address))
        disk.put("shop-nun.data.values", value_record("v"))
        with pytest.raises(DamagedFile, match=r"shop-nun\.data\.values"):
            nundb.read(disk, "shop", 1)


class TestLegacyMap:
    def test_a_map_without_versions(self) -> None:
        disk = SimDisk()
        disk.put("old-nun.data", legacy_map([("b", "2"), ("a", "1"), ("$connections", "0")]))
        disk.put("old-nun.madadata", struct.pack("<Q", 1))
        assert nundb.find(disk, set()) == ["old"]
        assert read(disk, "old") == {"a": (1, "1"), "b": (1, "2")}
        assert nundb.read(disk, "old", 1).options == {
            "strategy": "none",
            "migrated_from": "nundb-legacy",
        }

    def test_present_files_win_over_a_map_of_the_same_name(self) -> None:
        disk = directory([("a", 3, "present")])
        disk.put("shop-nun.data", legacy_map([("a", "legacy")]))
        assert read(disk) == {"a": (3, "present")}

    def test_every_cut_and_what_follows_are_damage(self) -> None:
        content = legacy_map([("a", "1"), ("b", "2")])
        for wrong in [content[:size] for size in range(len(content))] + [content + b"\0"]:
            disk = SimDisk()
            disk.put("old-nun.data", wrong)
            with pytest.raises(DamagedFile, match=r"old-nun\.data"):
                nundb.read(disk, "old", 1)


class TestMigration:
    def test_admin_is_left_behind_and_numbers_go_by_name(self) -> None:
        disk = directory([("k", 1, "b")], "b")
        for name in ("$admin", "a"):
            other = directory([("k", 1, name)], name)
            for file in other.names():
                disk.put(file, other.content(file))
        found = recovered(disk)
        assert [(info.number, info.name) for info in found.state.databases.values()] == [
            (1, "a"),
            (2, "b"),
        ]

    def test_every_load_before_the_first_snapshot_gives_the_same(self) -> None:
        disk = directory([("b", 2, "x"), ("a", 1, "y"), ("c", -1, "")])
        first = recovered(disk)
        for _ in range(2):
            again = recovered(disk)
            assert again.tables == first.tables
            assert again.state.dump() == first.state.dump()
        Node(disk).take()
        assert recovered(disk).tables == first.tables

    @pytest.mark.parametrize("how", ["done", "not_done", "torn"])
    def test_the_old_files_stay_until_ours_are_committed(self, how: Any) -> None:
        """Wherever the first snapshot is cut: NunDB's bytes are still there, or the side file is."""
        names = ["shop-nun.data.keys", "shop-nun.data.values", "shop-nun.madadata"]
        rows = [("a", 1, "one"), ("gone", -1, ""), ("b", -2, "two")]
        call = 0
        while True:
            call += 1
            disk = directory(rows)
            old = {name: disk.content(name) for name in names}
            node = Node(disk)
            node.set_many(1, ["c"], "three")
            truth = view(load(disk, LogReader(disk)))
            disk.crash_after(call, how)
            try:
                node.take()
            except Crashed:
                pass
            else:
                break
            for seed in range(3):
                after = disk.crash(random.Random(seed))
                if not after.exists("shop-nun.data.side"):
                    assert {name: after.content(name) for name in names} == old, call
                assert view(recovered(after)) == truth, call
        assert call > 10

    def test_files_laid_beside_a_log_are_refused(self) -> None:
        """A log that began without them has given their numbers to other databases."""
        node = Node(SimDisk())
        node.create(1, "mine")
        foreign = directory([("a", 1, "v")], "theirs")
        for name in foreign.names():
            node.disk.put(name, foreign.content(name))
        with pytest.raises(StorageError, match="theirs"):
            Snapshots(node.disk, LogReader(node.disk)).open()

    def test_a_migrated_database_can_be_dropped_and_stays_away(self) -> None:
        disk = directory([("a", 1, "v")])
        disk.put("old-nun.data", legacy_map([("k", "v")]))
        node = Node(disk)
        node.put((fx.DROP_DATABASE, 1), (fx.DROP_DATABASE, 2))
        assert view(recovered(disk)) == {}
        node.take()
        assert view(recovered(disk)) == {}
        node.create(3, "shop")
        assert view(recovered(disk)) == {"shop": {}}

    def test_a_legacy_map_goes_once_its_database_is_in_our_files(self) -> None:
        """It has the tokens in the clear."""
        disk = SimDisk()
        disk.put("old-nun.data", legacy_map([("k", "v")]))
        node = Node(disk)
        assert disk.exists("old-nun.data")
        truth = view(recovered(disk))
        node.take()
        assert not disk.exists("old-nun.data")
        disk.put("old-nun.data", legacy_map([("k", "left by a crash")]))
        assert view(recovered(disk)) == truth
        assert not disk.exists("old-nun.data")

    def test_no_snapshot_holds_them_before_the_first_entry(self) -> None:
        """It says what becomes of their tokens."""
        disk = directory([("$$token", 0, "clear")])
        snapshots = Snapshots(disk, LogReader(disk))
        snapshots.open()
        for step in snapshots.take(None, True, 0):
            if step is not None:
                step()
        assert not disk.exists("shop-nun.data.side")
        assert copying.files_of(disk) == (b"", [])


class TestDefectsOfNunDB:
    """What NunDB's own snapshots did to data, tried on ours."""

    def node(self) -> Node:
        node = Node(SimDisk())
        node.create(1, "shop")
        node.set_many(1, ["a", "b"], "first")
        node.take()
        return node

    def value(self, node: Node, key: str) -> bytes | None:
        packed = load(node.disk, LogReader(node.disk)).tables[1].get(key.encode())
        return record.value_of(packed) if packed is not None and record.is_live(packed) else None

    @pytest.mark.parametrize("reclaim", [False, True])
    def test_a_write_beside_a_running_snapshot_is_not_reverted(self, reclaim: bool) -> None:
        node = self.node()
        node.set_many(1, ["a"], "second")
        for number, step in enumerate(node.snapshots.take(None, reclaim, node.seq)):
            if step is not None:
                step()
            node.set_many(1, ["a"], f"beside {number}")
            last = f"beside {number}".encode()
        assert self.value(node, "a") == last
        node.take()
        assert view(recovered(node.disk))["shop"][b"a"].endswith(last)

    def test_a_key_set_again_after_tombstone_and_reclaim(self) -> None:
        node = self.node()
        node.put((fx.TOMBSTONE, 1, node.op, 2, 0, b"a"))
        node.take(reclaim=True)
        node.op += TICK
        node.set_many(1, ["a"], "again")
        node.take()
        recovered(node.disk)
        assert self.value(node, "a") == b"again"
        assert self.value(node, "b") == b"first"

    def test_a_key_changed_often_has_one_record_and_can_be_removed(self) -> None:
        node = self.node()
        for number in range(5):
            node.set_many(1, ["a"], str(number))
            node.take()
        assert node.snapshots.describe()["databases"]["shop"]["rows"] == 2
        node.put((fx.TOMBSTONE, 1, node.op, 9, 0, b"a"))
        node.take()
        recovered(node.disk)
        assert self.value(node, "a") is None

    @pytest.mark.parametrize("reclaim", [False, True])
    def test_nundb_finds_values_and_conflicts_of_every_kind_of_record(self, reclaim: bool) -> None:
        node = self.node()
        node.set_every_kind(1, b"was")
        node.take()
        node.set_every_kind(1, "été".encode())
        node.take(reclaim=reclaim)
        found = as_nundb_reads(node.disk, "shop")
        assert (found.pop("a"), found.pop("b")) == ((1, "first"), (1, "first"))
        expected = {}
        for key, packed in load(node.disk, LogReader(node.disk)).tables[1].items():
            if record.is_live(packed) and key.startswith(b"kind"):
                expected[key.decode()] = (-2 if record.is_in_conflict(packed) else 3, "été")
        assert len(expected) == 4
        assert found == expected

    def test_a_conflict_of_ours_stays_one_and_without_our_files_it_is_normalised(self) -> None:
        node = self.node()
        conflicting = record.in_conflict(record.live(7, node.op, b"kept"))
        node.set_records(1, {b"a": conflicting})
        node.take()
        assert recovered(node.disk).tables[1][b"a"] == conflicting
        foreign = SimDisk()
        for kind in ("keys", "values"):
            foreign.put(f"shop-nun.data.{kind}", node.disk.content(f"shop-nun.data.{kind}"))
        assert read(foreign) == {"a": (1, "kept"), "b": (1, "first")}

    def test_nundb_can_read_what_we_wrote(self) -> None:
        """Our keys, values and metadata are still in its layouts, removed keys included."""
        node = self.node()
        node.set_many(1, ["c"], "x")
        node.put((fx.TOMBSTONE, 1, node.op, 2, 0, b"a"))
        node.take()
        found = nundb.read(node.disk, "shop", 1)
        assert {key: record.value_of(packed) for key, packed in found.records.items()} == {
            b"b": b"first",
            b"c": b"x",
        }
        assert found.options["strategy"] == "none"
