"""The storage writer on a real directory; the test plays the network process."""

from __future__ import annotations

import errno
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from actors import sockets, writer
from actors.loop import FAULT, Loop
from actors.writer import Writer
from nun import messages as m
from nun.codec import pack, unpack
from nun.config import Config, NodeConfig, StorageConfig
from nun.core import effects as fx
from nun.position import Epoch, Position
from storage import manifest

PATIENCE_MS = 5_000
SILENCE_MS = 150
EPOCH = Epoch(1, 1, 1)
pytestmark = pytest.mark.timeout(60)


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def note(self, event: str, **fields: Any) -> None:
        if fields.get("exc_info"):
            fields["exception"] = traceback.format_exc()
        self.lines.append((event, fields))

    debug = info = warning = error = critical = note


class FakeChild:
    """What a writer needs of actors.child.Child."""

    def __init__(self, root: Path, storage: StorageConfig) -> None:
        self.config = Config(NodeConfig(data_dir=str(root / "data")), storage=storage)
        self.run_dir = root
        self.log = Log()
        self.debug = True
        self.loop = Loop(log=self.log)
        self.context: Any = zmq.Context()
        self.stop: Callable[[], Any] = self.loop.stop
        self.failed: list[tuple[str, int]] = []

    def on_stop(self, call: Callable[[], Any]) -> None:
        self.stop = call

    def fail(self, text: str, status: int = 3) -> None:
        self.failed.append((text, status))


class Network:
    """The other end: publishes entries and hears what the writer says."""

    def __init__(self, root: Path, storage: StorageConfig) -> None:
        self.context: Any = zmq.Context()
        self.stream = sockets.op_stream_publisher(self.context, root)
        self.acks = sockets.op_acks_router(self.context, root)
        self.child = FakeChild(root, storage)
        made = writer.make(self.child)  # type: ignore[arg-type]
        assert made is not None, self.child.failed
        self.writer = made
        self.status: list[int] = []
        self.thread = threading.Thread(target=lambda: self.status.append(self.child.loop.run()))
        self.thread.start()
        self.recovered = self.hear(m.RECOVERED)
        assert self.stream.poll(PATIENCE_MS)
        assert sockets.receive_frame(self.stream) == b"\x01"
        last = self.recovered[4]
        self.seq: int = last[3] if last else 0
        self.tell(m.SUBSCRIBED, self.seq)

    def hear(self, *kinds: int) -> Any:
        """The next message of one of these kinds."""
        while self.acks.poll(PATIENCE_MS):
            received = sockets.receive_request(self.acks)
            assert received is not None
            peer, body = received
            assert peer == sockets.WRITER_ID
            assert body is not None
            message = unpack(body)
            if message[0] in kinds:
                return message
        raise AssertionError(f"the writer never said {kinds}: {self.child.log.lines}")

    def hears_nothing(self) -> bool:
        return not self.acks.poll(SILENCE_MS)

    def tell(self, *message: Any) -> None:
        sent = sockets.send_reply(self.acks, sockets.WRITER_ID, pack(message))
        assert sent is sockets.Sent.SENT

    def entry(self, seq: int, value: bytes = b"v") -> bytes:
        effects: list[Any] = [(fx.PUT, 1, seq << 10, 1, 0, b"k%d" % seq, value)]
        if seq == 1:
            begin = (fx.EPOCH, bytes(self.recovered[1]), {1: [b"node1", b"d" * 16, 1]}, 2)
            effects = [begin, (fx.DATABASE, 1, b"shop", {b"token": b"t"}), *effects]
        return fx.encode_entry(Position.at(EPOCH, seq), effects)

    def publish(self, count: int = 1, value: bytes = b"v") -> None:
        for _ in range(count):
            self.seq += 1
            sockets.send_frame(self.stream, self.entry(self.seq, value))

    def beat(self, seq: int) -> None:
        sockets.send_frame(self.stream, fx.encode_beat(EPOCH, seq))

    def durable(self, seq: int) -> None:
        while (message := self.hear(m.DURABLE))[4] < seq:
            pass
        assert message == [m.DURABLE, *EPOCH, seq]

    def in_loop(self, call: Callable[[], Any]) -> Any:
        """Runs something on the writer's thread."""
        done = threading.Event()
        results = []
        self.child.loop.call_soon_threadsafe(lambda: (results.append(call()), done.set()))
        assert done.wait(PATIENCE_MS / 1000)
        return results[0]

    def stop(self) -> int:
        self.child.loop.call_soon_threadsafe(self.child.stop)
        return self.ended()

    def ended(self) -> int:
        self.thread.join(PATIENCE_MS / 1000)
        assert not self.thread.is_alive()
        return self.status[0]

    def close(self) -> None:
        if self.thread.is_alive():
            self.child.loop.call_soon_threadsafe(lambda: self.child.loop.stop(9))
            self.ended()
        self.writer.threads.shutdown()
        if self.status != [0]:  # a clean stop has done so
            self.writer.directory.close()
        self.child.context.destroy(linger=0)
        self.child.loop.close()
        self.context.destroy(linger=0)


