"""Entries and effects: what was decided, in absolute terms.

An **entry** is the unit of the log, the stream and the ack. Its frame is one msgpack array

    [ENTRY, reign, node, start, seq, body]          body: the msgpack bytes of a list of effects

and the same bytes travel on the op stream, lie in the log and are replayed. An **effect** is an array whose first
element is its kind:

    PUT             [kind, database, op_id, version, replaced, key, value]
    TOMBSTONE       [kind, database, op_id, version, replaced, key]
    DROP            [kind, database, [key, ...]]                          tombstones whose retention is over
    PUTS            [kind, database, first_op_id, heads, payload]         many plain sets at once, see below
    DATABASE        [kind, database, name, {option: value}]               created, or its options changed
    DROP_DATABASE   [kind, database]
    EPOCH           [kind, cluster_id, members, next_number]              the first effect of every epoch
    MEMBERS         [kind, members, next_number]                          a node has become a member, or started anew
    OUTBOX          [kind, node number, outbox number]                    that node's proposals up to here are decided
    NOTICE          [kind, client_id, op_id, notice]                      a losing write's outcome, for its client
    SEEN            [kind, client_id, [op_id, ...]]                       its client has dealt with these
    INCREMENTED     [kind, database, op_id, version, replaced, key, value, delta]     a PUT that an increment came to
    OUTCOME         [kind, client_id, number, floor, status, op_id, result]  what became of one request
    FORGET          [kind, [client_id, ...], horizon]                     request rows evicted
    RECORDS         [kind, database, last_op_id, keys, records, replaced] many changes at once: the new packed records
    SUMS            [kind, database, first_op_id, heads, keys, deltas, sums]    many increments at once, see below
    CHECK           [kind]                                                every node makes digests of what it holds
    MADE            [kind, database, last_op_id, keys, records, silent]   records that the primary made by itself
    SIGNED          [kind, database, key, record, replaced, base, delta]  one signed write; delta: nil or an increment's
    LOST            [kind, database, write kind, key, argument, base, op_id, at, bound]    did not win, see below
    RESOLVED        [kind, database, key, write kind, argument, shown, op_ids, op_id]      a resolution was accepted
    DECIDED_AT      [kind, [position, ...]]                               of the request of the next OUTCOME, see below

`members` is `{node number: [name, directory id, start]}`: what each member was when it last joined, and `next_number`
the lowest number that no member ever had.

`replaced` is the op id of the record that a write replaced, 0 where the key was absent.

PUTS keeps the cost of a batch per message, not per key: `payload` is the client's own bytes of `[keys, values]`,
handed on unchanged; `heads` holds, for each key, the twelve bytes (version, op id) of the record it replaced, zeros
where the key was absent. The i-th new record has the old version + 1 and op id `first_op_id + i * TICK`. That is as
absolute as a PUT: applying it twice changes nothing. Its keys are distinct and none of them held a tombstone.

SUMS does the same for increments: `deltas` and `sums` hold what each added and came to, as 64-bit integers of eight
bytes; a key may stand among the keys again. `heads` are those of the records that the distinct keys held, in the order
in which each key first comes; they were live integers. The i-th increment made the record of op id
`first_op_id + i * TICK`, one version on.

RECORDS is what any other batch comes to: keys (one may stand there twice, the later record counts), the records they
got (nun/core/record.py; live or tombstone), the highest op id among them, and the joined heads of what each replaced.

MADE holds what follows from a client's write and is not that write: a key that goes in conflict (`silent`: watchers of
the key see nothing new), entries of the ledger, the record that a resolution comes to. LOST (a write that joined a
queue, or one of an item that was refused) and RESOLVED change nothing by themselves: they say which write it was, so
that it can be proposed again should this history be cut off. `base` is the record that a write was made on, where that
is not what it replaced. Where the database of an item is gone, LOST has 0 for it, and the NOTICE before it the name. A
LOST that is followed by an OUTBOX and no OUTCOME is of a request that was decided before, or may have been; the NOTICE
says which. DECIDED_AT has where an item was decided in other histories: should this one be cut off for one of those, it
is known there.

`result` of an OUTCOME is what the reply carried, but for what was read; of a batch decided kind by kind it also has its
`kinds`, under the number of BATCH, and 0 if it was atomic; of any other batch it is an array of the packed answers, and
True if it was atomic. True alone stands for the heads of the PUTS effect just before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from nun.codec import pack, unpack
from nun.core import record
from nun.core.clock import TICK
from nun.errors import WireError
from nun.position import Epoch, Position

ENTRY: Final = 1
BEAT: Final = 2
PEER_BEAT: Final = 3
MARKER: Final = 4
ITEM: Final = 5
ECHO: Final = 6

PUT: Final = 1
TOMBSTONE: Final = 2
DROP: Final = 3
PUTS: Final = 4
DATABASE: Final = 5
DROP_DATABASE: Final = 6
EPOCH: Final = 7
OUTCOME: Final = 8
FORGET: Final = 9
RECORDS: Final = 10
MEMBERS: Final = 11
OUTBOX: Final = 12
INCREMENTED: Final = 13
NOTICE: Final = 14
SEEN: Final = 15
SUMS: Final = 16
CHECK: Final = 17
MADE: Final = 18
SIGNED: Final = 19
LOST: Final = 20
RESOLVED: Final = 21
DECIDED_AT: Final = 22

_LENGTHS: Final = {
    PUT: 7,
    TOMBSTONE: 6,
    DROP: 3,
    PUTS: 5,
    DATABASE: 4,
    DROP_DATABASE: 2,
    EPOCH: 4,
    OUTCOME: 7,
    FORGET: 3,
    RECORDS: 6,
    MEMBERS: 3,
    OUTBOX: 3,
    INCREMENTED: 8,
    NOTICE: 4,
    SEEN: 3,
    SUMS: 7,
    CHECK: 1,
    MADE: 6,
    SIGNED: 7,
    LOST: 9,
    RESOLVED: 8,
    DECIDED_AT: 2,
}

_ITEM_BEGINS: Final = b"\x93\x05"  # an array of three, the first of them ITEM

Effect = Sequence[Any]


class RecordChange(NamedTuple):
    """What one effect does to the records of one database; a record of None is dropped.

    `silent`: what readers see of these keys has not changed.
    """

    database: int
    keys: Sequence[bytes]
    records: Sequence[bytes | None]
    silent: bool = False


def encode_entry(position: Position, effects: Sequence[Effect]) -> bytes:
    """The frame of an entry."""
    return pack((ENTRY, *position, pack(effects)))


def encode_beat(epoch: Epoch, last_seq: int) -> bytes:
    """The frame that says, while nothing happens, which entry was the last: a lost tail shows within one beat."""
    return pack((BEAT, *epoch, last_seq))


def encode_peer_beat(epoch: Epoch, last_seq: int, durable_seq: int, settled_seq: int) -> bytes:
    """The beat that other nodes get: it also says how far the primary's disk and a majority's disks are."""
    return pack((PEER_BEAT, *epoch, last_seq, durable_seq, settled_seq))


def decode_peer_beat(frame: bytes) -> tuple[Epoch, int, int, int]:
    """(epoch, last, durable, settled seq). Raises WireError."""
    match unpack(frame):
        case [
            3,
            int() as reign,
            int() as node,
            int() as start,
            int() as last,
            int() as durable,
            int() as settled,
        ]:
            return Epoch(reign, node, start), last, durable, settled
    raise WireError("expected a beat for other nodes")


def encode_marker(epoch: Epoch, last_seq: int) -> bytes:
    """The answer to the subscription of a private topic: the last entry that was sent on this socket before it."""
    return pack((MARKER, *epoch, last_seq))


def decode_marker(frame: bytes) -> tuple[Epoch, int]:
    """(epoch, last seq). Raises WireError."""
    match unpack(frame):
        case [4, int() as reign, int() as node, int() as start, int() as last]:
            return Epoch(reign, node, start), last
    raise WireError("expected a marker")


def encode_item(number: int, item: bytes) -> bytes:
    """The frame that hands an item of the outbox to the storage writer."""
    return pack((ITEM, number, item))


def decode_item(frame: bytes) -> tuple[int, bytes]:
    """(outbox number, item). Raises WireError."""
    match unpack(frame):
        case [5, int() as number, bytes() as item]:
            return number, item
    raise WireError("expected an item of the outbox")


def is_item(frame: bytes) -> bool:
    """Whether a frame of the op stream is an item of the outbox; told by its first bytes."""
    return frame[:2] == _ITEM_BEGINS


def decode_head(frame: bytes | memoryview) -> tuple[int, Position, bytes]:
    """Kind, position and body (empty for a beat) of a frame of the op stream. Raises WireError."""
    match unpack(frame):
        case [1, int() as reign, int() as node, int() as start, int() as seq, bytes() as body]:
            return ENTRY, Position(reign, node, start, seq), body
        case [2, int() as reign, int() as node, int() as start, int() as seq]:
            return BEAT, Position(reign, node, start, seq), b""
    raise WireError("a frame of the op stream is an entry or a beat")


def decode_entry(frame: bytes | memoryview) -> tuple[Position, list[Effect]]:
    """Position and effects of an entry's frame. Raises WireError."""
    kind, position, body = decode_head(frame)
    effects = unpack(body) if kind == ENTRY else None
    if not isinstance(effects, list):
        raise WireError("the body of an entry is a list of effects")
    for effect in effects:
        if not isinstance(effect, list) or not effect or _LENGTHS.get(effect[0]) != len(effect):
            raise WireError("an effect is an array of a known kind and its length")
    return position, effects


