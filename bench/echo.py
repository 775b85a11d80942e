"""The bare echo: a ROUTER that sends back what it gets.

Prints its address, then runs until it is ended. It does only what any ROUTER server must do per
message, with the cheapest calls that pyzmq has, so it shows what ZeroMQ and Python leave to a
server that decides, stores and protects nothing.
"""

from __future__ import annotations

import zmq
from zmq.backend import Socket


def main() -> None:
    router = zmq.Context().socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    print(f"tcp://127.0.0.1:{port}", flush=True)
    receive, send, more = Socket.recv, Socket.send, zmq.SNDMORE.value
    while True:
        peer = receive(router, 0)
        body = receive(router, 0)
        send(router, peer, more)
        send(router, body, 0)


if __name__ == "__main__":
    main()
