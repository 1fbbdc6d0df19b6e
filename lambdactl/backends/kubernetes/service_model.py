"""A service on Kubernetes as data: all that its objects are made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import labels, proxy_config
from .model import FLEET, OWNER, KubeRun, label_value

if TYPE_CHECKING:
    from lambdactl.spec import ServiceSpec

    from .service_contents import Contents

COMPONENT = "service"
PROBER = "probes"
"""The container beside a replica that asks its probes."""
SELECTOR = f"{labels.MANAGED},{labels.SERVICE}"
"""Selects everything of every service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeService:
    """One service, as a file wants it.

    Attributes:
        name: the service's, and that of its Deployment and Service.
        spec: the file.
        run: what a replica is made from; its run_id is the service's own and outlives updates.
        replicas: how many are wanted.
        surge: an update starts a new replica before it ends an old one; without, there is no room for that.
        ready_timeout: seconds that a replica may take until it is ready.
        contents: what the replicas take with them.
        prober: the image of the container that asks the probes; None: the kubelet asks them itself.
    """

    name: str
    spec: ServiceSpec
    run: KubeRun
    replicas: int
    surge: bool = True
    ready_timeout: float = 600.0
    contents: Contents | None = None
    prober: str | None = None

    @property
    def proxied(self) -> bool:
        """Whether requests come through the proxy."""
        return proxy_config.wanted(self.spec)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every object; no run's, because no Job owns them."""
        run = {labels.RUN, labels.RUN_ID, OWNER, FLEET}
        tags = {name: value for name, value in self.run.labels.items() if name not in run}
        own = {labels.COMPONENT: COMPONENT, labels.SERVICE: self.name}
        return tags | own | {OWNER: label_value(self.run.owner), FLEET: label_value(self.run.fleet)}

    @property
    def selector(self) -> dict[str, str]:
        """What chooses its replicas, of whatever revision."""
        return {labels.MANAGED_BY: labels.MANAGER, labels.COMPONENT: COMPONENT, labels.SERVICE: self.name}

    def of_revision(self, revision: str) -> KubeService:
        """The same, whose objects are named after what they are made from: an update's and the old ones coexist."""
        return replace(self, run=replace(self.run, run_name=f"{self.name}-{revision}"))

    def facts(self, revision: str) -> str:
        """What any machine needs to know, as JSON in an annotation of the Deployment."""
        spec = self.spec
        return json.dumps(
            {
                "service_id": self.run.run_id,
                "owner": self.run.owner,
                "fleet": self.run.fleet,
                "submitted_at": self.run.submitted_at,
                "revision": revision,
                "port": spec.port,
                "probes": len(spec.probes or ()) or (1 if spec.model is not None else 0),
                "auth": spec.auth,
                "model": None if spec.model is None else spec.model.name,
                "proxy": self.proxied,
                "front": proxy_config.facts(spec),
                "stop_grace": spec.stop_grace,
            },
            sort_keys=True,
        )


def digest(parts: list[Any]) -> str:
    """The same for replicas that do the same."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def annotation(item: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A JSON object in an annotation; empty where there is none."""
    try:
        found = json.loads((item["metadata"].get("annotations") or {}).get(name) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
