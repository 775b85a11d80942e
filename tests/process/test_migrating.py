"""From NunDB and back: a node on a copy of its directory, an import into what runs, and an export that it can read."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nun
from nun.cli.main import main
from tests.process.test_gateway import Served
from tests.support import nundb_files as files
from tests.support.cluster import Cluster
from tests.support.node import ADMIN, Node, wait_until

pytestmark = pytest.mark.process

CLEAR = (b"shop-token", b"ann-token")


def clear_in(directory: Path) -> list[str]:
    """The files below a directory in which a token of the sample stands in the clear, but for NunDB's `$admin`."""
    found = []
    for path in sorted(directory.rglob("*")):
        try:
            data = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue  # a segment of the log was just given its number
        if any(token in data for token in CLEAR):
            found.append(path.name)
    return found


@pytest.fixture
def moved(tmp_path: Path) -> Iterator[Served]:
    """A node with a gateway, started on a copy of a NunDB directory."""
    node = Served(tmp_path / "moved")
    files.write(node.data_dir, files.shop())
    with node:
        node.wait_served()
        yield node


def test_a_node_starts_on_a_copy_with_all_that_was_in_it(moved: Served) -> None:
    [told] = [line for line in moved.lines if line.get("event") == "taken_in_from_nundb"]
    assert (told["databases"], told["tokens_hashed"], told["conflicts"]) == (3, 4, 3)
    assert (told["not_understood"], told["records"]) == (1, ["$conflicts_name_17"])
    with nun.Client(moved.address, **ADMIN) as client:
        strategies = {info.name: info.options["strategy"] for info in client.databases()}
        assert strategies == {"latest": "newer", "plain": "none", "shop": "arbiter"}
        shop = client.database("shop", token="shop-token")
        assert [(one.value, one.version) for one in shop.get_many(["name", "city", "odd"])] == [
            ("mary", 3),
            ("são joão\n", 0),
            ("kept", 1),
        ]
        assert (shop.get("gone"), shop.get("parked").version) == (None, 1)
        assert shop.get("$conflicts_name_17").value.startswith("resolve 17 ")
        assert shop.get("$conflicts_said_1763000000000000001") is None
        assert client.database("plain", token="p").get("name").value == "jose"
    with nun.Client(moved.address) as client:
        ann = client.database("shop", user="ann", token="ann-token")
        ann.set("user-1", "x")
        assert ann.get("k").value == "v1"
        with pytest.raises(nun.PermissionDenied):
            ann.get("name")


def test_open_conflicts_are_resolved_through_the_gateway_and_by_arbiters_of_ours(
    moved: Served,
) -> None:
    with nun.Client(moved.address, **ADMIN) as client:
        shop = client.database("shop", token="shop-token")
        queue = [one for one in shop.conflicts() if one.key == "k"]
        assert [(one.current.value, one.proposed.value) for one in queue] == [
            ("v1", "v2"),
            ("v1", "v3"),
        ]
        assert (queue[0].at, queue[0].base_known) == (1764000000000, False)
        with pytest.raises(nun.ConflictPending):
            shop.set("k", "v4")
        with moved.line() as line:
            line.say("use-db shop shop-token")
            line.socket.sendall(b"arbiter\n")
            told = {}
            while (text := line.reader.readline().decode()) != "ok \n":
                words = text.rstrip("\n").split(" ")
                told[words[4]] = words
            assert set(told) == {"k", "said"}
            _, op_id, database, version, key, old, new = told["k"]
            assert (database, version, old, new) == ("shop", "2", "v1", "v2")
            said = line.say(f"resolve {op_id} shop {key} {version} both", 2)
            following = next(text for text in said if text != "ok \n").split(" ")
            assert following[4:] == ["k", "both", "v3\n"]
        assert shop.get("k").version == -2
        with shop.arbiter(joined, background=True):
            wait_until(lambda: not list(shop.conflicts()), "all to be resolved")
        assert (shop.get("k").value, shop.get("k").version) == ("both+v3+v4", 3)
        assert shop.get("said").value == "good morning+good night"


def joined(conflict: nun.Conflict) -> str:
    return f"{conflict.current.value}+{conflict.proposed.value}"


