"""What NunDB's clients may do to the gateway and to each other: overload, guess, pipeline, stop reading."""

from __future__ import annotations

import contextlib
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nun.limits import GATEWAY_MESSAGE_BYTES_MAX, GATEWAY_UNREAD_BYTES_MAX, MIB
from tests.support.fuzzing_text import frame
from tests.support.gateway import Line, Served, upgraded
from tests.support.node import wait_until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("gateway")) as node:
        node.wait_served()
        node.admin(
            "create-db shop t;use-db shop t;create-user mine p;set-permissions mine rwix my*;"
            "set my-1 b"
        )
        yield node


def test_a_denied_write_does_not_change_the_order_of_the_others(served: Served) -> None:
    commands = ";".join(
        f"set my-{index} a;set other {index};set my-{index} b" for index in range(40)
    )
    told = served.post(f"use-db shop mine p;{commands}").split(";")[1:]
    assert told == ["empty", "permission denied\n", "empty"] * 40
    read = served.post("use-db shop t;" + ";".join(f"get my-{index}" for index in range(40)))
    assert read == "empty;" + ";".join(["value b\n"] * 40)


def test_errors_without_end_do_not_stop_a_connection(served: Served) -> None:
    """Commands that are refused at once, far more than a connection may have waiting."""
    with served.line() as line:
        for _ in range(3):
            line.socket.sendall(b"get a\n" * 20_000)
            for _ in range(20_000 * 3):
                assert line.reader.readline()
        assert line.say("use-db shop t") == ["ok \n"]


def test_who_does_not_read_is_not_served_without_end(served: Served) -> None:
    served.post("use-db shop t;set large " + "v" * MIB)
    gateway = psutil.Process(served.gateways()[-1])
    with contextlib.ExitStack() as stack:
        before = gateway.memory_info().rss
        for _ in range(4):
            line = stack.enter_context(served.line())
            line.say("use-db shop t")
            line.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                line.socket.sendall(b"get large\n" * 4_000)
            line.socket.settimeout(20)
            assert line.socket.recv(100)  # it has begun to answer
        for _ in range(20):  # it has every occasion to answer them all
            assert served.post("use-db shop t;get my-1").startswith("empty;")
        assert gateway.memory_info().rss - before < 4 * 128 * MIB


def test_a_reply_over_http_has_a_bound(served: Served) -> None:
    served.post("use-db shop t;set large " + "v" * MIB)
    told = served.post("use-db shop t;" + "get large;" * 200 + "set after 1;get after").split(";")
    assert len(told) == 203
    assert told[1] == "value " + "v" * MIB + "\n"
    assert told[200].startswith("the reply has more than ")
    assert told[201] == "empty"
    assert served.post("use-db shop t;get after") == "empty;value 1\n"


def test_a_token_that_was_changed_is_good_no_more(served: Served) -> None:
    served.admin("create-db locks old;use-db locks old;set k 1")
    with served.line() as line:
        assert line.say("use-db locks old") == ["ok \n"]
        assert line.say("get k", 2) == ["value 1\n", "ok \n"]
        served.admin("use-db locks old;set $$token new")
        assert served.post("use-db locks new;get k") == "empty;value 1\n"
        assert line.say("get k") == ["error Invalid token \n"]
        assert line.say("keys") == ["error Invalid token \n"]
        assert line.say("use-db locks new") == ["ok \n"]
        assert line.say("get k", 2) == ["value 1\n", "ok \n"]
    told = served.post("use-db locks old;get k")
    assert told == "Invalid token;error no-db-selected\n"


def test_who_watches_with_a_token_that_was_changed_is_cut_off(served: Served) -> None:
    """It could not be told otherwise: it comes again, and learns that its token is good no more."""
    served.admin("create-db gates old")
    with served.line() as watcher, served.line() as arbiter:
        watcher.say("use-db gates old")
        assert watcher.say("watch k") == ["ok \n"]
        arbiter.say("use-db gates old")
        assert arbiter.say("arbiter") == ["ok \n"]
        served.admin("use-db gates old;set $$token new;set k 1")
        for line in (watcher, arbiter):
            line.socket.settimeout(20)
            while line.reader.readline():
                pass


