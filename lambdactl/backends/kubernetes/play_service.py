"""What the action lambdactl_service does where the play's hosts are a cluster's nodes (see play.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from lambdactl.errors import CapacityError, LambdactlError, SpecError
from lambdactl.provision.services import line, play_overrides, service_of
from lambdactl.run.content import collect
from lambdactl.run.service import replica_task

from . import services
from .backend import open_backend
from .fitting import service_plan_on, service_url
from .play import Note, TaskVars, play_cluster
from .service_contents import bring, prepare
from .service_plan import refuse


async def service_play(
    task_vars: TaskVars, arguments: Mapping[str, Any], truth: Callable[[Any], bool], *, apply: bool, note: Note
) -> dict[str, Any]:
    """As `lambdactl.provision.services.service_play`; `ingress` is null, and `url` is in the cluster."""
    service = service_of(arguments)
    if arguments.get("ingress"):
        raise SpecError("service_ingress names a host of an SSH fleet; on Kubernetes the proxy is a pod.")
    refuse(service)
    fleet, _, _ = play_cluster(task_vars)
    overrides = play_overrides(arguments)
    async with open_backend(fleet) as backend:
        name = overrides.run.name or service.name
        if name is not None and (ref := await backend.find(name)) is not None and not ref.view.ended:
            raise CapacityError(f"a run named {name} is {ref.status.state}; choose another run_name.")
        contents = await asyncio.to_thread(lambda: prepare(collect(replica_task(service))))
        plan, client = await service_plan_on(service, backend, overrides, contents, note=note)
        old = None if plan.old is None else dict(plan.old)
        before = next(iter(await services.fetch(client, plan.service.name)), None)
        result = {
            "name": plan.service.name,
            "ingress": None,
            "install": False,
            "hosts": [node.name for node in plan.places],
            "state": before.state if before else "planned",
            "ready": before.ready if before else 0,
            "wanted": plan.service.replicas,
            "url": service_url(plan),
            "message": "",
        }
        if not apply:
            return result
        await bring(client, plan.service)
        if old is None:
            await services.create(client, plan.service, plan.revision)
        else:
            await services.update(client, plan.service, plan.revision, old)
        if not truth(arguments.get("wait", True)):
            return {**result, "state": "updating" if old else "starting"}
        status = await services.wait_ready(
            client, plan.service, plan.revision, old, lambda now: note(f"{plan.service.name}: {line(now)}")
        )
        if status.data["revision"] != plan.revision:
            raise LambdactlError(
                f"the update of {plan.service.name} was taken back: {status.data['update']['message']}"
            )
        return {**result, "state": status.state, "ready": status.ready, "message": status.trouble()}
