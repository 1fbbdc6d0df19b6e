"""What the hardware allows for all-reduce: bounds, floor and target, in GB/s of bus bandwidth.

k nodes of g GPUs, n = k g ranks, b = GB/s of NIC per GPU. The formulas follow from what each algorithm sends:

- ring: all NICs of a node carry the whole message once in each direction: busbw <= g b
  (NVIDIA/nccl-tests doc/PERFORMANCE.md; practice 388 to 396 for 8 x 400 Gb/s, nccl-tests issue 319);
- hierarchical (Tree, NVLSTree): NVLink reduces within the node first, each GPU's NIC carries 1/g of the message to a
  tree of nodes: busbw <= b (n-1) / (k-1). Two nodes therefore look almost twice as fast as the wire (nccl issues 812,
  837 and 1357);
- in-network reduction (SHARP): every byte crosses a NIC once: busbw <= 2 (n-1)/n g b;
- within a node: the best published result; NVLink carries algbw, so k nodes scale it by the ratio of the busbw factors.
"""

from __future__ import annotations

from dataclasses import dataclass

from lambdactl.nccl.hardware import GPUModel, Hardware

FLOOR = 0.90  # of the ring bound
# Above this many nodes the traffic crosses more tiers of switches and results scatter (nccl-tests issue 283).
MANY_NODES = 64
FLOOR_MANY = 0.85
TARGET_PAIR = 0.85  # of min(node limit, hierarchical bound), two nodes
TARGET_RING = 0.92  # of the ring bound, three nodes and more, or NCCL_ALGO=Ring


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound in GB/s of busbw, the algorithm that it is for, and why it is that number, in words."""

    busbw: float
    algorithm: str
    reason: str


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Below `floor` fails; below `target` warns (None: no second step); both with their reason."""

    floor: float
    floor_reason: str
    target: float | None
    target_reason: str


def per_gpu(hardware: Hardware) -> float:
    """b: GB/s of NIC for each GPU of a node."""
    return ring(hardware) / hardware.gpus_per_node


def ring(hardware: Hardware) -> float:
    """GB/s that all NICs of one node carry in one direction: the ring bound."""
    return (hardware.nics or 0) * (hardware.nic_gbps or 0.0) / 8


def hierarchical(hardware: Hardware) -> float:
    """The bound of Tree and NVLSTree between at least two nodes."""
    return per_gpu(hardware) * (hardware.ranks - 1) / (hardware.nodes - 1)


def in_network(hardware: Hardware) -> float:
    """The bound with reduction in the switches."""
    return 2 * (hardware.ranks - 1) / hardware.ranks * ring(hardware)


def node_limit(hardware: Hardware, model: GPUModel) -> float:
    """What NVLink allows: the best published result of one node, scaled to n ranks."""
    one, all_ranks = (2 * (n - 1) / n for n in (hardware.gpus_per_node, hardware.ranks))
    return model.node_limit * all_ranks / one


def candidates(hardware: Hardware) -> list[Bound]:
    """The network's bounds, the tightest first."""
    g, k, n = hardware.gpus_per_node, hardware.nodes, hardware.ranks
    nics = f"{hardware.nics} x {hardware.nic_gbps:g} Gb/s"
    found = [
        Bound(ring(hardware), "ring", f"ring over {nics} a node: all NICs of one node, {ring(hardware):.4g} GB/s"),
    ]
    if hardware.algorithm != "ring":
        tree = hierarchical(hardware)
        formula = f"{per_gpu(hardware):.4g} GB/s of NIC a GPU x {n - 1}/{k - 1}"
        found.append(Bound(tree, "hierarchical", f"Tree or NVLSTree over {nics} a node, {k} x {g} GPUs: {formula}"))
        found.append(Bound(in_network(hardware), "in-network", f"reduction in the switches (SHARP) over {nics} a node"))
        if k == 2:
            found = found[1:2]  # the default at two nodes is hierarchical: the ring's bound would flatter
    return sorted(found, key=lambda bound: bound.busbw)


def bound_for(hardware: Hardware, model: GPUModel, measured: float) -> Bound | None:
    """The bound of the algorithm in use: the tightest one that the measurement does not exceed by over 2 %.

    None when it exceeds them all by over 5 %: then other hardware ran than was given.
    """
    limit = node_limit(hardware, model)
    if hardware.nodes == 1:
        reason = f"the best published result of one node of {hardware.gpus_per_node} x {model.name}"
        return Bound(limit, "node", reason)
    network = candidates(hardware)
    chosen = next((bound for bound in network if measured <= bound.busbw * 1.02), network[-1])
    if measured > chosen.busbw * 1.05:
        return None
    if chosen.busbw > limit:
        reason = f"NVLink: the best published result of one node of {model.name}, for {hardware.ranks} ranks"
        return Bound(limit, "node", reason)
    return chosen


def thresholds(hardware: Hardware, model: GPUModel) -> Thresholds | None:
    """Floor and target; None where no rule is proven: NCCL_ALGO=Ring within one node."""
    if hardware.nodes == 1:
        if hardware.algorithm == "ring":
            return None
        reason = f"what one healthy node of {hardware.gpus_per_node} x {model.name} exceeds"
        return Thresholds(model.node_floor, reason, None, "")
    wire = min(ring(hardware), model.node_limit)
    name = "the ring bound" if wire == ring(hardware) else f"one node's limit ({model.name})"
    share = FLOOR if hardware.nodes <= MANY_NODES else FLOOR_MANY
    floor, floor_reason = share * wire, f"{share:.0%} of {name}, {wire:.4g} GB/s"
    if hardware.nodes == 2 and hardware.algorithm != "ring":
        network = hierarchical(hardware)
        best = min(model.node_limit, network)
        what = "one node's limit" if best < network else "the two-node bound"
        # With fast NICs a share of the node's limit may lie below the floor of the wire: the higher one warns.
        return Thresholds(
            floor, floor_reason, max(TARGET_PAIR * best, floor), f"{TARGET_PAIR:.0%} of {what}, {best:.4g} GB/s"
        )
    return Thresholds(floor, floor_reason, TARGET_RING * wire, f"{TARGET_RING:.0%} of {name}, {wire:.4g} GB/s")


def nic_gbps(hardware: Hardware, bound: Bound, measured: float) -> float | None:
    """Gb/s that each NIC carried, by the algorithm of the bound: comparable between cluster sizes."""
    if hardware.nodes == 1 or not hardware.nics:
        return None
    by_name = {c.algorithm: c.busbw for c in candidates(hardware)}
    network = by_name.get(bound.algorithm, by_name.get("hierarchical", ring(hardware)))
    return measured / network * (hardware.nic_gbps or 0.0)
