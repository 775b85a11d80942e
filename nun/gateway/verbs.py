"""Commands that are no plain read or write: sessions, system keys, watches, conflicts, administration, the cluster."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun.client import operations as ops
from nun.client.request import Request, nothing
from nun.client.values import decoding_named
from nun.errors import AuthError, DatabaseExists, NoSuchDatabase, PermissionDenied
from nun.gateway import language
from nun.gateway.lanes import error_reply
from nun.gateway.language import (
    BAD_TOKEN,
    CONFLICTS,
    CONNECTIONS,
    DENIED,
    DONE,
    GUARDED,
    NO_DATABASE,
    NOT_ADMIN,
    REFUSED,
    Reply,
    failed,
    said,
)
from nun.gateway.watching import conflict_value, read
from nun.nundb import arbitrating

if TYPE_CHECKING:
    from nun.gateway.conversation import Conversation
    from nun.gateway.desk import Desk
    from nun.gateway.doors import Selected

Verb = Callable[["Desk", "Conversation", list[bytes]], Awaitable[Reply]]

_RAW: Final = decoding_named(None)
_NO_NAME: Final = Reply((), b"Not a valid database name", REFUSED)
_STRATEGIES: Final = ("none", "newer", "older", "arbiter")
_KEYED: Final = (b"get", b"get-safe", b"increment", b"remove", b"set", b"set-safe", b"watch")
_IN_DATABASE: Final = (
    b"arbiter", b"create-user", b"keys", b"ls", b"resolve", b"set-permissions", b"unwatch", b"unwatch-all",
)  # fmt: skip
_PROMISED: Final = (b"get", b"get-safe", b"keys", b"set", b"set-safe", b"use-db", b"watch")
_PROMISED_TWICE: Final = (b"get-safe", b"keys")
_DECLUTTERED: Final = (b"true", b"false")


async def perform(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    """Any command; what it comes to."""
    verb = parts[0]
    if not verb:
        return failed("empty command")
    if verb == language.NOT_TEXT:
        return failed("a command is text in UTF-8")
    handler = VERBS.get(verb)
    if handler is None:
        return failed(b"unknown command: " + verb)
    reply = _precondition(conversation, verb, _part(parts, 1))
    if reply is None:
        reply = await _handled(handler, desk, conversation, parts)
    if reply.error is not None and verb in _PROMISED:
        return language.promised(reply, twice=verb in _PROMISED_TWICE)
    return reply


def _precondition(conversation: Conversation, verb: bytes, key: bytes) -> Reply | None:
    """Why this client may not do this, whatever else it says."""
    if verb in ADMINISTRATIVE and not conversation.admin:
        return NOT_ADMIN
    if verb in _KEYED and key.startswith(b"$$") and not conversation.admin:
        return GUARDED
    if verb in _KEYED or verb in _IN_DATABASE:
        if conversation.selected is None:
            return NO_DATABASE
        if conversation.selected.revoked:
            return BAD_TOKEN
    return None


async def _handled(
    handler: Verb, desk: Desk, conversation: Conversation, parts: list[bytes]
) -> Reply:
    try:
        return await handler(desk, conversation, parts)
    except AuthError:  # the selection was taken back: perhaps the token is still good
        if conversation.selected is None:
            raise
        conversation.selected.select_again()
    try:
        return await handler(desk, conversation, parts)
    except AuthError:
        conversation.selected.revoked = True
        return BAD_TOKEN


def _database(conversation: Conversation) -> Selected:
    """What a client has selected, where that is a precondition."""
    assert conversation.selected is not None
    return conversation.selected


def _part(parts: list[bytes], index: int) -> bytes:
    return parts[index] if len(parts) > index else b""


# Who, and where


async def _auth(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    user, password = _part(parts, 1), _part(parts, 2)
    if user and password:
        try:
            conversation.admin |= await desk.doors.admit(conversation.origin, user, password)
        except AuthError:
            pass  # too many have guessed from there
    return said(b"valid auth\n" if conversation.admin else b"invalid auth\n")


async def _use(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    name, rest = _part(parts, 1), _part(parts, 2)
    if not rest:
        return failed("set-safe must be followed by a version and key")
    user: bytes | None
    user, space, token = rest.partition(b" ")
    if not space:
        user, token = None, rest
    try:
        selected = await desk.doors.select(
            conversation.origin, conversation.admin, name, user, token
        )
    except NoSuchDatabase:
        return _NO_NAME
    except AuthError:
        return BAD_TOKEN
    if conversation.closed:
        return DONE
    if conversation.selected is not None:
        desk.watches.counted(conversation.selected.database, -1)
    conversation.selected = selected
    desk.watches.counted(selected.database, 1)
    return DONE


# Keys that begin with $, and commands without a key


async def _get(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    tell = language.told_value if parts[0] == b"get" else language.told_value_and_version
    key = _part(parts, 1)
    if not key:
        return failed(parts[0] + b" must contain a key")
    selected = _database(conversation)
    try:
        record = await read(selected, key)
    except PermissionDenied:
        return DENIED
    if key == CONNECTIONS:
        own = desk.doors.sessions_in(selected.database)
        others = int(language.value_of(record) or b"0") - own
        return tell(_as_record(b"%d" % (max(others, 0) + desk.watches.count(selected.database))))
    if key.startswith(CONFLICTS) and record is not None:
        value = language.value_of(record)
        if value is not None:
            return tell(record[:12] + await conflict_value(selected, key, value))
    return tell(record)


def _as_record(value: bytes) -> bytes:
    return (1).to_bytes(12, "little") + value


async def _set(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    """A system key: the node decides at once, wherever this is."""
    key, value = _part(parts, 1), _part(parts, 2)
    condition: tuple[int, int, bool] | None = None
    if parts[0] == b"set-safe":
        if len(parts) < 3:
            return failed("set-safe must be followed by a version and key")
        text, space, value = value.partition(b" ")
        if not space:
            return failed("set-safe must be followed by a key")
        version = language.version_in(text)
        condition = None if version < 0 else (m.ON_VERSION, version, False)
    if not key:
        return failed("a key has at least one byte")
    managed = await _set_managed(desk, _database(conversation), key, value)
    if managed is not None:
        return managed
    arguments = (key, value, condition)
    return await _write(_database(conversation), m.SET, key, arguments)


async def _set_managed(desk: Desk, selected: Selected, key: bytes, value: bytes) -> Reply | None:
    """What NunDB keeps in keys and a node keeps hashed, or checked."""
    admin, name = desk.doors, selected.database
    if key == b"$$token":
        await admin.admin.alter_database(name, token=value)
    elif key.startswith(b"$$user_"):
        await admin.admin.create_user(name, key.removeprefix(b"$$user_"), value)
    elif key.startswith(b"$$permission_$"):
        user = key.removeprefix(b"$$permission_$")
        await admin.admin.set_permissions(name, user, arbitrating(value))
    else:
        return None
    return DONE


async def _remove(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    key = _part(parts, 1)
    if key == b"$$token":
        return failed("$$token key cannot be removed")
    if not key:
        return failed("a key has at least one byte")
    return await _write(_database(conversation), m.REMOVE, key, (key, None))


async def _increment(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    key = _part(parts, 1)
    if not key:
        return failed("a key has at least one byte")
    arguments = (key, language.delta_in(_part(parts, 2)))
    return await _write(_database(conversation), m.INCREMENT, key, arguments)


async def _write(selected: Selected, kind: int, key: bytes, arguments: tuple[Any, ...]) -> Reply:
    request = Request(kind, selected.grant, arguments, nothing, _RAW)
    await selected.client._begin(request, m.ACK_PRIMARY)
    if request.unknown is not None:
        return failed(f"it is not known what became of it ({request.unknown})")
    if request.failure is not None:
        return failed(str(request.failure))
    if request.status:
        error = request.error()
        if isinstance(error, AuthError):
            raise error
        return error_reply(error.code, str(error), error.fields, key, selected)
    return DONE


async def _keys(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    selected, pattern = _database(conversation), _part(parts, 1)
    found: list[bytes] = []
    after: bytes | None = None
    while True:
        request = ops.keys(selected.grant, pattern, None, after, _RAW)
        page, after = await selected.client._run(request)
        found += page
        if after is None:
            break
    if _matches(pattern, CONNECTIONS):
        found.append(CONNECTIONS)
    return language.told_keys(sorted(set(found)))


def _matches(pattern: bytes, key: bytes) -> bool:
    if pattern.endswith(b"*"):
        return key.startswith(pattern.replace(b"*", b""))
    if pattern.startswith(b"*"):
        return key.endswith(pattern.replace(b"*", b""))
    return pattern in key


# Watches and conflicts


async def _watch(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    key = _part(parts, 1)
    if not key:
        return failed("watch must contain a key")
    try:
        await desk.watches.watch(conversation, _database(conversation), key)
    except PermissionDenied:
        return DENIED
    return DONE


async def _unwatch(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    if not _part(parts, 1):
        return failed("unwatch must contain a key")
    desk.watches.unwatch(conversation, _database(conversation), parts[1])
    return DONE


async def _unwatch_all(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    desk.watches.unwatch(conversation, _database(conversation), None)
    return DONE


async def _arbiter(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    await desk.arbiters.join(conversation, _database(conversation))
    return DONE


async def _resolve(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    selected = _database(conversation)
    try:
        op_id = int(_part(parts, 1))
    except ValueError:
        return failed("Invalid opp_id" if _part(parts, 1) else "opp id mandatory")
    words = _part(parts, 2).split(b" ", 3)
    if len(words) < 3:
        return failed("resoved must be followed by db_name, key version and value")
    if len(words) < 4:
        return failed("set-safe must be followed by a key")
    _, key, _, value = words
    if not 0 < op_id < 2**64:
        return failed("Invalid opp_id")
    try:
        return await desk.arbiters.resolve(selected, op_id, key, value)
    except PermissionDenied:
        return DENIED


# Administration


async def _create_db(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    words = _part(parts, 2).split(b" ")
    if not words[0]:
        return failed("create-db must be followed by a token")
    strategy = words[1].decode("utf-8", "replace") if len(words) > 1 else "none"
    if strategy not in _STRATEGIES:
        strategy = "none"
    try:
        await desk.doors.admin.create_database(parts[1], words[0], strategy=strategy)
    except DatabaseExists:
        return failed("database already exists")
    desk.written += 1
    return said(b"create-db success\n")


async def _create_user(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    await desk.doors.admin.create_user(
        _database(conversation).database, _part(parts, 1), _part(parts, 2)
    )
    return DONE


async def _set_permissions(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    if not _part(parts, 1):
        return failed("user is mandatory")
    if not _part(parts, 2):
        return failed("permission list is mandatory")
    await desk.doors.admin.set_permissions(
        _database(conversation).database, parts[1], arbitrating(parts[2])
    )
    return DONE


async def _snapshot(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    words = [word for word in parts[1:] if word]
    reclaim = bool(words) and words[0] == b"true"
    if words and words[0] in _DECLUTTERED:
        words = words[1:]
    if words:
        names = words[0].split(b"|")
    elif conversation.selected is not None:
        names = [conversation.selected.database]
    else:
        return failed("No database selected")
    known = {info.name.encode() for info in await desk.doors.admin.databases()}
    strange = [name for name in names if name not in known]
    if len(strange) == 1:
        return failed(strange[0] + b" is not a valid database name")
    if strange:
        return failed(
            b"".join(b"%s, " % name for name in strange) + b"are not a valid database names"
        )
    await desk.doors.admin.snapshot([name.decode() for name in names], reclaim)
    return DONE


async def _cluster_state(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    """Members by name; a node in NunDB's place is called by its TCP address."""
    entries = []
    members = await desk.doors.admin.cluster()
    for member in sorted(members, key=_called):
        name = _called(member)
        role = _ROLES.get(str(member.get("role")), "StartingUp")
        if member["name"] == desk.node:
            entries.append(f" {name}(self):{role} ,")
        elif member.get("link") == "up":
            entries.append(f" {name}(Connected):{role},")
        else:  # what it was last is not what it is: NunDB's programs take whoever is called Primary for it
            entries.append(f" {name}(Disconnected):StartingUp,")
    return said(f"cluster-state {''.join(entries)}\n".encode())


