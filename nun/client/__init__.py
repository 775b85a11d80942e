"""The ZeroMQ client library: a pure session, and a sync and an async shell around it."""
