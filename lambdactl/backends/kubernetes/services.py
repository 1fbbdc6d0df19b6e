"""Services in the cluster: make one, change it, take a change back, list them, end one."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lambdactl.errors import CapacityError, LambdactlError
from lambdactl.run.service_control import ServiceStatus

from . import labels, proxy, service_front
from .errors import AlreadyExists
from .podstate import condition
from .proxy_config import Front
from .resources import BY_KIND, CONFIGMAPS, DEPLOYMENTS, EVENTS, PODS, SECRETS
from .service_model import SELECTOR
from .service_objects import changing, deployment, front, owned
from .service_session import ServiceSession, open_service, remark
from .service_view import beyond_hope, complete, replica_state, revision_of, status_of

if TYPE_CHECKING:
    from .client import Client
    from .service_model import KubeService

Object = dict[str, Any]
NO_ROOM_PATIENCE = 15.0
"""Seconds that an update's new replica may be without a node before an old one makes room for it."""
STOP_PATIENCE = 120.0


async def find(client: Client, name: str) -> Object | None:
    """A service's Deployment; None where there is none of that name that is ours."""
    found = await client.find(DEPLOYMENTS, name)
    return found if found is not None and is_service(found) else None


def is_service(item: Mapping[str, Any]) -> bool:
    """Whether a Deployment is a service of ours."""
    marks = item["metadata"].get("labels") or {}
    return marks.get(labels.MANAGED_BY) == labels.MANAGER and labels.SERVICE in marks


async def fetch(client: Client, name: str | None = None) -> list[ServiceStatus]:
    """The services of the namespace, or one, as they are now."""
    chosen = SELECTOR if name is None else f"{labels.MANAGED},{labels.SERVICE}={name}"
    found = (await client.list(DEPLOYMENTS, labels=chosen)).items
    if not found:
        return []
    pods: dict[str, list[Object]] = defaultdict(list)
    for pod in (await client.list(PODS, labels=chosen)).items:
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            pods[pod["metadata"]["labels"][labels.SERVICE]].append(pod)
    remarks: dict[str, str] = {}
    if any(replica_state(pod) != "ready" for several in pods.values() for pod in several):
        for event in (await client.list(EVENTS, fields="involvedObject.kind=Pod")).items:
            if text := remark(event):
                remarks[str((event.get("involvedObject") or {}).get("name"))] = text
    proxied = any(service_front.front_of(item) is not None for item in found)
    trouble = await proxy.trouble(client) if proxied else ""
    return [
        status_of(item, pods[item["metadata"]["name"]], remarks, cluster=client.target.name, proxy=trouble)
        for item in sorted(found, key=lambda item: str(item["metadata"]["name"]))
    ]


async def create(client: Client, service: KubeService, made_from: str) -> None:
    """Make a service: the Deployment first, paused, because it owns the rest, and its name is the lock.

    Raises:
        CapacityError: there is something of that name.
        APIError: the API refuses; nothing is left.
    """
    try:
        made = await client.create(DEPLOYMENTS, deployment(service, made_from))
    except AlreadyExists:
        raise CapacityError(
            f"the namespace {client.namespace} has a Deployment named {service.name} that is not of lambdactl, or is "
            "just being removed; try again, or choose another name with -n."
        ) from None
    owner = made["metadata"]
    try:
        for item in [*owned(service, made_from, owner), front(service, owner)]:
            await _make(client, item, service.name)
        await client.patch(DEPLOYMENTS, service.name, {"spec": {"paused": None}})
        if service.proxied:
            await service_front.enter(client, Front.of(service.name, service.spec), made)
    except BaseException:
        await asyncio.shield(_undo(client, made))
        raise


async def _undo(client: Client, made: Object) -> None:
    """Leave nothing of a service that could not be made."""
    try:
        if service_front.front_of(made) is not None:
            await service_front.leave(client, made)
    finally:
        await client.delete(DEPLOYMENTS, made["metadata"]["name"], uid=made["metadata"]["uid"])


