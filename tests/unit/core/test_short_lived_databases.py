"""Databases that are made and dropped in one entry: one that was cut off comes back, and is dropped at once."""

from __future__ import annotations

from actors.keeping import state_at
from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack
from nun.core import effects as fx
from nun.core.proposals.outbox import Item, Operation, decode_item, encode_item, items_of_entries
from nun.core.proposals.repeats import LATER
from nun.core.requests.access import TOKEN_KEY
from nun.position import NOTHING
from storage.oplog import Oplog
from tests.support.replicas import Cluster
from tests.support.sim_disk import SimDisk
from tests.unit.core.test_items import stamp
from tests.unit.core.test_replicas import state_of, write


def made_again_and_dropped(cluster: Cluster) -> list[bytes]:
    """The primary makes database `e` of an item, and drops it, in one turn; its log, which ends with that entry."""
    primary, (replica,) = cluster.primary, cluster.replicas
    op_id = stamp(primary)
    options = Operation(m.CREATE_DATABASE, b"", {"strategy": "arbiter"}, 0, op_id)
    token = Operation(m.SET, TOKEN_KEY, b"hashed", 0, op_id)
    item = encode_item(
        Item(b"whose", 1, 0, b"e", m.CREATE_DATABASE, False, [token, options], 0, 0, NOTHING)
    )
    made = pack((0, 1, LATER, primary.core.state.position, item))
    write(replica.client(), m.DROP_DATABASE, "e")
    [(_, [(ticket, dropped)])] = replica.told(pm.PROPOSE)
    primary.hear(pm.PROPOSALS, [[2, 1, made], [2, ticket, dropped]])
    primary.sync()
    _, effects = fx.decode_entry(primary.frames[-1])
    kinds = [effect[0] for effect in effects]
    assert kinds.index(fx.DATABASE) < kinds.index(fx.DROP_DATABASE)
    return primary.frames


def test_a_replica_takes_an_entry_that_makes_a_database_and_drops_it() -> None:
    cluster = Cluster()
    cluster.database()
    made_again_and_dropped(cluster)
    cluster.carry()
    (replica,) = cluster.replicas
    assert state_of(replica) == state_of(cluster.primary)
    assert replica.core.state.dump() == cluster.primary.core.state.dump()


def test_it_keeps_its_name_where_that_entry_is_cut_off() -> None:
    """Only that it was made is proposed again."""
    cluster = Cluster()
    cluster.database()
    frames = made_again_and_dropped(cluster)
    disk = SimDisk(1)
    log = Oplog.open(disk, 1 << 16, 1 << 20)
    log.append([(fx.decode_head(frame)[1], frame) for frame in frames])
    log.sync()
    state, names = state_at(disk, len(frames))
    assert [info.name for info in state.databases.values()] == ["d"]
    cut = fx.decode_entry(frames[-1])
    later: dict[int, str] = {}  # the files hold that entry already: a copy is to take their place
    for known in (names, later):
        items = [decode_item(data) for data in items_of_entries([cut], known, NOTHING)]
        assert [(item.kind, item.database) for item in items] == [(m.CREATE_DATABASE, b"e")]
