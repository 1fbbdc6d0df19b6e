"""What tests do to one pod or one node of the fake."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from lambdactl.backends.kubernetes.resources import NODES, PODS

from .jobs import ENDED
from .nodes import ready
from .store import Object, now

if TYPE_CHECKING:
    from .cluster import FakeCluster


class PodHandle:
    """One pod. The methods of the scripted mode return the handle, so that they can be chained."""

    def __init__(self, cluster: FakeCluster, name: str, namespace: str) -> None:
        self.cluster, self.prefix, self.namespace = cluster, name, namespace

    def _find(self) -> Object | None:
        for pod in self.cluster.store.all("pods", self.namespace):
            if pod["metadata"]["name"].startswith(self.prefix):
                return copy.deepcopy(pod)
        return None

    @property
    def object(self) -> Object:
        """The pod as it is now, waited for."""
        return self.cluster.wait(self._find)

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    def placed(self) -> PodHandle:
        """Wait until it has a node, and its kubelet knows it."""
        self.cluster.wait(lambda: ((self._find() or {}).get("status") or {}).get("containerStatuses"))
        return self

    def ended(self) -> PodHandle:
        """Wait until it has ended, or is gone."""
        self.cluster.wait(lambda: (self._find() or {"status": {"phase": "Failed"}})["status"]["phase"] in ENDED)
        return self

    def run(self, log: bytes = b"", *, address: str | None = None) -> PodHandle:
        """Its containers run, and have written this."""
        self.placed()
        self.cluster.call(lambda: self.cluster.kubelet.run(self._pod(), address))
        return self.write(log)

    def write(self, data: bytes, container: str | None = None) -> PodHandle:
        """More of its log."""
        self.cluster.call(lambda: self.cluster.kubelet.log(self._pod(), container).write(data))
        return self

    def exit(self, code: int, reason: str | None = None) -> PodHandle:
        """Its containers end."""
        self.cluster.call(lambda: self.cluster.kubelet.end(self._pod(), code, reason))
        return self

    def oom(self) -> PodHandle:
        """The kernel kills it for its memory."""
        return self.exit(137, "OOMKilled")

    def image_error(
        self, reason: str = "ErrImagePull", message: str = 'failed to pull image "x": not found'
    ) -> PodHandle:
        """Its image cannot be had."""
        self.placed()
        self.cluster.call(lambda: self.cluster.kubelet.waiting(self._pod(), reason, message))
        return self

    def fail(self, reason: str, message: str) -> PodHandle:
        """The kubelet ends the pod, such as for the reason Evicted."""
        self.cluster.call(
            lambda: self.cluster.kubelet.end(self._pod(), 137, "Error", pod_reason=reason, message=message)
        )
        return self

    def evict(self) -> PodHandle:
        """By the eviction API, as a drain does."""
        self.cluster.call(lambda: self.cluster.server.evict(self.namespace, self._pod()["metadata"]["name"]))
        return self

    def delete(self, *, grace: int | None = None) -> PodHandle:
        options = {} if grace is None else {"gracePeriodSeconds": grace}
        self.cluster.call(lambda: self.cluster.server.delete(PODS, self._pod(), options))
        return self

    def _pod(self) -> Object:
        found = self._find()
        assert found is not None, f"no pod {self.prefix}"
        return found


class NodeHandle:
    """One node."""

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        self.cluster, self.name = cluster, name

    def cordon(self, on: bool = True) -> None:
        self.cluster.change(NODES, self.name, lambda node: node["spec"].update(unschedulable=on))

    def taint(self, key: str, value: str = "", effect: str = "NoSchedule") -> None:
        taint = {"key": key, "value": value, "effect": effect}
        self.cluster.change(NODES, self.name, lambda node: node["spec"].setdefault("taints", []).append(taint))

    def drain(self) -> None:
        """Cordon it and evict its pods."""
        self.cordon()
        for pod in self._pods():
            self.cluster.call(
                lambda pod=pod: self.cluster.server.evict(pod["metadata"]["namespace"], pod["metadata"]["name"])
            )

    def down(self) -> None:
        """Its kubelet is gone: the node becomes Unknown and tainted, its pods unready; nothing on it can be deleted."""
        self.cluster.kubelet.down.add(self.name)
        taints = [
            {"key": "node.kubernetes.io/unreachable", "effect": effect, "timeAdded": now()}
            for effect in ("NoSchedule", "NoExecute")
        ]

        def change(node: Object) -> None:
            node["spec"]["taints"] = [*(node["spec"].get("taints") or []), *taints]
            node["status"]["conditions"] = [ready("Unknown")]

        self.cluster.change(NODES, self.name, change)
        for pod in self._pods():
            self.cluster.change(PODS, pod["metadata"]["name"], _unready, pod["metadata"]["namespace"])

    def evict_lost(self) -> None:
        """What follows after five minutes of `down`: its pods are deleted, but stay Terminating."""
        condition = {
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now(),
        }  # fmt: skip
        for pod in self._pods():
            name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
            self.cluster.change(
                PODS, name, lambda p: p["status"].setdefault("conditions", []).append(condition), namespace
            )
            self.cluster.remove(PODS, name, namespace)

    def remove(self) -> None:
        """The Node object is deleted, and with it its pods."""
        for pod in self._pods():
            self.cluster.remove(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"], gracePeriodSeconds=0)
        self.cluster.remove(NODES, self.name)

    def _pods(self) -> list[Object]:
        pods = self.cluster.objects(PODS)
        return [p for p in pods if p["spec"].get("nodeName") == self.name and p["status"].get("phase") not in ENDED]


def _unready(pod: Object) -> None:
    for found in pod["status"].get("conditions") or []:
        if found["type"] == "Ready":
            found.update(status="False", lastTransitionTime=now())
