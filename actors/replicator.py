"""The replicator: the only process that talks to other nodes.

It moves messages and time; what they mean is decided by nun/core/replication/replicator.py. One turn drains every
socket that has something, and then does what the core wants:

    this node's op stream --> entries decided here --> node stream --> other nodes
    another node's stream --> entries --> replica stream --> this node's writer and network process
    requests and answers of other nodes, of the writer, of the network process

It holds nothing that is not elsewhere: it may die alone and goes on from what network process and writer tell it.
"""

from __future__ import annotations

import gc
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import zmq

from actors import sockets
from actors.admission import admit_only
from actors.child import Child, run_child
from nun.codec import pack, unpack
from nun.core.replication.replicator import Output, ReplicatorCore
from nun.core.settings import ReplicatorSettings
from nun.errors import Compacted, DamagedFile, StorageError, WireError
from nun.limits import DRAIN_BYTES_MAX, DRAIN_MESSAGES_MAX
from storage.disk import RealDisk
from storage.log_reader import LOOK_AGAIN_S, LogReader

TICK_S: Final = 0.02


def _random() -> int:
    return int.from_bytes(os.urandom(8), "little")


def _unix_us() -> int:
    return time.time_ns() // 1_000


class Replicator:
    """The replicator of one node."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.log = child.log
        self.loop = child.loop
        config = child.config
        replication = config.replication
        self.curve = sockets.Curve(replication.curve_public_key, replication.curve_secret_key)
        self.peer_keys = replication.peer_public_keys
        self.data_dir = Path(config.node.data_dir)
        self.reader = LogReader(RealDisk(self.data_dir))
        settings = ReplicatorSettings(
            name=config.node.name,
            primary=replication.primary,
            peers=replication.peers,
            publish=replication.advertise or replication.publish,
            client=config.network.advertise or config.network.listen,
            max_clock_offset_ms=replication.max_clock_offset_ms,
            echo_above=replication.echo_above,
            gateway=config.gateway.advertise,
        )
        self.core = ReplicatorCore(settings, time.monotonic_ns(), _unix_us(), _random)
        context, run_dir = child.context, child.run_dir
        self.guard = admit_only(context, self.peer_keys.values()) if self.curve.secret_key else None
        self.op_stream = sockets.op_stream_subscriber(context, run_dir)
        self.op_acks = sockets.replicator_acks_dealer(context, run_dir)
        self.replica_stream = sockets.replica_stream_publisher(context, run_dir)
        self.replica_acks = sockets.replica_acks_router(context, run_dir)
        self.node_stream = sockets.node_stream_publisher(context, replication.publish, self.curve)
        self.requests = sockets.node_requests_router(context, replication.listen, self.curve)
        self.peers = {
            name: sockets.node_requests_dealer(
                context, address, config.node.name, self.curve, self.peer_keys.get(name, "")
            )
            for name, address in replication.peers.items()
        }
        self.followed: Any = None
        on = self.loop.on_readable
        on(self.op_stream, self.op_stream_readable)
        on(self.op_acks, self.network_readable)
        on(self.replica_stream, self.replica_stream_readable)
        on(self.replica_acks, self.writer_readable)
        on(self.node_stream, self.subscriptions_readable)
        on(self.requests, self.requests_readable)
        for name, socket in self.peers.items():
            on(socket, partial(self.answers_readable, name, socket))
        self.loop.every(TICK_S, self.tick)
        gc.collect()
        gc.freeze()

    # What comes in

    def begin(self) -> ReplicatorCore:
        """The core, told the present time."""
        self.core.now_ns = time.monotonic_ns()
        self.core.unix_us = _unix_us()
        return self.core

    def op_stream_readable(self) -> bool:
        core = self.begin()
        size = count = 0
        while count < DRAIN_MESSAGES_MAX and size < DRAIN_BYTES_MAX:
            frame = sockets.receive_frame(self.op_stream)
            if frame is None:
                break
            core.local_frame(frame)
            count += 1
            size += len(frame)
        self.perform(core.take_output())
        return bool(count)

    def network_readable(self) -> bool:
        core = self.begin()
        while (frame := sockets.receive_frame(self.op_acks)) is not None:
            core.from_network(unpack(frame))
        self.perform(core.take_output())
        return True

    def writer_readable(self) -> bool:
        core = self.begin()
        while (received := sockets.receive_request(self.replica_acks)) is not None:
            if received[1] is not None:
                core.from_writer(unpack(received[1]))
        self.perform(core.take_output())
        return True

    def replica_stream_readable(self) -> bool:
        """Subscriptions of this node's own processes; beats and gaps tell them what they missed before."""
        while sockets.receive_frame(self.replica_stream) is not None:
            pass
        return False

    def subscriptions_readable(self) -> bool:
        core = self.begin()
        while (frame := sockets.receive_frame(self.node_stream)) is not None:
            if frame[:1] == b"\x01":
                core.subscribed(frame[1:])
        self.perform(core.take_output())
        return True

    def requests_readable(self) -> bool:
        core = self.begin()
        count = 0
        while count < DRAIN_MESSAGES_MAX:
            received = sockets.receive_request(self.requests)
            if received is None:
                break
            count += 1
            peer, body = received
            try:
                message = None if body is None else unpack(body)
            except WireError:
                message = None
            if isinstance(message, list) and message:
                core.peer_asks(peer, message)
            else:
                core.malformed += 1
        self.perform(core.take_output())
        return bool(count)

    def answers_readable(self, name: str, socket: sockets.Socket) -> bool:
        core = self.begin()
        count = 0
        while count < DRAIN_MESSAGES_MAX and (body := sockets.receive_frame(socket)) is not None:
            count += 1
            try:
                message = unpack(body)
            except WireError:
                message = None
            if isinstance(message, list) and message:
                core.from_peer(name, message)
            else:
                core.malformed += 1
        self.perform(core.take_output())
        return bool(count)

    def followed_readable(self) -> bool:
        core = self.begin()
        size = count = 0
        while count < DRAIN_MESSAGES_MAX and size < DRAIN_BYTES_MAX:
            received = sockets.receive_topic(self.followed)
            if received is None:
                break
            core.stream_received(*received)
            count += 1
            size += len(received[1])
        self.perform(core.take_output())
        return bool(count)

    def tick(self) -> None:
        self.core.ticked(time.monotonic_ns(), _unix_us())
        self.perform(self.core.take_output())

    # What goes out

    def perform(self, out: Output) -> None:
        """Does what the core wants; reading may want more."""
        while True:
            for frame in out.deliver:
                sockets.send_frame(self.replica_stream, frame)
            for topic, frame in out.publish:
                sockets.send_topic(self.node_stream, topic, frame)
            for message in out.to_writer:
                sockets.send_reply(self.replica_acks, sockets.WRITER_ID, pack(message))
            for message in out.to_network:
                sockets.send_frame(self.op_acks, pack(message))
            for name, message in out.to_peers:
                sockets.send_frame(self.peers[name], pack(message))
            for peer, message in out.answers:
                sockets.send_reply(self.requests, peer, pack(message))
            for event, fields in out.notes:
                level = fields.pop("level", "info")
                getattr(self.log, level)(event, **fields)
            if out.unfollow or out.follow is not None:
                self.follow(out.follow)
            if out.restart is not None:
                self.child.ask_restart(out.restart)
            if not out.log_reads and not out.copy_reads:
                return
            for ticket, from_seq, size, up_to in out.log_reads:
                self.read_log(ticket, from_seq, size, up_to)
            for ticket, file, offset, size in out.copy_reads:
                self.core.copy_read(ticket, self.read_copy(file, offset, size))
            out = self.core.take_output()

    def follow(self, source: tuple[str, str, list[bytes]] | None) -> None:
        """Subscribes to another node's stream, or to none."""
        if self.followed is not None:
            self.loop.forget(self.followed)
            self.followed.close(0)
            self.followed = None
        if source is not None:
            name, address, topics = source
            key = self.peer_keys.get(name, "")
            try:
                self.followed = sockets.node_stream_subscriber(
                    self.child.context, address, topics, self.curve, key
                )
            except zmq.ZMQError as error:
                self.log.error("cannot_follow", peer=name, address=address, reason=error.strerror)
                return
            self.loop.on_readable(self.followed, self.followed_readable)

    def read_log(
        self, ticket: int, from_seq: int, size: int, up_to: int, again: bool = False
    ) -> None:
        """Reads the log for another node."""
        try:
            frames = self.reader.read(from_seq, size, up_to)
        except Compacted:
            self.core.log_read(ticket, None)
        except DamagedFile:
            if again:
                raise
            # It may have been cut back just now: then this process is started anew before it looks again.
            self.loop.after(
                LOOK_AGAIN_S, lambda: self.read_log_again(ticket, from_seq, size, up_to)
            )
        else:
            self.core.log_read(ticket, frames)

    def read_log_again(self, ticket: int, from_seq: int, size: int, up_to: int) -> None:
        core = self.begin()
        self.read_log(ticket, from_seq, size, up_to, again=True)
        self.perform(core.take_output())

    def read_copy(self, file: str, offset: int, size: int) -> bytes | None:
        """A part of one of the files that the writer holds as they are."""
        try:
            with open(self.data_dir / file, "rb") as opened:
                return os.pread(opened.fileno(), size, offset) or None
        except OSError as error:
            self.log.warning("copy_not_read", file=file, reason=error.strerror)
            return None


def make(child: Child) -> Replicator | None:
    """Starts the replicator, or says why it cannot."""
    try:
        return Replicator(child)
    except zmq.ZMQError as error:
        replication = child.config.replication
        addresses = f"{replication.listen} and {replication.publish}"
        child.fail(f"cannot listen for other nodes on {addresses}: {error.strerror}")
    except StorageError as error:
        child.fail(str(error))
    return None


def main() -> NoReturn:
    """The process: see the module's docstring."""
    run_child(make)


if __name__ == "__main__":
    main()
