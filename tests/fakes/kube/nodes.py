"""The fake's nodes, with the labels of NVIDIA's GPU feature discovery."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .store import now


@dataclass
class FakeNode:
    """A node. ``resources`` adds to allocatable, such as an RDMA resource; ``gpu_memory`` is in MiB."""

    name: str
    gpus: int = 0
    product: str = "NVIDIA-B200"
    gpu_memory: int = 183359
    compute: str = "10.0"
    cpu: str = "64"
    memory: str = "512Gi"
    storage: str = "900Gi"
    pods: int = 110
    resources: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[dict[str, str]] = field(default_factory=list)
    external_ip: str | None = None
    arch: str = "amd64"

    def manifest(self, index: int) -> dict[str, Any]:
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/arch": self.arch, "kubernetes.io/os": "linux"}
        capacity = {"cpu": self.cpu, "memory": self.memory, "ephemeral-storage": self.storage, "pods": str(self.pods)}
        if self.gpus:
            major, minor = self.compute.split(".")
            labels |= {
                "nvidia.com/gpu.present": "true", "nvidia.com/gpu.product": self.product,
                "nvidia.com/gpu.count": str(self.gpus), "nvidia.com/gpu.memory": str(self.gpu_memory),
                "nvidia.com/gpu.compute.major": major, "nvidia.com/gpu.compute.minor": minor,
                "nvidia.com/cuda.driver-version.full": "580.65.06",
            }  # fmt: skip
            capacity["nvidia.com/gpu"] = str(self.gpus)
        addresses = [
            {"type": "InternalIP", "address": f"172.20.0.{index + 2}"},
            {"type": "Hostname", "address": self.name},
        ]
        if self.external_ip:
            addresses.append({"type": "ExternalIP", "address": self.external_ip})
        return {
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "labels": labels | self.labels},
            "spec": {"taints": list(self.taints)} if self.taints else {},
            "status": {
                "capacity": capacity | self.resources, "allocatable": capacity | self.resources,
                "addresses": addresses, "conditions": [ready("True")],
                "nodeInfo": {
                    "architecture": self.arch, "bootID": "b", "containerRuntimeVersion": "fake://1",
                    "kernelVersion": "6.8.0", "kubeProxyVersion": "", "kubeletVersion": "v1.36.0",
                    "machineID": f"m{index}", "operatingSystem": "linux", "osImage": "Ubuntu 24.04", "systemUUID": "u",
                },
            },
        }  # fmt: skip


def ready(status: str) -> dict[str, str]:
    reason = {"True": "KubeletReady", "False": "KubeletNotReady", "Unknown": "NodeStatusUnknown"}[status]
    message = "Kubelet stopped posting node status." if status == "Unknown" else "kubelet is posting ready status"
    return {"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": now(),
            "lastHeartbeatTime": now()}  # fmt: skip