def keys_and_values(payload: bytes) -> tuple[list[bytes], list[bytes]]:
    """What the payload of a batch of sets holds. Raises WireError unless it is two arrays of one length."""
    match unpack(payload):
        case [list() as keys, list() as values] if len(keys) == len(values):
            return keys, values
    raise WireError("a batch of sets is [keys, values], both of one length")


def record_changes(effects: Sequence[Effect]) -> Iterator[RecordChange]:
    """The changes that an entry makes to records, in order."""
    for effect in effects:
        kind = effect[0]
        if kind == PUTS:
            _, database, first_op_id, heads, payload = effect
            keys, values = keys_and_values(payload)
            yield RecordChange(database, keys, record.successors(heads, first_op_id, TICK, values))
        elif kind == RECORDS:
            yield RecordChange(effect[1], effect[3], effect[4])
        elif kind == SUMS:
            _, database, first_op_id, heads, keys, _, sums = effect
            yield RecordChange(database, keys, record.counted(heads, first_op_id, TICK, keys, sums))
        elif kind == PUT:
            _, database, op_id, version, _, key, value = effect
            yield RecordChange(database, (key,), (record.live(version, op_id, value),))
        elif kind == INCREMENTED:
            _, database, op_id, version, _, key, value, _ = effect
            yield RecordChange(database, (key,), (record.live(version, op_id, value),))
        elif kind == TOMBSTONE:
            _, database, op_id, version, _, key = effect
            yield RecordChange(database, (key,), (record.tombstone(version, op_id),))
        elif kind == MADE:
            _, database, _, keys, records, silent = effect
            yield RecordChange(database, keys, records, silent)
        elif kind == SIGNED:
            _, database, key, packed, *_ = effect
            yield RecordChange(database, (key,), (packed,))
        elif kind == DROP:
            _, database, keys = effect
            yield RecordChange(database, keys, (None,) * len(keys))
