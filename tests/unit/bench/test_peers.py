"""What a row starts ends with the row, however it ends."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import zmq

from bench.peers import Peers
from bench.processes import Unavailable


def test_an_interrupted_row_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    started: list[psutil.Process] = []

    def row() -> None:
        with Peers(tmp_path) as peers:
            address = peers.echo()
            started.extend(psutil.Process().children())
            with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
                socket.linger = 0
                socket.connect(address)
                socket.send(b"there")
                assert socket.poll(5_000)
                assert socket.recv() == b"there"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        row()
    assert len(started) == 1
    assert not started[0].is_running()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_start_is_an_error_and_no_hang(tmp_path: Path) -> None:
    with Peers(tmp_path) as peers, pytest.raises(Unavailable, match="ended with status"):
        peers.worker("bench.no_such_module")
