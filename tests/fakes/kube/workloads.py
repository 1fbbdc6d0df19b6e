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
        digest = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:10]
        pods = [p for p in self.store.all("pods", metadata["namespace"]) if _owned(p, metadata["uid"])]
        live = [p for p in pods if p["status"].get("phase") not in ENDED and "deletionTimestamp" not in p["metadata"]]
        current = [p for p in live if p["metadata"]["labels"].get("pod-template-hash") == digest]
        for pod in [p for p in live if p not in current] + [p for p in pods if p["status"].get("phase") in ENDED]:
            self.server.delete(PODS, pod, {})
        for _ in range(spec.get("replicas", 1) - len(current)):
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
                break
        ready = [
            p
            for p in current
            if any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions") or [])
        ]
        deployment["status"] = {
            **(deployment.get("status") or {}), "replicas": len(current), "readyReplicas": len(ready),
            "updatedReplicas": len(current), "availableReplicas": len(ready), "observedGeneration": 1,
        }  # fmt: skip
        if ready:
            condition(deployment, "Available", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        for found in deployment["status"].get("conditions") or []:
            found.pop("lastProbeTime", None)
        self.store.update(DEPLOYMENTS.plural, deployment)


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
