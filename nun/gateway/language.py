"""The words of NunDB's text language: commands taken apart, replies put together. Bytes in, bytes out.

A command is `VERB ARG REST`, separated by single spaces. What is put around a reply is the transports': TCP and
WebSocket send the messages and then one closing line, HTTP one element a command.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from nun.core.conflicts.ledger_keys import hidden_bytes

EMPTY: Final = b"<Empty>"  # stands for a value that is not there
I32_MAX: Final = 2**31 - 1
I64_MAX: Final = 2**63 - 1
CONNECTIONS: Final = b"$connections"
CONFLICTS: Final = b"$conflicts_"
NOT_TEXT: Final = b"\xff"  # no UTF-8 begins so


KEPT: Final = 1  # the write is kept all the same: its promise is kept too
REFUSED: Final = 2  # its promise is to be refused
REFUSED_TWICE: Final = 3  # `get-safe` and `keys` have made two


class Reply(NamedTuple):
    """What a command comes to: messages, in order, and the error that closes it, None where all is well.

    settles: what the promises of the npm client need, which such an error alone would leave open for ever.
    """

    messages: tuple[bytes, ...] = ()
    error: bytes | None = None
    settles: int = 0


def failed(text: str | bytes) -> Reply:
    """An error that closes a command."""
    return Reply((), text.encode() if isinstance(text, str) else text)


def said(message: bytes) -> Reply:
    return Reply((message,))


DONE: Final = Reply()
DENIED: Final = Reply((b"permission denied\n",), b"permission denied\n")
NO_DATABASE: Final = Reply((b"error no-db-selected\n",), b"error no-db-selected\n")
NOT_ADMIN: Final = failed("Not auth")
GUARDED: Final = failed("To read security keys you must auth as an admin!")
STALE: Final = Reply((), b"Invalid version!", REFUSED)
NO_ARBITER: Final = Reply(
    (), b"An conflitct happend and there is no arbiter client not connected", REFUSED
)
NOT_NUMERIC: Final = failed("Key is not numeric")
BAD_TOKEN: Final = failed("Invalid token")


def promised(reply: Reply, twice: bool = False) -> Reply:
    """The reply to a command that has made a promise, or two."""
    if reply.error is None or reply.settles or reply.error in _UNDERSTOOD:
        return reply
    return reply._replace(settles=REFUSED_TWICE if twice else REFUSED)


def unpromised(reply: Reply) -> Reply:
    """The reply to a command that has made none."""
    return reply._replace(settles=0) if reply.settles else reply


_UNDERSTOOD: Final = frozenset(
    {DENIED.error, NO_DATABASE.error, BAD_TOKEN.error}
)  # errors that the npm client knows


def in_conflict(key: bytes, op_id: int) -> Reply:
    """A write that waits for an arbiter."""
    return Reply((), b"$$conflitct unresolved $conflicts_%s_%d" % (key, op_id), KEPT)


def lines_in(data: bytes, separator: bytes) -> list[bytes]:
    """The commands in what a client has sent; NOT_TEXT stands for one that is not UTF-8."""
    lines = data.split(separator)
    return lines if data.isascii() else [line if is_text(line) else NOT_TEXT for line in lines]


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def split(line: bytes) -> list[bytes]:
    """A command in its at most three parts; newlines within it count for nothing."""
    if b"\n" in line:
        line = line.strip(b"\n").rstrip(b";").replace(b"\n", b"")
    else:
        line = line.rstrip(b";")
    return line.split(b" ", 2)


def version_in(text: bytes) -> int:
    """A version; what is none, or beyond 32 bits, says that none was given: -1."""
    try:
        version = int(text)
    except ValueError:
        return -1
    return version if -I32_MAX - 1 <= version <= I32_MAX else -1


def delta_in(text: bytes) -> int:
    """What `increment` adds: 1 where that is not said."""
    try:
        delta = int(text)
    except ValueError:
        return 1
    return delta if -I64_MAX - 1 <= delta <= I64_MAX else 1


def shown(value: bytes) -> bytes:
    """A value as one line: programs of other languages may have stored newlines, which end a reply here."""
    return value.replace(b"\n", b" ") if b"\n" in value else value


# Records, as the network process gives them: version u32, op id u64, value; bit 31 marks one that is not plainly there.

_REMOVED: Final = 0
_IN_CONFLICT: Final = 3


def value_of(record: bytes | None) -> bytes | None:
    """The value of a record, None where nothing is there."""
    if record is None:
        return None
    if record[3] < 0x80:
        return record[12:]
    return record[14:] if record[12] == _IN_CONFLICT and record[13] == 0 else None


def version_of(record: bytes | None) -> int:
    """Its version as NunDB tells it: 1 for a key that never was, -2 in conflict."""
    if record is None:
        return 1
    if record[3] >= 0x80 and record[12] == _IN_CONFLICT:
        return -2
    return int.from_bytes(record[:4], "little") & I32_MAX


def op_id_of(record: bytes | None) -> int:
    return 0 if record is None else int.from_bytes(record[4:12], "little")


def told_value(record: bytes | None) -> Reply:
    """The reply to `get`."""
    value = value_of(record)
    return Reply((b"value %s\n" % (EMPTY if value is None else shown(value)),))


def told_values(records: Sequence[bytes | None]) -> list[bytes]:
    """The messages of the replies to many `get`."""
    return [
        b"value " + record[12:] + b"\n"
        if record is not None and record[3] < 0x80 and b"\n" not in record
        else told_value(record).messages[0]
        for record in records
    ]


def told_value_and_version(record: bytes | None) -> Reply:
    """The reply to `get-safe`."""
    value = value_of(record)
    text = EMPTY if value is None else shown(value)
    return Reply((b"value-version %d %s\n" % (version_of(record), text),))


def told_keys(keys: list[bytes]) -> Reply:
    return Reply((b"keys %s\n" % b"".join([b"," + shown(key) for key in keys]),))


def change_notices(key: bytes, version: int, value: bytes | None) -> tuple[bytes, ...]:
    """What watchers of a key get; None: it was removed."""
    name = shown(key)
    if value is None:
        return (b"removed %s\n" % name,)
    text = shown(value)
    return (
        b"changed %s %s\n" % (name, text),
        b"changed-version %s %d %s\n" % (name, version, text),
    )


# Conflicts: the ledger's entries as NunDB's records tell them


def entry_in(data: bytes) -> dict[str, Any] | None:
    """A record of the ledger; None where it is NunDB's own text."""
    if not data.startswith(b"{"):
        return None
    entry: dict[str, Any] = json.loads(data)
    return entry


def open_text(entry: dict[str, Any], held: bytes | None = None) -> bytes:
    """`resolve OPID DB VERSION KEY OLD NEW`; OLD names the entry before it where there is one; or it is `held`."""
    key = hidden_bytes(entry["key"])
    previous = entry["previous"]
    current = entry.get("current")
    if previous:
        version, old = -2, b"$conflicts_%s_%d" % (key, previous)
    elif current is None:
        version, old = 0, EMPTY
    else:
        version, old = current["version"], hidden_bytes(current["value"])
    if held is not None:
        old = held
    new = EMPTY if entry["kind"] == "remove" else _text(hidden_bytes(entry["value"]))
    head = b"resolve %d %s %d %s " % (entry["op_id"], entry["database"].encode(), version, key)
    return shown(head + old + b" " + new)


def conflict_text(data: bytes, record: bytes | None) -> bytes:
    """What a record `$conflicts_KEY_OPID` reads as, given the key's record."""
    entry = entry_in(data)
    if entry is None:
        return data
    if entry["state"] == "open":
        return open_text(entry)
    value = value_of(record)
    return b"resolved " + (EMPTY if value is None else shown(value))


def _text(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b"%d" % value
