"""A local port that leads to ready replicas or the proxy, through the API's port-forward; what `attach SERVICE` is.

Each connection goes to a pod of its own, chosen among those that are ready at that moment, so whatever happens to a
replica, the proxy, a node or the API server, the next connection is like the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from lambdactl.errors import LambdactlError

from .errors import APIError
from .ports import LINGER
from .service_view import replica_state

if TYPE_CHECKING:
    from .proxy_session import ProxySession
    from .service_session import ServiceSession
    from .sockets import Stream

ADDRESS = "127.0.0.1"
PATIENCE = 30.0
"""Seconds that a connection waits for a replica that is ready."""
KEPT = 1 << 20
"""Bytes of a request that are kept for another replica, in case the first one does not take the connection."""


@asynccontextmanager
async def listening(
    session: ServiceSession | ProxySession, port: int, *, local: int, notify: Callable[[str], None] = lambda _text: None
) -> AsyncIterator[int]:
    """Listen while the context lasts; the local port, which is `local` where it is free.

    Args:
        port: the pods' port.
        notify: gets a sentence when no pod is ready for a connection.
    """
    turn = itertools.count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            try:
                await _Connection(session, port, reader, writer).carry(next(turn))
            except (APIError, LambdactlError) as error:
                notify(str(error))
            finally:
                writer.close()

    server = await _open(serve, local)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def _open(serve: Any, local: int) -> asyncio.Server:
    try:
        return await asyncio.start_server(serve, ADDRESS, local if local >= 1024 else 0)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
    return await asyncio.start_server(serve, ADDRESS, 0)


class _Connection:
    """One connection of somebody's. What they have sent is kept until an answer begins, for the next replica."""

    def __init__(
        self,
        session: ServiceSession | ProxySession,
        port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._session, self._port = session, port
        self._reader, self._writer = reader, writer
        self._sent = b""
        self._answered = False
        self._heard = 0  # pieces of the answer

    async def carry(self, turn: int) -> None:
        """To the first replica that takes it; `turn` is whose turn it is.

        Raises:
            APIError, LambdactlError: none takes it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        problem: APIError | None = None
        while loop.time() < deadline and not self._writer.is_closing():
            ready = sorted(name for name, pod in self._session.pods.items() if replica_state(pod) == "ready")
            for step in range(len(ready)):
                try:
                    async with self._session.client.port_forward(ready[(turn + step) % len(ready)], self._port) as end:
                        await self._both_ways(end)
                except APIError as error:
                    if self._answered or len(self._sent) > KEPT:
                        return
                    problem = error
                else:
                    return
            await self._session.change(timeout=0.5)
        raise problem or LambdactlError(self._session.unready())

    async def _both_ways(self, end: Stream) -> None:
        """Until the replica's side ends, or says nothing more to a client that has said all."""
        up, down = asyncio.create_task(self._up(end)), asyncio.create_task(self._down(end))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            while not down.done():
                up.result()
                heard = self._heard
                await asyncio.wait({down}, timeout=LINGER)
                if heard == self._heard:
                    break
            if down.done():
                down.result()
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _up(self, end: Stream) -> None:
        if self._sent:
            await end.write(self._sent)
        while data := await self._reader.read(65536):
            if not self._answered and len(self._sent) <= KEPT:
                self._sent += data
            await end.write(data)

    async def _down(self, end: Stream) -> None:
        while data := await end.read():
            self._heard += 1
            self._answered, self._sent = True, b""
            self._writer.write(data)
            await self._writer.drain()
