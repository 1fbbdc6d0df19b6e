"""Nodes as the API shows them: facts, what is free, and why one does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from lambdactl import spec
from lambdactl.backends.kubernetes.nodes import KubeNode, find_rdma, is_rdma, natural, node_reasons, view
from lambdactl.backends.kubernetes.quantity import amount, pod_requests
from lambdactl.fleet.facts import GIB
from tests.fakes.kube import FakeNode


def node(found: FakeNode, *pods: dict[str, Any], **node_spec: Any) -> KubeNode:
    manifest = found.manifest(0)
    manifest["spec"] = {**manifest["spec"], **node_spec}
    return view([manifest], pods).nodes[0]


def pod(on: str, phase: str = "Running", **limits: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "p"}, "status": {"phase": phase},
        "spec": {"nodeName": on, "containers": [{"resources": {"limits": limits}}]},
    }  # fmt: skip


def resources(text: str) -> spec.Resources:
    loaded = spec.loads(f"type: fleet\nname: ff\nnodes: 0..\nresources:\n{text}", kind="fleet").resources
    assert loaded is not None
    return loaded


def test_facts() -> None:
    found = node(FakeNode("n", gpus=8, external_ip="1.2.3.4", resources={"rdma/ib": "1"}))
    gpu = found.facts.gpus[0]
    assert (gpu.name, gpu.full_name, gpu.vendor, gpu.compute_capability) == ("B200", "NVIDIA B200", "nvidia", (10, 0))
    assert gpu.memory == 183359 * 2**20
    assert (found.facts.cpus, found.facts.memory, found.facts.driver) == (64, 512 * GIB, "580.65.06")
    assert (found.internal_ip, found.external_ip, found.rdma) == ("172.20.0.2", "1.2.3.4", {"rdma/ib": 1})


def test_free_is_allocatable_minus_what_pods_that_have_not_ended_ask_for() -> None:
    gpus = {"nvidia.com/gpu": "3", "cpu": "500m", "memory": "2Gi"}
    found = node(FakeNode("n", gpus=8), pod("n", **gpus), pod("n", "Succeeded", **gpus), pod("other", **gpus))
    assert (found.gpus, found.gpus_free) == (8, 5)
    assert found.free["cpu"] == 63.5
    assert found.free["memory"] == 510 * GIB
    assert found.free["pods"] == 109


REASONS = [
    ("  gpu: 1..8\n", FakeNode("n", gpus=8), {}, []),
    ("  gpu: B200:8\n", FakeNode("n", gpus=8), {}, []),
    ("  gpu: nvidia:H100:80GB..:1\n", FakeNode("n", gpus=8, product="NVIDIA-H100-80GB-HBM3", gpu_memory=81559), {}, []),
    ("  gpu: 1\n", FakeNode("n"), {}, ["has no GPU, 1 wanted"]),
    ("  gpu: H100:8\n", FakeNode("n", gpus=8), {}, ["has B200, H100 wanted"]),
    ("  gpu: H100\n", FakeNode("n", gpus=2, product=""), {},
     ["has 2 GPUs of a kind that no label tells (nvidia.com/gpu.product), H100 wanted"]),
    ("  gpu: 2\n", FakeNode("n", gpus=2, product=""), {}, []),
    ("  gpu: 16\n", FakeNode("n", gpus=8), {}, ["has 8 GPUs, 16 wanted"]),
    ("  memory: 1TB..\n", FakeNode("n"), {}, ["has 512 GB of memory, 1024 GB wanted"]),
    ("  cpu: arm:2\n", FakeNode("n"), {}, ["has x86 CPUs, arm wanted"]),
    ("  cpu: 1\n", FakeNode("n"), {"unschedulable": True}, ["is cordoned"]),
    ("  cpu: 1\n", FakeNode("n"), {"taints": [{"key": "nvidia.com/gpu", "value": "p", "effect": "NoSchedule"}]}, []),
    ("  cpu: 1\n", FakeNode("n"), {"taints": [{"key": "a", "value": "b", "effect": "NoExecute"}]},
     ["has the taint a=b:NoExecute"]),
    ("  cpu: 1\n", FakeNode("n"), {"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}, []),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "found", "node_spec", "wanted"), REASONS)
def test_reasons(asked: str, found: FakeNode, node_spec: dict[str, Any], wanted: list[str]) -> None:
    assert node_reasons(resources(asked), node(found, **node_spec)) == wanted


def test_a_run_is_also_told_what_is_in_use() -> None:
    busy = node(FakeNode("n", gpus=8), pod("n", **{"nvidia.com/gpu": "6", "cpu": "60", "memory": "500Gi"}))
    asked = resources("  gpu: 4\n  cpu: 8\n  memory: 64GB..\n")
    assert node_reasons(asked, busy) == []
    assert node_reasons(asked, busy, free=True) == [
        "has 2 of 8 GPUs free, 4 wanted",
        "has 4 of 64 CPUs free, 8 wanted",
        "has 12 of 512 GB of memory free, 64 GB wanted",
    ]


def test_a_node_that_is_away() -> None:
    manifest = FakeNode("n").manifest(0)
    manifest["status"]["conditions"] = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]
    manifest["spec"]["taints"] = [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]
    assert view([manifest], []).nodes[0].usable() == ["is not ready (NodeStatusUnknown)"]


@pytest.mark.parametrize(
    ("name", "yes"),
    [
        ("rdma/ib", True), ("rdma/rdma_shared_device_a", True), ("rdma/hca_shared_devices_a", True),
        ("nvidia.com/hostdev", True), ("nvidia.com/roce", True), ("openshift.io/mlnxnics", True),
        ("nvidia.com/rdma_sriov_0", True), ("nvidia.com/gpu", False), ("nvidia.com/mig-1g.10gb", False), ("cpu", False),
        ("hugepages-2Mi", False), ("ephemeral-storage", False), ("pods", False), ("vpc.amazonaws.com/pod-eni", False),
    ],
)  # fmt: skip
def test_rdma_resources(name: str, yes: bool) -> None:
    assert is_rdma(name) is yes


def test_the_rdma_resource_that_all_nodes_have(target: Any) -> None:
    nodes = [
        node(FakeNode("a", resources={"rdma/a": "1", "rdma/b": "1"})),
        node(FakeNode("b", resources={"rdma/b": "1", "rdma/0": "0"})),
    ]
    assert find_rdma(nodes, target) == "rdma/b"
    assert find_rdma([*nodes, node(FakeNode("c"))], target) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("2Gi", 2 * GIB), ("1e3", 1000), ("128974848", 128974848), ("129M", 129e6), ("0.1", 0.1), ("x", 0),
     ("5Q", 0)],
)  # fmt: skip
def test_quantities(text: str, number: float) -> None:
    assert amount(text) == number


def test_what_a_pod_asks_for() -> None:
    def container(cpu: str, **more: Any) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}, **more}

    both = {"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "4", "memory": "1Ki"}}}
    assert pod_requests({"containers": [both, container("1")]}) == {"cpu": 2.0, "memory": 1024.0}
    assert pod_requests({"containers": [container("1")], "initContainers": [container("3")]}) == {"cpu": 3.0}
    sidecar = container("2", restartPolicy="Always")
    assert pod_requests({"containers": [container("1")], "initContainers": [sidecar, container("2")]}) == {"cpu": 4.0}
    assert pod_requests({"containers": [container("1")], "overhead": {"cpu": "250m"}}) == {"cpu": 1.25}


def test_numbers_in_names_count_as_numbers() -> None:
    assert sorted(["n-10", "n-2", "a", "n-1"], key=natural) == ["a", "n-1", "n-2", "n-10"]
