"""From a task to a run that has its place and its Job: what the command line and playbooks have in common."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from lambdactl.errors import CapacityError, Interrupted, SpecError

from . import proxy_objects, schedules, services
from .backend import KubeRef
from .changes import UNTOLD, Changes, watched
from .filesvolume import claim_problem
from .labels import HOSTNAME
from .nodes import ClusterView, look
from .plan import KubePlan, make_plan
from .priorities import not_honoured, priority_class
from .proxy_config import PORT, service_path
from .resources import NODES, PODS
from .service_objects import revision
from .service_plan import KubeServicePlan
from .service_plan import make_plan as make_service_plan
from .start import submit
from .view import view_of

if TYPE_CHECKING:
    from lambdactl.run.content import RunContent
    from lambdactl.run.plan import Overrides
    from lambdactl.run.service import ServiceOverrides
    from lambdactl.spec import ServiceSpec, TaskSpec

    from .backend import KubernetesBackend
    from .client import Client
    from .service_contents import Contents

Note = Callable[[str], None]


async def refuse_same_name(backend: KubernetesBackend, name: str | None, *, scheduled: bool = True) -> None:
    """Raise CapacityError where an active run, or (with `scheduled`) a schedule, has this name."""
    if name is None:
        return
    for _target, client in backend.clients if scheduled else ():
        if await schedules.fetch(client, name):
            raise CapacityError(schedules.taken(name))
    ref = await backend.find(name)
    if ref is not None and not ref.view.ended:
        where = ", ".join(str(rank["node"]) for rank in ref.status.ranks if rank["node"] != "-")
        raise CapacityError(
            f"a run named {name} is {ref.status.state}{f' on {where}' if where else ''}; "
            f"stop it with `lambdactl stop {name}`, or choose another name with -n."
        )


async def plan_on(
    task: TaskSpec,
    backend: KubernetesBackend,
    overrides: Overrides,
    content: RunContent,
    limit: float | None,
    *,
    note: Note,
    keep: bool = False,
    among: Collection[str] | None = None,
    only: bool = False,
) -> tuple[KubePlan, Client]:
    """A plan on the first cluster that it fits on, as soon as it does.

    Args:
        limit: seconds to wait for nodes; None: without end.
        note: gets a sentence when it waits, and about what is not honoured.
        among: names of the only nodes that count.
        only: keep the ranks on these.

    Raises:
        CapacityError: it does not fit until then.
    """
    deadline = math.inf if limit is None else time.monotonic() + limit
    changes: Changes | None = None
    async with AsyncExitStack() as stack:
        while True:
            problem: CapacityError | None = None
            for target, client in backend.clients:
                try:
                    view = _of(await look(client), among)
                    plan = make_plan(task, backend.fleet, target, view, overrides, keep=keep, content=content)
                except CapacityError as error:
                    problem = problem or error
                else:
                    await _check_volume(plan, client)
                    return await _with_priority(_kept_on(plan, view) if only else plan, client, note), client
            problem = problem or CapacityError(f"the fleet {backend.name} has no cluster.")
            if (left := deadline - time.monotonic()) <= 0:
                raise problem
            if changes is None:
                note(f"waiting for free nodes: {problem.message.partition('. Nothing was started')[0]}")
                changes = await stack.enter_async_context(watched([client for _, client in backend.clients]))
            await changes.next(limit=min(left, UNTOLD))


async def _check_volume(plan: KubePlan, client: Client) -> None:
    run = plan.run
    if run.files_volume is None or not run.content.blobs:
        return
    if (problem := await claim_problem(client, run.files_volume)) is not None:
        raise SpecError(f"'files_volume': {problem}.", filename=plan.target.origin)


def _of(view: ClusterView, among: Collection[str] | None) -> ClusterView:
    return view if among is None else replace(view, nodes=tuple(node for node in view.nodes if node.name in among))


def _kept_on(plan: KubePlan, view: ClusterView) -> KubePlan:
    # Those that the file's `instances` name are among them already.
    names = plan.run.hostnames or tuple(node.labels.get(HOSTNAME, node.name) for node in view.nodes)
    return replace(plan, run=replace(plan.run, hostnames=names))


async def _with_priority(plan: KubePlan, client: Client, note: Note) -> KubePlan:
    if not (priority := plan.run.task.priority):
        return plan
    if (name := await priority_class(client, priority)) is None:
        note(not_honoured(priority))
    return replace(plan, run=replace(plan.run, priority_class=name))


async def submit_run(client: Client, plan: KubePlan) -> KubeRef:
    """Make the run's objects; nothing is left when that is interrupted."""
    try:
        job = await submit(client, plan.run)
    except asyncio.CancelledError:
        raise Interrupted(f"interrupted; {plan.run.run_name} was not started.") from None
    view = view_of({"apiVersion": "batch/v1", "kind": "Job", **job}, [])
    status = view.status()
    assert status is not None  # noqa: S101 - a view of a Job always has one
    return KubeRef(client, view, status)


async def service_plan_on(
    spec: ServiceSpec, backend: KubernetesBackend, overrides: ServiceOverrides, contents: Contents | None, *, note: Note
) -> tuple[KubeServicePlan, Client]:
    """A service's plan, on the cluster that has it already, else on the first that it fits on.

    Raises:
        CapacityError: it fits on none.
    """
    name = overrides.run.name or spec.name or ""
    found = [(target, client, await services.find(client, name)) for target, client in backend.clients]
    problem: CapacityError | None = None
    for target, client, old in sorted(found, key=lambda item: item[2] is None):
        nodes = (await client.list(NODES)).items
        alive = "status.phase!=Succeeded,status.phase!=Failed"
        pods = (await client.list(PODS, everywhere=True, fields=alive)).items
        try:
            plan = make_service_plan(
                spec, backend.fleet, target, overrides, node_items=nodes, pods=pods, old=old, contents=contents
            )
        except CapacityError as error:
            problem = problem or error
            if old is not None:
                break
        else:
            return await _service_with_priority(plan, client, note), client
    raise problem or CapacityError(f"the fleet {backend.name} has no cluster.")


async def _service_with_priority(plan: KubeServicePlan, client: Client, note: Note) -> KubeServicePlan:
    if not (priority := plan.service.run.task.priority):
        return plan
    if (name := await priority_class(client, priority)) is None:
        note(not_honoured(priority))
        return plan
    service = replace(plan.service, run=replace(plan.service.run, priority_class=name))
    return replace(plan, service=service, revision=revision(service))


def service_url(plan: KubeServicePlan) -> str:
    """The service's address in the cluster."""
    service, namespace = plan.service, plan.target.namespace
    if service.proxied:
        return f"http://{proxy_objects.NAME}.{namespace}.svc:{PORT}{service_path(service.name)}"
    return f"http://{service.name}.{namespace}.svc:{service.spec.port}/"