def test_tokens_are_hashed_from_the_first_snapshot_on_and_no_crash_loses_anything(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    files.write(node.data_dir, files.shop())
    with node:
        with nun.Client(node.address, **ADMIN) as client:
            shop = client.database("shop", token="shop-token")
            before = [(one.key, one.op_id, one.proposed.value) for one in shop.conflicts()]
            shop.set("name", "jose")
        node.kill("network")
        node.wait_ready()
        assert clear_in(node.data_dir) == ["shop-nun.data.values"]  # NunDB's, until ours is whole
        with nun.Client(node.address, **ADMIN) as client:
            shop = client.database("shop", token="shop-token")
            after = [(one.key, one.op_id, one.proposed.value) for one in shop.conflicts()]
            assert after == before
            assert (shop.get("name").version, shop.get("k").in_conflict) == (4, True)
            client.snapshot()
            assert clear_in(node.data_dir) == []
            [stored] = shop.get_many(["$$token"])
            assert stored.value.startswith("scrypt$")
        node.stop()
        node.start()
        with nun.Client(node.address) as client:
            assert client.database("shop", token="shop-token").get("name").value == "jose"
            assert client.database("shop", user="ann", token="ann-token").get("k").value == "v1"
            with pytest.raises(nun.AuthError):
                client.database("shop", token=stored.value).get("name")


def test_a_cluster_begins_on_a_copy_and_its_other_nodes_get_all_of_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 2)
    files.write(cluster.nodes[0].data_dir, files.shop())
    with cluster:
        for node in cluster.nodes:
            with nun.Client(node.address, **ADMIN) as client:
                shop = client.database("shop", token="shop-token")
                assert shop.get("name").value == "mary"
                assert len(list(shop.conflicts())) == 3
        with cluster.client(0) as client:
            at = str(client.check())
            members = wait_until(lambda: checked(client.cluster(), at), "digests of all nodes")
            assert len({repr(member["digests"]) for member in members}) == 1
        assert [clear_in(node.data_dir) for node in cluster.nodes] == [[], []]


def checked(members: list[dict[str, Any]], at: str) -> list[dict[str, Any]]:
    """The members, once all of them have made digests at this position."""
    done = all(str(member.get("digests_at")) == at for member in members)
    return members if done else []


def test_a_node_refuses_damaged_files_and_those_beside_a_cluster_and_leaves_them_as_they_are(
    tmp_path: Path,
) -> None:
    damaged, joining = Node(tmp_path / "alone"), Cluster(tmp_path, 2).nodes[1]
    for node in (damaged, joining):
        files.write(node.data_dir, files.shop())
    keys = damaged.data_dir / "shop-nun.data.keys"
    keys.write_bytes(keys.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*-nun.*")}
    try:
        for node in (damaged, joining):
            node.launch()
        assert (damaged.wait_exit(), joining.wait_exit()) == (3, 3)
        assert "shop-nun.data.keys: damaged at byte" in damaged.tail()
        assert "import them into a running cluster" in joining.tail()
    finally:
        damaged.close()
        joining.close()
    assert {path: path.read_bytes() for path in before} == before


class Command:
    """Runs `nun` in this process, as an administrator of a node."""

    def __init__(self, capture: pytest.CaptureFixture[bytes], node: Node) -> None:
        self._capture = capture
        self._options = ["--server", node.address]
        self._options += ["--user", ADMIN["user"], "--password", ADMIN["password"]]

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*self._options, *map(str, arguments)])
        out, err = self._capture.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out.decode(), err.decode()


