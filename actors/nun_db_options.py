"""What NunDB's environment variables say, and the configuration of a node that follows from it.

    TCP address 127.0.0.1:3014     clients of NunDB, and the question who is the oldest (actors/first_primary.py)
    + 10000     127.0.0.1:13014    clients of Nun; always on the loopback interface
    + 11100     HOST:14114         requests of other nodes     } only with peers; HOST as in the TCP address,
    + 12300     HOST:15314         the op stream to them       } encrypted, and only for those that know the password

The distances are such that nodes whose TCP ports lie a round number apart do not meet. NUN_ZMQ_PORT_OFFSET moves all
three (10000 by default); it has to be the same on all nodes of a cluster.

I1  A node's name is its address as the others know it: it is what `cluster-state` prints and `nun promote` takes.
I2  All nodes of a cluster know the administrator's password. The key pair of the links between them is made from it, so
    that they are encrypted, and closed to everybody else, without any key to hand out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from nun.errors import ConfigError

CLIENTS: Final = 0  # above the offset
NODES: Final = 1_100
STREAM: Final = 2_300
PORT_MAX: Final = 65_535
SMALLEST_OPLOG: Final = 8_192

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})\Z", re.ASCII)
_EVERYWHERE: Final = ("0.0.0.0", "[::]")
Level = Literal["debug", "info", "warning", "error"]

_LEVELS: Final[Mapping[str, Level]] = {
    "off": "error",  # there is nothing below it, and a node that cannot go on has to be able to say why
    "error": "error",
    "warn": "warning",
    "info": "info",
    "debug": "debug",
    "trace": "debug",
}
_STORAGE: Final = (
    "NUN_STORAGE_STRATEGY",
    "NUN_STORAGE_READ_STRATEGY",
    "NUN_STORAGE_WRITE_STRATEGY",
)
_S3: Final = ("s3", "s3_patition", "s3_partition")
_MEANINGLESS: Final = (  # and every variable of S3
    "NUN_ELECTION_TIMEOUT",
)
MISSING_ADMIN: Final = (
    "NUN_USER and NUN_PWD must be provided via command line "
    "(nun-db -u $USER -p $PWD ...) or env var."
)


class Address(NamedTuple):
    """HOST:PORT."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def bare_host(self) -> str:
        """The host as the resolver takes it."""
        return self.host.strip("[]")

    @property
    def everywhere(self) -> bool:
        return self.host in _EVERYWHERE

    def above(self, distance: int) -> str:
        """The endpoint whose port lies so far above."""
        return f"tcp://{self.host}:{self.port + distance}"


@dataclass(frozen=True)
class Options:
    """A `start`, checked.

    Attributes:
        name: how the others know this node: one of the addresses of the cluster, where that names this node.
        external: what others are told as its TCP address.
        peers: the other nodes.
        said_in_vain: the variables that are set and change nothing.
    """

    user: str
    password: str
    tcp: Address
    http: Address
    websocket: Address
    external: Address
    name: str
    peers: tuple[Address, ...]
    data_dir: str
    level: Level
    snapshot_interval_s: float
    oplog_bytes: int
    offset: int
    said_in_vain: tuple[str, ...]

    @property
    def clustered(self) -> bool:
        return bool(self.peers)


def options_from(environ: Mapping[str, str], is_here: Callable[[str], bool]) -> Options:
    """Reads the environment.

    Args:
        environ: of the process.
        is_here: whether a host is an address of this machine.

    Raises:
        ConfigError: lists every problem.
    """
    problems: list[str] = []

    def address(variable: str, default: str) -> Address:
        return _address(environ.get(variable) or default, variable, problems)

    tcp = address("NUN_TCP_ADDR", "0.0.0.0:3014")
    http = address("NUN_HTTP_ADDR", "0.0.0.0:3013")
    websocket = address("NUN_WS_ADDR", "0.0.0.0:3012")
    external = address("NUN_EXTERNAL_ADDR", str(tcp))
    words = environ.get("NUN_REPLICATE_ADDR", "").split(",")
    listed = dict.fromkeys(
        _address(word.strip(), "NUN_REPLICATE_ADDR", problems) for word in words if word.strip()
    )
    own = own_among(listed, external, tcp, is_here)
    peers = tuple(each for each in listed if each != own)
    offset = _whole(environ, "NUN_ZMQ_PORT_OFFSET", 10_000, -PORT_MAX, PORT_MAX, problems)
    options = Options(
        user=environ.get("NUN_USER", ""),
        password=environ.get("NUN_PWD", ""),
        tcp=tcp,
        http=http,
        websocket=websocket,
        external=external,
        name=str(own or external),
        peers=peers,
        data_dir=environ.get("NUN_DBS_DIR") or "dbs",
        level=_level(environ.get("NUN_LOG_LEVEL") or "Info", problems),
        snapshot_interval_s=_whole(environ, "NUN_DECLUTTER_INTERVAL", 300, 1, 10_000_000, problems),
        oplog_bytes=_whole(environ, "NUN_MAX_OP_LOG_SIZE", 2**30, 0, 2**44, problems),
        offset=offset,
        said_in_vain=tuple(
            name
            for name in sorted(environ)
            if (name in _MEANINGLESS or name.startswith("NUN_S3_")) and environ[name]
        ),
    )
    _check_ports(options, problems)
    _check_reachable(options, problems)
    problems += [
        f"{name}: found {environ[name]!r}, expected disk: data are not kept in S3"
        for name in _STORAGE
        if environ.get(name, "").lower() in _S3
    ]
    if problems:
        raise ConfigError(problems)
    return options


