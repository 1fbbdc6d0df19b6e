"""The proxy's pods, watched: where the connections of `attach` go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from .proxy_objects import NAME, SELECTOR
from .resources import PODS
from .watched import Watch, WatchedPods

if TYPE_CHECKING:
    from .client import Client


class ProxySession(WatchedPods):
    """The proxy's pods as they were heard of last."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.name = NAME

    def unready(self) -> str:
        """What a connection is told for which no pod is ready."""
        return f"the proxy {NAME} has no pod that is ready; see `kubectl describe pod -l {SELECTOR}`."


@asynccontextmanager
async def open_proxy(client: Client) -> AsyncIterator[ProxySession]:
    """Watch the proxy's pods; those that exist have been seen when this enters.

    Raises:
        APIError: the API refuses, or cannot be reached.
    """
    session = ProxySession(client)
    async with session.watching([Watch(PODS, session.take_pod, labels=SELECTOR, first=True)]):
        yield session
