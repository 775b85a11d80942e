"""What the network process's core wants done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Output:
    """What is to be done, in this order."""

    publish: bytes | None = None
    items: list[bytes] = field(default_factory=list)  # frames for the outbox, on the op stream too
    sends: list[tuple[bytes, bytes]] = field(default_factory=list)  # (routing id, frame)
    to_writer: list[tuple[Any, ...]] = field(default_factory=list)
    to_replicator: list[tuple[Any, ...]] = field(default_factory=list)
    to_manager: list[tuple[Any, ...]] = field(default_factory=list)
    log_reads: list[tuple[int, int]] = field(default_factory=list)  # (watch or 0, first seq)
    secrets: list[tuple[int, str, bytes, bytes]] = field(
        default_factory=list
    )  # (ticket, "hash" or "check", given, stored)
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # for the log
    restart: str | None = None  # start the node's processes anew from disk, and why
