"""A node's processes as the operating system shows them: their names, CPU and memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import psutil

_TITLE: Final = "nun-node {node}: {actor}"


def title_of(node: str, actor: str) -> str:
    """The name of a child in lists of processes."""
    return _TITLE.format(node=node, actor=actor)


def actor_of(process: psutil.Process) -> str | None:
    """What a process does in its node; None where it is no child of a node, or has not got its name yet.

    Raises psutil.Error when it is gone.
    """
    title = " ".join(process.cmdline()).strip()
    return title.rpartition(": ")[2] if title.startswith("nun-node ") else None


def describe_processes(pids: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Per actor: pid, CPU seconds used, share of a core since its start, resident bytes, threads, open files."""
    described: dict[str, dict[str, Any]] = {}
    for name, pid in pids.items():
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                cpu = process.cpu_times()
                age = max(time.time() - process.create_time(), 0.001)
                described[name] = {
                    "pid": pid,
                    "cpu_s": round(cpu.user + cpu.system, 3),
                    "cpu_share": round((cpu.user + cpu.system) / age, 4),
                    "rss_bytes": process.memory_info().rss,
                    "threads": process.num_threads(),
                    "files": process.num_fds(),
                }
        except psutil.Error:
            described[name] = {"pid": pid, "gone": True}
    return described
