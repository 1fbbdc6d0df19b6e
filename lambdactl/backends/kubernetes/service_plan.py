"""From a service file and the cluster's nodes to a service that fits, or the reason why it does not. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from time import time
from typing import TYPE_CHECKING, Any

from lambdactl.errors import CapacityError, SpecError
from lambdactl.run import interpolate, secrets
from lambdactl.run.container import image_of
from lambdactl.run.content import RunContent
from lambdactl.run.plan import owner
from lambdactl.run.service import ServiceOverrides, replica_task
from lambdactl.run.service_file import refuse_unsupported as refuse_in_services
from lambdactl.spec import ServiceSpec, TaskSpec

from . import labels, nodes
from .model import KubeRun
from .pinning import hostnames, pinned
from .plan import DEFAULT_IMAGE, _gpus, _products, _resource, _why_not, refuse_unsupported
from .podspec import resources
from .quantity import amounts
from .service_contents import Contents, refuse_contents
from .service_model import KubeService, annotation
from .service_objects import revision
from .service_prober import REQUESTS
from .service_probes import needs_prober

if TYPE_CHECKING:
    from .config import Target
    from .fleet import KubeFleet
    from .nodes import KubeNode


@dataclass(frozen=True, slots=True)
class KubeServicePlan:
    """A service that can be made.

    Attributes:
        service: what its objects are made from.
        revision: what its replicas are made from.
        places: nodes that can take a replica, when what runs of it now is left out of account.
        excluded: why the other nodes cannot.
        old: its Deployment as it is, where it runs already.
    """

    service: KubeService
    revision: str
    places: tuple[KubeNode, ...]
    excluded: Mapping[str, str]
    target: Target
    old: Mapping[str, Any] | None


def make_plan(
    spec: ServiceSpec,
    fleet: KubeFleet,
    target: Target,
    overrides: ServiceOverrides,
    *,
    node_items: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    old: Mapping[str, Any] | None = None,
    contents: Contents | None = None,
) -> KubeServicePlan:
    """Plan a service on one cluster.

    Args:
        node_items: the Node objects.
        pods: all pods that have not ended, of all namespaces.
        old: the service's Deployment, where it runs already.
        contents: what the replicas take with them.

    Raises:
        SpecError: the file uses what cannot be had here, or a variable has no value.
        CapacityError: the replicas do not fit, with every node's reason.
    """
    refuse(spec)
    refuse_contents(spec, contents, target)
    name = overrides.run.name or spec.name
    if name is None:
        raise SpecError("a service needs a 'name'; set it, or pass -n NAME.", filename=spec.source.filename)
    task, run = _run(spec, fleet, target, overrides, name, old)
    pods = list(pods)
    others = [pod for pod in pods if not _is_of(pod, name, target.namespace)]
    seen = nodes.view(node_items, others).nodes
    names = pinned(task, fleet, seen)
    why = {node.name: _why_not(task, fleet, node, names) for node in seen}
    fitting = [node for node in seen if not why[node.name]]
    run = replace(
        run,
        gpu_resource=_resource(task, fitting) if run.gpus else None,
        gpu_products=_products(task, fleet, fitting) if run.gpus else (),
        hostnames=hostnames(names, seen),
        content=contents.content if contents is not None else RunContent(),
        files_volume=target.files_volume if contents is not None and contents.parts is None else None,
    )
    excluded = {node: "; ".join(reasons) for node, reasons in why.items() if reasons}
    wanted = int(spec.replicas.max or 0)
    prober = target.probe_image or target.image or run.image if needs_prober(spec) else None
    room = sum(_room(run, prober, node) for node in fitting)
    if room < wanted:
        raise CapacityError(_too_few(name, wanted, room, target, excluded))
    now = {node.name: node for node in nodes.view(node_items, pods).nodes}
    service = KubeService(
        name=name,
        spec=spec,
        run=run,
        replicas=wanted,
        surge=any(_room(run, prober, now[node.name]) for node in fitting),
        prober=prober,
        contents=contents,
        ready_timeout=overrides.ready_timeout,
    )
    return KubeServicePlan(service, revision(service), tuple(fitting), excluded, target, old)


def refuse(spec: ServiceSpec) -> None:
    """Raise SpecError for what services on Kubernetes cannot honour."""
    refuse_in_services(spec)
    task = replica_task(spec)
    # An image may be started by its own command; everything else is as for tasks.
    refuse_unsupported(task if task.commands else replace(task, commands=("",)))


def _run(
    spec: ServiceSpec,
    fleet: KubeFleet,
    target: Target,
    overrides: ServiceOverrides,
    name: str,
    old: Mapping[str, Any] | None,
) -> tuple[TaskSpec, KubeRun]:
    """The task that one replica is, and the run of it."""
    task = replica_task(spec)
    if task.docker:
        task = replace(task, privileged=True)
    env = interpolate.environment(task, secrets.get, given=overrides.run.env)
    task = replace(task, registry_auth=interpolate.login(task, env, secrets.get))
    facts = annotation(old, labels.SERVICE_FACTS) if old is not None else {}
    run = KubeRun(
        run_id=str(facts.get("service_id") or uuid.uuid4()),
        run_name=name,
        task=task,
        image=image_of(task) or target.image or DEFAULT_IMAGE,
        owner=owner(),
        fleet=fleet.name,
        submitted_at=float(facts.get("submitted_at") or time()),
        env=env,
        gpus=_gpus(task),
        node_timeout=int(overrides.node_timeout),
        queue=target.queue,
        alone=True,
    )
    return task, run


def _is_of(pod: Mapping[str, Any], name: str, namespace: str) -> bool:
    meta = pod["metadata"]
    return meta.get("namespace") == namespace and (meta.get("labels") or {}).get(labels.SERVICE) == name


def _room(run: KubeRun, prober: str | None, node: KubeNode) -> int:
    """How many replicas fit on a node now."""
    wanted = resources(run)
    asked = amounts(wanted.get("limits")) | amounts(wanted.get("requests")) | {"pods": 1.0}
    for name, value in amounts(REQUESTS).items() if prober is not None else ():
        asked[name] = asked.get(name, 0.0) + value
    return min(int(node.free.get(name, 0) // value) for name, value in asked.items() if value)


def _too_few(name: str, wanted: int, room: int, target: Target, excluded: Mapping[str, str]) -> str:
    why = "; ".join(f"{node} {reason}" for node, reason in list(excluded.items())[:8])
    return (
        f"{name} asks for {wanted} replica{'s' if wanted != 1 else ''}, and the cluster {target.name} has room for "
        f"{room}{': ' + why if why else ''}. Nothing was changed; lower 'replicas' or what each of them asks for."
    )
