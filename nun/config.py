"""The configuration of a node: a TOML file, overrides, environment; checked once, frozen, handed down explicitly.

Every problem is found before any is reported, each with the key, the value found and what was expected. Only the
supervisor checks (with pydantic); the other processes get plain values and build the same dataclasses from them.

I1  A value that is used was written by somebody or is a default of this file: no text is taken for a number, no number
    for a truth value. Sizes alone have a notation of their own: a number of bytes, or a text such as "16MiB".
I2  No problem shows a secret.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

from annotated_types import Ge, Le, Len

from nun import limits
from nun.errors import ConfigError

SAMPLE_PASSWORD: Final = "nun-pwd"
_SIZE = re.compile(r"(\d{1,15})\s*(B|KiB|MiB|GiB|TiB)?\Z", re.ASCII)
_SIZE_UNITS: Final = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_LISTEN = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+|\*):(\d{1,5})\Z", re.ASCII)
_SECRETS: Final = ("admin_password", "curve_secret_key")

# A node's name stands in logs, in files' contents and on command lines.
# It may be an address: those of NunDB's clusters are.
_NAME: Final = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]*\Z")
_CURVE_KEY_LENGTH: Final = 40
_EVERYWHERE: Final = ("*", "0.0.0.0", "::")  # hosts to listen on, that nobody can connect to

_PLAIN: Final = {  # pydantic's words, and those of this file
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid integer": "a whole number",
}

Text = Annotated[str, Len(1, 200)]
Count = Annotated[int, Ge(1), Le(2**40)]
Bytes = Annotated[int, Ge(4_096), Le(2**44)]


@dataclass(frozen=True)
class NodeConfig:
    """Who this node is and where its files are."""

    name: Text = "node1"
    data_dir: Annotated[str, Len(1, 4_096)] = "data/node1"


@dataclass(frozen=True)
class NetworkConfig:
    """Where clients reach it, and how eagerly it waits for them."""

    listen: Text = "tcp://127.0.0.1:5701"
    advertise: str = ""  # empty: as `listen`
    spin_us: Annotated[int, Ge(0), Le(10_000)] = 300


@dataclass(frozen=True)
class StorageConfig:
    """How writes are kept."""

    fsync: Literal["always", "interval", "never"] = "always"
    fsync_interval_ms: Annotated[int, Ge(1), Le(60_000)] = 100
    segment_bytes: Annotated[int, Ge(4_096), Le(2**31)] = 16 * limits.MIB
    oplog_bytes: Bytes = 1024 * limits.MIB
    snapshot_interval_s: Annotated[float, Ge(0), Le(10_000_000)] = 300.0
    snapshot_log_bytes: Bytes = 256 * limits.MIB
    reclaim_ratio: Annotated[float, Ge(0), Le(1)] = 0.5
    tombstone_retention_s: Annotated[float, Ge(0), Le(10_000_000_000)] = 86_400.0
    damage: Literal["refuse", "keep-prefix"] = "refuse"


@dataclass(frozen=True)
class ReplicationConfig:
    """Which other nodes there are, and how far a write goes before it is answered."""

    coordinator: Literal["static"] = "static"
    listen: str = ""  # empty: this node is on its own
    publish: str = ""
    advertise: str = ""  # empty: as `publish`
    primary: str = ""
    peers: dict[str, str] = field(default_factory=dict)
    ack: Literal["primary", "local", "majority", "all"] | Annotated[int, Ge(1), Le(1_022)] = (
        "primary"
    )
    min_replicas: Annotated[int, Ge(0), Le(1_022)] = 0
    max_clock_offset_ms: Annotated[int, Ge(1), Le(3_600_000)] = 500
    echo_above: Annotated[int, Ge(1), Le(limits.BATCH_BYTES_MAX)] = 4_096
    check_interval_s: Annotated[float, Ge(0), Le(10_000_000)] = 3_600.0
    curve_public_key: str = ""
    curve_secret_key: str = ""
    peer_public_keys: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ConflictsConfig:
    """What becomes of conflicts in databases that do not say so themselves, and how many there may be."""

    no_arbiter: Literal["queue", "reject"] = "queue"
    timeout_s: Annotated[float, Ge(0), Le(limits.CONFLICT_TIMEOUT_S_MAX)] = 0.0  # 0: for ever
    fallback: Literal["keep", "newer", "older"] = "keep"
    close_calls: Literal["op_id", "arbiter"] = "op_id"
    resolved_retention_s: Annotated[float, Ge(0), Le(10_000_000_000)] = 604_800.0
    per_key_warn: Count = limits.CONFLICTS_PER_KEY_WARN
    per_key_max: Count = limits.CONFLICTS_PER_KEY_MAX
    per_key_bytes_max: Bytes = limits.CONFLICT_BYTES_PER_KEY_MAX
    conflicts_max: Count = limits.CONFLICTS_MAX
    bytes_max: Bytes = limits.CONFLICT_BYTES_MAX


@dataclass(frozen=True)
class GatewayConfig:
    """Where NunDB's clients are served; empty: they are not."""

    tcp: str = ""
    http: str = ""
    websocket: str = ""
    advertise: str = ""  # empty: other nodes call this one by its name
    connections_max: Count = limits.GATEWAY_CONNECTIONS_MAX
    local_writes: bool = True
    keepalive_s: Annotated[float, Ge(1), Le(86_400)] = 60.0


