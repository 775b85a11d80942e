"""What a client was told when it was made, checked."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nun.client.link import Link
from nun.client.request import Grant
from nun.client.session import Session
from nun.client.values import Decoding, check_name, decoding_named
from nun.errors import ConfigError
from nun.limits import CLIENT_ID_BYTES_MAX

Text = str | bytes


@dataclass(frozen=True)
class Settings:
    addresses: tuple[str, ...]
    user: Text | None
    password: Text | None = field(repr=False)
    client_id: bytes
    timeout: float
    server_key: bytes | None
    decoding: Decoding
    origin: tuple[bytes, str] | None = field(default=None, repr=False)  # of a node's own gateway

    @classmethod
    def checked(
        cls,
        address: str | Sequence[str],
        user: Text | None,
        password: Text | None,
        client_id: Text | None,
        timeout: float,
        server_key: Text | None,
        decode: str | None,
    ) -> Settings:
        """Raises ConfigError that lists all that is wrong."""
        problems = []
        addresses = (address,) if isinstance(address, str) else tuple(address)
        if not addresses or not all(isinstance(one, str) and "://" in one for one in addresses):
            problems.append(
                f"address: {address!r}, expected 'tcp://host:port' or a list of such addresses"
            )
        if (user is None) != (password is None):
            problems.append("user and password: expected both or neither")
        raw_id = _bytes(client_id) if client_id is not None else secrets.token_bytes(16)
        if raw_id is None or not 0 < len(raw_id) <= CLIENT_ID_BYTES_MAX:
            problems.append(f"client_id: expected 1 to {CLIENT_ID_BYTES_MAX} bytes")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            problems.append(f"timeout: {timeout!r}, expected seconds above 0")
        key = _bytes(server_key) if server_key is not None else None
        if server_key is not None and (key is None or len(key) != 40):
            problems.append("server_key: expected a CURVE public key of 40 characters (Z85)")
        if problems:
            raise ConfigError(problems)
        assert raw_id is not None
        return cls(addresses, user, password, raw_id, timeout, key, decoding_named(decode))

    def session(self) -> Session:
        return Session(self.addresses, self.client_id, self.user, self.password, self.origin)

    def link(self, address: str) -> Link:
        return Link(address, self.server_key)

    @staticmethod
    def grant(name: Text, user: Text | None, token: Text | None) -> Grant:
        check_name(name, "the name of a database")
        if token is not None:
            check_name(token, "a token")
        if user is not None:
            check_name(user, "the name of a user")
        return Grant(name, user, token)


def _bytes(text: Any) -> bytes | None:
    return text.encode() if isinstance(text, str) else text if isinstance(text, bytes) else None
