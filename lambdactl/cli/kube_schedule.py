"""`schedule` on Kubernetes: `apply` hands a run over to CronJobs of the cluster; `ps`, `run get` and `stop` see it."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from lambdactl.backends.kubernetes import schedules
from lambdactl.backends.kubernetes.filestore import fill
from lambdactl.backends.kubernetes.schedule_content import bring
from lambdactl.backends.kubernetes.schedule_objects import Handed, image, passed_on
from lambdactl.backends.kubernetes.schedule_task import texts
from lambdactl.cli import kube_runs
from lambdactl.cli.console import confirm, note, size
from lambdactl.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.backend import KubeRef
    from lambdactl.backends.kubernetes.client import Client
    from lambdactl.backends.kubernetes.fleet import KubeFleet
    from lambdactl.backends.kubernetes.plan import KubePlan
    from lambdactl.cli.apply import Options
    from lambdactl.run.content import RunContent
    from lambdactl.run.plan import Overrides
    from lambdactl.run.status import RunStatus
    from lambdactl.spec import TaskSpec

KEPT = ("cpu", "gpu", "memory", "disk", "profile", "no_profile", "keep")
"""Options of `apply` that a scheduled run is made by."""


async def hand_over(
    client: Client,
    fleet: KubeFleet,
    plan: KubePlan,
    task: TaskSpec,
    content: RunContent,
    options: Options,
    overrides: Overrides,
) -> int:
    """Leave the run with the cluster, which starts it at its times."""
    run = plan.run
    brought = await asyncio.to_thread(bring, content, task, plan.target)
    kept = {name: getattr(options, name) for name in KEPT}
    handed = Handed(
        name=run.run_name,
        id=str(uuid.uuid4()),
        owner=run.owner,
        fleet=fleet.name,
        nodes=run.nodes,
        cron=tuple(task.schedule.cron) if task.schedule else (),
        submitted_at=time.time(),
        texts=texts(task, fleet, plan, brought.about, kept, overrides, _profiles(task, options)),
        parts=brought.parts,
        trees=brought.trees,
        environ=passed_on(os.environ),
    )
    await schedules.admit(client, handed, plan.target)
    if (files := plan.target.files_volume) is not None and brought.stored:
        sent = await fill(client, files, image(plan.target), brought.stored)
        note(f"sent {size(sent)}." if sent else "the files volume has every file already.")
    due = await schedules.add(client, handed, plan.target)
    when = "is never due" if due is None else time.strftime("is started first at %Y-%m-%d %H:%M UTC", time.gmtime(due))
    note(f"pods of the image {image(plan.target)} start it; `lambdactl ps` says how that went.")
    note(f"{run.run_name} {when}; `lambdactl stop {run.run_name}` ends that.")
    return EXIT_OK


def _profiles(task: TaskSpec, options: Options) -> Path | None:
    from lambdactl.cli.run_options import profiles_file

    return None if options.no_profile else profiles_file(task)


async def all_schedules(option: str | None, key: str | None = None) -> list[tuple[KubeFleet, RunStatus]]:
    """The schedules of the fleets that are looked at; those of one namespace once. A cluster that does not answer has
    none (its runs' answer says so)."""
    from lambdactl.backends.kubernetes.backend import open_backend
    from lambdactl.backends.kubernetes.errors import APIError
    from lambdactl.state import State

    with State() as state:
        known = kube_runs.fleets(option, state)
    found: dict[str, tuple[KubeFleet, RunStatus]] = {}
    for fleet in known:
        async with open_backend(fleet) as backend:
            for _target, client in backend.clients:
                try:
                    for status in await schedules.fetch(client, key):
                        found.setdefault(status.run_id, (fleet, status))
                except APIError:
                    continue
    return list(found.values())


async def find(key: str, option: str | None, *, idle: bool = False) -> RunStatus | None:
    """A schedule by name or id; with `idle` by its name only while no run of it is active."""
    from lambdactl.backends.kubernetes.backend import open_backend

    found = await all_schedules(option, key)
    if not found:
        return None
    fleet, status = found[0]
    if idle and key == status.name:
        async with open_backend(fleet) as backend:
            if _active(await backend.find(status.name)):
                return None
    return status


def stop(key: str, option: str | None, *, yes: bool) -> int | None:
    """`stop` of a schedule: its exit code; None where there is none, or a run of it is to be stopped as well."""
    return asyncio.run(_stop(key, option, yes=yes))


async def _stop(key: str, option: str | None, *, yes: bool) -> int | None:
    from lambdactl.backends.kubernetes.backend import open_backend

    found = await all_schedules(option, key)
    if not found:
        return None
    fleet, status = found[0]
    if not confirm(f"Start {status.name} no more at its times?", yes=yes):
        return EXIT_FAILED
    async with open_backend(fleet) as backend:
        for _target, client in backend.clients:
            await schedules.remove(client, status.name)
        ref = await backend.find(status.name)
    note(f"the schedule of {status.name} is removed.")
    return None if key == status.name and _active(ref) else EXIT_OK


def _active(ref: KubeRef | None) -> bool:
    return ref is not None and not (ref.status.final and ref.view.ended)
