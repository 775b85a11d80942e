"""One connection of a NunDB client: what it has selected, its commands in order, their replies in the same order.

    feed(lines)  ->  a run of reads or of writes: into a lane       ->  answered: next
                     anything else: a task of its own (verbs.py)    ->  done: next

I1  Every command gets exactly one reply, in order, whatever happens to it.
I2  A connection has one run or one task under way. What waits is bounded: the transport stops reading.
I3  To a client that does not read nothing more is said: its commands wait (`stalled`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from nun import messages as m
from nun.errors import NunError
from nun.gateway import language
from nun.gateway.lanes import OPERATIONS_MAX, Run
from nun.gateway.language import NO_DATABASE, STALE, Reply, failed
from nun.limits import KEY_BYTES_MAX, KIB, VALUE_BYTES_MAX
from nun.messages import ON_VERSION

if TYPE_CHECKING:
    from nun.gateway.desk import Desk
    from nun.gateway.doors import Selected

_DOLLAR: Final = ord("$")  # what system keys begin with
_GET: Final = 0
_GET_SAFE: Final = 1
WAITING_MAX: Final = 1_000  # commands of one connection
WAITING_BYTES_MAX: Final = 64 * KIB
_READS: Final = {b"get": _GET, b"get-safe": _GET_SAFE}
_WRITES: Final = {
    b"set": m.SET,
    b"set-safe": -m.SET,
    b"remove": m.REMOVE,
    b"increment": m.INCREMENT,
}


_ERROR_OF: Final = attrgetter("error")


class Sink(Protocol):
    """Where replies and notices go: a transport's end of one connection."""

    def answer(self, replies: Sequence[Reply]) -> None:
        """One reply a command, in order."""

    def answer_all(self, messages: Sequence[bytes]) -> None:
        """As `answer`, of commands with one message each and no error."""

    def notify(self, messages: Sequence[bytes]) -> None:
        """Messages that nobody asked for."""

    def drop(self) -> None:
        """Ends the connection."""


