"""Nun: a real-time, replicated key-value database whose first-class citizen is the conflict.

The clients and `nun.merge` are loaded when they are first named: the processes of a node import from here too, and do
without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nun.errors import (
    AuthError,
    BadRequest,
    BatchError,
    BatchRefused,
    CannotMerge,
    ClaimLost,
    Compacted,
    ConfigError,
    ConflictPending,
    ConnectionLost,
    DamagedFile,
    DatabaseExists,
    DirectoryInUse,
    FormatTooNew,
    LevelNotReached,
    NodeFault,
    NoPrimary,
    NoSuchDatabase,
    NotANumber,
    NotServing,
    NunError,
    OutcomeExpired,
    Overloaded,
    PermissionDenied,
    ReadOnly,
    RequestError,
    SessionUnknown,
    StorageError,
    TooLarge,
    UnknownOutcome,
    VersionConflict,
    WireError,
)
from nun.position import Position
from nun.version import VERSION as __version__  # noqa: N811

if TYPE_CHECKING:
    from nun.client.aio import AsyncClient
    from nun.client.arbiters import Arbiter
    from nun.client.conflicts import Conflict
    from nun.client.notices import Outcome
    from nun.client.results import Entry, Event, Result
    from nun.client.sync import Client
    from nun.merge import REMOVED

_LOADED_LATER = {
    "AsyncClient": "nun.client.aio",
    "Arbiter": "nun.client.arbiters",
    "Client": "nun.client.sync",
    "Conflict": "nun.client.conflicts",
    "Outcome": "nun.client.notices",
    "Entry": "nun.client.results",
    "Event": "nun.client.results",
    "REMOVED": "nun.merge",
    "Result": "nun.client.results",
}

__all__ = [
    "AsyncClient",
    "Arbiter",
    "AuthError",
    "BadRequest",
    "BatchError",
    "BatchRefused",
    "CannotMerge",
    "ClaimLost",
    "Client",
    "Compacted",
    "ConfigError",
    "Conflict",
    "ConflictPending",
    "ConnectionLost",
    "DamagedFile",
    "DatabaseExists",
    "DirectoryInUse",
    "Entry",
    "Event",
    "FormatTooNew",
    "LevelNotReached",
    "NoPrimary",
    "NoSuchDatabase",
    "NodeFault",
    "NotANumber",
    "NotServing",
    "NunError",
    "OutcomeExpired",
    "Outcome",
    "Overloaded",
    "PermissionDenied",
    "Position",
    "REMOVED",
    "ReadOnly",
    "RequestError",
    "Result",
    "SessionUnknown",
    "StorageError",
    "TooLarge",
    "UnknownOutcome",
    "VersionConflict",
    "WireError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "merge":
        return import_module("nun.merge")
    module = _LOADED_LATER.get(name)
    if module is None:
        raise AttributeError(f"module 'nun' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
