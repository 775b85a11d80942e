"""A bare session: a DEALER that greets and opens a database.

For load generators, which must not be the bottleneck, and to ask a starting node whether it serves.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import zmq

from nun.codec import pack, unpack
from nun.messages import HELLO, PROBE, PROTOCOL_VERSION, USE

RECONNECT_MS: Final = 5  # a node that starts is found at once


class Session:
    """One connection to a node, logged in.

    Attributes:
        socket: the DEALER; requests and replies are one frame each.
        token: what every request carries.
        number: of the next request; the owner counts on.
    """

    def __init__(self, context: zmq.Context[Any], address: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.socket.connect(address)
        self.token: Any = PROTOCOL_VERSION
        self.number = 0
        self._asked: list[Any] | None = None

    def greet(self, user: str | None = None, password: str | None = None) -> None:
        """Sends HELLO; `greeted` takes the answer."""
        client_id = secrets.token_hex(8)
        self.socket.send(pack([HELLO, PROTOCOL_VERSION, 0, client_id, None, user, password]))

    def greeted(self, timeout_s: float) -> bool:
        """Whether the node answered within this time. Raises ConnectionError when it refused."""
        if not self.socket.poll(int(timeout_s * 1000)):
            return False
        self.token, _, self.number, *_ = self._result()
        return True

    def use(self, name: str, secret: str) -> Any:
        """Opens a database by its token and returns its number."""
        self.socket.send(pack([USE, self.token, self.number, name, None, secret]))
        self.number += 1
        return self._result()[0]

    def close(self) -> None:
        self.socket.close()

    def _result(self) -> Any:
        while True:
            reply = unpack(self.socket.recv())
            if reply[0] != PROBE:
                break
        if reply[0] != 0:
            raise ConnectionError(f"the node refused: {reply}")
        return reply[2]
