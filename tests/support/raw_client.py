"""A client that speaks the wire by hand: it can lose replies, repeat numbers, lie, and send what is no message."""

from __future__ import annotations

import secrets
import time
from typing import Any, NamedTuple, Self

import zmq

from nun import messages as m
from nun.codec import pack, unpack
from nun.errors import from_wire


class Reply(NamedTuple):
    """A reply as it came: status 0, or the code of an error whose result is [message, fields]."""

    status: int
    number: int
    result: Any
    position: Any
    op_id: int | None

    def value(self) -> Any:
        """The result of a request that must have been granted."""
        if self.status:
            raise from_wire(self.status, *_texts(self.result))
        return self.result


def _texts(body: Any) -> tuple[str, dict[str, Any]]:
    message, fields = body
    return message.decode(), {name.decode(): value for name, value in fields.items()}


class RawClient:
    """One DEALER connection, with or without a session.

    Args:
        address: of the node.
        routing_id: the one to ask ROUTER for; None lets it choose.
        curve: (server key, public key, secret key) of a CURVE connection, Z85.
    """

    def __init__(
        self,
        address: str,
        routing_id: bytes | None = None,
        curve: tuple[bytes, bytes, bytes] | None = None,
        receive_hwm: int = 1000,
    ) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = receive_hwm
        if routing_id is not None:
            self.socket.routing_id = routing_id
        if curve is not None:
            self.socket.curve_serverkey, self.socket.curve_publickey = curve[0], curve[1]
            self.socket.curve_secretkey = curve[2]
        self.address = address
        self.socket.connect(address)
        self.client_id = secrets.token_hex(8).encode()
        self.token: Any = 0
        self.born: Any = None
        self.number = 0
        self.floor = 0
        self.events: list[Any] = []  # messages that came unasked, in order

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close(0)

    # Single messages

    def send(self, *message: Any) -> None:
        self.socket.send(pack(list(message)))

    def receive(self, timeout: float = 20.0) -> Any:
        """The next message from the node, unpacked; None when none comes in time."""
        if not self.socket.poll(int(timeout * 1000)):
            return None
        return unpack(self.socket.recv())

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def reply_to(self, number: int, timeout: float = 20.0) -> Reply | None:
        """The reply with this number; what comes unasked before it is kept in `events`."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.receive(max(deadline - time.monotonic(), 0))
            if message is None:
                return None
            if message[0] == m.RECEIPT:
                self.send(m.PING, self.token, 0, message[6])
                message = message[1:6]
            elif message[0] >= m.PROBE:
                self.events.append(message)
                continue
            if message[1] == number:
                return Reply(*message)

    # Requests

    def hello(
        self,
        user: str | None = None,
        password: str | None = None,
        client_id: bytes | None = None,
        born: Any = None,
    ) -> Reply:
        """Opens a session, as a new client or as the one that `client_id` and `born` name."""
        self.client_id = client_id or self.client_id
        self.born = born if born is not None else self.born
        number = self.next_number()
        self.send(m.HELLO, m.PROTOCOL_VERSION, number, self.client_id, self.born, user, password)
        reply = self.reply_to(number)
        assert reply is not None, "no answer to HELLO"
        if reply.status == 0:
            self.token, self.born, next_number, _ = reply.result
            self.number = max(self.number, next_number - 1)
        return reply

    def request(self, kind: int, *arguments: Any, timeout: float = 20.0) -> Reply:
        """A request that reads or administers a session, and its reply."""
        number = self.next_number()
        self.send(kind, self.token, number, *arguments)
        reply = self.reply_to(number, timeout)
        assert reply is not None, f"no answer to a request of kind {kind}"
        return reply

    def write(self, kind: int, *arguments: Any, timeout: float = 20.0) -> Reply:
        """A write under the next number, and its reply."""
        return self.resend(self.next_number(), kind, *arguments, timeout=timeout)

    def resend(self, number: int, kind: int, *arguments: Any, timeout: float = 20.0) -> Reply:
        """A write under a number of the caller's choice: the same one again is a retry."""
        self.post(number, kind, *arguments)
        reply = self.reply_to(number, timeout)
        assert reply is not None, f"no answer to write {number} of kind {kind}"
        return reply

    def post(self, number: int, kind: int, *arguments: Any) -> None:
        """Sends a write and does not wait."""
        self.send(kind, self.token, number, min(self.floor, number), *arguments)

    def use(self, name: str, token: str, user: str | None = None) -> int:
        """Selects a database; returns its number."""
        return int(self.request(m.USE, name, user, token).value()[0])


def connect(
    address: str, user: str | None = "nun", password: str | None = "nun-pwd", **arguments: Any
) -> RawClient:
    """A raw client with a session, an administrator's unless told otherwise."""
    client = RawClient(address, **arguments)
    client.hello(user, password).value()
    return client
