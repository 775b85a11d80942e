"""What the primary does by itself now and then, and what any node tells about itself.

Dropping what is no longer needed changes data: it is decided by the primary and leaves as entries, like everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nun.core import effects as fx
from nun.core.clock import unix_ms_of
from nun.core.conflicts.ledger import count
from nun.core.metrics import REQUEST_NAMES
from nun.position import Position
from nun.version import VERSION

if TYPE_CHECKING:
    from nun.core.network import NetworkCore

TOMBSTONES_DROPPED_MAX: Final = 10_000  # in one tick


class Housekeeping:
    """Drops old tombstones and what exactly-once remembers of clients that have not been heard of for longest."""

    def __init__(self, core: NetworkCore) -> None:
        self._core = core

    def tick(self) -> None:
        """Decides what is to go."""
        self._drop_old_tombstones()
        self._forget_clients()

    def _drop_old_tombstones(self) -> None:
        core = self._core
        oldest_ms = core.unix_ms - core.settings.tombstone_retention_s * 1_000
        left = TOMBSTONES_DROPPED_MAX
        for number, table in core.tables.items():
            old: list[bytes] = []
            for key, op_id in table.tombstones.items():
                if unix_ms_of(op_id) >= oldest_ms or len(old) >= left:
                    break
                old.append(key)
            if old:
                left -= len(old)
                entry = core.stream.add((fx.DROP, number, old))
                entry.changes.append(fx.RecordChange(number, old, (None,) * len(old)))
                for key in old:
                    table.replace(key, None)

    def _forget_clients(self) -> None:
        core = self._core
        bound = core.settings.request_rows_bytes_max
        if core.state.rows_bytes > bound:
            ids, horizon = core.state.least_recent_clients(core.state.rows_bytes - bound * 3 // 4)
            core.stream.add((fx.FORGET, ids, horizon))
            core.out.notes.append(("request_rows_forgotten", {"clients": len(ids)}))


def describe(core: NetworkCore) -> dict[str, Any]:
    """What `status` tells of the network process."""
    return {
        "node": core.settings.name,
        "version": VERSION,
        "role": core.roles.name,
        "primary": core.roles.primary,
        "members": {str(number): member.name for number, member in core.state.members.items()},
        "settled": core.levels.settled,
        "replication": core.roles.traffic,
        "cluster_id": core.cluster_id.hex(),
        "uptime_s": round((core.now_ns - core.started_ns) / 1e9, 3),
        "epoch": str(core.stream.epoch),
        "position": str(Position.at(core.stream.epoch, core.stream.last_seq)),
        "durable": core.stream.durable_seq,
        "pending": {
            "entries": len(core.stream.pending),
            "bytes": core.stream.pending_bytes,
        },
        "databases": {
            info.name: {
                "number": number,
                "strategy": info.strategy,
                "keys": core.tables[number].live,
                "tombstones": len(core.tables[number].tombstones),
                "bytes": core.tables[number].bytes,
            }
            for number, info in core.state.databases.items()
        },
        "conflicts": {**core.conflicts.describe(), "ledger": count(core)},
        "outbox": len(core.tentative),
        "forwarded": len(core.forwarding),
        "sessions": len(core.sessions),
        "watches": len(core.watches),
        "clients_remembered": len(core.state.clients),
        "request_rows_bytes": core.state.rows_bytes,
        "read_only": core.disk_full,
        "events_sent": core.watches.sent_events,
        **core.metrics.describe(REQUEST_NAMES),
    }
