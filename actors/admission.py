"""Which nodes may connect to this one, when nodes have CURVE keys: those whose public keys the configuration names.

CURVE alone keeps out who does not know this node's public key; who else may come in is asked of this authenticator, by
ZAP (pyzmq's, in a thread of its own). A peer without CURVE, or with another key, is refused in the handshake.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from zmq.auth.thread import ThreadAuthenticator

if TYPE_CHECKING:
    from actors.sockets import Context

ZAP_DOMAIN = "nodes"


class _Known:
    """Says of a public key whether it is one of those."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = frozenset(key.encode() for key in keys)

    def callback(self, domain: str, key: bytes) -> bool:
        return domain == ZAP_DOMAIN and key in self._keys


def admit_only(context: Context, public_keys: Iterable[str]) -> ThreadAuthenticator:
    """Lets in only peers with these public keys (Z85). It works as long as it is kept; begin before binding."""
    guard = ThreadAuthenticator(context)
    guard.start()
    guard.configure_curve_callback(domain=ZAP_DOMAIN, credentials_provider=_Known(public_keys))
    return guard
