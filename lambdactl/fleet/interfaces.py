"""Which network devices a run is to use, worked out from a node's facts; pure functions.

NCCL's own choice takes every RDMA device, Ethernet ones too: a 1-Click Cluster's mlx5_0 is an Ethernet port for
management, and a run that uses it is slow or hangs. Rules of the values: NCCL user guide, environment variables.
"""

from __future__ import annotations

from collections.abc import Mapping

from lambdactl.fleet.facts import NodeFacts


def infiniband_devices(facts: NodeFacts) -> list[str]:
    """Devices with an active InfiniBand port in the kernel's order; `device:port` where only some ports are active."""
    ports: dict[str, list[tuple[int, bool]]] = {}
    for port in facts.infiniband:
        usable = port.link_layer == "InfiniBand" and port.state == "ACTIVE"
        ports.setdefault(port.device, []).append((port.port, usable))
    found: list[str] = []
    for device, known in ports.items():
        usable_ports = [number for number, usable in known if usable]
        if len(usable_ports) == len(known):
            found.append(device)
        else:
            found += [f"{device}:{number}" for number in usable_ports]
    return sorted(found, key=_natural)


def nccl_ib_hca(facts: NodeFacts) -> str | None:
    """NCCL_IB_HCA as an exact list (`=`: without it NCCL matches prefixes), or None without active InfiniBand."""
    devices = infiniband_devices(facts)
    return "=" + ",".join(devices) if devices else None


def interface_of(facts: NodeFacts, address: str) -> str | None:
    """The interface that holds an address."""
    return next((item.interface for item in facts.addresses if item.address == address), None)


def run_defaults(facts: Mapping[str, NodeFacts], addresses: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By host the variables that a run gets unless its user, or the node's own configuration, sets them.

    Args:
        facts: of the run's hosts.
        addresses: each host's address among the nodes.

    Returns:
        Empty for hosts without an active InfiniBand port: there NCCL's own choice stands. NCCL_SOCKET_IFNAME only
        where there are peers to reach.
    """
    found: dict[str, dict[str, str]] = {}
    for host, known in facts.items():
        hca = nccl_ib_hca(known)
        interface = interface_of(known, addresses.get(host, "")) if len(addresses) > 1 else None
        found[host] = {} if hca is None else {"NCCL_IB_HCA": hca}
        if hca is not None and interface is not None:
            found[host]["NCCL_SOCKET_IFNAME"] = f"={interface}"
    return found


def _natural(device: str) -> tuple[str, int, str]:
    """mlx5_2 before mlx5_10."""
    name, _, port = device.partition(":")
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0), port
