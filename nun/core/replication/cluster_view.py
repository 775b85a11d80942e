"""What a node can tell an operator about its cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nun import peer_messages as pm

if TYPE_CHECKING:
    from nun.core.history import Digest
    from nun.core.replication.replicator import ReplicatorCore

_TOLD_MAX: Final = 1_000


class ClusterView:
    """The answer to `cluster`, as this node sees things."""

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core
        self._told: set[str] = set()

    def describe(self) -> list[dict[str, Any]]:
        """What is known of every member, and of every configured node that is none."""
        names = list(
            dict.fromkeys([*self._core.member_names, self._core.settings.name, *self._core.peers])
        )
        return [self._describe(name) for name in names]

    def traffic(self) -> dict[str, int]:
        """What `status` tells of the op stream between nodes."""
        core = self._core
        return {
            "entries_published_bytes": core.published_bytes,
            "echo_saved_bytes": core.echoes.saved_bytes,
            "echoes_rebuilt": core.echoes.rebuilt,
            "echoes_failed": core.echoes.failed,
        }

    def _describe(self, name: str) -> dict[str, Any]:
        number = self._core.number_of(name)
        problem = None if number else "it is configured and has not joined"
        if name == self._core.settings.name:
            last, durable, role = (
                self._core.last,
                self._core.durable_seq,
                self._core.greetings.state()["role"],
            )
            told: dict[str, Any] = {
                "address": self._core.settings.client,
                "gateway": self._core.settings.gateway or None,
                "epoch": str(self._core.epoch),
                "link": "self",
                "clock_offset_ms": 0.0,
                "clock_bound_ms": 0.0,
                "self": True,
            }
        elif name in self._core.peers:
            peer = self._core.peers[name]
            last, durable, role = peer.last, peer.durable, peer.role
            best = peer.offsets.best
            problem = peer.problem or problem
            told = {
                "address": peer.client or None,
                "gateway": peer.gateway or None,
                "epoch": None if peer.epoch is None else str(peer.epoch),
                "link": "up" if peer.is_there(self._core.now_ns) else "down",
                "clock_offset_ms": None if best is None else best.offset_us / 1e3,
                "clock_bound_ms": None if best is None else best.bound_us / 1e3,
                "self": False,
            }
        else:
            last, durable, role = None, 0, pm.ROLE_WAITING
            problem = (
                "it is a member, and the configuration of the node that was asked does not name it"
            )
            told = {"address": None, "gateway": None, "epoch": None, "link": "down",
                    "clock_offset_ms": None, "clock_bound_ms": None, "self": False}  # fmt: skip
        lag = self._lag(name, durable)
        digest = self._digest_of(name)
        problem = self._difference(name) or problem
        return {
            "name": name,
            "number": number,
            "role": pm.ROLE_NAMES[role],
            "position": None if last is None else str(last),
            "durable": durable,
            **told,
            **lag,
            "digests": None if digest is None else digest[1],
            "digests_at": None if digest is None else str(digest[0]),
            "problem": problem,
        }

    def _digest_of(self, name: str) -> Digest | None:
        if name == self._core.settings.name:
            return self._core.digest
        peer = self._core.peers.get(name)
        return None if peer is None else peer.digest

    def _difference(self, name: str) -> str | None:
        """What a node holds differently from the primary, where both made digests of the same entry."""
        core = self._core
        leader = core.settings.name if core.leads else core.leader and core.leader.name
        primary, other = self._digest_of(leader or ""), self._digest_of(name)
        if primary is None or other is None or primary[0] != other[0] or primary[1] == other[1]:
            return None
        names = sorted({*primary[1], *other[1]})
        wrong = ", ".join(each for each in names if primary[1].get(each) != other[1].get(each))
        return f"its data differs from that of {leader} at {primary[0]}: {wrong}"

    def compare(self) -> None:
        """Logs what differs, once for each entry."""
        for name in self._core.peers:
            problem = self._difference(name)
            if problem is not None and problem not in self._told:
                if len(self._told) >= _TOLD_MAX:
                    self._told.clear()
                self._told.add(problem)
                self._core.note("data_differs", level="error", peer=name, problem=problem)

    def _lag(self, name: str, durable: int) -> dict[str, Any]:
        """How far a member's disk is behind the primary, in entries, bytes (about) and milliseconds."""
        leads = self._core.leads
        acked = self._core.serving.acked_of(name)
        if leads and acked is not None:
            durable = max(durable, acked.durable)
        newest = (
            self._core.last_seq
            if leads
            else max(self._core.following.known_seq, self._core.last_seq)
        )
        entries = max(newest - durable, 0)
        if not entries or not leads:
            return {
                "lag_entries": entries,
                "lag_bytes": None if entries else 0,
                "lag_ms": None if entries else 0,
            }
        since = next((item for item in reversed(self._core.progress) if item[0] <= durable), None)
        oldest = self._core.progress[0] if self._core.progress else (0, 0, self._core.now_ns)
        _, sent, at_ns = since or oldest
        return {
            "lag_entries": entries,
            "lag_bytes": self._core.published_bytes - sent,
            "lag_ms": (self._core.now_ns - at_ns) // 1_000_000,
        }
