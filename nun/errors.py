"""The errors of Nun. Each carries fields; its text is built from them last.

    NunError
      ConfigError             a configuration that cannot be used: lists every problem
      RequestError            the caller's request was refused and changed nothing; has a code on the wire
        BadRequest            malformed, of a wrong type, or against the rules
        AuthError             wrong user, password or token; or too many wrong ones
        PermissionDenied      known, but not allowed
        NoSuchDatabase
        DatabaseExists
        VersionConflict       the write's condition does not hold; carries the current record
        TooLarge              beyond a bound of nun/limits.py
        Overloaded            the node has too much to do; try again after `retry_after_ms`
        ReadOnly              the node takes no writes now (its disk is full)
        NotANumber            increment of a value that is no 64-bit integer, or beyond its range
        NodeFault             the node failed in a way of its own; its log says how
        LevelNotReached       the write is done; the ack level that was asked for was not reached in time
        NoPrimary             this node knows no primary that it can reach
        NotServing            this node cannot serve at present; another one may
        ConflictPending       the write is in conflict and waits for an arbiter; `.wait()` tells what became of it
        ClaimLost             a resolution that came too late
      UnknownOutcome          the write may or may not have happened; `.retry()` asks again as the same request
      ConnectionLost          no node could be reached in time; nothing was sent
      BatchError              some operations of a batch failed; `.results` holds each one's result or error
      CannotMerge             a ready-made arbiter was shown what it cannot merge; names key, found and expected
      WireError               bytes that are no message of this protocol
      StorageError            the files
        DamagedFile           a file disagrees with its checksums; names file, offset and what was expected
        FormatTooNew          written by a later version of Nun
        DirectoryInUse        another node holds the data directory
      Compacted               the log no longer holds (or never held) the position that was asked for

Codes are declared once, here, and never reused. 0 on the wire is success.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

_BY_CODE: dict[int, type[RequestError]] = {}


class NunError(Exception):
    """Base of all errors that Nun raises on purpose."""


class ConfigError(NunError):
    """A configuration that cannot be used.

    Attributes:
        problems: one line each: the key, the value found and what was expected.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class RequestError(NunError):
    """A request that was refused and changed nothing.

    Attributes:
        code: its number on the wire.
        message: one sentence that names what was wrong and what was expected.
        fields: what a program may want to know, by name (see each class).
    """

    code: ClassVar[int] = 0

    def __init__(self, message: str, **fields: Any) -> None:
        self.message = message
        self.fields: dict[str, Any] = fields
        super().__init__(message)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.code:
            assert cls.code not in _BY_CODE, f"code {cls.code} is declared twice"
            _BY_CODE[cls.code] = cls


class BadRequest(RequestError):
    """Malformed, of a wrong type, or against the rules."""

    code = 1


class AuthError(RequestError):
    """Wrong user, password or token. Fields: `retry_after_ms` when the door is closed for a while."""

    code = 2


class PermissionDenied(RequestError):
    """Known, but not allowed. Fields: `key`, `kind` (one of r w i x a) where a key was at stake."""

    code = 3


class NoSuchDatabase(RequestError):
    """Fields: `database`."""

    code = 4


class DatabaseExists(RequestError):
    """Fields: `database`."""

    code = 5


class VersionConflict(RequestError):
    """The write's condition does not hold. Fields: `key`, `current` (an Entry, or None where the key is absent)."""

    code = 6

    @property
    def key(self) -> Any:
        return self.fields.get("key")

    @property
    def current(self) -> Any:
        return self.fields.get("current")


class TooLarge(RequestError):
    """Beyond a bound. Fields: `limit` (its name in nun/limits.py), `bound`, `found`."""

    code = 7


class Overloaded(RequestError):
    """The node has too much to do. Fields: `limit`, `retry_after_ms`."""

    code = 8


class ReadOnly(RequestError):
    """The node takes no writes now. Fields: `reason`."""

    code = 9


class NotANumber(RequestError):
    """Increment of what is no 64-bit integer, or out of its range. Fields: `key`."""

    code = 10


class NodeFault(RequestError):
    """The node failed in a way of its own; its log says how."""

    code = 11


class SessionUnknown(RequestError):
    """The node does not know this session (it restarted, or the link is new); the client library greets again."""

    code = 12


class OutcomeExpired(RequestError):
    """What became of this request is no longer remembered; the client library raises UnknownOutcome."""

    code = 13


