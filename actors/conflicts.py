"""The conflict manager: the process that knows arbiters, claims and timers.

It moves messages and time; what they mean is decided by nun/core/conflicts/manager.py. It talks with this
node's network process only, which passes on what arbiters ask. Writes without conflict never come here.

It holds nothing that is not elsewhere: it may die alone, and asks the network process what is in conflict.
"""

from __future__ import annotations

import time
from typing import Final, NoReturn

from actors import sockets
from actors.child import Child, run_child
from nun.codec import pack, unpack
from nun.core.conflicts.manager import ConflictManagerCore
from nun.limits import DRAIN_MESSAGES_MAX

TICK_S: Final = 0.05


class ConflictManager:
    """The conflict manager of one node."""

    def __init__(self, child: Child) -> None:
        self.core = ConflictManagerCore(time.monotonic_ns())
        self.network = sockets.manager_dealer(child.context, child.run_dir)
        child.loop.story = lambda: str(self.core.describe())
        child.loop.on_readable(self.network, self.network_readable)
        child.loop.every(TICK_S, self.tick)
        self.send()

    def network_readable(self) -> bool:
        self.core.now_ns = time.monotonic_ns()
        for _ in range(DRAIN_MESSAGES_MAX):
            frame = sockets.receive_frame(self.network)
            if frame is None:
                break
            self.core.hear(unpack(frame))
        self.send()
        return True

    def tick(self) -> None:
        self.core.ticked(time.monotonic_ns(), time.time_ns() // 1_000_000)
        self.send()

    def send(self) -> None:
        for message in self.core.take_output():
            sockets.send_frame(self.network, pack(message))


def main() -> NoReturn:
    """The process: see the module's docstring."""
    run_child(ConflictManager)


if __name__ == "__main__":
    main()
