"""Greetings: every node tells every other, again and again, what it is; clocks are compared by the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nun import peer_messages as pm
from nun.version import VERSION

if TYPE_CHECKING:
    from nun.core.replication.peers import Peer
    from nun.core.replication.replicator import ReplicatorCore


class Greetings:
    """Both ends of GREET and GREETED."""

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core
        self._greeted_ns: int | None = None

    def tick(self) -> bool:
        """Greets when it is time; whether it was."""
        core = self._core
        last_ns = self._greeted_ns
        if last_ns is not None and core.now_ns - last_ns < core.settings.greet_ms * 1_000_000:
            return False
        self.greet()
        return True

    def state(self) -> dict[str, Any]:
        return {
            "role": pm.ROLE_FILLING if self._core.filling.source is not None else self._core.role,
            "last": self._core.last,
            "durable": self._core.durable_seq,
            "settled": self._core.serving.settled
            if self._core.leads
            else self._core.following.settled,
            "promise": self._core.promise,
            "publish": self._core.settings.publish,
            "client": self._core.settings.client,
            "gateway": self._core.settings.gateway,
            "version": VERSION,
            "primary": self._primary_name(),
            "digest": self._core.digest,
        }

    def _primary_name(self) -> str | None:
        if self._core.leads:
            return self._core.settings.name
        leader = self._core.leader
        return None if leader is None else leader.name

    def _about(self) -> tuple[Any, ...]:
        return (
            pm.PEER_PROTOCOL_VERSION,
            self._core.cluster_id,
            self._core.settings.name,
            self._core.number,
            self._core.directory,
            self._core.start,
            self.state(),
        )

    def greet(self) -> None:
        self._greeted_ns = self._core.now_ns
        about = self._about()
        for name in self._core.peers:
            self._core.out.to_peers.append(
                (name, (pm.GREET, self._core.epoch, self._core.unix_us, *about))
            )

    def greeted_by(
        self, routing_id: bytes, name: str, epoch: Any, t1: int, protocol: int, about: list[Any]
    ) -> None:
        """Another node greets. Raises ValueError or TypeError on what is no greeting."""
        peer = self._core.peers.get(name)
        if peer is None:
            text = f"{name!r} is not in its configuration"
            self._core.refuse(routing_id, pm.GREET, 0, pm.PEER_WRONG_CLUSTER, text)
            return
        if protocol != pm.PEER_PROTOCOL_VERSION:
            text = f"it speaks version {pm.PEER_PROTOCOL_VERSION} of the protocol between nodes, not {protocol}"
            self._core.refuse(routing_id, pm.GREET, 0, pm.PEER_WRONG_PROTOCOL, text)
            return
        if self.heard(peer, epoch, about):
            stamps = (t1, self._core.unix_us, self._core.unix_us)
            self._core.out.answers.append(
                (routing_id, (pm.GREETED, self._core.epoch, *stamps, *self._about()))
            )
        elif self._strange(about[0]):
            text = f"it is of cluster {self._core.cluster_id.hex()}, not {about[0].hex()}"
            self._core.refuse(routing_id, pm.GREET, 0, pm.PEER_WRONG_CLUSTER, text)

    def _strange(self, cluster_id: bytes) -> bool:
        own = self._core.cluster_id
        return bool(cluster_id and own) and cluster_id != own

    def heard(self, peer: Peer, epoch: Any, about: list[Any]) -> bool:
        """What a peer says of itself; whether it is one of ours. Raises ValueError or TypeError on anything else."""
        match about:
            case [bytes() as cluster_id, bytes() as told, int() as number, bytes() as directory, int() as start,
                  dict() as state]:  # fmt: skip
                pass
            case _:
                raise ValueError("expected [cluster id, name, number, directory id, start, state]")
        if told.decode() != peer.name or len(cluster_id) not in (0, 16):
            raise ValueError("it is not the peer that was asked")
        if self._strange(cluster_id):
            problem = f"it is of another cluster, {cluster_id.hex()}"
            if peer.problem != problem:
                peer.problem = problem
                self._core.note("peer_of_another_cluster", level="error", peer=peer.name)
            return False
        peer.take_state(epoch, state)
        peer.problem = None
        peer.cluster_id, peer.number, peer.directory, peer.start = (
            cluster_id,
            number,
            directory,
            start,
        )
        peer.heard_ns = self._core.now_ns
        self._core.view.compare()
        self._core.promotion.heard(peer)
        self._core.coordinator.decide()
        return True