def _called(member: Mapping[str, Any]) -> str:
    """What a node is called here: the address that it says it has for NunDB's clients, or its name."""
    return str(member.get("gateway") or member["name"])


_ROLES: Final = {"primary": "Primary", "replica": "Secoundary"}
_LOGGED_BYTES: Final = 25  # of one operation in NunDB's log


async def _metrics_state(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    pending = lag_ms = 0
    for member in await desk.doors.admin.cluster():
        if member.get("link") == "up":
            pending = max(pending, int(member.get("lag_entries") or 0))
            lag_ms = max(lag_ms, int(member.get("lag_ms") or 0))
    text = (
        f"metrics-state pending_ops: {pending}, op_log_file_size: {desk.written * _LOGGED_BYTES}, "
        f"op_log_count: {desk.written},replication_time_moving_avg: {float(lag_ms)}, "
        f"get_query_time_moving_avg: {desk.read_ms:.1f}\n\n"
    )
    return said(text.encode())


async def _debug(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    match _part(parts, 1):
        case b"":
            return failed("command is mandatory")
        case b"pending-ops":
            lines = [
                f"{member['name']}: {member.get('lag_entries') or 0} entries behind"
                for member in await desk.doors.admin.cluster()
                if member["name"] != desk.node
            ]
            return said(b"pending-ops " + "\n".join(lines).encode() + b"\n")
        case b"list-dbs":
            found = await desk.doors.admin.databases()
            lines = [f"{info.name} : {info.options['strategy']}" for info in found]
            return said(b"dbs-list \n" + "\n".join(lines).encode() + b"\n")
        case b"process-info":
            return said(b"process-info \nprocess_id: %d\n" % os.getppid())
        case b"pendding-conflitcts" | b"pending-conflicts":
            if conversation.selected is None:
                return NO_DATABASE
            found_keys = await desk.arbiters.open_places(_database(conversation))
            return said(b"conflitcts-list " + b"\n".join(found_keys) + b"\n")
        case b"force-election":
            return failed("there are no elections here: set-primary NODE moves the primary")
    return DONE


async def _list_commands(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    return said(b"commands-list " + b"".join(b"," + verb for verb in sorted(VERBS)) + b"\n")


# The cluster


async def _set_primary(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    name = _part(parts, 1)
    if not name:
        return failed("set-primary must contain the name of a node")
    called = name.decode("utf-8", "replace")
    names = {_called(member): str(member["name"]) for member in await desk.doors.admin.cluster()}
    await desk.doors.admin.promote(names.get(called, called))
    return DONE


async def _election(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    if _part(parts, 1) == b"win":
        await desk.doors.admin.promote(desk.node)
        return DONE
    return failed("there are no elections here: `election win` makes this node the primary")


async def _member(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    name = _part(parts, 1).decode("utf-8", "replace")
    members = {str(member["name"]) for member in await desk.doors.admin.cluster()}
    if parts[0] == b"join" and name in members:
        return DONE  # it is one already
    return failed("the members of a cluster are named in its configuration; this changes nothing")


async def _internal(desk: Desk, conversation: Conversation, parts: list[bytes]) -> Reply:
    return failed(parts[0] + b" belongs to NunDB's own replication, which is not spoken here")


_INTERNAL: Final = (
    b"ack", b"replicate", b"replicate-increment", b"replicate-join", b"replicate-leave", b"replicate-remove",
    b"replicate-since", b"replicate-snapshot", b"rp", b"set-secoundary",
)  # fmt: skip
VERBS: Final[dict[bytes, Verb]] = {
    b"arbiter": _arbiter,
    b"auth": _auth,
    b"cluster-state": _cluster_state,
    b"create-db": _create_db,
    b"create-user": _create_user,
    b"debug": _debug,
    b"election": _election,
    b"get": _get,
    b"get-safe": _get,
    b"increment": _increment,
    b"join": _member,
    b"keys": _keys,
    b"leave": _member,
    b"list-commands": _list_commands,
    b"ls": _keys,
    b"metrics-state": _metrics_state,
    b"remove": _remove,
    b"resolve": _resolve,
    b"set": _set,
    b"set-permissions": _set_permissions,
    b"set-primary": _set_primary,
    b"set-safe": _set,
    b"snapshot": _snapshot,
    b"unwatch": _unwatch,
    b"unwatch-all": _unwatch_all,
    b"use": _use,
    b"use-db": _use,
    b"watch": _watch,
    **dict.fromkeys(_INTERNAL, _internal),
}
ADMINISTRATIVE: Final = frozenset(
    {
        b"cluster-state", b"create-db", b"create-user", b"debug", b"election", b"join", b"leave", b"list-commands",
        b"metrics-state", b"set-permissions", b"set-primary", b"snapshot",
    }
)  # fmt: skip
