"""The blocking client against a node that tells the truth, or loses, forgets and restarts."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import zmq

import nun
from nun import messages as m
from nun.client.port import ALONE_AFTER
from nun.client.sync import Database
from tests.support.fake_node import FakeNode, Message, never


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as node:
        yield node


@pytest.fixture
def client(node: FakeNode) -> Iterator[nun.Client]:
    with nun.Client(node.address, user="nun", password="pwd", timeout=10) as client:
        yield client


@pytest.fixture
def db(client: nun.Client) -> Database:
    return client.database("shop", token="t")


def first(kind: int, times: int = 1) -> Callable[[Message], bool]:
    """Says yes to the first messages of a kind."""
    left = [times]

    def is_one(message: Message) -> bool:
        if message[0] != kind or not left[0]:
            return False
        left[0] -= 1
        return True

    return is_one


# Every operation


def test_one_key(db: Database) -> None:
    assert db.get("name") is None
    result = db.set("name", "mary")
    entry = db.get("name")
    assert entry is not None
    assert (entry.key, entry.value, entry.version) == ("name", "mary", 1)
    assert (entry.op_id, result.version, str(result.position)) == (result.op_id, 1, "1.1.1:1")
    assert db.set("name", b"jose", base=entry).version == 2
    with pytest.raises(nun.VersionConflict) as caught:
        db.set("name", "ana", base=entry)
    assert caught.value.current == db.get("name")
    assert db.increment("visits", 5).value == 5
    assert db.increment("visits").value == 6
    with pytest.raises(nun.NotANumber):
        db.increment("name")
    assert db.remove("name", if_version=2).version == 3
    assert db.get("name") is None


def test_many_keys(db: Database) -> None:
    items = {f"key{i:04}": str(i) for i in range(1500)}
    results = db.set_many(items)
    assert [result.version for result in results] == [1] * 1500
    entries = db.get_many([*items, "nothing"])
    assert entries.values() == [*items.values(), None]
    assert entries[7] is not None
    assert (entries[7].key, entries[1500]) == ("key0007", None)
    assert db.set_many({}) == []
    assert db.get_many([]) == []
    assert db.keys("key*") == sorted(items)
    assert db.keys("key", limit=3, after="key0100") == ["key0101", "key0102", "key0103"]
    assert list(db.scan("key149")) == [f"key{i}" for i in range(1490, 1500)]


def test_keys_are_fetched_page_by_page(db: Database, node: FakeNode) -> None:
    pages = [[[b"a", b"b"], b"b"], [[], b"c"], [[b"d"], None]]
    node.answers[m.KEYS] = lambda message: pages[{None: 0, b"b": 1, b"c": 2}[message[6]]]
    assert db.keys() == ["a", "b", "d"]
    assert db.keys(limit=3) == ["a", "b", "d"]
    assert db.keys(limit=2) == ["a", "b"]
    assert [message[5] for message in node.asked(m.KEYS)][3:] == [3, 1, 1, 2]


def test_pipelines(db: Database, node: FakeNode) -> None:
    with db.pipeline() as pipe:
        pipe.set("a", "1")
        pipe.get("a")
        pipe.increment("n", 2)
        pipe.remove("a")
    assert [type(result).__name__ for result in pipe.results] == [
        "Result",
        "Entry",
        "Result",
        "Result",
    ]
    pipe = db.pipeline()
    pipe.set("b", "1", if_version=9)
    pipe.set("c", "1")
    with pytest.raises(nun.BatchError) as caught:
        pipe.execute()
    assert isinstance(pipe.results[0], nun.VersionConflict)
    assert caught.value.results is pipe.results
    assert db.get("c") is not None
    pipe = db.pipeline(atomic=True)
    pipe.set("d", "1")
    pipe.set("b", "1", if_version=9)
    with pytest.raises(nun.BatchError, match="nothing was done"):
        pipe.execute()
    assert pipe.results[0] is None
    assert db.get("d") is None
    assert db.pipeline().execute() == []
    asked = len(node.log)
    with pytest.raises(ZeroDivisionError), db.pipeline() as pipe:  # noqa: PT012
        pipe.set("e", "1")
        raise ZeroDivisionError
    assert len(node.log) == asked


def test_administration(client: nun.Client, node: FakeNode) -> None:
    client.create_database("new", "token")
    client.alter_database("new", strategy="none")
    client.create_user("new", "joe", "pass")
    client.set_permissions("new", "joe", "rw user:*")
    client.drop_user("new", "joe")
    result = client.drop_database("new")
    assert result.position is not None
    node.answers[m.DATABASES] = lambda _: [["shop", 1, {"strategy": "none"}]]
    assert client.databases() == [("shop", {"strategy": "none"})]
    node.answers[m.SNAPSHOT] = lambda message: {"names": message[3]}
    assert client.snapshot(["shop"]) == {"names": ["shop"]}
    node.answers[m.STATUS] = lambda _: {"node": "fake"}
    assert client.status() == {"node": "fake"}
    kinds = [m.CREATE_DATABASE, m.ALTER_DATABASE, m.CREATE_USER, m.SET_PERMISSIONS, m.DROP_USER]
    assert [node.asked(kind)[0][4] for kind in [*kinds, m.DROP_DATABASE]] == [b"new"] * 6


def test_wrong_secrets(node: FakeNode, client: nun.Client) -> None:
    with pytest.raises(nun.AuthError):
        nun.Client(node.address, user="nun", password="wrong")
    with pytest.raises(nun.AuthError):
        client.database("shop", token="wrong")
    assert client.database("shop").get("a") is None
    with nun.Client(node.address) as anybody, pytest.raises(nun.AuthError):
        anybody.database("shop")
    with pytest.raises(nun.NoSuchDatabase) as caught:
        client.database("none", token="t")
    assert caught.value.fields == {"database": "none"}


def test_large_values_ask_for_receipts_and_get_them(db: Database, node: FakeNode) -> None:
    db.set("big", bytes(300_000))
    assert db.get("big") is not None
    node.wait_for(lambda: len(node.receipts) == 1)


# Lost replies, lost nodes


def test_a_write_whose_reply_was_lost_takes_effect_once(db: Database, node: FakeNode) -> None:
    node.lose = first(m.INCREMENT)
    assert db.increment("n", 1).value == 1
    assert node.executed[m.INCREMENT] == 1
    assert len(node.asked(m.INCREMENT)) == 2


def test_a_restart_in_the_middle_of_a_write_is_not_seen(db: Database, node: FakeNode) -> None:
    for lost in ("lose", "ignore"):
        asked = len(node.asked(m.INCREMENT))
        setattr(node, lost, first(m.INCREMENT))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(db.increment, "n", 1)
            node.wait_for(lambda asked=asked: len(node.asked(m.INCREMENT)) > asked)
            node.restart()
            waiting.result(timeout=10)
    entry = db.get("n")
    assert entry is not None
    assert entry.value == "2"


def test_a_node_that_forgot_the_session_is_greeted_again(db: Database, node: FakeNode) -> None:
    db.set("a", "1")
    node.forget_sessions()
    assert db.get("a") is not None
    hello = node.asked(m.HELLO)
    assert len(hello) == 2
    assert hello[1][4] == 77


def test_a_write_without_an_answer_is_unknown_until_it_is_asked_about(
    db: Database, node: FakeNode
) -> None:
    node.lose = lambda message: message[0] == m.INCREMENT
    with pytest.raises(nun.UnknownOutcome) as caught:
        db.increment("n", 1, timeout=0.05)
    assert caught.value.reason == "timeout"
    with pytest.raises(nun.UnknownOutcome):
        caught.value.retry(timeout=0.05)
    node.lose = never
    assert caught.value.retry().value == 1
    assert node.executed[m.INCREMENT] == 1


def test_a_read_without_an_answer_is_lost(db: Database, node: FakeNode) -> None:
    node.ignore = lambda message: message[0] == m.GET
    with pytest.raises(nun.ConnectionLost):
        db.get("a", timeout=0.05)


def test_a_node_that_is_not_there(db: Database, node: FakeNode) -> None:
    node.stop()
    with pytest.raises(nun.ConnectionLost):
        db.get("a", timeout=0.1)
    with pytest.raises(nun.ConnectionLost):
        nun.Client(node.address, timeout=0.1)
    node.start()
    assert db.get("a") is None


def test_the_next_address_is_tried(node: FakeNode) -> None:
    with FakeNode() as second:
        second.stop()
        with nun.Client([second.address, node.address]) as client:
            assert client.database("shop", token="t").get("a") is None
            second.start()
            node.stop()
            assert client.database("shop", token="t").get("a") is None
            assert second.asked(m.GET)


def test_a_client_id_is_resumed_without_reusing_numbers(node: FakeNode) -> None:
    with nun.Client(node.address, client_id="worker-1") as client:
        client.database("shop", token="t").increment("n", 1)
        assert client.client_id == b"worker-1"
    node.next_number = 10
    with nun.Client(node.address, client_id="worker-1") as client:
        assert client.database("shop", token="t").increment("n", 1).value == 2
    assert [message[2] >= 10 for message in node.asked(m.INCREMENT)] == [False, True]


def test_encryption() -> None:
    public, secret = zmq.curve_keypair()
    with FakeNode(curve=(public, secret)) as node:
        with nun.Client(node.address, server_key=public.decode()) as client:
            assert client.database("shop", token="t").get("a") is None
        with pytest.raises(nun.ConnectionLost, match="do both sides use CURVE"):
            nun.Client(node.address, timeout=0.3)
        other, _ = zmq.curve_keypair()
        with pytest.raises(nun.ConnectionLost, match="is server_key the node's"):
            nun.Client(node.address, server_key=other, timeout=0.3)


@pytest.mark.parametrize("address", ["tcp://", "tcp://127.0.0.1:notaport", "foo://x"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(nun.ConfigError, match="address"):
        nun.Client(address)


# Threads


def test_threads_share_one_connection(db: Database, node: FakeNode) -> None:
    def work(name: int) -> None:
        for i in range(50):
            db.set(f"{name}.{i}", str(i))
            entry = db.get(f"{name}.{i}")
            assert entry is not None
            assert entry.value == str(i)
            db.increment("n", 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    entry = db.get("n")
    assert entry is not None
    assert entry.value == "400"
    assert len(node.asked(m.HELLO)) == 1


def test_threads_survive_restarts_and_lost_replies(db: Database, node: FakeNode) -> None:
    node.lose = first(m.INCREMENT, 3)
    done = threading.Event()

    def work(_: int) -> None:
        for _ in range(30):
            db.increment("n", 1)

    def disturb() -> None:
        for i in range(4):
            count = 20 * (i + 1)
            node.wait_for(lambda count=count: node.executed[m.INCREMENT] >= count)
            node.restart()

    with ThreadPoolExecutor(5) as pool:
        disturbing = pool.submit(disturb)
        list(pool.map(work, range(4)))
        disturbing.result(timeout=10)
        done.set()
    entry = db.get("n")
    assert entry is not None
    assert entry.value == "120"


def test_a_thread_that_waits_long_does_not_hold_up_another(db: Database, node: FakeNode) -> None:
    node.ignore = lambda message: message[0] == m.GET and message[4] == b"slow"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(db.get, "slow")
        node.wait_for(lambda: bool(node.asked(m.GET)))
        for _ in range(20):
            db.set("a", "1")
        assert not waiting.done()
        node.ignore = never
        assert waiting.result(timeout=10) is None


def test_a_thread_that_is_alone_again_takes_the_short_way(db: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: db.set(f"k{i}", "1"), range(50)))
    port = db._client._port
    port._shared = True
    for _ in range(ALONE_AFTER):
        db.get("k1")
    assert not port._shared


def test_closing_ends_the_waiting_of_others(
    client: nun.Client, db: Database, node: FakeNode
) -> None:
    node.ignore = lambda message: message[0] in (m.GET, m.SET)
    watch = db.watch("a")
    with ThreadPoolExecutor(3) as pool:
        read, write = pool.submit(db.get, "a"), pool.submit(db.set, "a", "1")
        events = pool.submit(watch.next_event)
        node.wait_for(lambda: bool(node.asked(m.GET) and node.asked(m.SET)))
        client.close()
        with pytest.raises(nun.ConnectionLost, match="closed"):
            read.result(timeout=10)
        with pytest.raises(nun.UnknownOutcome):
            write.result(timeout=10)
        with pytest.raises(nun.ConnectionLost):
            events.result(timeout=10)
    with pytest.raises(nun.ConnectionLost, match="closed"):
        db.get("a")
    with pytest.raises(nun.ConnectionLost, match="closed"):
        db.watch("a")
    client.close()
    watch.close()


def test_an_interrupted_wait_leaves_the_client_usable(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = db._client._port
    receive = port.session.receive

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(port.session, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        db.get("a")
    monkeypatch.setattr(port.session, "receive", receive)
    assert db.get("a") is None


def test_a_client_stays_in_its_process(client: nun.Client, db: Database) -> None:
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(client)
    child = os.fork()
    if not child:
        try:
            db.get("a")
        except nun.ConnectionLost as error:
            os._exit(7 if "fork" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert db.get("a") is None


# Watches


def keys(events: list[Any]) -> list[Any]:
    return [(event.kind, event.key, event.value) for event in events if event is not None]


def test_a_watch_sees_what_comes_after_it(db: Database) -> None:
    db.set("user:1", "before")
    with db.watch("user:*") as watch:
        assert watch.alive
        db.set("user:1", "a")
        db.set("other", "b")
        db.remove("user:1")
        events = [next(watch) for _ in range(2)]
        assert keys(events) == [("set", "user:1", "a"), ("removed", "user:1", None)]
        assert events[1].version == 3
        assert watch.next_event(timeout=0.01) is None
        assert watch.position == events[1].position
    assert list(watch) == []
    assert not watch.alive


def test_a_watch_resumes_in_another_client(db: Database, node: FakeNode) -> None:
    watch = db.watch("*")
    for i in range(5):
        db.set("a", str(i))
    assert [next(watch).value for _ in range(3)] == ["0", "1", "2"]
    position = watch.position
    watch.close()
    with nun.Client(node.address) as other:
        resumed = other.database("shop", token="t").watch("*", since=str(position))
        assert [next(resumed).value for _ in range(2)] == ["3", "4"]


def test_a_watch_survives_restarts_without_loss_or_repeat(db: Database, node: FakeNode) -> None:
    watch = db.watch("*")
    expected, got = [], []
    for i in range(5):
        node.entry((f"{i}a", "x"), (f"{i}b", "x"), (f"{i}c", "x"), cut=(1, 2))
        expected += [f"{i}a", f"{i}b", f"{i}c"]
        got += [next(watch).key for _ in range(2)]
        node.restart()
    got += [next(watch).key for _ in range(5)]
    assert got == expected
    assert watch.next_event(timeout=0.01) is None


def test_a_watch_whose_position_was_compacted_is_told_the_state(
    db: Database, node: FakeNode
) -> None:
    for i in range(4):
        db.set(f"k{i}", str(i))
    db.remove("k0")
    node.first_seq = 4
    watch = db.watch("*", since="1.1.1:1")
    kinds = [next(watch).kind for _ in range(5)]
    assert kinds == ["compacted", "set", "set", "set", "current"]
    db.set("k1", "new")
    assert next(watch).value == "new"


def test_a_slow_watch_holds_no_more_than_its_credit(db: Database, node: FakeNode) -> None:
    watch = db.watch("*", credit=5_000)
    for i in range(200):
        node.entry((f"k{i:03}", "x" * 200))
    db.get("a")
    held = sum(len(body) for _, body in watch._state._bodies)
    assert held < 6_000
    assert [next(watch).key for _ in range(200)] == [f"k{i:03}" for i in range(200)]
    assert node.credits


def test_a_watch_of_a_database_that_goes_away_says_so(db: Database, node: FakeNode) -> None:
    watch = db.watch("*")
    node.entry(("a", "1"))
    code = nun.NoSuchDatabase.code
    node.tell_watches(lambda number: [m.WATCH_ENDED, number, code, "dropped", {"database": "shop"}])
    assert next(watch).key == "a"
    with pytest.raises(nun.NoSuchDatabase):
        next(watch)


def test_a_watch_that_is_refused_says_why(db: Database, node: FakeNode) -> None:
    def refuse(message: Message) -> Any:
        raise nun.PermissionDenied("no", key=message[5], kind="r")

    node.answers[m.WATCH] = refuse
    with pytest.raises(nun.PermissionDenied) as caught:
        db.watch("secret")
    assert caught.value.fields == {"key": "secret", "kind": "r"}
    with pytest.raises(nun.BadRequest):
        db.watch("a", since="yesterday")
    node.answers.clear()
    node.ignore = lambda message: message[0] == m.WATCH
    with pytest.raises(nun.ConnectionLost):
        db.watch("a", timeout=0.05)


def test_watching_and_writing_in_different_threads(db: Database) -> None:
    watch = db.watch("*")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: [next(watch).value for _ in range(100)])
        for i in range(100):
            db.set("a", str(i))
        assert waiting.result(timeout=10) == [str(i) for i in range(100)]
