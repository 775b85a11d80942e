"""What an operator has set, as far as the network process's decisions depend on it."""

from __future__ import annotations

from dataclasses import dataclass

from nun import messages as m


@dataclass(frozen=True)
class Settings:
    """What an operator has set, as far as decisions depend on it."""

    name: str
    directory: bytes  # id of the data directory
    admin_user: str
    admin_password: str
    tombstone_retention_s: float
    sessions_max: int
    watches_max: int
    watches_per_session_max: int
    unread_bytes_max: int
    pending_bytes_max: int
    request_rows_bytes_max: int
    databases_max: int
    clustered: bool = False  # whether there is a replicator
    address: str = ""  # where clients reach this node
    ack: int = m.ACK_PRIMARY  # the ack level of writes that name none
    min_replicas: int = 0  # fewer live ones than these: no writes
    max_clock_offset_ms: int = 500
