"""Conflicts as NunDB's arbiters get them: one after the other, and no value written over that none of them has seen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from nun import messages as m
from nun.client.request import Grant, Request
from nun.core import record
from nun.errors import ClaimLost
from nun.gateway.arbiters import Arbiters, _Desk
from nun.gateway.doors import Selected
from nun.gateway.language import DONE


def entry(op_id: int, previous: int = 0, state: str = "open", kind: str = "set") -> dict[str, Any]:
    current = None if previous else {"value": "old", "version": 2, "op_id": 7}
    return {
        "state": state, "kind": kind, "previous": previous, "database": "shop", "key": "k", "value": f"v{op_id}",
        "op_id": op_id, "current": current,
    }  # fmt: skip


class Node:
    """What a session would ask: the key's record, its open entries, and what resolutions come to."""

    def __init__(self) -> None:
        self.record = record.live(2, 7, b"old")
        self.open: list[dict[str, Any]] = []
        self.resolved: list[tuple[Any, ...]] = []
        self.before_page: Any = None

    async def _run(self, request: Request) -> None:
        if request.kind == m.GET:
            request.result = self.record
        elif request.kind == m.CONFLICTS:
            page = [[b"", json.dumps(one).encode()] for one in self.open]
            if self.before_page is not None:
                await self.before_page()
            request.result = [page, None]
        else:
            assert request.kind == m.RESOLVE
            _, _, value, shown, op_ids, _ = request.args
            if shown != int.from_bytes(self.record[4:12], "little"):
                raise ClaimLost("it holds another", key=b"k")
            self.resolved.append((value, tuple(op_ids)))


class Hearer:
    closed = False

    def __init__(self) -> None:
        self.told: list[bytes] = []

    def notify(self, messages: tuple[bytes, ...]) -> None:
        self.told += messages


class Event:
    def __init__(self, kind: str, one: dict[str, Any]) -> None:
        self.kind = kind
        self.key = b"$conflicts_k_%d" % one["op_id"]
        self.value = json.dumps(one).encode()


class _QuietFeed:
    def __init__(self) -> None:
        self.hearers: dict[Any, None] = {}

    async def begun(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nun.gateway.arbiters.Feed", lambda *_: _QuietFeed())
        self.node = Node()
        self.selected = Selected(cast(Any, self.node), Grant("shop", None, "t"), b"shop", False)
        self.arbiters = Arbiters(self.background)
        self.desk = _Desk(self.selected)
        self.desk.present.set()
        self.arbiters._desks[self.selected] = self.desk
        self.hearer = Hearer()
        self.desk.feed.hearers[cast(Any, self.hearer)] = None

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        work.close()

    async def heard(self, *events: Event) -> None:
        for event in events:
            await self.arbiters._heard(self.desk, cast(Any, event))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_entries_of_a_key_are_offered_one_after_the_other(scene: Scene) -> None:
    async def story() -> None:
        await scene.heard(Event("set", entry(10)), Event("set", entry(11, 10)))
        assert scene.hearer.told == [b"resolve 10 shop 2 k old v10"]
        scene.node.record = record.live(3, 20, b"both")
        await scene.heard(Event("set", entry(10, state="resolved")))
        assert scene.hearer.told[1:] == [b"resolve 11 shop -2 k both v11"]

    asyncio.run(story())


def test_an_increment_in_between_is_not_asked_about(scene: Scene) -> None:
    async def story() -> None:
        added = entry(11, 10, kind="increment")
        await scene.heard(Event("set", entry(10)), Event("set", added), Event("set", entry(12, 11)))
        await scene.heard(Event("set", entry(10, state="resolved")))
        assert len(scene.hearer.told) == 1
        await scene.heard(Event("set", {**added, "state": "resolved"}))
        assert len(scene.hearer.told) == 2

    asyncio.run(story())


def test_an_entry_that_was_cleaned_away_holds_up_nobody(scene: Scene) -> None:
    async def story() -> None:
        await scene.heard(Event("set", entry(10)), Event("set", entry(11, 10)))
        await scene.heard(Event("removed", entry(10)))
        assert scene.hearer.told[-1] == b"resolve 11 shop -2 k old v11"

    asyncio.run(story())


def test_a_page_that_was_read_before_an_entry_closed_holds_up_nobody(scene: Scene) -> None:
    async def story() -> None:
        scene.node.open = [entry(10), entry(11, 10)]

        async def closes() -> None:
            await scene.heard(Event("set", entry(10, state="resolved")))

        scene.node.before_page = closes
        late = Hearer()
        await scene.arbiters.join(cast(Any, late), scene.selected)
        assert late.told == [b"resolve 11 shop -2 k old v11"]
        assert list(scene.desk.open) == [11]

    asyncio.run(story())


def test_a_client_that_left_while_it_joined_is_no_arbiter(scene: Scene) -> None:
    async def story() -> None:
        gone = Hearer()

        async def leaves() -> None:
            gone.closed = True

        scene.node.before_page = leaves
        await scene.arbiters.join(cast(Any, gone), scene.selected)
        assert list(scene.desk.feed.hearers) == [scene.hearer]

    asyncio.run(story())


def test_a_resolution_closes_what_the_arbiter_has_seen(scene: Scene) -> None:
    async def story() -> None:
        scene.node.open = [entry(10)]
        await scene.heard(Event("set", entry(10)))
        reply = await scene.arbiters.resolve(scene.selected, 10, b"k", b"both")
        assert reply == DONE
        assert scene.node.resolved == [(b"both", (10,))]

    asyncio.run(story())


def test_a_value_that_no_arbiter_has_seen_is_not_written_over(scene: Scene) -> None:
    """As after a change of primary: the entry is open still, and the key holds something else."""

    async def story() -> None:
        scene.node.open = [entry(10)]
        await scene.heard(Event("set", entry(10)))
        scene.node.record = record.live(5, 99, b"unseen")
        reply = await scene.arbiters.resolve(scene.selected, 10, b"k", b"both")
        assert reply.error == b"k holds another value by now: it is shown again"
        assert scene.node.resolved == []
        assert scene.hearer.told[-1] == b"resolve 10 shop 2 k unseen v10"
        assert await scene.arbiters.resolve(scene.selected, 10, b"k", b"all") == DONE
        assert scene.node.resolved == [(b"all", (10,))]

    asyncio.run(story())


def test_what_is_not_open_any_more_was_resolved_by_somebody_else(scene: Scene) -> None:
    async def story() -> None:
        assert await scene.arbiters.resolve(scene.selected, 10, b"k", b"x") == DONE
        assert scene.node.resolved == []

    asyncio.run(story())


def test_entries_before_it_come_first(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nun.gateway.arbiters._PAUSE_S", 0)

    async def story() -> None:
        scene.node.open = [entry(10), entry(11, 10)]
        reply = await scene.arbiters.resolve(scene.selected, 11, b"k", b"x")
        assert reply.error == b"$conflicts_k_10 is to be resolved first"
        assert scene.node.resolved == []

    asyncio.run(story())
