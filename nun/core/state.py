"""The part of a node's state that is not records, and how entries change it.

*State* is exactly: records and tombstones (held per database by their owner), and what NodeState holds: the databases
with their options, the request rows (exactly-once), where each epoch began, member list and cluster id, the highest op
id. Users, tokens and permissions are records under system keys. The network process decides against this state,
recovery rebuilds it from the log, and the storage writer folds the log into it at each snapshot: all three by `apply`.

I1  Entries are applied in order of seq without a hole; an epoch only ever goes up.
I2  A request number below its client's floor has no row; the floor never goes down.
I3  `apply` of an entry that is already in changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from nun.core import effects as fx
from nun.core.clock import TICK
from nun.core.record import op_id_of
from nun.errors import WireError
from nun.limits import EPOCHS_KEPT_MAX, NOTICES_PER_CLIENT_MAX
from nun.position import Epoch, Position

_ROW_BYTES: Final = 160  # what a row costs beside its result, about
_CLIENT_BYTES: Final = 400
_NUMBERS_END: Final = 2**63  # above the numbers of all requests
_STAMPED: Final = frozenset(  # effects with the highest op id that they use as their third element
    {fx.PUT, fx.TOMBSTONE, fx.RECORDS, fx.INCREMENTED, fx.MADE}
)


class Row(NamedTuple):
    """What became of one request, kept so that a retry gets the same answer."""

    position: Position
    status: int
    op_id: int
    result: Any


@dataclass(slots=True)
class ClientRows:
    """The requests of one client that it has not yet shown to have an answer for.

    Attributes:
        late: node -> seq of its last item that was decided below the floor.
        horizon: the state's when this was made: older requests may have been decided, and been forgotten.
        first: the number of the request that it was made for; what is above that came later. Made for an item, which
            may be older than what was forgotten, it is above all.
    """

    floor: int = 0
    last_op_id: int = 0
    rows: dict[int, Row] = field(default_factory=dict)
    late: dict[int, int] = field(default_factory=dict)
    horizon: int = 0
    first: int = 0


@dataclass(slots=True)
class DatabaseInfo:
    """A database: its number within the cluster, name, and options such as its strategy."""

    number: int
    name: str
    options: dict[str, Any]

    @property
    def strategy(self) -> str:
        return str(self.options.get("strategy", "none"))


class Member(NamedTuple):
    """A node of the cluster as it last joined: its name, its data directory's id, and which start of it that was."""

    name: str
    directory: bytes
    start: int


def size_of_result(result: Any) -> int:
    """Roughly how many bytes a row's result holds in memory."""
    if type(result) is int:  # nearly always: the version that a write made
        return 16
    if isinstance(result, bytes | str):
        return len(result)
    if isinstance(result, list | tuple):
        return 64 + sum(map(size_of_result, result))
    if isinstance(result, dict):
        return 128 + sum(map(size_of_result, result.values()))
    return 16


