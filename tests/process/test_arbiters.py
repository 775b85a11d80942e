"""Arbiters and losing writers of both clients, and the commands about conflicts, at a real node."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nun
from nun import merge
from tests.process.test_command import finish, nun_command, on_a_terminal
from tests.support.node import ADMIN, Node, wait_until

pytestmark = pytest.mark.process


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    made = start_node()
    with nun.Client(made.address, **ADMIN) as client:
        client.create_database("people", token="t", strategy="arbiter")
    return made


@pytest.fixture
def people(node: Node) -> Iterator[Any]:
    with nun.Client(node.address, **ADMIN, decode="utf-8") as client:
        yield client.database("people", token="t")


def conflict_on(database: Any, key: str = "name", **how: Any) -> nun.ConflictPending:
    """mary's write, made on what jose has replaced."""
    base = database.set(key, "nobody")
    database.set(key, "jose", base=base)
    with pytest.raises(nun.ConflictPending) as pending:
        database.set(key, "mary", base=base, **how)
    return pending.value


def both(conflict: nun.Conflict) -> str:
    return f"{conflict.current.value}+{conflict.proposed.value}"


def test_who_loses_is_told_what_stands_there_and_what_became_of_it(people: Any) -> None:
    pending = conflict_on(people)
    assert (pending.key, pending.current.value, pending.current.in_conflict) == (
        "name",
        "jose",
        True,
    )
    [conflict] = people.conflicts()
    assert conflict.id == f"$conflicts_name_{pending.conflict}"
    assert (conflict.base.value, conflict.current.value) == ("nobody", "jose")
    assert (conflict.proposed.value, conflict.proposed.op_id) == ("mary", pending.conflict)
    assert people.get("name").version == -2
    assert people.get_many(["name", "other"])[0].in_conflict
    with people.arbiter(both, background=True) as arbiter:
        outcome = pending.wait(10.0)
    assert (outcome.state, outcome.value, outcome.current) == ("resolved", "mary", "jose+mary")
    assert arbiter.resolved == 1
    assert pending.wait(1.0).state == "resolved", "asked again"
    [conflict] = people.conflicts(state="resolved")
    assert conflict.decider
    assert people.get("name").version == 3


def test_an_outcome_that_was_waited_for_is_not_told_again(people: Any) -> None:
    first, second = conflict_on(people, "a"), conflict_on(people, "b")
    with people.arbiter(both, background=True):
        first.wait(10.0)
        with people._client.outcomes() as outcomes:
            told = outcomes.next_outcome(10.0)
            assert told.op_id == second.conflict
            assert outcomes.next_outcome(0.1) is None
        assert second.wait(10.0).state == "resolved", "the ledger knows it still"


def test_a_batch_tells_of_each(people: Any) -> None:
    for key in ("a", "b"):
        people.set(key, "1")
        people.set(key, "2")
    pipe = people.pipeline()
    pipe.set("a", "3", version=1)
    pipe.set("free", "1")
    pipe.set("b", "3", version=1)
    with pytest.raises(nun.BatchError) as failed:
        pipe.execute()
    one, free, other = failed.value.results
    assert free.version == 1
    assert {one.conflict, other.conflict} == {each.op_id for each in people.conflicts()}
    with people.arbiter(merge.numeric_sum, background=True):
        outcome = other.wait(10.0)
        assert (outcome.key, outcome.current) == ("b", "4")
        assert one.wait(10.0).state == "resolved"


def test_a_queue_is_folded_into_one_value_that_watchers_see_once(people: Any) -> None:
    pending = conflict_on(people)
    with pytest.raises(nun.ConflictPending):
        people.set("name", "anna")
    with people.watch("name") as seen:
        with people.arbiter(both, background=True):
            pending.wait(10.0)
        assert seen.next_event(5.0).value == "jose+mary+anna"
        assert seen.next_event(0.1) is None