class BatchRefused(RequestError):
    """An atomic batch that was refused whole. Fields: `results`. The client library raises BatchError."""

    code = 14


class LevelNotReached(RequestError):
    """The write is done, and not yet as far as was asked. Fields: `level`, `reached` (replicas), `result`.

    Of a read: what was asked for is not here yet. The client library raises UnknownOutcome for a write.
    """

    code = 15


class NoPrimary(RequestError):
    """This node knows no primary that it can reach. Fields: `retry_after_ms`."""

    code = 16


class NotServing(RequestError):
    """This node cannot serve at present; another one may. Fields: `retry_after_ms`."""

    code = 17


class ConflictPending(RequestError):
    """The write is in conflict: it is kept in its key's queue, and will be told what becomes of it. Do not retry.

    Fields: `key`, `conflict` (its id: the op id of the write), `current` (an Entry, or None), `base` (op id).
    """

    code = 18
    waits: Any = None  # set by the client library: asks for the outcome

    @property
    def key(self) -> Any:
        return self.fields.get("key")

    @property
    def current(self) -> Any:
        return self.fields.get("current")

    @property
    def conflict(self) -> Any:
        return self.fields.get("conflict")

    def wait(self, timeout: float | None = None) -> Any:
        """What became of the write, once that is decided. Raises TimeoutError."""
        if self.waits is None:
            raise self
        return self.waits(timeout)


class ClaimLost(RequestError):
    """A resolution that came too late: what was shown has changed, or the claim has ended. Fields: `key`."""

    code = 19


class UnknownOutcome(NunError):
    """The write may or may not have happened.

    Attributes:
        reason: "timeout", "lost" (the link broke after sending), "expired" (the node forgot the request) or "level": it
            is done, and not as far as was asked.
        fields: of "level": `level`, `reached` (replicas), `result`, `position`, `op_id`.
    """

    def __init__(self, message: str, reason: str, retry: Any = None, **fields: Any) -> None:
        self.reason = reason
        self.fields: dict[str, Any] = fields
        self._retry = retry
        super().__init__(message)

    def retry(self, timeout: float | None = None) -> Any:
        """Asks again as the same request: it takes effect at most once. Raises what the request may raise."""
        if self._retry is None:
            raise self
        return self._retry(timeout)


class ConnectionLost(NunError):
    """No node could be reached in time; nothing was sent."""


class BatchError(NunError):
    """Some operations of a batch failed.

    Attributes:
        results: for each operation, in order, its result or the RequestError that it met.
    """

    def __init__(self, message: str, results: Any) -> None:
        self.results = results
        super().__init__(message)


class CannotMerge(NunError):
    """A ready-made arbiter (nun/merge.py) was shown what it cannot merge.

    Attributes:
        key: in conflict. found, expected: in words.
    """

    def __init__(self, key: Any, found: str, expected: str) -> None:
        self.key = key
        self.found = found
        self.expected = expected
        super().__init__(f"key {key!r:.60} cannot be merged: found {found}; expected {expected}")


class WireError(NunError):
    """Bytes that are no message of this protocol."""


class StorageError(NunError):
    """Something about the files of a data directory."""


class DamagedFile(StorageError):
    """A file disagrees with its checksums.

    Attributes:
        file: its name. offset: of the first byte in doubt. detail: what was found and what was expected.
    """

    def __init__(self, file: str, offset: int, detail: str) -> None:
        self.file = file
        self.offset = offset
        self.detail = detail
        super().__init__(f"{file}: damaged at byte {offset}: {detail}")


class FormatTooNew(StorageError):
    """Written by a later version of Nun."""


class DirectoryInUse(StorageError):
    """Another node holds the data directory."""


class Compacted(NunError):
    """The log no longer holds (or never held) the position that was asked for.

    Attributes:
        first_seq: the first seq that the log can still serve.
    """

    def __init__(self, first_seq: int) -> None:
        self.first_seq = first_seq
        super().__init__(f"the log begins at seq {first_seq}")


def to_wire(error: RequestError) -> tuple[int, list[Any]]:
    """The code and body of an error reply: `[message, fields]`."""
    return error.code, [error.message, error.fields]


def from_wire(code: int, message: str, fields: Mapping[str, Any]) -> RequestError:
    """The error of a reply; a code that this version does not know becomes a plain RequestError."""
    kind = _BY_CODE.get(code, RequestError)
    error = kind(message)
    error.fields.update(fields)
    return error
