"""A load process: many clients, one operation in flight each, against a node or the bare echo.

    python -m bench.load (nun|echo) ADDRESS CLIENTS

Prints `ready`; then each line `set SECONDS` or `get SECONDS` on standard input is answered by one
JSON line: the operations done, the time, and the CPU time of the thread that generates them. Ends
with its standard input. Against the echo it packs, sends and reads the very same messages, so both
peers meet the same generator.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter, thread_time
from typing import Any, Final

import zmq
from zmq.backend import Socket, zmq_poll

from bench.session import Session
from bench.workload import DATABASE, DATABASE_TOKEN, KEYS, key, value
from nun.codec import pack, unpack
from nun.messages import GET, PROBE, SET

POLL_MS: Final = 1000


class Client:
    """One of the many: its connection and its place in the order of keys."""

    def __init__(self, context: zmq.Context[Any], mode: str, address: str, place: int) -> None:
        self.session = Session(context, address)
        self.database: Any = 1
        self.turn = place * 1_009
        if mode == "nun":
            self.session.greet()
            if not self.session.greeted(10):
                raise ConnectionError(f"{address} does not answer")
            self.database = self.session.use(DATABASE, DATABASE_TOKEN)

    def request(self, kind: int) -> bytes:
        """The next message, packed anew as a client must."""
        session = self.session
        number = session.number
        session.number = number + 1
        self.turn = turn = (self.turn + 1) % KEYS
        if kind == SET:
            return pack(
                (SET, session.token, number, number, self.database, key(turn), value(turn), None)
            )
        return pack((GET, session.token, number, self.database, key(turn)))


def run(clients: list[Client], kind: int, expected: int, seconds: float) -> dict[str, float]:
    """Keeps one operation of each client in flight for this time; waits for the last answers."""
    receive, send = Socket.recv, Socket.send
    by_socket = {client.session.socket: client for client in clients}
    waiting = [(socket, zmq.POLLIN) for socket in by_socket]
    done = 0
    cpu = thread_time()
    start = perf_counter()
    end = start + seconds
    in_flight = len(clients)
    for socket, client in by_socket.items():
        send(socket, client.request(kind), 0)
    while in_flight:
        ready = zmq_poll(waiting, POLL_MS)
        if not ready:
            raise TimeoutError(f"{in_flight} answers are missing")
        going_on = perf_counter() < end
        for socket, _ in ready:
            reply = unpack(receive(socket, 0))
            if reply[0] != expected:
                if reply[0] == PROBE:
                    continue
                raise ConnectionError(f"refused: {reply}")
            done += 1
            if going_on:
                send(socket, by_socket[socket].request(kind), 0)
            else:
                in_flight -= 1
    took = perf_counter() - start
    return {"operations": done, "seconds": took, "cpu": thread_time() - cpu}


def main() -> None:
    mode, address, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    context = zmq.Context()
    clients = [Client(context, mode, address, place) for place in range(count)]
    print("ready", flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        kind = SET if name == "set" else GET
        expected = kind if mode == "echo" else 0
        print(json.dumps(run(clients, kind, expected, float(seconds))), flush=True)


if __name__ == "__main__":
    main()