def test_a_guesser_closes_the_door_to_itself_alone(served: Served) -> None:
    served.admin("create-db vault right")
    with Line(served.ports["tcp"], "127.0.0.9") as guesser:
        for index in range(30):
            assert guesser.say(f"use-db vault wrong{index}") == ["error Invalid token \n"]
        assert guesser.say("use-db vault right") == ["error Invalid token \n"]  # the door is closed
    assert served.post("use-db vault right;set k 1") == "empty;empty"
    with Line(served.ports["tcp"], "127.0.0.9") as admin:
        for index in range(30):
            assert admin.say(f"auth nun wrong{index}", 2) == ["invalid auth\n", "ok \n"]
    assert served.post("auth nun nun-pwd") == "valid auth\n"


def test_what_was_sent_before_a_client_ends_its_side_is_done(served: Served) -> None:
    """As of `printf ... | nc`: it sends, says that this was all, and reads to the end."""
    with served.line() as line:
        line.socket.sendall(
            b"use-db shop t\nset piped 1\n" + b"increment piped\n" * 500 + b"get piped\n"
        )
        line.socket.shutdown(socket.SHUT_WR)
        told = line.reader.read()
    assert told == b"ok \n" * 502 + b"value 501\nok \n"


def test_a_line_that_is_no_text_is_refused_in_its_turn(served: Served) -> None:
    with served.line() as line:
        line.socket.sendall(b"use-db shop t\nget my-1\n\xff\xfe\nget my-1\n")
        told = [line.reader.readline() for _ in range(6)]
    refusal = b"error a command is text in UTF-8 \n"
    assert told == [b"ok \n", b"value b\n", b"ok \n", refusal, b"value b\n", b"ok \n"]


