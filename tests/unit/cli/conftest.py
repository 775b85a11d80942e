"""A client that keeps its data in a dictionary, and a way to run `nun` in this process with it."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import pytest

from nun.cli.main import main
from nun.cli.settings import Settings
from nun.errors import NoSuchDatabase, NotANumber, NunError, VersionConflict
from nun.position import Position


class Entry(NamedTuple):
    key: bytes
    value: bytes
    version: int
    op_id: int = 7
    in_conflict: bool = False


class Result(NamedTuple):
    version: int
    op_id: int = 7
    position: Position = Position(1, 1, 1, 5)
    status: str = "committed"
    value: int | None = None


class Event(NamedTuple):
    kind: str
    key: bytes | None
    value: bytes | None
    version: int
    op_id: int
    position: Position


class Node:
    """What all clients of a test talk to."""

    def __init__(self) -> None:
        self.data: dict[bytes, Entry] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.settings: list[Settings] = []
        self.failure: BaseException | None = None
        self.events: list[Event] = []

    def call(self, *what: Any) -> None:
        self.calls.append(what)
        if self.failure is not None:
            raise self.failure


class Database:
    def __init__(self, node: Node) -> None:
        self.node = node

    def get(self, key: bytes) -> Entry | None:
        self.node.call("get", key)
        return self.node.data.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        self.node.call("get_many", len(keys))
        return [self.node.data.get(key) for key in keys]

    def set(self, key: bytes, value: bytes, **condition: Any) -> Result:
        self.node.call("set", key, value, condition)
        current = self.node.data.get(key)
        if "base" in condition and current is not None:
            raise VersionConflict("the key is there", key=key, current=None)
        version = current.version + 1 if current else 1
        self.node.data[key] = Entry(key, value, version)
        return Result(version)

    def set_many(self, items: Mapping[bytes, bytes]) -> list[Result]:
        self.node.call("set_many", len(items))
        for key, value in items.items():
            self.node.data[key] = Entry(key, value, 1)
        return [Result(1) for _ in items]

    def remove(self, key: bytes, **condition: Any) -> Result:
        self.node.call("remove", key, condition)
        self.node.data.pop(key, None)
        return Result(2)

    def increment(self, key: bytes, delta: int) -> Result:
        self.node.call("increment", key, delta)
        current = self.node.data.get(key)
        try:
            total = int(current.value if current else 0) + delta
        except ValueError:
            raise NotANumber(f"{key!r} holds no number", key=key) from None
        self.node.data[key] = Entry(key, b"%d" % total, 1)
        return Result(1, value=total)

    def keys(
        self, pattern: str | bytes = "", *, limit: int = 1000, after: bytes | None = None
    ) -> list[bytes]:
        text = pattern.decode() if isinstance(pattern, bytes) else pattern
        self.node.call("keys", text, limit, after)
        found = [
            key
            for key in sorted(self.node.data)
            if (not text or fnmatch.fnmatchcase(key.decode(errors="replace"), text))
            and (after is None or key > after)
        ]
        return found[:limit]

    def watch(self, pattern: bytes, since: Position | None = None) -> Iterator[Event]:
        self.node.call("watch", pattern, since)
        yield from self.node.events


class Client:
    def __init__(self, node: Node) -> None:
        self.node = node

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.node.calls.append(("close",))

    def database(self, name: str, user: str | None = None, token: str | None = None) -> Any:
        self.node.call("database", name, user, token)
        if name == "missing":
            raise NoSuchDatabase("there is no database 'missing'", database=name)
        return Database(self.node)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def administer(*args: Any, **named: Any) -> Any:
            self.node.call(name, *args, *named.items())
            return {
                "databases": ["shop", "other"],
                "status": {
                    "version": "0.1.0",
                    "uptime_s": 61,
                    "processes": {"network": {"pid": 5}},
                },
                "snapshot": {"databases": 2, "took_ms": 1.5},
            }.get(name)

        return administer


class AsyncDatabase(Database):
    async def get_many(self, keys: Sequence[bytes]) -> list[Entry | None]:  # type: ignore[override]
        return super().get_many(keys)

    async def set_many(self, items: Mapping[bytes, bytes]) -> list[Result]:  # type: ignore[override]
        return super().set_many(items)

    async def keys(self, pattern: str | bytes = "", **named: Any) -> list[bytes]:  # type: ignore[override]
        return super().keys(pattern, **named)


class AsyncClient(Client):
    async def close(self) -> None:  # type: ignore[override]
        self.node.calls.append(("close",))

    def database(self, name: str, user: str | None = None, token: str | None = None) -> Any:
        super().database(name, user, token)
        return AsyncDatabase(self.node)


class Run(NamedTuple):
    status: int
    out: bytes
    err: str


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    found = Node()

    def client(settings: Settings) -> Client:
        found.settings.append(settings)
        return Client(found)

    def async_client(settings: Settings) -> AsyncClient:
        found.settings.append(settings)
        return AsyncClient(found)

    monkeypatch.setattr(Settings, "client", client)
    monkeypatch.setattr(Settings, "async_client", async_client)
    for name in ("SERVER", "USER", "PASSWORD", "PWD", "DATABASE", "TOKEN", "SERVER_KEY"):
        monkeypatch.delenv(f"NUN_{name}", raising=False)
    return found


@pytest.fixture
def nun(node: Node, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Run]:
    """Runs the command in this process, against the fixture `node`."""
    del node

    def run(*arguments: str) -> Run:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capfdbinary.readouterr()
        status = ended.value.code
        assert isinstance(status, int)
        return Run(status, out, err.decode())

    return run


__all__ = ["AsyncClient", "Client", "Database", "Entry", "Event", "Node", "NunError", "Run"]