class NodeState:
    """All state of a node but the records."""

    def __init__(self) -> None:
        self.cluster_id = b""
        self.members: dict[int, Member] = {}
        self.next_number = 1  # no member ever had this number or one above it
        self.notices: dict[bytes, dict[int, bytes]] = {}  # client id -> op id of the losing write
        self.outboxes: dict[
            int, int
        ] = {}  # node number -> the last of its proposals that is decided
        self.epochs: list[tuple[Epoch, int]] = []  # (epoch, first seq), oldest first
        self.databases: dict[int, DatabaseInfo] = {}
        self.next_database = 1
        self.clients: dict[bytes, ClientRows] = {}
        self.rows_bytes = 0
        self.horizon = 0  # op id: a client born at or before it may have been forgotten
        self.highest_op_id = 0
        self.position: Position | None = None
        self._late: list[
            ClientRows
        ] = []  # of outcomes below the floor whose OUTBOX effect is to come
        self._made = b"", 0  # the client that an OUTCOME effect was the first of, and the entry
        self._heads = b""  # of the PUTS effect taken last: what an OUTCOME with result True means

    # Reading

    def database_named(self, name: str) -> DatabaseInfo | None:
        for info in self.databases.values():
            if info.name == name:
                return info
        return None

    def row_of(self, client_id: bytes, number: int) -> Row | None:
        """What is remembered of a request."""
        client = self.clients.get(client_id)
        return None if client is None else client.rows.get(number)

    def may_have_forgotten(self, client: ClientRows | None, number: int, op_id: int) -> bool:
        """Whether a request without a row, made at that time or later, may have been decided, and been forgotten."""
        if client is None:
            return op_id <= self.horizon
        return op_id <= client.horizon and number < client.first

    def in_history(self, position: Position) -> bool:
        """Whether this node's history holds an entry at this very position."""
        if self.position is None or position.seq > self.position.seq:
            return False
        epoch = None
        for began, first_seq in self.epochs:
            if first_seq > position.seq:
                break
            epoch = began
        return epoch == position.epoch

    def epoch_of(self, seq: int) -> Epoch | None:
        """The epoch that decided the entry `seq`, if it is in this history."""
        found = None
        for began, first_seq in self.epochs:
            if first_seq > seq:
                break
            found = began
        return found

    # Changing

    def apply(self, position: Position, entry: Sequence[fx.Effect]) -> None:
        """Takes in one entry: all of it but the changes to records."""
        if self.position is not None and position.seq <= self.position.seq:
            return
        last = self.position.seq if self.position is not None else 0
        if position.seq != last + 1 or (self.position and position < self.position):
            raise WireError(f"entry {position} does not follow {self.position}")
        if not self.epochs or self.epochs[-1][0] != position.epoch:
            began = entry[0] if entry else None
            if began is None or began[0] != fx.EPOCH:
                raise WireError(f"entry {position} begins an epoch and does not say so")
        for effect in entry:
            self.take(position, effect)
        self.position = position

    def take(self, position: Position, effect: fx.Effect) -> None:
        """Takes in one effect of the entry at `position`; `apply` does so for all of an entry."""
        kind = effect[0]
        if kind in _STAMPED:
            self._observe(effect[2])
        elif kind == fx.OUTCOME:
            self._outcome(position, effect)
        elif kind == fx.PUTS:
            self._heads = effect[3]
            self._observe(effect[2] + TICK * max(len(self._heads) // 12 - 1, 0))
        elif kind == fx.SIGNED:
            self._observe(op_id_of(effect[3]))
        elif kind == fx.SUMS:
            self._observe(effect[2] + TICK * (len(effect[4]) - 1))
        elif kind == fx.DATABASE:
            self.take_database(effect)
        elif kind == fx.DROP_DATABASE:
            self.databases.pop(effect[1], None)
        elif kind == fx.EPOCH:
            self.cluster_id = effect[1]
            self._take_members(effect[2], effect[3])
            self.epochs.append((position.epoch, position.seq))
            del self.epochs[:-EPOCHS_KEPT_MAX]
        elif kind == fx.FORGET:
            self.forget(effect[1], effect[2])
        elif kind == fx.MEMBERS:
            self._take_members(effect[1], effect[2])
        elif kind == fx.NOTICE:
            self._notice(effect[1], effect[2], effect[3])
        elif kind == fx.SEEN:
            self._seen(effect[1], effect[2])
        elif kind == fx.OUTBOX:
            self.outboxes[effect[1]] = max(effect[2], self.outboxes.get(effect[1], 0))
            for client in self._late:
                client.late[effect[1]] = position.seq
            self._late.clear()
            client_id, seq = self._made
            if seq == position.seq and client_id in self.clients:
                self.clients[client_id].first = _NUMBERS_END

    def _notice(self, client_id: bytes, op_id: int, notice: bytes) -> None:
        """A client is to be told; of too many the oldest go, the ledger has them still."""
        notices = self.notices.setdefault(client_id, {})
        notices[op_id] = notice
        if len(notices) > NOTICES_PER_CLIENT_MAX:
            del notices[next(iter(notices))]

    def _seen(self, client_id: bytes, op_ids: Sequence[int]) -> None:
        notices = self.notices.get(client_id)
        if notices is not None:
            for op_id in op_ids:
                notices.pop(op_id, None)
            if not notices:
                del self.notices[client_id]

    def _take_members(self, members: Mapping[int, Sequence[Any]], next_number: int) -> None:
        self.members = {
            number: Member(_text(name), directory, start)
            for number, (name, directory, start) in members.items()
        }
        self.next_number = next_number

    def _outcome(self, position: Position, effect: fx.Effect) -> None:
        """Remembers what became of a request and drops the rows that its client is done with."""
        _, client_id, number, floor, status, op_id, result = effect
        client = self.clients.get(client_id)
        self._made = b"", 0
        if client is None:
            client = self.clients[client_id] = ClientRows(horizon=self.horizon, first=number)
            self._made = client_id, position.seq
            self.rows_bytes += _CLIENT_BYTES
        if floor > client.floor:
            client.floor = floor
            if client.rows:
                self._drop_rows(client, floor)
        result = self._heads if result is True else result
        if number >= client.floor:
            client.rows[number] = Row(position, status, op_id, result)
            self.rows_bytes += _ROW_BYTES + size_of_result(result)
        else:
            self._late.append(client)
        if op_id > self.highest_op_id:
            self.highest_op_id = op_id
        client.last_op_id = self.highest_op_id

    def forget(self, client_ids: Iterable[bytes], horizon: int) -> None:
        """Drops all that is remembered of these clients."""
        for client_id in client_ids:
            client = self.clients.pop(client_id, None)
            if client is not None:
                self._drop_rows(client, 2**64)
                self.rows_bytes -= _CLIENT_BYTES
        self.horizon = max(self.horizon, horizon)

    def least_recent_clients(self, bytes_to_free: int) -> tuple[list[bytes], int]:
        """The clients to forget so that about this many bytes are free, and the horizon that this makes."""
        ids: list[bytes] = []
        horizon = self.horizon
        for client_id, client in sorted(
            self.clients.items(), key=lambda item: (item[1].last_op_id, item[0])
        ):
            if bytes_to_free <= 0:
                break
            bytes_to_free -= _CLIENT_BYTES + sum(
                _ROW_BYTES + size_of_result(row.result) for row in client.rows.values()
            )
            ids.append(client_id)
            horizon = max(horizon, client.last_op_id)
        return ids, horizon

    def _drop_rows(self, client: ClientRows, floor: int) -> None:
        rows = client.rows
        for number in list(rows):
            if number < floor:
                self.rows_bytes -= _ROW_BYTES + size_of_result(rows.pop(number).result)

    def take_database(self, effect: fx.Effect) -> None:
        """A database was created, or its options changed."""
        _, number, name, options = effect
        self.databases[number] = DatabaseInfo(number, _text(name), _texts(options))
        self.next_database = max(self.next_database, number + 1)

    def _observe(self, op_id: int) -> None:
        if op_id > self.highest_op_id:
            self.highest_op_id = op_id

    # On disk and to other nodes

    def dump(self) -> list[Any]:
        """Plain values that `load` makes the same state from."""
        return [
            self.cluster_id,
            self.members,
            self.next_number,
            self.outboxes,
            self.notices,
            [[*epoch, seq] for epoch, seq in self.epochs],
            [[info.number, info.name, info.options] for info in self.databases.values()],
            self.next_database,
            [
                [
                    client_id,
                    client.floor,
                    client.last_op_id,
                    [[number, *row] for number, row in client.rows.items()],
                    client.late,
                    client.horizon,
                    client.first,
                ]
                for client_id, client in self.clients.items()
            ],
            self.horizon,
            self.highest_op_id,
            self.position,
        ]

    @classmethod
    def load(cls, dumped: list[Any]) -> NodeState:
        """Reads `dump` back, from msgpack too. Raises WireError on what no dump looks like."""
        state = cls()
        try:
            (
                state.cluster_id,
                members,
                next_number,
                outboxes,
                notices,
                epochs,
                databases,
                state.next_database,
                clients,
                state.horizon,
                state.highest_op_id,
                position,
            ) = dumped
            state._take_members(members, next_number)
            state.outboxes = dict(outboxes)
            state.notices = {client_id: dict(held) for client_id, held in notices.items()}
            state.epochs = [(Epoch(*item[:3]), item[3]) for item in epochs]
            for number, name, options in databases:
                state.take_database([fx.DATABASE, number, name, options])
            for client_id, floor, last_op_id, rows, late, *forgotten in clients:
                client = ClientRows(floor, last_op_id, {}, dict(late), *forgotten)
                for number, where, status, op_id, result in rows:
                    client.rows[number] = Row(Position(*where), status, op_id, result)
                    state.rows_bytes += _ROW_BYTES + size_of_result(result)
                state.rows_bytes += _CLIENT_BYTES
                state.clients[client_id] = client
            state.position = None if position is None else Position(*position)
        except (TypeError, ValueError, AttributeError) as error:
            raise WireError(f"not a dumped state: {error}") from error
        return state


def _texts(options: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        _text(key): _texts(value) if isinstance(value, Mapping) else _text(value)
        for key, value in options.items()
    }


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
