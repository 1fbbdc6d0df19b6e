"""The proxy in front of the services of a namespace: made with the first service that needs it, gone with the last.

A Deployment `lambdactl-proxy` of HAProxy, and one Secret with what it reads. Everybody changes the Secret as a whole,
by the version that they have read, so two who change different services at the same time lose nothing. The pods are
told by an annotation, and asked which version they work with: who enters a service returns when requests reach it.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lambdactl.errors import CapacityError, LambdactlError

from . import labels, proxy_objects
from .config import config_files
from .errors import AlreadyExists, APIError, Conflict, NotFound
from .podstate import condition, hopeless, waiting_for
from .proxy_config import STATUS_PORT, Data, Front, door, finished, model_owner, names, with_service, without_service
from .proxy_objects import NAME, SELECTOR, VERSION
from .resources import DEPLOYMENTS, PODS, SECRETS, SERVICES
from .service_view import last_end

if TYPE_CHECKING:
    from .client import Client

Object = dict[str, Any]
READY_WITHIN = 120.0
"""Seconds that the proxy may take until it works with a change; pulling its image is most of that."""
_NUDGE = 3.0
_GONE_WITHIN = 20.0
_PAUSE = 0.3


def image_of(client: Client) -> str:
    """The image that is configured, else the public one."""
    return client.target.proxy_image or proxy_objects.IMAGE


async def enter(client: Client, front: Front, address: str, token: str | None) -> None:
    """Have the proxy take requests for a service, and wait until it does; the proxy is made where it is missing.

    Args:
        address: the ClusterIP of the service's Service.
        token: the service's token, None where it asks for none.

    Raises:
        CapacityError: another service has the model.
        LambdactlError: the proxy does not come up, or does not take the service; nothing of it is left.
        APIError: the cluster refuses.
    """
    before, deployment = await _read(client), await client.find(DEPLOYMENTS, NAME)

    def change(data: Data) -> Data:
        if front.model is not None and model_owner(data, front.model.name) not in (None, front.name):
            raise CapacityError(
                f"the model {front.model.name} is served by the service {model_owner(data, front.model.name)} already; "
                "stop that one, or give this one's model another name."
            )
        return with_service(data, front, address, token)

    try:
        await _Entering(client, front.name, change).run()
    except BaseException:
        await asyncio.shield(_back(client, front.name, before, deployment))
        raise


async def leave(client: Client, name: str) -> None:
    """Take a service out of the proxy, and the proxy away with the last one."""
    held = await client.find(SECRETS, NAME)
    if held is None:
        if not set(await _services(client, proxied=True)) - {name}:
            await _remove(client, None)
        return
    with suppress(NotFound):
        data, held = await _edit(client, lambda data: without_service(data, name))
        if names(data):
            await _nudge(client, data["version"])
        else:
            await _remove(client, held)


async def door_of(client: Client, name: str) -> int | None:
    """The port of the proxy pods' localhost that leads to a service alone; None where it is not at the proxy."""
    return door(await _read(client), name)


async def trouble(client: Client) -> str:
    """What is wrong with the proxy, in one clause; empty when nothing is."""
    pods = await _pods(client)
    if any(condition(pod, "Ready") for pod in pods):
        return ""
    return f"the proxy {NAME} is not ready ({_waits(pods)})"


class _Entering:
    """Until all of the proxy's pods work with what `change` makes of the configuration."""

    def __init__(self, client: Client, name: str, change: Callable[[Data], Data]) -> None:
        self._client, self._name, self._change = client, name, change
        self._image = image_of(client)
        self._deadline = time.monotonic() + READY_WITHIN
        self._nudged = 0.0

    async def run(self) -> None:
        while True:
            try:
                owner = await _make(self._client, self._image)
                data, _held = await _edit(self._client, self._change)
            except NotFound:  # the last one who needed it is just taking it away
                await self._pause(None)
                continue
            if await self._taken(owner["metadata"]["uid"], data):
                return

    async def _taken(self, uid: str, data: Data) -> bool:
        """Wait until the proxy works with it; False where it has to be entered once more."""
        entry = f"service.{self._name}"
        while True:
            deployment, now = await self._client.find(DEPLOYMENTS, NAME), await _read(self._client)
            alive = deployment is not None and deployment["metadata"]["uid"] == uid
            if deployment is None or not alive or now.get(entry) != data[entry]:
                return False
            pods = await _pods(self._client)
            _check(self._client, deployment, pods)
            if _rolled_out(deployment) and await self._all_show(pods, now["version"]):
                return True
            await self._pause(pods)

    async def _all_show(self, pods: list[Object], version: str) -> bool:
        ready = [pod for pod in pods if condition(pod, "Ready")]
        shown = await asyncio.gather(*(_shown(self._client, pod) for pod in ready))
        if ready and set(shown) == {version}:
            return True
        if time.monotonic() - self._nudged > _NUDGE:
            self._nudged = time.monotonic()
            await _nudge(self._client, version)
        return False

    async def _pause(self, pods: list[Object] | None) -> None:
        if time.monotonic() > self._deadline:
            raise _failed(self._client, _waits(pods or []))
        await asyncio.sleep(_PAUSE)


