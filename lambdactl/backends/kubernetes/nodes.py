"""The cluster's nodes: what they are (GPU feature discovery), what is free on them, and why one does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambdactl.fleet import match
from lambdactl.fleet.facts import GIB, GPU, Disk, NodeFacts, gpu_name, gpu_vendor

from . import labels
from .quantity import amounts, pod_requests
from .resources import NODES, PODS

if TYPE_CHECKING:
    from lambdactl.spec import Resources

    from .client import Client
    from .config import Target

GPU_RESOURCES = {"nvidia.com/gpu": "nvidia", "amd.com/gpu": "amd"}
TOLERATED = tuple(GPU_RESOURCES)
"""Keys of taints that keep pods without GPUs away, and that runs tolerate."""

_MIB = 2**20
_RDMA = re.compile(r"^rdma/|(^|[/_.-])(ib|infiniband|roce|mlnxnics|hostdev|rdma)([/_.-]|\d|$)", re.IGNORECASE)
_NOT_RDMA = re.compile(r"^(nvidia\.com/(gpu|mig-)|amd\.com/gpu)")
_HARD = ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True)
class KubeNode:
    """A node.

    Attributes:
        name: the Node object's name.
        labels: its labels.
        ready: its kubelet reports, and takes pods.
        trouble: the Ready condition's reason where it is not ready.
        cordoned: it takes no new pods.
        taints: taints that keep pods away, as the API has them.
        allocatable: what pods may use in all: cores, bytes, pieces.
        free: what pods that have not ended leave of it.
        facts: as fleets know them; sizes in bytes, GPUs one by one.
        gpu_resource: the resource that counts its GPUs, or None.
        internal_ip: its address in the cluster.
        external_ip: its address from outside.
    """

    name: str
    labels: Mapping[str, str]
    ready: bool
    trouble: str
    cordoned: bool
    taints: tuple[Mapping[str, Any], ...]
    allocatable: Mapping[str, float]
    free: Mapping[str, float]
    facts: NodeFacts = field(repr=False)
    gpu_resource: str | None = None
    internal_ip: str | None = None
    external_ip: str | None = None

    @property
    def gpus(self) -> int:
        """How many GPUs pods may use."""
        return len(self.facts.gpus)

    @property
    def gpus_free(self) -> int:
        """How many of them are free."""
        return int(self.free.get(self.gpu_resource or "", 0))

    @property
    def rdma(self) -> dict[str, int]:
        """Free pieces of each RDMA resource."""
        return {name: int(self.free.get(name, 0)) for name in self.allocatable if is_rdma(name)}

    @property
    def repelling(self) -> list[str]:
        """The taints that a run does not tolerate, as kubectl writes them."""
        return [taint_text(taint) for taint in self.taints if taint.get("key") not in TOLERATED]

    def usable(self) -> list[str]:
        """Why the node takes no pods of a run, whatever they ask for; empty when it does."""
        found = []
        if not self.ready:
            found.append(f"is not ready ({self.trouble})")
        if self.cordoned:
            found.append("is cordoned")
        # A node that is away or cordoned carries a taint that says the same.
        others = [text for text in self.repelling if not text.startswith("node.kubernetes.io/")]
        if others:
            found.append(f"has the taint {', '.join(others)}")
        return found

    def as_json(self) -> dict[str, Any]:
        """Facts for an inventory, and for `fleet get --json`; sizes in bytes."""
        facts = self.facts
        return {
            "ready": self.ready,
            "cordoned": self.cordoned,
            "taints": [taint_text(taint) for taint in self.taints],
            "internal_ip": self.internal_ip,
            "external_ip": self.external_ip,
            "arch": facts.arch,
            "os": facts.os_pretty,
            "kernel": facts.kernel,
            "cpus": facts.cpus,
            "memory": facts.memory,
            "gpus": self.gpus,
            "gpus_free": self.gpus_free,
            "gpu_name": facts.gpus[0].name if facts.gpus else None,
            "gpu_product": facts.gpus[0].full_name if facts.gpus else None,
            "gpu_memory": facts.gpus[0].memory if facts.gpus else None,
            "driver": facts.driver,
            "rdma": self.rdma,
            "free": dict(self.free),
            "labels": dict(self.labels),
        }


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All nodes at one moment, in the order of their names (numbers in them count as numbers)."""

    nodes: tuple[KubeNode, ...]

    @property
    def rdma(self) -> list[str]:
        """The RDMA resources that any node has, the commonest first."""
        names = [name for node in self.nodes for name in node.allocatable if is_rdma(name)]
        return sorted(set(names), key=lambda name: (-names.count(name), name))


