"""Proposals on their way to the primary, and decisions on their way back.

They pass through: what a proposal says is for the primary's network process, what a decision says for the origin's.
Any of them may be lost; the origin's network process proposes again.

I1  A decision goes to the member whose proposal it answers, and to nobody else.
I2  What is handed to this node's network process has the shape that it expects, whatever came (P8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nun import peer_messages as pm

if TYPE_CHECKING:
    from nun.core.replication.replicator import ReplicatorCore


class Relay:
    """Both ends of FORWARD and DECIDED."""

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core

    def propose(self, bodies: list[Any]) -> None:
        """This node's network process has something for the primary to decide."""
        core = self._core
        leader = core.leader
        if leader is not None:
            for ticket, body in bodies:
                core.echoes.keep(ticket, body)
            core.out.to_peers.append((leader.name, (pm.FORWARD, core.epoch, bodies)))

    def forwarded(self, peer: bytes, name: str, bodies: list[Any]) -> None:
        """A member proposes something. Raises ValueError on what is no list of proposals."""
        core = self._core
        number = core.number_of(name)
        if not core.leads or not number:
            core.refuse(peer, pm.FORWARD, 0, pm.PEER_NOT_PRIMARY, "it is not the primary")
            return
        proposals = [[number, ticket, body] for ticket, body in _pairs(bodies)]
        for _, ticket, body in proposals:
            core.echoes.note(number, ticket, body)
        core.out.to_network.append((pm.PROPOSALS, proposals))

    def decided(self, decisions: list[Any]) -> None:
        """This node's network process has decided what others proposed."""
        core = self._core
        by_origin: dict[int, list[Any]] = {}
        for origin, ticket, frame in decisions:
            by_origin.setdefault(origin, []).append([ticket, frame])
        for origin, replies in by_origin.items():
            core.echoes.decided(origin, {ticket for ticket, _ in replies})
            member = core.members.get(origin)
            if member is not None:
                core.out.answers.append((member[0].encode(), (pm.DECIDED, core.epoch, replies)))

    def answered(self, replies: list[Any]) -> None:
        """The primary has decided what this node proposed. Raises ValueError on what are no replies."""
        self._core.out.to_network.append((pm.PROPOSED, _pairs(replies)))


def _pairs(items: list[Any]) -> list[list[Any]]:
    """Tickets with something for each."""
    for item in items:
        match item:
            case [int(), bytes()]:
                pass
            case _:
                raise ValueError("expected [ticket, bytes]")
    return items
