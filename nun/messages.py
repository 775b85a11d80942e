"""The messages between clients and a node, and between the processes of a node. docs/PROTOCOL.md is the prose of it.

A request is one msgpack array `[kind, token, number, ...]`. `token` is the session's secret from the reply to HELLO (in
HELLO itself: the protocol version); `number` is the client's own count, contiguous per client id, and with the client
id it is the request id. A reply is `[status, number, result, position, op_id]` with status 0, or the code of an error
with result `[message, fields]`. Position is `[reign, node, start, seq]` or nil.

Every write carries `floor`: the client has the answers of all its requests below it. In its place may stand
`[floor, level, patience]`: the write is answered once that ack level is reached, or with LevelNotReached after so many
milliseconds. GET and GET_MANY may have one more element, `view`: `[position or nil, majority, patience]`: they are
answered once this node shows that position, and once what is shown is settled on a majority.
"""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 1

# Client to node ------------------------------------------------------------------------------------------------

HELLO: Final = 1  # [1, protocol, number, client_id, born, user, password]    born: nil or what HELLO gave before
#   from the node's own gateway also [its secret, the address that it speaks for]
PING: Final = 2  # [2, token, number, receipt]       any time; number 0 wants no reply
HELLO_BEGINS: Final = b"\x97\x01"  # the bytes of one, as every msgpack library writes them
USE: Final = 3  # [3, token, number, name, user, secret]     user nil: the database's own token
GET: Final = 4  # [4, token, number, database, key]
GET_MANY: Final = 5  # [5, token, number, database, keys]
SET: Final = 6  # [6, token, number, floor, database, key, value, condition]
REMOVE: Final = 7  # [7, token, number, floor, database, key, condition]
INCREMENT: Final = 8  # [8, token, number, floor, database, key, delta]
SET_MANY: Final = (
    9  # [9, token, number, floor, database, payload]    payload: msgpack bytes of [keys, values]
)
BATCH: Final = 10  # [10, token, number, floor, database, atomic, kinds, payload, conditions]
#   kinds: one byte an operation (the kind of the single request: GET, SET, REMOVE, INCREMENT)
#   payload: msgpack bytes of [keys, arguments]   argument: value of SET, delta of INCREMENT, else nil
#   conditions: nil or {index: condition}
IS_KIND: Final = {  # for bytes.translate: of `kinds`, 1 where an operation is of that kind, else 0
    kind: bytes(index == kind for index in range(256)) for kind in (GET, SET, REMOVE, INCREMENT)
}
KEYS: Final = 11  # [11, token, number, database, pattern, limit, after]
WATCH: Final = 12  # [12, token, number, database, scope, key, since, credit]
CREDIT: Final = 13  # [13, token, 0, watch, bytes]         no reply
UNWATCH: Final = 14  # [14, token, number, watch]
BYE: Final = 15  # [15, token, number]

CREATE_DATABASE: Final = 20  # [20, token, number, floor, name, secret, options]
ALTER_DATABASE: Final = 21  # [21, token, number, floor, name, secret or nil, options]
DROP_DATABASE: Final = 22  # [22, token, number, floor, name]
DATABASES: Final = 23  # [23, token, number]
CREATE_USER: Final = 24  # [24, token, number, floor, database name, user, secret]
DROP_USER: Final = 25  # [25, token, number, floor, database name, user]
SET_PERMISSIONS: Final = 26  # [26, token, number, floor, database name, user, text]
SNAPSHOT: Final = 27  # [27, token, number, names or nil, reclaim]
STATUS: Final = 28  # [28, token, number]
PROMOTE: Final = 30  # [30, token, number, name, force]
CLUSTER: Final = 31  # [31, token, number]
OUTCOMES: Final = (
    32  # [32, token, number]     notices of this client id come as OUTCOME from now on
)
OUTCOMES_SEEN: Final = 33  # [33, token, number, floor, op_ids]
WAIT: Final = 34  # [34, token, number, request, level, patience, position]   answered as that request of this client

CHECK: Final = 35  # [35, token, number, floor]

CLAIM: Final = 36  # [36, token, number, floor, database, arbiter, patience_ms, lease_ms]
#   one key in conflict for this arbiter, nil after its patience: [attempt, key, record or nil, op_id, version, entries,
#   how many more]
#   entry: [op_id, kind, argument, base, base record or nil, at, client_id, request]
RESOLVE: Final = (
    37  # [37, token, number, floor, database, key, kind, value, shown, op_ids, attempt]
)
#   kind: SET or REMOVE; shown: op id of the record, 0: none; op_ids: of the entries that it closes
#   attempt 0: without a claim
RELEASE: Final = 38  # [38, token, number, floor, database, arbiter, key, attempt]
#   gives a claim back; an empty key: all of them
CONFLICTS: Final = 39  # [39, token, number, database, state or nil, key or nil, limit, after]

# A condition of a write: [kind, number, refuse]; refuse: true = VersionConflict under every strategy.
ON_VERSION: Final = (
    1  # NunDB's rule: accepted when number >= current version; the new version is number + 1
)
ON_BASE: Final = 2  # accepted when the current record's op id is number; 0: when the key is absent
IF_VERSION: Final = (
    3  # accepted when number = current version; VersionConflict under every strategy
)
PLAIN: Final = 0  # always; only to carry `refuse`

IN_CONFLICT: Final = -2  # stands where a version would, of a key in conflict

