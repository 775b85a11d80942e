"""The hybrid logical clock that stamps op ids.

    op id   u64 = 42 bits of milliseconds since 2020 | 12 bits of counter | 10 bits of node number

Milliseconds and counter adjoin, so a run of ids is an arithmetic series: the i-th id of a run that starts at `first` is
`first + i * TICK`, and a counter that overflows carries into the milliseconds by itself.

I1  An id is issued once: every run begins above the highest id ever issued or observed here.
I2  The low ten bits are the node number; 0 marks records that came from a NunDB directory without op ids.
"""

from __future__ import annotations

from typing import Final

NODE_BITS: Final = 10
COUNTER_BITS: Final = 12
TICK: Final = 1 << NODE_BITS
MS: Final = 1 << (NODE_BITS + COUNTER_BITS)
NODE_MAX: Final = TICK - 1
EPOCH_2020_MS: Final = 1_577_836_800_000  # 2020-01-01T00:00:00Z in Unix milliseconds


def unix_ms_of(op_id: int) -> int:
    """The wall-clock milliseconds (Unix) that an op id was stamped at, or after."""
    return (op_id >> (NODE_BITS + COUNTER_BITS)) + EPOCH_2020_MS


class Clock:
    """Issues op ids for one node number.

    Args:
        node: the node number, 1 to 1023.
        highest: the highest op id in the state; no id at or below it is issued.
    """

    def __init__(self, node: int, highest: int = 0) -> None:
        assert 1 <= node <= NODE_MAX, f"node number {node}"
        self.node = node
        self.highest = highest
        self._unix_ms = -1
        self._first = 0  # the first op id of that millisecond

    def reserve(self, unix_ms: int, count: int = 1) -> int:
        """Issues `count` op ids and returns the first; the others follow in steps of TICK."""
        if unix_ms != self._unix_ms:
            self._unix_ms = unix_ms
            self._first = max(unix_ms - EPOCH_2020_MS, 0) << (NODE_BITS + COUNTER_BITS) | self.node
        first = self._first
        if first <= self.highest:
            first = ((self.highest >> NODE_BITS) + 1) << NODE_BITS | self.node
        self.highest = first if count == 1 else first + (count - 1) * TICK
        return first

    def observe(self, op_id: int) -> None:
        """Takes note of an id that was issued elsewhere or before."""
        if op_id > self.highest:
            self.highest = op_id
