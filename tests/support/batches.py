"""The answers of a batch, however the node told them."""

from __future__ import annotations

from typing import Any

from nun import messages as m
from nun.client.results import ColumnResults
from nun.client.values import decoding_named
from nun.core.clock import TICK
from tests.support.raw_client import Reply


def answers_of(reply: Reply, kinds: bytes, keys: list[bytes]) -> list[tuple[Any, int]]:
    """(what the single request would give, op id) of each operation; the op id of a read is 0."""
    first = reply.op_id or 0
    if not isinstance(reply.result, dict):
        op_ids = [0 if kind == m.GET else first + i * TICK for i, kind in enumerate(kinds)]
        return list(zip(reply.result, op_ids, strict=True))
    raw = decoding_named(None)
    results = ColumnResults(kinds, keys, reply.result, first, reply.position, raw)
    return [_answer(kind, result) for kind, result in zip(kinds, results, strict=True)]


def _answer(kind: int, result: Any) -> tuple[Any, int]:
    if kind == m.GET:
        return None if result is None else result[1], 0
    answer = [result.version, result.value] if kind == m.INCREMENT else result.version
    return answer, result.op_id
