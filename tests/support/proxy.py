"""A TCP proxy on loopback that stands between two ends and can do to a link what networks do: cut, delay, throttle.

    with Proxy(port, lambda port: faults) as proxy:
        ...

`Faults` belong to links, not to connections: they hold for what is connected now and for what connects later.

I1  A link that is cut is silent, as where packets are dropped: connections stay open, and what was sent waits until the
    link is whole again; new connections are accepted and nothing comes. `reset` ends connections instead.
I2  Bytes come in order; none is lost in a connection that lives.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Final, Self

_PART: Final = 65_536


class Faults:
    """What is wrong with one link now. Set from any thread; a wait for better times polls, as networks do."""

    def __init__(self) -> None:
        self.cut = False
        self.delay_s = 0.0
        self.bytes_per_s = 0  # 0: as fast as it goes

    def heal(self) -> None:
        self.cut = False
        self.delay_s = 0.0
        self.bytes_per_s = 0


class Proxy:
    """Passes connections to one port on, in a thread with an event loop of its own.

    Args:
        target: the port that connections go to.
        link: called with the port that a connection came from; returns the faults of its link.
    """

    def __init__(self, target: int, link: Callable[[int], Faults]) -> None:
        self._target = target
        self._link = link
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._stop = asyncio.Event()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10.0)
        assert not self._thread.is_alive()

    def reset(self) -> None:
        """Ends all connections."""
        self._loop.call_soon_threadsafe(self._reset)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._listener)
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._reset()

    def _reset(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        faults = self._link(writer.get_extra_info("peername")[1])
        self._writers.add(writer)
        onward: asyncio.StreamWriter | None = None
        try:
            await _whole(faults)
            back, onward = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(onward)
            both = [
                asyncio.ensure_future(_pass_on(reader, onward, faults)),
                asyncio.ensure_future(_pass_on(back, writer, faults)),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
        except OSError:
            pass  # nobody is there: the connection that came ends
        finally:
            for end in (writer, onward):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()


async def _whole(faults: Faults) -> None:
    while faults.cut:
        await asyncio.sleep(0.01)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults
) -> None:
    while part := await reader.read(_PART):
        await _whole(faults)
        if faults.delay_s:
            await asyncio.sleep(faults.delay_s)
        if faults.bytes_per_s:
            await asyncio.sleep(len(part) / faults.bytes_per_s)
        await _whole(faults)
        writer.write(part)
        await writer.drain()
