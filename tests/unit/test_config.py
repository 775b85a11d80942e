"""Configuration: each rule, all problems at once, overrides, environment; and no secret in any problem."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
import zmq

from nun import limits
from nun.config import Config, check_config, config_from_plain, config_to_plain, load_config
from nun.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text("")
    return path


def problems_of(path: Path, text: str = "", *overrides: str, **environ: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_the_sample_holds_every_key_with_its_default() -> None:
    import tomllib

    sample = ROOT / "conf" / "node1.toml"
    found = load_config(sample)
    assert replace(found, replication=Config().replication) == Config()
    for name in ("node2", "node3"):
        load_config(ROOT / "conf" / f"{name}.toml")
    tables = tomllib.loads(sample.read_text())
    assert list(tables) == [table.name for table in fields(Config)]
    for table in fields(Config):
        keys = [item.name for item in fields(getattr(Config(), table.name))]
        assert list(tables[table.name]) == keys


def test_an_empty_file_is_the_default(path: Path) -> None:
    assert load_config(path) == Config()


def test_it_is_frozen_all_through() -> None:
    config = Config()
    for table in fields(config):
        with pytest.raises(FrozenInstanceError):
            setattr(config, table.name, None)
        inner = getattr(config, table.name)
        with pytest.raises(FrozenInstanceError):
            setattr(inner, fields(inner)[0].name, None)


def test_it_survives_the_way_to_a_child(path: Path) -> None:
    config = load_config(path, ["storage.reclaim_ratio=0.25", "node.name=other"])
    plain = json.loads(json.dumps(config_to_plain(config)))
    assert config_from_plain(plain) == config


def test_children_need_no_pydantic() -> None:
    program = "import sys, nun.config; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("65536", 65536),
        ("'65536'", 65536),
        ("'64KiB'", 65536),
        ("'64 KiB'", 65536),
        ("'1MiB'", 2**20),
    ],
)
def test_sizes_are_numbers_or_texts(path: Path, text: str, expected: int) -> None:
    path.write_text(f"[storage]\nsegment_bytes = {text}")
    assert load_config(path).storage.segment_bytes == expected


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("node.name", "''", "from|1 to 200 characters"),
        ("node.name", "7", "a text"),
        ("node.name", "'a b'", "letters, digits"),
        ("node.name", "'-a'", "letters, digits"),
        ("node.name", "'a\\n'", "letters, digits"),
        ("node.data_dir", "''", "a text"),
        ("gateway.advertise", "'0.0.0.0:3014'", "that others can connect to"),
        ("gateway.advertise", "'3014'", "that others can connect to"),
        ("network.listen", "5701", "a text"),
        ("network.listen", "'127.0.0.1:5701'", "tcp://HOST:PORT"),
        ("network.listen", "'tcp://127.0.0.1'", "tcp://HOST:PORT"),
        ("network.listen", "'tcp://127.0.0.1:0'", "from 1 to 65535"),
        ("network.listen", "'tcp://127.0.0.1:65536'", "from 1 to 65535"),
        ("network.listen", "'ipc://x'", "tcp://HOST:PORT"),
        ("network.spin_us", "-1", "a whole number from 0 to 10000"),
        ("network.spin_us", "true", "a whole number"),
        ("network.spin_us", "'300'", "a whole number"),
        ("network.spin_us", "1.5", "a whole number"),
        ("storage.fsync", "'sometimes'", "'always', 'interval' or 'never'"),
        ("storage.fsync_interval_ms", "0", "from 1 to 60000"),
        ("storage.segment_bytes", "'16MB'", '"16MiB"'),
        ("storage.segment_bytes", "100", "from 4096"),
        ("storage.segment_bytes", "'9999999999999999999999MiB'", "from 4096"),
        ("storage.oplog_bytes", "'20MiB'", "at least two segments"),
        ("storage.snapshot_interval_s", "-1", "a number from 0"),
        ("storage.snapshot_interval_s", "nan", "a number from 0"),
        ("storage.snapshot_interval_s", "inf", "a number from 0"),
        ("storage.snapshot_interval_s", "true", "a number from 0"),
        ("storage.reclaim_ratio", "1.1", "from 0 to 1"),
        ("storage.tombstone_retention_s", "-1", "from 0"),
        ("storage.damage", "'ignore'", "'refuse' or 'keep-prefix'"),
        ("security.admin_user", "''", "1 to 200 characters"),
        ("security.insecure", "1", "true or false"),
        ("limits.sessions_max", "0", "from 1"),
        ("limits.unread_bytes_max", "'much'", '"16MiB"'),
        ("log.level", "'verbose'", "'debug', 'info', 'warning' or 'error'"),
        ("log.format", "'xml'", "'json' or 'pretty'"),
    ],
)
def test_each_wrong_value_is_named_with_what_was_expected(
    path: Path, key: str, text: str, expected: str
) -> None:
    section, name = key.split(".")
    (problem,) = problems_of(path, f"[{section}]\n{name} = {text.replace(chr(39), chr(34))}\n")
    assert problem.startswith(f"{key}: found ")
    assert any(part in problem.partition(", expected ")[2] for part in expected.split("|"))


def test_all_problems_are_told_at_once(path: Path) -> None:
    problems = problems_of(
        path,
        """
        loose = 1
        log = "loud"
        [netwrk]
        [node]
        name = 3
        nmae = "x"
        [storage]
        fsync = "now"
        segment_bytes = "2MiB"
        oplog_bytes = "3MiB"
        [limits]
        watches_max = -1
        """,
        "nonsense",
        "network.spin_us=fast",
    )
    starts = [
        "--set: found 'nonsense'",
        "loose: unknown key outside of any table",
        "log: found str, expected a table",
        "netwrk: unknown table; did you mean 'network'?",
        "node.nmae: unknown key; did you mean 'name'?",
        "node.name: found 3",
        "network.spin_us: found 'fast'",
        "storage.fsync: found 'now'",
        "storage.oplog_bytes: found 3145728, expected at least two segments, 4194304",
        "limits.watches_max: found -1",
    ]
    for start in starts:
        assert [problem for problem in problems if problem.startswith(start)], start
    assert len(problems) == len(starts)


def test_a_key_unlike_any_other_gets_the_list(path: Path) -> None:
    (problem,) = problems_of(path, "[log]\nzzz = 1")
    assert problem == "log.zzz: unknown key, expected one of level, format"


def test_a_file_that_is_not_there_or_no_toml(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (problem,) = problems_of(path, "[node]\nname = \n")
    assert "not TOML" in problem
    assert "line 2" in problem
    path.write_bytes(b"[node]\nname = '\xff'\n")
    with pytest.raises(ConfigError, match="byte 15 is not UTF-8"):
        load_config(path)


def test_overrides_win_over_the_file_and_the_environment_over_all(path: Path) -> None:
    path.write_text('[node]\nname = "a"\n[security]\nadmin_user = "x"\n')
    overrides = ["node.name=b", "security.admin_user = y", "storage.fsync='never'"]
    config = load_config(path, overrides, {"NUN_USER": "z", "NUN_PWD": "secret", "HOME": "/"})
    assert config.node.name == "b"
    assert config.storage.fsync == "never"
    assert (config.security.admin_user, config.security.admin_password) == ("z", "secret")
    assert load_config(path, overrides, {"NUN_USER": ""}).security.admin_user == "y"


def test_a_text_may_look_like_a_number_in_an_override(path: Path) -> None:
    config = load_config(path, ["security.admin_password=1234", "node.name=2024-01-01"])
    assert config.security.admin_password == "1234"
    assert config.node.name == "2024-01-01"
    assert load_config(path, ["security.admin_password=a=b"]).security.admin_password == "a=b"


@pytest.mark.parametrize("override", ["x", "x=1", ".x=1", "node.=1", "=", ""])
def test_an_override_without_a_place_is_a_problem(path: Path, override: str) -> None:
    (problem,) = problems_of(path, "", override)
    assert "expected section.key=value" in problem


def test_no_problem_shows_a_secret(path: Path) -> None:
    secret = "geheim"
    problems = problems_of(
        path,
        f"""
        [security]
        admin_password = ["{secret}"]
        admin_pasword = "{secret}"
        curve_secret_key = "{secret}"
        """,
        f"admin_password={secret}",
        f"security={secret}",
    )
    assert len(problems) >= 5
    assert secret not in "\n".join(problems)


LOOPBACK = [
    "tcp://127.0.0.1:1",
    "tcp://127.8.8.8:65535",
    "tcp://localhost:5701",
    "tcp://[::1]:5701",
    "tcp://lo:1",
]
BEYOND = [
    "tcp://0.0.0.0:5701",
    "tcp://*:5701",
    "tcp://[::]:5701",
    "tcp://10.0.0.1:5701",
    "tcp://eth0:5701",
]


@pytest.mark.parametrize("listen", LOOPBACK)
def test_loopback_needs_no_keys(path: Path, listen: str) -> None:
    assert load_config(path, [f"network.listen={listen}"]).network.listen == listen


@pytest.mark.parametrize("listen", BEYOND)
def test_beyond_loopback_needs_keys_and_a_password_of_ones_own(path: Path, listen: str) -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    address = f"network.listen={listen}"
    password = "security.admin_password=own"
    keys = [f"security.curve_public_key={public}", f"security.curve_secret_key={secret}"]
    without = problems_of(path, "", address)
    assert [problem.partition(":")[0] for problem in without] == [
        "network.listen",
        "security.admin_password",
    ]
    assert "CURVE" in problems_of(path, "", address, password)[0]
    assert "sample password" in problems_of(path, "", address, *keys)[0]
    assert (
        "sample password" in problems_of(path, "", address, *keys, password, NUN_PWD="nun-pwd")[0]
    )
    assert load_config(path, [address, password, *keys]).network.listen == listen
    assert load_config(path, [address, "security.insecure=true"]).security.insecure


def test_curve_keys_come_as_a_pair(path: Path) -> None:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    other = zmq.curve_keypair()[0].decode()

    def problems(public: str, secret: str) -> list[str]:
        table = {"curve_public_key": public, "curve_secret_key": secret}
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        return problems_of(path, "[security]\n" + "\n".join(lines))

    assert "expected both keys" in problems(public, "")[0]
    assert "expected both keys" in problems("", secret)[0]
    assert "which does not belong to" in problems(other, secret)[0]
    assert "of 39 characters" in problems(public[1:], secret)[0]
    assert "of 41 characters" in problems(public, secret + "x")[0]
    assert "which does not belong to" in problems(public, "\\" * 40)[0]
    overrides = [f"security.curve_public_key={public}", f"security.curve_secret_key={secret}"]
    assert load_config(path, overrides).security.curve_secret_key == secret


def test_the_limits_have_the_names_and_defaults_of_the_limits_file() -> None:
    for item in fields(Config().limits):
        assert getattr(limits, item.name.upper()) == getattr(Config().limits, item.name)


def test_a_hostile_file_is_told_and_not_met_with_a_traceback(path: Path) -> None:
    texts = [
        "[[node]]\nname='x'",
        "node.name.first = 1",
        "[node]\nname = {a = 1}",
        "[storage]\nfsync = [1]",
    ]
    for text in texts:
        assert problems_of(path, text)


CLUSTER = {
    "listen": "tcp://127.0.0.1:5702",
    "publish": "tcp://127.0.0.1:5703",
    "primary": "node1",
    "peers": "{node2 = 'tcp://127.0.0.1:5802', node3 = 'tcp://127.0.0.1:5902'}",
}


def cluster(**changes: object) -> list[str]:
    return [f"replication.{key}={value}" for key, value in {**CLUSTER, **changes}.items()]


def test_the_samples_make_one_cluster() -> None:
    configs = [load_config(ROOT / "conf" / f"node{number}.toml") for number in (1, 2, 3)]
    listen = {config.node.name: config.replication.listen for config in configs}
    used = []
    for number, config in enumerate(configs, 1):
        name = config.node.name
        assert name == f"node{number}"
        assert config.replication.primary == "node1"
        assert config.replication.peers == {
            peer: address for peer, address in listen.items() if peer != name
        }
        used += [config.network.listen, config.replication.listen, config.replication.publish]
        used += [config.node.data_dir]
    assert len(set(used)) == len(used)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"listen": "127.0.0.1:1"}, "replication.listen: found '127.0.0.1:1', expected tcp://"),
        ({"publish": ""}, "replication.publish: found '', expected tcp://"),
        ({"publish": "tcp://127.0.0.1:5702"}, "found the same address twice"),
        ({"listen": "tcp://127.0.0.1:5701"}, "found the same address twice"),
        ({"primary": "node9"}, "replication.primary: found 'node9', expected one of node1, node2"),
        ({"peers": "{node1 = 'tcp://127.0.0.1:1'}"}, "replication.peers: found the name 'node1'"),
        ({"peers": "{'a b' = 'tcp://127.0.0.1:1'}"}, "replication.peers: found the name 'a b'"),
        ({"peers": "{node2 = 'tcp://*:1'}"}, "that this node can connect to"),
        ({"peers": "{node2 = 'tcp://127.0.0.1:5702'}"}, "the address of replication.listen too"),
        (
            {"peers": "{a = 'tcp://127.0.0.1:1', b = 'tcp://127.0.0.1:1'}"},
            "replication.peers.b: found 'tcp://127.0.0.1:1', the address of replication.peers.a too",
        ),
        ({"peers": "{node2 = 7}"}, "replication.peers: found {'node2': 7}, expected"),
        ({"ack": 3}, "replication.ack: found 3, expected at most 2"),
        ({"ack": "most"}, "'majority' or 'all', or a whole number"),
        ({"min_replicas": 3}, "replication.min_replicas: found 3, expected at most 2"),
        ({"advertise": "tcp://*:5703"}, "replication.advertise: found 'tcp://*:5703'"),
        ({"coordinator": "raft"}, "replication.coordinator: found 'raft', expected 'static'"),
        ({"max_clock_offset_ms": 0}, "expected a whole number from 1 to 3600000"),
        ({"listen": ""}, "replication.publish: found 'tcp://127.0.0.1:5703' without"),
    ],
)
def test_a_node_of_a_cluster_is_checked(path: Path, changes: dict[str, object], found: str) -> None:
    problems = problems_of(path, "", *cluster(**changes))
    assert any(found in problem for problem in problems), problems


def test_the_ack_level_is_a_word_or_a_number(path: Path) -> None:
    for ack in ("primary", "local", "majority", "all", 1, 2):
        assert load_config(path, cluster(ack=ack)).replication.ack == ack


@pytest.mark.parametrize("key", ["listen", "publish"])
def test_beyond_loopback_nodes_need_keys(path: Path, key: str) -> None:
    far = cluster(**{key: "tcp://10.0.0.1:5702"})
    [problem] = problems_of(path, "", *far)
    assert problem.startswith(f"replication.{key}: found 'tcp://10.0.0.1:5702' without")
    assert load_config(path, [*far, "security.insecure=true"])


def test_who_listens_everywhere_says_how_to_reach_it(path: Path) -> None:
    everywhere = cluster(publish="tcp://*:5703")
    listen = "network.listen=tcp://0.0.0.0:5701"
    problems = problems_of(path, "", *everywhere, listen, "security.insecure=true")
    assert [problem.partition(":")[0] for problem in problems] == [
        "network.advertise",
        "replication.advertise",
    ]
    config = load_config(
        path,
        [
            *everywhere,
            listen,
            "security.insecure=true",
            "network.advertise=tcp://db.example:5701",
            "replication.advertise=tcp://db.example:5703",
        ],
    )
    assert config.replication.advertise == "tcp://db.example:5703"


def test_nodes_with_keys_know_the_key_of_every_peer(path: Path) -> None:
    pairs = [[key.decode() for key in zmq.curve_keypair()] for _ in range(3)]
    peers = f"{{node2 = '{pairs[1][0]}', node3 = '{pairs[2][0]}'}}"
    mine = {"curve_public_key": pairs[0][0], "curve_secret_key": pairs[0][1]}
    assert load_config(path, cluster(**mine, peer_public_keys=peers))
    [problem] = problems_of(
        path, "", *cluster(**mine, peer_public_keys=f"{{node2 = '{pairs[1][0]}'}}")
    )
    assert problem.startswith("replication.peer_public_keys.node3: found ''")
    other = {**mine, "curve_public_key": pairs[1][0]}
    [problem] = problems_of(path, "", *cluster(**other, peer_public_keys=peers))
    assert "which does not belong to replication.curve_secret_key" in problem
    assert pairs[0][1] not in problem
    [problem] = problems_of(
        path, "", *cluster(curve_public_key=pairs[0][0], peer_public_keys=peers)
    )
    assert problem.startswith("replication.curve_secret_key: found nothing beside the other key")


def test_tables_are_checked_as_a_file_is() -> None:
    name = "[::1]:3014"  # as nodes of NunDB's clusters are called
    config = check_config({"node": {"name": name}, "log": {"level": "debug"}})
    assert (config.node.name, config.log.level) == (name, "debug")
    with pytest.raises(ConfigError) as found:
        check_config({"node": {"name": "a b"}, "lag": {}})
    assert [problem.split(":")[0] for problem in found.value.problems] == ["lag", "node.name"]
