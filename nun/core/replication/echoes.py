"""No large value travels back to the node that it came from.

    proposal with a large value --> primary's replicator notes the value --> the entry that holds it goes out twice:
      under the topic of the others    as it is
      under the topic of its origin    as an echo: its bytes, with places in proposals instead of the large values

The origin has kept what it proposed, puts the entry together again and checks it against the CRC of the whole. An entry
that it cannot put together counts as missed, and is fetched from the log as any other.

Subscriptions go by prefix and cannot say "all but mine". So a node's topic spells its number in 16 binary digits, and
who wants all but number 5 subscribes to the 16 prefixes that leave the spelling of 5 by one digit.

I1  An echo is worth nothing but what its CRC proves: a wrong entry is never handed down.
I2  What is kept for echoes is bounded in bytes and in time; without it entries are sent and fetched whole.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zlib import crc32

from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core.history import position_from
from nun.errors import WireError
from nun.limits import ECHO_BYTES_MAX
from nun.position import Position

if TYPE_CHECKING:
    from nun.core.replication.replicator import ReplicatorCore

_DIGITS: Final = 16
_DEPTH_MAX: Final = 4  # a proposal holds an item holds a batch
_MISSES_MAX: Final = 8  # values in a row that an entry is searched for in vain
KEPT_NS: Final = 10_000_000_000


def _spelled(number: int) -> bytes:
    return f"{number:0{_DIGITS}b}".encode()


def topics_of(number: int) -> list[bytes]:
    """What a member subscribes to: the entries of all other origins, and the echoes of its own."""
    spelled = _spelled(number)
    flipped = {b"0": b"1", b"1": b"0"}
    others = [
        pm.TOPIC_OF_OTHERS + spelled[:i] + flipped[spelled[i : i + 1]] for i in range(_DIGITS)
    ]
    return [*sorted(others), pm.TOPIC_ECHO + spelled]


class _Large(NamedTuple):
    """A value that some member proposed: whose, in which proposal, and where in it."""

    origin: int
    ticket: int
    offset: int
    value: bytes
    at_ns: int


class Echoes:
    """Both ends.

    Attributes:
        saved_bytes: what this primary did not send back.
        rebuilt, failed: echoes that this origin put together, and those that it could not.
    """

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core
        self._noted: deque[_Large] = deque()
        self._noted_bytes = 0
        self._kept: OrderedDict[int, tuple[bytes, int]] = OrderedDict()  # ticket -> body, since
        self._kept_bytes = 0
        self.saved_bytes = 0
        self.rebuilt = 0
        self.failed = 0

    # At the primary

    def note(self, origin: int, ticket: int, body: bytes) -> None:
        """A member has proposed this."""
        core = self._core
        if len(body) < core.settings.echo_above:
            return
        at = 0
        for value in _large_in(body, core.settings.echo_above, 0):
            found = body.find(value, at)
            if found >= 0:
                at = found + len(value)
                self._noted.append(_Large(origin, ticket, found, value, core.now_ns))
                self._noted_bytes += len(value)
        while self._noted_bytes > ECHO_BYTES_MAX:
            self._forget_oldest()

    def decided(self, origin: int, tickets: set[int]) -> None:
        """These were answered: their entries have gone out, or they made none."""
        if self._noted:
            left = [one for one in self._noted if one.origin != origin or one.ticket not in tickets]
            self._noted = deque(left)
            self._noted_bytes = sum(len(one.value) for one in left)

    def publish(self, position: Position, frame: bytes) -> None:
        """Sends an entry to all who follow."""
        core = self._core
        found = self._found_in(frame) if self._noted else []
        if not found:
            core.out.publish.append((pm.TOPIC_ENTRY, frame))
            return
        parts: list[Any] = []
        at = 0
        for offset, large in found:
            parts += [frame[at:offset], [large.ticket, large.offset, len(large.value)]]
            at = offset + len(large.value)
            self._noted.remove(large)
            self._noted_bytes -= len(large.value)
        parts.append(frame[at:])
        echo = pack((fx.ECHO, *position, crc32(frame), parts))
        spelled = _spelled(found[0][1].origin)
        core.out.publish.append((pm.TOPIC_OF_OTHERS + spelled, frame))
        core.out.publish.append((pm.TOPIC_ECHO + spelled, echo))
        self.saved_bytes += len(frame) - len(echo)

    def _found_in(self, frame: bytes) -> list[tuple[int, _Large]]:
        """The large values of one origin in an entry, with their places. They are in it in the order of proposals."""
        found: list[tuple[int, _Large]] = []
        if len(frame) < self._core.settings.echo_above:
            return found
        at = misses = 0
        for large in self._noted:
            if found and large.origin != found[0][1].origin:
                continue
            offset = frame.find(large.value, at)
            if offset >= 0:
                found.append((offset, large))
                at = offset + len(large.value)
                misses = 0
            else:
                misses += 1
                if misses > _MISSES_MAX:
                    break
        return found

    def _forget_oldest(self) -> None:
        self._noted_bytes -= len(self._noted.popleft().value)

    # At the origin

    def keep(self, ticket: int, body: bytes) -> None:
        """This node proposes this."""
        if len(body) < self._core.settings.echo_above:
            return
        self._drop(ticket)
        self._kept[ticket] = body, self._core.now_ns
        self._kept_bytes += len(body)
        while self._kept_bytes > ECHO_BYTES_MAX:
            self._drop(next(iter(self._kept)))

    def rebuild(self, echo: bytes) -> tuple[Position, bytes | None]:
        """The position of an entry and its frame; None where it cannot be put together.

        Raises:
            WireError, ValueError: it is no echo.
        """
        match unpack(echo):
            case [fx.ECHO, reign, node, start, seq, int() as crc, list() as parts]:
                position = position_from((reign, node, start, seq))
            case _:
                position = None
        if position is None:
            raise WireError("expected an echo of an entry")
        frame = b"".join(map(self._part, parts))
        if crc32(frame) != crc:
            self.failed += 1
            return position, None
        self.rebuilt += 1
        return position, frame

    def _part(self, part: Any) -> bytes:
        match part:
            case bytes():
                return part
            case [int() as ticket, int() as offset, int() as length] if offset >= 0 <= length:
                body, _ = self._kept.get(ticket, (b"", 0))
                return body[offset : offset + length]
        raise WireError("expected bytes, or a place in a proposal")

    def _drop(self, ticket: int) -> None:
        body, _ = self._kept.pop(ticket, (b"", 0))
        self._kept_bytes -= len(body)

    def tick(self) -> None:
        """Forgets what nobody will ask for any more."""
        before = self._core.now_ns - KEPT_NS
        while self._noted and self._noted[0].at_ns < before:
            self._forget_oldest()
        while self._kept and next(iter(self._kept.values()))[1] < before:
            self._drop(next(iter(self._kept)))


def _large_in(packed: bytes, above: int, depth: int) -> Iterator[bytes]:
    """The values of a proposal that are at least so large, in order; packed arrays in it are looked into."""
    try:
        inside = unpack(packed)
    except (WireError, ValueError):
        inside = None
    if not isinstance(inside, list) or depth > _DEPTH_MAX:
        if depth:
            yield packed
        return
    open = [iter(inside)]
    while open:
        for one in open[-1]:
            if isinstance(one, list):
                open.append(iter(one))
                break
            if isinstance(one, bytes) and len(one) >= above:
                yield from _large_in(one, above, depth + 1)
        else:
            open.pop()
