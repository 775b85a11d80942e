"""The messages between nodes, and between the replicator and the other processes of its node.

docs/PROTOCOL.md is the prose of it. All are msgpack arrays. An epoch is `[reign, node, start]`, a position
`[reign, node, start, seq]`, either may be nil where there is none; a history is
`[[reign, node, start, first seq], ...]`, oldest first; members are `{number: [name, directory id, start]}`.
Texts arrive as bytes.
"""

from __future__ import annotations

from typing import Final

PEER_PROTOCOL_VERSION: Final = 3

# Replicator and network process (the network's ack ROUTER, the replicator's DEALER with routing id b"replicator") ---

REPLICATOR_UP: Final = 130  # r: [130]     answered by NODE_STATE once the network process has
#   loaded
NODE_STATE: Final = 131  # n: [131, cluster_id, number, start, role, epoch, last position,
#   history, members]
#   role: ROLE_*; sent again whenever role, history or members have changed
BE_PRIMARY: Final = (
    132  # r: [132, reign, position]   begin the epoch (reign, own number, own start)
)
#   once this entry is adopted (nil: of none), and whatever else the own disk has
BE_REPLICA: Final = (
    133  # r: [133, epoch, its first seq]            decide nothing more; entries of this epoch
)
#   (nil: of none yet) will come
STEPPED_DOWN: Final = 134  # n: [134, last position]  answers BE_REPLICA with nil: nothing more is
#   decided here, and no BE_PRIMARY before it counts; sent once all that was decided is durable here
PRIMARY_AT: Final = (
    135  # r, on a replica: [135, epoch, primary's durable seq, settled seq, offset, bound]
)
#   this clock less the primary's, and how far that may be wrong, in ms
ACKED: Final = 136  # r, on the primary: [136, settled seq, [each other member's durable seq,
#   descending], live replicas]
PROPOSALS: Final = 137  # r: [137, [[origin number, ticket, body], ...]]     to be decided here,
#   in order
DECISIONS: Final = 138  # n: [138, [[origin number, ticket, reply frame], ...]]
PROPOSE: Final = 139  # n: [139, [[ticket, body], ...]]      to the primary, in order; once sent
#   never again by itself
PROPOSED: Final = 140  # r: [140, [[ticket, reply frame], ...]]
PRIMARY_IS: Final = 141  # r: [141, name or nil, client address or nil]    nil: none that can be
#   reached; proposals not yet
#   answered when this comes (with any content) may have been lost: propose them again to the new one
PROMOTE_ASKED: Final = 142  # n: [142, ticket, name, force]
PROMOTED: Final = 143  # r: [143, ticket, status, message, fields]      status 0 or the code of
#   an error
ASK_CLUSTER: Final = 144  # n: [144, ticket]
CLUSTER_IS: Final = 145  # r: [145, ticket, [{...} a member]]
ADMIT: Final = 146  # r, on the primary: [146, name, directory id, start, wanted number]
#   becomes a member (again)
ADMITTED: Final = 147  # n: [147, name, directory id, number]        its MEMBERS effect is
#   durable

REPLICATION_IS: Final = 148  # r: [148, {name: number}]     for `status`

DIGEST_IS: Final = 149  # n: [149, position, {database: digest}]

# Replicator and storage writer (the replicator's ROUTER `replica-acks`, the writer's DEALER with routing id b"writer"

WRITER_STATE: Final = 150  # w: [150, cluster_id or nil, number or 0, start, directory id,
#   promise [reign, number] or nil,
#   last position, first seq of the log, last seq that the files hold, copy in progress:
#   nil or [copy id, {file: bytes held}]]   at its start
#   also from the writer to the replicator: DURABLE and GAP of nun/messages.py; ENTRIES answers GAP
ASK_WRITER_STATE: Final = 151  # r: [151]     the replicator has just started
FENCE: Final = (
    152  # r: [152, epoch, its first seq]      nothing of an older epoch is appended from there on
)
KEEP_PROMISE: Final = 153  # r: [153, ticket, reign, number]
BECOME: Final = 154  # r: [154, ticket, cluster_id, number]     an empty directory gets its
#   identity (or a wiped one's new number)
SETTLED: Final = 155  # r: [155, seq]          snapshots may hold entries up to here
CUT: Final = 156  # r: [156, ticket, common seq, epoch]   client writes above it go to the
#   outbox, then the log ends there;
#   entries older than epoch are refused from then on. After KEPT the processes are started anew from disk
HOLD: Final = 157  # r: [157, ticket, seconds]  no snapshot changes the files, no log is
#   dropped, for so long (0: ended)
HELD: Final = 158  # w: [158, ticket, copy id, lowest seq the files hold, [[file, bytes], ...]]
COPY_BEGIN: Final = 159  # r: [159, ticket, copy id, cluster_id, [[file, bytes], ...]]    what
#   is here is to be replaced
COPY_DATA: Final = 160  # r: [160, ticket, file, offset, bytes]
COPY_END: Final = 161  # r: [161, ticket]      all is here: take its place. After KEPT the
#   processes are started anew
KEPT: Final = 162  # w: [162, ticket, error text or nil]
COPY_DROP: Final = 163  # r: [163, ticket]     what has come of a copy is not wanted any more. After
#   KEPT the processes are started anew

