"""The public names of `import nun`: added to with care, never lost."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import nun
from nun import errors

CLASSES = [
    "Arbiter",
    "AsyncClient",
    "Client",
    "Conflict",
    "Entry",
    "Event",
    "Outcome",
    "Position",
    "REMOVED",
    "Result",
]


def test_the_list_of_public_names() -> None:
    found = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, nun.NunError)
    ]
    assert sorted(nun.__all__) == sorted([*CLASSES, *found, "__version__"])
    for name in nun.__all__:
        assert getattr(nun, name) is not None
        assert name in dir(nun)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="Clint"):
        _ = nun.Clint


def test_both_clients_offer_the_same() -> None:
    from nun.client import aio, sync

    for name in ("Client", "Database", "Pipeline", "Watch"):
        blocking, awaited = getattr(sync, name), getattr(aio, f"Async{name}")
        public = {member for member in dir(blocking) if not member.startswith("_")}
        assert public == {member for member in dir(awaited) if not member.startswith("_")}
        for member in public:
            if callable(getattr(blocking, member)):
                ours = inspect.signature(getattr(blocking, member)).parameters
                theirs = inspect.signature(getattr(awaited, member)).parameters
                assert list(ours) == list(theirs), f"{name}.{member}"


def test_importing_is_quick_because_it_loads_little() -> None:
    script = "import nun, sys; nun.Client; nun.AsyncClient; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"pydantic", "rich", "click", "structlog", "psutil", "actors", "storage"}
    script = "import nun, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & {"zmq", "msgpack", "asyncio"}


@pytest.mark.parametrize("name", ["network", "writer", "replicator", "conflicts"])
def test_a_process_of_a_node_loads_what_it_needs(name: str) -> None:
    script = f"import actors.{name}, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "structlog" in loaded
    unwanted = {"rich", "click", "pydantic", "uvloop", "aiohttp", "nun.merge", "nun.client.sync"}
    assert not loaded & unwanted