async def _make(client: Client, item: Object, service: str) -> None:
    """Make an object; one of that name that the service has already is the same, because its name tells its content."""
    resource, name = BY_KIND[item["kind"]], item["metadata"]["name"]
    for _attempt in range(50):
        try:
            await client.create(resource, item)
        except AlreadyExists:
            old = await client.find(resource, name)
            if old is None:
                continue
            marks, owners = old["metadata"].get("labels") or {}, old["metadata"].get("ownerReferences") or [{}]
            if marks.get(labels.SERVICE) != service:
                raise CapacityError(
                    f"the namespace {client.namespace} has a {item['kind']} named {name} that is not of this service; "
                    "choose another name with -n."
                ) from None
            if owners[0].get("uid") == item["metadata"]["ownerReferences"][0]["uid"]:
                return
            await client.delete(resource, name, uid=old["metadata"]["uid"])  # of a service that was just stopped
            await asyncio.sleep(0.1)
        else:
            return
    raise LambdactlError(f"{item['kind']} {name} of an earlier service does not go away; use another name with -n.")


async def update(client: Client, service: KubeService, made_from: str, old: Object) -> bool:
    """Have a service be as the file says now; whether its replicas are replaced by that.

    Raises:
        LambdactlError: the proxy does not take it; nothing has changed.
        APIError: the API refuses.
    """
    before = revision_of(old)
    if service.proxied:
        await service_front.enter(client, Front.of(service.name, service.spec), old)
    for item in owned(service, made_from, old["metadata"]):
        await _make(client, item, service.name)
    front_now = front(service, old["metadata"])
    await _make(client, front_now, service.name)
    await client.patch(BY_KIND["Service"], service.name, {"spec": {"ports": front_now["spec"]["ports"]}})
    annotations: dict[str, str | None] = {labels.SERVICE_FACTS: service.facts(made_from)}
    if before != made_from:
        annotations[labels.SERVICE_UPDATE] = json.dumps({"state": "running", "from": before, "at": time.time()})
    wanted = changing(service, made_from)
    if before == made_from:
        del wanted["template"]
    await _set(client, service.name, wanted, annotations)
    if not service.proxied:
        await service_front.leave(client, old)
    return before != made_from


async def _set(client: Client, name: str, spec: Mapping[str, Any], annotations: Mapping[str, str | None]) -> None:
    """Write parts of a Deployment whole: a merge would keep what the new template no longer has."""
    await client.patch(DEPLOYMENTS, name, {"metadata": {"annotations": dict(annotations)}})
    operations = [{"op": "add", "path": f"/spec/{key}", "value": value} for key, value in spec.items()]
    await client.patch(DEPLOYMENTS, name, operations, kind="json")


async def take_back(client: Client, old: Object, message: str) -> None:
    """Return to what the service was before an update; `old` is its Deployment as it was then."""
    kept = {key: old["spec"][key] for key in ("replicas", "strategy", "progressDeadlineSeconds", "template")}
    facts = (old["metadata"].get("annotations") or {}).get(labels.SERVICE_FACTS)
    said = json.dumps({"state": "failed", "message": message, "at": time.time()})
    await _set(client, old["metadata"]["name"], kept, {labels.SERVICE_FACTS: facts, labels.SERVICE_UPDATE: said})
    await service_front.set_to(client, old)


async def sweep(client: Client, name: str) -> None:
    """Remove what revisions that nothing is made from any more have left."""
    current = await find(client, name)
    if current is None:
        return
    stale = f"{labels.SERVICE}={name},{labels.REVISION},{labels.REVISION}!={revision_of(current)}"
    for resource in (CONFIGMAPS, SECRETS):
        for item in (await client.list(resource, labels=stale)).items:
            await client.delete(resource, item["metadata"]["name"], uid=item["metadata"]["uid"])


async def wait_ready(
    client: Client,
    service: KubeService,
    made_from: str,
    old: Object | None,
    on_change: Callable[[ServiceStatus], None],
) -> ServiceStatus:
    """Wait until the service is as the plan wants it, or (an update) take it back.

    Returns:
        Its last status: all replicas ready, or the update taken back.

    Raises:
        LambdactlError: its replicas fail again and again, or are not ready in time; Kubernetes goes on trying.
    """
    async with open_service(client, service.name) as session:
        waiter = _Waiter(session, service, made_from, old, on_change)
        status = await waiter.run()
    if revision_of(await client.get(DEPLOYMENTS, service.name)) == made_from:
        await sweep(client, service.name)
    return status


