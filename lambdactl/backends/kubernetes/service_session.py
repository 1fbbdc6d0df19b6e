"""A service that is watched: its Deployment, its pods and what their events say, always as they were heard last."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from lambdactl.run.service_control import ServiceStatus

from . import labels
from .resources import DEPLOYMENTS, EVENTS, PODS
from .service_view import status_of
from .watched import Watch, WatchedPods
from .watching import DELETED

if TYPE_CHECKING:
    from .client import Client

# Of a container that asks a replica's probes (lambdactl/node/service_pod.py): its readiness says more, or nothing yet.
_SAYS_NOTHING = re.compile(r"statuscode: 599|not asked yet")
_SAID = {"Pulling": "pulls its image", "Pulled": "has its image"}


class ServiceSession(WatchedPods):
    """What is known of one service; `deployment` is None once it is gone."""

    def __init__(self, client: Client, name: str) -> None:
        super().__init__(client)
        self.name = name
        self.deployment: dict[str, Any] | None = None
        self.remarks: dict[str, str] = {}

    @property
    def status(self) -> ServiceStatus | None:
        """Its status; None when it is gone."""
        if self.deployment is None:
            return None
        return status_of(self.deployment, self.pods.values(), self.remarks, cluster=self.client.target.name)

    def unready(self) -> str:
        """What a connection is told for which no replica is ready."""
        return f"{self.name} has no replica that is ready; see `lambdactl run get {self.name}`."

    def _take_deployment(self, kind: str, item: dict[str, Any]) -> None:
        self.deployment = None if kind == DELETED else item

    def _take_event(self, kind: str, event: dict[str, Any]) -> None:
        name = str((event.get("involvedObject") or {}).get("name"))
        if kind != DELETED and name.startswith(f"{self.name}-") and (text := remark(event)):
            self.remarks[name] = text


def remark(event: dict[str, Any]) -> str | None:
    """What an event of a pod says, where that is worth a word."""
    reason, text = str(event.get("reason")), str(event.get("message") or "")
    if reason in _SAID:
        return _SAID[reason]
    if _SAYS_NOTHING.search(text):
        return None
    return f"{reason}: {' '.join(text.split())[:300]}" if reason in ("Unhealthy", "FailedMount") else None


@asynccontextmanager
async def open_service(client: Client, name: str) -> AsyncIterator[ServiceSession]:
    """Watch a service; what exists already has been seen when this enters.

    Raises:
        APIError: the API refuses, or cannot be reached.
    """
    session = ServiceSession(client, name)
    watches = [
        Watch(DEPLOYMENTS, session._take_deployment, fields=f"metadata.name={name}", first=True),
        Watch(PODS, session.take_pod, labels=f"{labels.SERVICE}={name}", first=True),
        Watch(EVENTS, session._take_event, fields="involvedObject.kind=Pod"),
    ]
    async with session.watching(watches):
        yield session
