"""Every bound of the system, by name. What is refused beyond one says the name, the bound and what was found.

Sizes are in bytes, times in the unit that the name ends in. A bound that an operator may set carries the same name
in the `[limits]` table of the configuration; the value here is its default.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What one request may carry.
KEY_BYTES_MAX: Final = 4 * KIB
VALUE_BYTES_MAX: Final = 16 * MIB
BATCH_BYTES_MAX: Final = 64 * MIB
BATCH_OPERATIONS_MAX: Final = 100_000
MESSAGE_BYTES_MAX: Final = (
    BATCH_BYTES_MAX + 4 * MIB
)  # a full batch and its framing; larger frames end the link
NAME_BYTES_MAX: Final = 128  # database and user names
SECRET_BYTES_MAX: Final = 1 * KIB  # tokens and passwords
PERMISSIONS_BYTES_MAX: Final = 64 * KIB  # one user's permission list
CLIENT_ID_BYTES_MAX: Final = 64
ADDRESS_BYTES_MAX: Final = 256  # of whom the gateway speaks for
MERGED_DIGITS_MAX: Final = 1_000  # of a number that nun/merge.py adds or compares
KEYS_PAGE_MAX: Final = 10_000  # keys in one answer to `keys`
KEYS_SCAN_MAX: Final = 200_000  # keys looked at for one answer to `keys`

UNFINISHED_BYTES_MAX: Final = (
    MESSAGE_BYTES_MAX + 16 * MIB
)  # received on one connection without the end of a message; more ends the link

# What a node holds.
DATABASES_MAX: Final = 1_000
VERSION_MAX: Final = 2**31 - 1
SESSIONS_MAX: Final = 10_000
GATEWAY_CONNECTIONS_MAX: Final = 10_000  # of NunDB's clients
GATEWAY_MESSAGE_BYTES_MAX: Final = 17 * MIB  # one of their frames or lines: a value and its command
GATEWAY_UNREAD_BYTES_MAX: Final = (
    16 * MIB
)  # notices that one of them has not read; more ends its connection
GATEWAY_UNREAD_ALL_BYTES_MAX: Final = (
    512 * MIB
)  # replies too, of all of them; more ends that which has most
WATCHES_PER_SESSION_MAX: Final = 1_000
WATCHES_MAX: Final = 100_000
WATCH_CREDIT_BYTES_MAX: Final = 16 * MIB  # what a watcher may ask to be sent unread
UNREAD_BYTES_MAX: Final = (
    128 * MIB
)  # large replies of one session that it has not shown to have read
RECEIPT_ABOVE_BYTES: Final = (
    4 * KIB
)  # replies above this ask for a receipt and count as unread until it comes
UNREAD_MESSAGES_MAX: Final = (
    1_000  # messages waiting in one client's pipe (high-water mark, both ways)
)
OP_STREAM_MESSAGES_MAX: Final = (
    100_000  # entries and beats waiting for a local subscriber (high-water mark, both ends)
)
OUTBOX_BYTES_MAX: Final = (
    256 * MIB
)  # writes that this node has taken and the primary has not settled
ECHO_BYTES_MAX: Final = 32 * MIB  # large values that a replicator keeps for echoes, at either end
CONFLICTS_PER_KEY_WARN: Final = 1_000  # writes that wait for one key, before the log says so
CONFLICTS_PER_KEY_MAX: Final = 10_000  # the same, before more are refused
CONFLICT_BYTES_PER_KEY_MAX: Final = 64 * MIB
CONFLICTS_MAX: Final = 1_000_000  # writes that wait for arbiters, in all databases
CONFLICT_BYTES_MAX: Final = 1_024 * MIB
CLAIM_ENTRIES_MAX: Final = 256  # of one key's queue, shown to an arbiter at once
CLAIM_BYTES_MAX: Final = 4 * MIB  # the same, unless the first alone is larger
LEASE_MS_MAX: Final = 86_400_000  # how long an arbiter may keep a key
CLAIMS_WAITING_MAX: Final = 10_000  # arbiters that wait for something to decide
MANAGER_UNHEARD_MAX: Final = (
    100_000  # messages that a conflict manager which stands still may have before it
)
MANAGER_HEARD_EVERY: Final = 1_000  # messages after which it says so
CONFLICT_TIMEOUT_S_MAX: Final = 10_000_000_000  # of a database's option, in seconds
STRATEGY_PREFIXES_MAX: Final = 1_000  # of one database
BASES_MAX: Final = 500_000  # replaced records of one database, for the base of a conflict
BASES_BYTES_MAX: Final = 64 * MIB  # and in bytes
NOTICE_BYTES_MAX: Final = (
    4_096  # what a notice holds by itself; larger values are taken from its entry
)
NOTICES_PER_CLIENT_MAX: Final = (
    10_000  # outcomes that wait for one client; older ones stay in the ledger only
)
OUTCOMES_SEEN_MAX: Final = 10_000  # outcomes that one request may acknowledge
WAITS_MAX: Final = 100_000  # requests that wait for what becomes of another
NODE_STREAM_MESSAGES_MAX: Final = 10_000  # entries and beats waiting for one other node
NODE_MESSAGES_MAX: Final = 10_000  # requests and answers waiting for one other node
PENDING_BYTES_MAX: Final = 256 * MIB  # entries decided and not yet durable, kept to be sent again
STATE_COPIES_MAX: Final = 4  # watchers being given the whole state at the same time
REQUEST_ROWS_BYTES_MAX: Final = 16 * MIB  # what exactly-once remembers of all clients
REQUEST_ROWS_PER_CLIENT_MAX: Final = 10_000
NODE_NUMBER_MAX: Final = 1_023  # ten bits of every op id
REIGN_MAX: Final = 2**32 - 1
EPOCHS_KEPT_MAX: Final = 4_096  # how far back the history of epochs reaches
DECIDED_AT_MAX: Final = 8  # histories that an item, cut off again and again, names
SECRET_CHECKS_WAITING_MAX: Final = 256  # scrypt work in the queue
SECRET_FAILURES_MAX: Final = (
    10  # wrong passwords or tokens per name and address before the door closes for a while
)
SECRET_FAILURES_WINDOW_S: Final = 30
SECRET_FAILURES_ANYWHERE_MAX: Final = (
    500  # the same from all addresses together, before unknown ones are not hashed for a while
)
SECRETS_REMEMBERED_MAX: Final = 10_000  # good ones, clients that had one, and counts of bad ones

# How long.
SESSION_PROBE_S: Final = 10  # an idle session is probed this often; one that is gone ends
SESSION_PROBE_WHEN_FULL_S: Final = 1  # the same, once a new one was refused for want of room
FETCH_BYTES_MAX: Final = 1 * MIB  # one part of a log or a copy, on its way from node to node
FOLLOW_WINDOW_BYTES: Final = 32 * MIB  # what a replica takes in before its disk has it
PATIENCE_MS_MAX: Final = 3_600_000  # how long a request may ask to wait for other nodes
NO_PRIMARY_PATIENCE_MS: Final = 2_000  # a node without a primary keeps a new request so long
FORWARDED_AGAIN_MS: Final = 1_000  # a proposal that is not answered is made again so often
FORWARDED_KEPT_S: Final = 60  # and forgotten after this; its client has given up before
REQUEST_TIMEOUT_S: Final = 10.0  # the client's default

# One turn of a process's loop.
DRAIN_MESSAGES_MAX: Final = 2_000
DRAIN_BYTES_MAX: Final = 96 * MIB
LOG_READ_BYTES_MAX: Final = 1 * MIB  # read from the log for one slow watcher in one turn
EVENTS_BYTES_MAX: Final = 256 * KIB  # one message of watch events, unless one event alone is larger