@dataclass(frozen=True)
class SecurityConfig:
    """Who may administer it, and the keys that encrypt the client socket."""

    admin_user: Text = "nun"
    admin_password: Annotated[str, Len(1, limits.SECRET_BYTES_MAX)] = SAMPLE_PASSWORD
    curve_public_key: str = ""
    curve_secret_key: str = ""
    insecure: bool = False


@dataclass(frozen=True)
class LimitsConfig:
    """Bounds that an operator may set; see nun/limits.py."""

    sessions_max: Count = limits.SESSIONS_MAX
    watches_max: Count = limits.WATCHES_MAX
    watches_per_session_max: Count = limits.WATCHES_PER_SESSION_MAX
    unread_bytes_max: Count = limits.UNREAD_BYTES_MAX
    pending_bytes_max: Count = limits.PENDING_BYTES_MAX
    request_rows_bytes_max: Count = limits.REQUEST_ROWS_BYTES_MAX
    databases_max: Count = limits.DATABASES_MAX


@dataclass(frozen=True)
class LogConfig:
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "pretty"] = "json"


@dataclass(frozen=True)
class Config:
    """A node's whole configuration, one attribute a table of the file."""

    node: NodeConfig = field(default_factory=NodeConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    replication: ReplicationConfig = field(default_factory=ReplicationConfig)
    conflicts: ConflictsConfig = field(default_factory=ConflictsConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    log: LogConfig = field(default_factory=LogConfig)


_TABLES: Final[dict[str, Any]] = {
    "node": NodeConfig,
    "network": NetworkConfig,
    "storage": StorageConfig,
    "replication": ReplicationConfig,
    "conflicts": ConflictsConfig,
    "gateway": GatewayConfig,
    "security": SecurityConfig,
    "limits": LimitsConfig,
    "log": LogConfig,
}


def load_config(
    path: Path | str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """Reads and checks a configuration.

    Args:
        path: the TOML file.
        overrides: `section.key=value` each, the value as in the file; quotes around a text may be left out.
        environ: NUN_USER and NUN_PWD in it name the administrator, over all else.

    Raises:
        ConfigError: lists every problem.
    """
    problems: list[str] = []
    document = _read(Path(path), problems)
    for override in overrides:
        _override(document, override, problems)
    for variable, key in (("NUN_USER", "admin_user"), ("NUN_PWD", "admin_password")):
        value = (environ or {}).get(variable)
        if value:
            _put(document, "security", key, value)
    return _checked(document, problems)


def check_config(document: Mapping[str, Mapping[str, Any]]) -> Config:
    """Checks a configuration that is made of tables instead of read. Raises ConfigError as `load_config` does."""
    return _checked({name: dict(table) for name, table in document.items()}, [])


def _checked(document: dict[str, Any], problems: list[str]) -> Config:
    _check_names(document, problems)
    config, wrong = _validated(document, problems)
    _check_meaning(config, wrong, problems)
    if problems:
        raise ConfigError(problems)
    return config


def config_to_plain(config: Config) -> dict[str, Any]:
    """Plain values that `config_from_plain` makes the same configuration from."""
    return asdict(config)


def config_from_plain(plain: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration that `config_to_plain` took apart; it was checked before."""
    return Config(**{name: _TABLES[name](**table) for name, table in plain.items()})


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}), expected a TOML file")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: byte {error.start} is not UTF-8, expected a TOML file")
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: is not TOML: {error}")  # it names line and column
    return {}


def _override(document: dict[str, Any], override: str, problems: list[str]) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        # What stands there may be a secret that was put in the wrong place: only the name is shown.
        shown = f"{name}=..." if equals else repr(name)
        problems.append(f"--set: found {shown}, expected section.key=value")
        return
    text = text.strip()
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if not isinstance(value, str) and _is_text(section, key):
        value = text  # admin_password=1234 means the text
    _put(document, section, key, value)


def _is_text(section: str, key: str) -> bool:
    return section in _TABLES and get_type_hints(_TABLES[section]).get(key) is str


def _put(document: dict[str, Any], section: str, key: str, value: Any) -> None:
    table = document.setdefault(section, {})
    if isinstance(table, dict):  # what else it may be is reported as such
        table[key] = value


def _check_names(document: dict[str, Any], problems: list[str]) -> None:
    """Reports unknown tables and keys, and takes them out."""
    for section in list(document):
        table = document[section]
        if section not in _TABLES:
            kind = "table" if isinstance(table, dict) else "key outside of any table"
            problems.append(f"{section}: unknown {kind}{_nearest(section, _TABLES)}")
            del document[section]
            continue
        if not isinstance(table, dict):
            problems.append(
                f"{section}: found {type(table).__name__}, expected a table [{section}]"
            )
            del document[section]
            continue
        known = [item.name for item in fields(_TABLES[section])]
        for key in list(table):
            if key not in known:
                problems.append(f"{section}.{key}: unknown key{_nearest(key, known)}")
                del table[key]
            elif "_bytes" in key:
                table[key] = _size(table[key])


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f", expected one of {', '.join(names)}"


def _size(value: Any) -> Any:
    match = _SIZE.match(value) if isinstance(value, str) else None
    return int(match[1]) * _SIZE_UNITS[match[2]] if match else value


def _validated(document: dict[str, Any], problems: list[str]) -> tuple[Config, set[str]]:
    """The configuration with defaults in place of what is wrong, and the names of the keys that are."""
    from pydantic import TypeAdapter, ValidationError

    tables: dict[str, Any] = {}
    wrong: set[str] = set()
    for section, kind in _TABLES.items():
        types = get_type_hints(kind, include_extras=True)
        checked = {}
        for key, value in document.get(section, {}).items():
            try:
                checked[key] = TypeAdapter(types[key]).validate_python(value, strict=True)
            except ValidationError as error:
                messages = [found["msg"] for found in error.errors(include_url=False)]
                expected = ", or ".join(_expected(key, types[key], text) for text in messages)
                problems.append(f"{section}.{key}: found {_shown(key, value)}, expected {expected}")
                wrong.add(f"{section}.{key}")
        tables[section] = kind(**checked)
    return Config(**tables), wrong


def _expected(key: str, kind: Any, message: str) -> str:
    """What a key takes, in words; pydantic's own where no range says more."""
    bounds = {type(item): item for item in getattr(kind, "__metadata__", ())}
    if Ge in bounds and Le in bounds:
        number = "a whole number" if kind.__origin__ is int else "a number"
        notation = ' (or a size such as "16MiB")' if "_bytes" in key else ""
        return f"{number}{notation} from {bounds[Ge].ge} to {bounds[Le].le}"
    if Len in bounds:
        length = bounds[Len]
        return f"a text of {length.min_length} to {length.max_length} characters"
    message = message.removeprefix("Input should be ")
    for technical, plain in _PLAIN.items():
        message = message.replace(technical, plain)
    return message


def _shown(key: str, value: Any) -> str:
    return "***" if key in _SECRETS else repr(value)


def _check_meaning(config: Config, wrong: set[str], problems: list[str]) -> None:
    """What no single key's type can show."""
    if "node.name" not in wrong and not _NAME.match(config.node.name):
        problems.append(
            f"node.name: found {config.node.name!r}, expected letters, digits and . _ - : [ ] "
            "(a letter, digit or [ first)"
        )
    storage = config.storage
    sizes_known = not wrong & {"storage.oplog_bytes", "storage.segment_bytes"}
    if sizes_known and storage.oplog_bytes < 2 * storage.segment_bytes:
        problems.append(
            f"storage.oplog_bytes: found {storage.oplog_bytes}, expected at least two segments, "
            f"{2 * storage.segment_bytes} (storage.segment_bytes is {storage.segment_bytes})"
        )
    _check_curve_keys(config.security, wrong, problems)
    if "network.listen" not in wrong:
        _check_listen(config, wrong, problems)
    if config.gateway.advertise and "gateway.advertise" not in wrong:
        _check_gateway_advertised(config.gateway.advertise, problems)
    for key in ("tcp", "http", "websocket"):
        if f"gateway.{key}" not in wrong:
            _check_gateway(config, key, problems)
    if not any(name.startswith("replication.") for name in wrong):
        _check_replication(config, problems)


def _check_gateway(config: Config, key: str, problems: list[str]) -> None:
    """NunDB's clients speak in clear: beyond loopback only where that is said to be meant."""
    address: str = getattr(config.gateway, key)
    if not address:
        return
    try:
        host, _ = host_and_port(address)
    except ValueError:
        problems.append(f"gateway.{key}: found {address!r}, expected 'host:port' or '' for off")
        return
    if not _is_loopback(host) and not config.security.insecure:
        problems.append(
            f"gateway.{key}: found {address!r}, which is beyond loopback, where NunDB's clients send tokens in clear; "
            "expected a loopback address, or security.insecure = true"
        )


def _check_gateway_advertised(address: str, problems: list[str]) -> None:
    try:
        host, _ = host_and_port(address)
    except ValueError:
        host = "*"
    if host in _EVERYWHERE:
        problems.append(
            f"gateway.advertise: found {address!r}, expected 'host:port' that others can connect to"
        )


def host_and_port(address: str) -> tuple[str, int]:
    """Reads `host:port`, `[v6]:port`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def _check_replication(config: Config, problems: list[str]) -> None:
    """A node of a cluster: addresses, names and keys that fit together."""
    replication = config.replication
    if not replication.listen:
        problems.extend(
            f"replication.{name}: found {getattr(replication, name)!r} without replication.listen, "
            "expected both or neither"
            for name in ("publish", "primary", "peers")
            if getattr(replication, name)
        )
        return
    addresses = {
        "replication.listen": replication.listen,
        "replication.publish": replication.publish,
    }
    problems.extend(
        f"{name}: found {address!r}, expected tcp://HOST:PORT, PORT from 1 to 65535"
        for name, address in addresses.items()
        if _host(address) is None
    )
    used = [config.network.listen, *addresses.values()]
    if len({*used}) < len(used):
        problems.append(
            "replication.listen, replication.publish, network.listen: found the same address twice, "
            "expected three different ones"
        )
    _check_peers(config, problems)
    _check_advertised("network", config.network.listen, config.network.advertise, problems)
    _check_advertised("replication", replication.publish, replication.advertise, problems)
    _check_node_keys(config, problems)


def _check_peers(config: Config, problems: list[str]) -> None:
    replication = config.replication
    names = {config.node.name, *replication.peers}
    if replication.primary not in names:
        problems.append(
            f"replication.primary: found {replication.primary!r}, expected one of "
            f"{', '.join(sorted(names))}"
        )
    taken = {replication.listen: "replication.listen"}
    for name, address in replication.peers.items():
        key = f"replication.peers.{name}"
        if name == config.node.name or not _NAME.match(name):
            problems.append(
                f"replication.peers: found the name {name!r}, expected the names of the other nodes"
            )
        host = _host(address)
        if host is None or host in _EVERYWHERE:
            problems.append(
                f"{key}: found {address!r}, expected tcp://HOST:PORT that this node can connect to"
            )
        elif address in taken:
            problems.append(
                f"{key}: found {address!r}, the address of {taken[address]} too, "
                "expected one of its own"
            )
        taken[address] = key
    for name in ("ack", "min_replicas"):
        count = getattr(replication, name)
        if isinstance(count, int) and count > len(replication.peers):
            problems.append(
                f"replication.{name}: found {count}, expected at most {len(replication.peers)}, "
                "for there are no more peers"
            )


def _check_advertised(table: str, bound: str, advertised: str, problems: list[str]) -> None:
    """What other nodes and clients are told of an address has to be one that they can connect to."""
    if advertised:
        host = _host(advertised)
        if host is None or host in _EVERYWHERE:
            problems.append(
                f"{table}.advertise: found {advertised!r}, expected tcp://HOST:PORT that others can "
                "connect to"
            )
    elif _host(bound) in _EVERYWHERE:
        problems.append(
            f"{table}.advertise: found nothing beside {bound!r}, expected the tcp://HOST:PORT under "
            "which others reach it"
        )


def _check_node_keys(config: Config, problems: list[str]) -> None:
    replication = config.replication
    public, secret = replication.curve_public_key, replication.curve_secret_key
    if public or secret:
        _check_key_pair("replication", public, secret, problems)
        for name in replication.peers:
            key = replication.peer_public_keys.get(name, "")
            if len(key) != _CURVE_KEY_LENGTH or not key.isascii():
                problems.append(
                    f"replication.peer_public_keys.{name}: found {key!r}, expected the public key "
                    f"of {_CURVE_KEY_LENGTH} characters of that peer"
                )
        return
    for name in ("listen", "publish"):
        host = _host(getattr(replication, name))
        if host is not None and not _is_loopback(host) and not config.security.insecure:
            problems.append(
                f"replication.{name}: found {getattr(replication, name)!r} without "
                "replication.curve_public_key, expected a loopback address, keys from `nun keygen`, "
                "or security.insecure = true"
            )


def _check_curve_keys(security: SecurityConfig, wrong: set[str], problems: list[str]) -> None:
    public, secret = security.curve_public_key, security.curve_secret_key
    if wrong & {"security.curve_public_key", "security.curve_secret_key"} or not (public or secret):
        return
    _check_key_pair("security", public, secret, problems)


def _check_key_pair(table: str, public: str, secret: str, problems: list[str]) -> None:
    malformed = False
    for name, key in (("curve_public_key", public), ("curve_secret_key", secret)):
        if not key:
            problems.append(
                f"{table}.{name}: found nothing beside the other key, expected both keys of one pair"
            )
            malformed = True
        elif len(key) != _CURVE_KEY_LENGTH or not key.isascii():
            problems.append(
                f"{table}.{name}: found {_shown(name, key)} of {len(key)} characters, "
                f"expected the {_CURVE_KEY_LENGTH} that `nun keygen` prints"
            )
            malformed = True
    if not malformed and _curve_public(secret) != public:
        problems.append(
            f"{table}.curve_public_key: found {public!r}, which does not belong to "
            f"{table}.curve_secret_key, expected both keys of one pair"
        )


def _curve_public(secret: str) -> str | None:
    """The public key of a secret one, None when it is none."""
    import zmq

    try:
        return zmq.curve_public(secret.encode()).decode()
    except (ValueError, zmq.ZMQError):
        return None


def _check_listen(config: Config, wrong: set[str], problems: list[str]) -> None:
    listen, security = config.network.listen, config.security
    host = _host(listen)
    if host is None:
        problems.append(
            f"network.listen: found {listen!r}, expected tcp://HOST:PORT, HOST an address, "
            "an interface or *, PORT from 1 to 65535"
        )
        return
    if _is_loopback(host) or security.insecure or "security.insecure" in wrong:
        return
    if not security.curve_secret_key and "security.curve_secret_key" not in wrong:
        problems.append(
            f"network.listen: found {listen!r} without CURVE keys, expected a loopback address, "
            "keys from `nun keygen`, or security.insecure = true"
        )
    if security.admin_password == SAMPLE_PASSWORD and "security.admin_password" not in wrong:
        problems.append(
            f"security.admin_password: found the sample password with network.listen = {listen!r}, "
            "expected one of your own, or security.insecure = true"
        )


def _host(address: str) -> str | None:
    match = _LISTEN.match(address)
    if match is None or not 1 <= int(match[2]) <= 65_535:
        return None
    return match[1].strip("[]")


def _is_loopback(host: str) -> bool:
    if host in ("localhost", "lo"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
