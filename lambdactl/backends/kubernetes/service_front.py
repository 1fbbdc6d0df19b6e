"""A service's way through the proxy: its token, its entry, and the policy that lets nobody go around the proxy."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import labels, proxy
from .errors import AlreadyExists, APIError, Forbidden
from .proxy_config import Front
from .proxy_objects import LABELS
from .resources import DEPLOYMENTS, NETWORK_POLICIES, SECRETS, SERVICES
from .service_model import COMPONENT, annotation

if TYPE_CHECKING:
    from .client import Client

Object = dict[str, Any]
_TOKEN_BYTES = 32


def front_of(deployment: Mapping[str, Any]) -> Front | None:
    """What the proxy has to know of a service, by its Deployment; None where it needs no proxy."""
    facts = annotation(deployment, labels.SERVICE_FACTS)
    if not facts.get("proxy") or "front" not in facts:
        return None
    return Front.from_facts(str(deployment["metadata"]["name"]), facts["front"])


async def enter(client: Client, front: Front, deployment: Mapping[str, Any]) -> None:
    """Bring a service, whose Service exists, to the proxy; returns when requests reach it there.

    Raises:
        LambdactlError: the proxy does not come up, or another service has the model.
        APIError: the cluster refuses.
    """
    token = await _token(client, front.name, deployment) if front.auth else None
    address = (await client.get(SERVICES, front.name))["spec"]["clusterIP"]
    await proxy.enter(client, front, str(address), token)
    # Where the login may not make policies, the plan has said so.
    with suppress(Forbidden):
        await _guard(client, front, deployment)


async def leave(client: Client, deployment: Mapping[str, Any]) -> None:
    """Take a service away from the proxy, and its policy."""
    name = str(deployment["metadata"]["name"])
    await proxy.leave(client, name)
    with suppress(Forbidden):
        await client.delete(NETWORK_POLICIES, name)


async def set_to(client: Client, wanted: Mapping[str, Any]) -> None:
    """Have the proxy do what a service's Deployment says, as it was before an update."""
    if (front := front_of(wanted)) is not None:
        await enter(client, front, wanted)
    else:
        await leave(client, wanted)


async def fetch_token(client: Client, name: str) -> str | None:
    """A service's token; None where it asks for none, or the login may not read it."""
    found = await client.find(DEPLOYMENTS, name)
    front = None if found is None else front_of(found)
    if front is None or not front.auth:
        return None
    try:
        held = await client.find(SECRETS, secret_name(name))
    except Forbidden:
        return None
    return None if held is None else base64.b64decode(held["data"]["token"]).decode()


async def may_guard(client: Client) -> bool:
    """Whether the login may make policies."""
    try:
        return (await client.can("create", NETWORK_POLICIES))[0]
    except APIError:
        return False


def secret_name(name: str) -> str:
    """The Secret that has a service's token; no run's Secret is called so."""
    return f"{name}-token"


async def _token(client: Client, name: str, deployment: Mapping[str, Any]) -> str:
    """The service's token: the one that it has, else a new one."""
    for _attempt in range(20):
        held = await client.find(SECRETS, secret_name(name))
        if held is not None and _is_mine(held, deployment):
            return base64.b64decode(held["data"]["token"]).decode()
        if held is not None:  # of a service of that name that was just stopped
            await client.delete(SECRETS, secret_name(name), uid=held["metadata"]["uid"])
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        data = {"token": base64.b64encode(token.encode()).decode()}
        body = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data}
        with suppress(AlreadyExists):
            await client.create(SECRETS, body | {"metadata": _metadata(secret_name(name), deployment)})
            return token
    raise AlreadyExists(f"the Secret {secret_name(name)} is not of the service {name}; choose another name with -n.")


async def _guard(client: Client, front: Front, deployment: Mapping[str, Any]) -> None:
    """Only the proxy reaches the replicas of a service that asks for a token, where the network plugin sees to that."""
    held = await client.find(NETWORK_POLICIES, front.name)
    wanted = policy(front, deployment)
    same = held is not None and _is_mine(held, deployment) and held["spec"] == wanted["spec"]
    if same and front.auth:
        return
    if held is not None and (labels.SERVICE in (held["metadata"].get("labels") or {})):
        await client.delete(NETWORK_POLICIES, front.name, uid=held["metadata"]["uid"])
    if front.auth:
        with suppress(AlreadyExists):
            await client.create(NETWORK_POLICIES, wanted)


def policy(front: Front, deployment: Mapping[str, Any]) -> Object:
    """The NetworkPolicy; the kubelet's probes and port-forwards are not asked by it."""
    chosen = {labels.MANAGED_BY: labels.MANAGER, labels.COMPONENT: COMPONENT, labels.SERVICE: front.name}
    return {
        "apiVersion": NETWORK_POLICIES.api_version,
        "kind": NETWORK_POLICIES.kind,
        "metadata": _metadata(front.name, deployment),
        "spec": {
            "podSelector": {"matchLabels": chosen},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": LABELS}}]}],
        },
    }


def _metadata(name: str, deployment: Mapping[str, Any]) -> Object:
    owner = deployment["metadata"]
    reference = {"apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind}
    marks = {labels.MANAGED_BY: labels.MANAGER, labels.COMPONENT: COMPONENT, labels.SERVICE: owner["name"]}
    return {
        "name": name,
        "labels": marks,
        "ownerReferences": [reference | {"name": owner["name"], "uid": owner["uid"]}],
    }


def _is_mine(item: Mapping[str, Any], deployment: Mapping[str, Any]) -> bool:
    owners = item["metadata"].get("ownerReferences") or [{}]
    return bool(owners[0].get("uid") == deployment["metadata"]["uid"])
