"""Every operation as a request: what is checked and sent, and what its answer becomes. For both clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import compress
from typing import Any

from nun import messages as m
from nun.client.request import Grant, Request, nothing
from nun.client.results import (
    BatchResults,
    ColumnResults,
    DatabaseInfo,
    Entries,
    Entry,
    Lazy,
    Result,
    SetResults,
    entry_of,
    plain_text,
)
from nun.client.values import (
    Condition,
    Decoding,
    check_delta,
    check_deltas,
    check_key,
    check_keys,
    check_name,
    check_value,
    check_values,
    columns,
    packed_columns,
)
from nun.errors import BadRequest, BatchError
from nun.limits import KEYS_PAGE_MAX
from nun.position import Position

Text = str | bytes

# Keys and values


def get(grant: Grant, key: Text, decoding: Decoding) -> Request:
    check_key(key)
    return Request(m.GET, grant, (key,), _entry, decoding)


def _entry(request: Request) -> Entry | None:
    record = request.result
    if record is None or record[3] >= 0x80:
        return entry_of(request.args[0], record, request.decoding)
    return Entry(request.args[0], record, request.decoding)


def get_many(grant: Grant, keys: Iterable[Text], decoding: Decoding) -> Request:
    listed = list(keys)
    check_keys(listed)
    return Request(m.GET_MANY, grant, (listed,), _entries, decoding)


def _entries(request: Request) -> Entries:
    return Entries(request.args[0], request.result, request.decoding)


def set(
    grant: Grant, key: Text, value: Text, condition: Condition | None, decoding: Decoding
) -> Request:
    check_key(key)
    check_value(key, value)
    return Request(m.SET, grant, (key, value, condition), _version, decoding)


def remove(grant: Grant, key: Text, condition: Condition | None, decoding: Decoding) -> Request:
    check_key(key)
    return Request(m.REMOVE, grant, (key, condition), _version, decoding)


def _version(request: Request) -> Result:
    return Result(request.result, request.op_id, request.position)


def increment(grant: Grant, key: Text, delta: int, decoding: Decoding) -> Request:
    check_key(key)
    check_delta(key, delta)
    return Request(m.INCREMENT, grant, (key, delta), _sum, decoding)


def _sum(request: Request) -> Result:
    version, value = request.result
    return Result(version, request.op_id, request.position, value)


def set_many(
    grant: Grant, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]], decoding: Decoding
) -> Request:
    keys, values = columns(items)
    return set_columns(grant, keys, values, decoding)


def set_columns(grant: Grant, keys: list[Any], values: list[Any], decoding: Decoding) -> Request:
    check_keys(keys)
    check_values(keys, values)

    def finish(request: Request) -> Lazy[Any]:
        # The heads of what was replaced; or, where a key stood twice or a rule refused one, each one's answer.
        if isinstance(request.result, bytes):
            return SetResults(request.result, request.op_id, request.position)
        return _batch_results(request, bytes([m.SET]) * len(keys), keys)

    return Request(m.SET_MANY, grant, (packed_columns(keys, values),), finish, decoding)


def batch(
    grant: Grant,
    atomic: bool,
    kinds: bytes,
    keys: list[Any],
    arguments: list[Any],
    conditions: dict[int, Condition],
    decoding: Decoding,
) -> Request:
    """Single operations as one request: as GET_MANY or SET_MANY where they come to just that."""
    if kinds.count(m.GET) == len(kinds):
        return get_many(grant, keys, decoding)
    if kinds.count(m.SET) == len(kinds) and not atomic and not conditions:
        return set_columns(grant, keys, arguments, decoding)
    check_keys(keys)
    _check_arguments(kinds, keys, arguments)
    args = (atomic, kinds, packed_columns(keys, arguments), conditions or None)

    def finish(request: Request) -> Lazy[Any]:
        return _batch_results(request, kinds, keys)

    return Request(m.BATCH, grant, args, finish, decoding)


def _check_arguments(kinds: bytes, keys: list[Any], arguments: list[Any]) -> None:
    chosen = kinds.translate(m.IS_KIND[m.SET])
    check_values(compress(keys, chosen), list(compress(arguments, chosen)))
    chosen = kinds.translate(m.IS_KIND[m.INCREMENT])
    check_deltas(compress(keys, chosen), list(compress(arguments, chosen)))


def _batch_results(request: Request, kinds: bytes, keys: list[Any]) -> Lazy[Any]:
    """Raises BatchError when an operation failed, or the batch was refused whole."""
    answers = request.result
    if isinstance(answers, dict):
        # By kind of operation, where each kind could be decided by itself.
        op_id, position = request.op_id, request.position
        return ColumnResults(kinds, keys, answers, op_id, position, request.decoding)
    if request.status:
        answers = request.error().fields.get("results", [])
    results = BatchResults(kinds, keys, answers, request.op_id, request.position, request.decoding)
    failures = results.failures()
    if request.status:
        raise BatchError(
            f"{failures} of {len(keys)} operations were refused: nothing was done", results
        )
    if failures:
        raise BatchError(f"{failures} of {len(keys)} operations failed", results)
    return results


def keys(
    grant: Grant, pattern: Text, limit: int | None, after: Text | None, decoding: Decoding
) -> Request:
    """One page of keys: the answer is (keys, the key to go on after or None)."""
    check_name(pattern, "a pattern")
    if after is not None:
        check_name(after, "after")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise TypeError(f"limit is int or None, not {type(limit).__name__}")
    if limit is not None and limit < 1:
        raise BadRequest(f"limit is at least 1, not {limit}")
    page = KEYS_PAGE_MAX if limit is None else min(limit, KEYS_PAGE_MAX)
    return Request(m.KEYS, grant, (pattern, page, after), _keys, decoding)


def _keys(request: Request) -> tuple[list[Any], bytes | None]:
    found, after = request.result
    return [*map(request.decoding.key, found)], after


# Databases and the node


def create_database(name: Text, token: Text, options: dict[str, Any]) -> Request:
    check_name(name, "the name of a database")
    check_name(token, "a token")
    return Request(m.CREATE_DATABASE, None, (name, token, _options(options)), _done)


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """As they are called on the wire: times name their unit."""
    return {
        "conflict_timeout_s" if name == "conflict_timeout" else name: value
        for name, value in options.items()
    }


def alter_database(name: Text, token: Text | None, options: dict[str, Any]) -> Request:
    check_name(name, "the name of a database")
    if token is not None:
        check_name(token, "a token")
    return Request(m.ALTER_DATABASE, None, (name, token, _options(options)), _done)


def drop_database(name: Text) -> Request:
    check_name(name, "the name of a database")
    return Request(m.DROP_DATABASE, None, (name,), _done)


def create_user(database: Text, user: Text, token: Text) -> Request:
    check_name(database, "the name of a database")
    check_name(user, "the name of a user")
    check_name(token, "a token")
    return Request(m.CREATE_USER, None, (database, user, token), _done)


def drop_user(database: Text, user: Text) -> Request:
    check_name(database, "the name of a database")
    check_name(user, "the name of a user")
    return Request(m.DROP_USER, None, (database, user), _done)


def set_permissions(database: Text, user: Text, text: Text) -> Request:
    check_name(database, "the name of a database")
    check_name(user, "the name of a user")
    check_name(text, "a permission list")
    return Request(m.SET_PERMISSIONS, None, (database, user, text), _done)


def _done(request: Request) -> Result:
    """Writes that are not to a key have a position, and neither version nor op id."""
    return Result(0, 0, request.position)


def databases() -> Request:
    return Request(m.DATABASES, None, (), _databases)


def _databases(request: Request) -> list[DatabaseInfo]:
    return [
        DatabaseInfo(plain_text(name), plain_text(options)) for name, _, options in request.result
    ]


def snapshot(names: Iterable[Text] | None, reclaim: bool) -> Request:
    if isinstance(names, str | bytes):
        raise TypeError("names is a list of names of databases, or None for all")
    return Request(m.SNAPSHOT, None, (None if names is None else list(names), reclaim), _plain)


def status() -> Request:
    return Request(m.STATUS, None, (), _plain)


def _plain(request: Request) -> Any:
    return plain_text(request.result)


def wait(number: int, known: Result, level: int, patience_ms: int) -> Request:
    """What became of an earlier request of this client, once it is decided."""
    arguments = (number, level, patience_ms, known.position)
    return Request(m.WAIT, None, arguments, partial(_waited, known))


def _waited(known: Result, request: Request) -> Result:
    match request.result:
        case [int() as version, int() as value]:
            return Result(version, request.op_id, request.position, value)
        case int() as version:
            return Result(version, request.op_id, request.position)
        case True:
            return Result(known.version, known.op_id, known.position, known.value)
    return Result(0, request.op_id, request.position)


def seen(op_ids: list[int]) -> Request:
    """These outcomes were dealt with."""
    return Request(m.OUTCOMES_SEEN, None, (op_ids,), _done)


def cluster() -> Request:
    return Request(m.CLUSTER, None, (), _plain)


def check() -> Request:
    return Request(m.CHECK, None, (), _position)


def _position(request: Request) -> Position:
    return Position(*request.position)


def promote(name: Text, force: bool) -> Request:
    check_name(name, "the name of a node")
    return Request(m.PROMOTE, None, (name, force), _plain)


def ping(grant: Grant | None = None) -> Request:
    """Answered once there is a session, and the database is selected in it."""
    return Request(m.PING, grant, (None,), nothing)
