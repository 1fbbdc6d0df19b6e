"""From a task file and the cluster's nodes to a run that fits, or the reason why it does not. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import time
from typing import TYPE_CHECKING

from lambdactl import __version__
from lambdactl.errors import CapacityError, SpecError
from lambdactl.run import interpolate, secrets
from lambdactl.run.container import DOCKER_IMAGE_VARIABLE, check_entrypoint, image_of
from lambdactl.run.content import RunContent
from lambdactl.run.plan import Overrides, owner, random_name
from lambdactl.spec import TaskSpec, line_in

from . import parts
from .keys import make_key
from .model import KubeRun
from .nodes import ClusterView, KubeNode, find_rdma, node_reasons
from .parts import Part
from .pinning import ELSE, hostnames, pinned

if TYPE_CHECKING:
    from .config import Target
    from .fleet import KubeFleet

DEFAULT_IMAGE = f"lambdactl/base:{__version__}"
"""Built by images/Dockerfile; used where neither the task nor the configuration names one."""

_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}


@dataclass(frozen=True, slots=True)
class KubePlan:
    """A run that can be submitted.

    Attributes:
        run: what its objects are made from.
        places: nodes that it fits on now, as many as it has ranks; the scheduler may choose others.
        excluded: why the other nodes do not fit.
        target: the cluster.
    """

    run: KubeRun
    places: tuple[KubeNode, ...]
    excluded: Mapping[str, str]
    target: Target


def make_plan(
    task: TaskSpec,
    fleet: KubeFleet,
    target: Target,
    view: ClusterView,
    overrides: Overrides,
    *,
    keep: bool = False,
    anyway: bool = False,
    content: RunContent | None = None,
) -> KubePlan:
    """Plan a run on one cluster.

    Args:
        keep: its objects are kept when it has ended.
        content: what it brings along.
        anyway: submit it although it does not fit (an autoscaler makes nodes for pods that wait).

    Raises:
        SpecError: the file uses a field that cannot be honoured here, or a variable has no value.
        CapacityError: it does not fit, with every node's reason.
    """
    refuse_unsupported(task)
    if task.groups:
        task = replace(task, resources=task.groups[0].resources)
    if task.docker:
        task = replace(task, privileged=True)
    task = interpolate.with_args(task, overrides.args)
    env = interpolate.environment(task, secrets.get, given=overrides.env)
    task = replace(task, registry_auth=interpolate.login(task, env, secrets.get))
    name = overrides.name or task.name or random_name()
    names = pinned(task, fleet, view.nodes)
    why = {node.name: _why_not(task, fleet, node, names) for node in view.nodes}
    fitting = [node for node in view.nodes if not why[node.name]]
    excluded = {node: "; ".join(reasons) for node, reasons in why.items() if reasons}
    found: tuple[Part, ...] = ()
    if parts.unlike(task):
        found, fitting, excluded = _parts(task, name, fleet, target, view, names)
    if len(fitting) < task.nodes and not anyway:
        raise CapacityError(_too_few(name, task, target, len(fitting), len(view.nodes), excluded))
    gpus = _gpus(task)
    several = task.nodes > 1
    run = KubeRun(
        run_id=str(uuid.uuid4()),
        run_name=name,
        task=task,
        image=image_of(task) or target.image or DEFAULT_IMAGE,
        owner=owner(),
        fleet=fleet.name,
        submitted_at=time(),
        env=env,
        max_duration=overrides.max_duration if overrides.max_duration is not None else task.max_duration,
        gpus=gpus,
        gpu_resource=_resource(task, fitting) if gpus else None,
        gpu_products=_products(task, fleet, fitting) if gpus else (),
        rdma=_rdma(target, fitting[: task.nodes]) if several and gpus else None,
        queue=target.queue,
        # One node gets keys, too: `lambdactl ssh RUN` uses them.
        login=make_key(f"lambdactl-{name}"),
        host=make_key(f"lambdactl-{name}-host"),
        keep=keep,
        node_timeout=int(overrides.node_timeout),
        content=content or RunContent(),
        parts=found,
        files_volume=target.files_volume,
        hostnames=hostnames(names, view.nodes),
    )
    return KubePlan(run, tuple(fitting[: task.nodes]), excluded, target)


def _parts(
    task: TaskSpec, name: str, fleet: KubeFleet, target: Target, view: ClusterView, pins: frozenset[str] | None
) -> tuple[tuple[Part, ...], list[KubeNode], dict[str, str]]:
    """The parts of a run whose groups differ, the nodes that they fit on in rank order, and why others do not."""
    if target.queue is not None:
        raise SpecError(
            f"'groups' with unlike 'resources' are several Jobs, which Kueue's queue '{target.queue}' would not start "
            "together; give all groups the same, or use a configuration without `queue`.",
            filename=task.source.filename,
            line=line_in(task, "groups"),
        )
    wanted = parts.needs(task)
    why = [{node.name: "; ".join(_why_not(one, fleet, node, pins)) for node in view.nodes} for one, _ in wanted]
    fits = [[node for node in view.nodes if not reasons[node.name]] for reasons in why]
    excluded = {name: text for name, text in why[0].items() if all(reasons[name] for reasons in why)}
    names = parts.seats(name, [[node.name for node in one] for one in fits], [size for _, size in wanted], why)
    found: list[Part] = []
    places: list[KubeNode] = []
    for (one, size), own, taken in zip(wanted, fits, names, strict=True):
        chosen = [node for node in own if node.name in taken]
        gpus = _gpus(one)
        part = Part(
            first=len(places),
            nodes=size,
            resources=one.resources,
            gpus=gpus,
            gpu_resource=_resource(one, own) if gpus else None,
            gpu_products=_products(one, fleet, own) if gpus else (),
            rdma=_rdma(target, chosen) if gpus else None,
            places=tuple(taken),
        )
        found.append(part)
        places += chosen
    return tuple(found), places, excluded


def refuse_unsupported(task: TaskSpec) -> None:
    """Raise SpecError for what runs on Kubernetes cannot honour."""
    where = partial(SpecError, filename=task.source.filename)
    if task.docker and image_of(task) is None:
        raise where(
            f"'docker: true' needs an image with Docker's engine in it; set {DOCKER_IMAGE_VARIABLE} to one.",
            line=line_in(task, "docker"),
        )
    if not task.entrypoint and not all(group.commands for group in task.groups or (task,)):
        raise where(
            "the task has no 'commands', and runs on Kubernetes do not start an image's own command; give them."
        )
    check_entrypoint(task)


def _why_not(task: TaskSpec, fleet: KubeFleet, node: KubeNode, names: frozenset[str] | None) -> list[str]:
    if names is not None and node.name not in names:
        return [ELSE]
    # What is in use now says nothing about the times of a schedule.
    of_fleet = node_reasons(fleet.spec.resources, node)
    return of_fleet or node_reasons(task.resources, node, free=task.schedule is None)


def _gpus(task: TaskSpec) -> int:
    """GPUs of each rank: the lower bound, as in dstack; none where the file does not ask for any."""
    wanted = task.resources.gpu
    return (wanted.count.min or 0) if wanted is not None and "gpu" in task.resources.explicit else 0


def _resource(task: TaskSpec, fitting: list[KubeNode]) -> str:
    vendor = task.resources.gpu.vendor if task.resources.gpu is not None else None
    if vendor is not None and vendor not in _RESOURCES:
        raise SpecError(
            f"GPUs of the vendor '{vendor}' have no resource that is known on Kubernetes; known: nvidia, amd.",
            filename=task.source.filename,
            line=line_in(task, "resources"),
        )
    found = next((node.gpu_resource for node in fitting if node.gpu_resource), None)
    return found or _RESOURCES[vendor or "nvidia"]


def _products(task: TaskSpec, fleet: KubeFleet, fitting: list[KubeNode]) -> tuple[str, ...]:
    """The values of the product label that will do, where the kind of GPU matters."""
    wishes = [gpu for gpu in (task.resources.gpu, fleet.spec.resources and fleet.spec.resources.gpu) if gpu]
    if not any(gpu.name or gpu.memory or gpu.total_memory or gpu.compute_capability for gpu in wishes):
        return ()
    from .labels import GPU_PRODUCT

    return tuple(sorted({node.labels[GPU_PRODUCT] for node in fitting if GPU_PRODUCT in node.labels}))


def _rdma(target: Target, places: list[KubeNode]) -> str | None:
    """The RDMA resource, where every place has it."""
    name = find_rdma(places, target)
    return name if name is not None and places and all(node.rdma.get(name) for node in places) else None


def _too_few(name: str, task: TaskSpec, target: Target, fitting: int, nodes: int, excluded: Mapping[str, str]) -> str:
    wanted = f"{task.nodes} node{'s' if task.nodes > 1 else ''}"
    why = "; ".join(f"{node} {reason}" for node, reason in list(excluded.items())[:8])
    more = f"; and {len(excluded) - 8} more" if len(excluded) > 8 else ""
    detail = f": {why}{more}" if why else ""
    return (
        f"{name} asks for {wanted}, but {fitting} of {nodes} in the cluster {target.name} can take it{detail}. "
        "Nothing was started; pass --wait to queue for free nodes."
    )
