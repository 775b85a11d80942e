"""A cluster begins on NunDB's files while its nodes are killed and lose power: all of it arrives everywhere, once."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from nun.client import operations as ops
from nun.core import record
from nun.core.conflicts.ledger import head_of
from storage.oplog import LogReader
from storage.recovery import load
from tests.simulation.node import Node
from tests.simulation.oracle import Saved
from tests.simulation.process import installed
from tests.simulation.simulation import Simulation
from tests.simulation.world import MS, SECOND
from tests.support import nundb_files as files

Table = dict[bytes, bytes]


class Moving(Simulation):
    """Three nodes, the first of them on a copy of a NunDB directory."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, nodes=3)
        with tempfile.TemporaryDirectory() as name:
            for path in sorted(files.write(Path(name), files.shop()).glob("*-nun.*")):
                self.nodes["node1"].disk.put(path.name, path.read_bytes())

    def trouble(self) -> None:
        """One node after the other dies, in the first seconds."""
        rng = self.world.rng
        for _ in range(rng.randrange(1, 6)):
            node = self.nodes[rng.choice(("node1", "node1", "node2", "node3"))]
            how = rng.choice((lambda n: n.kill("as planned"), Node.lose_power))
            self.world.after(
                self.world.between(0, 4 * SECOND), lambda n=node, h=how: self._die(n, h)
            )

    def _die(self, node: Node, how: object) -> None:
        if node.up:
            how(node)  # type: ignore[operator]
            self.world.after(
                self.world.between(20 * MS, SECOND), lambda: None if node.up else node.start()
            )

    def tables(self) -> list[dict[str, Table]]:
        """What every node holds, in memory and on its disk."""
        found = []
        for node in self.nodes.values():
            core = node.network.core
            loaded = load(node.disk, LogReader(node.disk))
            names = core.state.databases.values()
            found.append({info.name: core.tables[info.number].records for info in names})
            found.append({info.name: loaded.tables[info.number] for info in names})
        return found


@pytest.mark.parametrize("seed", range(12))
def test_all_of_it_arrives_everywhere_whoever_dies_meanwhile(seed: int) -> None:
    made = Moving(seed)
    with installed(made.world):
        made.trouble()
        made.form()
        made.run(5)
        made.heal()
        made.until(made.converged, "all nodes hold the same", 60)
        first, *others = made.tables()
        assert all(other == first for other in others)
    assert sorted(first) == ["d", "latest", "plain", "shop"]
    shop = first["shop"]
    assert record.value_of(shop[b"$$token"]) == b"hash of shop-token"
    assert record.value_of(shop[b"name"]) == b"mary"
    assert (record.version_of(shop[b"k"]), record.is_in_conflict(shop[b"k"])) == (2, True)
    entries = [record.value_of(packed) for packed in shop.values() if head_of(packed)]
    assert sorted(json.loads(entry)["value"] for entry in entries) == ["good night", "v2", "v3"]
    for node in made.nodes.values():
        ours = [name for name in node.disk.names() if name.endswith(".side")]
        assert len(ours) in (0, 3, 4)


def test_a_node_that_joins_when_nothing_of_it_is_left_gets_no_log_that_speaks_of_it() -> None:
    made = Moving(seed=1)
    with installed(made.world):
        made.form()
        client = made.client("node1")
        for name in ("latest", "plain", "shop"):
            assert made.ask(client, ops.drop_database(name))[0] == "done"
        assert made.ask(client, ops.snapshot(None, False))[0] == "done"
        made.until(made.converged, "all nodes hold the same", 60)
        made.nodes["node1"].kill("to begin on its files and its log")
        made.nodes["node1"].start()
        made.nodes["node3"].wipe()
        made.oracle.replaced("node3", Saved())
        made.nodes["node3"].start()
        made.until(made.converged, "all nodes hold the same", 60)
        first, *others = made.tables()
        assert sorted(first) == ["d"]
        assert all(other == first for other in others)
