"""Headless Chromium, driven by its DevTools protocol: pages loaded, scripts asked, screenshots taken.

async with Browser(directory) as browser:
    await browser.open("http://127.0.0.1:...")
    await browser.until("document.title === 'ready'")
    png = await browser.screenshot()
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import aiohttp

PATIENCE_S = 60.0
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--no-proxy-server", "--window-size=800,400",
    "--remote-debugging-port=0",
)  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"


def chromium() -> str | None:
    """Where it is, as Debian's packages call it."""
    return shutil.which("chromium")


class Browser:
    """One page of a browser of its own. `directory` is for its profile and its log."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = AsyncExitStack()
        self._socket: aiohttp.ClientWebSocketResponse
        self._number = 0

    async def __aenter__(self) -> Self:
        self._directory.mkdir()
        program = chromium()
        assert program is not None
        with open(self._directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                [program, *OPTIONS, f"--user-data-dir={self._directory}/profile", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._attach()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _attach(self) -> None:
        """Finds the port that it listens on, and its first page."""
        said = self._directory / "profile" / "DevToolsActivePort"
        while not (said.exists() and said.read_text().count("\n")):
            assert self._process is not None
            assert self._process.poll() is None, (self._directory / "log").read_text()
            await asyncio.sleep(0.02)
        port = said.read_text().splitlines()[0]
        session = await self._stack.enter_async_context(aiohttp.ClientSession())
        while True:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [one for one in await answer.json() if one["type"] == "page"]
            if pages:
                break
            await asyncio.sleep(0.02)
        where = pages[0]["webSocketDebuggerUrl"]
        self._socket = await self._stack.enter_async_context(
            session.ws_connect(where, max_msg_size=0)
        )

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)  # it and what it has started
        self._process.wait()

    async def _call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol; its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = await self._socket.receive_json()
                if told.get("id") == self._number:
                    assert "error" not in told, told
                    return told["result"]

    async def open(self, url: str) -> None:
        result = await self._call("Page.navigate", url=url)
        assert "errorText" not in result, result

    async def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        told = await self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits until an expression holds in the page."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.value(expression):
                await asyncio.sleep(0.02)

    async def screenshot(self) -> bytes:
        """The page as a PNG."""
        told = await self._call("Page.captureScreenshot", format="png")
        return base64.b64decode(told["data"])
