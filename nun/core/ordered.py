"""Keys in byte order, sorted when somebody asks for them and kept up by merging what was added since."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator
from typing import Final

_MERGE_ABOVE: Final = 2_000


class OrderedKeys:
    """The order of keys that somebody else holds, and who tells what is added and removed.

    Args:
        keys: all of them, at any time.
    """

    __slots__ = ("_added", "_gone", "_keys", "_sorted")

    def __init__(self, keys: Collection[bytes]) -> None:
        self._keys = keys
        self._sorted: list[bytes] | None = None
        self._added: list[bytes] = []
        self._gone = 0

    def added(self, keys: Iterable[bytes]) -> None:
        if self._sorted is not None:
            self._added += keys

    def removed(self) -> None:
        """One key was removed."""
        self._gone += 1

    def beyond(self, after: bytes | None, prefix: bytes) -> Iterator[bytes]:
        """Keys that begin with `prefix`, in byte order, beyond `after`; some may be gone, some come twice in a row."""
        base, added = self._parts()
        if after is None or after < prefix:
            starts = bisect_left(base, prefix), bisect_left(added, prefix)
        else:
            starts = bisect_right(base, after), bisect_right(added, after)
        for key in _merged(base, starts[0], added, starts[1]):
            if not key.startswith(prefix):
                return
            yield key

    def _parts(self) -> tuple[list[bytes], list[bytes]]:
        if self._sorted is None or self._gone > len(self._keys):
            self._sorted = sorted(self._keys)
            self._added = []
            self._gone = 0
        if len(self._added) > _MERGE_ABOVE:
            self._sorted = sorted(
                {*self._sorted, *self._added} if self._gone else self._sorted + self._added
            )
            self._added = []
        else:
            self._added.sort()
        return self._sorted, self._added


def _merged(base: list[bytes], i: int, added: list[bytes], j: int) -> Iterator[bytes]:
    """Two sorted lists from the given indexes on, as one."""
    while j < len(added):
        until = bisect_right(base, added[j], i)
        yield from base[i:until]
        i = until
        yield added[j]
        j += 1
    while i < len(base):
        yield from base[i : i + 1_000]
        i += 1_000
