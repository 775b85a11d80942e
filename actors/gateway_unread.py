"""What clients of the gateway have not read yet, all of them together: bounded by cutting off who has most."""

from __future__ import annotations

from typing import Any, Final, Protocol

from nun.limits import GATEWAY_UNREAD_ALL_BYTES_MAX, GATEWAY_UNREAD_BYTES_MAX, KIB

_LAG_BYTES: Final = 64 * KIB  # less is not counted


class Reader(Protocol):
    """A connection whose client may be slow."""

    transport_name: str

    def unread(self) -> int:
        """The bytes that wait for it to read."""

    def drop(self) -> None:
        """Ends the connection."""


class Unread:
    """See the module's docstring. A connection is known here from when it lags until it has caught up or ends."""

    def __init__(
        self,
        log: Any,
        one_max: int = GATEWAY_UNREAD_BYTES_MAX,
        all_max: int = GATEWAY_UNREAD_ALL_BYTES_MAX,
    ) -> None:
        self._log = log
        self._one_max: Final = one_max
        self._all_max: Final = all_max
        self._sizes: dict[Reader, int] = {}
        self._sum = 0

    def wrote(self, reader: Reader, *, asked: bool) -> None:
        """A reader was written to. What it had `asked` for itself counts only with that of all."""
        size = reader.unread()
        if size < _LAG_BYTES:
            return
        if size > self._one_max and not asked:
            self._cut(reader, size)
            return
        self._sum += size - self._sizes.get(reader, 0)
        self._sizes[reader] = size
        if self._sum > self._all_max:
            self._sizes = {one: one.unread() for one in self._sizes}
            self._sum = sum(self._sizes.values())
        while self._sum > self._all_max:
            slowest = max(self._sizes, key=self._sizes.__getitem__)
            self._cut(slowest, self._sizes[slowest])

    def caught_up(self, reader: Reader) -> None:
        """It has read what there was, or has ended."""
        self._sum -= self._sizes.pop(reader, 0)

    def _cut(self, reader: Reader, size: int) -> None:
        self.caught_up(reader)
        self._log.warning("slow_reader_dropped", transport=reader.transport_name, unread=size)
        reader.drop()
