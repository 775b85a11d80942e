"""The `nun` command against a client of its own kind: what is asked, what is printed where, and the exit status."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nun.cli.settings import resolve
from nun.cli.status import tables
from nun.errors import (
    AuthError,
    ConnectionLost,
    NunError,
    PermissionDenied,
    UnknownOutcome,
    VersionConflict,
)
from nun.position import Position

SHOP = ("-d", "shop", "-t", "t")


class TestStatusOfTheShell:
    def test_done(self, nun: Callable[..., Any]) -> None:
        assert nun(*SHOP, "set", "name", "mary").status == 0

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (PermissionDenied("not allowed", key="x", kind="w"), 1),
            (VersionConflict("changed meanwhile", key="x", current=None), 1),
            (UnknownOutcome("no answer in 10 s", "timeout"), 3),
            (ConnectionLost("no node at tcp://127.0.0.1:5701"), 3),
        ],
    )
    def test_errors(self, nun: Callable[..., Any], node: Any, error: NunError, status: int) -> None:
        node.failure = error
        run = nun(*SHOP, "set", "name", "mary")
        assert (run.status, run.out, run.err) == (status, b"", f"nun: {error}\n")
        run = nun(*SHOP, "--json", "set", "name", "mary")
        assert (run.status, run.out) == (status, b"")
        shown = json.loads(run.err)["error"]
        assert (shown["kind"], shown["message"]) == (type(error).__name__, str(error))

    @pytest.mark.parametrize(
        "arguments",
        [
            ("get", "name"),
            ("-d", "shop", "get", "name"),
            ("-d", "shop", "get"),
            ("-d", "shop", "frobnicate"),
            ("-d", "shop", "--server", "localhost:5701", "get", "x"),
            ("-d", "shop", "--server", ",", "get", "x"),
            ("-d", "shop", "--timeout", "0", "get", "x"),
            ("-d", "shop", "set", "x"),
            ("-d", "shop", "set", "x", "y", "--if-absent", "--version", "3"),
            ("-d", "shop", "watch", "--since", "yesterday"),
            ("create-db", "shop"),
        ],
    )
    def test_usage(self, nun: Callable[..., Any], arguments: tuple[str, ...]) -> None:
        run = nun(*arguments)
        assert run.status == 2
        assert run.err
        assert "Traceback" not in run.err

    def test_interrupted_and_reader_gone(self, nun: Callable[..., Any], node: Any) -> None:
        node.failure = KeyboardInterrupt()
        assert nun(*SHOP, "get", "name")[::2] == (130, "")

    def test_a_reader_that_goes_away_is_no_complaint(self, tmp_path: Path) -> None:
        script = tmp_path / "prints.py"
        script.write_text(
            "import nun.cli.keygen as keygen, nun.cli.main as main\n"
            "keygen.say = lambda text: [print(text) for _ in range(100_000)]\n"
            "main.main(['keygen'])\n"
        )
        with subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141


class TestSettings:
    def test_options_after_the_command_win_over_those_before(
        self, nun: Callable[..., Any], node: Any
    ) -> None:
        nun("-d", "before", "-t", "t", "--timeout", "3", "get", "x", "-d", "after")
        settings = node.settings[-1]
        assert (settings.database, settings.token, settings.timeout) == ("after", "t", 3.0)

    def test_options_win_over_the_environment(
        self, nun: Callable[..., Any], node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NUN_SERVER", "tcp://a:1,tcp://b:2")
        monkeypatch.setenv("NUN_DATABASE", "shop")
        monkeypatch.setenv("NUN_TOKEN", "t")
        monkeypatch.setenv("NUN_SERVER_KEY", "key")
        nun("get", "x")
        settings = node.settings[-1]
        assert settings.servers == ("tcp://a:1", "tcp://b:2")
        assert (settings.database, settings.token, settings.server_key) == ("shop", "t", "key")
        nun("get", "x", "--server", "tcp://c:3", "--server", "ipc:///d", "-t", "u")
        assert node.settings[-1].servers == ("tcp://c:3", "ipc:///d")
        assert node.settings[-1].token == "u"

    @pytest.mark.parametrize(
        ("given", "environ", "admin", "database_user"),
        [
            ({}, {}, (None, None), None),
            ({"user": "nun", "password": "p"}, {}, ("nun", "p"), None),
            ({}, {"NUN_USER": "nun", "NUN_PWD": "p"}, ("nun", "p"), None),
            ({}, {"NUN_USER": "nun", "NUN_PASSWORD": "p", "NUN_PWD": "q"}, ("nun", "p"), None),
            ({"user": "nun"}, {"NUN_PWD": "p"}, ("nun", "p"), None),
            ({"user": "mary", "token": "t"}, {}, (None, None), "mary"),
            (
                {"user": "mary", "token": "t"},
                {"NUN_USER": "nun", "NUN_PWD": "p"},
                (None, None),
                "mary",
            ),
            ({"token": "t"}, {"NUN_USER": "nun", "NUN_PWD": "p"}, ("nun", "p"), None),
            ({"token": "t"}, {"NUN_USER": "mary"}, (None, None), "mary"),
            ({"user": "nun", "password": "p", "token": "t"}, {}, ("nun", "p"), None),
            ({}, {"NUN_PWD": "p"}, (None, None), None),
        ],
    )
    def test_who_is_meant(
        self,
        given: dict[str, str],
        environ: dict[str, str],
        admin: tuple[str | None, str | None],
        database_user: str | None,
    ) -> None:
        settings = resolve(given, environ)
        assert (settings.admin_user, settings.admin_password) == admin
        assert settings.database_user == database_user


class TestData:
    def test_get_prints_the_bare_value(self, nun: Callable[..., Any], node: Any) -> None:
        nun(*SHOP, "set", "name", "mary \t ü")
        assert nun(*SHOP, "get", "name") == (0, "mary \t ü\n".encode(), "")
        node.data[b"raw"] = SimpleNamespace(key=b"raw", value=b"\xff\x00", version=1, op_id=2)
        assert nun(*SHOP, "get", "raw").out == b"\xff\x00\n"
        shown = json.loads(nun(*SHOP, "get", "raw", "--json").out)
        assert shown == {"key": "raw", "value_base64": "/wA=", "version": 1, "op_id": 2}

    def test_a_missing_key_is_told(self, nun: Callable[..., Any]) -> None:
        assert nun(*SHOP, "get", "nobody") == (1, b"", "nun: no key 'nobody'\n")
        assert nun(*SHOP, "--json", "get", "nobody") == (1, b"null\n", "")

    def test_conditions(self, nun: Callable[..., Any], node: Any) -> None:
        assert nun(*SHOP, "set", "a", "1", "--if-absent").out == b"version 1\n"
        assert nun(*SHOP, "set", "a", "1", "--if-absent").status == 1
        nun(*SHOP, "set", "a", "1", "--if-version", "3")
        nun(*SHOP, "remove", "a", "--version", "0")
        conditions = [call[-1] for call in node.calls if call[0] in ("set", "remove")]
        assert conditions == [{"base": None}, {"base": None}, {"if_version": 3}, {"version": 0}]

    def test_a_value_from_a_file(self, nun: Callable[..., Any], node: Any, tmp_path: Path) -> None:
        (tmp_path / "value").write_bytes(b"\x00line\n")
        assert nun(*SHOP, "set", "a", "--file", str(tmp_path / "value")).status == 0
        assert node.data[b"a"].value == b"\x00line\n"

    def test_arguments_that_are_no_text_arrive_as_they_are(
        self, nun: Callable[..., Any], node: Any
    ) -> None:
        nun(*SHOP, "set", os.fsdecode(b"k\xff"), os.fsdecode(b"\xfe"))
        assert node.data[b"k\xff"].value == b"\xfe"

    def test_increment(self, nun: Callable[..., Any]) -> None:
        assert nun(*SHOP, "increment", "n").out == b"1\n"
        assert nun(*SHOP, "increment", "n", "-5").out == b"-4\n"
        assert json.loads(nun(*SHOP, "increment", "n", "--json").out)["value"] == -3
        nun(*SHOP, "set", "n", "many")
        assert nun(*SHOP, "increment", "n").status == 1

    def test_keys_are_paged_to_the_end(
        self, nun: Callable[..., Any], node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nun.cli.data.KEYS_PAGE_MAX", 2)
        for key in "edcba":
            nun(*SHOP, "set", key, "")
        assert nun(*SHOP, "keys").out == b"a\nb\nc\nd\ne\n"
        assert nun(*SHOP, "keys", "--limit", "3").out == b"a\nb\nc\n"
        assert nun(*SHOP, "keys", "--after", "c").out == b"d\ne\n"
        assert nun(*SHOP, "keys", "b", "--json").out == b'"b"\n'
        assert max(call[2] for call in node.calls if call[0] == "keys") == 2

    def test_watch_prints_a_line_for_each_event(self, nun: Callable[..., Any], node: Any) -> None:
        at = Position(1, 1, 3, 42)
        event = node_event(at)
        node.events = [
            event("set", b"a\tb", b"x\ny\\", 3),
            event("removed", b"a", None, 4),
            event("current", None, None, 0),
        ]
        run = nun(*SHOP, "watch", "a*", "--since", "1.1.3:41", "--count", "2")
        assert run.out == b"1.1.3:42\tset\ta\\tb\t3\tx\\ny\\\\\n1.1.3:42\tremoved\ta\t4\n"
        assert ("watch", b"a*", Position(1, 1, 3, 41)) in node.calls
        lines = nun(*SHOP, "watch", "--json").out.splitlines()
        assert json.loads(lines[0])["position"] == "1.1.3:42"
        assert json.loads(lines[0])["value"] == "x\ny\\"
        assert json.loads(lines[2])["kind"] == "current"


def node_event(at: Position) -> Callable[..., Any]:
    def event(kind: str, key: bytes | None, value: bytes | None, version: int) -> Any:
        return SimpleNamespace(
            kind=kind, key=key, value=value, version=version, op_id=9, position=at
        )

    return event


class TestAdministration:
    @pytest.mark.parametrize(
        ("arguments", "call"),
        [
            (("create-db", "shop", "t"), ("create_database", "shop", ("token", "t"))),
            (("create-db", "shop", "-t", "t"), ("create_database", "shop", ("token", "t"))),
            (("drop-db", "shop", "--yes"), ("drop_database", "shop")),
            (("-d", "shop", "create-user", "mary", "m"), ("create_user", "shop", "mary", "m")),
            (("-d", "shop", "drop-user", "mary"), ("drop_user", "shop", "mary")),
            (("-d", "shop", "set-permissions", "mary", "r *"), ("set_permissions", "shop", "mary", "r *")),
            (("snapshot",), ("snapshot", None, ("reclaim", False))),
            (("snapshot", "a", "b", "--reclaim"), ("snapshot", ["a", "b"], ("reclaim", True))),
            (("databases",), ("databases",)),
            (("status",), ("status",)),
        ],
    )  # fmt: skip
    def test_what_is_asked(
        self, nun: Callable[..., Any], node: Any, arguments: tuple[str, ...], call: tuple[Any, ...]
    ) -> None:
        run = nun(*arguments)
        assert (run.status, run.err) == (0, "")
        assert run.out
        assert call in node.calls
        json.loads(nun("--json", *arguments).out)

    def test_a_drop_asks_first(
        self, nun: Callable[..., Any], node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
        assert nun("drop-db", "shop").status == 130
        assert ("drop_database", "shop") not in node.calls
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
        assert nun("drop-db", "shop").status == 0

    def test_status_has_a_table_for_each_part(self) -> None:
        found = {
            "version": "0.1.0",
            "uptime_s": 3700,
            "databases": [{"name": "shop", "keys": 1234567, "bytes": 2048}],
            "processes": {"network": {"pid": 4711, "cpu_share": 0.015, "rss_bytes": 1 << 20}},
            "storage": {
                "fsync": "always",
                "oplog": {"bytes": 1024, "segments": 1, "last": None, "spare": False},
                "last_snapshot": {"unix_ms": 0, "moved": ["a", "b"]},
            },
            "errors": {},
            "latency": {"get": {"p50_us": 12.0, "p99_us": 1500.0}},
            "listen": ["tcp://a", "tcp://b"],
        }
        shown = {title: (header, rows) for title, header, rows in tables(found)}
        assert shown[None][1] == [["version", "0.1.0"], ["uptime", "1 h 1 min"]]
        assert shown["databases"] == (["name", "keys", "bytes"], [["shop", "1,234,567", "2.0 KiB"]])
        assert shown["processes"][1] == [["network", "4711", "1.5 %", "1.0 MiB"]]
        assert shown["storage"][1] == [["fsync", "always"]]
        assert shown["storage: oplog"][1][2:] == [["last", "-"], ["spare", "no"]]
        assert shown["storage: last snapshot"][1] == [["at", "1970-01-01 00:00:00+00:00"]]
        assert shown["storage: last snapshot: moved"][1] == [["a"], ["b"]]
        assert shown["latency"] == (["", "p50", "p99"], [["get", "12 us", "1.5 ms"]])
        assert shown["listen"][1] == [["tcp://a"], ["tcp://b"]]
        assert "errors" not in shown


class TestKeygen:
    def test_it_prints_lines_for_the_configuration(self, nun: Callable[..., Any]) -> None:
        found = tomllib.loads(nun("keygen").out.decode())["security"]
        assert {len(found["curve_public_key"]), len(found["curve_secret_key"])} == {40}
        assert len(json.loads(nun("keygen", "--json").out)["curve_secret_key"]) == 40

    def test_a_file_is_for_its_owner_alone_and_is_not_replaced(
        self, nun: Callable[..., Any], tmp_path: Path
    ) -> None:
        path = tmp_path / "keys.toml"
        run = nun("keygen", "--write", str(path))
        assert run.status == 0
        first = path.read_text()
        keys = tomllib.loads(first)["security"]
        assert keys["curve_public_key"] in run.out.decode()
        assert keys["curve_secret_key"] not in run.out.decode()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        refused = nun("keygen", "--write", str(path))
        assert refused.status == 1
        assert "--force" in refused.err
        assert path.read_text() == first
        assert nun("keygen", "--write", str(path), "--force").status == 0
        assert path.read_text() != first
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert nun("keygen", "--write", str(tmp_path / "no" / "keys")).status == 1
        assert os.listdir(tmp_path) == ["keys.toml"]


class TestRepl:
    def script(
        self, nun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, *lines: str
    ) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        run = nun("repl")
        return run.status, run.out.decode().splitlines(), run.err.splitlines()

    def test_the_words_of_nundb(
        self, nun: Callable[..., Any], node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status, out, err = self.script(
            nun, monkeypatch,
            "auth nun nun-pwd", "create-db shop t", "use-db shop t", "",
            "set name mary ann", "get name", "get-safe name", "get nobody", "set-safe name 1 jose",
            "increment visits", "increment visits 4", "keys", "ls n*", "remove name",
            "create-user mary m", "set-permissions mary rw user:*|r *", "snapshot true a|b", "exit", "get x",
        )  # fmt: skip
        assert err == []
        assert status == 0
        assert out == [
            "ok", "ok", "ok", "ok version 1", "mary ann", "1 mary ann", "(none)", "ok version 2",
            "1", "5", "name", "visits", "name", "ok", "ok", "ok", "ok",
        ]  # fmt: skip
        assert ("database", "shop", None, "t") in node.calls
        assert ("set_permissions", "shop", "mary", "rw user:*|r *") in node.calls
        assert ("snapshot", ["a", "b"], ("reclaim", True)) in node.calls
        assert node.calls[-1] == ("close",)

    def test_errors_are_a_line_and_the_next_command_runs(
        self, nun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        status, out, err = self.script(
            nun, monkeypatch,
            "get name", "frobnicate", "set name", "use-db missing t", "use-db shop mary m",
            "use-db shop", "increment x many", "snapshot maybe", "# a comment", "set name mary", "increment name",
        )  # fmt: skip
        assert status == 1
        assert out == ["ok", "ok version 1"]
        assert err == [
            "error: no database is selected: use-db NAME TOKEN",
            "error: unknown command 'frobnicate'; `help` lists them",
            "error: expected: set KEY VALUE",
            "error: there is no database 'missing'",
            "error: expected: use-db NAME TOKEN | NAME USER TOKEN",
            "error: N: expected an integer, found 'many'",
            "error: expected true or false (to reclaim space), found 'maybe'",
            "error: b'name' holds no number",
        ]

    def test_the_gravest_status_counts(
        self, nun: Callable[..., Any], node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node.failure = ConnectionLost("no node")
        assert self.script(nun, monkeypatch, "use-db shop t", "frobnicate")[0] == 3
        node.failure = AuthError("wrong token")
        assert self.script(nun, monkeypatch, "use-db shop t")[0] == 1

    def test_help_names_every_command(
        self, nun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, out, _ = self.script(nun, monkeypatch, "help")
        assert len(out) == 20
        assert all("  " in line for line in out)

    def test_watch_for_a_number_of_events(
        self, nun: Callable[..., Any], node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node.events = [node_event(Position(1, 1, 1, 1))("set", b"a", b"1", 1)] * 3
        _, out, _ = self.script(nun, monkeypatch, "use-db shop t", "watch a 2", "get b")
        assert out == ["ok", *["1.1.1:1\tset\ta\t1\t1"] * 2, "(none)"]