# Ack levels; a number from 1 counts replicas beside the primary.
ACK_PRIMARY: Final = 0  # decided, and durable at the primary
ACK_LOCAL: Final = -1  # durable where it was taken, and proposed later
ACK_MAJORITY: Final = -2  # durable at a majority of the members, the primary included
ACK_ALL: Final = -3  # durable at all members

# Scope of a watch.
WATCH_KEY: Final = 1
WATCH_PREFIX: Final = 2
WATCH_ALL: Final = 3

# Results: HELLO [token, born, next_number, {"node", "version", "cluster_id", "role"}]; USE [database, {options}];
# GET record or nil; GET_MANY [record or nil]; SET, REMOVE version; INCREMENT [version, value]; SET_MANY heads (12 bytes
# of what each replaced) or as BATCH; BATCH [answer, ...]: what the single request gives, or [code, message, fields];
# the i-th has the op id `op_id + i * TICK`. Where its gets, sets and increments are of different keys, a map of those
# kinds that it has, {GET: [record or nil], SET: heads, INCREMENT: [heads of the distinct keys, sums of 8 bytes]}, in
# which the sets have the first op ids and the increments the next. KEYS [[key, ...], after or nil]; WATCH watch number.
# A record is the packed bytes of nun/core/record.py; a tombstone means "absent".

# Node to client, unasked ---------------------------------------------------------------------------------------

PROBE: Final = 200  # [200]                     are you there? no answer needed
EVENTS: Final = (
    201  # [201, watch, body]        body: msgpack bytes of [[reign, node, start], [event, ...]]
)
#   event: [kind, key, value, version, op_id, seq]; it costs len(body) of the watch's credit
RECEIPT: Final = 202  # [202, status, number, result, position, op_id, receipt]   a large reply; show `receipt` in PING
OUTCOME: Final = 204  # [204, op_id, notice]
#   notice: msgpack bytes of the map in nun/core/conflicts/ledger.py; it comes again until OUTCOMES_SEEN names it
WATCH_ENDED: Final = 203  # [203, watch, code, message, fields]

# Kinds of events.
EVENT_SET: Final = 1
EVENT_REMOVED: Final = 2
EVENT_COMPACTED: Final = 3  # forget what you hold; key and value are nil
EVENT_CURRENT: Final = 4  # the state has been told; seq is its position
EVENT_NAMES: Final = {1: "set", 2: "removed", 3: "compacted", 4: "current"}

# Between the processes of a node -------------------------------------------------------------------------------
# op_stream (network XPUB -> writer SUB): frames of nun/core/effects.py.
# op_acks (network ROUTER <-> writer DEALER), arrays `[kind, ...]`:

RECOVERED: Final = (
    100  # writer: [100, cluster_id, node_number, start, last position or nil, directory id]
)
SUBSCRIBED: Final = 101  # network: [101, last seq]        the stream reaches the writer, from the entry after this one
DURABLE: Final = 102  # writer: [102, reign, node, start, seq]
GAP: Final = 103  # writer: [103, seq]             wants all entries from here on again
ENTRIES: Final = 104  # network: [104, [frame, ...]]   the answer to GAP
TAKE_SNAPSHOT: Final = 105  # network: [105, ticket, [database number, ...] or nil, reclaim]
SNAPSHOT_TAKEN: Final = 106  # writer: [106, ticket, error text or nil, {report}]
DISK: Final = 107  # writer: [107, full: bool, text]
ASK_STORAGE: Final = 108  # network: [108, ticket]
STORAGE: Final = 109  # writer: [109, ticket, {oplog and snapshot state}]

UNSETTLED: Final = 110  # writer: [110, full: bool, bytes]     the log holds more than it should that no majority has

# op_acks too (network ROUTER <-> conflict manager DEALER):
MANAGER_UP: Final = 220  # manager: [220]               wants to know what is in conflict
CONFLICTS_ARE: Final = (
    221  # network: [221, [[database, key, entries, deadline], ...]]   all keys, oldest first
)
CONFLICT_IS: Final = 222  # network: [222, database, key, entries, deadline, closed]
#   how many entries an arbiter is to be asked about, 0: none; closed: whether some were closed just now
CLAIM_WANTED: Final = (
    223  # network: [223, ticket, arbiter, database, patience_ms, lease_ms, attempt, [key, ...]]
)
#   the keys are those that this arbiter may not have
OFFER: Final = (
    224  # manager: [224, ticket, database, key or nil, attempt]    nil: nothing came up in time
)
CLAIM_RELEASED: Final = 225  # network: [225, arbiter, database, key, attempt]
ARBITER_GONE: Final = 226  # network: [226, arbiter]
CLAIM_CHECK: Final = 227  # network: [227, ticket, database, key, attempt]
CLAIM_IS: Final = 228  # manager: [228, ticket, good: bool]
EXPIRE: Final = 229  # manager: [229, database, key]   some of its entries have waited too long
ARBITERS_ARE: Final = 230  # manager: [230, [[database, how many], ...]]
HEARD: Final = 231  # manager: [231, count]           so many messages more

# control (supervisor ROUTER <-> each child's DEALER), arrays `[kind, ...]`:
CHILD_UP: Final = 120  # child: [120, name, pid]
CHILD_READY: Final = (
    121  # child: [121, {fields for the log}]     the network process: clients can be served
)
CHILD_FAILED: Final = 122  # child: [122, text, exit status]          a clear reason; then it exits
STOP: Final = 123  # supervisor: [123]             finish cleanly and exit 0
RESTART_GROUP: Final = (
    125  # child: [125, text]           start all processes anew from disk, and why
)
SIBLINGS: Final = 124  # supervisor: [124, {name: pid}]
