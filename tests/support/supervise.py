"""Runs a supervisor over fake children: python -m tests.support.supervise RUN_DIR PATIENCE_S NETWORK WRITER

There is a conflict manager too, which is quiet.
"""

from __future__ import annotations

import sys
from pathlib import Path

from actors import supervisor
from actors.logs import configure_logging
from nun.config import Config, LogConfig

if __name__ == "__main__":
    run_dir, patience_s, network, writer = sys.argv[1:]
    supervisor.STOP_PATIENCE_S = float(patience_s)  # type: ignore[misc]
    config = Config(log=LogConfig(level="debug"))
    log = configure_logging(config.log, config.node.name, "supervisor")
    fake = "tests.support.fake_child"
    modules = {"writer": (fake, writer), "network": (fake, network), "conflicts": (fake, "quiet")}
    sys.exit(supervisor.Supervisor(config, Path(run_dir), log, modules).run())
