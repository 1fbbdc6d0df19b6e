"""The fake's other controllers: Deployments (without ReplicaSets) and the garbage collector of owner references."""

from __future__ import annotations

import copy
import hashlib
import json
import uuid

from lambdactl.backends.kubernetes.resources import BY_NAME, DEPLOYMENTS, PODS

from .events import Events
from .jobs import ENDED, condition
from .server import ApiServer, owners
from .store import Object, Refused


class Deployments:
    """Keeps as many pods as a Deployment wants, of its present template."""

    def __init__(self, server: ApiServer, events: Events) -> None:
        self.server, self.store, self.events = server, server.store, events

    def step(self) -> None:
        for deployment in self.store.all("deployments"):
            if "deletionTimestamp" not in deployment["metadata"]:
                self._sync(copy.deepcopy(deployment))

    def _sync(self, deployment: Object) -> None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        if spec.get("paused"):
            return
        digest = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:10]
        pods = [p for p in self.store.all("pods", metadata["namespace"]) if _owned(p, metadata["uid"])]
        for pod in [p for p in pods if p["status"].get("phase") in ENDED]:
            self.server.delete(PODS, pod, {})
        live = [p for p in pods if p["status"].get("phase") not in ENDED and "deletionTimestamp" not in p["metadata"]]
        current = [p for p in live if p["metadata"]["labels"].get("pod-template-hash") == digest]
        old = [p for p in live if p not in current]
        self._remove(spec, current, old)
        there = len(pods if _recreates(spec) else live)
        refused = self._create(deployment, digest, current, there)
        self._tell(deployment, current, old, refused)
        self.store.update(DEPLOYMENTS.plural, deployment)

    def _remove(self, spec: Object, current: list[Object], old: list[Object]) -> None:
        """Old pods, as many as the strategy lets go now, those that are not ready first; and what is too many."""
        wanted = spec.get("replicas", 1)
        if _recreates(spec):
            going = list(old)
        else:
            unready = len([p for p in current if not _ready(p)])
            spare = len(current) + len(old) - (wanted - _room(spec)[1]) - unready
            broken = [p for p in old if not _ready(p)]
            going = broken[: max(0, spare)]
            ready = len([p for p in current + old if _ready(p)])
            whole = [p for p in old if _ready(p)]
            going += whole[: max(0, min(spare - len(going), ready - (wanted - _room(spec)[1])))]
        going += sorted(current, key=_ready)[: max(0, len(current) - wanted)]
        for pod in going:
            self.server.delete(PODS, pod, {})
            (current if pod in current else old).remove(pod)

    def _create(self, deployment: Object, digest: str, current: list[Object], there: int) -> str | None:
        """New pods, as many as the strategy lets be beside the old ones; why one was refused."""
        metadata, spec = deployment["metadata"], deployment["spec"]
        wanted = spec.get("replicas", 1)
        most = wanted if _recreates(spec) else wanted + _room(spec)[0]
        for _ in range(min(wanted - len(current), most - there)):
            template = copy.deepcopy(spec["template"])
            labels = {**(template.get("metadata") or {}).get("labels", {}), "pod-template-hash": digest}
            owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"],
                     "controller": True}  # fmt: skip
            pod = {
                "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
                "metadata": {"name": f"{metadata['name']}-{digest}-{uuid.uuid4().hex[:5]}", "labels": labels,
                             "ownerReferences": [owner]},
            }  # fmt: skip
            try:
                current.append(self.server.create(PODS, metadata["namespace"], pod))
            except Refused as refused:
                said = f"Error creating: {refused.message}"
                self.events.tell(deployment, "FailedCreate", said, "replicaset-controller",
                                 warning=True)  # fmt: skip
                return refused.message
        return None

    def _tell(self, deployment: Object, current: list[Object], old: list[Object], refused: str | None) -> None:
        ready, all_ready = [p for p in current if _ready(p)], [p for p in current + old if _ready(p)]
        deployment["status"] = {
            **(deployment.get("status") or {}), "replicas": len(current) + len(old), "readyReplicas": len(all_ready),
            "updatedReplicas": len(current), "availableReplicas": len(all_ready),
            "observedGeneration": deployment["metadata"].get("generation", 1),
        }  # fmt: skip
        if ready:
            condition(deployment, "Available", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        kept = [c for c in deployment["status"].get("conditions") or [] if c["type"] != "ReplicaFailure"]
        if kept or "conditions" in deployment["status"]:
            deployment["status"]["conditions"] = kept
        if refused:
            condition(deployment, "ReplicaFailure", "FailedCreate", refused)
        for found in deployment["status"].get("conditions") or []:
            found.pop("lastProbeTime", None)


def _recreates(spec: Object) -> bool:
    return (spec.get("strategy") or {}).get("type") == "Recreate"


def _room(spec: Object) -> tuple[int, int]:
    """maxSurge and maxUnavailable, as numbers."""
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    return int(rolling.get("maxSurge", 1)), int(rolling.get("maxUnavailable", 0))


def _ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or [])


class GarbageCollector:
    """Removes what an owner left behind, and ends foreground deletions and deleted namespaces."""

    def __init__(self, server: ApiServer) -> None:
        self.server, self.store = server, server.store

    def step(self) -> None:
        uids = {item["metadata"]["uid"] for item in self.store.objects.values()}
        for (plural, _, _), item in list(self.store.objects.items()):
            resource = BY_NAME.get(plural) or self.server.extra[plural]
            references = owners(item)
            stray = references and not any(r["uid"] in uids for r in references)
            if stray and "deletionTimestamp" not in item["metadata"]:
                self.server.delete(resource, item, {})
            if "foregroundDeletion" in item["metadata"].get("finalizers", []):
                self._foreground(plural, item)
        for space in self.store.all("namespaces"):
            if space["status"].get("phase") == "Terminating":
                self._empty(space)

    def _foreground(self, plural: str, item: Object) -> None:
        uid = item["metadata"]["uid"]
        children = [(key, o) for key, o in self.store.objects.items() if any(r["uid"] == uid for r in owners(o))]
        for (kind, _, _), child in children:
            if "deletionTimestamp" not in child["metadata"]:
                self.server.delete(BY_NAME[kind], child, {})
        if not children:
            self.store.remove(plural, item["metadata"].get("namespace", ""), item["metadata"]["name"])

    def _empty(self, space: Object) -> None:
        name = space["metadata"]["name"]
        inside = [(key, o) for key, o in self.store.objects.items() if key[1] == name]
        for (plural, _, _), item in inside:
            if "deletionTimestamp" not in item["metadata"]:
                self.server.delete(BY_NAME[plural], item, {"gracePeriodSeconds": 1})
        if not inside:
            self.store.remove("namespaces", "", name)


def _owned(pod: Object, uid: str) -> bool:
    return any(reference["uid"] == uid for reference in owners(pod))
