"""CPU and memory of processes, as psutil sees them."""

from __future__ import annotations

import os
import subprocess
import sys

from actors.processes import describe_processes


def test_it_describes_the_living_and_names_the_gone() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    found = describe_processes({"me": os.getpid(), "gone": gone.pid})
    assert found["gone"] == {"pid": gone.pid, "gone": True}
    me = found["me"]
    assert me["pid"] == os.getpid()
    assert me["rss_bytes"] > 1_000_000
    assert me["cpu_s"] > 0
    assert 0 < me["cpu_share"] < 64
    assert me["threads"] >= 1
    assert me["files"] >= 3
