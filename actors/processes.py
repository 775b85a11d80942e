"""CPU and memory of a node's processes, as the operating system accounts for them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import psutil


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
