# ruff: noqa: RUF009 - key() makes a dataclass field, and the other calls make frozen values
"""``type: task``: commands that run on one node or on several at once.

Source: dstack's reference page of the task file; ``on_node_failure`` is ours (wanted by dstack's users in issue 2123).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .container import PORT_MAPPING, PortMapping, RunFields, check_image_sources
from .engine import At, ListOf, Struct, key
from .fields import TEXTS, Source
from .groups import check_no_references, check_references, unique_names
from .kinds import Choice, Text, Whole
from .nodes import Problem, show
from .resources import RESOURCES, Resources, gpu_needs_image

GROUP_NAME = Text(r"[a-z0-9][a-z0-9-]{0,39}", "1 to 40 lower-case letters, digits and '-'", label="name")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Nodes that run the same commands. Resources are not inherited from the task."""

    name: str = key(GROUP_NAME, "The group's name.", default="", nullable=True, default_text="its position")
    nodes: int = key(Whole(1), "How many nodes.", default=1)
    resources: Resources = key(RESOURCES, "What each of its nodes must have.", default=Resources())
    commands: tuple[str, ...] = key(TEXTS, "Its commands.", default=())
    ports: tuple[PortMapping, ...] = key(ListOf(PORT_MAPPING), "Ports of its nodes to forward.", default=())


GROUP = Struct(NodeGroup, "groups")


@dataclass(frozen=True, kw_only=True)
class TaskSpec(RunFields):
    """A task file. ``nodes`` counts all nodes, those of groups too."""

    type: str = key(Choice("task"), "The kind of file.", required=True)
    nodes: int = key(Whole(1), "How many nodes.", default=1, nullable=True)
    groups: tuple[NodeGroup, ...] | None = key(
        ListOf(GROUP, least=1), "Groups of unlike nodes, in the place of `nodes`."
    )
    commands: tuple[str, ...] = key(
        TEXTS, "Commands, run by one shell in this order on every node; the first failure ends them.", default=()
    )
    ports: tuple[PortMapping, ...] = key(ListOf(PORT_MAPPING), "Ports to forward to your machine.", default=())
    on_node_failure: str = key(
        Choice("stop", "ignore"), "What happens to the others when a node fails.", default="stop", ours=True
    )
    source: Source = Source("", "")


def _check_task(task: TaskSpec, at: At) -> TaskSpec:
    check_image_sources(task, at)
    check_no_references(task.env, at)
    if task.groups is not None:
        return _with_groups(task, task.groups, at)
    if not task.commands and not task.image:
        raise Problem(at.node, "the task has neither 'commands' nor 'image'; give one of them")
    if gpu_needs_image(task.resources.gpu) and not task.image and not task.docker:
        raise at.problem("resources", "asks for GPUs that are not NVIDIA's, which needs an 'image'")
    wrong = check_references(task.commands, [task.nodes], "nodes")
    if wrong:
        raise at.problem("commands", wrong)
    return task


def _with_groups(task: TaskSpec, groups: tuple[NodeGroup, ...], at: At) -> TaskSpec:
    if at.has("nodes"):
        raise at.problem("nodes", "cannot be used together with 'groups'; each group has its own 'nodes'")
    for name in ("commands", "ports", "entrypoint"):
        if getattr(task, name):
            raise at.problem(
                name,
                "cannot be used together with 'groups'" + ("; give it in each group" if name != "entrypoint" else ""),
            )
    groups = tuple(replace(group, name=group.name or str(index)) for index, group in enumerate(groups))
    unique_names([group.name for group in groups], at)
    sizes = [group.nodes for group in groups]
    for index, group in enumerate(groups):
        wrong = check_references(group.commands, sizes, "nodes")
        if not group.commands and not task.image:
            wrong = f"({show(group.name)}) has no 'commands', and the task has no 'image'; give one of them"
        if gpu_needs_image(group.resources.gpu) and not task.image and not task.docker:
            wrong = "asks for GPUs that are not NVIDIA's, which needs an 'image'"
        if wrong:
            raise Problem(at.keys["groups"].value[index], wrong).under(index).under("groups")
    return replace(task, groups=groups, nodes=sum(sizes))


TASK = Struct(TaskSpec, "task", check=_check_task)
