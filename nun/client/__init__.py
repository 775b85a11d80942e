"""The ZeroMQ client library: one pure session under two thin shells, `sync` and `aio`.

session, request, watches, operations, batch, results and values decide, and hold no socket, clock or thread. link is
the only module that knows zmq. port (for threads) and aio (for an event loop) move bytes and time between the two.
"""