def test_a_handler_that_fails_holds_up_nobody(people: Any) -> None:
    calls: list[str] = []

    def handler(conflict: nun.Conflict) -> Any:
        calls.append(conflict.key)
        if conflict.key == "raises" and calls.count("raises") < 2:
            raise RuntimeError("bad day")
        if conflict.key == "forgets" and calls.count("forgets") < 2:
            return None
        return both(conflict)

    pending = [conflict_on(people, key) for key in ("raises", "forgets", "good")]
    with people.arbiter(handler, background=True) as arbiter:
        assert {one.wait(10.0).state for one in pending} == {"resolved"}
    assert (arbiter.failed, arbiter.resolved) == (2, 3)


def test_a_slow_handler_loses_its_claim_to_another(people: Any) -> None:
    pending = conflict_on(people)
    asleep, wake = threading.Event(), threading.Event()

    def slow(_: nun.Conflict) -> str:
        asleep.set()
        wake.wait(20.0)
        return "too late"

    with people.arbiter(slow, background=True, lease=0.3) as late:
        assert asleep.wait(10.0)
        with people.arbiter(both, background=True):
            assert pending.wait(10.0).current == "jose+mary"
        wake.set()
        wait_until(lambda: late.lost, "the late answer to be refused")
    assert people.get("name").value == "jose+mary"


def test_several_workers_decide_side_by_side(people: Any) -> None:
    together = threading.Barrier(3)

    def handler(conflict: nun.Conflict) -> str:
        together.wait(10.0)
        return both(conflict)

    pending = [conflict_on(people, f"k{number}") for number in range(3)]
    with people.arbiter(handler, background=True, workers=3):
        assert {one.wait(10.0).state for one in pending} == {"resolved"}


