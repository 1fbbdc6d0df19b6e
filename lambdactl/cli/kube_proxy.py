"""What commands say of the proxy in front of services on Kubernetes, and `attach` through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambdactl.backends.kubernetes import proxy, proxy_objects, service_front
from lambdactl.backends.kubernetes.proxy_config import MODELS_PATH
from lambdactl.backends.kubernetes.resources import DEPLOYMENTS
from lambdactl.cli.console import note

if TYPE_CHECKING:
    from pathlib import Path

    from lambdactl.backends.kubernetes.client import Client
    from lambdactl.backends.kubernetes.service_plan import KubeServicePlan


async def described(client: Client, plan: KubeServicePlan) -> list[tuple[str, str]]:
    """Rows of the plan."""
    service = plan.service
    if not service.proxied:
        return [("Auth", "none: whoever is in the cluster's network may use it"), ("Proxy", "none is needed")]
    there = await client.find(DEPLOYMENTS, proxy_objects.NAME) is not None
    state = "runs already" if there else f"will be made, image {proxy.image_of(client)}"
    auth = "none: whoever reaches the proxy may use it"
    if service.spec.auth:
        guarded = await service_front.may_guard(client)
        auth = (
            "bearer token"
            if guarded
            else (
                "bearer token at the proxy; others in the cluster's network can go around it, because this login may "
                "not make NetworkPolicies (docs/kubernetes/rbac.yaml has the right)"
            )
        )
    return [("Auth", auth), ("Proxy", f"{proxy_objects.NAME} ({state})")]


def tell(root: str, address: str, token_file: Path | None, model: object) -> None:
    """How to use it: the token's file, and the base URL of OpenAI's clients below `root`."""
    if token_file is not None:
        note(f'Its token is in {token_file}: curl -H "Authorization: Bearer $(cat {token_file})" {address}')
    if model is not None:
        note(f"OpenAI-compatible: {root}{MODELS_PATH} as base URL, model {getattr(model, 'name', model)}.")
