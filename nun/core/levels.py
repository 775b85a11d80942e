"""Ack levels: replies that wait until enough disks hold what they tell.

A level is `m.ACK_PRIMARY` (0), a number of replicas beside the primary, `m.ACK_MAJORITY` or `m.ACK_ALL` of the members.
Whoever is here is durable at the primary already. What the replicator counts comes in by `acked`.

I1  A reply goes out once: when its level is reached, or at its deadline with an error that says how far it came.
I2  Only disks of members count, and only of those that follow the present epoch: the replicator sees to that.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from nun import messages as m
from nun.codec import pack, unpack
from nun.errors import BadRequest, LevelNotReached, to_wire

EVERYWHERE: Final = 2**63

Send = Callable[[bytes, bytes], None]


class Level(NamedTuple):
    """How far a write has to come before it is answered, or a read before it is shown, and until when."""

    level: int
    deadline_ns: int


class _Waiting(NamedTuple):
    seq: int
    order: int
    deadline_ns: int
    peer: bytes
    frame: bytes


def name_of(level: int) -> str:
    """As clients write it."""
    return {
        m.ACK_LOCAL: "local",
        m.ACK_PRIMARY: "primary",
        m.ACK_MAJORITY: "majority",
        m.ACK_ALL: "all",
    }.get(level, f"{level} replicas")


class Levels:
    """What waits for other nodes' disks.

    Args:
        send: takes (routing id, frame).

    Attributes:
        settled: the highest seq on the disks of a majority.
        live: how many replicas are following now.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._replicas: Sequence[
            int
        ] = ()  # how far each other member's disk is, the furthest first
        self._waiting: dict[int, list[_Waiting]] = {}  # level -> heap
        self._order = 0
        self.settled = 0
        self.live = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def check(self, level: Any, members: int) -> int:
        """Raises BadRequest unless this is a level that a cluster of so many members can reach."""
        if type(level) is not int or not m.ACK_ALL <= level < 1_024:
            raise BadRequest(
                "an ack level is -3 (all), -2 (majority), -1 (local), 0 (primary) or a number of "
                f"replicas, found {level!r:.20}"
            )
        if level >= members:
            raise BadRequest(
                f"ack level {level}: expected at most {members - 1}, there are {members} members"
            )
        return level

    def reached(self, level: int) -> int:
        """The seq up to which this level is reached, as far as other nodes are concerned."""
        replicas = self._replicas
        if level == m.ACK_MAJORITY:
            return self.settled
        if level == m.ACK_ALL:
            return replicas[-1] if replicas else EVERYWHERE
        if level > 0:
            return replicas[level - 1] if level <= len(replicas) else 0
        return EVERYWHERE

    def wait(self, seq: int, level: Level, peer: bytes, frame: bytes) -> None:
        """Sends a reply once its level is reached for everything up to `seq`."""
        if seq <= self.reached(level.level):
            self._send(peer, frame)
            return
        self._order += 1
        waiting = self._waiting.setdefault(level.level, [])
        heapq.heappush(waiting, _Waiting(seq, self._order, level.deadline_ns, peer, frame))

    def acked(self, settled: int, replicas: Sequence[int], live: int) -> None:
        """The replicator has counted: what is settled, and how far each other member's disk is, the furthest first."""
        self.settled = settled
        self._replicas = replicas
        self.live = live
        for level, waiting in self._waiting.items():
            reached = self.reached(level)
            while waiting and waiting[0].seq <= reached:
                _, _, _, peer, frame = heapq.heappop(waiting)
                self._send(peer, frame)

    def tick(self, now_ns: int) -> None:
        """Answers what has waited long enough."""
        for level, waiting in self._waiting.items():
            late = [item for item in waiting if item.deadline_ns <= now_ns]
            if late:
                self._waiting[level] = [item for item in waiting if item.deadline_ns > now_ns]
                heapq.heapify(self._waiting[level])
                for item in sorted(late):
                    self._send(item.peer, self._late(level, item))

    def _late(self, level: int, item: _Waiting) -> bytes:
        """The reply to what was done and is not yet where it was to be. A refusal changed nothing: it goes as it is."""
        message = unpack(item.frame)
        receipt = message.pop() if message[0] == m.RECEIPT else None
        status, number, result, position, op_id = message[1:] if receipt is not None else message
        if status:
            return item.frame
        replicas = sum(seq >= item.seq for seq in self._replicas)
        error = LevelNotReached(
            f"level {name_of(level)!r} was not reached in time: it is at the primary and {replicas} replicas",
            level=level,
            reached=replicas,
            result=result,
        )
        code, body = to_wire(error)
        if receipt is not None:
            return pack((m.RECEIPT, code, number, body, position, op_id, receipt))
        return pack((code, number, body, position, op_id))