# Outbox: on the op stream (network process to writer) a frame [OUTBOX, number, item]; and on the ack channel:
OUTBOX_DURABLE: Final = 165  # w: [165, number]
OUTBOX_DONE: Final = 166  # n: [166, number]     items up to here are settled and may go

# Between nodes (DEALER of one, ROUTER of the other; the answer comes back the same way). The second element is always
# the sender's epoch: that of the primary it follows or is, else its last entry's, nil in an empty directory.

GREET: Final = 170  # [170, epoch, t1, protocol, cluster_id or b"", name, number, directory id,
#   start, state]
GREETED: Final = 171  # [171, epoch, t1, t2, t3, protocol, cluster_id or b"", name, number,
#   directory id, start, state]
#   t1..t3: Unix time in microseconds when sent, received, answered. Sent every GREET_S to every peer: presence,
#   clocks, state.
#   state: {"role": ROLE_*, "last": position, "durable": seq, "settled": seq, "promise": [reign, number] or nil,
#           "publish": address of its XPUB, "client": address for clients, "version": text, "epochs": history's last
#   epoch,
#           "primary": name of the primary it follows or is, or nil}
PEER_REFUSED: Final = 172  # [172, epoch, kind refused, ticket or 0, code, text]      code:
#   PEER_*
JOIN: Final = 173  # to the primary: [173, epoch, name, directory id, start, number or 0]
JOINED: Final = 174  # [174, epoch, cluster_id, number, directory id]
STAND: Final = 175  # to the followed, after its marker: [175, epoch, last position, history,
#   lowest seq that can be cut back to]
GO: Final = (
    176  # [176, epoch, next seq, first seq of the epoch]      your history is a part of mine:
)
#   fetch from here
CUT_BACK: Final = 177  # [177, epoch, common seq]     your history leaves mine after this entry
COPY_FIRST: Final = 178  # [178, epoch]            my log does not reach back to where yours
#   ends, or you cannot cut back so far
ACK: Final = 179  # replica: [179, epoch, durable seq, applied seq]      durable: of entries of
#   this very history
FETCH: Final = 180  # [180, epoch, from seq, bytes]
FETCHED: Final = 181  # [181, epoch, from seq, [frame, ...], last durable seq]
FORWARD: Final = 182  # to the primary: [182, epoch, [[ticket, body], ...]]
DECIDED: Final = 183  # [183, epoch, [[ticket, reply frame], ...]]
ASK_PROMISE: Final = 184  # candidate: [184, epoch, reign, number]
PROMISE: Final = 185  # [185, epoch, reign, number, last position, history]   durable; the
#   sender decides and acks nothing older
HAND_OVER: Final = 186  # [186, epoch, ticket, force]      become primary, an operator says
HANDED_OVER: Final = 187  # [187, epoch, ticket, status, message, fields]
COPY_ASK: Final = 188  # [188, epoch]
COPY_FILES: Final = 189  # [189, epoch, copy id, cluster_id, [[file, bytes], ...]]
COPY_READ: Final = 190  # [190, epoch, copy id, file, offset, bytes]
COPY_PART: Final = 191  # [191, epoch, copy id, file, offset, bytes]

PEER_WRONG_CLUSTER: Final = 1
PEER_WRONG_PROTOCOL: Final = 2
PEER_NOT_PRIMARY: Final = 3
PEER_OLD_EPOCH: Final = 4
PEER_PROMISED: Final = 5  # another candidate has the promise
PEER_NO_COPY: Final = 6  # that copy is not held any more: ask for another
PEER_BUSY: Final = 7

ROLE_WAITING: Final = 0  # no primary is known; or entries are missing and cannot be had
ROLE_REPLICA: Final = 1
ROLE_PRIMARY: Final = 2
ROLE_FILLING: Final = 3  # replaced by a copy; serves nothing
ROLE_NAMES: Final = {0: "waiting", 1: "replica", 2: "primary", 3: "filling"}

# Topics of the op stream between nodes (XPUB, SUB; two frames: topic, frame). The marker's sorts after all others.
TOPIC_BEAT: Final = b"b"
TOPIC_ENTRY: Final = b"c"
TOPIC_OF_OTHERS: Final = (
    b"d"  # and an origin's number in binary: entries with its values, for all but it
)
TOPIC_ECHO: Final = (
    b"e"  # and its number in binary: the same entries for it, nun/core/replication/echoes.py
)
TOPIC_MARKER: Final = b"~"  # and 16 random bytes
