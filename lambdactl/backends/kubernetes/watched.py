"""What the sessions of runs and services share: several watches of one thing, its changes, and how they fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import APIError
from .watching import DELETED, SYNCED

if TYPE_CHECKING:
    from .client import Client
    from .resources import Resource


@dataclass(frozen=True)
class Watch:
    """One watch: what `take` is called with is the kind of each event and its object.

    `first` watches have to have told what exists before anybody looks.
    """

    resource: Resource
    take: Callable[[str, dict[str, Any]], None]
    labels: str = ""
    fields: str = ""
    first: bool = False


class Watched:
    """Something that is watched; what the subclass keeps of it is always what was heard last."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._changed = asyncio.Event()
        self._failure: APIError | None = None

    async def change(self, *, timeout: float) -> None:
        """Wait for the next change, at most `timeout` seconds.

        Raises:
            APIError: a watch has failed for good.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._next_change()

    async def _next_change(self) -> None:
        self._check()
        await self._changed.wait()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _listen(self, watch: Watch, synced: asyncio.Event) -> None:
        try:
            async for event in self.client.watch(watch.resource, labels=watch.labels, fields=watch.fields):
                if event.type == SYNCED:
                    synced.set()
                else:
                    watch.take(event.type, event.object)
                self._wake()
        except APIError as error:
            self._failure = error
            synced.set()
            self._wake()

    @asynccontextmanager
    async def watching(self, watches: Sequence[Watch]) -> AsyncIterator[None]:
        """Run these watches; what exists already has been seen when this enters.

        Raises:
            APIError: the API refuses, or cannot be reached.
        """
        synced = [asyncio.Event() for _ in watches]
        tasks = [asyncio.create_task(self._listen(*pair)) for pair in zip(watches, synced, strict=True)]
        try:
            for watch, event in zip(watches, synced, strict=True):
                if watch.first:
                    await self._until_synced(event)
            self._check()
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_synced(self, event: asyncio.Event) -> None:
        """The failure of another watch ends this, too."""
        while not event.is_set():
            await self._next_change()


class WatchedPods(Watched):
    """Pods that are watched, by their names, as long as they have not ended."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.pods: dict[str, dict[str, Any]] = {}

    def take_pod(self, kind: str, pod: dict[str, Any]) -> None:
        """What a watch of the pods calls."""
        name = pod["metadata"]["name"]
        if kind == DELETED or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            self.pods.pop(name, None)
        else:
            self.pods[name] = pod
