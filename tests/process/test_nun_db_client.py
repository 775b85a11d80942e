"""The published client of NunDB, npm package `nun-db`, driven from Node and in a browser, against real nodes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import nun
from tests.support.browser import PNG, Browser, chromium
from tests.support.cluster import Cluster
from tests.support.fuzzing_text import frame
from tests.support.gateway import Served, post, serves, upgraded
from tests.support.node import wait_until
from tests.support.ports import free_port

pytestmark = pytest.mark.process

PACKAGE = "nun-db@1.8.3"
SCRIPTS = Path(__file__).parent / "npm"
PREPARE = (
    "create-db sample sample-pwd;use-db sample sample-pwd;create-user client client-pwd;"
    "set-permissions client r *|rwx client-*;create-db merged arb-pwd arbiter"
)


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the client is installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: the published client is not tried")
    folder = tmp_path_factory.mktemp("npm")
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, PACKAGE],
        check=True, capture_output=True, timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    for script in SCRIPTS.iterdir():
        shutil.copy(script, folder)
    return folder


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "gateway") as node:
        node.wait_served()
        node.admin(PREPARE)
        yield node


def test_it_works(served: Served, npm: Path) -> None:
    drive(npm, 60, served.ports["websocket"])


def test_it_works_on_three_nodes(tmp_path: Path, npm: Path) -> None:
    """Writers and the arbiter on different nodes; most on replicas."""
    ports = [(free_port(), free_port()) for _ in range(3)]
    each = {
        number: {"gateway": {"http": f"127.0.0.1:{http}", "websocket": f"127.0.0.1:{websocket}"}}
        for number, (http, websocket) in enumerate(ports, 1)
    }
    with Cluster(tmp_path, each=each) as cluster:
        cluster.wait_role(1, "replica")
        wait_until(lambda: all(serves(http) for http, _ in ports), "the gateways")
        assert "create-db success" in post(ports[1][0], "auth nun nun-pwd;" + PREPARE)
        told = post(ports[1][0], "auth nun nun-pwd;cluster-state").partition(";")[2]
        assert "node1(Connected):Primary, node2(self):Secoundary , node3" in told
        cluster.wait_same()
        drive(npm, 300, *(websocket for _, websocket in (ports[1], ports[0], ports[2])))
        told = post(ports[0][0], "use-db merged arb-pwd;set-safe name 1 v1;get-safe name")
        assert told == "empty;empty;value-version 2 v1\n"
        cluster.wait_same()
        told = post(ports[2][0], "use-db merged arb-pwd;set-safe name 0 v2;set-safe name 0 v3")
        first, second = (one.rpartition(" ")[2] for one in told.split(";")[1:])
        cluster.wait_decided()
        cluster.wait_same()
        told = post(ports[2][0], "use-db sample sample-pwd;set-safe gap 9 v;get-safe gap")
        assert told == "empty;empty;value-version 10 v\n"
        cluster.wait_decided()
        cluster.wait_same()
        for http, _ in ports:
            told = post(http, "use-db sample sample-pwd;get-safe gap")
            assert told == "empty;value-version 10 v\n", "the version that its writer was told"
        arbitrated_from_afar(cluster, ports[0][0], ports[2][1])
        for http, _ in ports:
            told = post(http, f"use-db merged arb-pwd;get {first};get {second}")
            assert "merged 2 name v1 v2\n" in told
            assert f"name {first} v3\n" in told


def arbitrated_from_afar(cluster: Cluster, http: int, websocket: int) -> None:
    """An arbiter at a replica's gateway is one for a database that wants one, at the primary."""
    with cluster.client(0) as client:
        client.create_database("picky", "t", strategy="arbiter", no_arbiter="reject", ack="all")
    post(http, "use-db picky t;set-safe k 1 v")
    told = post(http, "use-db picky t;set-safe k 0 stale")
    assert told == "empty;An conflitct happend and there is no arbiter client not connected"
    with upgraded(websocket) as raw:
        raw.sendall(frame(1, b"use-db picky t;arbiter"))
        told_there = b""
        while told_there.count(b"ok \n") < 2:
            told_there += raw.recv(1_000)
        told = post(http, "use-db picky t;set-safe k 0 stale")
        assert told.startswith("empty;$$conflitct unresolved $conflicts_k_")
        while b"resolve " not in told_there:
            told_there += raw.recv(1_000)


