"""From NunDB's environment to the configuration of a node."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import zmq

from actors.nun_db_options import Options, document_of, link_keys, options_from
from nun.config import check_config
from nun.errors import ConfigError

ADMIN = {"NUN_USER": "mary", "NUN_PWD": "pw"}
THREE = "127.0.0.1:3016,127.0.0.1:3017, 127.0.0.1:3018"


def options(**environ: str) -> Options:
    return options_from({**ADMIN, **environ}, lambda host: host in ("127.0.0.1", "localhost"))


def problems_of(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as found:
        options(**environ)
    return found.value.problems


def document(found: Options, **more: Any) -> dict[str, dict[str, Any]]:
    arguments = {"data_dir": "d", "primary": found.name, "bound_host": "127.0.0.1", "pretty": False}
    return document_of(found, **{**arguments, **more})


def test_the_defaults_are_nundbs() -> None:
    found = options()
    addresses = [str(found.websocket), str(found.http), str(found.tcp)]
    assert addresses == ["0.0.0.0:3012", "0.0.0.0:3013", "0.0.0.0:3014"]
    assert (found.data_dir, found.level) == ("dbs", "info")
    assert found.name == "0.0.0.0:3014"
    assert not found.clustered
    tables = document(found)
    assert tables["network"] == {"listen": "tcp://127.0.0.1:13014"}
    assert "replication" not in tables
    assert tables["storage"]["snapshot_interval_s"] == 300
    assert tables["storage"]["oplog_bytes"] == 1_073_741_824


def test_a_cluster() -> None:
    found = options(NUN_TCP_ADDR="127.0.0.1:3017", NUN_REPLICATE_ADDR=THREE)
    assert found.name == "127.0.0.1:3017"
    assert [str(peer) for peer in found.peers] == ["127.0.0.1:3016", "127.0.0.1:3018"]
    replication = document(found, primary="127.0.0.1:3016")["replication"]
    assert replication["listen"] == "tcp://127.0.0.1:14117"
    assert replication["publish"] == replication["advertise"] == "tcp://127.0.0.1:15317"
    assert replication["peers"] == {
        "127.0.0.1:3016": "tcp://127.0.0.1:14116",
        "127.0.0.1:3018": "tcp://127.0.0.1:14118",
    }


@pytest.mark.parametrize(
    ("tcp", "external", "name"),
    [
        ("127.0.0.1:3016", "localhost:3016", "127.0.0.1:3016"),  # as the others know it
        ("0.0.0.0:3016", None, "127.0.0.1:3016"),
        ("0.0.0.0:3016", "db.example:3016", "127.0.0.1:3016"),
        ("0.0.0.0:4000", "127.0.0.1:3018", "127.0.0.1:3018"),
        ("127.0.0.1:3019", None, "127.0.0.1:3019"),  # the list leaves this node out
        ("127.0.0.1:3019", "db.example:3019", "db.example:3019"),
    ],
)
def test_the_name_is_what_the_cluster_calls_it(tcp: str, external: str | None, name: str) -> None:
    environ = {} if external is None else {"NUN_EXTERNAL_ADDR": external}
    found = options(NUN_TCP_ADDR=tcp, NUN_REPLICATE_ADDR=THREE, **environ)
    assert found.name == name
    assert str(found.external) == (external or tcp)
    assert name not in map(str, found.peers)


def test_a_list_of_itself_alone_is_no_cluster() -> None:
    found = options(NUN_TCP_ADDR="127.0.0.1:3017", NUN_REPLICATE_ADDR="127.0.0.1:3017")
    assert not found.clustered


@pytest.mark.parametrize(
    ("word", "level"), [("Off", "error"), ("error", "error"), ("Warn", "warning"),
                        ("Info", "info"), ("DEBUG", "debug"), ("Trace", "debug")]
)  # fmt: skip
def test_levels(word: str, level: str) -> None:
    assert options(NUN_LOG_LEVEL=word).level == level


def test_what_can_be_mapped() -> None:
    tables = document(options(NUN_DECLUTTER_INTERVAL="7", NUN_MAX_OP_LOG_SIZE="100000"))
    assert tables["storage"] == {
        "snapshot_interval_s": 7.0,
        "oplog_bytes": 100_000,
        "segment_bytes": 50_000,
    }
    tiny = document(options(NUN_MAX_OP_LOG_SIZE="1"))["storage"]
    assert (tiny["oplog_bytes"], tiny["segment_bytes"]) == (8_192, 4_096)


def test_what_cannot_be_mapped_is_named() -> None:
    environ = {"NUN_ELECTION_TIMEOUT": "500", "NUN_S3_BUCKET": "b", "NUN_S3_RETRY": ""}
    assert options(**environ).said_in_vain == ("NUN_ELECTION_TIMEOUT", "NUN_S3_BUCKET")


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"NUN_TCP_ADDR": "3014"}, "NUN_TCP_ADDR: found '3014', expected HOST:PORT"),
        ({"NUN_HTTP_ADDR": "127.0.0.1:0"}, "NUN_HTTP_ADDR: found '127.0.0.1:0'"),
        ({"NUN_REPLICATE_ADDR": "a:1,b"}, "NUN_REPLICATE_ADDR: found 'b', expected HOST:PORT"),
        ({"NUN_LOG_LEVEL": "loud"}, "NUN_LOG_LEVEL: found 'loud'"),
        ({"NUN_DECLUTTER_INTERVAL": "soon"}, "NUN_DECLUTTER_INTERVAL: found 'soon'"),
        ({"NUN_STORAGE_STRATEGY": "s3"}, "NUN_STORAGE_STRATEGY: found 's3', expected disk"),
        ({"NUN_STORAGE_WRITE_STRATEGY": "s3_patition"}, "data are not kept in S3"),
        ({"NUN_TCP_ADDR": "127.0.0.1:60000"}, "make 70000, expected ports from 1 to 65535"),
        ({"NUN_ZMQ_PORT_OFFSET": "-1"}, "takes port 3013 twice"),
        ({"NUN_HTTP_ADDR": "0.0.0.0:3014"}, "found the same address twice"),
        ({"NUN_REPLICATE_ADDR": "10.0.0.1:3014"}, "--external-address: found '0.0.0.0:3014'"),
    ],
)
def test_what_is_refused(environ: dict[str, str], told: str) -> None:
    assert any(told in problem for problem in problems_of(**environ)), problems_of(**environ)


def test_anything_but_s3_is_the_disk() -> None:
    assert options(NUN_STORAGE_STRATEGY="floppy")


def test_the_keys_of_the_links_follow_from_user_and_password() -> None:
    public, secret = link_keys("mary", "pw")
    assert zmq.curve_public(secret.encode()).decode() == public
    assert link_keys("mary", "pw") == (public, secret)
    assert len({link_keys("mary", "pw2"), link_keys("joe", "pw"), (public, secret)}) == 3


@pytest.mark.parametrize("tcp", ["127.0.0.1:3017", "0.0.0.0:3017"])
@pytest.mark.parametrize("replicate", ["", THREE, "[::1]:3016,127.0.0.1:3017"])
def test_the_configuration_is_a_good_one(tcp: str, replicate: str) -> None:
    found = options(NUN_TCP_ADDR=tcp, NUN_REPLICATE_ADDR=replicate)
    tables = document(found, bound_host=found.tcp.host)
    config = check_config(tables)
    assert asdict(config)["node"]["name"] == found.name
    assert config.gateway.tcp == tcp
    assert config.security.admin_user == "mary"
