"""A primary and replicas without replicators between them: network cores only, their frames carried by hand.

Each node's disk is a list of entries' frames. What a node says to its replicator waits until `carry` takes it across;
`sync` makes durable what a node has. Nothing is lost unless a test drops it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.core import effects as fx
from nun.core.conflicts.manager import ConflictManagerCore
from nun.core.network import NetworkCore
from nun.position import Epoch
from tests.support.core_driver import CLUSTER, SETTINGS, CoreDriver, DrivenClient, replay

EPOCH = Epoch(1, 1, 1)


class NodeDriver(CoreDriver):
    """One node of a cluster. It is what `CoreDriver` is, and hears and tells a replicator that the test plays."""

    def __init__(self, number: int, **settings: Any) -> None:
        self.number = number
        self.to_replicator: list[list[Any]] = []
        self.received: list[bytes] = []  # adopted or about to be, not durable
        super().__init__(
            replace(
                SETTINGS,
                name=f"node{number}",
                directory=bytes([number]) * 16,
                clustered=True,
                address=f"tcp://node{number}",
                **settings,
            )
        )

    def restart(self) -> None:
        """A new process on what is durable; it waits for its role."""
        self.published.clear()
        self.received.clear()
        self.sent.clear()
        self.log_reads.clear()
        self.to_replicator.clear()
        self.start += 1
        state, tables = replay(self.frames)
        self.manager = ConflictManagerCore(self.now_ns)
        self.core = NetworkCore(
            self.settings, self.number, self.start, CLUSTER, state, tables, self.random, self.now_ns
        )

    def perform(self) -> None:
        out = self.core.take_output()
        if out.publish is not None:
            position, _ = fx.decode_entry(out.publish)
            self.published.append((position.seq, out.publish))
        self.log_reads += out.log_reads
        self.secrets += out.secrets
        self.to_writer += out.to_writer
        # Over the wire and back, as in life: texts come as bytes, tuples as lists.
        self.to_replicator += [unpack(pack(message)) for message in out.to_replicator]
        for peer, frame in out.sends:
            self.sent.append((peer, unpack(frame)))
        self.core.settle()
        self.talk(out.to_manager)

    def hear(self, *message: Any) -> None:
        """The replicator says something."""
        self.core.replicator_says(unpack(pack(message)), self.now_ns, self.unix_ms)
        self.perform()

    def client(self, database: int | None = 1, **known: Any) -> DrivenClient:
        """As a lone node's; its client id is like no other node's."""
        known.setdefault("client_id", b"client %d of node %d" % (self.peers, self.number))
        return super().client(database, **known)

    def told(self, kind: int) -> list[list[Any]]:
        """What was said to the replicator of this kind; it is taken out."""
        found = [message for message in self.to_replicator if message[0] == kind]
        self.to_replicator = [message for message in self.to_replicator if message[0] != kind]
        return found

    def entries(self, *frames: bytes) -> None:
        """Entries or beats come from the primary."""
        for frame in frames:
            kind, position, _ = fx.decode_head(frame)
            expected = len(self.frames) + len(self.received) + 1
            if kind == fx.ENTRY and position.seq == expected:
                self.received.append(frame)
        self.core.entries_received(frames, self.now_ns, self.unix_ms)
        self.perform()

    def sync(self) -> None:
        """The storage writer makes durable what was decided here or came from the primary."""
        self.frames += self.received
        self.received.clear()
        if self.published:
            super().sync()
        elif self.frames:
            self.core.made_durable(len(self.frames), self.now_ns)
            self.perform()
        else:
            self.perform()


class Cluster:
    """Node 1 is the primary of epoch 1.1.1, the others follow it."""

    def __init__(self, replicas: int = 1, **settings: Any) -> None:
        self.nodes = [NodeDriver(number, **settings) for number in range(1, replicas + 2)]
        self.primary, *self.replicas = self.nodes
        self.carried = 0  # entries that the replicas have been given
        self.primary.hear(pm.BE_PRIMARY, 1, None)
        self.primary.sync()
        for node in self.replicas:
            node.hear(pm.BE_REPLICA, EPOCH, 1)
            node.hear(pm.PRIMARY_IS, "node1", "tcp://node1")
            self.primary.hear(pm.ADMIT, node.settings.name, node.settings.directory, 1, 0)
            self.primary.sync()
        self.carry()

    def database(self, name: str = "d", **options: Any) -> None:
        """Makes database 1."""
        client = self.primary.client(None)
        number = client.next_number()
        self.primary.receive(client.message(number, m.CREATE_DATABASE, name, "token", options))
        self.primary.work_on_secrets()
        self.carry()
        assert client.reply_to(number) is not None

    def forward(self) -> None:
        """Takes proposals to the primary, and its decisions back."""
        for node in self.replicas:
            for _, proposals in node.told(pm.PROPOSE):
                bodies = [[node.number, ticket, body] for ticket, body in proposals]
                self.primary.hear(pm.PROPOSALS, bodies)
        self.answer()

    def answer(self) -> None:
        for _, decisions in self.primary.told(pm.DECISIONS):
            for origin, ticket, frame in decisions:
                self.nodes[origin - 1].hear(pm.PROPOSED, [[ticket, frame]])

    def carry(self) -> None:
        """Everything that was decided becomes durable everywhere and is acked; replies come back."""
        self.primary.sync()
        for node in self.replicas:
            missing = self.primary.frames[len(node.frames) + len(node.received) :]
            node.entries(*missing)
            node.sync()
        self.ack()
        self.answer()

    def ack(self) -> None:
        """The replicators tell each other how far the disks are."""
        durable = sorted((node.core.local_durable for node in self.replicas), reverse=True)
        everyone = sorted([self.primary.core.local_durable, *durable], reverse=True)
        settled = everyone[len(everyone) // 2]
        self.primary.hear(pm.ACKED, settled, durable, len(durable))
        for node in self.replicas:
            node.hear(pm.PRIMARY_AT, EPOCH, self.primary.core.local_durable, settled, 0, 0)
