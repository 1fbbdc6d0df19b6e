"""`groups`: unlike nodes in one run, in rank order; each group has its own needs, commands and ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lambdactl.spec import NodeGroup, TaskSpec


def of_rank(task: TaskSpec, rank: int) -> tuple[NodeGroup, int] | None:
    """The group of a rank and the rank's number in it; None where the task has no groups."""
    for group in task.groups or ():
        if rank < group.nodes:
            return group, rank
        rank -= group.nodes
    return None


def commands(task: TaskSpec, rank: int) -> tuple[str, ...]:
    """The commands of a rank."""
    found = of_rank(task, rank)
    return task.commands if found is None else found[0].commands


def as_task(task: TaskSpec, group: NodeGroup) -> TaskSpec:
    """The task as one group's nodes are chosen for it: with the group's needs, and as many nodes as the whole run."""
    return replace(task, groups=None, resources=group.resources, commands=group.commands)


def addresses(task: TaskSpec, ips: Sequence[str]) -> list[list[str]]:
    """The addresses of each group's nodes, from those of all ranks; without groups, all are one."""
    found, start = [], 0
    for size in [group.nodes for group in task.groups or ()] or [len(ips)]:
        found.append(list(ips[start : start + size]))
        start += size
    return found


def assign(fits: Sequence[Sequence[str]], sizes: Sequence[int]) -> list[list[str]] | None:
    """Hosts for each group so that every group has enough, whenever there is such a choice.

    Args:
        fits: for each group the hosts that will do, the preferred ones first.
        sizes: how many each group wants.

    Returns:
        The hosts of each group in their order of preference, or None. The method is Kuhn's for bipartite matching: a
        place that finds its hosts taken moves another place to its next host, as far as that goes.
    """
    places = [group for group, size in enumerate(sizes) for _ in range(size)]
    holder: dict[str, int] = {}

    def seat(place: int, tried: set[str]) -> bool:
        wanted = fits[places[place]]
        for host in [host for host in wanted if host not in holder] + [host for host in wanted if host in holder]:
            if host in tried:
                continue
            tried.add(host)
            if host not in holder or seat(holder[host], tried):
                holder[host] = place
                return True
        return False

    if not all(seat(place, set()) for place in range(len(places))):
        return None
    chosen: list[list[str]] = [[] for _ in sizes]
    for group, hosts in enumerate(fits):
        chosen[group] = [host for host in hosts if host in holder and places[holder[host]] == group]
    return chosen


def shortage(task: TaskSpec, fits: Sequence[Sequence[str]], reasons: Sequence[Mapping[str, str]]) -> str:
    """Why there is no choice, as a clause: the first group that has too few hosts of its own, or all together."""
    for group, hosts, why in zip(task.groups or (), fits, reasons, strict=True):
        if len(hosts) < group.nodes:
            shown = "; ".join(f"{name} {reason}" for name, reason in list(why.items())[:4])
            wanted = "1 node" if group.nodes == 1 else f"{group.nodes} nodes"
            return f"group {group.name} wants {wanted}, {len(hosts)} can take it: {shown}"
    return "its groups want the same hosts: each host takes one rank"
