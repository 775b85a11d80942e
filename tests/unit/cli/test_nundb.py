"""`nun-db exec`, `nun-db create-db` and `nun exec`, against a server that replies what it is told to."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nun.cli.nundb import debug_text, environment_of, starting_line
from nun.cli.over_http import elements_of

ROOT = Path(__file__).resolve().parents[3]
LINE = re.compile(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z nun_db\] nundb starting!")


class Server(HTTPServer):
    """Keeps the bodies that were posted; `reply` is what it answers."""

    reply = b""
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.server.bodies.append(self.rfile.read(size).decode())
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.reply)))
        self.end_headers()
        self.wfile.write(self.server.reply)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(module: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUN_")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def nun_db(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return run("nun.cli.nundb", *arguments, **environ)


class TestNunDb:
    def test_exec_prints_the_reply_as_rust_shows_a_text(self, server: Server) -> None:
        server.reply = b'valid auth\n;empty;value say "hi\\there"\n'
        done = nun_db("-u", "mary", "-p", "pw", "--host", server.url, "exec", "use-db s t; get a")
        first, second = done.stdout.splitlines()
        assert LINE.fullmatch(first)
        assert second == r'Response "valid auth\n;empty;value say \"hi\\there\"\n"'
        assert server.bodies == ["auth mary pw; use-db s t; get a"]
        assert (done.returncode, done.stderr) == (0, "")

    def test_create_db(self, server: Server) -> None:
        server.reply = b"invalid auth\n;Not auth"
        done = nun_db(
            *("-u", "mary", "-p", "pw", "--host", server.url),
            *("create-db", "-d", "shop", "--db-token", "secret"),
        )
        assert server.bodies == ["auth mary pw; create-db shop secret;"]
        assert done.stdout.splitlines()[1] == r'Response "invalid auth\n;Not auth"'
        assert done.returncode == 0, "what the node says is no failure of the command"

    def test_options_win_over_the_environment(self, server: Server) -> None:
        nun_db("-u", "mary", "--host", server.url, "exec", "a", NUN_USER="joe", NUN_PWD="env")
        assert server.bodies == ["auth mary env; a"]

    def test_no_host_is_asked_through_a_proxy(self, server: Server) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            done = nun_db(
                "-uu", "-pp", "--host", server.url, "exec", "a", http_proxy=proxy, HTTP_PROXY=proxy
            )
        assert done.returncode == 0

    def test_a_status_other_than_200_is_a_reply(self, server: Server) -> None:
        server.status = 500
        done = nun_db("-uu", "-pp", "--host", server.url, "exec", "a")
        assert done.stdout.splitlines()[1] == 'Response ""'
        assert done.returncode == 0

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (("-uu", "exec", "a"), "nun-db: -p PASSWORD or NUN_PWD must stand before the command"),
            (("-uu", "-pp", "exec"), "Missing argument 'COMMANDS'"),
            (("--pwd", "x", "exec", "a"), "No such option '--pwd'"),
            (("-uu", "-pp", "--host", "nowhere", "exec", "a"), "'nowhere' is no address"),
            (("-uu", "-pp", "create-db", "-d", "shop"), "Missing option '-t'"),
        ],
    )
    def test_what_nundb_panics_at_is_told(self, arguments: tuple[str, ...], told: str) -> None:
        done = nun_db(*arguments)
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == 101

    def test_nobody_there(self) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            done = nun_db("-uu", "-pp", "-h", url, "exec", "a")
        assert done.stderr == f"nun-db: cannot reach {url}: Connection refused\n"
        assert done.returncode == 101

    @pytest.mark.parametrize("arguments", [(), ("-u", "mary")])
    def test_no_command(self, arguments: tuple[str, ...]) -> None:
        done = nun_db(*arguments)
        assert LINE.fullmatch(done.stdout.rstrip("\n"))
        assert done.returncode == 0

    @pytest.mark.parametrize(
        ("level", "lines"), [("Trace", 1), ("Info", 1), ("Warn", 0), ("Error", 0), ("Off", 0)]
    )
    def test_the_first_line_is_of_level_info(self, level: str, lines: int) -> None:
        assert len(nun_db(NUN_LOG_LEVEL=level).stdout.splitlines()) == lines

    def test_version(self) -> None:
        assert nun_db("--version").stdout.startswith("Nun-db 0.1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", '""'),
        ("value 1\n", r'"value 1\n"'),
        ("\t\r\0'\"\\", r'''"\t\r\0'\"\\"'''),
        ("é 日本 🦀", '"é 日本 🦀"'),
        ("\x1b\x7f\u200b\xa0", r'"\u{1b}\u{7f}\u{200b}\u{a0}"'),
        ("e\u0301", r'"e\u{301}"'),
    ],
)
def test_debug_text(text: str, shown: str) -> None:
    assert debug_text(text) == shown


def test_the_first_line_has_nanoseconds() -> None:
    line = starting_line(1_795_416_130_071_090_316)
    assert line == "[2026-11-23T06:42:10.071090316Z nun_db] nundb starting!"


def test_what_start_is_given_stands_in_the_environment() -> None:
    given = {"user": None, "password": "pw", "http_address": "127.0.0.1:1", "ws_address": None}
    environ = {"NUN_USER": "mary", "NUN_PWD": "old", "NUN_WS_ADDR": "127.0.0.1:2"}
    assert environment_of(environ, given) == {
        "NUN_USER": "mary",
        "NUN_PWD": "pw",
        "NUN_HTTP_ADDR": "127.0.0.1:1",
        "NUN_WS_ADDR": "127.0.0.1:2",
    }


class TestNunExec:
    def nun(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return run("nun.cli.main", "exec", *arguments, **environ)

    def test_a_line_for_each_command(self, server: Server) -> None:
        server.reply = b"empty;empty;value 1\n;keys ,a,b\n"
        done = self.nun("use-db shop t; set a 1; ;get a;keys;", "--host", server.url)
        assert done.stdout == "empty\nempty\nvalue 1\nkeys ,a,b\n"
        assert server.bodies == ["use-db shop t; set a 1; get a; keys"]
        assert done.returncode == 0

    def test_as_administrator(self, server: Server) -> None:
        server.reply = b"valid auth\n;process-info \nprocess_id: 7\n"
        done = self.nun("debug process-info", NUN_HOST=server.url, NUN_USER="nun", NUN_PWD="pw")
        assert server.bodies == ["auth nun pw; debug process-info"]
        assert done.stdout == "process-info \\nprocess_id: 7\n", "one line, whatever stands in it"

    def test_a_wrong_password_is_refused(self, server: Server) -> None:
        server.reply = b"invalid auth\n;Not auth"
        done = self.nun("cluster-state", "--user", "nun", "--password", "x", "--host", server.url)
        assert done.stdout == ""
        assert "does not know the administrator 'nun'" in done.stderr
        assert done.returncode == 1

    def test_json(self, server: Server) -> None:
        server.reply = b"empty;value 1\n"
        done = self.nun("use-db shop t; get a", "--host", server.url, "--json")
        assert json.loads(done.stdout) == [
            {"command": "use-db shop t", "reply": "empty"},
            {"command": "get a", "reply": "value 1"},
        ]
        server.reply = b"empty;value 1;2\n"
        done = self.nun("use-db shop t; get a", "--host", server.url, "--json")
        assert [one["command"] for one in json.loads(done.stdout)] == [None, None, None]

    def test_no_reply(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            done = self.nun("get a", "--host", url, "--timeout", "0.2")
        assert f"{url}: no reply in 0.2 s" in done.stderr
        assert done.returncode == 3

    def test_no_address(self) -> None:
        done = self.nun("get a", "--host", "tcp://127.0.0.1:1")
        assert "expected one such as http://127.0.0.1:3013" in done.stderr
        assert done.returncode == 2


def test_an_empty_reply_has_no_elements() -> None:
    assert elements_of("") == []
    assert elements_of("empty;;value 1\n") == ["empty", "", "value 1"]
