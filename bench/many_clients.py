"""Row 7: fifty clients, one operation in flight each, against a bare echo under the same load."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.peers import SPIN_US, Peers
from bench.processes import Worker
from bench.report import Line, at_least
from bench.sampling import Plan, Sample, Series, alternate
from bench.workload import batches

CLIENTS: Final = 50


def fifty_clients(peers: Peers, plan: Plan) -> Iterator[Line]:
    """Row 7: durable sets, then gets; with the share of a core that the generator itself took."""
    workers = {"echo": peers.worker("bench.load", "echo", peers.echo(), str(CLIENTS))}
    for spin in SPIN_US:
        node = peers.node("always", spin)
        database = peers.database(node)
        for batch in batches():
            database.set_many(batch)
        workers[spin] = peers.worker("bench.load", "nun", node.address, str(CLIENTS))
    for kind, bound in (("set", 0.55), ("get", 0.9)):
        cpu: dict[str, list[float]] = {name: [] for name in workers}
        variants = {
            name: _sample(worker, f"{kind} {plan.seconds}", cpu[name])
            for name, worker in workers.items()
        }
        taken = alternate(variants, plan.rounds)
        for spin in SPIN_US:
            aim = at_least(bound) if spin == "spin on" else None
            what = f"{CLIENTS} clients, {kind}s, {spin}"
            yield Line(7, what, "ops/s", taken[spin], taken["echo"], "bare echo", aim)
        for name in ("echo", "spin on"):
            what = f"{CLIENTS} clients, {kind}s: the generator itself, {name}"
            yield Line(7, what, "% of a core", Series(tuple(cpu[name])))


def _sample(worker: Worker, command: str, cpu: list[float]) -> Sample:
    def sample() -> float:
        answer = worker.ask(command)
        cpu.append(100 * float(answer["cpu"]) / float(answer["seconds"]))
        return float(answer["operations"]) / float(answer["seconds"])

    return sample
