"""A node for tests of the client: one ROUTER in a thread, that tells the truth, or loses and forgets on request.

It keeps what a node keeps (records, outcomes of requests, the events of each entry) in memory, across `restart` too.
What it is asked goes to `log`, so that a test can say what the client did.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import zmq

from nun import messages as m
from nun.codec import pack, unpack
from nun.core import record
from nun.core.accept import incremented, next_version
from nun.core.clock import TICK
from nun.core.record import ABSENT
from nun.errors import AuthError, NoSuchDatabase, RequestError, SessionUnknown, to_wire
from nun.limits import RECEIPT_ABOVE_BYTES

EPOCH = [1, 1, 1]
Message = list[Any]
_numbers = itertools.count(1)


def never(message: Message) -> bool:  # noqa: ARG001
    return False


class FakeWatch:
    """One watch: what it is to be sent and has no credit for yet waits in `bodies`."""

    def __init__(self, peer: bytes, message: Message) -> None:
        _, _, _, self.database, self.scope, self.key, self.since, self.credit = message
        self.peer = peer
        self.bodies: list[bytes] = []

    def sees(self, key: bytes) -> bool:
        if self.scope == m.WATCH_KEY:
            return bool(key == self.key)
        return bool(self.scope == m.WATCH_ALL or key.startswith(self.key))


class FakeNode:
    """See the module's docstring. Use as a context manager; everything it offers may be called from any thread."""

    def __init__(self, curve: tuple[bytes, bytes] | None = None) -> None:
        self.tables: dict[bytes, dict[bytes, bytes]] = {b"shop": {}}
        self.tokens: dict[tuple[bytes, bytes | None], bytes] = {(b"shop", None): b"t"}
        self.password = b"pwd"
        self.log: list[Message] = []
        self.outcomes: dict[tuple[bytes, int], Any] = {}
        self.executed: Counter[int] = Counter()  # writes that took effect, by kind
        self.lose: Callable[[Message], bool] = never  # take effect, and say nothing
        self.ignore: Callable[[Message], bool] = never  # as if it had never come
        # By kind of request: gives the result, or raises a RequestError.
        self.answers: dict[int, Callable[[Message], Any]] = {}
        self.events: list[
            list[list[Any]]
        ] = []  # per entry: [kind, key, value, version, op id, seq]
        self.first_seq = 1  # what was before is compacted
        self.next_number = 1
        self.credits: list[tuple[int, int]] = []
        self.receipts: list[int] = []
        self.came = threading.Condition()
        self._curve = curve
        self._seq = 0
        self._op_id = 0
        self._commands: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._forget_sessions()
        self._context = zmq.Context()
        self._wake_name = f"inproc://fake-node-{next(_numbers)}"
        self._wake: zmq.Socket[bytes] = self._context.socket(zmq.PUSH)
        self._woken: zmq.Socket[bytes] = self._context.socket(zmq.PULL)
        self._woken.bind(self._wake_name)
        self._wake.connect(self._wake_name)
        self._wake_lock = threading.Lock()
        self._router: zmq.Socket[bytes] | None = None
        self._router_context: zmq.Context[Any]
        self._running = True
        self._open("tcp://127.0.0.1:*")
        assert self._router is not None
        self.address: str = self._router.get_string(zmq.LAST_ENDPOINT)
        self._thread: threading.Thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeNode:
        return self

    def __exit__(self, *failure: object) -> None:
        def end() -> None:
            self._running = False

        self.do(end)
        self._thread.join()
        self._wake.close(0)
        self._woken.close(0)
        self._context.term()
        if self._router is not None:
            self._router.close(0)
            self._router_context.term()

    # What a test may do

    def do(self, action: Callable[[], Any]) -> Any:
        """Has something done in the node's thread, between two messages."""
        future: Future[Any] = Future()
        self._commands.put((action, future))
        with self._wake_lock:
            self._wake.send(b"")
        return future.result(timeout=10)

    def stop(self) -> None:
        """Closes the port: connections break."""

        def close() -> None:
            assert self._router is not None
            self._router.close(0)
            self._router_context.term()  # returns when the port is free again
            self._router = None

        self.do(close)

    def start(self) -> None:
        """Opens the port again; sessions and selections are forgotten, records and outcomes are not."""

        def open_again() -> None:
            self._forget_sessions()
            self._open(self.address)

        self.do(open_again)

    def restart(self) -> None:
        self.stop()
        self.start()

    def forget_sessions(self) -> None:
        self.do(self._forget_sessions)

    def entry(self, *changes: tuple[str, str | None], cut: tuple[int, ...] = ()) -> int:
        """Decides one entry of several changes; its events go out in messages that end at these indexes."""
        return int(self.do(lambda: self._entry(changes, cut)))

    def tell(self, message: Message) -> None:
        """Sends every session this message, unasked."""

        def send() -> None:
            for peer in self._sessions:
                self._send(peer, message)

        self.do(send)

    def tell_watches(self, make: Callable[[int], Message]) -> None:
        """Sends every watch a message made from its number."""

        def send() -> None:
            for number, watch in self._watches.items():
                self._send(watch.peer, make(number))

        self.do(send)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """Waits until something that messages bring about is so."""
        with self.came:
            assert self.came.wait_for(condition, timeout), f"it did not come: {self.log[-5:]}"

    def asked(self, kind: int) -> list[Message]:
        """The messages of one kind that came."""
        return [message for message in self.log if message[0] == kind]

    @property
    def watching(self) -> int:
        return len(self._watches)

    # The thread

    def _open(self, endpoint: str) -> None:
        self._router_context = zmq.Context()
        router = self._router = self._router_context.socket(zmq.ROUTER)
        router.linger = 0
        if self._curve is not None:
            router.curve_server = True
            router.curve_publickey, router.curve_secretkey = self._curve
        router.bind(endpoint)

    def _forget_sessions(self) -> None:
        self._sessions: dict[bytes, tuple[int, bytes]] = {}
        self._admins: dict[bytes, bool] = {}
        self._grants: defaultdict[bytes, set[int]] = defaultdict(set)
        self._watches: dict[int, FakeWatch] = {}

    def _run(self) -> None:
        while self._running:
            ready = [self._woken] if self._router is None else [self._woken, self._router]
            readable, _, _ = zmq.select(ready, [], [])
            if self._woken in readable:
                self._woken.recv()
                action, future = self._commands.get()
                try:
                    future.set_result(action())
                except BaseException as error:
                    future.set_exception(error)
            elif self._router is not None:
                peer, body = self._router.recv_multipart()
                message = unpack(body)
                with self.came:
                    self.log.append(message)
                    self._message(peer, message)
                    self.came.notify_all()

    def _send(self, peer: bytes, message: Any) -> None:
        if self._router is not None:
            self._router.send_multipart([peer, pack(message)])

    def _message(self, peer: bytes, message: Message) -> None:
        kind, token, number = message[:3]
        if self.ignore(message):
            return
        try:
            if kind == m.HELLO:
                reply = self._hello(peer, message)
            else:
                known = self._sessions.get(peer)
                if known is None or known[0] != token:
                    raise SessionUnknown("this connection has no session of that token")
                reply = self._request(peer, known[1], message)
        except RequestError as error:
            code, body = to_wire(error)
            reply = (code, number, body, None, 0)
        if reply is None or self.lose(message):
            return
        frame = pack(reply)
        if len(frame) > RECEIPT_ABOVE_BYTES:
            reply = (m.RECEIPT, *reply, number * 7 + 1)
        self._send(peer, reply)
        if kind == m.WATCH and reply[0] == 0:
            self._start(reply[2])

    def _hello(self, peer: bytes, message: Message) -> Any:
        _, protocol, number, client_id, born, user, password = message
        assert protocol == m.PROTOCOL_VERSION
        if m.HELLO in self.answers:
            self.answers[m.HELLO](message)
        if user is not None and password != self.password:
            raise AuthError("wrong password")
        token = next(_numbers)
        self._sessions[peer] = (token, client_id)
        self._admins[peer] = user is not None
        node = {"node": "fake", "version": "0", "cluster_id": b"c" * 16, "role": "primary"}
        return (0, number, [token, born or 77, self.next_number, node], None, 0)

    def _request(self, peer: bytes, client_id: bytes, message: Message) -> Any:
        kind, _, number = message[:3]
        if kind in self.answers:
            return (0, number, self.answers[kind](message), None, 0)
        if kind == m.CREDIT:
            self._credit(message[3], message[4])
            return None
        if kind == m.BYE:
            del self._sessions[peer]
            return None
        if kind == m.PING:
            if message[3] is not None:
                self.receipts.append(message[3])
            return (0, number, None, None, 0) if number else None
        if kind == m.USE:
            return (0, number, self._use(peer, *message[3:]), None, 0)
        if kind == m.UNWATCH:
            self._watches.pop(message[3], None)
            return (0, number, True, None, 0)
        if kind in (m.GET, m.GET_MANY, m.KEYS, m.WATCH):
            return self._read(peer, message)
        done = self.outcomes.get((client_id, number))
        if done is None:
            done = self.outcomes[client_id, number] = self._write(peer, message)
            self.executed[kind] += 1
        return done

    def _use(self, peer: bytes, name: bytes, user: bytes | None, secret: bytes) -> Any:
        if name not in self.tables:
            raise NoSuchDatabase(f"there is no database {name!r}", database=name)
        admin = secret is None and self._admins[peer]
        if not admin and self.tokens.get((name, user)) != secret:
            raise AuthError("wrong token")
        reference = [*self.tables].index(name) + 1
        self._grants[peer].add(reference)
        return [reference, {"strategy": "none"}]

    def _table(self, peer: bytes, reference: int) -> dict[bytes, bytes]:
        if reference not in self._grants[peer]:
            raise AuthError(f"database number {reference} is not selected on this connection")
        return list(self.tables.values())[reference - 1]

    def _read(self, peer: bytes, message: Message) -> Any:
        kind, _, number, reference = message[:4]
        table = self._table(peer, reference)
        if kind == m.GET:
            return (0, number, table.get(message[4]), None, 0)
        if kind == m.GET_MANY:
            return (0, number, [*map(table.get, message[4])], None, 0)
        if kind == m.WATCH:
            watch = next(_numbers)
            self._watches[watch] = FakeWatch(peer, message)
            return (0, number, watch, [*EPOCH, self._seq], 0)
        pattern, limit, after = message[4:]
        found = sorted(key for key in table if pattern.strip(b"*") in key and key > (after or b""))
        return (0, number, [found[:limit], found[limit - 1] if found[limit:] else None], None, 0)

    def _write(self, peer: bytes, message: Message) -> Any:
        kind, _, number, floor = message[:4]
        assert 0 <= floor <= number
        if kind not in (m.SET, m.REMOVE, m.INCREMENT, m.SET_MANY, m.BATCH):
            return (0, number, 1, [*EPOCH, self._seq], 0)
        table = self._table(peer, message[4])
        if kind == m.SET_MANY:
            keys, values = unpack(message[5])
            heads = record.heads_of_keys(table, keys)
            first = self._op_id + TICK
            self._entry([*zip(keys, values, strict=True)], ())
            return (0, number, heads, [*EPOCH, self._seq], first)
        if kind == m.BATCH:
            return self._batch(number, message)
        key, *rest = message[5:]
        argument = rest[0] if kind != m.REMOVE else None
        try:
            answer = self._one(kind, key, argument, None if kind == m.INCREMENT else rest[-1])
        except RequestError as error:
            code, body = to_wire(error)
            return (code, number, body, None, 0)
        return (0, number, answer, [*EPOCH, self._seq], self._op_id)

    def _batch(self, number: int, message: Message) -> Any:
        _, _, _, _, _, atomic, kinds, payload, conditions = message
        table = self.tables[b"shop"]
        before = dict(table)
        answers: list[Any] = []
        failed = False
        first = self._op_id + TICK
        for index, (kind, key, argument) in enumerate(zip(kinds, *unpack(payload), strict=True)):
            if kind == m.GET:
                answers.append(table.get(key))
                continue
            try:
                condition = (conditions or {}).get(index)
                answers.append(self._one(kind, key, argument, condition))
            except RequestError as error:
                failed = True
                code, (text, fields) = to_wire(error)
                answers.append([code, text, fields])
        if atomic and failed:
            table.clear()
            table.update(before)
            kept = [a if isinstance(a, list) and len(a) == 3 else None for a in answers]
            return (14, number, ["nothing was done", {"results": kept}], None, 0)
        return (0, number, answers, [*EPOCH, self._seq], first)

    def _one(self, kind: int, key: bytes, argument: Any, condition: Any) -> Any:
        old = self.tables[b"shop"].get(key, ABSENT)
        version = next_version(key, old, condition)
        if kind == m.INCREMENT:
            total = incremented(key, old, argument)
            self._entry([(key, b"%d" % total)], ())
            return [version, total]
        self._entry([(key, argument)], (), version)
        return version

    # Events

    def _entry(self, changes: Any, cut: tuple[int, ...], version: int | None = None) -> int:
        table = self.tables[b"shop"]
        self._seq += 1
        events = []
        for key, value in changes:
            key = key.encode() if isinstance(key, str) else key
            value = value.encode() if isinstance(value, str) else value
            new = version or record.version_of(table.get(key, ABSENT)) + 1
            self._op_id += TICK
            if value is None:
                table[key] = record.tombstone(new, self._op_id)
                events.append([m.EVENT_REMOVED, key, None, new, self._op_id, self._seq])
            else:
                table[key] = record.live(new, self._op_id, value)
                events.append([m.EVENT_SET, key, value, new, self._op_id, self._seq])
        self.events.append(events)
        for number, watch in self._watches.items():
            self._feed(number, watch, events, cut)
        return self._seq

    def _feed(
        self, number: int, watch: FakeWatch, events: list[Any], cut: tuple[int, ...] = ()
    ) -> None:
        bounds = [0, *cut, len(events)]
        for start, end in itertools.pairwise(bounds):
            seen = [
                event for event in events[start:end] if event[1] is None or watch.sees(event[1])
            ]
            if seen:
                watch.bodies.append(pack([EPOCH, seen]))
        self._flush(number, watch)

    def _flush(self, number: int, watch: FakeWatch) -> None:
        while watch.bodies and watch.credit > 0:
            body = watch.bodies.pop(0)
            watch.credit -= len(body)
            self._send(watch.peer, [m.EVENTS, number, body])

    def _credit(self, number: int, size: int) -> None:
        self.credits.append((number, size))
        watch = self._watches.get(number)
        if watch is not None:
            watch.credit += size
            self._flush(number, watch)

    def _start(self, number: int) -> None:
        """Serves a watch from its position: events of the log, or the state where that was compacted."""
        watch = self._watches[number]
        if watch.since is None:
            return
        seq = watch.since[3]
        if watch.since[:3] == EPOCH and self.first_seq <= seq + 1 <= self._seq + 1:
            for events in self.events[seq:]:
                self._feed(number, watch, events)
            return
        self._feed(number, watch, [[m.EVENT_COMPACTED, None, None, 0, 0, self._seq]])
        for key, packed in self.tables[b"shop"].items():
            if record.is_live(packed):
                version, op_id = record.unpack_head(packed)
                value = record.value_of(packed)
                self._feed(number, watch, [[m.EVENT_SET, key, value, version, op_id, self._seq]])
        self._feed(number, watch, [[m.EVENT_CURRENT, None, None, 0, 0, self._seq]])
