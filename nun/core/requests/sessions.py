"""Sessions: who is on the other end of a connection, and how much of what it was sent it has read.

A session belongs to one connection: it is found by the routing id that ROUTER gave and proven by a secret token in
every message, so that a peer that chooses somebody's routing id still has nobody's session.

I1  Replies above RECEIPT_ABOVE_BYTES carry a number that cannot be guessed; they count as unread until it comes back.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from nun.core.requests.access import Rights


class Session:
    """One client's connection.

    Args:
        peer: the routing id that ROUTER gave the connection.
        token: 64 random bits, told to the client and shown by it in every message.
        client_id: whose requests these are, across connections.
        secret: 64 random bits that are told to nobody; receipts are made from them.
    """

    __slots__ = (
        "_receipts",
        "_secret",
        "address",
        "admin",
        "born",
        "client_id",
        "grants",
        "highest_number",
        "last_seen_ns",
        "outcomes",
        "peer",
        "stamp",
        "stamped_at",
        "token",
        "unread_bytes",
        "virtual",
        "watches",
    )

    def __init__(self, peer: bytes, token: int, client_id: bytes, secret: int) -> None:
        self._secret = secret
        self.peer = peer
        self.token = token
        self.client_id = client_id
        self.address = ""  # of the host that it greeted from, as far as known
        self.admin = False
        self.born = 0
        self.highest_number = 0  # a write above it is surely new
        self.last_seen_ns = 0
        self.grants: dict[int, tuple[bytes, Rights]] = {}  # database -> (user, rights)
        self.watches: dict[int, Any] = {}
        self.unread_bytes = 0
        self.outcomes = False  # it wants the notices of its client id
        self.virtual = False  # it stands for a proposal of another node
        self.stamp = 0  # the first op id of that proposal
        self.stamped_at: tuple[int, int] | None = None  # when that was, and the bound; in ms
        self._receipts: deque[tuple[int, int]] = deque()  # (receipt, bytes)

    def owe(self, size: int) -> int:
        """Counts a large reply as unread and returns the receipt that clears it."""
        self._secret = (self._secret * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        receipt = self._secret >> 32
        self._receipts.append((receipt, size))
        self.unread_bytes += size
        return receipt

    def clear(self, receipt: int) -> bool:
        """Takes a receipt: that reply and all before it were read. False when it was never given."""
        if not any(receipt == given for given, _ in self._receipts):
            return False
        while self._receipts:
            given, size = self._receipts.popleft()
            self.unread_bytes -= size
            if given == receipt:
                break
        return True
