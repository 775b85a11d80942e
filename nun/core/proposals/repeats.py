"""Which requests of an outbox this history has decided already, as the node that holds the items has seen.

An item may be a repeat: its client may have asked again elsewhere, had its answer, and gone on, so that the row that
would tell is dropped (NodeState, I2). The item's own node sees every entry; it watches for the outcome.

    item made at position p  ->  every entry after what p and this history have in common is looked at  ->  verdict
    item that an entry decided which this history holds (again)  ->  DONE

I1  OPEN only if no entry of this history decided the request, and none can but as an item of another node: its
    client's floor is above its number. The primary looks whether one did since (`may_decide`), for UNKNOWN too.
I2  What cannot be known, since the log no longer reaches back to p, is UNKNOWN; never a guess. Where it was decided
    before it was cut off tells even so: after a forced promotion its node may come back, by a copy, to what it left. So
    does the row of the request, and that there is none as long as its client had not gone on: a copy brings rows.
    What was refused since its database was gone is DONE.
I3  Of a batch that was refused in part, that part alone is proposed, as REFUSED: the rest is DONE.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from nun import messages as m
from nun.codec import unpack
from nun.core import effects as fx
from nun.core.accept import is_refusal
from nun.core.proposals.outbox import Item, Operation, decode_item, encode_item
from nun.core.state import ClientRows, NodeState
from nun.errors import ConflictPending
from nun.position import Epoch, Position

UNKNOWN: Final = 0
OPEN: Final = 1
DONE: Final = 2
LATER: Final = 3  # not decided so far; whether it may still be, the floor does not show yet
REFUSED: Final = 4  # DONE, and it was refused

# Why an item is refused whose database is gone. Its writer is told, with the value, once: there is no ledger to ask.
GONE: Final = "its database is gone"

Request = tuple[bytes, int]  # client id, number
Outcome = tuple[int, Any]  # status, result
# Of an operation of a batch: its key if it was refused, else whether it was a write.
Part = bytes | bool
Parts = tuple[Part, ...]


class Held(NamedTuple):
    """What an outbox holds when its node starts.

    Attributes:
        following: the number of the next item.
        items: (number, item), oldest first.
        seen_from: every entry after this seq was looked at.
        decided: the requests that those entries decided, and how.
    """

    following: int = 1
    items: Sequence[tuple[int, bytes]] = ()
    seen_from: int = 0
    decided: Mapping[Request, Outcome] = MappingProxyType({})


def common_with(since: Position, epochs: Sequence[tuple[Epoch, int]]) -> int:
    """The seq up to which the history that held `since` is this one; -1 where it is not known."""
    later = [first for epoch, first in epochs if epoch > since.epoch]
    if len(later) == len(epochs) and epochs and epochs[0][1] > 1:
        return -1
    return min([since.seq, *(first - 1 for first in later)])


def request_of(data: bytes) -> Request:
    """Which request an item is."""
    item = decode_item(data)
    return item.client_id, item.number


def first_unseen(items: Iterable[tuple[int, bytes]], state: NodeState) -> int:
    """The seq after which entries must be looked at, for all items that are known to have one."""
    commons = [common_with(decode_item(data).since, state.epochs) for _, data in items]
    last = 0 if state.position is None else state.position.seq
    return min([common for common in commons if common >= 0], default=last)


def has_passed(state: NodeState, request: Request, op_id: int) -> bool:
    """Whether the row of a request, if there ever was one, is gone, so that its client cannot ask again."""
    client_id, number = request
    client = state.clients.get(client_id)
    if client is not None:
        if number in client.rows:
            return False
        if number < client.floor:
            return True
    return state.may_have_forgotten(client, number, op_id)


def may_decide(client: ClientRows | None, origin: int, verdict: int, seen: Position) -> bool:
    """Whether the verdict of a node that had seen the history up to there still holds for a request below the floor."""
    known = {} if client is None else client.late
    late = (seq for node, seq in known.items() if node != origin)
    return verdict != LATER and max(late, default=0) <= seen.seq


def is_refused(status: int, result: Any) -> bool:
    """Whether the outcome of a request says that it changed nothing, and is kept nowhere, nor told with its value."""
    if status in (0, ConflictPending.code):
        return False
    told = isinstance(result, list) and result[:1] in ([GONE], [GONE.encode()])
    return not told


def parts_of(status: int, result: Any) -> Parts:
    """What became of each operation of a batch; empty where none was refused, or all were at once."""
    match result:
        case [bytes() as packed, *_] if not status:
            answers = unpack(packed)
            parts = tuple(map(_part_of, answers)) if list in map(type, answers) else ()
            return parts if bytes in map(type, parts) else ()
    return ()


def _part_of(answer: Any) -> Part:
    if is_refusal(answer) and is_refused(answer[0], answer[1:]):
        return answer[2] or b""
    return answer is not None


def refused_of(item: Item, parts: Parts) -> list[Operation]:
    """The writes of an item that were refused where its request was decided, in this history, in parts.

    What was read has a place among the operations, among the parts, in both, or in neither.
    """
    operations = item.operations
    if len(operations) != len(parts):
        operations = [one for one in operations if one.kind != m.GET or one.argument is not None]
        parts = tuple(part for part in parts if part is not False)
    if len(operations) == len(parts):
        both = zip(operations, parts, strict=True)
        refused = [one for one, part in both if type(part) is bytes]
    else:  # it was cut off before, with gaps that nobody can place any more: the keys tell
        keys = {*parts}
        refused = [one for one in operations if one.key in keys]
    return [one for one in refused if one.kind != m.GET]


class Repeats:
    """Watches the stream for outcomes of requests that are in the outbox."""

    def __init__(self, state: NodeState, held: Held) -> None:
        self._state = state
        self._items: dict[int, tuple[Request, int]] = {}  # and the op id
        self._decided_at: dict[int, tuple[Position, ...]] = {}  # of those that were cut off
        self._unseen: set[int] = set()
        self._done: dict[int, tuple[int, Parts]] = {}  # -> DONE or REFUSED; where refused in part
        self._waiting: dict[Request, list[int]] = {}
        for number, data in held.items:
            item = decode_item(data)
            self.add(number, item)
            request = (item.client_id, item.number)
            if common_with(item.since, state.epochs) < held.seen_from and (
                has_passed(state, request, item.op_id)
            ):
                self._unseen.add(number)
            row = state.row_of(*request)
            if row is not None:
                self.decided(request, row.status, row.result)
        for numbers in self._waiting.values():
            # An item that came twice, when its decision was cut off: what is known of the later one goes for both.
            if not self._unseen.issuperset(numbers):
                self._unseen.difference_update(numbers)
        for request, (status, result) in held.decided.items():
            self.decided(request, status, result)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, number: int, item: Item) -> None:
        """An item is in the outbox now."""
        request = (item.client_id, item.number)
        self._items[number] = request, item.op_id
        if item.decided_at:
            self._decided_at[number] = item.decided_at
        self._waiting.setdefault(request, []).append(number)

    def decided(self, request: Request, status: int, result: Any) -> None:
        """An entry of this history has decided a request."""
        numbers = self._waiting.get(request)
        if numbers is None:
            return
        known = (REFUSED if is_refused(status, result) else DONE, parts_of(status, result))
        for number in numbers:
            self._done[number] = known

    def look_at(self, effects: Iterable[fx.Effect]) -> None:
        """An entry of this history."""
        for effect in effects:
            if effect[0] == fx.OUTCOME:
                self.decided((effect[1], effect[2]), effect[4], effect[6])

    def drop(self, number: int) -> None:
        """An item has left the outbox."""
        request, _ = self._items.pop(number)
        self._decided_at.pop(number, None)
        self._unseen.discard(number)
        self._done.pop(number, None)
        waiting = self._waiting[request]
        waiting.remove(number)
        if not waiting:
            del self._waiting[request]

    def verdict(self, number: int) -> int:
        """What is known of the request of an item that is in the outbox."""
        if self._stands(number):
            return DONE
        if number in self._done:
            return self._done[number][0]
        if number in self._unseen:
            return UNKNOWN
        request, op_id = self._items[number]
        first = self._waiting[request][0] == number
        return OPEN if first and has_passed(self._state, request, op_id) else LATER

    def _stands(self, number: int) -> bool:
        """Whether this history holds an entry that decided the item before it was cut off."""
        return any(map(self._state.in_history, self._decided_at.get(number, ())))

    def judged(self, number: int, data: bytes) -> tuple[int, bytes]:
        """The verdict on an item that is in the outbox, and the item as it is to be proposed (I3)."""
        _, parts = self._done.get(number, (OPEN, ()))
        if parts and not self._stands(number):
            item = decode_item(data)
            refused = refused_of(item, parts)
            if refused:
                return REFUSED, encode_item(item._replace(operations=refused))
        return self.verdict(number), data
