"""What an operator has set, as far as the decisions of network process and replicator depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nun import limits
from nun import messages as m
from nun.limits import FETCH_BYTES_MAX, FOLLOW_WINDOW_BYTES


@dataclass(frozen=True)
class ConflictSettings:
    """About conflicts.

    Attributes:
        defaults: options of databases that do not name them themselves.
        resolved_retention_s: how long closed entries of the ledger are kept.
        per_key_warn, per_key_max, per_key_bytes_max: of one key's queue.
        conflicts_max, bytes_max: of all queues together.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    resolved_retention_s: float = 604_800.0
    per_key_warn: int = limits.CONFLICTS_PER_KEY_WARN
    per_key_max: int = limits.CONFLICTS_PER_KEY_MAX
    per_key_bytes_max: int = limits.CONFLICT_BYTES_PER_KEY_MAX
    conflicts_max: int = limits.CONFLICTS_MAX
    bytes_max: int = limits.CONFLICT_BYTES_MAX


@dataclass(frozen=True)
class Settings:
    """For the network process."""

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
    conflicts: ConflictSettings = field(default_factory=ConflictSettings)
    check_interval_s: float = 0.0  # 0: digests are made when they are asked for
    gateway_secret: bytes = b""  # what this node's own gateway shows; empty: there is none


@dataclass(frozen=True)
class ReplicatorSettings:
    """For the replicator.

    Attributes:
        primary: the name of the first primary.
        peers: the other nodes, name -> listen address.
        publish, client: this node's addresses, for the others to know.
        gateway: what `cluster-state` calls it, for the others to know; empty: its name.
        echo_above: values of so many bytes do not travel back to where they came from.
    """

    name: str
    primary: str
    peers: Mapping[str, str]
    publish: str
    client: str
    max_clock_offset_ms: int = 500
    echo_above: int = 4_096
    gateway: str = ""
    greet_ms: int = 200
    beat_ms: int = 100
    ask_peers_ms: int = 1_000
    window_bytes: int = FOLLOW_WINDOW_BYTES
    fetch_bytes: int = FETCH_BYTES_MAX
