"""What part this node plays, as the network process sees it: who decides, and what the cluster is.

The replicator decides about roles; here they take effect.

    waiting --- be_primary ---> primary --- be_replica ---> replica (or waiting, while nobody is to be followed)
       |                           ^                          |   ^
       +-------- be_replica -------|--------------------------+---+
                                   +---- be_primary ----------+

A node without a replicator becomes primary as soon as it is loaded.

I1  Entries are decided only while the role is primary, in an epoch above every epoch of this node's history (P5).
I2  A node that was told to step down says so once all that it decided is durable here, and decides nothing after; an
    order to be primary that it did not come to is void then, and it says so at once.
I3  A directory that is new, wiped or set back gets a number that no member ever had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nun import peer_messages as pm
from nun.core import effects as fx
from nun.core.newcomers import Newcomers
from nun.core.state import Member
from nun.position import Epoch, Position

if TYPE_CHECKING:
    from nun.core.network import NetworkCore


class Roles:
    """The role of this node.

    Attributes:
        role: one of peer_messages.ROLE_*.
        primary, primary_address: the primary's name, and where clients reach it; None while none can be reached.
        primary_durable: how far the primary's disk is, on a replica.
        stepping_down: whether what was decided here is still to become durable before others may decide.
        following: whether a primary's position has come since this process began.
        newcomers: what came from a NunDB directory, for the first entry of all.
    """

    def __init__(self, core: NetworkCore) -> None:
        self._core = core
        self.role = pm.ROLE_WAITING
        self.primary: str | None = None
        self.primary_address: str | None = None
        self.primary_durable = core.stream.last_seq
        self.stepping_down = False
        self._to_begin: tuple[int, Position | None] | None = None  # reign, the entry it comes after
        self.following = False  # the primary's position has come since this process began
        self.newcomers = Newcomers(core)
        self.traffic: dict[str | None, int] = {}  # what the replicator last told for `status`

    @property
    def name(self) -> str:
        return pm.ROLE_NAMES[self.role]

    @property
    def joined(self) -> bool:
        """Whether this node's own history says that this directory is a member: it has all that it joined with."""
        member = self._core.state.members.get(self._core.number)
        return member is not None and member.directory == self._core.settings.directory

    def be_primary(self, reign: int) -> None:
        """Begins an epoch: its first entry carries cluster id and member list.

        What this node had handed to another primary, and has no answer for, is decided in it too.
        """
        core = self._core
        state = core.state
        epoch = Epoch(reign, core.number, core.start)
        assert not state.epochs or epoch > state.epochs[-1][0], f"{epoch} is not new"
        core.settle()
        self.role = pm.ROLE_PRIMARY
        self.primary = core.settings.name
        self.primary_address = core.settings.address
        self.stepping_down = False
        core.stream.epoch = epoch
        members = {**state.members, core.number: self._me()}
        next_number = max(state.next_number, core.number + 1)
        first_of_all = not state.epochs
        core.stream.add((fx.EPOCH, core.cluster_id, members, next_number))
        if first_of_all:
            self.newcomers.take_in()
        core.conflicts.begin()
        core.out.notes.append(("primary", {"epoch": str(epoch), "position": core.stream.last_seq}))
        open = core.forwarding.take_open()
        core.proposals.take([(core.number, ticket, body) for ticket, body in open])
        self.tell_state()

    def begin_if_ready(self) -> None:
        """Begins the epoch that was ordered, once everything before it is here, and whatever else this disk has.

        There may be more here than the order says: who gave it does not know what a replicator handed down that has
        died since. Those entries are of the same history, and stay.
        """
        if self._to_begin is None:
            return
        core = self._core
        reign, position = self._to_begin
        wanted = max(core.local_durable, 0 if position is None else position.seq)
        if core.stream.last_seq < wanted:
            core.adopter.exists(wanted)
            return
        self._to_begin = None
        epoch = Epoch(reign, core.number, core.start)
        if self.role == pm.ROLE_PRIMARY and core.stream.epoch == epoch:
            self.tell_state()  # an earlier replicator's order came first
        elif self.role == pm.ROLE_PRIMARY or not self._continues(epoch, position):
            self.stray(f"{epoch} is to begin after {position}, which is not what is here")
        else:
            self.be_primary(reign)

    def _continues(self, epoch: Epoch, position: Position | None) -> bool:
        """Whether an epoch is above all of this history, which holds the entry that it is to come after."""
        state = self._core.state
        new = not state.epochs or epoch > state.epochs[-1][0]
        return new and (position is None or state.epoch_of(position.seq) == position.epoch)

    def _me(self) -> Member:
        return Member(self._core.settings.name, self._core.settings.directory, self._core.start)

    def be_replica(self, epoch: Epoch | None, first_seq: int) -> None:
        """Decides nothing more. Entries of this epoch, which begins at an entry, will come; None: nobody is to be
        followed yet."""
        core = self._core
        assert core.stream.open is None
        self._to_begin = None
        if epoch is not None and self._strayed(epoch, first_seq):
            return
        if epoch is not None and core.state.position is None and core.state.databases:
            self.stray(
                "it began on files of NunDB, and there is a cluster already: import them there"
            )
            return
        if self.role == pm.ROLE_PRIMARY:
            core.conflicts.end()
            self.stepping_down = True
            self.primary_durable = core.local_durable
            self.primary = self.primary_address = None
            core.out.notes.append(("stepped_down", {"position": core.stream.last_seq}))
        decided = self.stepping_down
        self.role = pm.ROLE_WAITING if epoch is None else pm.ROLE_REPLICA
        if epoch is not None:
            core.adopter.fence.set(epoch, first_seq)
        self.tell_state()
        if epoch is None and not decided:
            core.out.to_replicator.append((pm.STEPPED_DOWN, core.state.position))
        self.check_stepped_down()

    def _strayed(self, epoch: Epoch, first_seq: int) -> bool:
        """Whether this process has something that the history to be followed may not have: what it decided and no
        replicator knows of, or entries above those where that epoch began. The disk has what counts (P5)."""
        core = self._core
        epochs = core.state.epochs
        above = core.stream.last_seq >= first_seq and epochs and epochs[-1][0] < epoch
        if not (self.role == pm.ROLE_PRIMARY or self.stepping_down or above):
            return False
        self.stray(f"{core.state.position} is not of the history that is followed, {epoch}")
        return True

    def stray(self, why: str) -> None:
        """Nothing more is decided, adopted or shown here until the processes have been started anew from disk."""
        self._core.strayed = True
        self._core.conflicts.end()
        self.role = pm.ROLE_WAITING
        self._core.out.restart = why

    def check_disk(self, seq: int, epoch: Epoch) -> None:
        """The disk has an entry of another epoch than the one that decides: it has to be one before it."""
        if self.role == pm.ROLE_PRIMARY and epoch != self._core.state.epoch_of(seq):
            self.stray(f"the disk has {seq} of {epoch}, which is not what was decided on")

    def check_stepped_down(self) -> None:
        """Says that all is durable that was decided here, once it is."""
        core = self._core
        if self.stepping_down and core.local_durable >= core.stream.last_seq:
            self.stepping_down = False
            core.out.to_replicator.append((pm.STEPPED_DOWN, core.state.position))

    def primary_is(self, name: str | None, address: str | None) -> None:
        """Which primary can be reached now."""
        if self.role != pm.ROLE_PRIMARY:
            self.primary, self.primary_address = name, address

    def tell_state(self) -> None:
        """Tells the replicator what this node is."""
        core = self._core
        state = core.state
        epoch = core.stream.epoch if self.role == pm.ROLE_PRIMARY or state.epochs else None
        history = [[*began, first] for began, first in state.epochs]
        core.out.to_replicator.append(
            (
                pm.NODE_STATE,
                core.cluster_id,
                core.number,
                core.start,
                self.role,
                epoch,
                state.position,
                history,
                state.members,
            )
        )

    def admit(self, name: str, directory: bytes, start: int) -> None:
        """Makes a node a member, or takes note of its new start; the answer goes when that is durable."""
        core = self._core
        if self.role != pm.ROLE_PRIMARY:
            return
        members = dict(core.state.members)
        next_number = core.state.next_number
        known = {member.name: number for number, member in members.items()}.get(name)
        member = Member(name, directory, start)
        if known is None or members[known].directory != directory or start < members[known].start:
            if known is not None:
                del members[known]
            known, next_number = next_number, next_number + 1
        answer = (pm.ADMITTED, name, directory, known)
        if members.get(known) == member:
            waits_for = core.stream.newest()
            (core.out if waits_for is None else waits_for).to_replicator.append(answer)
            return
        members[known] = member
        entry = core.stream.add((fx.MEMBERS, members, next_number))
        entry.to_replicator.append(answer)
        core.out.notes.append(("member", {"name": name, "number": known, "start": start}))
        core.close()
        self.tell_state()

    def hear(self, message: Sequence[Any]) -> None:
        """One message of the replicator about roles, positions or members."""
        core = self._core
        if core.strayed:
            return
        match message:
            case [pm.REPLICATOR_UP]:
                self._to_begin = None  # an earlier replicator's order: this one knows nothing of it
                self.tell_state()
                if core.digests.last is not None:
                    core.out.to_replicator.append((pm.DIGEST_IS, *core.digests.last))
            case [pm.BE_PRIMARY, int() as reign, position]:
                self._to_begin = (reign, None if position is None else Position(*position))
                self.begin_if_ready()
            case [pm.BE_REPLICA, epoch, int() as first_seq]:
                self.be_replica(None if epoch is None else Epoch(*epoch), first_seq)
            case [
                pm.PRIMARY_AT,
                _,
                int() as durable,
                int() as settled,
                int() as offset,
                int() as bound,
            ]:
                self.following = True
                core.clock_offset_ms, core.clock_bound_ms = offset, bound
                self.primary_durable = max(self.primary_durable, durable)
                core.levels.acked(settled, (), 0)
                core.tentative.settled(settled)
                core.release()
            case [pm.ACKED, int() as settled, list() as replicas, int() as live]:
                core.levels.acked(settled, replicas, live)
                core.tentative.settled(settled)
            case [pm.PRIMARY_IS, name, address]:
                self.primary_is(_text(name), _text(address))
                core.forwarding.primary_changed()
                core.tentative.propose()
            case [pm.PROPOSALS, list() as proposals]:
                core.proposals.take(proposals)
            case [pm.PROPOSED, list() as replies]:
                core.forwarding.answered([(ticket, frame) for ticket, frame in replies])
            case [pm.ADMIT, bytes() as name, bytes() as directory, int() as start, _]:
                self.admit(name.decode(), directory, start)
            case [pm.REPLICATION_IS, dict() as traffic]:
                self.traffic = {_text(name): count for name, count in traffic.items()}
            case [pm.CLUSTER_IS | pm.PROMOTED, *_]:
                core.cluster.answered(message)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
