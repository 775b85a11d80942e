"""NunDB's three transports against a real node: what clients match, to the byte, and what must not hurt it."""

from __future__ import annotations

import os
import signal
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

import nun
from tests.support.gateway import Served
from tests.support.node import seeded, wait_until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("gateway")) as node:
        node.wait_served()
        assert node.admin("create-db shop t;create-db arb t arbiter") == (
            "create-db success\n;create-db success\n"
        )
        yield node


def test_http_gives_one_element_a_command(served: Served) -> None:
    told = served.post("use-db shop t; set a 1;; get a; get-safe a; set-safe a 0 x; get nothing;")
    assert told == "empty;empty;value 1\n;value-version 1 1\n;Invalid version!;value <Empty>\n"
    assert served.post("") == ""
    assert served.post("get a") == "error no-db-selected\n"
    assert served.post("use-db shop wrong;use-db nowhere t;foo") == (
        "Invalid token;Not a valid database name;unknown command: foo"
    )
    assert served.post("use-db shop t;create-db x y") == "empty;Not auth"
    assert served.post("use-db shop t;get $$token") == (
        "empty;To read security keys you must auth as an admin!"
    )


def test_a_large_body_is_taken_and_one_too_large_refused(served: Served) -> None:
    value = "v" * 3_000_000
    assert served.post(f"use-db shop t;set large {value};get large") == (
        f"empty;empty;value {value}\n"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.post("set large " + "v" * 70_000_000)
    assert caught.value.code == 413
    caught.value.close()


def test_tcp_ends_each_command_with_one_line(served: Served) -> None:
    with served.line() as line:
        assert line.say("get a", 3) == [
            "error no-db-selected\n",
            "error error no-db-selected\n",
            " \n",
        ]
        assert line.say("use-db shop t") == ["ok \n"]
        assert line.say("set tcp two words") == ["ok \n"]
        assert line.say("get tcp", 2) == ["value two words\n", "ok \n"]
        assert line.say("set-safe tcp 0 stale") == ["error Invalid version! \n"]
        assert line.say("increment tcp") == ["error Key is not numeric \n"]
        assert line.say("") == ["error empty command \n"]
        line.socket.sendall(b"get ")
        line.socket.sendall(b"tcp\r\n")
        assert [line.reader.readline(), line.reader.readline()] == [b"value two words\n", b"ok \n"]
        line.socket.sendall(b"\xff\xfe\n")
        assert line.reader.readline().startswith(b"error ")
        assert line.say("get $connections", 2)[0].startswith("value ")


def test_no_ok_is_dropped_however_many_commands_wait(served: Served) -> None:
    with served.line() as line:
        line.say("use-db shop t")
        line.socket.sendall(b"set many 1\n" + b"get many\n" * 3_000)
        told = [line.reader.readline() for _ in range(6_001)]
    assert told == [b"ok \n", *[b"value 1\n", b"ok \n"] * 3_000]


def test_watchers_hear_of_every_change(served: Served) -> None:
    with served.line() as watcher, nun.Client(served.address, "nun", "nun-pwd") as client:
        watcher.say("use-db shop t")
        assert watcher.say("watch w") == ["ok \n"]
        db = client.database("shop", token="t")
        db.set("w", "from afar\nin two lines")
        db.remove("w")
        told = [watcher.reader.readline().decode() for _ in range(3)]
        assert told == [
            "changed w from afar in two lines\n",
            "changed-version w 1 from afar in two lines\n",
            "removed w\n",
        ]
        assert watcher.say("unwatch w") == ["ok \n"]


def test_conflicts_read_as_nundbs_and_are_resolved(served: Served) -> None:
    with served.line() as arbiter:
        arbiter.say("use-db arb t")
        told = served.post(
            "use-db arb t;set-safe k 1 v1;set-safe k 0 v2;set-safe k 0 v3;get-safe k;ls k"
        ).split(";")
        assert told[:2] == ["empty", "empty"]
        first, second = (told[index].removeprefix("$$conflitct unresolved ") for index in (2, 3))
        assert told[4:] == ["value-version -2 v1\n", f"keys ,{first},{second},k\n"]
        op_ids = [place.rpartition("_")[2] for place in (first, second)]
        texts = served.post(f"use-db arb t;get {first};get {second}").split(";")
        assert texts[1] == f"value resolve {op_ids[0]} arb 2 k v1 v2\n"
        assert texts[2] == f"value resolve {op_ids[1]} arb -2 k {first} v3\n"
        pushed = arbiter.say("arbiter", 2)
        assert pushed == [f"resolve {op_ids[0]} arb 2 k v1 v2\n", "ok \n"]
        told = arbiter.say(f"resolve {op_ids[0]} arb k 2 v1+v2", 2)
        assert sorted(told) == ["ok \n", f"resolve {op_ids[1]} arb -2 k v1+v2 v3\n"]
        assert arbiter.say(f"resolve {op_ids[1]} arb k 2 all") == ["ok \n"]
        assert arbiter.say("get-safe k", 2) == ["value-version 3 all\n", "ok \n"]
        assert arbiter.say(f"get {first}", 2) == ["value resolved all\n", "ok \n"]


def test_who_arbitrates_here_is_an_arbiter_for_databases_that_want_one(served: Served) -> None:
    """`no_arbiter = "reject"`: while one is connected, over whatever transport, conflicts are kept."""
    with nun.Client(served.address, "nun", "nun-pwd") as client:
        client.create_database("picky", token="t", strategy="arbiter", no_arbiter="reject")
        refused = "An conflitct happend and there is no arbiter client not connected"
        stale = "use-db picky t;set-safe k 0 stale"
        assert served.post("use-db picky t;set-safe k 1 v") == "empty;empty"
        assert served.post(stale) == f"empty;{refused}"
        assert served.post("use-db picky t;arbiter;set-safe k 0 stale").startswith(
            "empty;empty;$$conflitct unresolved $conflicts_k_"
        )
        with served.line() as first, served.line() as second:
            for line in (first, second):
                line.say("use-db picky t")
                place, ok = line.say("arbiter", 2)
                assert ok == "ok \n"
            op_id = place.split()[1]
            assert first.say(f"resolve {op_id} picky k 2 both") == ["ok \n"]
            first.say("set-safe other 1 v")
        with nun.Client(served.address, "nun", "nun-pwd") as other:
            wait_until(lambda: not other.status()["conflicts"]["arbiters"], "arbiters to be gone")
        assert served.post("use-db picky t;set-safe other 0 stale") == f"empty;{refused}"


def test_operators_are_told_the_state(served: Served) -> None:
    assert served.admin("cluster-state") == "cluster-state  node1(self):Primary ,\n"
    assert "arb : arbiter" in served.admin("debug list-dbs")
    assert served.admin("metrics-state").startswith(
        "metrics-state pending_ops: 0, op_log_file_size: "
    )
    assert served.admin("use-db shop t;snapshot true").endswith("empty")
    assert served.admin("rp 1 get a").startswith("rp belongs to NunDB's own replication")
    assert ",get," in served.admin("list-commands")


def test_whatever_is_sent_the_others_are_served(served: Served) -> None:
    source = seeded("gateway")
    words = [
        "get",
        "set-safe",
        "use-db shop t",
        "resolve",
        "election candidate x",
        "watch",
        "ls",
        "\0",
        "é",
        "a" * 300,
    ]
    statuses: set[int] = set()
    for _ in range(60):
        blob = " ".join(source.choices(words, k=8)).encode() + source.randbytes(
            source.randrange(200)
        )
        with socket.create_connection(("127.0.0.1", served.ports["tcp"]), timeout=20) as raw:
            for part in range(0, len(blob), 37):
                raw.sendall(blob[part : part + 37])
        with socket.create_connection(("127.0.0.1", served.ports["websocket"]), timeout=20) as raw:
            raw.sendall(blob)
        try:
            served.post(blob)
        except urllib.error.HTTPError as error:
            statuses.add(error.code)
            error.close()
    assert statuses <= {500}
    assert served.post("use-db shop t;set alive 1;get alive") == "empty;empty;value 1\n"
    assert not [
        line for line in served.lines if line.get("event") in ("gateway_fault", "child_died")
    ]


def test_a_gateway_that_dies_is_started_alone(tmp_path: Path) -> None:
    with Served(tmp_path / "node") as node:
        node.wait_served()
        node.admin("create-db shop t;use-db shop t;set a 1")
        before = node.pids()
        os.kill(node.gateways()[0], signal.SIGKILL)
        wait_until(lambda: len(node.gateways()) == 2, "another gateway")
        node.wait_served()
        assert node.post("use-db shop t;get a") == "empty;value 1\n"
        assert {**node.pids(), "gateway": before["gateway"]} == before
