"""A child of a supervisor that keeps the contract of children and does nothing else; its argument says how it behaves.

serve       is ready at once, stops when told
quiet       stops when told
slow        wakes up late, then as `serve`
deaf        is ready, and does not stop when told
fail        has a reason not to run
mute        ends with the status of one that has a reason, and gives none
fault       meets an exception that nobody catches
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, NoReturn

from actors.child import Child, run_child


def make(child: Child) -> None:
    behaviour = sys.argv[1]
    child.log.info("fake_up", behaviour=behaviour, pid=os.getpid(), started_as=sys.argv[0])

    def stop() -> None:
        child.log.info("fake_told_to_stop")
        if behaviour != "deaf":
            child.loop.stop()

    child.on_stop(stop)
    if behaviour in ("serve", "slow", "deaf"):
        child.ready(address="tcp://fake", actor_pid=os.getpid())
        child.loop.every(0.01, lambda: tell_siblings(child))
    elif behaviour == "fail":
        child.fail("the port is taken", 3)
    elif behaviour == "mute":
        os._exit(3)
    elif behaviour == "fault":
        raise RuntimeError("a fault of ours")


def tell_siblings(child: Child, told: list[Any] = []) -> None:  # noqa: B006
    if child.siblings and not told:
        told.append(True)
        child.log.info("fake_siblings", siblings=child.siblings)


def main() -> NoReturn:
    if sys.argv[1] == "slow":
        time.sleep(0.7)
    run_child(make)


if __name__ == "__main__":
    main()