@pytest.fixture
def root() -> Iterator[Path]:
    """Short enough for sockets in it, as pytest's own folders are not."""
    with tempfile.TemporaryDirectory(prefix="nun-t-") as name:
        yield Path(name)


@pytest.fixture
def start(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Network]]:
    monkeypatch.setattr(Writer, "leave_garbage_alone", lambda _: None)  # this process is shared
    monkeypatch.setattr(writer, "DISK_RETRY_S", 0.02)
    monkeypatch.setattr(writer, "TICK_S", 0.01)
    running: list[Network] = []

    def start(**storage: Any) -> Network:
        defaults = {"segment_bytes": 65536, "oplog_bytes": 262144, "snapshot_interval_s": 0.0}
        network = Network(root, StorageConfig(**{**defaults, **storage}))
        running.append(network)
        return network

    yield start
    for network in running:
        if not network.child.context.closed:
            network.close()


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_what_was_published_becomes_durable_and_is_there_again(
    start: Callable[..., Network], fsync: str
) -> None:
    network = start(fsync=fsync, fsync_interval_ms=5)
    assert network.recovered[2:5] == [1, 1, None]
    network.publish(10)
    network.durable(10)
    assert network.stop() == 0
    network.close()
    again = start(fsync=fsync)
    assert again.recovered[1] == network.recovered[1], "another cluster"
    assert again.recovered[2:5] == [1, 2, [*EPOCH, 10]]