async def _make(client: Client, image: str) -> Object:
    """The Deployment and what it owns, as they are or made just now; its template as it has to be."""
    found = await client.find(DEPLOYMENTS, NAME)
    if found is None:
        with suppress(AlreadyExists):
            await client.create(DEPLOYMENTS, proxy_objects.deployment(image))
        found = await client.get(DEPLOYMENTS, NAME)
    marks = found["metadata"].get("labels") or {}
    if any(marks.get(key) != value for key, value in proxy_objects.LABELS.items()):
        raise CapacityError(f"the namespace {client.namespace} has a Deployment {NAME} that is not of lambdactl.")
    if found["metadata"].get("deletionTimestamp"):
        raise NotFound(f"the proxy {NAME} is being removed.")
    for resource, body in (
        (SECRETS, proxy_objects.secret(found, _encoded(finished({}, ())))),
        (SERVICES, proxy_objects.service(found)),
    ):
        if await client.find(resource, NAME) is None:
            with suppress(AlreadyExists):
                await client.create(resource, body)
    await _bring_up_to_date(client, found, proxy_objects.deployment(image))
    return found


async def _bring_up_to_date(client: Client, found: Object, wanted: Object) -> None:
    """Another image or another version of lambdactl: a new pod takes over from the old one."""
    made_from, new = (
        (item["metadata"].get("annotations") or {}).get(proxy_objects.TEMPLATE) for item in (found, wanted)
    )
    if made_from != new:
        await client.patch(DEPLOYMENTS, NAME, {"metadata": {"annotations": {proxy_objects.TEMPLATE: new}}})
        operation = {"op": "replace", "path": "/spec/template", "value": wanted["spec"]["template"]}
        await client.patch(DEPLOYMENTS, NAME, [operation], kind="json")
    if found["spec"].get("paused"):
        await client.patch(DEPLOYMENTS, NAME, {"spec": {"paused": None}})


async def _edit(client: Client, change: Callable[[Data], Data]) -> tuple[Data, Object]:
    """Read, change and write the configuration, again where somebody else has written meanwhile; and the Secret.

    Raises:
        NotFound: there is none.
    """
    for attempt in range(30):
        held = await client.get(SECRETS, NAME)
        data = _decoded(held)
        # Read after the Secret: who has made a service since then has not written yet, and will find this version.
        alive = await _services(client)
        wanted = finished(change(finished(data, alive)), alive)
        if wanted == data:
            return data, held
        try:
            return wanted, await client.replace(SECRETS, NAME, held | {"data": _encoded(wanted)})
        except Conflict:
            await asyncio.sleep(0.05 * attempt)
    raise CapacityError(f"the Secret {NAME} is changed by others all the time; try again.")


async def _back(client: Client, name: str, before: Data, deployment: Object | None) -> None:
    """Leave the proxy as it was: the service's earlier entries or none, and the earlier image."""
    with suppress(APIError, LambdactlError):
        if deployment is not None:
            await _bring_up_to_date(client, await client.get(DEPLOYMENTS, NAME), deployment)
        if f"service.{name}" not in before:
            await leave(client, name)
            return
        own = {key: text for key, text in before.items() if key not in without_service(before, name)}
        data, _held = await _edit(client, lambda now: without_service(now, name) | own)
        await _nudge(client, data["version"])


async def _remove(client: Client, held: Object | None) -> None:
    """Take the proxy away, unless somebody enters a service at this moment; and wait until it is gone."""
    if held is not None:
        meta = held["metadata"]
        try:
            await client.delete(SECRETS, NAME, uid=meta["uid"], version=meta["resourceVersion"])
        except Conflict:
            return
    found = await client.find(DEPLOYMENTS, NAME)
    if found is None or (found["metadata"].get("labels") or {}).get(labels.COMPONENT) != "proxy":
        return
    with suppress(Conflict):
        await client.delete(DEPLOYMENTS, NAME, uid=found["metadata"]["uid"])
    deadline = time.monotonic() + _GONE_WITHIN
    while time.monotonic() < deadline:
        left = await _pods(client, ending=True)
        mine = [pod for pod in left if pod["metadata"].get("deletionGracePeriodSeconds") != 1]
        if not left or await client.find(DEPLOYMENTS, NAME) is not None:
            return
        for pod in mine:  # nothing is under way there any more
            with suppress(Conflict):
                await client.delete(PODS, pod["metadata"]["name"], grace=1, uid=pod["metadata"]["uid"])
        await asyncio.sleep(_PAUSE)


