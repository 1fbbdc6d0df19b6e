"""A fleet file with ``nodes`` and ``backends: [kubernetes]``: a filter on the nodes of the configured clusters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lambdactl import spec
from lambdactl.errors import CapacityError, SpecError
from lambdactl.fleet.build import name_of_file
from lambdactl.spec import FleetSpec, line_in

from .client import open_client
from .config import Target, fleet_targets
from .nodes import ClusterView, KubeNode, look, node_reasons

BACKEND = "kubernetes"
_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True, slots=True)
class KubeFleet:
    """A Kubernetes fleet; `id` tells it from SSH fleets and from others of other contexts.

    Attributes:
        name: as the file says, or as the file is called.
        id: 8 hex digits.
        spec: the file.
        path: where the file is, or None.
        targets: the clusters that its nodes may be in.
    """

    name: str
    id: str
    spec: FleetSpec
    path: str | None
    targets: tuple[Target, ...]

    @classmethod
    def from_spec(cls, parsed: FleetSpec, *, path: str | None) -> KubeFleet:
        """The fleet of a file.

        Raises:
            SpecError: the file is for another backend, or no cluster is configured for it.
        """
        if parsed.backends is not None and BACKEND not in parsed.backends:
            raise SpecError(
                f"the backends {', '.join(parsed.backends)} are not among those that lambdactl knows; "
                "write `backends: [kubernetes]`.",
                filename=parsed.source.filename,
                line=line_in(parsed, "backends"),
            )
        name = parsed.name or name_of_file(path or parsed.source.filename)
        where = "\n".join((BACKEND, name, *(parsed.regions or ())))
        identity = hashlib.sha256(where.encode()).hexdigest()[:8]
        return cls(name, identity, parsed, path, fleet_targets(parsed))

    @classmethod
    def load(cls, path: str) -> KubeFleet:
        """The fleet of a file's path."""
        return cls.from_spec(spec.load(path, kind="fleet"), path=path)


def is_kubernetes(parsed: FleetSpec) -> bool:
    """Whether a fleet file is for a backend instead of hosts behind SSH."""
    return parsed.ssh_config is None


@dataclass(frozen=True, slots=True)
class Member:
    """A node as the fleet sees it: why it does not belong to it, or nothing."""

    node: KubeNode
    target: Target
    reasons: tuple[str, ...]

    @property
    def state(self) -> str:
        """``ready``, ``busy`` (all its GPUs are taken), or ``excluded``."""
        if self.reasons:
            return "excluded"
        return "busy" if self.node.gpus and not self.node.gpus_free else "ready"


@dataclass(frozen=True, slots=True)
class FleetView:
    """All nodes of the fleet's clusters at one moment."""

    fleet: KubeFleet
    nodes: tuple[Member, ...]
    notes: tuple[str, ...]

    @property
    def members(self) -> tuple[Member, ...]:
        """The nodes that belong to the fleet."""
        return tuple(member for member in self.nodes if not member.reasons)

    def facts(self) -> dict[str, dict[str, Any]]:
        """By node, what is remembered."""
        return {member.node.name: member.node.as_json() for member in self.members}

    def check(self) -> None:
        """Whether the fleet has as many nodes as its file wants from the start.

        Raises:
            CapacityError: it has not; nodes of a cluster cannot be made from here.
        """
        wanted = self.fleet.spec.nodes
        least = 0 if wanted is None else max(wanted.min, wanted.target)
        if len(self.members) < max(least, 1):
            fits = (
                f"{len(self.members)} of the cluster's {len(self.nodes)} nodes fit" if self.nodes else "it has no nodes"
            )
            ask = f"{least} nodes from the start" if least else "nodes that fit"
            raise CapacityError(
                f"the fleet {self.fleet.name} wants {ask}, but {fits}; a cluster's nodes cannot be made from here: "
                "add nodes to it, or ask for less (`nodes: 0..`, `resources`)."
            )


async def look_at(fleet: KubeFleet, *, patience: float = 10) -> FleetView:
    """The fleet's nodes, as its clusters have them now.

    Raises:
        APIError: a cluster refuses, or cannot be reached.
    """
    found: list[Member] = []
    for target in fleet.targets:
        async with open_client(target, patience=patience) as client:
            found += judge(fleet, target, await look(client))
    notes = tuple(dict.fromkeys(note for target in fleet.targets for note in target.notes))
    return FleetView(fleet, limited(fleet, found), notes)


def judge(fleet: KubeFleet, target: Target, view: ClusterView) -> list[Member]:
    """Each node, and why it does not belong to the fleet."""
    parsed = fleet.spec
    return [
        Member(node, target, (*node_reasons(parsed.resources, node), *_labels(parsed, node.labels)))
        for node in view.nodes
    ]


def _labels(parsed: FleetSpec, marks: Mapping[str, str]) -> list[str]:
    """What the file says of instance types and zones."""
    found = []
    for label, wanted, what in (
        (_INSTANCE_TYPE, parsed.instance_types, "instance type"),
        (_ZONE, parsed.availability_zones, "zone"),
    ):
        if wanted and marks.get(label) not in wanted:
            found.append(f"has the {what} {marks.get(label, 'unknown')}, {' or '.join(wanted)} wanted")
    return found


def limited(fleet: KubeFleet, found: list[Member]) -> tuple[Member, ...]:
    """No more members than ``nodes`` allows, in the order of the nodes."""
    most = None if fleet.spec.nodes is None else fleet.spec.nodes.max
    if most is None:
        return tuple(found)
    result, members = [], 0
    for member in found:
        if not member.reasons:
            members += 1
            if members > most:
                member = Member(member.node, member.target, (f"is more than the fleet's {most} nodes",))
        result.append(member)
    return tuple(result)