class _Waiter:
    def __init__(
        self,
        session: ServiceSession,
        service: KubeService,
        made_from: str,
        old: Object | None,
        on_change: Callable[[ServiceStatus], None],
    ) -> None:
        self.session, self.service, self.made_from = session, service, made_from
        self.old = old if old is not None and revision_of(old) != made_from else None
        self._on_change = on_change
        self._shown: object = None
        self._progress = (0, time.monotonic())
        self._without_node: float | None = None

    async def run(self) -> ServiceStatus:
        while True:
            status = self.session.status
            if status is None:
                raise LambdactlError(f"{self.service.name} was stopped by somebody else.")
            self._tell(status)
            deployment, pods = self.session.deployment or {}, list(self.session.pods.values())
            if complete(deployment, pods) or revision_of(deployment) != self.made_from:
                if self.old is not None and revision_of(deployment) == self.made_from:
                    await self._done()
                return self.session.status or status
            if (why := beyond_hope(pods, self.made_from) or self._too_long(pods)) is not None:
                return await self._give_up(why)
            await self._make_room(pods)
            await self.session.change(timeout=1.0)

    def _tell(self, status: ServiceStatus) -> None:
        mark = (status.state, status.ready, status.trouble())
        if mark != self._shown:
            self._shown = mark
            self._on_change(status)

    async def _done(self) -> None:
        said = json.dumps({"state": "done", "at": time.time()})
        await self.session.client.patch(
            DEPLOYMENTS, self.service.name, {"metadata": {"annotations": {labels.SERVICE_UPDATE: said}}}
        )

    def _too_long(self, pods: list[Object]) -> str | None:
        ready = sum(replica_state(pod) == "ready" and revision_of(pod) == self.made_from for pod in pods)
        if ready > self._progress[0]:
            self._progress = (ready, time.monotonic())
        if time.monotonic() - self._progress[1] < self.service.ready_timeout:
            return None
        trouble = (self.session.status.trouble() if self.session.status else "") or "no reason known"
        return f"no further replica became ready within {self.service.ready_timeout:g} s ({trouble})"

    async def _give_up(self, why: str) -> ServiceStatus:
        name = self.service.name
        if self.old is None:
            raise LambdactlError(
                f"{name} does not become ready: {why}. It is tried again after pauses. Look with `lambdactl logs "
                f"{name}`; end it with `lambdactl stop {name}`."
            )
        await take_back(self.session.client, self.old, why)
        before = revision_of(self.old)
        deadline = time.monotonic() + self.service.ready_timeout
        while time.monotonic() < deadline:
            status = self.session.status
            if status is None:
                raise LambdactlError(f"{name} was stopped by somebody else.")
            self._tell(status)
            deployment = self.session.deployment or {}
            if revision_of(deployment) == before and complete(deployment, self.session.pods.values()):
                break
            await self.session.change(timeout=1.0)
        await sweep(self.session.client, name)
        status = self.session.status
        if status is None:
            raise LambdactlError(f"{name} was stopped by somebody else.")
        return status

    async def _make_room(self, pods: list[Object]) -> None:
        """Where a new replica finds no node beside the old ones (somebody was quicker), an old one goes first."""
        stuck = any(
            revision_of(pod) == self.made_from and condition(pod, "PodScheduled", "False") is not None for pod in pods
        )
        room = (((self.session.deployment or {}).get("spec") or {}).get("strategy") or {}).get("rollingUpdate") or {}
        if self.old is None or not stuck or room.get("maxSurge") == 0:
            self._without_node = None
            return
        self._without_node = self._without_node or time.monotonic()
        if time.monotonic() - self._without_node > NO_ROOM_PATIENCE:
            strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
            await _set(self.session.client, self.service.name, {"strategy": strategy}, {})


async def stop(client: Client, name: str, *, patience: float = STOP_PATIENCE) -> bool:
    """Drain and end a service, with all that it made; False when pods of it are left after `patience` seconds."""
    found = await find(client, name)
    if found is not None:
        # First: its address may be another Service's soon.
        await service_front.leave(client, found)
        await client.delete(DEPLOYMENTS, name, propagation="Foreground", uid=found["metadata"]["uid"])
    deadline = time.monotonic() + patience
    async with open_service(client, name) as session:
        while session.pods or session.deployment is not None:
            if time.monotonic() > deadline:
                return False
            await session.change(timeout=1.0)
    return True
