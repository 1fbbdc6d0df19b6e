"""What tests of the Kubernetes backend stand on: the fake cluster of tests/fakes/kube, as fixtures (see conftest)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lambdactl.backends.kubernetes.config import Target
from tests.fakes.kube import FakeCluster, FakeNode, load_rules

ROOT = Path(__file__).resolve().parents[3]
RBAC = ROOT / "docs" / "kubernetes" / "rbac.yaml"

NODES = (
    FakeNode("node-1", gpus=8, resources={"rdma/rdma_shared_device_a": "63"}, external_ip="203.0.113.7"),
    FakeNode("node-2", gpus=8, resources={"rdma/rdma_shared_device_a": "63"}),
)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """Two nodes of eight B200, scripted pods; the user of `target` has exactly the rights of the shipped manifest."""
    with FakeCluster(NODES) as found:
        yield found


@pytest.fixture
def target(cluster: FakeCluster, tmp_path: Path) -> Target:
    """The cluster's target, by a user with the shipped manifest's rights."""
    return limited(cluster, tmp_path)


def limited(cluster: FakeCluster, folder: Path, namespace: str = "default") -> Target:
    """A target whose user may do what docs/kubernetes/rbac.yaml says, and nothing else."""
    token = cluster.user(f"system:serviceaccount:{namespace}:lambdactl", load_rules(RBAC, namespace))
    found: Target = cluster.target(folder, token=token, namespace=namespace)
    return found


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread brings about."""
    while not condition():  # noqa: ASYNC110 - the fake's thread cannot set an event of this loop
        await asyncio.sleep(0.005)


# For programs that measure themselves. Not ru_maxrss: that one begins with the peak of the process that started them.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""
