"""A watch as the client sees it: complete and in order across lost links, or honest about it.

I1  An event is given out once, in the order of the stream. After a lost link the watch starts again after the last
    entry that was given out; a node whose history has not got it answers with the state. Where a part of that entry may
    be missing, it starts after the one before; what was given out is dropped, and counted for that.
I2  What is received and not yet given out is bounded by the credit; credit goes back when a message has been given out.
I3  A watch that was being told the whole state when its link broke asks for the state again: it starts at NOWHERE, a
    position that is in no history. So does one that had a part of an entry which is not there any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nun.client.results import Event
from nun.client.values import Decoding
from nun.codec import unpack
from nun.errors import BadRequest, WireError
from nun.limits import EVENTS_BYTES_MAX, MIB, WATCH_CREDIT_BYTES_MAX
from nun.messages import (
    EVENT_COMPACTED,
    EVENT_CURRENT,
    EVENT_NAMES,
    WATCH_ALL,
    WATCH_KEY,
    WATCH_PREFIX,
)
from nun.position import Position

if TYPE_CHECKING:
    from nun.client.request import Grant

CREDIT_DEFAULT: Final = 1 * MIB
NOWHERE: Final = Position(0, 0, 0, 1)
_WHOLE: Final = 2**62  # in place of a count: all of that entry was given out


def scope_of(pattern: str | bytes) -> tuple[int, str | bytes]:
    """Scope and key of a watch: "user:*" is a prefix, "*" or "" all, anything else one key."""
    if not isinstance(pattern, str | bytes):
        raise TypeError(f"a watch is on str or bytes, not {type(pattern).__name__}")
    prefix: str | bytes
    if isinstance(pattern, str):
        starred, prefix = pattern.endswith("*"), pattern[:-1]
    else:
        starred, prefix = pattern.endswith(b"*"), pattern[:-1]
    if not pattern or (starred and not prefix):
        return WATCH_ALL, ""
    return (WATCH_PREFIX, prefix) if starred else (WATCH_KEY, pattern)


def position_of(since: Position | str | None) -> Position | None:
    """The position that `since` means. Raises TypeError or BadRequest."""
    if since is None or isinstance(since, Position):
        return since
    if not isinstance(since, str):
        raise TypeError(f"since is a Position, its text or None, not {type(since).__name__}")
    try:
        return Position.parse(since)
    except ValueError as error:
        raise BadRequest(str(error)) from error


class WatchState:
    """One watch. The session feeds it; its owner takes events out.

    States: `number` None and `error` None: to be asked for, or asked for and not answered; `number` set: live;
    `closed`: the owner has had enough; `error`: it ended, and says why once everything received was given out.
    """

    def __init__(
        self,
        grant: Grant,
        pattern: str | bytes,
        since: Position | str | None,
        credit: int,
        decoding: Decoding,
    ) -> None:
        if isinstance(credit, bool) or not isinstance(credit, int):
            raise TypeError(f"credit is a number of bytes, not {type(credit).__name__}")
        if not 0 < credit <= WATCH_CREDIT_BYTES_MAX:
            raise BadRequest(f"credit is 1 to {WATCH_CREDIT_BYTES_MAX} bytes, not {credit}")
        self.grant = grant
        self.scope, self.key = scope_of(pattern)
        self.credit = credit
        self.number: int | None = None
        self.waiter: Any = None  # the shell's
        self.asked = False
        self.begun = False  # it was live once
        self.closed = False
        self.error: Exception | None = None
        self.deadline = float("inf")  # for becoming live the first time
        self.ask_at = 0.0
        self.owed = 0  # bytes given out and not yet returned as credit
        self._key_of: Callable[[bytes], Any] = decoding.key
        self._value_of: Callable[[bytes], Any] = decoding.value
        self._bodies: deque[tuple[int, bytes]] = deque()
        self._stream = (
            0  # counts the times it was started: bodies of an earlier one are counted apart
        )
        self._reset_parser(0)
        # What was given out.
        self._since = position_of(since)
        self._entry: Position | None = None
        self._given = 0  # events of that entry
        self._partial = False  # there may be more of them
        self._copying = False
        self._doubtful = False  # whether the entry that was given out in part is still there

    def _reset_parser(self, stream: int) -> None:
        self._events: list[Any] = []  # of the message in hand, last first
        self._parsing = stream
        self._epoch = (0, 0, 0)
        self._body_bytes = 0
        self._seq = -1
        self._index = 0

    # The session's side

    @property
    def ready(self) -> bool:
        """Whether its owner has something to look at without waiting."""
        return bool(self._bodies) or self.error is not None or self.closed

    def resume_from(self) -> Position | None:
        """Where to start (again)."""
        return self.position

    def started(self, number: int, position: Position | None) -> None:
        """The node serves it: events follow from where it was asked for, or from `position` on."""
        self.number = number
        self.begun = True
        if self._since is None:
            self._since = position

    def stopped(self) -> None:
        """The link broke: what was received and not given out will come again."""
        self.number = None
        self.asked = False
        self.owed = 0
        self._stream += 1
        self._bodies.clear()
        self._doubtful = self._entry is not None and self.position != self._entry

    def is_of(self, stream: int) -> bool:
        """Whether the link has not broken since this was the stream."""
        return self.number is not None and stream == self._stream

    def feed(self, body: bytes) -> bool:
        """A message of events came. False: an entry that was given out in part is gone, so it is to be asked anew."""
        if self._doubtful:
            self._doubtful = False
            (reign, node, start), [(kind, *_, seq), *_] = unpack(body)
            if kind != EVENT_COMPACTED and Position(reign, node, start, seq) != self._entry:
                self.stopped()
                self._since, self._entry, self._doubtful, self.ask_at = NOWHERE, None, False, 0.0
                return False
        self._bodies.append((self._stream, body))
        return True

    # The owner's side

    def take_owed(self) -> tuple[int, int]:
        """Bytes of credit to return, and the stream that they belong to."""
        owed, self.owed = self.owed, 0
        return owed, self._stream

    @property
    def position(self) -> Position | None:
        """Where another watch can go on without missing anything; at worst it repeats events of one entry."""
        if self._copying or self._entry is None:
            return self._since
        return self._since if self._partial else self._entry

    def take(self) -> Event | None:
        """The next event, None when nothing is at hand.

        Raises:
            WireError: the node sent what is no message. ValueError: `decode` cannot show the value.
        """
        while True:
            while self._events:
                if self._parsing != self._stream:
                    self._reset_parser(self._stream)
                    break
                event = self._next()
                if event is not None:
                    return event
            self.owed += self._body_bytes
            self._body_bytes = 0
            try:
                stream, body = self._bodies.popleft()
            except IndexError:
                return None
            if stream != self._parsing:
                self._reset_parser(stream)
            self._open(body)

    def _open(self, body: bytes) -> None:
        match unpack(body):
            case [[int() as reign, int() as node, int() as start], [*events]] if all(
                isinstance(event, list) and len(event) == 6 for event in events
            ):
                self._epoch = (reign, node, start)
                self._events = events[::-1]
                self._body_bytes = len(body)
            case _:
                raise WireError("a message of events is [[reign, node, start], [event, ...]]")

    def _next(self) -> Event | None:
        """Gives out the next event of the message in hand, None if it was given out before."""
        kind, key, value, version, op_id, seq = self._events.pop()
        reign, node, start = self._epoch
        position = Position(reign, node, start, seq)
        if kind == EVENT_COMPACTED:
            self._copying = True
            self._since, self._entry = NOWHERE, None
            return Event("compacted", None, None, version, op_id, position)
        if kind == EVENT_CURRENT:
            self._copying = False
            self._since = self._entry = position
            self._given, self._partial = _WHOLE, False
            return Event("current", None, None, version, op_id, position)
        if not self._copying and not self._is_new(position, seq):
            return None
        return Event(
            EVENT_NAMES[kind],
            self._key_of(key),
            None if value is None else self._value_of(value),
            version,
            op_id,
            position,
        )

    def _is_new(self, position: Position, seq: int) -> bool:
        """Counts an event as given out; False if it was so before the link broke."""
        if seq == self._seq:
            self._index += 1
        else:
            self._seq, self._index = seq, 0
        entry = self._entry
        if entry is not None:
            if seq < entry.seq or (seq == entry.seq and self._index < self._given):
                return False
            if seq != entry.seq:
                self._since, self._given = entry, 0
        self._entry = position
        self._given += 1
        # An entry goes on in the next message only after a large one.
        events = self._events
        large = self._body_bytes >= EVENTS_BYTES_MAX // 8
        self._partial = events[-1][5] == seq if events else large
        return True
