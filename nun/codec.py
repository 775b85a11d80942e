"""msgpack, and the only place that knows it.

Everything that comes from outside goes through `unpack`, which turns any bytes into plain Python values or raises
WireError. Text and binary are one kind here: both arrive as `bytes` (`raw=True`), so that a key or a value is handed on
exactly as its client sent it.
"""

from __future__ import annotations

from typing import Any

import msgpack

from nun.errors import WireError

_packer = msgpack.Packer(use_bin_type=True)
_unpackb = msgpack.unpackb


def pack(value: Any) -> bytes:
    """The msgpack bytes of plain values: None, bool, int, str, bytes, list, tuple, dict."""
    packed: bytes = _packer.pack(value)
    return packed


def unpack(data: bytes | memoryview) -> Any:
    """The one value that `data` holds; texts come out as bytes.

    Raises:
        WireError: not msgpack, cut short, followed by more, nested too deep, or an unhashable map key.
    """
    try:
        return _unpackb(data, raw=True, strict_map_key=False, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not a message: {type(error).__name__} {error}") from error


def enclosed(frame: bytes, first: Any, last: Any) -> bytes:
    """A short array's message with one more element before and one more after; it is not packed again."""
    head = frame[0]
    assert 0x90 <= head <= 0x9D, "an array of up to 13 elements"
    return b"".join((bytes((head + 2,)), pack(first), memoryview(frame)[1:], pack(last)))