async def _services(client: Client, *, proxied: bool = False) -> list[str]:
    """The services of the namespace, or those of them that need the proxy."""
    from .service_model import SELECTOR as ALL_SERVICES
    from .service_model import annotation

    found = (await client.list(DEPLOYMENTS, labels=ALL_SERVICES)).items
    return [
        str(item["metadata"]["name"])
        for item in found
        if not proxied or annotation(item, labels.SERVICE_FACTS).get("proxy")
    ]


async def _pods(client: Client, *, ending: bool = False) -> list[Object]:
    """The proxy's pods that have not ended; without `ending`, those that are to stay."""
    return [
        pod
        for pod in (await client.list(PODS, labels=SELECTOR)).items
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and (ending or not pod["metadata"].get("deletionTimestamp"))
    ]


async def _nudge(client: Client, version: str) -> None:
    """Have the kubelets renew the pods' files now: another value each time, or the pod would not change."""
    mark = {"metadata": {"annotations": {VERSION: f"{version}-{time.time_ns() // 1_000_000}"}}}
    for pod in await _pods(client):
        with suppress(NotFound):
            await client.patch(PODS, pod["metadata"]["name"], mark)


async def _shown(client: Client, pod: Object) -> str | None:
    """The version that a pod's proxy works with, as it says itself."""
    said = b""
    with suppress(APIError, TimeoutError):
        async with (
            asyncio.timeout(10),
            client.port_forward(pod["metadata"]["name"], STATUS_PORT) as stream,
        ):
            await stream.write(b"GET / HTTP/1.0\r\n\r\n")
            while data := await stream.read():
                said += data
    return said.decode("ascii", "replace").rpartition("\r\n\r\n")[2] or None


def _rolled_out(deployment: Mapping[str, Any]) -> bool:
    status, wanted = deployment.get("status") or {}, int(deployment["spec"].get("replicas") or 0)
    seen = int(status.get("observedGeneration") or 0) >= int(deployment["metadata"].get("generation") or 0)
    counts = [int(status.get(key) or 0) for key in ("updatedReplicas", "availableReplicas", "replicas")]
    return seen and counts == [wanted] * 3


def _check(client: Client, deployment: Mapping[str, Any], pods: list[Object]) -> None:
    """Raise where waiting is in vain."""
    for pod in pods:
        if (why := hopeless(pod)) is not None:
            raise _failed(client, why)
        status: Object = next(iter((pod.get("status") or {}).get("containerStatuses") or []), {})
        ends = [((status.get(state) or {}).get("terminated") or {}) for state in ("state", "lastState")]
        if any(str(end.get("message") or "").startswith("start-failed: ") for end in ends):
            raise _failed(client, str(last_end(pod)))
        if int(status.get("restartCount") or 0) >= 3 and not condition(pod, "Ready"):
            raise _failed(client, f"it has failed {status['restartCount']} times ({last_end(pod)})")
    refused = condition(deployment, "ReplicaFailure")
    if refused is not None and not pods:
        raise LambdactlError(
            f"the proxy {NAME}, which services with `auth`, `model` or `rate_limits` need, is not admitted: "
            f"{' '.join(str(refused.get('message') or refused.get('reason')).split())[:300].rstrip('.')}."
        )


def _failed(client: Client, why: str) -> LambdactlError:
    return LambdactlError(
        f"the proxy {NAME}, which services with `auth`, `model` or `rate_limits` need, does not become ready: "
        f"{why.rstrip('.')}; name an image that has haproxy and /bin/sh, and that the nodes can pull, as `proxy_image` "
        f"of the backend in {_configuration(client)} (it is {image_of(client)} now)."
    )


def _configuration(client: Client) -> str:
    """The file that `proxy_image` belongs into: the one that there is, or ours."""
    target = client.target
    return target.origin if target.origin != target.kubeconfig.shown else str(config_files()[0][0])


def _waits(pods: list[Object]) -> str:
    for pod in pods:
        if (why := hopeless(pod) or waiting_for(pod)) is not None and "other ranks" not in why:
            return why
        if (end := last_end(pod)) is not None:
            return end
    return "it does not take the new configuration" if pods else "it has no pod"


def _encoded(data: Mapping[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}


def _decoded(held: Mapping[str, Any]) -> Data:
    return {key: base64.b64decode(text).decode() for key, text in (held.get("data") or {}).items()}


async def _read(client: Client) -> Data:
    """The configuration as it is; empty where there is none."""
    held = await client.find(SECRETS, NAME)
    return {} if held is None else _decoded(held)