async def look(client: Client) -> ClusterView:
    """The nodes, and what the pods of all namespaces take of them.

    Raises:
        APIError: the API refuses, or cannot be reached.
    """
    nodes = await client.list(NODES)
    pods = await client.list(PODS, everywhere=True, fields="status.phase!=Succeeded,status.phase!=Failed")
    return view(nodes.items, pods.items)


def view(nodes: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]) -> ClusterView:
    """A view from Node objects and the Pod objects that have not ended."""
    used: dict[str, dict[str, float]] = {}
    for pod in pods:
        name = (pod.get("spec") or {}).get("nodeName")
        if not name or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        taken = used.setdefault(name, {})
        for resource, value in {**pod_requests(pod["spec"]), "pods": 1.0}.items():
            taken[resource] = taken.get(resource, 0.0) + value
    found = [_node(node, used.get(node["metadata"]["name"], {})) for node in nodes]
    return ClusterView(tuple(sorted(found, key=lambda node: natural(node.name))))


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which node-2 comes before node-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def node_reasons(resources: Resources | None, node: KubeNode, *, free: bool = False) -> list[str]:
    """Why a node does not fit, one clause each; empty when it does.

    Args:
        resources: what is asked for; only what the file gives counts (``Resources.explicit``).
        node: the node.
        free: also ask whether enough is free now (for a run; a fleet may be busy).
    """
    found = node.usable()
    if resources is not None:
        found += _unknown_kind(resources, node) or match.reasons(resources, node.facts)
        if free and not found:
            found += _taken(resources, node)
    return found


def _unknown_kind(resources: Resources, node: KubeNode) -> list[str]:
    """A wish for a kind of GPU cannot be judged without the labels that tell it."""
    gpu = resources.gpu if "gpu" in resources.explicit else None
    kind = gpu is not None and (gpu.name or gpu.memory or gpu.total_memory or gpu.compute_capability)
    if not kind or not node.facts.gpus or node.facts.gpus[0].full_name:
        return []
    wanted = " or ".join(gpu.name) if gpu and gpu.name else "a certain kind"
    return [f"has {node.gpus} GPUs of a kind that no label tells ({labels.GPU_PRODUCT}), {wanted} wanted"]


def _taken(resources: Resources, node: KubeNode) -> list[str]:
    """What other pods have taken of what is asked for."""
    found = []
    gpu = resources.gpu if "gpu" in resources.explicit else None
    wanted = 0 if gpu is None else gpu.count.min or 0
    if node.gpus_free < wanted:
        found.append(f"has {node.gpus_free} of {node.gpus} GPUs free, {wanted} wanted")
    cpus = resources.cpu.count.min if "cpu" in resources.explicit else None
    if cpus is not None and node.free.get("cpu", 0) < cpus:
        found.append(f"has {node.free.get('cpu', 0):g} of {node.facts.cpus} CPUs free, {cpus} wanted")
    memory = resources.memory.min if "memory" in resources.explicit else None
    if memory is not None and node.free.get("memory", 0) / GIB < memory * (1 - match.MEMORY_TOLERANCE):
        left = node.free.get("memory", 0) / GIB
        found.append(f"has {left:.0f} of {node.facts.memory / GIB:.0f} GB of memory free, {memory:g} GB wanted")
    if node.free.get("pods", 1) < 1:
        found.append("has as many pods as it takes")
    return found


