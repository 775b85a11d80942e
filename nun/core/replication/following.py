"""A replica's way to the primary's entries.

    idle --follow--> connecting --marker--> standing --GO--> catching up <--hole, lost tail--- live
                        ^                    |  |  ^              |                             ^
                        |                    |  |  +-- marker ----+--------- nothing missing ---+
                        +--- another to follow  |
                                  CUT_BACK: cutting        COPY_FIRST: filling        both end in a start from disk

The primary's op stream may lose anything without a word, so nothing is believed of it but what carries its own place:
the marker proves that the subscription works (it is answered on the very socket that will bring the entries), positions
show holes, beats show a lost tail, and what is missing is fetched from the log, no faster than this node stores it.

I1  Entries are handed down in order of seq without a hole, each once, and only in an epoch that the followed node
    confirmed to be the continuation of this node's history (GO).
I2  Nothing older than the promise or than the epoch followed is handed down or acked (P5).
I3  An ack says what this node's own disk has, and is sent only after GO.
I4  What is handed down and not durable, and what is held for later, are bounded in bytes.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from nun import messages as m
from nun import peer_messages as pm
from nun.core import effects as fx
from nun.core.history import plain_history
from nun.core.replication.echoes import topics_of
from nun.position import Epoch, Position

if TYPE_CHECKING:
    from nun.core.replication.peers import Peer
    from nun.core.replication.replicator import ReplicatorCore

IDLE: Final = "idle"
CONNECTING: Final = "connecting"
STANDING: Final = "standing"
CATCHING_UP: Final = "catching up"
LIVE: Final = "live"
CUTTING: Final = "cutting"
FILLING: Final = "filling"

# state -> {what happens: the next state}; docs/REPLICATION.md draws this table.
TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    IDLE: {"a primary is found": CONNECTING, "a candidate's source is asked": STANDING},
    CONNECTING: {"the marker has come": STANDING, "nobody is to be followed": IDLE},
    STANDING: {
        "go": CATCHING_UP,
        "cut back": CUTTING,
        "copy first": FILLING,
        "another is to be followed": CONNECTING,
        "nobody is to be followed": IDLE,
    },
    CATCHING_UP: {
        "nothing is missing": LIVE,
        "the marker has come": STANDING,
        "a newer epoch has begun": STANDING,
        "the log does not reach back": STANDING,
        "another is to be followed": CONNECTING,
        "nobody is to be followed": IDLE,
    },
    LIVE: {
        "an entry is missing": CATCHING_UP,
        "the marker has come": STANDING,
        "a newer epoch has begun": STANDING,
        "another is to be followed": CONNECTING,
        "nobody is to be followed": IDLE,
    },
    CUTTING: {},
    FILLING: {"the copy is gone": FILLING},
}

_ASK_AGAIN_NS: Final = 400_000_000
_ACK_AGAIN_NS: Final = 200_000_000
_MARKER_NS: Final = 1_000_000_000  # a marker may be lost as anything on a stream


class Following:
    """Follows one other node's op stream.

    Attributes:
        state: one of the states above.
        source: whom it follows.
        epoch: the epoch that the source confirmed; entries of no other are handed down.
        known_seq: the highest seq that is known to exist there.
        primary_durable, settled: what the last beat said.
    """

    def __init__(self, core: ReplicatorCore) -> None:
        self._core = core
        self.state = IDLE
        self.source: Peer | None = None
        self.epoch: Epoch | None = None
        self.known_seq = 0
        self.known_ns: int | None = None  # since when this node is behind
        self.primary_durable = 0
        self.settled = 0
        self._marker = b""
        self._up_to: int | None = None  # a candidate fetches up to here and follows nobody
        self._asked_ns: int | None = None
        self._fetching = 0  # the first seq of what was asked for; 0: nothing
        self._acked_ns = 0
        self._since_ns = 0  # when it last subscribed
        self._told_ns = 0  # when this node's processes were last told how far they should be
        self._held: dict[int, bytes] = {}  # live entries beyond a hole
        self._held_bytes = 0
        self._kept: deque[tuple[int, bytes]] = deque()  # handed down and not durable
        self._kept_bytes = 0
        self._ticket = 0

    @property
    def confirmed(self) -> bool:
        """Whether this node's history is known to be part of the source's."""
        return self.state in (CATCHING_UP, LIVE)

    def _enter(self, what: str) -> None:
        self.state = TRANSITIONS[self.state][what]
        self._asked_ns = None
        self._fetching = 0

    # Whom

    def follow(self, source: Peer) -> None:
        """Subscribes to a primary's op stream, anew when its process has been started anew."""
        core = self._core
        if self.state in (CUTTING, FILLING):
            return
        if self.source is source and self.state != IDLE and self._up_to is None:
            return
        self._reset()
        self.source = source
        self.state = CONNECTING
        self._since_ns = core.now_ns
        self._marker = pm.TOPIC_MARKER + core.random().to_bytes(8, "little") * 2
        topics = [pm.TOPIC_BEAT, pm.TOPIC_ENTRY, *topics_of(core.number), self._marker]
        core.out.follow = (source.name, source.publish, topics)
        core.out.unfollow = False
        core.note("follows", primary=source.name, epoch=str(source.epoch))

    def fetch_from(self, source: Peer, up_to: int) -> None:
        """A candidate gets the entries up to this one from whoever has them."""
        self._reset()
        self.source = source
        self._up_to = up_to
        self.state = STANDING

    def stop(self) -> None:
        """Follows nobody."""
        if self.state in (IDLE, CUTTING, FILLING):
            return
        self._reset()
        self._core.out.follow = None
        self._core.out.unfollow = True

    def _reset(self) -> None:
        self.state = IDLE
        self.source = None
        self.epoch = None
        self._up_to = None
        self._asked_ns = None
        self._fetching = 0
        self._drop_held()

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    # What comes on the stream

    def stream_received(self, topic: bytes, frame: bytes) -> None:
        """A frame of the followed node's op stream. Raises WireError."""
        if topic == self._marker:
            self._marker_came(frame)
        elif not self.confirmed or self._up_to is not None:
            return
        elif topic == pm.TOPIC_BEAT:
            self._beat(frame)
        elif topic == pm.TOPIC_ENTRY or topic.startswith(pm.TOPIC_OF_OTHERS):
            kind, position, _ = fx.decode_head(frame)
            if kind == fx.ENTRY and self._of_epoch(position.epoch):
                self._entry(position, frame)
        elif topic.startswith(pm.TOPIC_ECHO):
            position, rebuilt = self._core.echoes.rebuild(frame)
            if self._of_epoch(position.epoch):
                self._echo(position, rebuilt)

    def _marker_came(self, frame: bytes) -> None:
        fx.decode_marker(frame)
        if self.state == CONNECTING or self.confirmed:
            self._enter("the marker has come")
            self._drop_held()
            self.tick()

    def _of_epoch(self, epoch: Epoch) -> bool:
        """Whether something of this epoch counts; a newer one makes this node ask where it stands."""
        if epoch == self.epoch:
            return True
        if self.epoch is not None and epoch > self.epoch:
            self._enter("a newer epoch has begun")
            self._drop_held()
        return False

    def _beat(self, frame: bytes) -> None:
        epoch, last, durable, settled = fx.decode_peer_beat(frame)
        if not self._of_epoch(epoch):
            return
        core = self._core
        self._exists(last)
        if durable > self.primary_durable or settled > self.settled:
            self.primary_durable = max(durable, self.primary_durable)
            self.settled = max(settled, self.settled)
            self.tell_position()
        if last > core.last_seq:
            self._catch_up()
        elif self.state == CATCHING_UP:
            self._enter("nothing is missing")

    def tell_position(self) -> None:
        """Tells network process and storage writer how far the primary and the majority are."""
        core = self._core
        best = None if self.source is None else self.source.offsets.best
        offset_ms, bound_ms = 0, core.settings.max_clock_offset_ms
        if best is not None:
            offset_ms, bound_ms = round(-best.offset_us / 1e3), ceil(best.bound_us / 1e3)
        core.out.to_network.append(
            (
                pm.PRIMARY_AT,
                self.epoch,
                self.primary_durable,
                self.settled,
                offset_ms,
                bound_ms,
            )
        )
        core.tell_settled(min(self.settled, core.last_seq))

    def _exists(self, seq: int) -> None:
        if seq > self.known_seq:
            self.known_seq = seq
        behind = self.known_seq > self._core.durable_seq
        if not behind:
            self.known_ns = None
        elif self.known_ns is None:
            self.known_ns = self._core.now_ns

    def _entry(self, position: Position, frame: bytes) -> None:
        expected = self._core.last_seq + 1
        self._exists(position.seq)
        if position.seq == expected:
            self._hand_down(position, frame)
            self._hand_down_held()
        elif position.seq > expected:
            if self._held_bytes < self._core.settings.window_bytes:
                if position.seq not in self._held:
                    self._held_bytes += len(frame)
                self._held[position.seq] = frame
            self._catch_up()

    def _echo(self, position: Position, frame: bytes | None) -> None:
        """An entry with values of this node, put together again; None: it is fetched as one that was lost."""
        if frame is not None:
            self._entry(position, frame)
            return
        self._exists(position.seq)
        if position.seq > self._core.last_seq:
            self._catch_up()

    def _hand_down_held(self) -> None:
        core = self._core
        while self._held:
            frame = self._held.pop(core.last_seq + 1, None)
            if frame is None:
                break
            self._held_bytes -= len(frame)
            self._hand_down(fx.decode_head(frame)[1], frame)
        if self._held and core.last_seq >= max(self._held):
            self._drop_held()

    def _hand_down(self, position: Position, frame: bytes) -> None:
        core = self._core
        assert position.seq == core.last_seq + 1
        core.advance(position)
        core.out.deliver.append(frame)
        self._kept.append((position.seq, frame))
        self._kept_bytes += len(frame)

    # Catching up

    def _catch_up(self) -> None:
        if self.state == LIVE:
            self._enter("an entry is missing")
        self._fetch()

    def _fetch(self) -> None:
        """Asks for what comes next, unless that is under way or the disk has enough to do."""
        core = self._core
        settings = core.settings
        if self._fetching or self._kept_bytes >= settings.window_bytes:
            return
        self._fetching = core.last_seq + 1
        self._asked_ns = core.now_ns
        self._send((pm.FETCH, core.epoch, self._fetching, settings.fetch_bytes))

    def fetched(self, source: str, from_seq: int, frames: list[Any], durable: int) -> None:
        """A part of the source's log. Raises WireError."""
        if not self._from(source) or not self.confirmed or from_seq != self._fetching:
            return
        self._fetching = 0
        self._exists(durable)
        for frame in frames:
            kind, position, _ = fx.decode_head(frame)
            last = self._core.last
            if kind == fx.ENTRY and position.seq == self._core.last_seq + 1:
                if last is not None and position < last:
                    raise ValueError("an epoch that is older than the one before it")
                self._hand_down(position, frame)
        self._hand_down_held()
        if self._up_to is None and self._core.last_seq >= self.known_seq:
            if self.state == CATCHING_UP:
                self._enter("nothing is missing")
        elif frames:
            self._fetch()

    # What the source answers

    def _from(self, name: str) -> bool:
        return self.source is not None and self.source.name == name

    def go(self, source: str, epoch: Epoch, next_seq: int, first_seq: int) -> None:
        """The source confirms that this node's history is part of its own."""
        core = self._core
        if not self._from(source) or self.state != STANDING or next_seq != core.last_seq + 1:
            return
        if core.older(epoch) and self._up_to is None:
            return
        self._enter("go")
        self.epoch = epoch
        if self._up_to is None:
            core.followed(epoch, first_seq)
            self._ack()
        self._fetch()

    def cut_back(self, source: str, epoch: Epoch, common: int) -> None:
        """This node's history leaves the source's after an entry: what lies above is to be proposed again."""
        core = self._core
        if not self._from(source) or self.state != STANDING or not 0 <= common < core.last_seq:
            return
        if self._up_to is not None:
            core.promotion.failed(
                "its own log has entries that the others have not: it is being cut back"
            )
        core.note("cuts_back", common=common, last=core.last_seq, epoch=str(epoch))
        self._enter("cut back")
        self.epoch = epoch
        self._ticket = core.ticket(self._cut)
        core.out.to_writer.append((pm.CUT, self._ticket, common, epoch))

    def _cut(self, error: str | None) -> None:
        core = self._core
        if error is None:
            core.out.restart = "the log was cut back to what the primary has too"
        else:
            core.note("cut_failed", reason=error)
            self.state = IDLE

    def copy_first(self, name: str) -> None:
        """The source's log does not reach back to where this node is."""
        source = self.source
        if source is None or source.name != name:
            return
        if self.confirmed:
            self._enter("the log does not reach back")
        elif self.state == STANDING:
            if self._up_to is not None:
                self._core.promotion.failed("it is too far behind to catch up from a log")
                return
            self._enter("copy first")
            self._core.filling.begin(source, told=True)

    # Its own disk

    def durable(self) -> None:
        """The storage writer has more on disk."""
        core = self._core
        kept = self._kept
        while kept and kept[0][0] <= core.durable_seq:
            self._kept_bytes -= len(kept.popleft()[1])
        if self.confirmed and self._up_to is None:
            self._exists(core.durable_seq)
            self._ack()
        if self.state == CATCHING_UP:
            if self._up_to is not None and core.durable_seq >= self._up_to:
                core.promotion.fetched()
            elif core.last_seq < max(self.known_seq, self._up_to or 0):
                self._fetch()

    def gap(self, seq: int) -> bool:
        """The storage writer has missed entries from this one on; False when they are not here."""
        frames = [frame for kept, frame in self._kept if kept >= seq]
        if frames:
            self._core.out.to_writer.append((m.ENTRIES, frames))
        return bool(frames)

    def _ack(self) -> None:
        core = self._core
        self._acked_ns = core.now_ns
        self._send((pm.ACK, self.epoch, core.durable_seq, core.last_seq))

    def _send(self, message: tuple[Any, ...]) -> None:
        assert self.source is not None
        self._core.out.to_peers.append((self.source.name, message))

    # Time

    def tick(self) -> None:
        """Asks again what was not answered."""
        core = self._core
        waited = self._asked_ns is None or core.now_ns - self._asked_ns > _ASK_AGAIN_NS
        if self.state == STANDING and waited:
            self._asked_ns = core.now_ns
            stand = (pm.STAND, core.epoch, core.last, plain_history(core.history), core.cut_floor)
            self._send(stand)
        elif self.state == CATCHING_UP and waited:
            self._fetching = 0
            if core.last_seq < max(self.known_seq, self._up_to or 0):
                self._fetch()
            elif self._up_to is not None and core.durable_seq >= self._up_to:
                core.promotion.fetched()
        elif self.state == CONNECTING and core.now_ns - self._since_ns > _MARKER_NS:
            source = self.source
            assert source is not None
            self._reset()
            self.follow(source)
        if self.confirmed and self._up_to is None and core.now_ns - self._acked_ns > _ACK_AGAIN_NS:
            self._ack()
        if self.confirmed and core.now_ns - self._told_ns >= core.settings.beat_ms * 1_000_000:
            self._beat_here()

    def _beat_here(self) -> None:
        """Tells writer and network process what was handed down last: that stream loses too."""
        core = self._core
        self._told_ns = core.now_ns
        if core.last is not None:
            core.out.deliver.append(fx.encode_beat(core.last.epoch, core.last.seq))
