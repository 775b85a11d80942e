"""A change of primary: promises, and what a candidate does to become primary.

    an operator asks  ->  near the primary  ->  own promise kept  ->  promises of a majority, the present primary among
    them if it can be reached, and whoever is heard to be primary meanwhile  ->  what they have and this node has not is
    fetched and durable  ->  the reign begins

A promise is (reign, number of the candidate). Who has given one decides, applies and acks nothing older; it is on disk
before it is told. Since a majority holds whatever is settled, and the candidate fetches up to the highest position
among a majority, nothing that is settled is ever cut. `force` goes on with the promises that can be had and says what
may be lost: the one exception.

A candidate that fails leaves promises behind, and who gave one follows the old primary no more; a primary that gave one
rules no more. So the last primary, once it sees that for long, begins a new reign above them, in the same way.

I1  A node gives a promise only if it is above every promise it gave and every epoch it knows (P5).
I2  A primary that gives one decides nothing more before that, and tells its last position only when it is durable;
    so does a node whose network process was ordered to begin a reign, and may have begun it or begin it yet.
I3  A reign begins only on top of everything that was promised to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nun import peer_messages as pm
from nun.core.history import plain_history
from nun.core.replication.peers import Peer, highest_reign
from nun.errors import BadRequest, NodeFault, Overloaded, RequestError, to_wire
from nun.position import NOTHING, Epoch, Position

if TYPE_CHECKING:
    from nun.core.replication.replicator import ReplicatorCore

Promise = tuple[int, int]  # (reign, number of the candidate)

PATIENCE_NS: Final = 10_000_000_000
RENEW_NS: Final = PATIENCE_NS + 1_000_000_000  # whoever asked for a promise has begun, or given up
FORCE_NS: Final = 1_000_000_000
LEADER_LOST_NS: Final = (
    3_000_000_000  # a busy machine may be silent for longer than a link is called up
)
NEAR_ENTRIES: Final = 1_000
_ASK_AGAIN_NS: Final = 200_000_000


class Promotion:
    """Promises given, and this node's own candidature."""

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core
        self._stage = ""  # "", "step down", "near", "own promise", "promises", "fetch", "begin"
        self._ticket: tuple[bytes, int] | None = (
            None  # who asked: routing id or b"" for our clients
        )
        self._force = False
        self._promise: Promise = (0, 0)
        self._promised: dict[str, Position | None] = {}
        self._leaders: dict[str, None] = {}  # who was primary last, or was heard to be since
        self._since_ns = 0
        self._promises_from_ns = 0
        self._target_seq = 0
        self._asked_ns = 0
        self._outbid_ns: int | None = (
            None  # since when a member is bound to a reign above this primary's
        )
        self._renewing = False  # this node was primary until it promised itself to a higher reign
        self._giving: tuple[bytes, Promise] | None = None  # to whom, while stepping down or writing

    @property
    def running(self) -> bool:
        """Whether this node is a candidate."""
        return bool(self._stage)

    # An operator's wish

    def asked(self, origin: bytes, ticket: int, name: str, force: bool) -> None:
        """Somebody wants `name` to be primary; the answer goes to `origin`, b"" for a client of this node."""
        core = self._core
        if name != core.settings.name:
            if name not in core.peers:
                known = ", ".join(sorted([core.settings.name, *core.peers]))
                self._answer(origin, ticket, BadRequest(f"there is no node {name!r}, only {known}"))
            elif origin:
                self._answer(
                    origin, ticket, BadRequest(f"this is {core.settings.name}, not {name}")
                )
            elif not core.peers[name].is_there(core.now_ns):
                self._answer(
                    origin,
                    ticket,
                    NodeFault(f"node {name!r} cannot be reached"),
                )
            else:
                core.out.to_peers.append((name, (pm.HAND_OVER, core.epoch, ticket, force)))
        elif core.leads and not self._outbid():
            self._answer(origin, ticket, None)
        elif self._stage or self._changing:
            self._answer(
                origin,
                ticket,
                Overloaded(
                    "a change of primary is under way", limit="promotions", retry_after_ms=1_000
                ),
            )
        elif not core.coordinator.holds_admission or core.following.state in ("cutting", "filling"):
            self._answer(origin, ticket, BadRequest("this node does not hold the data yet"))
        else:
            self._ticket = (origin, ticket)
            self._begin(force)

    def _begin(self, force: bool) -> None:
        core = self._core
        self._force = force
        self._since_ns = core.now_ns
        core.note("candidate", force=force)
        self._stage = "step down" if core.leads else "near"
        self._leaders = {} if core.last_leader is None else {core.last_leader.name: None}
        for peer in core.peers.values():
            self.heard(peer)
        if core.leads:
            core.step_down()
        else:
            self._near()

    @property
    def _changing(self) -> bool:
        """Whether this node is giving a promise, stepping down, or beginning a reign: it is no candidate meanwhile."""
        core = self._core
        return self._giving is not None or core.stepping_down or core.ordered is not None

    def _outbid(self) -> bool:
        """Whether a member that is there has promised itself to a reign above that of this primary."""
        core = self._core
        return core.epoch is not None and any(
            peer.promise is not None and peer.promise > core.epoch[:2]
            for peer in self._members_there()
        )

    def _members_there(self) -> list[Peer]:
        core = self._core
        names = core.member_names
        return [
            peer
            for peer in core.peers.values()
            if peer.name in names and peer.is_there(core.now_ns)
        ]

    def _renew(self) -> None:
        """A stale promise binds a member, or this primary itself: this same node begins a reign above it.

        Not unless a majority is there, and none of it knows a later reign: else promises would only pile up.
        """
        core = self._core
        there = self._members_there()
        unable = (
            self._changing
            or len(there) + 1 <= len(core.member_names) // 2
            or any(
                peer.epoch is not None and peer.epoch[:2] > core.epoch[:2]
                for peer in there
                if core.epoch
            )
            or core.following.state in ("cutting", "filling")
        )
        wanted = self._outbid() if core.leads else self._renewing
        if core.leader is not None:
            self._renewing = False
        if unable or not wanted or core.leader is not None:
            self._outbid_ns = None
        elif self._outbid_ns is None:
            self._outbid_ns = core.now_ns
        elif core.now_ns - self._outbid_ns > RENEW_NS:
            self._outbid_ns = None
            self._renewing = True
            self._begin(False)

    def _answer(self, origin: bytes, ticket: int, error: RequestError | None) -> None:
        core = self._core
        status, text, fields = 0, "", {}
        if error is None:
            fields = {
                "node": core.settings.name,
                "epoch": str(core.epoch),
                "position": str(core.last),
                "at_stake": self._at_stake() if self._force else [],
            }
        else:
            status, (text, fields) = to_wire(error)
        if origin:
            core.out.answers.append(
                (origin, (pm.HANDED_OVER, core.epoch, ticket, status, text, fields))
            )
        else:
            core.out.to_network.append((pm.PROMOTED, ticket, status, text, fields))

    def _at_stake(self) -> list[str]:
        """Positions of members that gave no promise, as they were last known: what lies above ours may come back as
        proposals only. One that was never heard of is named too: nobody can tell what it holds."""
        return [
            f"{peer.name} {'unknown' if peer.last is None else peer.last}"
            for peer in self._core.peers.values()
            if peer.name not in self._promised
        ]

    def failed(self, why: str) -> None:
        """The candidature is over."""
        core = self._core
        if self._stage:
            core.note("promotion_failed", reason=why, stage=self._stage)
        if self._stage and self._ticket is not None:
            self._answer(*self._ticket, NodeFault(f"it did not become primary: {why}"))
        self._stage = ""
        self._ticket = None
        if core.following.state not in ("cutting", "filling"):
            core.following.stop()

    # The candidate's way

    def _near(self) -> None:
        """Waits until little is missing: a primary that is asked for its promise decides nothing meanwhile."""
        core = self._core
        leader = core.leader
        behind = core.following.known_seq - core.durable_seq
        if leader is None or self._force or (core.following.confirmed and behind < NEAR_ENTRIES):
            known = [
                core.history[-1][0].reign if core.history else 0,
                highest_reign(core.peers.values()),
            ]
            if core.bound is not None:
                known.append(core.bound[0])
            self._promise = (max(known) + 1, core.number)
            self._promised = {}
            self._stage = "own promise"
            core.keep_promise(self._promise, self._own_promise_kept)

    def _own_promise_kept(self, error: str | None) -> None:
        core = self._core
        if self._stage != "own promise":
            return
        if error is not None:
            self.failed(error)
            return
        core.following.stop()
        self._promised[core.settings.name] = core.last
        self._stage = "promises"
        self._asked_ns = 0
        self._promises_from_ns = core.now_ns
        self._ask()

    def _ask(self) -> None:
        core = self._core
        self._asked_ns = core.now_ns
        for name in core.peers:
            if name not in self._promised:
                core.out.to_peers.append((name, (pm.ASK_PROMISE, core.epoch, *self._promise)))
        self._enough()

    def promised(self, name: str, promise: Promise, last: Position | None) -> None:
        """A member has given its promise, and says how far it is."""
        if self._stage != "promises" or promise != self._promise:
            return
        if self._core.was_set_back(name):
            self._core.note("promise_not_counted", level="warning", node=name)
            return
        self._promised[name] = last
        self._enough()

    def refused(self, name: str, text: str) -> None:
        """A member has given a higher promise, or knows a higher epoch."""
        if self._stage == "promises":
            self.failed(f"{name} refuses: {text}")

    def _enough(self) -> None:
        core = self._core
        members = core.member_names
        given = [name for name in members if name in self._promised]
        majority = len(given) > len(members) // 2
        waited_ns = core.now_ns - self._promises_from_ns
        enough = majority and self._awaited() is None
        if not enough and not (self._force and waited_ns > FORCE_NS):
            return
        best: str | None = max(
            (name for name in self._promised if self._promised[name] is not None),
            key=lambda name: self._promised[name] or NOTHING,
            default=None,
        )
        highest = None if best is None else self._promised[best]
        self._stage = "fetch"
        self._target_seq = core.last_seq if highest is None else max(highest.seq, core.last_seq)
        if best is None or highest is None or core.last is None or highest <= core.last:
            self.fetched()
        else:
            core.following.fetch_from(core.peers[best], highest.seq)

    def heard(self, peer: Peer) -> None:
        """A peer has said what it is: one that leads is asked for its promise too, if there is time for that.

        Not one of an epoch that is older than what this node has: what it decides is in no history that can go on.
        """
        core = self._core
        over = core.epoch is not None and peer.epoch is not None and peer.epoch < core.epoch
        if not self._stage or not peer.leads or over or peer.name in self._leaders:
            return
        self._leaders[peer.name] = None
        if self._stage == "fetch" and self._awaited() is not None and not self._force:
            core.following.stop()
            self._stage = "promises"
            self._ask()

    def _awaited(self) -> Peer | None:
        """A primary that lives, as far as is known, and has not promised: what it has answered and nobody else has
        would come back as proposals only."""
        core = self._core
        for name in self._leaders:
            peer = core.peers[name]
            silent = peer.heard_ns is None or core.now_ns - peer.heard_ns >= LEADER_LOST_NS
            if name not in self._promised and not silent:
                return peer
        return None

    def fetched(self) -> None:
        """Everything that was promised to be there is on this node's disk, or on its way to it."""
        core = self._core
        if self._stage == "fetch":
            if core.epoch is not None and core.epoch[:2] > self._promise:
                self.failed("another node has become primary in a higher reign")
                return
            if core.last_seq < self._target_seq or core.durable_seq < core.last_seq:
                return
            core.following.stop()
            self._stage = "begin"
            core.be_primary(self._promise[0])

    def began(self, epoch: Epoch) -> None:
        """This node's network process has begun an epoch."""
        self._renewing = False
        if self._stage == "begin" and epoch[:2] == self._promise:
            self._stage = ""
            if self._ticket is not None:
                self._answer(*self._ticket, None)
            self._ticket = None

    # Promises given

    def wanted(self, peer: bytes, promise: Promise) -> None:
        """A candidate asks for this node's promise."""
        core = self._core
        own: list[Promise] = [] if core.bound is None else [core.bound]
        if core.epoch is not None:
            own.append((core.epoch.reign, core.epoch.node))
        if self._giving is not None and self._giving[1] == promise:
            return
        if not core.disk_known or not core.state_known:
            text = "it does not know yet what it has promised, and what it has"
            core.refuse(peer, pm.ASK_PROMISE, 0, pm.PEER_BUSY, text)
            return
        if core.promise == promise:
            self._give(peer)
        elif own and promise <= max(own):
            text = f"{max(own)} is promised or known here"
            core.refuse(peer, pm.ASK_PROMISE, 0, pm.PEER_PROMISED, text)
        elif core.following.state in ("cutting", "filling"):
            core.refuse(peer, pm.ASK_PROMISE, 0, pm.PEER_BUSY, "its files are being replaced")
        elif not core.coordinator.holds_admission:
            # A majority with this disk would not know what the one that it has taken the place of had.
            text = "it does not have what it joined with yet"
            core.refuse(peer, pm.ASK_PROMISE, 0, pm.PEER_BUSY, text)
        else:
            if self._stage:
                self.failed("another candidate has a higher promise")
            self._renewing = self._renewing or core.leads
            self._giving = (peer, promise)
            core.note("promises", reign=promise[0], candidate=promise[1])
            core.following.stop()
            if core.leads or core.stepping_down or core.ordered is not None:
                core.step_down()
            else:
                self.stepped_down()

    def stepped_down(self) -> None:
        """Nothing is decided here any more and all of it is durable: the promise can be kept."""
        core = self._core
        if self._giving is not None:
            core.keep_promise(self._giving[1], self._kept)
        elif self._stage == "step down":
            self._stage = "near"
            self._near()

    def _kept(self, error: str | None) -> None:
        giving, self._giving = self._giving, None
        if giving is not None and error is None:
            self._give(giving[0])

    def _give(self, peer: bytes) -> None:
        core = self._core
        assert core.promise is not None
        position = None
        if core.last is not None:
            # What is handed down and not durable yet may be lost: only the disk counts.
            position = core.position_of(core.durable_seq)
        core.out.answers.append(
            (peer, (pm.PROMISE, core.epoch, *core.promise, position, plain_history(core.history)))
        )

    def tick(self) -> None:
        """Asks again, gives up."""
        core = self._core
        if not self._stage:
            self._renew()
        elif core.now_ns - self._since_ns > PATIENCE_NS:
            given = ", ".join(self._promised) or "nobody"
            lacks = "a majority"
            awaited = self._awaited()
            if awaited is not None:
                lacks = f"{awaited.name}, the primary, which is there"
            limit_s = PATIENCE_NS // 10**9
            self.failed(f"no promise of {lacks} within {limit_s} s; promised by {given}")
        elif self._stage == "near":
            self._near()
        elif self._stage == "promises" and core.now_ns - self._asked_ns > _ASK_AGAIN_NS:
            self._ask()
        elif self._stage == "fetch" and core.following.state == "idle":
            self.fetched()