def test_a_turn_costs_one_append_one_sync_one_message(
    start: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = start()
    calls: list[str] = []
    oplog = network.writer.oplog
    for name in ("append", "sync"):
        plain = getattr(oplog, name)

        def counted(*arguments: Any, name: str = name, plain: Any = plain) -> None:
            calls.append(name)
            plain(*arguments)

        monkeypatch.setattr(oplog, name, counted)
    frames = [network.entry(seq) for seq in range(1, 51)]
    network.in_loop(lambda: network.writer.take(frames))
    assert network.hear(m.DURABLE)[4] == 50
    assert calls == ["append", "sync"]
    assert network.hears_nothing()


def test_a_hole_is_asked_for_and_filled(start: Callable[..., Network]) -> None:
    network = start()
    for seq in (1, 3, 4):
        sockets.send_frame(network.stream, network.entry(seq))
    network.durable(1)
    assert network.hear(m.GAP) == [m.GAP, 2]
    network.tell(m.ENTRIES, [network.entry(seq) for seq in (2, 3, 4)])
    network.durable(4)
    sockets.send_frame(network.stream, network.entry(2))  # a straggler changes nothing
    sockets.send_frame(network.stream, network.entry(5))
    network.durable(5)


def test_a_lost_tail_shows_with_the_next_beat(start: Callable[..., Network]) -> None:
    network = start()
    network.beat(0)
    network.beat(2)
    assert network.hear(m.GAP) == [m.GAP, 1]
    network.tell(m.ENTRIES, [network.entry(1), network.entry(2)])
    network.durable(2)


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_and_the_same_entries_are_tried_again(
    start: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = start()
    network.publish()
    network.durable(1)
    oplog = network.writer.oplog
    with monkeypatch.context() as patched:
        network.in_loop(lambda: patched.setattr(oplog, "append", no_room))
        network.publish()
        kind, full, text = network.hear(m.DISK)
        assert (kind, full) == (m.DISK, True)
        assert b"No space left" in text
        network.publish(2)  # those that were on their way
        assert network.hears_nothing()
        network.tell(m.ASK_STORAGE, 7)
        assert b"No space left" in network.hear(m.STORAGE)[2][b"disk_full"]
    network.durable(4)
    assert network.hear(m.DISK) == [m.DISK, False, b""]
    assert network.in_loop(lambda: oplog.last) == Position.at(EPOCH, 4)


def test_no_room_for_the_next_segment_is_told_before_it_is_needed(
    start: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("storage.oplog.Oplog.prepare_spare", no_room)
        network = start()
        kind, full, text = network.hear(m.DISK)
        assert (kind, full) == (m.DISK, True)
        assert b"next segment" in text
    assert network.hear(m.DISK) == [m.DISK, False, b""]


@pytest.mark.parametrize("call", ["append", "sync"])
def test_any_other_error_of_the_disk_ends_the_process(
    start: Callable[..., Network], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    network = start()
    calls = []

    def broken(*_: Any) -> None:
        calls.append(call)
        raise OSError(errno.EIO, "Input/output error")

    network.in_loop(lambda: monkeypatch.setattr(network.writer.oplog, call, broken))
    network.publish()
    assert network.ended() == FAULT
    assert calls == [call]  # not tried again
    event, fields = network.child.log.lines[-1]
    assert event == "fault"
    assert "received 1.1.1:1" in fields["story"]
    assert network.hears_nothing()


def test_a_snapshot_that_is_asked_for(start: Callable[..., Network]) -> None:
    network = start(fsync="never")
    network.publish(3)
    network.durable(3)
    network.tell(m.TAKE_SNAPSHOT, 5, None, False)
    _, ticket, error, report = network.hear(m.SNAPSHOT_TAKEN)
    assert (ticket, error) == (5, None)
    assert (report[b"seq"], report[b"records"]) == (3, 3)
    # What a snapshot holds is durable in the log, whatever the policy says about writes.
    assert network.in_loop(lambda: network.writer.commit.synced) == Position.at(EPOCH, 3)
    network.tell(m.TAKE_SNAPSHOT, 6, [1], True)
    assert network.hear(m.SNAPSHOT_TAKEN)[1:3] == [6, None]
    network.tell(m.ASK_STORAGE, 7)
    _, ticket, told = network.hear(m.STORAGE)
    assert ticket == 7
    assert told[b"fsync"] == b"never"
    assert told[b"snapshots"][b"position"] == 3
    assert told[b"snapshots"][b"log_bytes_since"] == 0
    assert told[b"last_snapshot"][b"unix_ms"] > 1_700_000_000_000
    assert told[b"disk_full"] is None


def test_commits_go_on_while_a_snapshot_waits_for_the_disk(
    start: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = start()
    network.publish()
    network.durable(1)
    began, go_on = threading.Event(), threading.Event()
    plain = network.writer.snapshots.take

    def slow(*arguments: Any) -> Any:
        def block() -> None:
            began.set()
            assert go_on.wait(PATIENCE_MS / 1000)

        yield block
        return (yield from plain(*arguments))

    network.in_loop(lambda: monkeypatch.setattr(network.writer.snapshots, "take", slow))
    network.tell(m.TAKE_SNAPSHOT, 1, None, False)
    assert began.wait(PATIENCE_MS / 1000)
    network.publish(5)
    network.durable(6)
    go_on.set()
    _, _, error, report = network.hear(m.SNAPSHOT_TAKEN)
    assert error is None
    assert report[b"seq"] == 1  # as of when it began


def test_log_is_given_up_only_when_the_snapshot_that_holds_it_is_durable(
    start: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = start()
    network.publish(3)
    network.durable(3)
    began, go_on = threading.Event(), threading.Event()
    below: list[int] = []
    plain = manifest.replace

    def slow(disk: Any, name: str, content: bytes) -> None:
        if name == manifest.STATE:  # the last file of a snapshot
            began.set()
            assert go_on.wait(PATIENCE_MS / 1000)
        plain(disk, name, content)

    def prepare() -> None:
        monkeypatch.setattr("storage.manifest.replace", slow)
        monkeypatch.setattr(network.writer.oplog, "trim", below.append)

    network.in_loop(prepare)
    network.tell(m.TAKE_SNAPSHOT, 1, None, False)
    assert began.wait(PATIENCE_MS / 1000)
    network.in_loop(network.writer.tick)
    assert set(below) == {1}
    go_on.set()
    assert network.hear(m.SNAPSHOT_TAKEN)[2] is None
    network.in_loop(network.writer.tick)
    assert below[-1] == 4


def test_a_snapshot_without_room_is_told_and_the_next_may_succeed(
    start: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = start()
    network.publish(2)
    network.durable(2)
    with monkeypatch.context() as patched:
        network.in_loop(lambda: patched.setattr("storage.manifest.replace", no_room))
        network.tell(m.TAKE_SNAPSHOT, 1, None, False)
        _, _, error, report = network.hear(m.SNAPSHOT_TAKEN)
        assert b"No space left" in error
        assert report == {}
        network.publish()
        network.durable(3)
        network.tell(m.ASK_STORAGE, 7)
        assert b"No space left" in network.hear(m.STORAGE)[2][b"last_snapshot"][b"error"]
    network.tell(m.TAKE_SNAPSHOT, 2, None, False)
    _, ticket, error, report = network.hear(m.SNAPSHOT_TAKEN)
    assert (ticket, error, report[b"records"]) == (2, None, 3)


def storage_of(network: Network) -> Any:
    network.tell(m.ASK_STORAGE, 1)
    return network.hear(m.STORAGE)[2]


def test_enough_log_calls_for_a_snapshot_and_old_log_is_given_up(
    start: Callable[..., Network],
) -> None:
    network = start(snapshot_log_bytes=20_000, oplog_bytes=131_072)
    for _ in range(40):
        network.publish(10, value=b"x" * 1000)
        network.durable(network.seq)
    deadline = time.monotonic() + 10
    while True:  # the last of the log, less than what calls for a snapshot, may stay
        told = storage_of(network)
        first, held = told[b"oplog"][b"first_seq"], told[b"snapshots"][b"position"]
        if first > 1 and held > 400 - 20 and not told[b"snapshots"][b"running"]:
            break
        assert time.monotonic() < deadline
    assert first <= held + 1
    assert told[b"snapshots"][b"log_bytes_since"] < 20_000
    assert network.stop() == 0
    network.close()
    assert start().recovered[4] == [*EPOCH, 400]


def test_time_calls_for_a_snapshot_if_there_is_something_new(start: Callable[..., Network]) -> None:
    network = start(snapshot_interval_s=0.05)
    network.publish()
    network.durable(1)
    deadline = time.monotonic() + 10
    while storage_of(network)[b"snapshots"][b"position"] < 1:
        assert time.monotonic() < deadline
    time.sleep(0.2)  # several intervals without news
    assert len([event for event, _ in network.child.log.lines if event == "snapshot"]) == 1


def test_a_log_that_ends_before_the_files_do_is_damage(
    start: Callable[..., Network], root: Path
) -> None:
    network = start()
    network.publish(5)
    network.durable(5)
    network.tell(m.TAKE_SNAPSHOT, 1, None, False)
    network.hear(m.SNAPSHOT_TAKEN)
    assert network.stop() == 0
    network.close()
    for segment in (root / "data" / "oplog").iterdir():
        segment.unlink()
    child = FakeChild(root, StorageConfig())
    assert writer.make(child) is None  # type: ignore[arg-type]
    child.context.destroy(linger=0)
    child.loop.close()
    ((text, status),) = child.failed
    assert "the log ends at seq 0, expected at least 5" in text
    assert status == 3
    again = start(damage="keep-prefix")
    assert again.recovered[4] == [*EPOCH, 5]
    again.publish()
    again.durable(6)
    assert again.stop() == 0
    again.close()
    assert start().recovered[4] == [*EPOCH, 6]
