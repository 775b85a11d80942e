"""A full copy: the files of another node's last snapshot come here in parts and take the place of this node's.

    COPY_ASK -> COPY_FILES -> COPY_BEGIN (writer)     which files, how long
    COPY_READ -> COPY_PART -> COPY_DATA (writer)      part by part, each durable before the next but one is asked for
    COPY_END (writer) -> start from disk              all files are here: they take their place

What has come is kept across a start of either side, and the copy goes on where it ended as long as the source holds it.
When it is gone, another is begun only of a node that has just said that its log does not reach back to here: files of
a new primary may end long before this node's log, from which that primary's log goes on. So what had come is dropped,
and this node stands before the primary once more.

    COPY_FILES, of another copy, unasked for -> COPY_DROP (writer) -> start from disk

I1  One part is on its way at a time, and PARTS_AHEAD at most are at the writer: memory is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nun import peer_messages as pm

if TYPE_CHECKING:
    from nun.core.replication.peers import Peer
    from nun.core.replication.replicator import ReplicatorCore

PARTS_AHEAD: Final = 4
_ASK_AGAIN_NS: Final = 1_000_000_000


class Filling:
    """The receiving end of a copy.

    Attributes:
        source: who gives it; None while there is no copy.
    """

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core
        self.source: Peer | None = None
        self._copy_id = b""
        self._left: list[tuple[str, int, int]] = []  # (file, offset, end) still to be asked for
        self._asked: tuple[str, int] | None = None
        self._asked_ns = 0
        self._begun = False
        self._told_by: Peer | None = None  # who said that a copy is needed, in this life
        self._at_writer = 0
        self.total = 0
        self.done = 0

    def begin(self, source: Peer, told: bool = False) -> None:
        """Asks for a copy, or goes on with one; `told`: the source has said that there must be one."""
        self.source = source
        if told:
            self._told_by = source
        self._begun = False
        self._asked = None
        self._at_writer = 0
        self._core.note("fills", source=source.name)
        self._ask()

    def _ask(self) -> None:
        self._asked_ns = self._core.now_ns
        self._send((pm.COPY_ASK, self._core.epoch))

    def _send(self, message: tuple[Any, ...]) -> None:
        assert self.source is not None
        self._core.out.to_peers.append((self.source.name, message))

    def files(self, source: str, copy_id: bytes, cluster_id: bytes, files: list[Any]) -> None:
        """Which files there are. Raises ValueError or TypeError on what is no list of files."""
        core = self._core
        if self.source is None or self.source.name != source or self._begun:
            return
        listed = [(name.decode(), int(size)) for name, size in files]
        held: dict[str, int] = {}
        known = core.copy is not None and core.copy[0] == copy_id
        if core.copy is not None and known:
            held = core.copy[1]
        self._begun = True
        if not known and self._told_by is not self.source:
            core.out.to_writer.append((pm.COPY_DROP, core.ticket(self._dropped)))
            return
        self._copy_id = copy_id
        self.total = sum(size for _, size in listed)
        self._left = [
            (name, held.get(name, 0), size) for name, size in listed if held.get(name, 0) < size
        ]
        self.done = self.total - sum(end - at for _, at, end in self._left)
        if held:
            self._read()
        else:
            ticket = core.ticket(lambda error: self._written(error, begin=True))
            core.out.to_writer.append((pm.COPY_BEGIN, ticket, copy_id, cluster_id, listed))

    def _read(self) -> None:
        """Asks for the next part, or ends the copy."""
        core = self._core
        if self._asked is not None or self._at_writer >= PARTS_AHEAD:
            return
        if self._left:
            name, at, end = self._left[0]
            self._asked = (name, at)
            self._asked_ns = core.now_ns
            size = min(end - at, core.settings.fetch_bytes)
            self._send((pm.COPY_READ, core.epoch, self._copy_id, name, at, size))
        elif not self._at_writer:
            core.out.to_writer.append((pm.COPY_END, core.ticket(self._ended)))
            self._at_writer += 1

    def part(self, source: str, copy_id: bytes, file: str, offset: int, data: bytes) -> None:
        """A part of a file."""
        core = self._core
        if self.source is None or self.source.name != source or copy_id != self._copy_id:
            return
        if self._asked != (file, offset) or not data:
            return
        self._asked = None
        name, at, end = self._left[0]
        at += len(data)
        if at >= end:
            self._left.pop(0)
        else:
            self._left[0] = (name, at, end)
        self.done += len(data)
        self._at_writer += 1
        ticket = core.ticket(self._written)
        core.out.to_writer.append((pm.COPY_DATA, ticket, file, offset, data))
        self._read()

    def _written(self, error: str | None, begin: bool = False) -> None:
        if not begin:
            self._at_writer -= 1
        if error is not None:
            self._core.note("copy_failed", reason=error)
            self._begun = False
            self._asked_ns = self._core.now_ns
        else:
            self._read()

    def _ended(self, error: str | None) -> None:
        core = self._core
        self._at_writer -= 1
        if error is None:
            core.out.restart = "a copy of the primary's files has taken the place of the own ones"
        else:
            core.note("copy_failed", reason=error)
            core.copy = None
            self._begun = False

    def _dropped(self, error: str | None) -> None:
        core = self._core
        if error is None:
            core.out.restart = "the copy that was begun is not to be had any more"
        else:
            core.note("copy_failed", reason=error)
            self._begun = False
            self._asked_ns = core.now_ns

    def gone(self, source: str) -> None:
        """The source does not hold that copy any more: from the beginning, with another."""
        if self.source is not None and self.source.name == source:
            self._core.copy = None
            self.begin(self.source)

    def tick(self) -> None:
        """Asks again what was not answered; of another node when the source is no longer the primary."""
        core = self._core
        if self.source is None or core.now_ns - self._asked_ns < _ASK_AGAIN_NS:
            return
        leader = core.leader
        if leader is not None and leader is not self.source:
            self.begin(leader)
        elif not self._begun:
            self._ask()
        elif self._asked is not None:
            self._asked = None
            self._read()
