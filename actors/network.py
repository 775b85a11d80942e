"""The network process: clients on one side, the op stream and the storage writer's acks on the other.

It moves messages and time; what they mean is decided by nun/core/network.py. Its life:

    wait for RECOVERED  ->  load files and log  ->  see the writer's subscription  ->  a role: on its own at once the
    primary's, in a cluster what the replicator says  ->  the epoch's first entry is durable, or a primary is followed:
    bind the client socket, ready  ->  serve  ->  STOP: answer what is pending, snapshot, exit 0

A node of a cluster that finds no primary for a while serves what it has: reads, and NoPrimary to writes.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NoReturn

import zmq

from actors import sockets
from actors.child import Child, run_child
from actors.floods import FloodGuard
from actors.processes import describe_processes
from actors.secrets import check_secret, hash_secret
from nun import messages as m
from nun import peer_messages as pm
from nun.codec import pack, unpack
from nun.config import ConflictsConfig
from nun.core import effects as fx
from nun.core.network import NetworkCore
from nun.core.newcomers import Secrets, secrets_in_clear
from nun.core.output import Output
from nun.core.proposals.repeats import Held, first_unseen, request_of
from nun.core.settings import ConflictSettings, Settings
from nun.core.state import NodeState
from nun.errors import Compacted, DamagedFile, StorageError
from nun.limits import DRAIN_BYTES_MAX, DRAIN_MESSAGES_MAX, LOG_READ_BYTES_MAX, UNFINISHED_BYTES_MAX
from nun.position import Position
from storage.disk import RealDisk
from storage.log_reader import LOOK_AGAIN_S, LogReader
from storage.outbox import read_outbox
from storage.recovery import Loaded, entries, load

BEAT_S: Final = 0.1
WATCHED_BEAT_S: Final = 0.02  # while somebody is suspected of a flood
TICK_S: Final = 1.0
ALONE_S: Final = 3.0  # a node of a cluster waits so long for a primary before it serves without one
_SECRET_THREADS: Final = 1
_FINAL_SNAPSHOT: Final = 0  # the ticket of the snapshot that is taken at a clean stop


def _random() -> int:
    return int.from_bytes(os.urandom(8), "little")


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000


class Network:
    """The network process of one node."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.config = child.config
        self.loop = child.loop
        self.log = child.log
        self.stream = sockets.op_stream_publisher(child.context, child.run_dir)
        self.acks = sockets.op_acks_router(child.context, child.run_dir)
        self.clients: Any = None
        self.floods: FloodGuard | None = None
        self.writer_id: bytes | None = None
        self.core: NetworkCore | None = None
        self.reader = LogReader(RealDisk(self.config.node.data_dir))
        self.secrets = ThreadPoolExecutor(_SECRET_THREADS, thread_name_prefix="scrypt")
        self.clustered = bool(self.config.replication.listen)
        self.replica_stream: Any = None
        self.subscribed = False
        self.begun = False
        self.serving = False
        self.stopping = False
        self.finishing = False
        self.loop.on_readable(self.acks, self.acks_readable)
        self.loop.on_readable(self.stream, self.subscriptions_readable)
        if self.clustered:
            self.replica_stream = sockets.replica_stream_subscriber(child.context, child.run_dir)
            self.loop.on_readable(self.replica_stream, self.replica_stream_readable)
        self.loop.every(BEAT_S, self.beat)
        self.loop.every(TICK_S, self.tick)
        child.on_stop(self.stop)

    # Starting

    def recovered(self, message: list[Any]) -> None:
        """The storage writer has the directory in order: load it."""
        began = time.monotonic()
        try:
            disk = RealDisk(self.config.node.data_dir)
            loaded = load(disk, self.reader)
            held = self.held(read_outbox(disk), loaded.state)
        except StorageError as error:
            self.child.fail(str(error), 3)
            return
        seconds = round(time.monotonic() - began, 3)
        clear = secrets_in_clear(loaded.state, loaded.tables)
        if not clear:
            self.begin(message, loaded, held, seconds, {})
            return
        self.log.info("hashes_tokens", tokens=len(clear))
        self.hash_all(clear, partial(self.begin, message, loaded, held, seconds))

    def hash_all(self, clear: Secrets, go_on: Callable[[Secrets], None]) -> None:
        """Hashes what NunDB kept in the clear, before anybody is served."""
        threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="scrypt")
        hashes: dict[tuple[int, bytes], bytes] = {}

        def hashed(place: tuple[int, bytes], future: Future[str]) -> None:
            hashes[place] = future.result().encode()
            if len(hashes) == len(clear):
                go_on(hashes)

        def tell(place: tuple[int, bytes], future: Future[str]) -> None:
            self.loop.call_soon_threadsafe(partial(hashed, place, future))

        for place, secret in clear.items():
            threads.submit(hash_secret, secret).add_done_callback(partial(tell, place))
        threads.shutdown(wait=False)

    def begin(
        self, message: list[Any], loaded: Loaded, held: Held, seconds: float, hashes: Secrets
    ) -> None:
        """There is state to go on from."""
        _, cluster_id, node, start, _, directory = message
        state = loaded.state
        limits = self.config.limits
        settings = Settings(
            name=self.config.node.name,
            directory=directory,
            admin_user=self.config.security.admin_user,
            admin_password=self.config.security.admin_password,
            tombstone_retention_s=self.config.storage.tombstone_retention_s,
            sessions_max=limits.sessions_max,
            watches_max=limits.watches_max,
            watches_per_session_max=limits.watches_per_session_max,
            unread_bytes_max=limits.unread_bytes_max,
            pending_bytes_max=limits.pending_bytes_max,
            request_rows_bytes_max=limits.request_rows_bytes_max,
            databases_max=limits.databases_max,
            clustered=self.clustered,
            address=self.config.network.advertise or self.config.network.listen,
            ack=level_named(self.config.replication.ack),
            min_replicas=self.config.replication.min_replicas,
            max_clock_offset_ms=self.config.replication.max_clock_offset_ms,
            conflicts=conflict_settings(self.config.conflicts),
            gateway_secret=self.child.secret,
            check_interval_s=self.config.replication.check_interval_s if self.clustered else 0.0,
        )
        self.core = NetworkCore(
            settings,
            node,
            start,
            cluster_id,
            state,
            loaded.tables,
            _random,
            time.monotonic_ns(),
            held,
        )
        self.core.roles.newcomers.hashes = hashes
        gc.collect()
        gc.freeze()
        gc.disable()
        self.log.info(
            "loaded",
            databases=len(state.databases),
            keys=sum(table.live for table in self.core.tables.values()),
            position=None if state.position is None else str(state.position),
            seconds=seconds,
        )
        self.join()

    def held(self, outbox: tuple[int, list[tuple[int, bytes]]], state: NodeState) -> Held:
        """The outbox, and which of its requests the log from where they were made on has decided."""
        following, items = outbox
        last = 0 if state.position is None else state.position.seq
        reaches = self.reader.first_seq() - 1
        seen_from = max(first_unseen(items, state), reaches if reaches >= 0 else last)
        asked = {request_of(data) for _, data in items}
        decided = {
            (effect[1], effect[2]): (effect[4], effect[6])
            for _, effects in entries(self.reader, seen_from + 1, last)
            for effect in effects
            if effect[0] == fx.OUTCOME and (effect[1], effect[2]) in asked
        }
        return Held(following, items, seen_from, decided)

    def subscriptions_readable(self) -> bool:
        """A subscription on the op stream: from here on its subscriber gets what is sent."""
        worked = False
        for frame in sockets.frames(self.stream):
            worked = True
            self.subscribed = self.subscribed or frame[:1] == b"\x01"
        self.join()
        return worked

    def join(self) -> None:
        """Begins the epoch once there is state to go on from and a writer that listens."""
        if self.core is None or not self.subscribed or self.begun:
            return
        self.begun = True
        self.to_writer((m.SUBSCRIBED, self.core.stream.last_seq))
        if self.clustered:
            self.core.roles.tell_state()
            self.loop.after(ALONE_S, self.serve_alone)
        else:
            self.core.begin(_unix_ms())
        self.perform(self.core.take_output())

    def may_serve(self) -> bool:
        """Whether clients may come in: the epoch's first entry is durable, or a primary is followed."""
        core = self.core
        if core is None or self.serving or not core.state.epochs or not core.roles.joined:
            return False
        if core.decides:
            return core.local_durable >= core.state.epochs[-1][1]
        return core.roles.primary is not None and core.roles.following

    def serve_alone(self) -> None:
        """Lets clients in though no primary was found, unless this node still lacks what it joined with."""
        assert self.core is not None
        if self.core.roles.joined:
            self.serve()

    def serve(self) -> None:
        """Lets clients in."""
        if self.serving or self.stopping:
            return
        self.serving = True
        network, security = self.config.network, self.config.security
        try:
            self.clients = sockets.client_requests(
                self.child.context,
                network.listen,
                security.curve_secret_key,
                self.child.run_dir,
            )
        except zmq.ZMQError as error:
            self.child.fail(f"cannot listen on {network.listen}: {error.strerror}", 3)
            return
        self.floods = FloodGuard(sockets.port_of(self.clients))
        self.loop.on_readable(self.clients, self.clients_readable)
        assert self.core is not None
        self.child.ready(
            address=network.listen, epoch=str(self.core.stream.epoch), role=self.core.roles.name
        )

    # Turns

    def clients_readable(self) -> bool:
        """One turn: drain what clients sent, decide, publish, answer, settle."""
        core, floods = self.core, self.floods
        assert core is not None
        assert floods is not None
        began = time.monotonic_ns()
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        emptied = True
        requests = self.watched_requests if floods.watching else sockets.requests
        for peer, body in requests(self.clients, core.origins):
            if body is None:
                core.metrics.malformed += 1
                continue
            batch.append((peer, body))
            size += len(body)
            if len(batch) >= DRAIN_MESSAGES_MAX or size >= DRAIN_BYTES_MAX:
                emptied = False
                break
        floods.turn_ended(len(batch), emptied)
        if not batch:
            return False
        core.requests_received(batch, began, _unix_ms())
        out = core.take_output()
        self.perform(out)
        if out.publish is None:
            core.metrics.latency["read"].observe(time.monotonic_ns() - began, len(batch))
        return True

    def watched_requests(
        self, socket: sockets.Socket, origins: dict[bytes, str]
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """The requests that wait, while somebody is suspected of a message without end."""
        assert self.floods is not None
        while (received := sockets.receive_request_from(socket, origins)) is not None:
            peer, body, descriptor = received
            self.floods.told(descriptor)
            yield peer, body

    def acks_readable(self) -> bool:
        """What the other processes say; of many DURABLE only the last counts."""
        durable: Position | None = None
        for peer, body in sockets.requests(self.acks):
            if body is None:
                continue
            message = unpack(body)
            if message[0] == m.DURABLE:
                durable = Position(*message[1:5])
            elif peer == sockets.REPLICATOR_ID:
                self.replicator_says(message)
            elif peer == sockets.MANAGER_ID:
                self.manager_says(message)
            else:
                self.writer_says(peer, message)
        if durable is not None and self.core is not None:
            self.core.made_durable(durable.seq, time.monotonic_ns(), durable.epoch)
            self.perform(self.core.take_output())
            if self.stopping:
                self.finish()
        if self.may_serve():
            self.serve()
        return True

    def replicator_says(self, message: list[Any]) -> None:
        """Roles, acks, proposals; until there is state to speak of, the replicator asks again."""
        if self.core is not None and self.begun:
            self.core.replicator_says(message, time.monotonic_ns(), _unix_ms())
            self.perform(self.core.take_output())

    def manager_says(self, message: list[Any]) -> None:
        """Offers, expiries. What it missed before there was state it is told when this node begins to decide."""
        if self.core is not None and self.begun:
            self.core.manager_says(message, time.monotonic_ns(), _unix_ms())
            self.perform(self.core.take_output())

    def replica_stream_readable(self) -> bool:
        """One turn: drain what the primary has decided, and adopt it."""
        frames: list[bytes] = []
        size = 0
        for frame in sockets.frames(self.replica_stream):
            frames.append(frame)
            size += len(frame)
            if len(frames) >= DRAIN_MESSAGES_MAX or size >= DRAIN_BYTES_MAX:
                break
        if not frames or self.core is None or not self.begun:
            return bool(frames)
        self.core.entries_received(frames, time.monotonic_ns(), _unix_ms())
        self.perform(self.core.take_output())
        return True

    def writer_says(self, peer: bytes, message: list[Any]) -> None:
        kind = message[0]
        if kind == m.RECOVERED:
            self.writer_id = peer
            self.recovered(message)
            return
        core = self.core
        if core is None:
            return
        if kind == pm.OUTBOX_DURABLE:
            core.outbox_durable(message[1], time.monotonic_ns())
        elif kind == m.GAP:
            core.entries_wanted(message[1])
        elif kind == m.DISK:
            core.disk_changed(message[1], message[2].decode())
        elif kind == m.UNSETTLED:
            core.log_changed(message[1], message[2])
        elif kind == m.STORAGE:
            storage = _text(message[2])
            core.admin.storage_described(message[1], storage, self.processes())
        elif kind == m.SNAPSHOT_TAKEN:
            _, ticket, error, report = message
            if ticket == _FINAL_SNAPSHOT:
                self.loop.stop()
                return
            core.admin.snapshot_taken(ticket, None if error is None else error.decode(), report)
        self.perform(core.take_output())

    def perform(self, out: Output) -> None:
        """Does what the core wants, in order; then the memory work that it put off."""
        core = self.core
        assert core is not None
        while True:
            if out.publish is not None:
                sockets.send_frame(self.stream, out.publish)
            for item in out.items:
                sockets.send_frame(self.stream, item)
            if out.sends:
                self.send_all(out.sends)
            for message in out.to_writer:
                self.to_writer(message)
            for message in out.to_replicator:
                sockets.send_reply(self.acks, sockets.REPLICATOR_ID, pack(message))
            for message in out.to_manager:
                sockets.send_reply(self.acks, sockets.MANAGER_ID, pack(message))
            for event, fields in out.notes:
                self.log.info(event, **fields)
            if out.restart is not None:
                self.child.ask_restart(out.restart)
            for ticket, work, given, stored in out.secrets:
                self.secrets.submit(self.work_on_secret, ticket, work, given, stored)
            core.settle()
            if not out.log_reads:
                return
            for watch, from_seq in out.log_reads:
                self.read_log(watch, from_seq)
            out = core.take_output()

    def send_all(self, sends: Sequence[tuple[bytes, bytes]]) -> None:
        clients = self.clients
        if clients is None:
            return
        send_reply = sockets.send_reply
        for peer, frame in sends:
            sent = send_reply(clients, peer, frame)
            if sent is not sockets.Sent.SENT:
                assert self.core is not None
                self.core.peer_gone(peer, sent.name.lower())

    def read_log(self, watch: int, from_seq: int, again: bool = False) -> None:
        """Reads the log for a watch that is behind; for watch 0, what this node itself has missed."""
        core = self.core
        assert core is not None
        last = core.stream.durable_seq if watch else core.local_durable
        try:
            frames = self.reader.read(from_seq, LOG_READ_BYTES_MAX, last)
        except Compacted:
            core.log_read(watch, None)
        except DamagedFile:
            if again:
                raise
            # It may have been cut back just now: then this process is started anew before it looks again.
            self.loop.after(LOOK_AGAIN_S, lambda: self.read_log_again(watch, from_seq))
        else:
            core.log_read(watch, frames)

    def read_log_again(self, watch: int, from_seq: int) -> None:
        assert self.core is not None
        self.read_log(watch, from_seq, again=True)
        self.perform(self.core.take_output())

    def to_writer(self, message: tuple[Any, ...]) -> None:
        if self.writer_id is not None:
            sockets.send_reply(self.acks, self.writer_id, pack(message))

    def work_on_secret(self, ticket: int, work: str, given: bytes, stored: bytes) -> None:
        """In a thread: scrypt."""
        if work == "hash":
            text: str | None = hash_secret(given)
        else:
            text = "" if check_secret(given, stored) else None
        self.loop.call_soon_threadsafe(lambda: self.secret_done(ticket, text))

    def secret_done(self, ticket: int, text: str | None) -> None:
        core = self.core
        assert core is not None
        core.admin.secret_done(ticket, text, time.monotonic_ns(), _unix_ms())
        self.perform(core.take_output())

    # Time

    def beat(self) -> None:
        """Says which entry was the last that was decided here, so that a lost tail shows."""
        core = self.core
        if core is None or not self.begun:
            return
        if core.decides or core.roles.stepping_down:
            sockets.send_frame(self.stream, fx.encode_beat(core.stream.epoch, core.stream.last_seq))
        core.beat(time.monotonic_ns())
        self.perform(core.take_output())
        if self.floods is not None and not self.floods.watching:
            self.look_for_floods()

    def look_for_floods(self) -> None:
        """Ends connections that send a message without end."""
        floods, core = self.floods, self.core
        if floods is None or core is None or self.stopping:
            return
        began_ns = time.monotonic_ns()
        for cut in floods.look(began_ns):
            core.metrics.floods += 1
            self.log.warning(
                "flood_cut",
                peer=cut.address,
                bytes=cut.unfinished_bytes,
                reason=f"no end of a message within {UNFINISHED_BYTES_MAX} bytes",
            )
        floods.rest(began_ns, time.monotonic_ns())
        if floods.judging:
            self.clients_readable()
        if floods.watching:
            self.loop.after(WATCHED_BEAT_S, self.look_for_floods)

    def tick(self) -> None:
        core = self.core
        if core is None or not self.serving or self.stopping:
            return
        core.ticked(time.monotonic_ns(), _unix_ms())
        for ticket in core.admin.overdue(core.now_ns):
            core.admin.storage_described(ticket, None, self.processes())
        self.perform(core.take_output())

    def processes(self) -> dict[str, Any]:
        return describe_processes(self.child.siblings)

    # The end

    def stop(self) -> None:
        """Takes no more requests; when all that was decided is durable and answered, asks for a last snapshot."""
        self.stopping = True
        if self.clients is not None:
            self.clients_readable()
            self.loop.forget(self.clients)
        self.finish()

    def finish(self) -> None:
        core = self.core
        if core is None or not self.serving:
            self.loop.stop()
        elif not self.finishing and not (core.decides and core.stream.pending):
            self.finishing = True
            self.to_writer((m.TAKE_SNAPSHOT, _FINAL_SNAPSHOT, None, False))


def conflict_settings(config: ConflictsConfig) -> ConflictSettings:
    """What the configuration says about conflicts, as the core takes it."""
    return ConflictSettings(
        defaults={
            "no_arbiter": config.no_arbiter,
            "conflict_timeout_s": config.timeout_s,
            "conflict_fallback": config.fallback,
            "close_calls": config.close_calls,
        },
        resolved_retention_s=config.resolved_retention_s,
        per_key_warn=config.per_key_warn,
        per_key_max=config.per_key_max,
        per_key_bytes_max=config.per_key_bytes_max,
        conflicts_max=config.conflicts_max,
        bytes_max=config.bytes_max,
    )


def level_named(name: str | int) -> int:
    """The ack level that a configuration names."""
    if isinstance(name, int):
        return name
    return {
        "primary": m.ACK_PRIMARY,
        "local": m.ACK_LOCAL,
        "majority": m.ACK_MAJORITY,
        "all": m.ACK_ALL,
    }[name]


def _text(value: Any) -> Any:
    """Texts of a decoded message as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value


def main() -> NoReturn:
    """The process: see the module's docstring."""
    run_child(Network)


if __name__ == "__main__":
    main()
