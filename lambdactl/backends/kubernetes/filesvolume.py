"""The files volume in objects: the claim, where pods have it, and what a pod takes from it by itself (filestore.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .payload import BASE
from .resources import CLAIMS

if TYPE_CHECKING:
    from .client import Client
    from .settings import FilesVolume

VOLUME = "lambdactl-store"


def volume(files: FilesVolume) -> dict[str, Any]:
    """The volume of a pod template."""
    return {"name": VOLUME, "persistentVolumeClaim": {"claimName": files.claim}}


def mount() -> dict[str, Any]:
    """Where its containers have it."""
    return {"name": VOLUME, "mountPath": f"{BASE}/store"}


def trees(digests: Sequence[str]) -> str:
    """The text of bin/trees: what a pod takes by itself."""
    return "".join(f"{digest}\n" for digest in digests)


async def claim_problem(client: Client, files: FilesVolume) -> str | None:
    """Why the claim cannot be the files volume, as a clause with a remedy after "; "; None where it can."""
    name = files.claim
    claim = await client.find(CLAIMS, name)
    if claim is None:
        return (
            f"the namespace {client.namespace} has no PersistentVolumeClaim {name}; make it (ReadWriteMany), or remove "
            "`files_volume`"
        )
    modes = (claim.get("spec") or {}).get("accessModes") or []
    if "ReadWriteMany" not in modes:
        return (
            f"the PersistentVolumeClaim {name} is {', '.join(modes) or 'of no mode'}, so pods on several nodes cannot "
            "share it; make one that is ReadWriteMany"
        )
    phase = (claim.get("status") or {}).get("phase")
    if phase == "Lost":
        return f"the volume of the PersistentVolumeClaim {name} is lost; make the claim anew"
    if phase != "Bound" and not (claim.get("spec") or {}).get("storageClassName"):
        return (
            f"the PersistentVolumeClaim {name} is {phase or 'Pending'}, because no volume fits it; see what "
            f"`kubectl describe pvc {name}` says"
        )
    return None
