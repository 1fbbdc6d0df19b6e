"""Ports of a run's ranks on the user's machine: each connection is one port-forward of the API.

So nothing has to come back after a cut: the local port stays, and the next connection makes a new port-forward, to the
pod that the rank has by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from typing import Any

from lambdactl.errors import LambdactlError

from .errors import APIError, Unavailable
from .podstate import running
from .session import RunSession
from .sockets import Stream

LINGER = 30.0
"""Seconds without a byte from the pod after which a connection ends whose local end says no more: a port-forward cannot
pass that on, so the program there may keep its side open for good."""
_AGAIN = 0.5


class PodForwarder:
    """Forwards ports of one run, for `lambdactl.run.ports.forwarded`; ranks go by their pods' host names."""

    def __init__(self, session: RunSession) -> None:
        self._session = session

    async def forward(
        self, name: str, remote: int | str, *, local_host: str = "127.0.0.1", local_port: int = 0
    ) -> PodForward:
        """Listen here for a port of the rank whose host name is `name`.

        Raises:
            OSError: the local port cannot be used.
        """
        forward = PodForward(self._session, rank_named(name), int(remote))
        await forward.open(local_host, local_port)
        return forward


def host_name(run_name: str, rank: int) -> str:
    """What a rank is called in its pod, and in messages about its ports."""
    return f"{run_name}-{rank}"


def rank_named(name: str) -> int:
    """The rank of a host name."""
    return int(name.rpartition("-")[2])


class PodForward:
    """A listening local port whose connections come out at a port of a rank's pod."""

    alive = True

    def __init__(self, session: RunSession, rank: int, remote: int) -> None:
        self._session = session
        self._rank, self._remote = rank, remote
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    async def open(self, host: str, port: int) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port)

    @property
    def port(self) -> int:
        """The local port."""
        assert self._server is not None  # noqa: S101 - `open` comes first
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Listen no more, and end what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - inside of a coroutine
        self._connections.add(task)
        try:
            # Nobody listens there, the pod is gone, or the API is: here all of it is a closed connection.
            with contextlib.suppress(LambdactlError, OSError, asyncio.CancelledError):
                async with AsyncExitStack() as stack:
                    await _carry(reader, writer, await self._connect(stack))
        finally:
            self._connections.discard(task)
            writer.close()

    async def _connect(self, stack: AsyncExitStack) -> Stream:
        """A connection to the port; an API server that restarts is waited for.

        Raises:
            APIError: it cannot be had.
        """
        client, deadline = self._session.client, time.monotonic() + self._session.client.patience
        while True:
            pod = self._session.view.pod_of(self._rank)
            if pod is None or not running(pod):
                raise APIError(f"rank {self._rank} does not run.")
            try:
                return await stack.enter_async_context(client.port_forward(pod["metadata"]["name"], self._remote))
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_AGAIN)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: Stream) -> None:
    """Bytes both ways, until the pod's side ends."""
    said_all = asyncio.Event()

    async def up() -> None:
        try:
            while data := await reader.read(65536):
                await stream.write(data)
        finally:
            said_all.set()

    async def down() -> None:
        while data := await stream.read():
            quiet.reschedule(None)
            writer.write(data)
            await writer.drain()
            if said_all.is_set():
                quiet.reschedule(asyncio.get_running_loop().time() + LINGER)

    async def limit() -> None:
        await said_all.wait()
        quiet.reschedule(asyncio.get_running_loop().time() + LINGER)

    others = [asyncio.ensure_future(up()), asyncio.ensure_future(limit())]
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as quiet:
                await down()
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
