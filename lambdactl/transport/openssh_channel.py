"""A live channel that is an ssh process over a node's master connection."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable

from lambdactl.transport.api import Failure, TransportError
from lambdactl.transport.process import Tail, kill


class ProcessChannel:
    """See lambdactl.transport.api.Channel."""

    def __init__(
        self,
        process: Process,
        lost: Callable[[bytes], Awaitable[Failure | None]],
        ended: Callable[[], Awaitable[None]],
    ) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 (pipes)
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._tail = Tail(process.stderr)
        self._lost = lost
        self.failure: Failure | None = None
        self._end = asyncio.create_task(self._watch(ended))

    async def _watch(self, ended: Callable[[], Awaitable[None]]) -> int:
        status = await self._process.wait()
        await self._tail.ended()
        if status == 255:
            self.failure = await self._lost(self._tail.kept)
        await ended()
        return status

    @property
    def stderr(self) -> bytes:
        return self._tail.kept

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._stdin.write(data)
            await self._stdin.drain()

    async def write_eof(self) -> None:
        self._stdin.close()

    async def read(self, n: int = 1 << 20) -> bytes:
        return await self._stdout.read(n)

    async def wait(self) -> int:
        status = await asyncio.shield(self._end)
        if self.failure is not None:
            raise TransportError(self.failure)
        return status

    async def close(self) -> None:
        kill(self._process)
        await asyncio.shield(self._end)
