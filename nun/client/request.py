"""What the session keeps of one request, and of one database that requests name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nun import messages as m
from nun.client.results import error_of
from nun.client.values import TEXT, Decoding
from nun.errors import (
    AuthError,
    BatchRefused,
    ClaimLost,
    ConnectionLost,
    NodeFault,
    NoSuchDatabase,
    Overloaded,
    PermissionDenied,
    ReadOnly,
    RequestError,
    UnknownOutcome,
)

NEVER: Final = float("inf")
WRITES: Final = frozenset(
    {
        m.SET,
        m.REMOVE,
        m.INCREMENT,
        m.SET_MANY,
        m.BATCH,
        m.CREATE_DATABASE,
        m.ALTER_DATABASE,
        m.DROP_DATABASE,
        m.CREATE_USER,
        m.DROP_USER,
        m.SET_PERMISSIONS,
        m.OUTCOMES_SEEN,
        m.CHECK,
        m.RESOLVE,
    }
)
SAYS_NOTHING_OF_EARLIER: Final = frozenset(
    kind.code
    for kind in (
        AuthError,
        ClaimLost,
        NoSuchDatabase,
        NodeFault,
        Overloaded,
        PermissionDenied,
        ReadOnly,
    )
)  # refusals that no node remembers: an earlier time of asking may have had another answer
FLOORLESS: Final = frozenset({m.CLAIM, m.RELEASE})  # laid out as writes, and not remembered


class Grant:
    """A database as one user: what USE asks for, and the number that the present session knows it by."""

    __slots__ = ("asked", "generation", "name", "number", "options", "secret", "user")

    def __init__(
        self, name: str | bytes, user: str | bytes | None, secret: str | bytes | None
    ) -> None:
        self.name = name
        self.user = user
        self.secret = secret
        self.number = 0
        self.generation = 0  # of the link on which USE was answered
        self.asked = 0  # of the link on which USE was sent
        self.options: dict[Any, Any] = {}

    def copy(self) -> Grant:
        """For another session."""
        return Grant(self.name, self.user, self.secret)


class Request:
    """One request, from when it is made until its answer is taken. Attributes of the class are defaults."""

    number = 0
    deadline = NEVER
    sent = False  # handed to the socket at least once
    again = False  # and then once more
    sent_at = 0.0
    resends = 0
    done = False
    parked = False  # timed out and kept for `retry`
    status = 0
    result: Any = None
    position: Any = None
    op_id: Any = 0
    failure: Exception | None = None
    unknown: str | None = None  # why nobody can tell what became of it
    then: Callable[[Request, float], None] | None = (
        None  # of requests that the session makes for itself
    )
    waiter: Any = None  # the shell's
    ack: tuple[int, int] | None = None  # [level, patience in milliseconds] of a write
    patient_until = 0.0  # asked again: no node tells before this that its level was not reached
    view: tuple[Any, bool, int] | None = None  # of a read
    hold: Any = None  # of a local write: what keeps its outcome remembered
    fields: dict[str, Any] | None = None  # of a level that was not reached

    def __init__(
        self,
        kind: int,
        grant: Grant | None,
        args: tuple[Any, ...],
        finish: Callable[[Request], Any],
        decoding: Decoding = TEXT,
    ) -> None:
        self.kind = kind
        self.grant = grant
        self.args = args
        self.finish = finish
        self.decoding = decoding

    @property
    def ready(self) -> bool:
        return self.done

    def give_up(self, why: str) -> None:
        """Nobody will wait for the answer any longer."""
        self.done = True
        if self.sent and self.kind in WRITES:
            self.unknown = "lost"
        else:
            self.failure = ConnectionLost(why)

    def error(self) -> RequestError:
        """The error of a reply whose status is not 0."""
        message, fields = self.result
        error = error_of(self.status, message, fields, self.decoding)
        grant = self.grant
        if grant is None or not isinstance(error, NoSuchDatabase):
            return error
        if not grant.number or error.fields.get("database") != grant.number:
            return error
        name = grant.name  # nodes know it by its number only
        name = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        return NoSuchDatabase(f"database {name!r} was dropped", database=name)

    def answer(self, retry: Callable[[float | None], Any] | None = None) -> Any:
        """What the caller gets. Raises what it met."""
        if self.unknown is not None:
            raise UnknownOutcome(
                f"it is not known what became of request {self.number} ({self.unknown})",
                reason=self.unknown,
                retry=None if self.unknown == "expired" else retry,
                **(self.fields or {}),
            )
        if self.failure is not None:
            raise self.failure
        if self.status and self.status != BatchRefused.code:
            raise self.error()
        return self.finish(self)


def is_error(result: Any) -> bool:
    """Whether this is the result of an error reply: [message, fields]."""
    match result:
        case [bytes(), dict()]:
            return True
    return False


def nothing(request: Request) -> None:
    """The answer of a request whose reply says no more than that it was granted."""


def ignore(request: Request, now: float) -> None:
    """For requests of the session's own whose answer changes nothing."""
