"""`instances` on Kubernetes: which nodes of the cluster a run may use, as on SSH fleets (lambdactl/run/pinning.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lambdactl.errors import CapacityError, LambdactlError, SpecError
from lambdactl.run.pinning import listed, names_of, shown
from lambdactl.spec import TaskSpec, line_in

from . import labels

if TYPE_CHECKING:
    from lambdactl.spec.fields import InstanceSelector

    from .fleet import KubeFleet
    from .nodes import KubeNode

ELSE = "is not among 'instances'"
"""Why a node that is not named is left out."""


def pinned(task: TaskSpec, fleet: KubeFleet, nodes: Sequence[KubeNode]) -> frozenset[str] | None:
    """The names of the nodes that the file names; None when it names none: all are.

    Args:
        nodes: all of the cluster, in the order in which `fleet get` shows them; 0 is the first.

    Raises:
        SpecError: an entry names no node.
        CapacityError: it names none of this cluster, and the fleet has others.
    """

    def meant(selector: InstanceSelector) -> set[str]:
        names = {node.name for index, node in enumerate(nodes) if _means(selector, index, node, fleet.name)}
        if not names:
            raise _unknown(selector, task, fleet, nodes)
        return names

    found = names_of(task, fleet.name, meant)
    return None if found is None else frozenset(found)


def _unknown(selector: InstanceSelector, task: TaskSpec, fleet: KubeFleet, nodes: Sequence[KubeNode]) -> LambdactlError:
    text = (
        f"'instances' names {shown(selector)}, which is no node of the cluster "
        f"(nodes: {listed([node.name for node in nodes])})."
    )
    if len(fleet.targets) > 1:
        return CapacityError(text)
    return SpecError(text, filename=task.source.filename, line=line_in(task, "instances"))


def hostnames(names: frozenset[str] | None, nodes: Sequence[KubeNode]) -> tuple[str, ...]:
    """The values of the nodes' label that a pod is bound to; none when it may go anywhere."""
    return tuple(sorted(node.labels.get(labels.HOSTNAME, node.name) for node in nodes if node.name in (names or ())))


def _means(selector: InstanceSelector, index: int, node: KubeNode, fleet: str) -> bool:
    if selector.fleet is not None:
        return index == selector.instance
    if selector.hostname is not None:
        return selector.hostname in (node.name, node.internal_ip, node.external_ip)
    known = (node.name, node.labels.get(labels.HOSTNAME), node.internal_ip, f"{fleet}-{index}", str(index))
    return selector.name in known
