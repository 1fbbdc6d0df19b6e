"""When to look again at clusters that are full: after a change of their nodes or pods, which two watches tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from .errors import APIError
from .resources import NODES, PODS, Resource
from .watching import SYNCED

if TYPE_CHECKING:
    from .client import Client

SETTLE = 0.5
"""Seconds after a change in which more of them are awaited: a run that ends takes all its pods with it."""
UNTOLD = 60.0
"""Seconds after which it is looked again in any case; what a queue or a quota allows, no watch tells."""


class Changes:
    """What the watches have heard."""

    def __init__(self) -> None:
        self._heard = asyncio.Event()
        self._failure: APIError | None = None

    async def next(self, *, limit: float = UNTOLD) -> None:
        """Wait for a change since the last call, at most `limit` seconds.

        Raises:
            APIError: a cluster cannot be watched any more.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._heard.wait()
                await asyncio.sleep(SETTLE)
        if self._failure is not None:
            raise self._failure
        self._heard.clear()

    async def watch(self, client: Client, resource: Resource) -> None:
        """Listen; a list that was told whole counts as one change, as nobody knows what happened before it."""
        synced = False
        try:
            async for event in client.watch(resource, everywhere=True):
                synced = synced or event.type == SYNCED
                if synced:
                    self._heard.set()
        except APIError as error:
            self._failure = error
            self._heard.set()


@asynccontextmanager
async def watched(clients: Sequence[Client]) -> AsyncIterator[Changes]:
    """Watch the nodes and pods of these clusters."""
    changes = Changes()
    tasks = [asyncio.create_task(changes.watch(client, resource)) for client in clients for resource in (NODES, PODS)]
    try:
        yield changes
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
