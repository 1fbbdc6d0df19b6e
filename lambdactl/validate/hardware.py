"""From the facts of nodes to the `Hardware` that a verdict is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lambdactl.fleet.facts import InfiniBandPort, NodeFacts
from lambdactl.nccl.hardware import Algorithm, Hardware

# An RDMA port below this rate serves storage or management, not GPUs.
_SLOWEST_NIC_GBPS = 40


@dataclass(frozen=True, slots=True)
class Network:
    """NICs of one node that carry NCCL's traffic, and the rate of one in Gb/s."""

    nics: int
    nic_gbps: float


def network(facts: NodeFacts) -> Network | None:
    """What a node's active RDMA ports say: the fastest InfiniBand ones, else the fastest Ethernet ones (RoCE).

    The order is NCCL's need, not NCCL's choice: on a node with InfiniBand for the GPUs, an Ethernet port of the same
    make (mlx5_0 of a Lambda 1-Click Cluster) leads to storage and the outside.
    """
    active = [port for port in facts.infiniband if port.state == "ACTIVE"]
    for layer in ("InfiniBand", "Ethernet"):
        ports = [port for port in active if port.link_layer == layer and port.rate_gbps >= _SLOWEST_NIC_GBPS]
        if ports:
            return _fastest(ports)
    return None


def _fastest(ports: Sequence[InfiniBandPort]) -> Network:
    rate = max(port.rate_gbps for port in ports)
    return Network(sum(port.rate_gbps == rate for port in ports), rate)


def hardware(
    nodes: Sequence[NodeFacts], *, algorithm: Algorithm = "default", given: Network | None = None
) -> Hardware | str:
    """What a run on these nodes should be judged by.

    Args:
        given: the network as the user states it, where sysfs does not show it (some virtual machines).

    Returns:
        The hardware, or why there is none: one clause.
    """
    if not nodes or not all(node.gpus for node in nodes):
        return "the nodes have no GPUs"
    kinds = {(gpu.full_name, len(node.gpus)) for node in nodes for gpu in node.gpus}
    if len(kinds) > 1:
        shown = " and ".join(sorted(f"{count} x {name}" for name, count in kinds))
        return f"the nodes have unlike GPUs ({shown})"
    name, count = kinds.pop()
    networks = {network(node) for node in nodes}
    if given is None and len(networks) > 1:
        return "the nodes have unlike networks: not all have the same number of active NICs of one rate"
    found = given or networks.pop()
    if found is None:
        return Hardware(name, count, len(nodes), algorithm=algorithm, infiniband=False)
    return Hardware(name, count, len(nodes), found.nics, found.nic_gbps, algorithm)
