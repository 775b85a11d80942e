"""One simulated life of a cluster: it is formed, worked with and hurt, then healed, and must come to rest in order.

bin/nun-sim SEED [--nodes N] [--steps N] [--trace]
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any, Final

from nun import messages as m
from nun import peer_messages as pm
from nun.client import operations as ops
from nun.client.request import Request, nothing
from nun.codec import pack, unpack
from nun.config import (
    Config,
    ConflictsConfig,
    NetworkConfig,
    NodeConfig,
    ReplicationConfig,
    StorageConfig,
)
from nun.core import effects as fx
from nun.core import record
from nun.core.conflicts.ledger_keys import CONFLICT_PREFIX
from nun.position import Position
from storage.oplog import LogReader
from storage.recovery import load
from tests.simulation.client import Client, outcome
from tests.simulation.faults import Faults
from tests.simulation.ledger import (
    check_counts,
    check_ledger,
    doubtful,
    notices_of,
    unheard,
)
from tests.simulation.model import Model
from tests.simulation.node import Clock, Node
from tests.simulation.oracle import Change, Oracle
from tests.simulation.process import Failed, installed
from tests.simulation.reads import Read, check_reads
from tests.simulation.watchers import Watcher, check_watch
from tests.simulation.workload import (
    Worker,
    Write,
    check_elements,
    check_exactly_once,
    check_requests,
    refused_keys,
)
from tests.simulation.world import MS, SECOND, World
from tests.simulation.zmq_model import Wires

DATABASE: Final = "d"
FORM_NS: Final = 20 * SECOND
CONVERGE_NS: Final = 40 * SECOND
STEPS: Final = 40  # how many faults, a few hundred milliseconds apart


class Simulation:
    """A cluster, its clients and its troubles.

    Attributes:
        writes: every write that a client asked for.
        pause_ns: how long clients wait between two requests, at most.
        options: of the database.
    """

    worker: type[Worker] = Worker
    faults: type[Faults] = Faults

    def __init__(self, seed: int, nodes: int | None = None, keep: int = 4_000) -> None:
        self.world = world = World(seed, keep)
        self.wires = world.wires = Wires(world)  # type: ignore[attr-defined]
        world.disks = {}  # type: ignore[attr-defined]
        self.seed = seed
        rng = world.rng
        count = rng.choice((3, 3, 3, 4, 5)) if nodes is None else nodes
        self.names = [f"node{i + 1}" for i in range(count)]
        self.oracle = Oracle()
        self.nodes: dict[str, Node] = {}
        for i, name in enumerate(self.names):
            offset = 0 if i == 0 else world.between(-200, 200) * MS
            clock = Clock(offset, world.between(-50, 50))
            self.nodes[name] = Node(world, self._config(i, count), clock)
            self.oracle.watch(self.nodes[name])
        self.pause_ns = world.between(10, 80) * MS
        self.writes: list[Write] = []
        self.reads: list[Read] = []
        self.workers: list[Worker] = []
        self.watchers: list[Watcher] = []
        self.clients: list[Client] = []
        self.tally: Counter[str] = Counter()
        self.healed = False
        self.options: dict[str, Any] = {"strategy": "none"}

    def conflicts_config(self) -> ConflictsConfig:
        """What the configuration of a node says about conflicts."""
        return ConflictsConfig()

    def _config(self, i: int, count: int) -> Config:
        rng = self.world.rng
        name = self.names[i]
        replication = ReplicationConfig()
        if count > 1:
            replication = ReplicationConfig(
                listen=f"tcp://{name}:2",
                publish=f"tcp://{name}:3",
                primary=self.names[0],
                peers={other: f"tcp://{other}:2" for other in self.names if other != name},
                echo_above=4 if self.seed % 2 else 4_096,  # nearly every value, or none
            )
        return Config(
            node=NodeConfig(name=name, data_dir=f"data/{name}"),
            network=NetworkConfig(listen=f"tcp://{name}:1", spin_us=0),
            storage=StorageConfig(
                segment_bytes=rng.choice((8_192, 32_768)),
                oplog_bytes=65_536,
                snapshot_interval_s=rng.choice((0.0, 1.5, 4.0)),
                tombstone_retention_s=rng.choice((2.0, 3600.0)),
            ),
            replication=replication,
            conflicts=self.conflicts_config(),
        )

    # Who is where

    def node_at(self, address: str) -> Node:
        return self.nodes[address.removeprefix("tcp://").partition(":")[0]]

    def primary(self) -> Node | None:
        """The node that decides, when exactly one does."""
        deciding = [node for node in self.nodes.values() if self._decides(node)]
        return deciding[0] if len(deciding) == 1 else None

    @staticmethod
    def _decides(node: Node) -> bool:
        network = node.network
        return network is not None and network.core is not None and network.core.decides

    def serving(self) -> bool:
        return all(
            node.network is not None and node.network.serving for node in self.nodes.values()
        )

    def client(self, first: str | None = None, only: bool = False) -> Client:
        """A client that begins at this node, and knows the others too unless told otherwise."""
        names = list(self.names)
        self.world.rng.shuffle(names)
        if first is not None:
            names.remove(first)
            names.insert(0, first)
        addresses = [f"tcp://{name}:1" for name in (names[:1] if only else names)]
        client = Client(self.world, f"c{len(self.clients) + 1}", addresses, DATABASE)
        self.clients.append(client)
        return client

    def promote(self, name: str, force: bool = False, at: str | None = None) -> list[Request]:
        """An operator asks some node, or this one, to make `name` primary; the answer goes into the list."""
        self.world.note("promote", name, force)
        if force:
            self.oracle.forced = True
        answers: list[Request] = []
        client = self.client(at, only=at is not None)
        request = Request(m.PROMOTE, None, (name, force), nothing)

        def answered(request: Request) -> None:
            answers.append(request)
            self.world.note("promoted", name, outcome(request)[0])
            self.world.after(0, client.close)

        client.ask(request, 15.0, answered)
        return answers

    # Scripts

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        self.world.run(self.world.now + int(seconds * SECOND))

    def until(self, done: Any, what: str, seconds: float = 20.0) -> None:
        """Lets time pass until something holds; it must within so many seconds."""
        if done():
            return
        due = self._every(5 * MS, done)
        if not self.world.run(self.world.now + int(seconds * SECOND), due) and not done():
            raise Failed(f"not within {seconds} s: {what}; {self.describe()}")

    def ask(self, client: Client, request: Request, seconds: float = 10.0) -> tuple[str, Any]:
        """Asks and waits for the answer."""
        answers: list[Request] = []
        client.ask(request, seconds, answers.append)
        self.until(lambda: bool(answers), f"an answer to {client.name}", seconds + 5)
        return outcome(answers[0])

    def form(self) -> None:
        """Starts all nodes and makes the database."""
        for node in self.nodes.values():
            self.world.after(self.world.between(0, 300 * MS), node.start)
        self.until(self.serving, "the cluster is formed", FORM_NS / SECOND)
        client = self.client(self.names[0])
        for _ in range(5):
            ending, result = self.ask(client, ops.create_database(DATABASE, "t", self.options))
            if ending == "done":
                break
        else:
            raise Failed(f"the database could not be made: {result}")
        self.until(
            lambda: all(self._has_database(node) for node in self.nodes.values()),
            "the database is everywhere",
        )

    @staticmethod
    def _has_database(node: Node) -> bool:
        network = node.network
        return (
            network is not None
            and network.core is not None
            and network.core.state.database_named(DATABASE) is not None
        )

    def work(self, levels: list[int | None], clients: int | None = None) -> None:
        """Lets clients begin to work."""
        count = clients or self.world.between(2, 4)
        for _ in range(count):
            # One that knows a single node stays there; the others go to where the primary is.
            client = self.client(only=self.world.chance(0.5))
            self.workers.append(self.worker(self, client, levels))
            if self.world.chance(0.3):
                client.listen()

        for _ in range(self.world.between(0, 3)):
            self.watchers.append(Watcher(self, self.client(only=self.world.chance(0.5))))

    def heal(self) -> None:
        """All links up, all nodes there."""
        self.world.note("heal")
        self.healed = True
        self.wires.drop = 0.0
        self.wires.hwm = 10**9
        self.wires.slow_ns.clear()
        for source, target in sorted(self.wires.blocked):
            self.wires.unblock(source, target)
        for node in self.nodes.values():
            node.slow_disk_ns = 2 * MS
            node.disk.capacity = None
            node.disk.syncs_to_fail = 0
            if not node.up:
                node.start()

    def rest(self) -> None:
        """Clients end what they do; then all nodes must hold the same, and all watchers have been shown it."""
        for worker in self.workers:
            worker.stopping = True
        for _ in range(8):
            if self.world.run(self.world.now + 8 * SECOND, self._every(20 * MS, self.all_answered)):
                break
            if not any(map(self._decides, self.nodes.values())):
                self.promote(self.world.rng.choice(self.names))
        else:
            raise Failed(f"requests are not answered; {self.describe()}")
        for watcher in self.watchers:
            watcher.settle_down()
        for _ in range(8):
            if self.world.run(self.world.now + 5 * SECOND, self._every(20 * MS, self.at_rest)):
                return
            if not any(map(self._decides, self.nodes.values())) or self.promise_stands():
                # A promotion that failed half way leaves promises behind: only an operator moves the primary.
                self.promote(self.world.rng.choice(self.names))
        if self.converged() and not self._all_heard():
            raise Failed(f"P7: somebody is not told of its losing writes; {self.describe()}")
        if self.converged():
            lives = [each.lives[-1] for each in self.watchers if not self._caught_up(each)]
            raise Failed(f"P6: these are not shown all there is: {lives}; {self.describe()}")
        raise Failed(f"the nodes do not come to hold the same; {self.describe()}")

    def promise_stands(self) -> bool:
        """Whether some node has promised itself to a candidate that did not become primary."""
        cores = [node.replicator.core for node in self.nodes.values() if node.replicator]
        epochs = [core.epoch for core in cores if core.leads and core.epoch is not None]
        return any(
            core.promise is not None and core.promise > max(epochs, default=(0, 0))[:2]
            for core in cores
        )

    def _every(self, ns: int, done: Any) -> Any:
        """Looked at now and then: it may cost something."""
        state = {"at": 0}

        def due() -> bool:
            if self.world.now < state["at"]:
                return False
            state["at"] = self.world.now + ns
            return bool(done())

        return due

    def all_answered(self) -> bool:
        return all(worker.finished for worker in self.workers)

    def at_rest(self) -> bool:
        """All have the same, and all watchers have been shown it."""
        return self.converged() and all(map(self._caught_up, self.watchers)) and self._all_heard()

    def _all_heard(self) -> bool:
        """Whoever wants to be told of its losing writes was."""
        if not any(client.told is not None for client in self.clients):
            return True
        history = self.oracle.history(self.primary().network.core.state.position)  # type: ignore[union-attr]
        notices = notices_of(each for position in history for each in self.oracle.effects[position])
        return not any(unheard(client, notices) for client in self.clients)

    def _caught_up(self, watcher: Watcher) -> bool:
        core = self.primary().network.core  # type: ignore[union-attr]
        database = core.state.database_named(DATABASE).number
        return watcher.caught_up(self.oracle, self.oracle.history(core.state.position), database)

    def converged(self) -> bool:
        """One decides, and all have the same, durably."""
        primary = self.primary()
        if primary is None or not self.serving():
            return False
        core = primary.network.core
        last = core.state.position
        for node in self.nodes.values():
            other = node.network.core
            if other.state.position != last or other.local_durable < last.seq:
                return False
            if len(other.tentative):
                return False
        return True

    def levels(self) -> list[int | None]:
        """Ack levels that clients of this run ask for; None: whatever the node has as its default."""
        if len(self.nodes) == 1:
            return [None, m.ACK_PRIMARY]
        return [None, m.ACK_PRIMARY, m.ACK_LOCAL, m.ACK_MAJORITY, m.ACK_ALL, 1]

    # What must hold at the end

    def check(self) -> None:
        """Everything that can be said of a cluster at rest."""
        primary = self.primary()
        assert primary is not None
        records = self._same_everywhere(primary)
        history = self.oracle.history(primary.network.core.state.position)
        settled = self.oracle.settled
        if settled is not None and not self.oracle.forced and settled not in history:
            raise Failed(f"P1: settled {settled} is not in the history in the end")
        database = primary.network.core.state.database_named(DATABASE).number
        decoded = {
            position: [change for change in told if change.database == database]
            for position, told in self.oracle.decoded.items()
        }
        changes = [change for position in history for change in decoded.get(position, ())]
        model = Model(self.oracle.forced)
        for position in history:
            model.take(position, self.oracle.effects[position])
        told = {entry["op_id"] for entry in model.entries.values()}
        aliases = self._aliases(history, model)
        told |= self.oracle.excused
        self._check_acknowledged(changes, told | aliases.keys())
        check_exactly_once(self.writes, changes, told, aliases)
        values = {
            key.decode(): record.value_of(packed).decode()
            for key, packed in records.items()
            if record.is_live(packed) and not key.startswith(b"$")
        }
        self.check_more(model, changes, values)
        effects = [each for position in history for each in self.oracle.effects[position]]
        check_requests(effects, self.oracle.forced)
        unsure = doubtful(model) if self.oracle.forced else set()
        check_ledger(self.writes, model, changes, self.clients, unsure)
        check_counts(model, database, self.nodes.values())
        if {
            key: packed for (where, key), packed in model.records.items() if where == database
        } != records:
            raise Failed("P4: the records are not what the effects of the history come to")
        removals = {told["key"] for told in model.entries.values() if told["kind"] == "remove"}
        check_reads(self.reads, history, decoded, self.oracle.forced, removals)
        for watcher in self.watchers:
            for life in watcher.lives:
                check_watch(self.oracle, life, history, database)

    def check_more(self, model: Model, changes: list[Change], values: dict[str, str]) -> None:
        """What can be said beside, of this kind of life."""
        told = {entry["op_id"] for entry in model.entries.values()}
        aliases = self._aliases(self.oracle.history(changes[-1].position), model)
        forced = self.oracle.forced
        unsure = self.oracle.excused | (doubtful(model) if forced else set())
        check_elements(self.writes, values, told, unsure, aliases, forced)

    def _same_everywhere(self, primary: Node) -> dict[bytes, bytes]:
        """P4: the same records and the same state, in memory and on disk."""
        core = primary.network.core
        core.settle()
        number = core.state.database_named(DATABASE).number
        expected = {database: table.records for database, table in core.tables.items()}
        state = unpack(pack(core.state.dump()))
        for node in self.nodes.values():
            other = node.network.core
            other.settle()
            found = {database: table.records for database, table in other.tables.items()}
            if found != expected:
                raise Failed(f"P4: {node.name} and {primary.name} hold other records")
            told = unpack(pack(other.state.dump()))
            if told != state:
                raise Failed(f"P4: {node.name}: {told}, {primary.name}: {state}")
            if node.writer.snapshotting.describe()["running"]:
                continue  # its files are finished at the next start
            loaded = load(node.disk, LogReader(node.disk))
            if loaded.tables != expected:
                raise Failed(f"P2: the disk of {node.name} does not hold what its memory does")
        records: dict[bytes, bytes] = expected[number]
        return records

    def _check_acknowledged(self, changes: list[Change], told: set[int]) -> None:
        """P1: what was acknowledged is current, or reached from it over what was replaced, or in the ledger.

        So too where a promotion was forced: every node has come back and has proposed what was cut off.
        """
        known = {change.op_id: change for change in changes}
        for write in self.writes:
            for key, op_id in write.acked.items():
                if op_id not in known and op_id not in told:
                    raise Failed(
                        f"P1: {write.kind} of {key} by {write.client} with op id {op_id} at "
                        f"{write.position} was acknowledged at {write.level} and is lost"
                    )

    def _aliases(self, history: list[Position], model: Model) -> dict[int, int]:
        """Op ids of requests that were stamped twice, and done under the other stamp: asked again after a crash.

        Each with that other one, of the first operation. An alias says nothing of whether the write took effect:
        that is as it is with the op id under which the request was decided. What a batch was refused of has none,
        unless the ledger has it under another op id.
        """
        told = {entry["op_id"] for entry in model.entries.values()}
        done = {
            (effect[1], effect[2]): effect
            for position in history
            for effect in self.oracle.effects.get(position, ())
            if effect[0] == fx.OUTCOME and (effect[4] == 0 or effect[5] in told)
        }
        kept = {
            (bytes.fromhex(entry["client_id"]), entry["request"], entry["key"])
            for entry in model.entries.values()
        }
        found: dict[int, int] = {}
        for write in self.writes:
            request = (write.client.encode(), write.number)
            if not write.acked or request not in done:
                continue
            effect = done[request]
            # A mixed batch that was cut off and decided anew has op ids of another order than its answers.
            mixed = write.kind == "many" and isinstance(effect[6], list) and self.oracle.forced
            # Nor has a removal one that found nothing in this history, before another one asked for it anew.
            vain = write.kind in ("remove", "safe_remove") and not effect[5] and self.oracle.forced
            if vain or (effect[5] and (mixed or effect[5] not in write.acked.values())):
                lost = {key for key in refused_keys(effect) if (*request, key) not in kept}
                found |= {op_id: effect[5] for key, op_id in write.acked.items() if key not in lost}
        return found

    @staticmethod
    def ledger(records: dict[bytes, bytes]) -> set[int]:
        """The op ids of writes that did not simply win."""
        return {int(key.rpartition(b"_")[2]) for key in records if key.startswith(CONFLICT_PREFIX)}

    def describe(self) -> str:
        """Where everybody stands."""
        lines = []
        for node in self.nodes.values():
            network, replicator = node.network, node.replicator
            core = getattr(network, "core", None)
            lines.append(
                f"{node.name}: up {node.up}"
                + (
                    f" {core.roles.name} at {core.state.position} durable {core.local_durable}"
                    f" primary {core.roles.primary} serving {network.serving}"
                    f" outbox {len(core.tentative)}"
                    if core is not None
                    else ""
                )
                + (f" {_story(replicator)}" if replicator is not None else "")
            )
        return "\n  ".join(["", *lines, f"workers {[w.finished for w in self.workers]}"])


def _story(replicator: Any) -> str:
    core = replicator.core
    following = core.following
    return (
        f"| replicator {core.role} {following.state} last {core.last} durable {core.durable_seq} "
        f"promise {core.promise}"
    )


class Result:
    """What a run came to."""

    def __init__(self, simulation: Simulation, error: Failed | None) -> None:
        self.simulation = simulation
        self.seed = simulation.seed
        self.error = error
        self.digest = simulation.world.digest
        self.tally: Counter[str] = simulation.tally
        for worker in simulation.workers:
            self.tally += worker.tally

    def trace(self, lines: int = 60) -> str:
        """The last lines of the trace, readable."""
        recent = list(self.simulation.world.trace)[-lines:]
        return "\n".join(_line(*line) for line in recent)


_NAMES: Final = {
    value: name
    for module in (m, pm)
    for name, value in vars(module).items()
    if type(value) is int and name.isupper() and (100 <= value < 200) and name != "MESSAGES"
}
_STREAMS: Final = {fx.BEAT: "beat", fx.PEER_BEAT: "peer beat", fx.MARKER: "marker", fx.ITEM: "item"}


def _line(now: int, kind: str, what: tuple[Any, ...]) -> str:
    """A line of the trace, readable."""
    if kind != "got":
        return f"{now / SECOND:10.6f} {kind} {' '.join(map(str, what))[:300]}"
    (sender, receiver), frame = what
    try:
        message = unpack(frame)
        name = _NAMES.get(message[0], "") if isinstance(message, list) else ""
        if receiver.endswith(":SUB"):
            name = _STREAMS.get(message[0], "entry")
        shown = f"{name} {message}"
        if name == "entry":
            position, effects = fx.decode_entry(frame)
            shown = f"entry {position} {effects}"
    except Exception:
        shown = repr(frame)
    return f"{now / SECOND:10.6f} {sender} > {receiver} {shown[:260]}"


def run(
    seed: int,
    nodes: int | None = None,
    steps: int = STEPS,
    keep: int = 400,
    kind: type[Simulation] = Simulation,
) -> Result:
    """One seed: form, work and hurt, heal, rest, check."""
    simulation = kind(seed, nodes, keep)
    try:
        with installed(simulation.world):
            simulation.form()
            simulation.work(simulation.levels())
            simulation.faults(simulation).run(steps)
            simulation.heal()
            simulation.rest()
            simulation.check()
    except Failed as error:
        return Result(simulation, error)
    except Exception:  # in a client or a check: a finding like any other, told with its seed
        return Result(simulation, Failed(traceback.format_exc()))
    return Result(simulation, None)
