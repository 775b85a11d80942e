"""NunDB's three transports against a real node: what clients match, to the byte, and what must not hurt it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import nun
from tests.support.cluster import Cluster
from tests.support.node import Node, free_port, seeded, wait_until

pytestmark = pytest.mark.process

NPM_PACKAGE = "nun-db@1.8.3"
SCRIPT = Path(__file__).parent / "npm" / "client.js"


def post(port: int, body: str | bytes) -> str:
    """What the gateway says to commands over HTTP."""
    data = body.encode() if isinstance(body, str) else body
    request = urllib.request.Request(f"http://127.0.0.1:{port}/any/path", data)
    with urllib.request.urlopen(request, timeout=20) as answer:
        text: str = answer.read().decode()
        return text


class Served(Node):
    """A node with a gateway."""

    def __init__(self, directory: Path) -> None:
        self.ports = {name: free_port() for name in ("tcp", "http", "websocket")}
        gateway = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        super().__init__(directory, {"gateway": gateway})

    def wait_served(self) -> None:
        wait_until(self._answers, "the gateway")

    def _answers(self) -> bool:
        try:
            return self.post("auth nun nun-pwd") == "valid auth\n"
        except OSError:
            return False

    def post(self, body: str | bytes) -> str:
        return post(self.ports["http"], body)

    def admin(self, commands: str) -> str:
        return self.post(f"auth nun nun-pwd;{commands}").removeprefix("valid auth\n;")

    def gateways(self) -> list[int]:
        """The pids of the gateways so far."""
        return [line["pid"] for line in list(self.lines) if line.get("event") == "gateway_ready"]

    def line(self) -> Line:
        return Line(self.ports["tcp"])


class Line:
    """A TCP connection that has been greeted."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20, (source, 0))
        self.reader = self.socket.makefile("rb")
        assert self.reader.readline() == b"ok \n"

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.socket.close()

    def say(self, text: str, lines: int = 1) -> list[str]:
        """Sends a command, and reads so many lines."""
        self.socket.sendall(text.encode() + b"\n")
        return [self.reader.readline().decode() for _ in range(lines)]


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


# The published client


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the client is installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: the published client is not tried")
    folder = tmp_path_factory.mktemp("npm")
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, NPM_PACKAGE],
        check=True, capture_output=True, timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    shutil.copy(SCRIPT, folder / "client.js")
    return folder


PREPARE = (
    "create-db sample sample-pwd;use-db sample sample-pwd;create-user client client-pwd;"
    "set-permissions client r *|rwx client-*;create-db merged arb-pwd arbiter"
)


def test_the_published_client_works(served: Served, npm: Path) -> None:
    served.admin(PREPARE)
    drive(npm, served.ports["websocket"])


def test_the_published_client_works_on_three_nodes(tmp_path: Path, npm: Path) -> None:
    """Writers and the arbiter on different nodes; most on replicas."""
    ports = [(free_port(), free_port()) for _ in range(3)]
    each = {
        number: {"gateway": {"http": f"127.0.0.1:{http}", "websocket": f"127.0.0.1:{websocket}"}}
        for number, (http, websocket) in enumerate(ports, 1)
    }
    with Cluster(tmp_path, each=each) as cluster:
        cluster.wait_role(1, "replica")
        wait_until(lambda: post(ports[1][0], "auth nun nun-pwd") == "valid auth\n", "a gateway")
        assert "create-db success" in post(ports[1][0], "auth nun nun-pwd;" + PREPARE)
        told = post(ports[1][0], "auth nun nun-pwd;cluster-state").partition(";")[2]
        assert "node1(Connected):Primary, node2(self):Secoundary , node3" in told
        cluster.wait_same()
        drive(npm, *(websocket for _, websocket in (ports[1], ports[0], ports[2])))
        told = post(ports[0][0], "use-db merged arb-pwd;set-safe name 1 v1;get-safe name")
        assert told == "empty;empty;value-version 2 v1\n"
        cluster.wait_same()
        told = post(ports[2][0], "use-db merged arb-pwd;set-safe name 0 v2;set-safe name 0 v3")
        first, second = (one.rpartition(" ")[2] for one in told.split(";")[1:])
        cluster.wait_decided()
        cluster.wait_same()
        for http, _ in ports:
            told = post(http, f"use-db merged arb-pwd;get {first};get {second}")
            assert "merged 2 name v1 v2\n" in told
            assert f"name {first} v3\n" in told


def drive(npm: Path, *ports: int) -> None:
    """Runs the script with the published client, and looks at what it has found."""
    urls = [f"ws://127.0.0.1:{port}" for port in ports]
    run = subprocess.run(
        ["node", "client.js", *urls],
        cwd=npm, capture_output=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()[-2_000:]
    found = json.loads(run.stdout)
    values = found["values"]
    assert values["back"] == values["kinds"]
    assert [value for value, _ in values["seen"]] == values["kinds"]
    assert (values["n"], values["gone"]) == (4, None)
    assert values["keys"] == ["$connections", "k", "n"]
    assert found["refusals"] == {
        "denied": "permission denied",
        "stale": "permission denied",
        "wrong": "Invalid token",
        "value": "b",
    }
    assert found["arbiter"]["settled"] == 60
    assert found["arbiter"]["missing"] == []
