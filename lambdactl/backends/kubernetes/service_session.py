"""A service that is watched: its Deployment, its pods and what their events say, always as they were heard last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from lambdactl.run.service_control import ServiceStatus

from . import labels
from .errors import APIError
from .resources import DEPLOYMENTS, EVENTS, PODS, Resource
from .service_view import status_of
from .watching import DELETED, SYNCED

if TYPE_CHECKING:
    from .client import Client

_SAID = {"Pulling": "pulls its image", "Pulled": "has its image"}


class ServiceSession:
    """What is known of one service; `deployment` is None once it is gone."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.deployment: dict[str, Any] | None = None
        self.pods: dict[str, dict[str, Any]] = {}
        self.remarks: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._synced = {DEPLOYMENTS: asyncio.Event(), PODS: asyncio.Event()}
        self._failure: APIError | None = None

    @property
    def status(self) -> ServiceStatus | None:
        """Its status; None when it is gone."""
        if self.deployment is None:
            return None
        return status_of(self.deployment, self.pods.values(), self.remarks, cluster=self.client.target.name)

    async def change(self, *, timeout: float) -> None:
        """Wait for the next change, at most `timeout` seconds.

        Raises:
            APIError: a watch has failed for good.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch(self, resource: Resource, take: Callable[[str, dict[str, Any]], None], **chosen: str) -> None:
        try:
            async for event in self.client.watch(
                resource, labels=chosen.get("labels", ""), fields=chosen.get("fields", "")
            ):
                if event.type == SYNCED:
                    if resource in self._synced:
                        self._synced[resource].set()
                else:
                    take(event.type, event.object)
                self._wake()
        except APIError as error:
            self._failure = error
            for synced in self._synced.values():
                synced.set()
            self._wake()

    def _take_deployment(self, kind: str, item: dict[str, Any]) -> None:
        self.deployment = None if kind == DELETED else item

    def _take_pod(self, kind: str, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if kind == DELETED or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            self.pods.pop(name, None)
        else:
            self.pods[name] = pod

    def _take_event(self, kind: str, event: dict[str, Any]) -> None:
        name = str((event.get("involvedObject") or {}).get("name"))
        if kind != DELETED and name.startswith(f"{self.name}-") and (text := remark(event)):
            self.remarks[name] = text


def remark(event: dict[str, Any]) -> str | None:
    """What an event of a pod says, where that is worth a word."""
    reason, text = str(event.get("reason")), str(event.get("message") or "")
    if reason in _SAID:
        return _SAID[reason]
    return f"{reason}: {' '.join(text.split())[:300]}" if reason in ("Unhealthy", "FailedMount") else None


@asynccontextmanager
async def open_service(client: Client, name: str) -> AsyncIterator[ServiceSession]:
    """Watch a service; what exists already has been seen when this enters.

    Raises:
        APIError: the API refuses, or cannot be reached.
    """
    session = ServiceSession(client, name)
    tasks = [
        asyncio.create_task(session._watch(DEPLOYMENTS, session._take_deployment, fields=f"metadata.name={name}")),
        asyncio.create_task(session._watch(PODS, session._take_pod, labels=f"{labels.SERVICE}={name}")),
        asyncio.create_task(session._watch(EVENTS, session._take_event, fields="involvedObject.kind=Pod")),
    ]
    try:
        for synced in session._synced.values():
            await synced.wait()
        if session._failure is not None:
            raise session._failure
        yield session
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
