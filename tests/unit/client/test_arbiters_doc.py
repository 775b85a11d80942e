"""docs/ARBITERS.md: its programs run, and its table names all handlers."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from nun import merge

TEXT = (Path(__file__).parents[3] / "docs" / "ARBITERS.md").read_text()


def test_the_handler_and_its_test_run() -> None:
    _, handler, test = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(handler + test, "ARBITERS.md", "exec"), names)
    assert names["united"]


def test_every_handler_stands_in_the_table() -> None:
    table = TEXT[TEXT.index("<!-- handlers -->") : TEXT.index("<!-- end of handlers -->")]
    named = set(re.findall(r"`(\w+)(?:\(\w+\))?`", table))
    functions = {
        name
        for name, value in vars(merge).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert functions <= named
