"""The network core without a network: a driver that plays the loop, the storage writer, the disk and the clients.

The disk is a list of entries' frames; what was published and not yet made durable is lost by `crash`, except for as
much as the test lets survive. A restart replays the frames, as recovery does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core.conflicts.manager import ConflictManagerCore
from nun.core.network import NetworkCore
from nun.core.settings import Settings
from nun.core.state import NodeState
from nun.limits import MIB
from tests.support.raw_client import Reply

CLUSTER = b"cluster id 16 by"
SETTINGS = Settings(
    directory=b"d" * 16,
    name="node1",
    admin_user="nun",
    admin_password="nun-pwd",
    tombstone_retention_s=3600,
    sessions_max=100,
    watches_max=100,
    watches_per_session_max=100,
    unread_bytes_max=64 * MIB,
    pending_bytes_max=64 * MIB,
    request_rows_bytes_max=16 * MIB,
    databases_max=10,
)


def replay(frames: Sequence[bytes]) -> tuple[NodeState, dict[int, dict[bytes, bytes]]]:
    """What recovery makes of a log: state and records."""
    state = NodeState()
    tables: dict[int, dict[bytes, bytes]] = {}
    for frame in frames:
        position, effects = fx.decode_entry(frame)
        for change in fx.record_changes(effects):
            records = tables.setdefault(change.database, {})
            for key, packed in zip(change.keys, change.records, strict=True):
                if packed is None:
                    records.pop(key, None)
                else:
                    records[key] = packed
        for effect in effects:
            if effect[0] == fx.DROP_DATABASE:
                tables.pop(effect[1], None)
        state.apply(position, effects)
    return state, tables


class CoreDriver:
    """One network core and everything around it, in memory."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.settings = settings
        self.frames: list[bytes] = []  # durable
        self.published: list[tuple[int, bytes]] = []  # (seq, frame), not durable yet
        self.unix_ms = 1_700_000_000_000
        self.now_ns = 10**9
        self.start = 0
        self.chance = 0
        self.sent: list[tuple[bytes, Any]] = []  # (peer, message), oldest first
        self.log_reads: list[tuple[int, int]] = []  # (watch, first seq) that the core wants read
        self.secrets: list[tuple[int, str, bytes, bytes]] = []  # what waits for scrypt
        self.to_writer: list[tuple[Any, ...]] = []  # what the storage writer was asked
        self.log_begins = 1  # the first seq that the log still holds
        self.peers = 0
        self.manager_waits: list[Any] | None = None
        self.restart()

    def random(self) -> int:
        """Numbers that repeat in every run."""
        self.chance += 1
        digest = hashlib.sha256(self.chance.to_bytes(8, "little")).digest()
        return int.from_bytes(digest[:8], "little")

    # The loop

    def restart(self) -> None:
        """A new process on what is durable."""
        self.published.clear()
        self.sent.clear()
        self.log_reads.clear()
        self.start += 1
        state, tables = replay(self.frames)
        self.core = NetworkCore(
            self.settings,
            1,
            self.start,
            CLUSTER,
            state,
            tables,
            self.random,
            self.now_ns,
        )
        self.manager = ConflictManagerCore(self.now_ns)
        self.core.begin(self.unix_ms)
        self.perform()
        self.sync()

    def crash(self, survive: int = 0) -> None:
        """The process dies; of what was not durable, the first `survive` entries had reached the disk."""
        self.frames += [frame for _, frame in self.published[:survive]]
        self.restart()

    def perform(self) -> None:
        out = self.core.take_output()
        if out.publish is not None:
            position, _ = fx.decode_entry(out.publish)
            self.published.append((position.seq, out.publish))
        self.log_reads += out.log_reads
        self.secrets += out.secrets
        self.to_writer += out.to_writer
        for peer, frame in out.sends:
            self.sent.append((peer, unpack(frame)))
        self.core.settle()
        self.talk(out.to_manager)

    def talk(self, messages: Sequence[Any]) -> None:
        """Network process and conflict manager say what they have to say, until both are silent."""
        if self.manager_waits is not None:
            self.manager_waits += messages
            return
        for message in messages:
            self.manager.now_ns = self.now_ns
            self.manager.hear(unpack(pack(message)))
        for message in self.manager.take_output():
            self.core.manager_says(unpack(pack(message)), self.now_ns, self.unix_ms)
            self.perform()

    def stall_manager(self) -> None:
        """The conflict manager stands still; what it is told waits for it in `manager_waits`."""
        self.manager_waits = []

    def wake_manager(self) -> None:
        waited, self.manager_waits = self.manager_waits or [], None
        self.talk(waited)

    def new_manager(self) -> None:
        """The conflict manager dies and is started anew."""
        self.manager = ConflictManagerCore(self.now_ns)
        self.talk(())

    def receive(self, *messages: tuple[bytes, list[Any]]) -> None:
        """One turn of the loop with these requests."""
        self.unix_ms += 1
        self.now_ns += 1_000_000
        batch = [(peer, pack(message)) for peer, message in messages]
        self.core.requests_received(batch, self.now_ns, self.unix_ms)
        self.perform()

    def sync(self) -> None:
        """The storage writer makes everything durable and says so."""
        if self.published:
            seq = self.published[-1][0]
            self.frames += [frame for _, frame in self.published]
            self.published.clear()
            self.core.made_durable(seq, self.now_ns)
            self.perform()

    def read_log(self, count: int) -> bool:
        """Serves the oldest read of the log that a watch waits for, with this many entries; False if none does."""
        if not self.log_reads:
            return False
        watch, seq = self.log_reads.pop(0)
        found = None if seq < self.log_begins else self.frames[seq - 1 :][:count]
        self.core.log_read(watch, found)
        self.perform()
        return True

    def work_on_secrets(self) -> None:
        """Hashes and checks what waits; the "hash" of a secret is `hash of SECRET` here."""
        while self.secrets:
            ticket, work, given, stored = self.secrets.pop(0)
            text: str | None = f"hash of {given.decode()}"
            if work == "check" and stored != b"hash of " + given:
                text = None
            self.core.admin.secret_done(ticket, text, self.now_ns, self.unix_ms)
            self.perform()

    def tick(self, seconds: float = 1.0) -> None:
        self.unix_ms += int(seconds * 1000)
        self.now_ns += int(seconds * 1e9)
        self.core.ticked(self.now_ns, self.unix_ms)
        self.perform()
        self.manager.ticked(self.now_ns, self.unix_ms)
        self.talk(())

    # Clients

    def client(self, database: int | None = 1, **known: Any) -> DrivenClient:
        """A connection with an administrator's session, with a database selected unless told otherwise."""
        self.peers += 1
        return DrivenClient(self, b"peer%d" % self.peers, database, **known)


