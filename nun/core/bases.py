"""The records of one database that were replaced last: a conflict shows its arbiter the one that both sides began with.

Conflicts are rare and writes are not, so what is replaced is only put by, batch by batch, and found by its key when
somebody asks.

I1  Of two records that a key held, the later one counts.
I2  There are two generations, each of so many records and bytes; when the newer one is full, the older one goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nun.limits import BASES_BYTES_MAX, BASES_MAX


class Bases:
    """What keys held before."""

    def __init__(self) -> None:
        self._newer = _Generation()
        self._older = _Generation()

    def add(self, key: bytes, old: bytes) -> None:
        """One record was replaced."""
        newer = self._newer
        if newer.put_by:
            newer.put_by.append(((key,), (old,)))
        else:
            newer.known[key] = old
        self._grew(1, len(old))

    def add_many(self, keys: Sequence[bytes], old: Sequence[bytes], size: int) -> None:
        """These records, of so many bytes in all, were replaced. The sequences are kept: they must not change."""
        self._newer.put_by.append((keys, old))
        self._grew(len(keys), size)

    def of(self, key: bytes) -> Iterator[bytes]:
        """The records that a key held, the later one first."""
        for generation in (self._newer, self._older):
            packed = generation.find(key)
            if packed is not None:
                yield packed

    def _grew(self, count: int, size: int) -> None:
        newer = self._newer
        newer.count += count
        newer.bytes += size
        if newer.bytes > BASES_BYTES_MAX // 2 or newer.count > BASES_MAX // 2:
            self._newer, self._older = _Generation(), newer


class _Generation:
    __slots__ = ("bytes", "count", "known", "put_by")

    def __init__(self) -> None:
        self.known: dict[bytes, bytes] = {}
        self.put_by: list[tuple[Sequence[bytes], Sequence[bytes]]] = []  # later than what is known
        self.count = 0
        self.bytes = 0

    def find(self, key: bytes) -> bytes | None:
        for keys, old in self.put_by:
            self.known.update(zip(keys, old, strict=True))
        self.put_by.clear()
        return self.known.get(key)
