"""`local` writes: taken, shown and answered by a node that is not the primary, and decided later.

    taken: stamped, checked against what is shown  ->  outbox durable: answered  ->  proposed, in order  ->  decided: an
    OUTBOX effect names its number  ->  that entry is settled: it leaves the outbox

What is shown here is the newest item for the key, else the committed record. Items of an earlier life of this process,
and writes that a change of primary cut off, are proposed like any other; the latter are not shown: this history has
decided without them.

I1  An item is shown and answered only once it is durable in the outbox (P3), and stays in it until settled (P1).
I2  Items are proposed in order of their numbers, each naming the one before it.
I3  The outbox is bounded in bytes; beyond, local writes are refused. So is what is under way to the primary: the rest
    follows as that is decided.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack
from nun.core import effects as fx
from nun.core import record
from nun.core.accept import base_of, check_condition, incremented, next_version
from nun.core.clock import TICK
from nun.core.proposals.forwarding import item_body
from nun.core.proposals.outbox import Item, Operation, encode_item
from nun.core.proposals.repeats import Held, Repeats
from nun.core.record import ABSENT
from nun.core.requests.arguments import (
    check_delta,
    check_floor,
    check_key,
    check_keys,
    check_managed,
    check_value,
    columns,
)
from nun.core.requests.data import RIGHT_OF
from nun.errors import BadRequest, Overloaded, VersionConflict
from nun.limits import OUTBOX_BYTES_MAX
from nun.messages import IN_CONFLICT
from nun.position import NOTHING

if TYPE_CHECKING:
    from nun.core.keyspace import Page, Pattern
    from nun.core.network import NetworkCore
    from nun.core.requests.sessions import Session

TICKETS_FROM: Final = (
    2**62
)  # the tickets of items begin here; those of forwarded requests stay below
_AGAIN_NS: Final = 1_000_000_000
PROPOSED_BYTES_MAX: Final = 1_048_576


@dataclass(slots=True)
class _Taken:
    """What a local request comes to.

    Attributes:
        made: the records to be shown. held: what each operation found.
        queued: whether some operation waits for its decision unseen.
    """

    operations: list[Operation] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    made: dict[bytes, bytes] = field(default_factory=dict)
    held: list[bytes] = field(default_factory=list)
    queued: bool = False


class Tentative:
    """The outbox of this node, as the network process sees it.

    Args:
        held: what the outbox holds.
    """

    def __init__(self, core: NetworkCore, held: Held) -> None:
        self._core = core
        self._following = held.following
        self._items: dict[int, bytes] = dict(held.items)
        self.repeats = Repeats(core.state, held)
        self._bytes = sum(map(len, self._items.values()))
        self._durable = held.following - 1
        self._done = 0
        self._answers: dict[int, list[tuple[bytes, bytes]]] = {}  # until the item is durable
        self._requests: dict[tuple[bytes, int], tuple[int, bytes]] = {}  # -> item, reply
        self._decided: list[tuple[int, int]] = []  # (seq, item) that are not settled yet
        decided = core.state.outboxes.get(core.number, 0)
        if any(number <= decided for number in self._items):  # in an earlier life of this process
            self._decided.append((core.stream.last_seq, decided))
        self._proposed_ns: int | None = None
        self._proposed_to = 0  # the last item that is under way to the present primary
        self.shown: dict[
            int, dict[bytes, tuple[bytes, int]]
        ] = {}  # database -> key -> record, item

    def __len__(self) -> int:
        return len(self._items)

    # Taking

    def is_old(self, client_id: bytes, number: int) -> bool:
        """Whether a request was decided, as far as is known here: its row answers it, or nothing does any more."""
        client = self._core.state.clients.get(client_id)
        return (
            client is not None
            and (number < client.floor or number in client.rows)
            and (client_id, number) not in self._requests
        )

    def take(self, session: Session, message: list[Any]) -> None:
        """Takes a write with ack level `local`. Raises what the accept rule and the checks raise."""
        core = self._core
        kind, number, floor, database = message[0], message[2], message[3], message[4]
        _, rights = core.grant(session, database)
        check_floor(number, floor)
        known = self._requests.get((session.client_id, number))
        if known is not None:
            self._answer(known[0], session.peer, known[1])
            return
        kinds, keys, arguments, conditions = _operations_of(message)
        for one, key in zip(kinds, keys, strict=True):
            check_key(key)
            if key.startswith(b"$"):
                raise BadRequest("keys that begin with $ take no local writes")
            rights.check(RIGHT_OF[one], key)
            check_managed(key)
        if self._bytes > OUTBOX_BYTES_MAX:
            raise Overloaded(
                f"{self._bytes} bytes wait for the primary",
                limit="OUTBOX_BYTES_MAX",
                retry_after_ms=1_000,
            )
        atomic = kind == m.BATCH and message[5]
        first = core.stream.clock.reserve(core.unix_ms, max(len(keys), 1))
        taken = self._show(database, atomic, first, (kinds, keys, arguments, conditions))
        name = core.state.databases[database].name.encode()
        since = core.state.position or NOTHING
        at_ms, bound_ms = core.stamped_at(session)
        client_id = session.client_id
        item = Item(
            client_id, number, floor, name, kind, atomic, taken.operations, at_ms, bound_ms, since
        )
        answers = taken.answers
        result: Any = answers if kind in (m.BATCH, m.SET_MANY) else answers[0] if answers else None
        if kind == m.SET_MANY and not taken.queued:
            result = record.heads(taken.held)
        reply = pack((0, number, result, None, first))
        session.highest_number = max(session.highest_number, number)
        self._put(item, database, taken.made, session.peer, reply)

    def _show(
        self,
        database: int,
        atomic: bool,
        first: int,
        asked: tuple[bytes, Sequence[bytes], Sequence[Any], dict[int, Any]],
    ) -> _Taken:
        """What the operations of a request come to over what is shown; those that cannot be shown wait."""
        core = self._core
        table = core.tables[database]
        shown = self.shown.get(database, {})
        kinds, keys, arguments, conditions = asked
        taken = _Taken()
        made = taken.made
        for index, (one, key, argument) in enumerate(zip(kinds, keys, arguments, strict=True)):
            op_id = first + index * TICK
            held = made.get(key) or (
                shown[key][0] if key in shown else table.records.get(key, ABSENT)
            )
            condition = conditions.get(index)
            taken.held.append(held)
            try:
                version = next_version(key, held, condition)
            except VersionConflict:
                if atomic or not core.conflicts.takes(database, key, held, condition):
                    raise
                base = base_of(condition, key, held, table)
                taken.operations.append(Operation(one, key, argument, base, op_id))
                taken.answers.append([IN_CONFLICT, None] if one == m.INCREMENT else IN_CONFLICT)
                taken.queued = True
                continue
            gap = version if version > record.version_of(held) + 1 else 0
            base = record.op_id_of(held)
            taken.operations.append(Operation(one, key, argument, base, op_id, gap))
            answer: Any = version
            if one == m.REMOVE:
                made[key] = record.tombstone(version, op_id)
            elif one == m.INCREMENT:
                total = incremented(key, held, argument)
                made[key] = record.live(version, op_id, b"%d" % total)
                answer = [version, total]
            else:
                made[key] = record.live(version, op_id, argument)
            taken.answers.append(answer)
        return taken

    def _put(
        self, item: Item, database: int, made: dict[bytes, bytes], peer: bytes, reply: bytes
    ) -> None:
        number = self._following
        self._following += 1
        data = encode_item(item)
        self._items[number] = data
        self.repeats.add(number, item)
        self._bytes += len(data)
        self._requests[item.client_id, item.number] = (number, reply)
        shown = self.shown.setdefault(database, {})
        shown.update((key, (packed, number)) for key, packed in made.items())
        self._core.out.items.append(fx.encode_item(number, data))
        self._answer(number, peer, reply)

    def _answer(self, number: int, peer: bytes, frame: bytes) -> None:
        if number <= self._durable:
            self._core.send(peer, frame)
        else:
            self._answers.setdefault(number, []).append((peer, frame))

    def durable(self, number: int) -> None:
        """The outbox has items up to this one on disk: they are answered, and proposed."""
        for one in [item for item in self._answers if item <= number]:
            for peer, frame in self._answers.pop(one, ()):
                self._core.send(peer, frame)
        self._durable = max(number, self._durable)
        self._propose()

    # Reading

    def record_of(self, database: int, key: bytes) -> bytes | None:
        """What is shown tentatively for a key; None where nothing is."""
        found = self.shown.get(database, {}).get(key)
        return None if found is None else found[0]

    def page_of(
        self, database: int, pattern: Pattern, after: bytes | None, limit: int, page: Page
    ) -> tuple[Page, Collection[bytes]]:
        """A page of committed keys with what is added and removed tentatively, and the keys that it shows so.

        Args:
            after, limit: as asked. page: up to so many keys, and the key to go on after, None at the end.
        """
        found, until = page
        own = {
            key: packed
            for key, (packed, _) in self.shown.get(database, {}).items()
            if pattern.matches(key)
            and (after is None or key > after)
            and (until is None or key <= until)
        }
        if not own:
            return page, own
        live = {key for key, packed in own.items() if record.is_live(packed)}
        found = sorted(live.union(found) - (own.keys() - live))
        if len(found) > limit:
            found = found[:limit]
            until = found[-1]
        return (found, until), own

    def reply(
        self, session: Session, number: int, database: int, keys: Collection[bytes], result: Any
    ) -> None:
        """Answers a read that shows tentative values, once they are durable here."""
        frame = pack((0, number, result, None, 0))
        shown = self.shown.get(database, {})
        items = [shown[key][1] for key in keys if key in shown]
        self._answer(max(items, default=0), session.peer, frame)

    # Proposing

    def propose(self) -> None:
        """Proposes everything again, to whoever is primary now."""
        self._proposed_to = 0
        self._propose()

    def _propose(self) -> None:
        """Proposes what comes next, unless as much as may be is under way."""
        core = self._core
        decided = max((item for _, item in self._decided), default=self._done)
        previous = max(self._proposed_to, decided)
        room = PROPOSED_BYTES_MAX - sum(
            len(data) for number, data in self._items.items() if decided < number <= previous
        )
        if room <= 0:
            return
        bodies = []
        seen = core.state.position or NOTHING
        for number, data in self._items.items():
            if not previous < number <= self._durable:
                continue
            verdict, proposed = self.repeats.judged(number, data)
            body = item_body(previous, number, verdict, seen, proposed)
            bodies.append((TICKETS_FROM + number, body))
            previous = number
            room -= len(data)
            if room <= 0:
                break
        if not bodies:
            return
        if core.decides:
            self._proposed_to = previous
            core.proposals.take([(core.number, ticket, body) for ticket, body in bodies])
        elif core.roles.primary is not None:
            self._proposed_to = previous
            self._proposed_ns = core.now_ns
            core.out.to_replicator.append((pm.PROPOSE, [list(body) for body in bodies]))

    def decided(self, seq: int, node: int, number: int) -> None:
        """An OUTBOX effect has come: items of a node up to this one are decided."""
        if node != self._core.number or number not in self._items:
            return
        self._decided.append((seq, number))
        for database, shown in list(self.shown.items()):
            for key in [key for key, (_, item) in shown.items() if item <= number]:
                del shown[key]
            if not shown:
                del self.shown[database]

    def settled(self, seq: int) -> None:
        """Entries up to here are settled: items that they decided may go."""
        done = 0
        while self._decided and self._decided[0][0] <= seq:
            done = self._decided.pop(0)[1]
        if done:
            self._done = max(done, self._done)
            for number in [number for number in self._items if number <= done]:
                self._bytes -= len(self._items.pop(number))
                self.repeats.drop(number)
            self._requests = {
                request: known for request, known in self._requests.items() if known[0] > done
            }
            self._core.out.to_writer.append((pm.OUTBOX_DONE, done))
        if self._items:
            self._propose()

    def tick(self) -> None:
        """Hands the storage writer again what it has not on disk; proposes again what was not decided for a while."""
        core = self._core
        for number in range(self._durable + 1, self._following):
            core.out.items.append(fx.encode_item(number, self._items[number]))  # that stream loses
        if self._items and (
            self._proposed_ns is None or core.now_ns - self._proposed_ns > _AGAIN_NS
        ):
            self._proposed_ns = core.now_ns
            self.propose()
        elif self._items:
            self._propose()


def _operations_of(
    message: list[Any],
) -> tuple[bytes, Sequence[bytes], Sequence[Any], dict[int, Any]]:
    """(kinds, keys, arguments, conditions) of a write. Raises BadRequest or TooLarge."""
    kind = message[0]
    conditions: dict[int, Any] = {}
    if kind == m.SET:
        check_value(message[6])
        conditions[0] = message[7]
        kinds, keys, arguments = bytes([kind]), [message[5]], [message[6]]
    elif kind == m.REMOVE:
        conditions[0] = message[6]
        kinds, keys, arguments = bytes([kind]), [message[5]], [None]
    elif kind == m.INCREMENT:
        check_delta(message[6])
        kinds, keys, arguments = bytes([kind]), [message[5]], [message[6]]
    else:
        keys, arguments = columns(message[7] if kind == m.BATCH else message[5])
        kinds = message[6] if kind == m.BATCH else bytes([m.SET]) * len(keys)
        check_keys(keys)
        if type(kinds) is not bytes or len(kinds) != len(keys):
            raise BadRequest("a batch has one byte of kind an operation")
        conditions.update((message[8] or {}) if kind == m.BATCH else {})
        for one, argument in zip(kinds, arguments, strict=True):
            if one == m.SET:
                check_value(argument)
            elif one == m.INCREMENT:
                check_delta(argument)
            elif one != m.REMOVE:
                raise BadRequest("a local batch has sets, removes and increments only")
    for condition in conditions.values():
        check_condition(condition)
    return kinds, keys, arguments, conditions