def test_an_arbiter_may_remove_skip_and_be_tried(people: Any) -> None:
    pending = conflict_on(people)
    answers = list(people.try_arbiter(lambda _: 1 // 0))
    assert isinstance(answers[0][1], ZeroDivisionError)
    assert [answer for _, answer in people.try_arbiter(both)] == ["jose+mary"]
    assert [one.state for one in people.conflicts()] == ["open"]
    skipped = threading.Event()

    def skips(_: nun.Conflict) -> Any:
        skipped.set()
        raise merge.Skip

    with people.arbiter(skips, background=True) as arbiter:
        assert skipped.wait(10.0)
    assert (arbiter.failed, arbiter.resolved) == (0, 0)
    with people.arbiter(lambda _: nun.REMOVED, background=True):
        pending.wait(10.0)
    assert people.get("name") is None


def test_a_user_needs_the_permission_to_arbitrate(node: Node, people: Any) -> None:
    pending = conflict_on(people, "cart:1")
    conflict_on(people, "other")
    client = people._client
    client.create_user("people", "ann", "a")
    client.set_permissions("people", "ann", "a cart:*|r *")
    with nun.Client(node.address) as anns:
        database = anns.database("people", user="ann", token="a")
        assert [one.key for one in database.conflicts()] == ["cart:1", "other"]
        with database.arbiter(both, background=True):
            assert pending.wait(10.0).state == "resolved"
        [other] = people.conflicts()
        with pytest.raises(nun.PermissionDenied):
            database.resolve(other, "x")


def test_by_hand(people: Any) -> None:
    conflict_on(people)
    with pytest.raises(nun.ConflictPending):
        people.increment("name", 1)
    with pytest.raises(nun.ConflictPending):
        people.set("name", "anna")
    first, _, _ = sorted(people.conflicts(), key=lambda one: one.op_id)
    assert [one.op_id for one in people.queue("name")] == [first.op_id]
    result = people.resolve(first, "5")
    assert result.value == 1, "anna's is left"
    [anna] = people.conflicts()
    assert (anna.current.value, anna.proposed.value) == ("6", "anna")
    with pytest.raises(nun.BadRequest):
        people.resolve(first, "again")
    people.resolve(anna, nun.REMOVED)
    assert people.get("name") is None


def test_an_async_arbiter_and_writer(node: Node) -> None:
    async def story() -> None:
        async with nun.AsyncClient(node.address, **ADMIN) as client:
            database = await client.database("people", token="t")
            base = await database.set("name", "nobody")
            await database.set("name", "jose", base=base)
            with pytest.raises(nun.ConflictPending) as pending:
                await database.set("name", "mary", base=base)
            with pytest.raises(TimeoutError):
                await pending.value.wait(0.1)

            async def handler(conflict: nun.Conflict) -> str:
                await asyncio.sleep(0)
                return both(conflict)

            assert [answer async for _, answer in database.try_arbiter(handler)] == ["jose+mary"]
            async with await database.arbiter(handler, background=True) as arbiter:
                outcome = await pending.value.wait(10.0)
            assert (outcome.state, outcome.current) == ("resolved", "jose+mary")
            assert arbiter.resolved == 1
            assert [one.state async for one in database.conflicts(state=None)] == ["resolved"]
            task = asyncio.create_task(database.arbiter(both))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(story())


def test_an_arbiter_goes_on_over_a_restart_of_the_node(node: Node, people: Any) -> None:
    with people.arbiter(both, background=True, poll=0.5):
        node.kill("node")
        node.restart()
        pending = conflict_on(people)
        assert pending.wait(20.0).state == "resolved"


def test_an_arbiter_of_a_database_that_is_dropped_ends(people: Any) -> None:
    arbiter = people.arbiter(both, background=True, poll=0.2)
    people._client.drop_database("people")
    with pytest.raises(nun.NoSuchDatabase):
        arbiter.join()


# The commands


def test_the_commands_about_conflicts(node: Node, people: Any, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        status, out, err = finish(nun_command(node, "-d", "people", "-t", "t", *arguments))
        return status, out.decode(), err

    conflict_on(people)
    conflict_on(people, "other")
    status, out, _ = run("--json", "conflicts")
    assert status == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [(one["key"], one["value"], one["state"]) for one in found] == [
        ("name", "mary", "open"),
        ("other", "mary", "open"),
    ]
    assert "jose" in run("conflicts", "--key", "name")[1]
    (tmp_path / "mine.py").write_text(
        "def both(conflict):\n    return conflict.current.value + b'+' + conflict.proposed.value\n"
    )
    command = ("arbiter", "--python", "mine:both")
    process = nun_command(node, "-d", "people", "-t", "t", *command, "--dry-run", cwd=tmp_path)
    assert b"jose+mary" in finish(process)[1]
    process = nun_command(node, "-d", "people", "-t", "t", *command, "--count", "1", cwd=tmp_path)
    assert b"jose+mary" in finish(process)[1]
    assert people.get("name").value == "jose+mary"
    assert run("resolve", "name", "x") == (1, "", "Error: key 'name' is not in conflict\n")
    assert run("resolve", "other")[0] == 2
    assert run("resolve", "other", "--keep")[:2] == (0, "version 3\n")
    assert people.get("other").value == "jose"
    pending = conflict_on(people, "third")
    assert run("resolve", "third", "--take", "5")[0] == 1
    assert run("resolve", "third", "--take", str(pending.conflict))[0] == 0
    assert people.get("third").value == "mary"
    assert run("arbiter", "--python", "mine")[0] == 2
    assert run("arbiter", "--python", "nowhere:f")[0] == 2
    admin = ("--user", ADMIN["user"], "--password", ADMIN["password"])
    change = ("alter-db", "people", "--strategy", "newer", "--prefix", "cart:=arbiter")
    assert run(*admin, *change)[0] == 0
    [info] = [one for one in people._client.databases() if one.name == "people"]
    assert info.options["prefixes"] == {"cart:": "arbiter"}


def test_a_person_decides_at_the_terminal(node: Node, people: Any) -> None:
    conflict_on(people, "first")
    conflict_on(people, "second")
    status, shown = on_a_terminal(
        node, b"t\nk\n", "-d", "people", "-t", "t", "arbiter", "--interactive", "--count", "2"
    )
    assert status == 0, shown
    for line in (b"-nobody", b"+jose", b"+mary"):
        assert line in shown
    assert (people.get("first").value, people.get("second").value) == ("mary", "jose")