@pytest.fixture
def run(target: Node, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(capfdbinary, target)


@pytest.fixture
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A running node that holds nothing yet."""
    with Node(tmp_path_factory.mktemp("target")) as node:
        yield node


def test_a_directory_is_imported_into_what_runs(target: Node, run: Command, tmp_path: Path) -> None:
    folder = files.write(tmp_path / "nundb", files.shop())
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    status, out, err = run("import", "--from-nundb", folder, "--dry-run")
    assert (status, err) == (0, "")
    assert re.search(r"shop +arbiter +6 +75 +1 +3 +1", out)
    with nun.Client(target.address, **ADMIN) as client:
        assert client.databases() == []
        status, _, err = run("import", "--from-nundb", folder)
        assert status == 1  # for what it says last
        assert "shop: created; 6 keys set, 0 were there already, 1 users, 3 open conflicts" in err
        assert "$conflicts_name_17 is not understood, and left out: resolve 17 shop 1 name" in err
        strategies = {info.name: info.options["strategy"] for info in client.databases()}
        assert strategies == {"latest": "newer", "plain": "none", "shop": "arbiter"}
        shop = client.database("shop", token="shop-token")
        found = shop.get_many(["name", "city", "odd", "k", "said"])
        assert [(one.value, one.held_version) for one in found] == [
            ("mary", 3),
            ("são joão\n", 1),
            ("kept", 1),
            ("v1", 2),
            ("good morning", 4),
        ]
        queue = [(one.key, one.proposed.value) for one in shop.conflicts()]
        assert queue == [("k", "v2"), ("k", "v3"), ("said", "good night")]
        ann = client.database("shop", user="ann", token="ann-token")
        assert ann.get("k").value == "v1"
        assert shop.get("$$permission_$ann").value == "rwa user-*|r k"

        at = client.status()["position"]
        refused = run("import", "--from-nundb", folder)
        assert refused[0] == 1
        assert "there is a database 'latest' already" in refused[2]
        again = json.loads(run("import", "--from-nundb", folder, "--into-existing", "--json")[1])[
            "databases"
        ]
        assert [(one["stored"], one["equal"], one["conflicts"]) for one in again] == [
            (0, 1, 0),
            (0, 1, 0),
            (0, 6, 0),
        ]
        assert client.status()["position"] == at  # nothing was changed

        shop.set("name", "jose")
        shop.remove("odd")
        status, _, err = run("import", "--from-nundb", folder, "--into-existing", "--only", "shop")
        assert status == 1
        assert "name holds another value here, version 4; left as it is" in err
        assert "odd was written or removed here since; left as it is" in err
        assert (shop.get("name").value, shop.get("odd")) == ("jose", None)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_what_does_not_fit_into_an_import_is_named(
    target: Node, run: Command, tmp_path: Path
) -> None:
    records = {
        "": (1, "no key"),
        "x" * 5_000: (1, "too long"),
        "k": (-2, "v1"),
        "$conflicts_k_1764000000000000299": (0, "resolve 1764000000000000299 d 2 k v1 v2"),
        "$$permission_$all": (0, "rw "),
        "$$permission_$bob": (0, "q x,y"),
        "$$other": (3, "for administrators"),
        "$$user_empty": (0, ""),
        "$$user_two words": (0, "t"),
        "$$permission_$two words": (0, "r x"),
    }
    spaced = files.Database({"$$token": (0, "t"), "k": (1, "v")})
    folder = files.write(
        tmp_path / "nundb", {"odd": files.Database(records, files.NEWER), "sp ace": spaced}
    )
    status, _, err = run("import", "--from-nundb", folder)
    assert (status, "'odd' has no token in these files: give it one with -t" in err) == (1, True)
    status, out, _ = run("import", "--from-nundb", folder, "-t", "new", "--json")
    told, refused = json.loads(out)["databases"]
    assert (refused["created"], refused["stored"], len(refused["differ"])) == (False, 0, 1)
    assert (
        "all of it is left out: the name of a database has no white space" in refused["differ"][0]
    )
    assert (status, told["keys"], told["stored"], told["conflicts"]) == (1, 4, 2, 0)
    for text in (
        "key '' of 0 bytes is left out: expected 1 to 4096",
        "of 5000 bytes is left out",
        "user 'empty' is left out: a token is a text of 1 to 1024 bytes",
        "user 'two words' is left out: the name of a user has no white space",
        "k: 'v2' waited for an arbiter, and strategy newer keeps nothing; left out",
        "who has the token alone might do nothing there, and may do all here",
    ):
        assert any(text in one for one in told["differ"]), (text, told)
    with nun.Client(target.address, **ADMIN) as client:
        odd = client.database("odd", token="new")
        assert (odd.get("k").value, odd.get("k").version) == ("v1", 2)
        assert odd.get("$$permission_$bob").value == "r x,y"
        assert odd.get("$$other").version == 3
        client.drop_database("odd")


@pytest.mark.parametrize(
    ("file", "data", "told"),
    [
        ("shop-nun.data.keys", b"\xff" * 8, "shop-nun.data.keys: damaged at byte 0"),
        ("shop-nun.data.keys", bytes(7), "shop-nun.data.keys: damaged at byte 0"),
        ("shop-nun.data.values", b"", "shop-nun.data.values: damaged at byte 0"),
        ("shop-nun.madadata", bytes(13), "shop-nun.madadata: damaged at byte 0: expected 12 or 8"),
        ("plain-nun.data.keys", struct.pack("<Q", 1) + b"\xff" + bytes(12), "is no UTF-8"),
        ("nun.state", b"", "is the data directory of a node of Nun"),
    ],
)
def test_a_damaged_directory_is_refused_before_anything_is_changed(
    run: Command, target: Node, tmp_path: Path, file: str, data: bytes, told: str
) -> None:
    folder = files.write(tmp_path / "nundb", files.shop())
    (folder / file).write_bytes(data)
    with nun.Client(target.address, **ADMIN) as client:
        at = client.status()["position"]
        status, out, err = run("import", "--from-nundb", folder, "--into-existing")
        assert (status, out) == (1, "")
        assert told in err
        assert client.status()["position"] == at


def test_what_is_no_directory_of_nundb_is_refused(run: Command, tmp_path: Path) -> None:
    assert "is no directory" in run("import", "--from-nundb", tmp_path / "none")[2]
    assert "holds no database" in run("import", "--from-nundb", tmp_path)[2]
    files.write(tmp_path, files.shop())
    assert "holds no database 'x'" in run("import", "--from-nundb", tmp_path, "--only", "x")[2]
    assert run("import", "--from-nundb", tmp_path, tmp_path / "nundb.jsonl")[0] == 2
    assert run("import")[0] == 2


def fill(client: nun.Client) -> None:
    """A database with something of all that there is, and some that NunDB has no place for."""
    client.create_database("back", token="b", strategy="arbiter")
    back = client.database("back", token="b")
    client.create_user("back", "ann", "a")
    client.set_permissions("back", "ann", "rwa user-*|r name|a only")
    back.set_many({"name": "mary", "city": "são joão\n", "empty": "", "a b": "spaced key"})
    for _ in range(3):
        back.set("name", "mary")
    back.set("gone", "x")
    back.remove("gone")
    back.set("$$other", "for administrators")
    base = back.set("k", "v1")
    back.set("k", "v2", base=base)
    for value in ("v3 with spaces", "v4"):
        with pytest.raises(nun.ConflictPending):
            back.set("k", value, base=base)
    back.set("counted", "1")
    with pytest.raises(nun.ConflictPending):
        back.set("counted", "5", version=0)
    with pytest.raises(nun.ConflictPending):
        back.increment("counted", 2)
    with pytest.raises(nun.ConflictPending):
        back.set("never", "was", base=7)
    back.set("solved", "1")
    with pytest.raises(nun.ConflictPending) as pending:
        back.set("solved", "2", version=0)
    [conflict] = [one for one in back.conflicts() if one.op_id == pending.value.conflict]
    back.resolve(conflict, "3")


def content(database: Any) -> dict[str, tuple[str, int, bool]]:
    """What programs read: all keys but those of conflicts, which are told apart by number."""
    keys = [key for key in database.scan() if not key.startswith("$")]
    found = zip(keys, database.get_many(keys), strict=True)
    return {key: (one.value, one.held_version, one.in_conflict) for key, one in found}


def test_an_export_is_what_nundb_loads_and_brings_all_back(
    target: Node, run: Command, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"back": {"token": "given"}}))
    folder = tmp_path / "nundb"
    with nun.Client(target.address, **ADMIN) as client:
        fill(client)
        client.create_database("slash/ed", token="t", strategy="older")
        client.database("slash/ed").set("a", "b")
        client.create_database("older", token="t", strategy="older", conflict_timeout_s=5)
        client.database("older").set("bytes", b"\xff")
        at = client.status()["position"]
        only = ("--only", "back", "--only", "slash/ed", "--only", "older")
        status, _, err = run("export", "--to-nundb", folder, "--tokens", tokens, *only)
        assert client.status()["position"] == at
        before = content(client.database("back"))
    assert status == 1
    assert "back: 8 keys, 1 users, 4 open conflicts" in err
    for told in (
        r"back: counted: conflict \d+ is left out: NunDB keeps no increment 2",
        r"slash/ed: NunDB cannot have a database of this name",
        r"older: NunDB has no strategy 'older': it is 'none' there",
        r"older: NunDB has no option 'conflict_timeout_s'",
        r"older: bytes is left out: its value is no UTF-8",
        r"2 tokens are new, for ours are hashed: \S+/nundb/tokens.json has all",
    ):
        assert re.search(told, err), (told, err)

    used = json.loads((folder / "tokens.json").read_text())
    assert used["back"]["token"] == "given"
    ann = used["back"]["users"]["ann"]
    assert {path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir())} == {0}

    found = files.read(folder)
    assert sorted(found) == ["back", "older"]
    assert (found["back"].strategy, found["older"].strategy) == (files.ARBITER, files.NONE)
    records = found["back"].records
    assert set(files.read_names(folder)) == {*records, *found["older"].records}
    assert sorted(files.read_names(folder).values()) == list(range(len(files.read_names(folder))))
    assert (folder / "is-oplog.valid").read_bytes() == b"\1"
    waiting = {key: text for key, (_, text) in records.items() if key.startswith("$conflicts_")}
    first, second = sorted(key for key in waiting if key.startswith("$conflicts_k_"))
    number = first.removeprefix("$conflicts_k_")
    assert waiting[first] == f"resolve {number} back 2 k v2 v3 with spaces"
    assert waiting[second].split(" ", 5)[3:] == ["2", "k", f"{first} v4"]
    assert {key: record for key, record in records.items() if not key.startswith("$conf")} == {
        "$$token": (0, "given"),
        "$$user_ann": (0, ann),
        "$$permission_$ann": (0, "rw user-*|r name"),
        "$$other": (1, "for administrators"),
        "name": (4, "mary"),
        "city": (1, "são joão\n"),
        "empty": (1, ""),
        "a b": (1, "spaced key"),
        "k": (-2, "v2"),
        "counted": (-2, "1"),
        "solved": (2, "3"),
    }

    node = Node(tmp_path / "again", data_dir=folder)
    with node, nun.Client(node.address, **ADMIN) as client:
        back = client.database("back", token="given")
        assert content(back) == before
        queue = [(one.key, one.proposed.value) for one in back.conflicts()]
        assert queue == [("counted", "5"), ("k", "v3 with spaces"), ("k", "v4"), ("never", "was")]
        client.database("back", user="ann", token=ann).set("user-1", "x")


def test_an_export_takes_the_tokens_of_the_directory_that_all_came_from(
    run: Command, tmp_path: Path
) -> None:
    had = {"$$token": (0, "old"), "$$user_ann": (0, "hers"), "name": (1, "mary")}
    origin = files.write(tmp_path / "origin", {"kept": files.Database(had, files.NEWER)})
    assert run("import", "--from-nundb", origin)[0] == 0
    status, _, err = run(
        "export", "--to-nundb", tmp_path / "back", "--only", "kept", "--tokens", origin
    )
    assert (status, "are new" in err) == (0, False)
    found = files.read(tmp_path / "back")["kept"]
    assert (found.records, found.strategy) == (had, files.NEWER)


def test_an_export_writes_over_nothing_and_leaves_nothing_half(
    run: Command, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    status, _, err = run("export", "--to-nundb", tmp_path / "there")
    assert (status, "is there already" in err) == (2, True)
    tokens = tmp_path / "tokens.json"
    for text in ("", "[]", '{"a": {"token": "with space"}}', '{"a": {"users": {"u": ""}}}'):
        tokens.write_text(text)
        assert run("export", "--to-nundb", tmp_path / "new", "--tokens", tokens)[0] == 2
    assert run("export", "--to-nundb", tmp_path / "new", "--only", "nobody")[0] == 2
    assert run("export", "--to-nundb", tmp_path / "no" / "new")[0] == 2
    assert run("export")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "tokens.json"]