def drive(npm: Path, writes: int, *ports: int) -> None:
    """Runs the script with the published client, and looks at what it has found."""
    urls = [f"ws://127.0.0.1:{port}" for port in ports]
    run = subprocess.run(
        ["node", "client.js", str(writes), *urls],
        cwd=npm, capture_output=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()[-2_000:]
    found = json.loads(run.stdout)
    values = found["values"]
    assert values["back"] == values["kinds"]
    assert [value for value, _ in values["seen"]] == values["kinds"]
    assert values["heard"] == values["seen"]
    assert [one.keys() for one in values["wrapped"]] == [{"_id", "value"}] * 4
    assert [one["value"] for one in values["wrapped"]] == values["falsy"]
    assert (values["n"], values["gone"]) == (4, None)
    assert values["keys"] == ["$connections", "falsy", "k", "n"]
    assert found["refusals"] == {
        "denied": "permission denied",
        "stale": "permission denied",
        "wrong": "Invalid token",
        "value": "b",
    }
    assert found["arbiter"]["settled"] == found["arbiter"]["kept"] == writes
    assert found["arbiter"]["missing"] == []
    assert found["arbiter"]["everywhere"] == [True] * len(ports)


def test_its_watches_and_arbiters_live_through_restarts(tmp_path: Path, npm: Path) -> None:
    """It writes while it is cut off, too: those promises are refused. None is open when its connection breaks."""
    with Served(tmp_path / "node") as node:
        node.wait_served()
        node.admin(PREPARE)
        url = f"ws://127.0.0.1:{node.ports['websocket']}"
        with subprocess.Popen(
            ["node", "reconnect.js", url], cwd=npm, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as script:
            try:
                told = [play(script, "first")]
                assert node.stop() == 0
                node.restart()
                told.append(play(script, "stopped"))
                node.kill("gateway")
                node.wait_log("gateway_ready")
                told.append(play(script, "gateway"))
                heard = json.loads(script.communicate(timeout=30)[0])["heard"]
            finally:
                script.kill()
    assert [one["merged"] for one in told] == [["a", "b"]] * 3
    assert all(one["kept"] >= 3 for one in told)
    assert {one.split()[0] for one in heard} >= {"first", "stopped", "gateway"}


def play(script: subprocess.Popen[bytes], name: str) -> dict[str, Any]:
    """Has the script do its work once more; what it tells."""
    assert script.stdin is not None
    assert script.stdout is not None
    script.stdin.write(name.encode() + b"\n")
    script.stdin.flush()
    found: dict[str, Any] = json.loads(script.stdout.readline())
    return found


# In a browser


@pytest.mark.skipif(
    chromium() is None, reason="chromium is not installed: the client is not tried in a browser"
)
def test_a_page_in_a_browser_shows_a_change_made_elsewhere(
    served: Served, npm: Path, tmp_path: Path
) -> None:
    """With NUN_SCREENSHOTS=DIRECTORY what the browser showed is kept there."""
    kept = Path(os.environ.get("NUN_SCREENSHOTS") or tmp_path)
    asyncio.run(show(served, npm, tmp_path, kept))
    before, after = (kept / name for name in ("page-before.png", "page-after.png"))
    assert before.read_bytes().startswith(PNG)
    assert after.read_bytes().startswith(PNG)
    assert before.read_bytes() != after.read_bytes()


async def show(served: Served, npm: Path, tmp_path: Path, kept: Path) -> None:
    """The story: a page is loaded, a key is changed by another kind of client, the page follows."""
    async with AsyncExitStack() as stack:
        db = stack.enter_context(nun.Client(served.address, "nun", "nun-pwd")).database(
            "sample", "sample-pwd"
        )
        server = await stack.enter_async_context(_serving(npm))
        browser = await stack.enter_async_context(Browser(tmp_path / "browser"))
        await browser.open(f"{server}/page.html?websocket={served.ports['websocket']}")
        await browser.until("document.readyState === 'complete' && !!db._connected")
        assert await browser.value(TEXT) == "nothing yet"
        before = await browser.screenshot()
        assert await browser.screenshot() == before, "only a change of the page may change it"
        (kept / "page-before.png").write_bytes(before)
        await browser.until(
            "(db._watchers.headline || []).length === 1 && !db._pendingPromises.length"
        )
        db.set("headline", json.dumps({"_id": 1, "value": "changed^elsewhere"}))
        await browser.until(f"{TEXT} === 'changed elsewhere'")
        (kept / "page-after.png").write_bytes(await browser.screenshot())
        shown = await asyncio.to_thread(
            wait_until, lambda: db.get("shown"), "what the page writes about what it shows"
        )
        assert json.loads(shown.value)["value"] == "changed^elsewhere"


TEXT = "document.getElementById('value').textContent"


@asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[str]:
    """Serves the files of a folder over HTTP; where."""
    application = web.Application()
    application.router.add_static("/", folder)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
