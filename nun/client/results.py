"""What the library gives back: entries, results of writes, events; and batches of them that decode when looked at.

A batch's reply stays as the columns that came over the wire. An Entry or Result of it is made when it is asked for:
making a thousand objects at once would cost more than the request.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import compress, count, repeat
from operator import eq, itemgetter
from typing import Any, NamedTuple, Self, TypeVar, overload

from nun.client.values import Decoding, is_live, value_bytes
from nun.core.clock import TICK
from nun.core.record import HEAD_BYTES, SPECIAL, unpack_head, unpack_integers, versions_of_heads
from nun.errors import BadRequest, ConflictPending, RequestError, WireError, from_wire
from nun.messages import GET, IN_CONFLICT, INCREMENT, IS_KIND, SET
from nun.position import Position


class Entry(tuple[Any, ...]):
    """What a key held when it was read: (key as asked for, packed record, decoding, value).

    A tuple underneath, since that is what a thousand of them are made from fastest.
    """

    __slots__ = ()

    def __new__(cls, key: str | bytes, record: bytes, decoding: Decoding) -> Entry:
        try:
            value = decoding.value(value_bytes(record))
        except ValueError:
            return tuple.__new__(UndecodedEntry, (key, record, decoding, None))
        return tuple.__new__(cls, (key, record, decoding, value))

    value = property(itemgetter(3))

    @property
    def key(self) -> Any:
        return shown_key(self[0], self[2])

    @property
    def version(self) -> int:
        """-2 while the key is in conflict."""
        version: int = unpack_head(self[1])[0]
        return version if version < SPECIAL else IN_CONFLICT

    @property
    def op_id(self) -> int:
        op_id: int = unpack_head(self[1])[1]
        return op_id

    @property
    def held_version(self) -> int:
        """The version of what the key holds, in conflict or not."""
        version: int = unpack_head(self[1])[0]
        return version & ~SPECIAL

    @property
    def in_conflict(self) -> bool:
        """Whether writes to the key wait for an arbiter; its value is what it held before."""
        return bool(self[1][3] >= 0x80)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        return bool(self[1] == other[1]) and _raw_key(self[0]) == _raw_key(other[0])

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((_raw_key(self[0]), self[1]))

    def __repr__(self) -> str:
        shown = value_bytes(self[1])[:60]
        return f"Entry(key={self.key!r}, value={shown!r}, version={self.version})"


class UndecodedEntry(Entry):
    """An entry whose bytes are not what `decode` says: looking at its value raises ValueError."""

    __slots__ = ()

    @property
    def value(self) -> Any:
        return self[2].value(value_bytes(self[1]))


def entry_of(key: str | bytes, record: bytes | None, decoding: Decoding) -> Entry | None:
    """The entry of a record of a reply; None where it holds no value."""
    if record is None or not is_live(record):
        return None
    return Entry(key, record, decoding)


_new: Callable[..., Any] = tuple.__new__  # with a type and its row: what makes many fastest
_flags_of: Any = itemgetter(3)  # the byte of a packed record that tells tombstones


def _raw_key(key: str | bytes) -> bytes:
    return key if isinstance(key, bytes) else key.encode("utf-8", "surrogateescape")


def shown_key(key: str | bytes, decoding: Decoding) -> Any:
    """A key as `decode` shows keys, whether the caller gave it or the node."""
    return decoding.key(_raw_key(key)) if isinstance(key, bytes) or decoding.name is None else key


class Result(tuple[Any, ...]):
    """What became of a write: (version, op id, position as it came, sum). Awaitable, so that both clients share it.

    A tuple underneath, as Entry is and for the same reason.
    """

    _wait: Callable[[str | int, float | None], Any] | None = None  # of a request of its own

    def __new__(cls, version: int, op_id: int, position: Any, value: int | None = None) -> Result:
        return tuple.__new__(cls, (version, op_id, position, value))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    version = property(itemgetter(0))
    op_id = property(itemgetter(1))
    value = property(itemgetter(3))  # of an increment: the sum

    @property
    def position(self) -> Position | None:
        return None if self[2] is None else Position(*self[2])

    @property
    def status(self) -> str:
        """ "committed"; while it is taken and not decided "tentative", or "queued" if it cannot be shown meanwhile."""
        if self[0] == IN_CONFLICT:
            return "queued"
        return "tentative" if self[2] is None and self[1] else "committed"

    def wait(self, level: str | int = "primary", timeout: float | None = None) -> Any:
        """Waits until the write is decided and has reached an ack level; returns what it came to.

        A committed write has reached "primary". With an AsyncClient, await what this returns.

        Raises:
            VersionConflict: it was refused; the ledger has it, and an outcome tells of it.
            UnknownOutcome: the level was not reached in time.
        """
        if level in ("primary", "local") and self.status == "committed":
            return self
        if self._wait is None:
            raise BadRequest(
                "this result cannot be waited for: it does not come from a request of its own"
            )
        return self._wait(level, timeout)

    def __await__(self) -> Generator[Any, None, Self]:
        return self
        yield

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return (self.version, self.op_id, self.position, self.value) == (
            other.version,
            other.op_id,
            other.position,
            other.value,
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.version, self.op_id))

    def __repr__(self) -> str:
        value = "" if self.value is None else f", value={self.value}"
        return (
            f"Result(version={self.version}, op_id={self.op_id}, position={self.position}{value})"
        )


class Event(NamedTuple):
    """One change that a watch saw; `kind` is "set", "removed", "compacted" or "current"."""

    kind: str
    key: Any
    value: Any
    version: int
    op_id: int
    position: Position

    @property
    def in_conflict(self) -> bool:
        """Whether the key was in conflict then: more writes wait for an arbiter."""
        return self.version == IN_CONFLICT


class DatabaseInfo(NamedTuple):
    """A database as an administrator sees it."""

    name: str
    options: dict[str, Any]


T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for; equal to any sequence of equal items."""

    def __init__(self, length: int) -> None:
        self._length = length

    def _make(self, index: int) -> T:
        raise NotImplementedError

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._length))]
        return self._make(range(self._length)[index])

    def __iter__(self) -> Iterator[T]:
        return map(self._make, range(self._length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        more = ", ..." if self._length > 3 else ""
        return f"[{', '.join(map(repr, self[:3]))}{more}]"


class Entries(Lazy["Entry | None"]):
    """What many keys held: an Entry, or None where there was nothing."""

    def __init__(
        self, keys: Sequence[Any], records: Sequence[bytes | None], decoding: Decoding
    ) -> None:
        super().__init__(len(records))
        self._keys = keys
        self._records = records
        self._decoding = decoding

    def _make(self, index: int) -> Entry | None:
        return entry_of(self._keys[index], self._records[index], self._decoding)

    def __iter__(self) -> Iterator[Entry | None]:
        records = self._records
        if None in records or max(map(_flags_of, records), default=0) >= 0x80:
            return super().__iter__()  # some are absent
        try:
            values = self.values()
        except ValueError:
            return super().__iter__()
        rows = zip(self._keys, records, repeat(self._decoding, len(records)), values, strict=True)
        return map(_new, repeat(Entry), rows)

    def values(self) -> list[Any]:
        """All values at once, None where there was nothing; the fast way to read a batch."""
        return self._decoding.values(self._records)


class SetResults(Lazy[Result]):
    """The results of `set_many`: made from the heads of the records that were replaced."""

    def __init__(self, heads: bytes, op_id: int, position: Any) -> None:
        super().__init__(len(heads) // HEAD_BYTES)
        self._heads = heads
        self._op_id = op_id
        self.position = None if position is None else Position(*position)

    def _make(self, index: int) -> Result:
        word: int = unpack_head(self._heads, index * HEAD_BYTES)[0]
        return Result((word & ~SPECIAL) + 1, self._op_id + index * TICK, self.position)

    def __iter__(self) -> Iterator[Result]:
        versions = [(word & ~SPECIAL) + 1 for word in versions_of_heads(self._heads)]
        return _results(versions, self._op_id, self.position, repeat(None))


def _results(
    versions: Sequence[int], op_id: int, position: Position | None, values: Iterable[int | None]
) -> Iterator[Result]:
    rows = zip(versions, count(op_id, TICK), repeat(position), values, strict=False)
    return map(_new, repeat(Result), rows)


class SumResults(Lazy[Result]):
    """The results of increments: made from the sums, and the heads of what the distinct keys held before."""

    def __init__(
        self, keys: Sequence[Any], heads: bytes, sums: bytes, op_id: int, position: Position | None
    ) -> None:
        self._sums = unpack_integers(sums)
        super().__init__(len(self._sums))
        distinct = dict.fromkeys(keys)
        if len(distinct) * HEAD_BYTES != len(heads):
            # The same key was given as text and as bytes.
            keys = [_raw_key(key) for key in keys]
            distinct = dict.fromkeys(keys)
        if (len(distinct) * HEAD_BYTES, len(keys)) != (len(heads), len(self._sums)):
            raise ValueError("heads, sums and keys are not of one length")
        self._keys = keys
        self._distinct = distinct
        self._heads = heads
        self._op_id = op_id
        self._position = position

    @cached_property
    def _versions(self) -> list[int]:
        held = versions_of_heads(self._heads)
        following = {
            key: count(version + 1) for key, version in zip(self._distinct, held, strict=True)
        }
        return list(map(next, map(following.__getitem__, self._keys)))

    def _make(self, index: int) -> Result:
        op_id = self._op_id + index * TICK
        return Result(self._versions[index], op_id, self._position, self._sums[index])

    def __iter__(self) -> Iterator[Result]:
        return _results(self._versions, self._op_id, self._position, self._sums)


class ColumnResults(Lazy[Any]):
    """The results of a pipeline whose gets, sets and increments were decided kind by kind.

    Args:
        told: kind of operation -> what the node told of all operations of that kind.

    Raises:
        WireError: the node told of more or fewer.
    """

    def __init__(
        self,
        kinds: bytes,
        keys: Sequence[Any],
        told: dict[int, Any],
        op_id: int,
        position: Any,
        decoding: Decoding,
    ) -> None:
        super().__init__(len(kinds))
        self._kinds = kinds
        self.position = None if position is None else Position(*position)
        self._columns: dict[int, Lazy[Any]] = {}
        try:
            if SET in told:
                self._columns[SET] = SetResults(told[SET], op_id, self.position)
                op_id += TICK * len(self._columns[SET])
            if INCREMENT in told:
                heads, sums = told[INCREMENT]
                counted = list(compress(keys, kinds.translate(IS_KIND[INCREMENT])))
                self._columns[INCREMENT] = SumResults(counted, heads, sums, op_id, self.position)
            if GET in told:
                asked = list(compress(keys, kinds.translate(IS_KIND[GET])))
                self._columns[GET] = Entries(asked, told[GET], decoding)
        except (TypeError, ValueError) as error:
            raise WireError(f"the node's answer to a batch: {error}") from error
        if {kind: len(column) for kind, column in self._columns.items()} != {
            kind: kinds.count(kind) for kind in {*kinds}
        }:
            raise WireError("the node's answer to a batch does not fit it")

    def _make(self, index: int) -> Any:
        kind = self._kinds[index]
        return self._columns[kind][self._kinds.count(kind, 0, index)]

    def __iter__(self) -> Iterator[Any]:
        columns = {kind: iter(column) for kind, column in self._columns.items()}
        return map(next, map(columns.__getitem__, self._kinds))


class BatchResults(Lazy[Any]):
    """The results of a pipeline: a Result, an Entry or None, or the RequestError in its place."""

    def __init__(
        self,
        kinds: bytes,
        keys: Sequence[Any],
        answers: Sequence[Any],
        op_id: int,
        position: Any,
        decoding: Decoding,
    ) -> None:
        super().__init__(len(answers))
        self.waits: Callable[..., Any] | None = None  # asks for the outcome of a write in conflict
        self._kinds = kinds
        self._keys = keys
        self._answers = answers
        self._op_id = op_id
        self._decoding = decoding
        self.position = None if position is None else Position(*position)

    def failures(self) -> int:
        """How many operations failed."""
        if list not in {*map(type, self._answers)}:
            return 0
        return sum(type(answer) is list and len(answer) == 3 for answer in self._answers)

    def _make(self, index: int) -> Any:
        answer = self._answers[index]
        kind = self._kinds[index]
        if type(answer) is list and len(answer) == 3:
            error = error_of(answer[0], answer[1], answer[2], self._decoding)
            if isinstance(error, ConflictPending) and self.waits is not None:
                error.waits = partial(self.waits, self._keys[index], error.conflict)
            return error
        if kind == GET:
            return entry_of(self._keys[index], answer, self._decoding)
        op_id = self._op_id + index * TICK
        if kind == INCREMENT and answer is not None:
            return Result(answer[0], op_id, self.position, answer[1])
        # An atomic batch that was refused has answers only where it failed: the rest was not done.
        return None if answer is None else Result(answer, op_id, self.position)


def error_of(code: Any, message: Any, fields: Any, decoding: Decoding) -> RequestError:
    """The error of a reply, its fields as Python values: `current` an Entry, `key` as `decode` shows keys."""
    plain = {_text(name): value for name, value in fields.items()}
    key = plain.get("key")
    for name, value in plain.items():
        if name == "current":
            plain[name] = entry_of(key or b"", value, decoding)
        elif name == "key" and isinstance(value, bytes):
            plain[name] = decoding.key(value)
        elif name != "results":
            plain[name] = plain_text(value)
    return from_wire(code, _text(message), plain)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def plain_text(value: Any) -> Any:
    """A reply for people, such as `status`: its texts as str, what is no text as hexadecimal digits."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, list):
        return [plain_text(item) for item in value]
    if isinstance(value, dict):
        return {plain_text(name): plain_text(item) for name, item in value.items()}
    return value
