"""Who may do what: passwords, tokens, permissions, stolen sessions, CURVE, and every limit with an error of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

import nun
from nun import limits
from nun import messages as m
from nun.codec import pack
from nun.errors import (
    AuthError,
    BadRequest,
    NoSuchDatabase,
    Overloaded,
    PermissionDenied,
    RequestError,
    SessionUnknown,
    TooLarge,
)
from tests.support.node import ADMIN, Node, wait_until
from tests.support.raw_client import RawClient, Reply, connect

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all tests here that do not need settings of their own."""
    with Node(tmp_path_factory.mktemp("guard"), {"storage": {"fsync": "never"}}) as node:
        yield node


_names = iter(range(10**6))


@pytest.fixture
def name(node: Node) -> str:
    """A fresh database with token "t"."""
    name = f"d{next(_names)}"
    with nun.Client(node.address, **ADMIN) as admin:
        admin.create_database(name, token="t")
    return name


def refused(reply: Reply, error: type[RequestError]) -> dict[str, Any]:
    """The fields of a refusal of this kind."""
    assert reply.status == error.code, f"expected {error.__name__}, got {reply}"
    message, fields = reply.result
    assert len(message) > 10, "an error says what was wrong"
    return {key.decode(): value for key, value in fields.items()}


# Passwords and tokens


def test_a_wrong_password_and_an_unknown_user_are_refused_alike(node: Node) -> None:
    texts = []
    for user, password in (("nun", "wrong"), ("nobody", "nun-pwd"), ("", "")):
        with RawClient(node.address) as client:
            reply = client.hello(user, password)
            refused(reply, AuthError)
            texts.append(reply.result[0].replace(repr(user).encode(), b"_"))
            assert client.request(m.STATUS).status == SessionUnknown.code
    assert len(set(texts)) == 1, "the answer tells which users exist"


def test_a_wrong_token_is_refused(node: Node, name: str) -> None:
    with connect(node.address, None, None) as client:
        for secret in ("wrong", "T", "tt"):
            refused(client.request(m.USE, name, None, secret), AuthError)
        refused(client.request(m.GET, 1, "k"), AuthError)
        assert client.request(m.USE, name, None, "t").status == 0


def test_an_unknown_database_is_named(node: Node) -> None:
    with connect(node.address, None, None) as client:
        fields = refused(client.request(m.USE, "nowhere", None, "t"), NoSuchDatabase)
        assert fields["database"] == b"nowhere"


def test_guessing_closes_the_door_for_a_while(start_node: Callable[..., Node]) -> None:
    node = start_node()
    with nun.Client(node.address, **ADMIN) as admin:
        admin.create_database("d", token="t")
        admin.create_database("other", token="t")
    with connect(node.address, None, None) as client:
        for _ in range(limits.SECRET_FAILURES_MAX):
            refused(client.request(m.USE, "d", None, "wrong"), AuthError)
        fields = refused(client.request(m.USE, "d", None, "wrong"), AuthError)
        assert 0 < fields["retry_after_ms"] <= limits.SECRET_FAILURES_WINDOW_S * 1000
        assert client.request(m.USE, "other", None, "t").status == 0
    for _ in range(limits.SECRET_FAILURES_MAX):
        with RawClient(node.address) as client:
            refused(client.hello("root", "guess"), AuthError)
    with RawClient(node.address) as client:
        assert "retry_after_ms" in refused(client.hello("root", "guess"), AuthError)
        assert client.hello("nun", "nun-pwd").status == 0, "others may still enter"


def test_who_guesses_shuts_out_nobody_else(start_node: Callable[..., Node]) -> None:
    """Not the administrator elsewhere, and not one at the same address who was here before."""
    node = start_node()
    elsewhere = node.address.replace("tcp://", "tcp://127.0.0.2:0;")
    with connect(node.address) as before:
        before.write(m.CREATE_DATABASE, "d", "t", {}).value()
        before.use("d", "t")
        with connect(node.address, None, None) as client:
            for _ in range(limits.SECRET_FAILURES_MAX):
                refused(client.hello("nun", "guess"), AuthError)
                refused(client.request(m.USE, "d", None, "wrong"), AuthError)
            assert "retry_after_ms" in refused(client.hello("nun", "nun-pwd"), AuthError)
            assert "retry_after_ms" in refused(client.request(m.USE, "d", None, "t"), AuthError)
        with connect(elsewhere) as administrator:
            assert administrator.request(m.STATUS).status == 0
        with connect(elsewhere, None, None) as user:
            assert user.request(m.USE, "d", None, "t").status == 0
        assert before.hello("nun", "nun-pwd").status == 0
        assert before.request(m.USE, "d", None, "t").status == 0
    line = node.wait_log("administrator_refused")
    assert line["address"] == "127.0.0.1"