def is_rdma(resource: str) -> bool:
    """Whether a node's resource stands for RDMA devices (shared device plugin, SR-IOV, CoreWeave's ``rdma/ib``)."""
    return _NOT_RDMA.search(resource) is None and _RDMA.search(resource) is not None


def find_rdma(nodes: Sequence[KubeNode], target: Target) -> str | None:
    """The RDMA resource to ask for: the configured one, else the first that all of these nodes have."""
    if target.rdma_resource:
        return target.rdma_resource
    common = [name for name in ClusterView(tuple(nodes)).rdma if all(node.allocatable.get(name) for node in nodes)]
    return common[0] if common else None


def taint_text(taint: Mapping[str, Any]) -> str:
    """``key=value:effect``."""
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint.get('key')}{value}:{taint.get('effect')}"


def _node(node: Mapping[str, Any], used: Mapping[str, float]) -> KubeNode:
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    allocatable = amounts(status.get("allocatable"))
    free = {name: max(0.0, value - used.get(name, 0.0)) for name, value in allocatable.items()}
    condition: Mapping[str, Any] = next((c for c in status.get("conditions") or [] if c.get("type") == "Ready"), {})
    addresses = {a.get("type"): a.get("address") for a in reversed(status.get("addresses") or [])}
    marks: dict[str, str] = metadata.get("labels") or {}
    resource = next((name for name in GPU_RESOURCES if allocatable.get(name)), None)
    return KubeNode(
        name=metadata["name"],
        labels=marks,
        ready=condition.get("status") == "True",
        trouble=str(condition.get("reason") or "its kubelet has never reported"),
        cordoned=bool(spec.get("unschedulable")),
        taints=tuple(taint for taint in spec.get("taints") or [] if taint.get("effect") in _HARD),
        allocatable=allocatable,
        free=free,
        facts=_facts(marks, status, allocatable, resource),
        gpu_resource=resource,
        internal_ip=addresses.get("InternalIP"),
        external_ip=addresses.get("ExternalIP"),
    )


def _facts(
    marks: Mapping[str, str], status: Mapping[str, Any], allocatable: Mapping[str, float], resource: str | None
) -> NodeFacts:
    info = status.get("nodeInfo") or {}
    storage = int(allocatable.get("ephemeral-storage", 0))
    return NodeFacts(
        hostname=marks.get(labels.HOSTNAME, ""),
        os_pretty=str(info.get("osImage", "")),
        kernel=str(info.get("kernelVersion", "")),
        arch=str(info.get("architecture") or marks.get("kubernetes.io/arch", "")),
        cpus=int(allocatable.get("cpu", 0)),
        memory=int(allocatable.get("memory", 0)),
        disk=Disk("/", storage, storage) if storage else None,
        gpus=_gpus(marks, int(allocatable.get(resource, 0)) if resource else 0, resource),
        driver=marks.get(labels.DRIVER) or marks.get("nvidia.com/cuda.driver.major"),
    )


def _gpus(marks: Mapping[str, str], count: int, resource: str | None) -> tuple[GPU, ...]:
    """Without GPU feature discovery only the number is known: name and memory are empty, which fits no wish for one."""
    product = marks.get(labels.GPU_PRODUCT, "").replace("-", " ")
    memory = marks.get(labels.GPU_MEMORY, "")
    major, minor = marks.get(labels.GPU_MAJOR, ""), marks.get(labels.GPU_MINOR, "0")
    vendor = GPU_RESOURCES.get(resource or "", "") or gpu_vendor(product)
    return tuple(
        GPU(
            index=index,
            name=gpu_name(product),
            full_name=product,
            vendor=vendor,
            memory=int(memory) * _MIB if memory.isdigit() else 0,
            compute_capability=(int(major), int(minor)) if major.isdigit() and minor.isdigit() else None,
        )
        for index in range(count)
    )