class Conversation:
    """See the module's docstring.

    Attributes:
        origin: the address of the client.
        admin: whether it has shown the administrator's password.
        selected: the database that it uses.
        stalled: whether the client does not read.
    """

    def __init__(self, desk: Desk, sink: Sink, origin: str) -> None:
        self.desk = desk
        self.sink = sink
        self.origin = origin
        self.admin = False
        self.selected: Selected | None = None
        self.closed = False
        self.stalled = False
        self.queue: deque[list[bytes]] = deque()
        self.waiting_bytes = 0  # taken since the queue was empty
        self._busy = False
        self._under_way: list[list[bytes]] = []  # the commands of the run
        self._run_max = OPERATIONS_MAX
        self._asked_at = 0.0
        self._tellers: list[int] = []
        self._kinds = bytearray()

    def feed(self, lines: Sequence[bytes]) -> None:
        """Takes commands; each will be answered at the sink."""
        if not self.queue:
            self.waiting_bytes = 0
        self.queue.extend(map(language.split, lines))
        self.waiting_bytes += sum(map(len, lines))
        if not self._busy:
            self._go()

    def notify(self, messages: Sequence[bytes]) -> None:
        if not self.closed:
            self.sink.notify(messages)

    def resume(self) -> None:
        """The client reads again."""
        self.stalled = False
        if not self._busy:
            self._go()

    def drop(self) -> None:
        """Ends the connection: its client is to come again."""
        if not self.closed:
            self.sink.drop()

    def close(self) -> None:
        """The client is gone."""
        if not self.closed:
            self.closed = True
            self.queue.clear()
            self.desk.left(self)

    @property
    def idle(self) -> bool:
        """Whether all is answered."""
        return not self._busy and not self.queue

    @property
    def full(self) -> bool:
        """Whether so much waits that no more is to be read."""
        waiting = len(self.queue)
        return waiting > WAITING_MAX or (waiting > 0 and self.waiting_bytes > WAITING_BYTES_MAX)

    def _go(self) -> None:
        """Begins what comes next."""
        queue = self.queue
        while queue and not self._busy and not self.stalled:
            parts = queue[0]
            verb = parts[0]
            plain = len(parts) > 1 and parts[1][:1] != b"$"
            if plain and verb in _READS:
                self._read()
            elif plain and verb in _WRITES:
                self._write()
            else:
                queue.popleft()
                self._busy = True
                self.desk.background(self._perform(parts))

    async def _perform(self, parts: list[bytes]) -> None:
        """A command that is no plain read or write."""
        try:
            reply = await self.desk.perform(self, parts)
        except NunError as error:
            reply = failed(str(error).replace("\n", " "))
        except Exception as error:  # whatever is sent is answered, and the others are served
            self.desk.fault(error, parts[0])
            reply = failed("the gateway has failed to do this; its log says why")
        self._answer((reply,), self.sink.answer)

    def _answer(self, replies: Sequence[Any], tell: Callable[[Sequence[Any]], None]) -> None:
        """What was under way is done: tells the client, and goes on."""
        self._busy = False
        self._under_way = []
        if not self.closed:
            tell(replies)
        if self.queue and not self._busy:
            self._go()

    def _given_back(self) -> None:
        """The run cannot go as one: its commands go on in smaller ones, in the same order."""
        self._busy = False
        if self.closed:
            return
        self._run_max = max(len(self._under_way) // 2, 1)
        self.queue.extendleft(reversed(self._under_way))
        self._under_way = []
        self._go()

    # Reads

    def _read(self) -> None:
        """A run of gets."""
        if not self._may():
            return
        assert self.selected is not None
        queue = self.queue
        tellers: list[int] = []
        run = Run(self._has_read, self._given_back)
        keys, under_way, run_max = run.keys, self._under_way, self._run_max
        while queue and len(keys) < run_max:
            parts = queue[0]
            kind = _READS.get(parts[0])
            if kind is None or len(parts) < 2:
                break
            key = parts[1]
            if not 0 < len(key) <= KEY_BYTES_MAX or key[0] == _DOLLAR:
                break
            keys.append(key)
            tellers.append(kind)
            under_way.append(queue.popleft())
        if not keys:
            parts = queue.popleft()
            verb = parts[0].decode()
            long = len(parts[1]) > KEY_BYTES_MAX
            text = _too_long("key", KEY_BYTES_MAX) if long else f"{verb} must contain a key"
            self.sink.answer((failed(text),))
            return
        self._busy = True
        self._tellers = tellers
        self._asked_at = monotonic()
        self.selected.reads.add(run)

    def _has_read(self, records: Sequence[Any]) -> None:
        self._run_max = min(self._run_max * 2, OPERATIONS_MAX)
        self.desk.observe_read(monotonic() - self._asked_at)
        if _GET_SAFE not in self._tellers and Reply not in {*map(type, records)}:
            self._answer(language.told_values(records), self.sink.answer_all)
            return
        replies = [
            language.promised(record, twice=teller == _GET_SAFE)
            if isinstance(record, Reply)
            else language.told_value(record)
            if teller == _GET
            else language.told_value_and_version(record)
            for record, teller in zip(records, self._tellers, strict=True)
        ]
        self._answer(replies, self.sink.answer)

    # Writes

    def _write(self) -> None:
        """A run of sets, removes and increments, up to the first that cannot go with them."""
        if not self._may():
            return
        assert self.selected is not None
        queue = self.queue
        run = Run(self._has_written, self._given_back)
        kinds, keys, arguments = run.kinds, run.keys, run.arguments
        refusal: Reply | None = None
        while queue and len(keys) < self._run_max:
            parts = queue[0]
            kind = _WRITES.get(parts[0])
            if kind is None or len(parts) < 2 or parts[1][:1] == b"$":
                break
            key = parts[1]
            argument: Any = None
            condition: tuple[int, int, bool] | None = None
            if kind == m.SET:
                argument = parts[2] if len(parts) > 2 else b""
            elif kind == m.INCREMENT:
                argument = language.delta_in(parts[2]) if len(parts) > 2 else 1
            elif kind < 0:
                kind = m.SET
                refusal, argument, condition = _safe(parts)
            if refusal is None:
                refusal = _bounds(key, argument)
            if refusal is not None:
                break
            if condition is not None:
                run.conditions[len(keys)] = condition
            kinds.append(kind)
            keys.append(key)
            arguments.append(argument)
            run.size += len(key) + (len(argument) if kind == m.SET else 8)
            self._under_way.append(queue.popleft())
        if keys:
            self._busy = True
            self._kinds = kinds
            self.selected.writes.add(run)
        else:
            queue.popleft()
            assert refusal is not None
            self.sink.answer((refusal,))

    def _has_written(self, replies: Sequence[Any]) -> None:
        self._run_max = min(self._run_max * 2, OPERATIONS_MAX)
        self.desk.written += sum(reply.error is None for reply in replies)
        if any(map(_ERROR_OF, replies)):
            replies = [
                language.promised(reply) if kind == m.SET else language.unpromised(reply)
                for reply, kind in zip(replies, self._kinds, strict=True)
            ]
        self._answer(replies, self.sink.answer)

    def _may(self) -> bool:
        """Whether a database is selected; if not, the next command is answered with that."""
        if self.selected is None or self.selected.revoked:
            self.queue.popleft()
            lost = self.selected is not None
            self.sink.answer((language.BAD_TOKEN if lost else NO_DATABASE,))
            return False
        return True


def _safe(parts: list[bytes]) -> tuple[Reply | None, Any, tuple[int, int, bool] | None]:
    """(refusal, value, condition) of `set-safe KEY VER VALUE`."""
    if len(parts) < 3:
        return failed("set-safe must be followed by a version and key"), None, None
    text, space, value = parts[2].partition(b" ")
    if not space:
        return failed("set-safe must be followed by a key"), None, None
    version = language.version_in(text)
    if version < -1:
        return STALE, None, None
    return None, value, None if version == -1 else (ON_VERSION, version, False)


def _bounds(key: bytes, argument: Any) -> Reply | None:
    if not key:
        return failed("a key has at least one byte")
    if len(key) > KEY_BYTES_MAX:
        return failed(_too_long("key", KEY_BYTES_MAX))
    if type(argument) is bytes and len(argument) > VALUE_BYTES_MAX:
        return failed(_too_long("value", VALUE_BYTES_MAX))
    return None


def _too_long(what: str, bound: int) -> str:
    return f"a {what} has at most {bound} bytes"
