"""The configuration of a node: a TOML file, overrides, environment; checked once, frozen, handed down explicitly.

Every problem is found before any is reported, each with the key, the value found and what was expected. Only the supervisor
checks (with pydantic); the other processes get plain values and build the same dataclasses from them.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Le, Len

from nun import limits
from nun.errors import ConfigError

SAMPLE_PASSWORD: Final = "nun-pwd"
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)?\Z")
_SIZE_UNITS: Final = {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECRETS: Final = ("admin_password", "curve_secret_key")

Text = Annotated[str, Len(1, 200)]
Count = Annotated[int, Ge(1), Le(2**40)]


@dataclass(frozen=True)
class NodeConfig:
    """Who this node is and where its files are."""

    name: Text = "node1"
    data_dir: Text = "data/node1"


@dataclass(frozen=True)
class NetworkConfig:
    """Where clients reach it."""

    listen: Text = "tcp://127.0.0.1:5701"
    spin_us: Annotated[int, Ge(0), Le(10_000)] = 300


@dataclass(frozen=True)
class StorageConfig:
    """How writes are kept."""

    fsync: Literal["always", "interval", "never"] = "always"
    fsync_interval_ms: Annotated[int, Ge(1), Le(60_000)] = 100
    segment_bytes: Annotated[int, Ge(4_096), Le(2**30)] = 16 * limits.MIB
    oplog_bytes: Annotated[int, Ge(8_192), Le(2**44)] = 1024 * limits.MIB
    snapshot_interval_s: Annotated[float, Ge(0), Le(10_000_000)] = 300.0
    snapshot_log_bytes: Annotated[int, Ge(4_096), Le(2**44)] = 256 * limits.MIB
    reclaim_ratio: Annotated[float, Ge(0), Le(1)] = 0.5
    tombstone_retention_s: Annotated[float, Ge(0), Le(10_000_000_000)] = 86_400.0
    damage: Literal["refuse", "keep-prefix"] = "refuse"


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
    security: SecurityConfig = field(default_factory=SecurityConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    log: LogConfig = field(default_factory=LogConfig)


_TABLES: Final[dict[str, Any]] = {
    "node": NodeConfig,
    "network": NetworkConfig,
    "storage": StorageConfig,
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
        overrides: `section.key=value` each; the value as TOML has it, or else as plain text.
        environ: NUN_USER and NUN_PWD in it set the administrator.

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
            document.setdefault("security", {})[key] = value
    _check_names(document, problems)
    config = _validated(document, problems)
    _check_meaning(config, problems)
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
        problems.append(f"{path}: cannot be read ({error.strerror}): expected a TOML file")
    except UnicodeDecodeError:
        problems.append(f"{path}: is not UTF-8 text: expected a TOML file")
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: is not TOML: {error}")
    return {}


def _override(document: dict[str, Any], override: str, problems: list[str]) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        problems.append(f"--set {override!r}: expected section.key=value")
        return
    try:
        value: Any = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = document.setdefault(section, {})
    if isinstance(table, dict):
        table[key] = value


def _check_names(document: dict[str, Any], problems: list[str]) -> None:
    """Reports unknown tables and keys, and takes them out."""
    for section in list(document):
        if section not in _TABLES:
            problems.append(f"[{section}]: unknown table{_nearest(section, _TABLES)}")
            del document[section]
            continue
        table = document[section]
        if not isinstance(table, dict):
            problems.append(f"{section}: found {table!r}, expected a table [{section}]")
            del document[section]
            continue
        known = {item.name for item in fields(_TABLES[section])}
        for key in list(table):
            if key not in known:
                problems.append(
                    f"{section}.{key}: unknown key, found {_shown(key, table[key])}"
                    f"{_nearest(key, known)}"
                )
                del table[key]
            elif key.endswith("_bytes") or "_bytes_" in key:
                table[key] = _size(table[key])


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(sorted(known))}"


def _size(value: Any) -> Any:
    match = _SIZE.match(value) if isinstance(value, str) else None
    return int(match[1]) * _SIZE_UNITS[match[2]] if match else value


def _validated(document: dict[str, Any], problems: list[str]) -> Config:
    from pydantic import TypeAdapter, ValidationError

    tables: dict[str, Any] = {}
    for section, kind in _TABLES.items():
        given = document.get(section, {})
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        try:
            tables[section] = adapter.validate_python(given, strict=False)
            for key, value in list(given.items()):
                if type(getattr(tables[section], key)) is bool and type(value) is not bool:
                    problems.append(f"{section}.{key}: found {value!r}, expected true or false")
        except ValidationError as error:
            for item in error.errors():
                key = str(item["loc"][0]) if item["loc"] else ""
                expected = _expected(item["msg"])
                found = _shown(key, given.pop(key, None))
                problems.append(f"{section}.{key}: found {found}, expected {expected}")
            tables[section] = adapter.validate_python(given)  # to see what else is wrong
    return Config(**tables)


def _expected(message: str) -> str:
    for start in ("Input should be ", "Value should have ", "String should have "):
        if message.startswith(start):
            return message.removeprefix(start)
    return message


def _shown(key: str, value: Any) -> str:
    return "***" if key in _SECRETS else repr(value)


def _check_meaning(config: Config, problems: list[str]) -> None:
    """What no single key can show."""
    security, storage = config.security, config.storage
    host = _host(config.network.listen)
    if host is None:
        problems.append(
            f"network.listen: found {config.network.listen!r}, expected tcp://HOST:PORT "
            "with a port from 1 to 65535"
        )
    for key in ("curve_public_key", "curve_secret_key"):
        value = getattr(security, key)
        if value and len(value) != 40:
            problems.append(
                f"security.{key}: found {_shown(key, value)} of {len(value)} characters, "
                "expected the 40 that 'nun keygen' prints"
            )
    if bool(security.curve_public_key) != bool(security.curve_secret_key):
        problems.append(
            "security.curve_public_key, security.curve_secret_key: found one, expected both or none"
        )
    if host is not None and not _is_loopback(host) and not security.insecure:
        if not security.curve_secret_key:
            problems.append(
                f"network.listen: found {config.network.listen!r} without CURVE keys, expected a "
                "loopback address, keys from 'nun keygen', or security.insecure = true"
            )
        if security.admin_password == SAMPLE_PASSWORD:
            problems.append(
                f"security.admin_password: found the sample password while listening on "
                f"{config.network.listen!r}, expected one of your own, or security.insecure = true"
            )
    if storage.oplog_bytes < 2 * storage.segment_bytes:
        problems.append(
            f"storage.oplog_bytes: found {storage.oplog_bytes}, expected at least two segments "
            f"({2 * storage.segment_bytes})"
        )


def _host(address: str) -> str | None:
    match = re.fullmatch(r"tcp://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.*-]+):(\d{1,5})", address)
    return match[1] if match and 1 <= int(match[2]) <= 65_535 else None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host == "lo":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
