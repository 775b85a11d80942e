"""What becomes of a write that the accept rule refuses: the strategies, and a database's options about conflicts.

    strategy   the write that loses                                      the key holds
    none       the later one to be decided; refused                      what it held
    newer      the one with the earlier `at`                             the later one
    older      the one with the later `at`, of those made on one base    the earlier one
    arbiter    nobody yet: it waits in the key's queue                   what it held, in conflict

`at` is when a write was stamped, on a common clock, and comes with a bound of its error. Two that are no further apart
than both bounds together are a **close call**: the op id decides, and the ledger says so; with
`close_calls = "arbiter"` an arbiter does.

I1  Strategies compare what was written down with the writes; deciding again gives the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from nun.core import record
from nun.core.clock import unix_ms_of
from nun.core.record import ABSENT, UNKNOWN_BASE
from nun.errors import BadRequest
from nun.limits import CONFLICT_TIMEOUT_S_MAX, KEY_BYTES_MAX, STRATEGY_PREFIXES_MAX

NONE: Final = "none"
NEWER: Final = "newer"
OLDER: Final = "older"
ARBITER: Final = "arbiter"
STRATEGIES: Final = (NONE, NEWER, OLDER, ARBITER)

QUEUE: Final = "queue"
REJECT: Final = "reject"
KEEP: Final = "keep"
BY_OP_ID: Final = "op_id"

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "strategy": STRATEGIES,
    "no_arbiter": (QUEUE, REJECT),
    "conflict_fallback": (KEEP, NEWER, OLDER),
    "close_calls": (BY_OP_ID, ARBITER),
}
_NAMES: Final = (*_CHOICES, "conflict_timeout_s", "prefixes")


class Stamp(NamedTuple):
    """When a write was made: Unix time on the common clock, its error, and the op id that decides close calls."""

    at_ms: int
    bound_ms: int
    op_id: int


class Rules(NamedTuple):
    """A database's options about conflicts, ready for use.

    Attributes:
        strategy: of keys under none of the prefixes.
        prefixes: (prefix, strategy), the longest first.
        no_arbiter: what becomes of a write that would open a conflict while no arbiter is connected.
        timeout_ms: how long a conflict waits before the fallback ends it; 0: for ever.
        signs: whether its records carry a signature: whether a strategy or a fallback may displace one unseen.
        arbitrates: whether any of its keys may go in conflict.
    """

    strategy: str
    prefixes: tuple[tuple[bytes, str], ...]
    no_arbiter: str
    timeout_ms: int
    fallback: str
    close_calls: str
    signs: bool
    arbitrates: bool

    @property
    def chains(self) -> bool:
        """Whether a signature may name the records that were there before."""
        return OLDER in (self.strategy, *(strategy for _, strategy in self.prefixes))

    def of(self, key: bytes) -> str:
        """The strategy of a key. Keys that begin with $ have none."""
        if key[:1] == b"$":
            return NONE
        for prefix, strategy in self.prefixes:
            if key.startswith(prefix):
                return strategy
        return self.strategy


def check_options(options: Any) -> dict[str, Any]:
    """The options of a database as they came with a request, checked. Raises BadRequest."""
    if not isinstance(options, dict):
        raise BadRequest("the options of a database are a map")
    checked: dict[str, Any] = {}
    for name, value in options.items():
        known = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        if known == "prefixes":
            checked[known] = _checked_prefixes(value)
        elif known == "conflict_timeout_s":
            if type(value) not in (int, float) or not 0 <= value <= CONFLICT_TIMEOUT_S_MAX:
                raise BadRequest(
                    f"conflict_timeout_s is 0 (for ever) to {CONFLICT_TIMEOUT_S_MAX} seconds, found {value!r:.40}"
                )
            checked[known] = value
        elif known in _CHOICES:
            checked[known] = _chosen(known, value)
        else:
            raise BadRequest(f"unknown option {known!r:.40}: expected one of {', '.join(_NAMES)}")
    return checked


def _chosen(name: str, value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if text not in _CHOICES[name]:
        expected = " or ".join(map(repr, _CHOICES[name]))
        raise BadRequest(f"{name} {text!r:.40} is not known: expected {expected}")
    return str(text)


def _checked_prefixes(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > STRATEGY_PREFIXES_MAX:
        raise BadRequest(
            f"prefixes are a map of at most {STRATEGY_PREFIXES_MAX} key prefixes to strategies"
        )
    checked = {}
    for prefix, strategy in value.items():
        raw = prefix.encode() if isinstance(prefix, str) else prefix
        if type(raw) is not bytes or not 0 < len(raw) <= KEY_BYTES_MAX or raw.startswith(b"$"):
            raise BadRequest(
                f"a prefix is a text of 1 to {KEY_BYTES_MAX} bytes that does not begin with $, found {prefix!r:.40}"
            )
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"a prefix is UTF-8 text, found {prefix!r:.40}") from error
        checked[text] = _chosen("strategy", strategy)
    return checked


def rules_of(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Rules:
    """A database's options ready for use; `defaults` for those that it does not name."""

    def option(name: str, otherwise: Any) -> Any:
        return options.get(name, defaults.get(name, otherwise))

    strategy = str(option("strategy", NONE))
    named: Mapping[str, str] = option("prefixes", {})
    pairs = [(prefix.encode(), found) for prefix, found in named.items()]
    pairs.sort(key=lambda pair: (-len(pair[0]), pair[0]))
    used = {strategy, *named.values()}
    timeout_ms = int(option("conflict_timeout_s", 0) * 1_000)
    fallback = str(option("conflict_fallback", KEEP))
    chosen = not used.isdisjoint((NEWER, OLDER))
    close_calls = str(option("close_calls", BY_OP_ID))
    arbitrates = ARBITER in used or (chosen and close_calls == ARBITER)
    return Rules(
        strategy,
        tuple(pairs),
        str(option("no_arbiter", QUEUE)),
        timeout_ms,
        fallback,
        close_calls,
        chosen or (arbitrates and bool(timeout_ms) and fallback != KEEP),
        arbitrates,
    )


def stamp_of(packed: bytes) -> Stamp:
    """When a record was written: as its signature says, else as its op id does."""
    op_id = record.op_id_of(packed)
    signature = record.signature_of(packed) if packed is not ABSENT else None
    if signature is not None:
        return Stamp(signature.at_ms, signature.bound_ms, op_id)
    return Stamp(unix_ms_of(op_id) if op_id else 0, 0, op_id)


def replaced_base(packed: bytes, base: int) -> Stamp:
    """When the write was made that first replaced the record of op id `base`, as far as this record still knows."""
    signature = record.signature_of(packed)
    found = stamp_of(packed)
    if signature is None or base == UNKNOWN_BASE:
        return found
    for op_id, at_ms in signature.ancestors:
        if op_id == base:
            return found
        found = Stamp(at_ms, 0, op_id)
    return found  # the base is further back: what replaced it is no younger than all that is known


class Verdict(NamedTuple):
    """Whether the write that came last wins, and whether that was a close call."""

    wins: bool
    close: bool


def judge(strategy: str, write: Stamp, base: int, current: bytes) -> Verdict:
    """Compares a write, made on `base`, with what the key holds now, by `newer` or `older`."""
    if strategy == NEWER:
        other = stamp_of(current)
        later = True
    else:
        other = replaced_base(current, base)
        later = False
    apart = abs(write.at_ms - other.at_ms)
    close = bool(other.op_id) and apart <= write.bound_ms + other.bound_ms
    if close or not apart:
        return Verdict((write.op_id > other.op_id) == later, close)
    return Verdict((write.at_ms > other.at_ms) == later, close)
