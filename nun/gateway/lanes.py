"""Operations of many clients as one request: a lane is one user's way to one database, for reads or for writes.

What comes in one turn of the event loop goes out together, and while some requests of a lane are under way the rest
waits, so load makes batches larger. The operations of one client follow each other in one batch, and a client has one
run under way at a time: so it gets its replies in order, and reads what it wrote.

I1  Every run is answered once, with one Reply an operation, whatever becomes of its request; or given back untouched.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun.client.request import Request, nothing
from nun.codec import pack
from nun.core.clock import TICK
from nun.errors import (
    AuthError,
    BadRequest,
    ConflictPending,
    ConnectionLost,
    NoSuchDatabase,
    NotANumber,
    PermissionDenied,
    RequestError,
    TooLarge,
    VersionConflict,
)
from nun.gateway import language
from nun.gateway.language import DONE, Reply, failed
from nun.messages import IN_CONFLICT

if TYPE_CHECKING:
    from nun.gateway.doors import Selected

UNDER_WAY_MAX: Final = 4  # requests of one lane
OPERATIONS_MAX: Final = 20_000  # in one of them
BYTES_MAX: Final = 4 * 1024 * 1024
_ERROR_PARTS: Final = 3
_ONES_FAULT: Final = (
    BadRequest,
    PermissionDenied,
    TooLarge,
)  # what one operation does to a request


class Run:
    """Operations of one client that go together.

    Attributes:
        kinds: one byte an operation, as in a BATCH. conditions: by index in this run.
        finished: called once with the answers: packed records for reads, Reply for writes. Or
        given_back: called once; one of the operations must not go with the others, and none was done.
    """

    __slots__ = ("arguments", "conditions", "finished", "given_back", "keys", "kinds", "size")

    def __init__(
        self, finished: Callable[[Sequence[Any]], None], given_back: Callable[[], None]
    ) -> None:
        self.kinds = bytearray()
        self.keys: list[bytes] = []
        self.arguments: list[Any] = []
        self.conditions: dict[int, tuple[int, int, bool]] = {}
        self.size = 0
        self.finished = finished
        self.given_back = given_back


class Lane:
    """See the module's docstring.

    Args:
        level: the ack level of writes; None: this lane reads.
    """

    def __init__(self, selected: Selected, level: int | None) -> None:
        self._selected = selected
        self._level = level
        self._waiting: deque[Run] = deque()
        self._under_way = 0
        self._woken = False

    def add(self, run: Run) -> None:
        """Takes a run; it is answered later."""
        self._waiting.append(run)
        if not self._woken and self._under_way < UNDER_WAY_MAX:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._woken = False
        while self._waiting and self._under_way < UNDER_WAY_MAX:
            self._send(self._next())

    def _next(self) -> list[Run]:
        """The runs of the next request."""
        runs: list[Run] = []
        count = size = 0
        while self._waiting:
            run = self._waiting[0]
            if runs and (count + len(run.keys) > OPERATIONS_MAX or size + run.size > BYTES_MAX):
                break
            runs.append(self._waiting.popleft())
            count += len(run.keys)
            size += run.size
        return runs

    def _send(self, runs: list[Run], again: bool = False) -> None:
        self._under_way += 1
        selected = self._selected
        request = self._read_of(runs) if self._level is None else self._write_of(runs)
        try:
            future = selected.client._begin(request, self._level)
        except ConnectionLost as error:  # the gateway is going down
            self._under_way -= 1
            self._refuse(runs, failed(str(error)))
            return
        future.add_done_callback(partial(self._done, request, runs, again))

    def _read_of(self, runs: list[Run]) -> Request:
        keys = [key for run in runs for key in run.keys] if len(runs) > 1 else runs[0].keys
        return Request(m.GET_MANY, self._selected.grant, (keys,), nothing)

    def _write_of(self, runs: list[Run]) -> Request:
        first = runs[0]
        kinds, keys, arguments, conditions = (
            bytes(first.kinds),
            first.keys,
            first.arguments,
            first.conditions,
        )
        if len(runs) > 1:
            kinds = b"".join([run.kinds for run in runs])
            keys = [key for run in runs for key in run.keys]
            arguments = [argument for run in runs for argument in run.arguments]
            conditions, begins = {}, 0
            for run in runs:
                for index, condition in run.conditions.items():
                    conditions[begins + index] = condition
                begins += len(run.keys)
        payload = pack((keys, arguments))
        grant = self._selected.grant
        if not conditions and kinds.count(m.SET) == len(kinds):
            return Request(m.SET_MANY, grant, (payload,), nothing)
        return Request(m.BATCH, grant, (False, kinds, payload, conditions or None), nothing)

    def _done(
        self, request: Request, runs: list[Run], again: bool, future: asyncio.Future[None]
    ) -> None:
        self._under_way -= 1
        if future.cancelled():
            self._refuse(runs, failed("the node is going down"))
        elif request.unknown is not None:
            self._refuse(runs, failed(f"it is not known what became of it ({request.unknown})"))
        elif request.failure is not None:
            self._refuse(runs, failed(str(request.failure)))
        elif request.status:
            self._failed(request, runs, again)
        elif self._level is None:
            _hand_out(runs, request.result)
        else:
            self._written(request, runs)
        if self._waiting:
            self._flush()

    def _refuse(self, runs: list[Run], reply: Reply) -> None:
        for run in runs:
            run.finished([reply] * len(run.keys))

    def _failed(self, request: Request, runs: list[Run], again: bool) -> None:
        """Refused as a whole, and nothing of it done. What one run is to blame for is not for the others to bear."""
        error = request.error()
        if isinstance(error, AuthError) and not again:  # perhaps the token is still good
            self._selected.select_again()
            self._send(runs, again=True)
            return
        if isinstance(error, AuthError):
            self._selected.revoked = True
        if not isinstance(error, _ONES_FAULT):
            self._refuse(runs, self._told(error, runs[0].keys[0]))
        elif len(runs) > 1:
            for run in runs:
                self._send([run])
        elif len(runs[0].keys) > 1:
            runs[0].given_back()
        else:
            self._refuse(runs, self._told(error, runs[0].keys[0]))

    def _told(self, error: RequestError, key: bytes) -> Reply:
        return error_reply(error.code, str(error), error.fields, key, self._selected)

    def _written(self, request: Request, runs: list[Run]) -> None:
        result = request.result
        if not isinstance(result, list):  # in columns: nothing was refused
            for run in runs:
                run.finished([DONE] * len(run.keys))
            return
        op_id, selected = request.op_id, self._selected
        keys = [key for run in runs for key in run.keys]
        answers: list[Reply] = []
        for index, (key, answer) in enumerate(zip(keys, result, strict=True)):
            if isinstance(answer, int):
                queued = answer == IN_CONFLICT
                answers.append(language.in_conflict(key, op_id + index * TICK) if queued else DONE)
            elif len(answer) < _ERROR_PARTS:  # an increment: it is added in its turn
                answers.append(DONE)
            else:
                code, text, fields = answer
                answers.append(error_reply(code, text, fields, key, selected))
        _hand_out(runs, answers)


def _hand_out(runs: list[Run], answers: Sequence[Any]) -> None:
    if len(runs) == 1:
        runs[0].finished(answers)
        return
    begins = 0
    for run in runs:
        ends = begins + len(run.keys)
        run.finished(answers[begins:ends])
        begins = ends


def error_reply(
    code: int, message: Any, fields: dict[Any, Any], key: bytes, selected: Selected
) -> Reply:
    """An error of the node, as NunDB says it."""
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    if code == VersionConflict.code:
        return language.NO_ARBITER if "no arbiter" in text else language.STALE
    if code == ConflictPending.code:
        return language.in_conflict(key, fields.get(b"conflict", fields.get("conflict", 0)))
    if code == PermissionDenied.code:
        return language.DENIED
    if code == NotANumber.code:
        return language.NOT_NUMERIC
    if code == AuthError.code:
        return language.BAD_TOKEN
    if code == NoSuchDatabase.code:
        return failed(b"Database %s not found" % selected.database)
    return failed(text.replace("\n", " "))