def to_the_end(raw: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    told = b""
    with contextlib.suppress(ConnectionError):
        while part := raw.recv(65_536):
            told += part
    return told


def test_a_websocket_is_closed_as_the_protocol_says(served: Served) -> None:
    with upgraded(served.ports["websocket"]) as raw:
        raw.sendall(b"\x88\x80\0\0\0\0")  # a close without a code
        closing = to_the_end(raw)
    assert closing[:1] == b"\x88"
    code = int.from_bytes(closing[2:4], "big")
    assert closing[1] == 0 or code == 1_000


def test_huge_frames_and_lines_are_refused_before_they_are_there(served: Served) -> None:
    gateway = psutil.Process(served.gateways()[-1])
    before = gateway.memory_info().rss
    with upgraded(served.ports["websocket"]) as raw:
        raw.sendall(b"\x81\xff" + (2**40).to_bytes(8, "big") + bytes(4))
        assert to_the_end(raw)[2:4] == (1_009).to_bytes(2, "big")
    with upgraded(served.ports["websocket"]) as raw:  # in parts, each of which is allowed
        with contextlib.suppress(ConnectionError):
            raw.sendall(frame(1, b"x" * MIB, False))
            for _ in range(GATEWAY_MESSAGE_BYTES_MAX // MIB + 1):
                raw.sendall(frame(0, b"x" * MIB, False))
        assert to_the_end(raw)[2:4] in (b"", (1_009).to_bytes(2, "big"))
    with served.line() as line:
        with contextlib.suppress(ConnectionError):
            for _ in range(GATEWAY_MESSAGE_BYTES_MAX // MIB + 2):
                line.socket.sendall(b"x" * MIB)
        told = to_the_end(line.socket)
        assert told in (b"", b"error a command has at most %d bytes \n" % GATEWAY_MESSAGE_BYTES_MAX)
    assert gateway.memory_info().rss - before < 3 * GATEWAY_MESSAGE_BYTES_MAX
    assert served.post("use-db shop t;get my-1").startswith("empty;value ")


def test_frames_that_are_binary_are_commands_if_they_are_text(served: Served) -> None:
    """And all that was said before a good-bye is answered before the good-bye is."""
    with upgraded(served.ports["websocket"]) as raw:
        raw.sendall(
            frame(2, b"use-db shop t;get my-none") + frame(2, b"\xff\0") + frame(1, b"\xc3")
            + frame(9, b"ping") + frame(1, b"") + frame(8, b"\x03\xe8")
        )  # fmt: skip
        told = to_the_end(raw)
    refusal = b"error a command is text in UTF-8 \n"
    refused = bytes([0x81, len(refusal)]) + refusal
    ok, pong = b"\x81\x04ok \n", b"\x8a\x04ping"
    assert told.count(pong) == 1
    expected = ok + b"\x81\x0evalue <Empty>\n" + ok + 2 * refused
    assert told.replace(pong, b"").startswith(expected)


@pytest.mark.parametrize("transport", ["tcp", "websocket"])
def test_who_watches_and_does_not_read_is_cut_off(served: Served, transport: str) -> None:
    """Others hear all the same; the log has one line for it."""
    gateway = psutil.Process(served.gateways()[-1])
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(served.line())
        other.say("use-db shop t")
        other.say(f"watch slow-{transport}")
        if transport == "tcp":
            slow = stack.enter_context(served.line())
            slow.say("use-db shop t")
            assert slow.say("watch slow-tcp") == ["ok \n"]
            raw = slow.socket
        else:
            raw = stack.enter_context(upgraded(served.ports["websocket"]))
            raw.sendall(frame(1, b"use-db shop t;watch slow-websocket"))
            while not raw.recv(100).endswith(b"ok \n"):
                pass
        since, before = served.mark(), gateway.memory_info().rss
        value = "v" * MIB
        for _ in range(2 * GATEWAY_UNREAD_BYTES_MAX // MIB):  # two notices a write
            assert served.post(f"use-db shop t;set slow-{transport} {value}") == "empty;empty"
            assert len(other.reader.readline()) > MIB
            assert len(other.reader.readline()) > MIB
        served.wait_log("slow_reader_dropped", since, transport=transport)
        assert gateway.memory_info().rss - before < 3 * GATEWAY_UNREAD_BYTES_MAX
        to_the_end(raw)
    said = [line.get("event") for line in list(served.lines)[since:]]
    assert said.count("slow_reader_dropped") == 1


def test_connections_that_say_nothing_are_bounded(tmp_path: Path) -> None:
    """There are so many, each transport; more are refused, the log says so once; over HTTP silence has an end."""
    settings = {"gateway": {"connections_max": 8, "keepalive_s": 6}}
    with Served(tmp_path / "node", settings) as node, contextlib.ExitStack() as stack:
        node.wait_served()
        lines = [stack.enter_context(node.line()) for _ in range(8)]
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", node.ports["tcp"]), timeout=20) as raw:
                assert to_the_end(raw) == b"error too many connections \n"
        with upgraded(node.ports["websocket"]) as raw:
            assert to_the_end(raw)[2:4] == (1_013).to_bytes(2, "big")
        with pytest.raises(urllib.error.HTTPError) as caught:
            node.post("get a")
        assert caught.value.code == 503
        caught.value.close()
        lines.pop().__exit__()
        wait_until(lambda: _serves(node), "there to be room again")
        half = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", node.ports["http"]), timeout=20)
            )
            for _ in range(30)
        ]
        for index, raw in enumerate(half):
            with contextlib.suppress(ConnectionError):
                raw.sendall(b"POST / HTTP/1.1\r\nHost:" if index % 2 else b"")
        assert to_the_end(half[-1]) == b"", "it is beyond the bound"
        half[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            half[0].recv(1)
        half[0].settimeout(20)
        for raw in half:  # the others too when they have had their time
            assert to_the_end(raw) == b""
        with socket.create_connection(("127.0.0.1", node.ports["http"]), timeout=20) as raw:
            raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nget a")
            told = to_the_end(raw)  # it says nothing after that
        assert told.endswith(b"\r\n\r\nerror no-db-selected\n")
        assert _serves(node)
        assert not [line for line in node.lines if line.get("event") == "protocol_broken"]
        said = [line.get("event") for line in node.lines]
        assert said.count("gateway_full") == 1


def _serves(node: Served) -> bool:
    try:
        return node.post("get a") == "error no-db-selected\n"
    except OSError:
        return False


def test_connections_that_end_leave_nothing(served: Served) -> None:
    before = int(served.post("use-db shop t;get $connections").split()[-1])
    lines = [served.line() for _ in range(50)]
    for line in lines:
        line.say("use-db shop t")
        line.socket.sendall(b"watch a\narbiter\n")
    for line in lines:
        line.__exit__()

    def left() -> bool:
        return int(served.post("use-db shop t;get $connections").split()[-1]) == before

    wait_until(left, "all connections to be counted off")
