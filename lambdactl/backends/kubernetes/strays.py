"""What lambdactl has left in a namespace: found by its label, and removed by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .client import open_client
from .labels import MANAGED, RUN, SERVICE
from .resources import CONFIGMAPS, DEPLOYMENTS, JOBS, PODS, SECRETS, SERVICES, Resource

if TYPE_CHECKING:
    from .client import Client
    from .fleet import KubeFleet

KINDS = (JOBS, SERVICES, CONFIGMAPS, SECRETS, PODS)
"""Owners first. The jump pod's objects belong to its Deployment, which goes with the last user's key (`jump`)."""


@dataclass(slots=True)
class Strays:
    """What was found: objects by cluster, and the runs that are active."""

    objects: list[tuple[str, Resource, str, str]] = field(default_factory=list)
    """(cluster, kind, name, uid)"""
    active: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """As kubectl writes them."""
        return [f"{resource.full_name}/{name}" for _, resource, name, _ in self.objects]


async def strays(fleet: KubeFleet) -> Strays:
    """Everything with lambdactl's label in the fleet's namespaces.

    Raises:
        APIError: a cluster refuses, or cannot be reached.
    """
    found = Strays()
    for target in fleet.targets:
        async with open_client(target) as client:
            await _of_cluster(client, target.name, found)
    found.active = sorted(set(found.active))
    return found


async def _of_cluster(client: Client, cluster: str, found: Strays) -> None:
    services = await client.list(DEPLOYMENTS, labels=f"{MANAGED},{SERVICE}")
    found.active += [str(item["metadata"]["name"]) for item in services.items]
    for resource in KINDS:
        for item in (await client.list(resource, labels=MANAGED)).items:
            metadata = item["metadata"]
            if resource is JOBS and not _finished(item):
                found.active.append(str((metadata.get("labels") or {}).get(RUN) or metadata["name"]))
            # What is owned goes with its owner.
            if not metadata.get("ownerReferences"):
                found.objects.append((cluster, resource, metadata["name"], metadata["uid"]))


def _finished(job: dict[str, object]) -> bool:
    status = job.get("status")
    conditions = (status.get("conditions") if isinstance(status, dict) else None) or []
    return any(c.get("type") in ("Complete", "Failed") and c.get("status") == "True" for c in conditions)


async def remove(fleet: KubeFleet, found: Strays) -> None:
    """Delete these very objects (by uid), and no later ones of their names."""
    for target in fleet.targets:
        async with open_client(target) as client:
            for cluster, resource, name, uid in found.objects:
                if cluster == target.name:
                    await client.delete(resource, name, uid=uid)