def test_secrets_are_in_no_log_and_no_file(start_node: Callable[..., Node]) -> None:
    node = start_node({"log": {"level": "debug"}})
    secrets = ["tok-5f1c", "usr-77aa", "bad-91c3"]
    with nun.Client(node.address, **ADMIN) as admin:
        admin.create_database("d", token=secrets[0])
        admin.create_user("d", "mary", secrets[1])
    with connect(node.address, None, None) as client:
        client.request(m.USE, "d", None, secrets[2])
        client.request(m.USE, "d", "mary", secrets[1]).value()
        client.request(m.USE, "d", None, secrets[0]).value()
    assert node.stop() == 0
    everything = "\n".join(node.raw).encode()
    for path in node.data_dir.rglob("*"):
        if path.is_file():
            everything += path.read_bytes()
    for secret in [*secrets, "nun-pwd"]:
        assert secret.encode() not in everything


# Permissions


def user_with(node: Node, name: str, permissions: str | None) -> RawClient:
    """A connection of a user with this permission list."""
    with nun.Client(node.address, **ADMIN) as admin:
        admin.create_user(name, "mary", "secret")
        if permissions is not None:
            admin.set_permissions(name, "mary", permissions)
    return connect(node.address, None, None)


def attempts(database: int, key: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every request that needs a kind of permission on a key."""

    def batch(kind: int, argument: Any) -> tuple[Any, ...]:
        return (m.BATCH, 0, database, False, bytes([kind]), pack([[key], [argument]]), None)

    def atomic(kind: int, argument: Any) -> tuple[Any, ...]:
        return (m.BATCH, 0, database, True, bytes([kind]), pack([[key], [argument]]), None)

    return {
        "r": [
            (m.GET, database, key),
            (m.GET_MANY, database, [key]),
            (m.WATCH, database, m.WATCH_KEY, key, None, 1000),
            batch(m.GET, None),
        ],
        "w": [
            (m.SET, 0, database, key, "1", None),
            (m.SET_MANY, 0, database, pack([[key], ["1"]])),
            batch(m.SET, "1"),
            atomic(m.SET, "1"),
        ],
        "i": [(m.INCREMENT, 0, database, key, 1), batch(m.INCREMENT, 1), atomic(m.INCREMENT, 1)],
        "x": [(m.REMOVE, 0, database, key, None), batch(m.REMOVE, None), atomic(m.REMOVE, None)],
    }


@pytest.mark.parametrize(
    ("permissions", "allowed", "denied"),
    [
        ("r user:*", ["user:1", "user:"], ["use", "xuser:1", "other"]),
        ("r *:name", ["a:name", ":name"], ["a:name:x", "a:nam"]),
        ("r mid", ["mid", "amidb", "mid*"], ["mi", "m-id"]),
        ("r one,two*", ["one", "two", "twofold"], ["on", "three"]),
        ("w user:*", [], ["user:1"]),
        ("r *", ["anything"], ["$$token", "$$user_mary", "$$permission_$mary"]),
        (None, [], ["anything"]),
    ],
)
def test_patterns_are_prefix_suffix_or_substring(
    node: Node, name: str, permissions: str | None, allowed: list[str], denied: list[str]
) -> None:
    with user_with(node, name, permissions) as client:
        database = client.use(name, "secret", "mary")
        for key in allowed:
            assert client.request(m.GET, database, key).status == 0, key
        for key in denied:
            refused(client.request(m.GET, database, key), PermissionDenied)


@pytest.mark.parametrize("kind", "rwix")
def test_each_kind_opens_its_own_requests_and_no_other(node: Node, name: str, kind: str) -> None:
    with user_with(node, name, f"{kind} k*") as client:
        database = client.use(name, "secret", "mary")
        for needed, requests in attempts(database, "k1").items():
            for request in requests:
                reply = client.request(*request)
                assert reply.status == (0 if needed == kind else PermissionDenied.code), (
                    needed,
                    request,
                    reply,
                )
        for requests in attempts(database, "other").values():
            for request in requests:
                refused(client.request(*request), PermissionDenied)


def test_one_forbidden_key_refuses_a_batch_whole(node: Node, name: str) -> None:
    with user_with(node, name, "rw mine*") as client:
        database = client.use(name, "secret", "mary")
        payload = pack([["mine1", "theirs", "mine2"], ["1", "2", "3"]])
        refused(client.write(m.SET_MANY, database, payload), PermissionDenied)
        kinds = bytes([m.SET] * 3)
        refused(client.write(m.BATCH, database, False, kinds, payload, None), PermissionDenied)
        assert client.request(m.GET_MANY, database, ["mine1", "mine2"]).value() == [None, None]


def test_lists_and_watches_show_only_what_may_be_read(node: Node, name: str) -> None:
    with nun.Client(node.address, **ADMIN) as admin, user_with(node, name, "r mine*") as client:
        database = client.use(name, "secret", "mary")
        watch = client.request(m.WATCH, database, m.WATCH_ALL, "", None, 10**6).value()
        admin.database(name, token="t").set_many({"mine1": "1", "theirs": "2", "mine2": "3"})
        admin.create_user(name, "eve", "s")
        admin.database(name, token="t").set("mine3", "last")
        seen: list[bytes] = []
        while b"mine3" not in seen:
            message = client.events.pop(0) if client.events else client.receive()
            assert message[:2] == [m.EVENTS, watch]
            seen += [event[1] for event in nun.codec.unpack(message[2])[1]]
        assert seen == [b"mine1", b"mine2", b"mine3"]
        keys = client.request(m.KEYS, database, "", 100, None).value()[0]
        assert keys == [b"mine1", b"mine2", b"mine3"]


def test_a_change_of_permissions_holds_at_once(node: Node, name: str) -> None:
    with nun.Client(node.address, **ADMIN) as admin, user_with(node, name, "rw *") as client:
        database = client.use(name, "secret", "mary")
        client.write(m.SET, database, "k", "1", None).value()
        admin.set_permissions(name, "mary", "r *")
        refused(client.write(m.SET, database, "k", "2", None), PermissionDenied)
        assert client.request(m.GET, database, "k").value()[12:] == b"1"


def test_system_keys_are_for_administrators(node: Node, name: str) -> None:
    with connect(node.address, None, None) as client:
        database = client.use(name, "t")
        for key in ("$$token", "$$user_mary", "$$anything"):
            for requests in attempts(database, key).values():
                for request in requests:
                    assert client.request(*request).status in (
                        PermissionDenied.code,
                        BadRequest.code,
                    ), (key, request)
        assert client.request(m.KEYS, database, "$$", 100, None).value()[0] == []
        assert client.request(m.KEYS, database, "", 100, None).value()[0] == []
        assert client.request(m.GET, database, "$connections").value() is not None


def test_administration_needs_an_administrator(node: Node, name: str) -> None:
    with connect(node.address, None, None) as client:
        client.use(name, "t")
        for request in (
            (m.CREATE_DATABASE, 0, "mine", "t", {}),
            (m.ALTER_DATABASE, 0, name, "t2", {}),
            (m.DROP_DATABASE, 0, name),
            (m.DATABASES,),
            (m.CREATE_USER, 0, name, "eve", "t"),
            (m.DROP_USER, 0, name, "eve"),
            (m.SET_PERMISSIONS, 0, name, "eve", "r *"),
            (m.SNAPSHOT, None, False),
            (m.STATUS,),
        ):
            refused(client.request(*request), PermissionDenied)


def test_a_database_that_is_dropped_is_gone_for_all(node: Node, name: str) -> None:
    with connect(node.address, None, None) as client:
        database = client.use(name, "t")
        client.write(m.SET, database, "k", "old", None).value()
        watch = client.request(m.WATCH, database, m.WATCH_ALL, "", None, 10**6).value()
        with nun.Client(node.address, **ADMIN) as admin:
            admin.drop_database(name)
            message = client.events.pop(0) if client.events else client.receive()
            assert message[:3] == [m.WATCH_ENDED, watch, NoSuchDatabase.code]
            refused(client.request(m.GET, database, "k"), NoSuchDatabase)
            refused(client.write(m.SET, database, "k", "new", None), NoSuchDatabase)
            admin.create_database(name, token="t")
        again = client.use(name, "t")
        assert again != database
        assert client.request(m.GET, again, "k").value() is None
        refused(client.request(m.GET, database, "k"), NoSuchDatabase)


def test_a_dropped_users_token_opens_nothing(node: Node, name: str) -> None:
    with user_with(node, name, "rw *"):
        pass
    with nun.Client(node.address, **ADMIN) as admin:
        admin.drop_user(name, "mary")
    with connect(node.address, None, None) as client:
        refused(client.request(m.USE, name, "mary", "secret"), AuthError)


# Sessions


def test_a_stolen_token_is_no_use_on_another_connection(node: Node, name: str) -> None:
    with connect(node.address) as victim, connect(node.address, None, None) as thief:
        database = victim.use(name, "t")
        thief.token = victim.token
        refused(thief.request(m.GET, database, "k"), SessionUnknown)
        refused(thief.write(m.SET, database, "k", "stolen", None), SessionUnknown)
        assert victim.request(m.GET, database, "k").value() is None


def test_a_chosen_routing_id_takes_nothing_over(node: Node, name: str) -> None:
    """A thief that takes the victim's routing id gets neither its session nor its replies."""
    routing_id = b"victim-%s" % name.encode()
    with connect(node.address, routing_id=routing_id) as victim:
        database = victim.use(name, "t")
        victim.write(m.SET, database, "k", "1", None).value()
        with RawClient(node.address, routing_id=routing_id) as thief:
            for token in (0, None, 1, b"", victim.token + 1):
                thief.send(m.SET, token, 50, 0, database, "k", "stolen", None)
            for _ in range(20):
                victim.write(m.SET, database, "k", "2", None).value()
                assert victim.request(m.GET, database, "k").value()[12:] == b"2"
            got = thief.receive(0.2)
            assert got is None or got[0] == SessionUnknown.code, f"the thief was sent {got}"
        assert victim.request(m.GET, database, "k").value()[12:] == b"2"


def test_a_thief_with_routing_id_and_token_is_kept_out_while_the_victim_is_there(
    node: Node, name: str
) -> None:
    routing_id = b"both-%s" % name.encode()
    with connect(node.address, routing_id=routing_id) as victim:
        database = victim.use(name, "t")
        with RawClient(node.address, routing_id=routing_id) as thief:
            thief.send(m.SET, victim.token, 77, 0, database, "k", "stolen", None)
            assert victim.request(m.GET, database, "k").value() is None
            assert thief.receive(0.2) is None


def test_a_routing_id_that_is_used_again_inherits_no_session(node: Node, name: str) -> None:
    routing_id = b"again-%s" % name.encode()
    victim = connect(node.address, routing_id=routing_id)
    database = victim.use(name, "t")
    token = victim.token
    victim.close()

    def heard() -> RawClient | None:
        """Until ZeroMQ has noticed that the victim is gone, it hears nobody else with its routing id, for good."""
        other = RawClient(node.address, routing_id=routing_id)
        other.send(m.GET, 0, other.next_number(), database, "k")
        if other.receive(1.0) is not None:
            return other
        other.close()
        return None

    with wait_until(heard, "the victim's connection to end") as other:
        for guess in (0, 1, token + 1):
            other.token = guess
            refused(other.request(m.GET, database, "k"), SessionUnknown)
        other.hello(None, None).value()
        refused(other.request(m.GET, database, "k"), AuthError)


# CURVE and where a node may listen


def curve_settings() -> tuple[dict[str, dict[str, Any]], bytes]:
    public, secret = zmq.curve_keypair()
    keys = {"curve_public_key": public.decode(), "curve_secret_key": secret.decode()}
    return {"security": keys}, public


def test_with_curve_keys_only_their_holders_enter(start_node: Callable[..., Node]) -> None:
    settings, public = curve_settings()
    node = start_node(settings)
    other_public, _ = zmq.curve_keypair()
    with RawClient(node.address) as plain:
        plain.send(m.HELLO, 1, 1, b"c", None, "nun", "nun-pwd")
        assert plain.receive(1.0) is None, "a NULL peer was answered"
    with RawClient(node.address, curve=(other_public, *zmq.curve_keypair())) as wrong:
        wrong.send(m.HELLO, 1, 1, b"c", None, "nun", "nun-pwd")
        assert wrong.receive(1.0) is None, "a peer with a wrong server key was answered"
    with RawClient(node.address, curve=(public, *zmq.curve_keypair())) as right:
        assert right.hello("nun", "nun-pwd").status == 0
    with nun.Client(node.address, **ADMIN, server_key=public.decode()) as client:
        client.create_database("d", token="t")
        assert client.database("d", token="t").set("k", "v").version == 1


def start_expecting_refusal(node: Node) -> str:
    node.launch()
    assert node.wait_exit() == 2, node.tail()
    assert "Traceback" not in node.tail()
    return node.tail()


def test_beyond_loopback_only_with_curve_and_a_password_of_its_own(tmp_path: Any) -> None:
    settings, _ = curve_settings()
    open_address = {"listen": "tcp://0.0.0.0:0"}
    password = {"admin_password": "long and own"}
    for number, security in enumerate(({}, password, settings["security"])):
        node = Node(tmp_path / str(number), {"network": open_address, "security": security})
        text = start_expecting_refusal(node)
        assert "listen" in text or "curve" in text or "admin_password" in text, text
        node.close()


def test_insecure_says_so_and_may_listen_anywhere(tmp_path: Any) -> None:
    node = Node(tmp_path, {"security": {"insecure": True}})
    text = node.config.read_text().replace("tcp://127.0.0.1", "tcp://0.0.0.0")
    node.config.write_text(text)
    with node, connect(node.address) as client:
        assert client.request(m.PING, None).status == 0


# Limits


@pytest.fixture
def admin(node: Node, name: str) -> Iterator[tuple[RawClient, int]]:
    with connect(node.address) as client:
        yield client, client.use(name, "t")


def too_large(reply: Reply, limit: str) -> None:
    fields = refused(reply, TooLarge)
    assert fields["limit"].decode().upper() == limit
    assert fields["bound"] == getattr(limits, limit)
    assert fields["found"] > fields["bound"]


def test_a_key_of_4_kib_and_no_more(admin: tuple[RawClient, int]) -> None:
    client, database = admin
    good, bad = "k" * limits.KEY_BYTES_MAX, "k" * (limits.KEY_BYTES_MAX + 1)
    assert client.write(m.SET, database, good, "v", None).value() == 1
    for request in (
        (m.SET, database, bad, "v", None),
        (m.REMOVE, database, bad, None),
        (m.INCREMENT, database, bad, 1),
        (m.SET_MANY, database, pack([["a", bad], ["1", "2"]])),
        (m.BATCH, database, True, bytes([m.SET]), pack([[bad], ["1"]]), None),
    ):
        too_large(client.write(*request), "KEY_BYTES_MAX")


def test_a_value_of_16_mib_and_no_more(admin: tuple[RawClient, int]) -> None:
    client, database = admin
    good = bytes(limits.VALUE_BYTES_MAX)
    assert client.write(m.SET, database, "k", good, None).value() == 1
    packed = client.request(m.GET, database, "k").value()
    assert packed[12:] == good
    too_large(client.write(m.SET, database, "k", good + b"x", None), "VALUE_BYTES_MAX")
    payload = pack([["a", "b"], [good + b"x", "2"]])
    too_large(client.write(m.SET_MANY, database, payload), "VALUE_BYTES_MAX")


def test_a_batch_of_100000_operations_and_no_more(admin: tuple[RawClient, int]) -> None:
    client, database = admin
    keys = [str(i) for i in range(limits.BATCH_OPERATIONS_MAX + 1)]
    good, bad = pack([keys[1:], keys[1:]]), pack([keys, keys])
    assert client.write(m.SET_MANY, database, good).status == 0
    too_large(client.write(m.SET_MANY, database, bad), "BATCH_OPERATIONS_MAX")
    kinds = bytes([m.SET]) * len(keys)
    too_large(client.write(m.BATCH, database, False, kinds, bad, None), "BATCH_OPERATIONS_MAX")


def test_a_batch_of_64_mib_and_no_more(admin: tuple[RawClient, int]) -> None:
    client, database = admin
    value = bytes(limits.VALUE_BYTES_MAX)
    payload = pack([[f"k{i}" for i in range(4)], [value] * 4])
    assert len(payload) > limits.BATCH_BYTES_MAX
    too_large(client.write(m.SET_MANY, database, payload), "BATCH_BYTES_MAX")
    assert client.request(m.GET, database, "k0").value() is None


def test_a_frame_above_the_message_limit_ends_the_link_and_nothing_else(node: Node) -> None:
    with connect(node.address) as other:
        with connect(node.address) as client:
            client.socket.send(bytes(limits.MESSAGE_BYTES_MAX + 1))
            assert client.receive(0.5) is None
        assert other.request(m.PING, None).status == 0


def test_sessions_and_watches_are_counted(start_node: Callable[..., Node]) -> None:
    bounds = {"sessions_max": 3, "watches_per_session_max": 4, "watches_max": 6, "databases_max": 2}
    node = start_node({"limits": bounds})
    with connect(node.address) as one, connect(node.address) as two:
        one.write(m.CREATE_DATABASE, "d", "t", {}).value()
        one.write(m.CREATE_DATABASE, "e", "t", {}).value()
        reply = one.write(m.CREATE_DATABASE, "f", "t", {})
        assert reply.status in (Overloaded.code, TooLarge.code)
        assert reply.result[1][b"limit"] == b"databases_max"
        for client in (one, two):
            client.use("d", "t")
        watch = (m.WATCH, 1, m.WATCH_KEY, "k", None, 1000)
        watches = [one.request(*watch).value() for _ in range(4)]
        fields = refused(one.request(*watch), Overloaded)
        assert fields["limit"] == b"watches_per_session_max"
        for _ in range(2):
            two.request(*watch).value()
        assert refused(two.request(*watch), Overloaded)["limit"] == b"watches_max"
        assert one.request(m.UNWATCH, watches[0]).value() is True
        two.request(*watch).value()
        with connect(node.address), RawClient(node.address) as fourth:
            assert refused(fourth.hello(), Overloaded)["limit"] == b"sessions_max"
        assert one.request(m.PING, None).status == 0
        one.request(m.BYE).value()
        with RawClient(node.address) as fifth:
            assert fifth.hello().status == 0


def test_malformed_requests_name_what_was_expected(admin: tuple[RawClient, int]) -> None:
    client, database = admin
    for request in (
        (m.SET, 0, database, "", "v", None),
        (m.SET, 0, database, "k", 5, None),
        (m.SET, 0, database, b"\xff", "v", None),
        (m.SET, 0, database, "k", "v", [m.ON_VERSION, -5, False]),
        (m.SET, 0, database, "k", "v", [m.IF_VERSION, -2, False]),
        (m.SET, 0, database, "k", "v", [m.ON_VERSION, 2**31, False]),
        (m.SET, 0, database, "k", "v", [9, 1, False]),
        (m.SET, 0, database, "k", "v", "condition"),
        (m.SET, -1, database, "k", "v", None),
        (m.INCREMENT, 0, database, "k", 2**63),
        (m.INCREMENT, 0, database, "k", "1"),
        (m.SET_MANY, 0, database, pack([["a"], []])),
        (m.SET_MANY, 0, database, b"\xc1"),
        (m.BATCH, 0, database, 1, bytes([m.SET]), pack([["k"], ["v"]]), None),
        (m.BATCH, 0, database, True, bytes([m.WATCH]), pack([["k"], ["v"]]), None),
        (m.BATCH, 0, database, True, bytes([m.SET]), pack([["k"], ["v"]]), {5: [1, 1, False]}),
        (m.KEYS, database, "k", 0, None),
        (m.WATCH, database, 9, "k", None, 1),
        (m.WATCH, database, m.WATCH_KEY, "k", [1, 2], 1),
        (m.WATCH, database, m.WATCH_KEY, "k", None, 0),
        (99,),
        (m.GET, database),
    ):
        refused(client.request(*request), BadRequest)
    assert client.request(m.KEYS, database, "", 10, None).value()[0] == []
