"""What a node knows of the other nodes: who they are, what they say they do, how far away their clocks are.

    GREET     to every peer, again and again         t1
    GREETED   what it answers, with its state        t1 t2 t3

I1  What a peer said counts only as long as it answers: after LINK_LOST_NS of silence it is not there.
I2  A node of another cluster or protocol is named as such and never listened to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from nun import peer_messages as pm
from nun.core.history import Digest, digest_from, epoch_from, position_from, promise_from
from nun.core.replication.offsets import Offsets
from nun.position import Epoch, Position

LINK_LOST_NS: Final = 1_000_000_000


@dataclass(slots=True)
class Peer:
    """One other node, as the configuration names it and as it last described itself."""

    name: str
    address: str
    number: int = 0
    cluster_id: bytes = b""
    directory: bytes = b""
    start: int = 0
    role: int = pm.ROLE_WAITING
    epoch: Epoch | None = None
    last: Position | None = None
    durable: int = 0
    settled: int = 0
    promise: tuple[int, int] | None = None
    publish: str = ""
    client: str = ""
    gateway: str = ""
    version: str = ""
    primary: str | None = None
    digest: Digest | None = None
    heard_ns: int | None = None
    problem: str | None = None
    offsets: Offsets = field(default_factory=Offsets)

    def is_there(self, now_ns: int) -> bool:
        """Whether it answered lately, and is one of ours."""
        return (
            self.heard_ns is not None
            and now_ns - self.heard_ns < LINK_LOST_NS
            and self.problem is None
        )

    @property
    def leads(self) -> bool:
        """Whether it says that it is primary."""
        return self.role == pm.ROLE_PRIMARY and self.epoch is not None

    def take_state(self, epoch: Any, state: dict[bytes, Any]) -> None:
        """What it says of itself. Raises ValueError or TypeError on what is no state; nothing has changed then."""
        match state:
            case {
                b"role": int() as role, b"last": last, b"promise": promise, b"durable": int() as durable,
                b"settled": int() as settled, b"publish": bytes() as publish, b"client": bytes() as client,
                b"gateway": bytes() as gateway, b"version": bytes() as version,
                b"primary": (None | bytes()) as primary, b"digest": digest,
            } if role in pm.ROLE_NAMES:  # fmt: skip
                texts = (publish.decode(), client.decode(), gateway.decode(), version.decode())
                name = None if primary is None else primary.decode()
                known = None if epoch is None else epoch_from(epoch)
                newest = position_from(last)
                given = None if promise is None else promise_from(promise)
                made = None if digest is None else digest_from(digest)
            case _:
                raise ValueError("expected what a node says of itself")
        self.role, self.durable, self.settled = role, durable, settled
        self.publish, self.client, self.gateway, self.version = texts
        self.primary, self.epoch, self.last, self.promise = name, known, newest, given
        self.digest = made


def highest_reign(peers: Iterable[Peer]) -> int:
    """The highest reign that any of these nodes has seen or promised."""
    highest = 0
    for peer in peers:
        if peer.epoch is not None:
            highest = max(highest, peer.epoch.reign)
        if peer.promise is not None:
            highest = max(highest, peer.promise[0])
    return highest
