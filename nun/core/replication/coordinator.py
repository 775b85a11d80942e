"""Who is primary: the `static` coordinator.

    no identity       a cluster is found: join it; none is found and the configuration names this node as the first
                      primary: form one
    was primary       ask the others first; nobody knows better: primary again, in a new start of the same reign
    else              follow whoever is primary in the highest epoch, if that is not older than this node's promise

Only an operator moves the primary (promotion.py). Another coordinator would take the place of this one:
nothing else knows how it decides.

I1  A node that was told of a higher epoch or promise never resumes its own.
I2  Nobody is followed while this node's network process decides, or may begin to (P5).
I3  A directory that has not yet all that it joined with makes no majority: it gives no promise and asks for none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nun import peer_messages as pm

if TYPE_CHECKING:
    from nun.core.replication.peers import Peer
    from nun.core.replication.replicator import ReplicatorCore

_JOIN_AGAIN_NS: Final = 300_000_000


class Coordinator:
    """Decides which place this node takes in its cluster.

    Attributes:
        member: whether the primary has taken note of this start of this node.
    """

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core
        self.member = False
        self._joined_ns = 0
        self._listed_seq: int | None = None  # where this node's history was first seen to list it

    @property
    def holds_admission(self) -> bool:
        """Whether this disk has the entry that made it a member, and with it all that was settled before."""
        return self._listed_seq is not None and self._listed_seq <= self._core.durable_seq

    def listed(self, seq: int) -> None:
        """The member list as the entry `seq` has it was told."""
        own = self._core.members.get(self._core.number)
        if own is None or own[1] != self._core.directory:
            self._listed_seq = None
        elif self._listed_seq is None:
            self._listed_seq = seq

    def decide(self) -> None:
        """Does what comes next for this node to have its place in the cluster."""
        if not self._core.disk_known:
            return
        if not self._core.number:
            self._get_identity()
            return
        if self._core.copy is not None and not self._core.state_known:
            self._go_on_filling()
            return
        if not self._core.state_known or self._core.stepping_down or self._core.promotion.running:
            return
        leader = self._core.leader
        if self._core.leads or self._core.ordered is not None:
            self._reign(leader)
            return
        if leader is not None:
            self._core.last_leader = leader
            if not self.member:
                self._join(leader)
            else:
                self._core.following.follow(leader)
        elif self._core.may_resume and self._asked_enough() and self._would_resume():
            self._core.may_resume = False
            reign = self._core.history[-1][0].reign if self._core.history else 1
            self._core.be_primary(reign)
        self._core.tell_primary()

    def _reign(self, leader: Peer | None) -> None:
        """This node decides, or has been ordered to: until there is a higher epoch, or it is promised to one. Nobody is
        followed before the network process has said that it decides nothing, or never did."""
        epoch = self._core.ordered or self._core.epoch
        if epoch is None:
            return
        outdone = leader is not None and leader.epoch is not None and leader.epoch > epoch
        if outdone or self._core.older(epoch):
            self._core.step_down()
        else:
            self._core.tell_primary()

    def _asked_enough(self) -> bool:
        """Whether all peers were asked and those that answer have answered."""
        waited = (
            self._core.now_ns - self._core.started_ns
            >= self._core.settings.ask_peers_ms * 1_000_000
        )
        return waited or all(peer.is_there(self._core.now_ns) for peer in self._core.peers.values())

    def _would_resume(self) -> bool:
        """Whether this node was the primary last and nobody knows better; or is to be the first one."""
        there = [peer for peer in self._core.peers.values() if peer.is_there(self._core.now_ns)]
        if not self._core.history:
            first = (
                self._core.settings.primary == self._core.settings.name and self._core.number == 1
            )
            return first and not any(peer.epoch is not None for peer in there)
        epoch = self._core.history[-1][0]
        if epoch.node != self._core.number:
            return False
        mine = (epoch.reign, epoch.node)
        if any(
            peer.epoch is not None
            and peer.epoch[:2] == mine
            and peer.epoch.start >= self._core.start
            for peer in there
        ):
            return False  # this directory was set back: a later start of it has begun that epoch
        known = [(peer.epoch.reign, peer.epoch.node) for peer in there if peer.epoch is not None]
        known += [peer.promise for peer in there if peer.promise is not None]
        if self._core.bound is not None:
            known.append(self._core.bound)
        return all(other <= mine for other in known)

    def _get_identity(self) -> None:
        """An empty directory joins a cluster, or forms one."""
        if self._core.keeping:
            return
        leader = self._core.leader
        if leader is not None:
            self._join(leader)
            return
        there = [peer for peer in self._core.peers.values() if peer.is_there(self._core.now_ns)]
        if (
            self._core.settings.primary == self._core.settings.name
            and self._asked_enough()
            and not any(peer.cluster_id for peer in there)
        ):
            cluster_id = self._core.random().to_bytes(8, "little") + self._core.random().to_bytes(
                8, "little"
            )
            self._become(cluster_id, 1)

    def _join(self, leader: Peer) -> None:
        if self._core.now_ns - self._joined_ns > _JOIN_AGAIN_NS or not self._joined_ns:
            self._joined_ns = self._core.now_ns
            join = (
                pm.JOIN,
                self._core.epoch,
                self._core.settings.name,
                self._core.directory,
                self._core.start,
                self._core.number,
            )
            self._core.out.to_peers.append((leader.name, join))

    def joined(self, cluster_id: bytes, number: int, directory: bytes) -> None:
        """The primary has made a directory a member, under this number."""
        if self.member or self._core.keeping or not self._joined_ns:
            return  # one that was not asked for answers an earlier life of this process, which knew who it is
        if directory != self._core.directory:
            return  # as that, and the directory of that life is gone: its number is not for this one
        if number == self._core.number:
            self.member = True
            self.decide()
        else:
            self._become(cluster_id, number)

    def _become(self, cluster_id: bytes, number: int) -> None:
        anew = self._core.number != 0

        def done(error: str | None) -> None:
            if error is not None:
                self._core.note("identity_not_kept", level="error", reason=error)
                return
            self._core.cluster_id, self._core.number = cluster_id, number
            self.member = True
            self._core.note("member", number=number, cluster_id=cluster_id.hex())
            if anew:
                self._core.out.restart = f"this node is now number {number} of its cluster"

        self._core.out.to_writer.append((pm.BECOME, self._core.ticket(done), cluster_id, number))

    def _go_on_filling(self) -> None:
        leader = self._core.leader
        if leader is not None and self._core.filling.source is None:
            self._core.following.state = "filling"
            self._core.filling.begin(leader)