def own_among(
    listed: Iterable[Address], external: Address, tcp: Address, is_here: Callable[[str], bool]
) -> Address | None:
    """Which address of the cluster's list is this node; None where none is."""
    addresses = list(listed)
    for mine in (external, tcp):
        if mine in addresses:
            return mine
    same_port = [each for each in addresses if each.port in (external.port, tcp.port)]
    return next((each for each in same_port if is_here(each.bare_host)), None)


def _address(text: str, variable: str, problems: list[str]) -> Address:
    match = _ADDRESS.match(text)
    if match is None or not 1 <= int(match[2]) <= PORT_MAX:
        problems.append(f"{variable}: found {text!r}, expected HOST:PORT, PORT from 1 to 65535")
        return Address("127.0.0.1", 1)
    return Address(match[1], int(match[2]))


def _whole(
    environ: Mapping[str, str], name: str, default: int, low: int, high: int, problems: list[str]
) -> int:
    text = environ.get(name) or str(default)
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        problems.append(f"{name}: found {text!r}, expected a whole number from {low} to {high}")
        return default
    return number


def _level(text: str, problems: list[str]) -> Level:
    if text.lower() not in _LEVELS:
        problems.append(
            f"NUN_LOG_LEVEL: found {text!r}, expected Off, Error, Warn, Info, Debug or Trace"
        )
    return _LEVELS.get(text.lower(), "info")


def _check_ports(options: Options, problems: list[str]) -> None:
    """The ports that are derived from TCP addresses have to be ports, and nobody else's."""
    distances = [CLIENTS, NODES, STREAM] if options.clustered else [CLIENTS]
    for address in dict.fromkeys((options.tcp, *options.peers)):
        ports = [address.port + options.offset + distance for distance in distances]
        if not all(1 <= port <= PORT_MAX for port in ports):
            problems.append(
                f"{address}: its port and NUN_ZMQ_PORT_OFFSET = {options.offset} make "
                f"{', '.join(map(str, ports))}, expected ports from 1 to {PORT_MAX}"
            )
        taken = {options.tcp.port, options.http.port, options.websocket.port} & {*ports}
        if taken and address == options.tcp:
            problems.append(
                f"NUN_ZMQ_PORT_OFFSET: found {options.offset}, which takes port {taken.pop()} twice, "
                "expected another"
            )
    three = [options.tcp, options.http, options.websocket]
    if len({*three}) < len(three):
        problems.append(
            "NUN_TCP_ADDR, NUN_HTTP_ADDR, NUN_WS_ADDR: found the same address twice, "
            "expected three different ones"
        )


def _check_reachable(options: Options, problems: list[str]) -> None:
    if options.clustered and _parsed(options.name).everywhere:
        problems.append(
            f"--external-address: found {options.name!r}, expected HOST:PORT under which the other "
            "nodes reach this one, as they name it in their --replicate-address"
        )
    problems.extend(
        f"NUN_REPLICATE_ADDR: found {str(peer)!r}, expected addresses that can be connected to"
        for peer in options.peers
        if peer.everywhere
    )


def _parsed(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return Address(host, int(port))


def document_of(
    options: Options, data_dir: str, primary: str, bound_host: str, pretty: bool
) -> dict[str, dict[str, Any]]:
    """The tables of the node's configuration.

    Args:
        options: of the start.
        data_dir: this node's own.
        primary: the name of the first primary.
        bound_host: the host of the TCP address as a number.
        pretty: whether a person reads the log.
    """
    segment = min(16 * 2**20, max(4_096, options.oplog_bytes // 2))
    document: dict[str, dict[str, Any]] = {
        "node": {"name": options.name, "data_dir": data_dir},
        "network": {"listen": f"tcp://127.0.0.1:{options.tcp.port + options.offset + CLIENTS}"},
        "gateway": {
            "tcp": str(options.tcp),
            "http": str(options.http),
            "websocket": str(options.websocket),
            "advertise": "" if options.external.everywhere else str(options.external),
        },
        "storage": {
            "snapshot_interval_s": float(options.snapshot_interval_s),
            "oplog_bytes": max(SMALLEST_OPLOG, options.oplog_bytes),
            "segment_bytes": segment,
        },
        # NunDB's language is plain text on all interfaces by default. What is Nun's own stays on the loopback
        # interface, or is closed to who has no key.
        "security": {
            "admin_user": options.user,
            "admin_password": options.password,
            "insecure": True,
        },
        "log": {"level": options.level, "format": "pretty" if pretty else "json"},
    }
    if options.clustered:
        document["replication"] = _replication(options, primary, bound_host)
    return document


def _replication(options: Options, primary: str, bound_host: str) -> dict[str, Any]:
    nodes, stream = options.offset + NODES, options.offset + STREAM
    bound = Address(bound_host, options.tcp.port)
    public, secret = link_keys(options.user, options.password)
    return {
        "listen": bound.above(nodes),
        "publish": bound.above(stream),
        "advertise": _parsed(options.name).above(stream),
        "primary": primary,
        "peers": {str(peer): peer.above(nodes) for peer in options.peers},
        "curve_public_key": public,
        "curve_secret_key": secret,
        "peer_public_keys": {str(peer): public for peer in options.peers},
    }


def link_keys(user: str, password: str) -> tuple[str, str]:
    """The key pair of the links of a cluster, public and secret (I2)."""
    import zmq
    from zmq.utils import z85

    salt = b"nun: links between nodes: " + user.encode()
    secret = z85.encode(hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32))
    return zmq.curve_public(secret).decode(), secret.decode()
