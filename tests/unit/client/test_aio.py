"""The asyncio client against the same node: what differs from the blocking one is many at once, and cancelling."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import nun
from nun import messages as m
from nun.client.aio import AsyncDatabase
from tests.support.fake_node import FakeNode, Message, never


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as node:
        yield node


def run(node: FakeNode, test: Callable[[nun.AsyncClient, AsyncDatabase], Awaitable[None]]) -> None:
    """Runs a test within a client that has selected the database."""

    async def main() -> None:
        async with nun.AsyncClient(node.address, user="nun", password="pwd") as client:
            await test(client, await client.database("shop", token="t"))

    asyncio.run(asyncio.wait_for(main(), 30))


async def until(node: FakeNode, condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(node.wait_for, condition)


def test_every_operation(node: FakeNode) -> None:
    async def test(client: nun.AsyncClient, db: AsyncDatabase) -> None:
        assert await db.get("name") is None
        result = await db.set("name", "mary")
        assert await result.wait() is result
        entry = await db.get("name")
        assert entry is not None
        with pytest.raises(nun.VersionConflict):
            await db.set("name", "ana", base=None)
        assert (await db.set("name", "jose", base=entry)).version == 2
        assert (await db.increment("n", 4)).value == 4
        assert (await db.remove("name")).version == 3
        items = {f"key{i}": str(i) for i in range(1200)}
        assert len(await db.set_many(items)) == 1200
        entries = await db.get_many(items)
        assert entries.values() == list(items.values())
        assert await db.set_many([]) == []
        assert await db.get_many([]) == []
        assert await db.keys("key1", limit=2) == ["key1", "key10"]
        assert [key async for key in db.scan("key119")] == [
            "key119",
            *(f"key119{i}" for i in range(10)),
        ]
        async with db.pipeline() as pipe:
            pipe.set("a", "1")
            pipe.get("a")
        assert pipe.results[1].value == "1"
        failing = db.pipeline(atomic=True)
        failing.set("a", "1", if_version=9)
        with pytest.raises(nun.BatchError):
            await failing.execute()
        assert isinstance(failing.results[0], nun.VersionConflict)
        assert await db.pipeline().execute() == []
        await client.create_database("new", "token")
        await client.alter_database("new", token="other")
        await client.create_user("new", "joe", "pass")
        await client.set_permissions("new", "joe", "r *")
        await client.drop_user("new", "joe")
        await client.drop_database("new")
        node.answers[m.DATABASES] = lambda _: []
        assert await client.databases() == []
        node.answers[m.SNAPSHOT] = node.answers[m.STATUS] = lambda _: {"ok": True}
        assert await client.snapshot() == await client.status() == {"ok": True}
        assert len(client.client_id) == 16

    run(node, test)


def test_many_requests_at_once_share_one_connection(node: FakeNode) -> None:
    async def test(_: nun.AsyncClient, db: AsyncDatabase) -> None:
        results = await asyncio.gather(*(db.increment("n", 1) for _ in range(500)))
        assert sorted(result.value or 0 for result in results) == list(range(1, 501))

    run(node, test)
    assert len(node.asked(m.HELLO)) == 1
    node.wait_for(lambda: bool(node.asked(m.BYE)))


def test_requests_before_the_greeting_wait_for_it(node: FakeNode) -> None:
    async def main() -> None:
        client = nun.AsyncClient(node.address)
        db = client.database("shop", token="t")
        assert [*await asyncio.gather(db.get("a"), db.get("b"))] == [None, None]
        await client.close()
        await client.close()
        with pytest.raises(nun.ConnectionLost, match="closed"):
            await db.get("a")

    asyncio.run(main())


def test_wrong_secrets(node: FakeNode) -> None:
    async def main() -> None:
        with pytest.raises(nun.AuthError):
            async with nun.AsyncClient(node.address, user="nun", password="wrong"):
                pass
        async with nun.AsyncClient(node.address) as client:
            with pytest.raises(nun.AuthError):
                await client.database("shop", token="wrong")

    asyncio.run(main())


def test_restarts_and_lost_replies_are_not_seen(node: FakeNode) -> None:
    async def test(_: nun.AsyncClient, db: AsyncDatabase) -> None:
        lost = [5]

        def lose(message: Message) -> bool:
            lost[0] -= message[0] == m.INCREMENT
            return message[0] == m.INCREMENT and lost[0] >= 0

        node.lose = lose
        waiting = [asyncio.ensure_future(db.increment("n", 1)) for _ in range(20)]
        for count in (5, 20):
            await until(node, lambda count=count: node.executed[m.INCREMENT] >= count)
            await asyncio.to_thread(node.restart)
        results = await asyncio.gather(*waiting)
        assert sorted(result.value or 0 for result in results) == list(range(1, 21))

    run(node, test)


def test_an_unknown_outcome_can_be_asked_about(node: FakeNode) -> None:
    async def test(_: nun.AsyncClient, db: AsyncDatabase) -> None:
        node.lose = lambda message: message[0] == m.INCREMENT
        with pytest.raises(nun.UnknownOutcome) as caught:
            await db.increment("n", 1, timeout=0.05)
        with pytest.raises(nun.UnknownOutcome):
            await caught.value.retry(0.05)
        node.lose = never
        assert (await caught.value.retry()).value == 1
        node.ignore = lambda message: message[0] == m.GET
        with pytest.raises(nun.ConnectionLost):
            await db.get("a", timeout=0.05)

    run(node, test)
    assert node.executed[m.INCREMENT] == 1


def test_a_cancelled_request_leaves_nothing_behind(node: FakeNode) -> None:
    async def test(client: nun.AsyncClient, db: AsyncDatabase) -> None:
        node.ignore = lambda message: message[0] == m.GET
        waiting = asyncio.ensure_future(db.get("a"))
        await until(node, lambda: bool(node.asked(m.GET)))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert client._port.session.in_flight == {}
        node.ignore = never
        assert await db.get("a") is None

    run(node, test)


def test_closing_ends_what_waits(node: FakeNode) -> None:
    async def test(client: nun.AsyncClient, db: AsyncDatabase) -> None:
        node.ignore = lambda message: message[0] in (m.GET, m.SET)
        watch = await db.watch("*")
        waiting: list[Any] = [
            asyncio.ensure_future(call)
            for call in (db.get("a"), db.set("a", "1"), watch.next_event())
        ]
        await until(node, lambda: bool(node.asked(m.SET)))
        await client.close()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        kinds = [nun.ConnectionLost, nun.UnknownOutcome, nun.ConnectionLost]
        assert [type(error) for error in errors] == kinds

    run(node, test)


def test_a_watch(node: FakeNode) -> None:
    async def test(_: nun.AsyncClient, db: AsyncDatabase) -> None:
        watch = db.watch("user:*")
        await db.set("user:1", "a")
        await db.set("other", "b")
        await db.remove("user:1")
        assert [(await anext(watch)).kind for _ in range(2)] == ["set", "removed"]
        assert watch.alive
        assert await watch.next_event(timeout=0.01) is None
        position = watch.position
        await watch.close()
        assert [event async for event in watch] == []
        assert not watch.alive
        await db.set("user:2", "c")
        async with db.watch("user:*", since=position) as again:
            async for event in again:
                assert event.key == "user:2"
                break

    run(node, test)


def test_a_watch_survives_restarts_without_loss_or_repeat(node: FakeNode) -> None:
    async def test(_: nun.AsyncClient, db: AsyncDatabase) -> None:
        watch = await db.watch("*", credit=300)
        expected, got = [], []
        large = "x" * 40_000  # only large messages may end in the midst of an entry
        for i in range(4):
            changes = [(f"{i}{letter}", large) for letter in "abc"]
            await asyncio.to_thread(node.entry, *changes, cut=(1, 2))
            expected += [f"{i}a", f"{i}b", f"{i}c"]
            got += [(await anext(watch)).key for _ in range(2)]
            await asyncio.to_thread(node.restart)
        got += [(await anext(watch)).key for _ in range(4)]
        assert got == expected

    run(node, test)


def test_a_watch_that_is_refused_says_why(node: FakeNode) -> None:
    async def test(_: nun.AsyncClient, db: AsyncDatabase) -> None:
        def refuse(message: Message) -> Any:
            raise nun.PermissionDenied("no", key=message[5], kind="r")

        node.answers[m.WATCH] = refuse
        with pytest.raises(nun.PermissionDenied):
            await db.watch("a")
        with pytest.raises(nun.PermissionDenied):
            async with db.watch("a"):
                pass
        with pytest.raises(nun.PermissionDenied):
            await anext(db.watch("a"))

    run(node, test)


def test_a_client_stays_in_its_loop(node: FakeNode) -> None:
    client = nun.AsyncClient(node.address)

    async def use() -> None:
        await client.database("shop", token="t")

    async def close() -> None:
        await client.close()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(use())
        with pytest.raises(RuntimeError, match="event loop"):
            asyncio.run(use())
        loop.run_until_complete(close())
    finally:
        loop.close()
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(client)