class DrivenClient:
    """A client of a driven core; it goes on as the same client after a restart."""

    def __init__(
        self, driver: CoreDriver, peer: bytes, database: int | None, client_id: bytes | None = None
    ) -> None:
        self.driver = driver
        self.peer = peer
        self.database = database
        self.client_id = client_id or b"client of " + peer
        self.born: int | None = None
        self.number = 0
        self.floor = 0
        self.token = 0
        self.greet()

    def greet(self) -> None:
        self.number += 1
        hello = [m.HELLO, 1, self.number, self.client_id, self.born, "nun", "nun-pwd"]
        self.driver.receive((self.peer, hello))
        reply = self.reply_to(self.number)
        assert reply is not None
        self.token, self.born, _, _ = reply.value()
        if self.database is not None and self.database in self.driver.core.tables:
            info = self.driver.core.state.databases[self.database]
            self.request(m.USE, info.name, None, None).value()

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def message(self, number: int, kind: int, *arguments: Any) -> tuple[bytes, list[Any]]:
        """A write as it goes over the wire, for `driver.receive`."""
        return self.peer, [kind, self.token, number, min(self.floor, number), *arguments]

    def reply_to(self, number: int) -> Reply | None:
        """The first reply with this number that was sent, taken out of what was sent."""
        for index, (peer, message) in enumerate(self.driver.sent):
            if peer != self.peer:
                continue
            if message[0] == m.RECEIPT and message[2] == number:
                del self.driver.sent[index]
                self.driver.receive((self.peer, [m.PING, self.token, 0, message[6]]))
                return Reply(*message[1:6])
            if message[0] < m.PROBE and message[1] == number:
                del self.driver.sent[index]
                return Reply(*message)
        return None

    def request(self, kind: int, *arguments: Any) -> Reply:
        """A read, or whatever carries no floor; made durable if it waits for that."""
        number = self.next_number()
        self.driver.receive((self.peer, [kind, self.token, number, *arguments]))
        self.driver.sync()
        reply = self.reply_to(number)
        assert reply is not None
        return reply

    def write(self, kind: int, *arguments: Any, number: int | None = None) -> Reply:
        """A write, made durable, and its reply."""
        number = number or self.next_number()
        self.driver.receive(self.message(number, kind, *arguments))
        reply = self.reply_to(number)
        if self.driver.published:
            assert reply is None, "answered before it was durable (P3)"
            self.driver.sync()
            reply = self.reply_to(number)
        assert reply is not None, f"no reply to {number}"
        return reply


def with_database(settings: Settings = SETTINGS, name: str = "d", **options: Any) -> CoreDriver:
    """A driver whose node holds one database, number 1, of strategy `none` unless told otherwise."""
    driver = CoreDriver(settings)
    frame = fx.encode_entry(
        driver.core.state.position._replace(seq=driver.core.stream.last_seq + 1),  # type: ignore[union-attr]
        [(fx.DATABASE, 1, name, {"strategy": "none", **options})],
    )
    driver.frames.append(frame)
    driver.restart()
    return driver
