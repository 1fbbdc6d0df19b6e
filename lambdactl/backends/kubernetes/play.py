"""What the actions lambdactl_run, lambdactl_service and lambdactl_stop do where the play's hosts are a cluster's nodes.

The same results as on SSH hosts (lambdactl/provision/runs.py, services.py), so that the playbooks and AWX's templates
are the same; the cluster is reached by the job's own configuration (KUBECONFIG), never through a host of the play.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lambdactl import spec
from lambdactl.errors import LambdactlError, SpecError
from lambdactl.provision.bounds import check_core
from lambdactl.provision.interrupts import Screen, interruptions
from lambdactl.provision.runs import AFTER_INTERRUPTION, Nowhere, ended_result, read_run, until_interrupted
from lambdactl.run.content import collect
from lambdactl.run.launch import left_queue
from lambdactl.run.plan import random_name
from lambdactl.run.retry import Attempts
from lambdactl.run.screen import LogOutput

from . import dev, schedules, services
from .attempts import rest
from .backend import KubernetesBackend, open_backend
from .config import targets
from .control import clean_up
from .delivery import deliver
from .fitting import plan_on, refuse_same_name, submit_run
from .fleet import BACKEND, KubeFleet
from .following import KubeFollower
from .start import Starter, taken_back_where_forbidden

if TYPE_CHECKING:
    from lambdactl.provision.task_options import TaskOptions
    from lambdactl.run.status import RunStatus

    from .backend import KubeRef
    from .client import Client
    from .plan import KubePlan
    from .session import RunSession
    from .start import Bring

Note = Callable[[str], None]
TaskVars = Mapping[str, Any]
PATIENCE = 60.0


def play_cluster(task_vars: TaskVars) -> tuple[KubeFleet, list[str], bool]:
    """The fleet of a play, the nodes that the play is about, and whether it is about some of the fleet's nodes only.

    Raises:
        SpecError: it has no node, or this job's configuration is for another cluster.
        LambdactlError: this ansible-core is not supported.
    """
    check_core((task_vars.get("ansible_version") or {}).get("full"))
    every = task_vars["hostvars"]
    chosen = [str(name) for name in task_vars["ansible_play_hosts"] if "lambdactl_run" not in every[name]]
    if not chosen:
        raise SpecError("the play has no node of the cluster, only ranks of runs; take --limit away.")
    first = every[chosen[0]]
    group = task_vars["groups"].get(str(first["lambdactl_fleet"]).replace("-", "_"), ())
    wanted = {(str(every[name]["lambdactl_cluster"]), str(every[name]["lambdactl_namespace"])) for name in chosen}
    known = targets()
    found = tuple(target for target in known if (target.name, target.namespace) in wanted)
    if not found:
        cluster, namespace = min(wanted)
        there = ", ".join(f"{target.name} ({target.namespace})" for target in known)
        raise SpecError(
            f"the inventory is of the cluster '{cluster}' and its namespace '{namespace}', and this job is configured "
            f"for {there}; give it that cluster's kubeconfig (KUBECONFIG, in AWX the kubeconfig credential)."
        )
    name = str(first["lambdactl_fleet"])
    text = f"type: fleet\nname: {name}\nnodes: 0..\nbackends: [{BACKEND}]\n"  # its filters have made the inventory
    parsed = spec.loads(text, kind="fleet")
    fleet = KubeFleet(name, str(first["lambdactl_fleet_id"]), parsed, None, found)
    return fleet, chosen, not set(map(str, group)) <= set(chosen)


async def run_task(
    task_vars: TaskVars, options: TaskOptions, *, check: bool, screen: Screen, note: Note
) -> dict[str, Any]:
    """As `lambdactl.provision.runs.run_task`; `nodes` are those that it fits on, whose ranks the scheduler gives."""
    task, of_dev = read_run(options.task_file, up=dev.UP)
    fleet, chosen, only = play_cluster(task_vars)
    content = await asyncio.to_thread(collect, task)
    name = options.overrides.name or task.name or random_name()
    overrides = replace(options.overrides, name=name)
    async with open_backend(fleet) as backend:
        await refuse_same_name(backend, name)
        attempts = Attempts(task.retry, time.time())
        fit = partial(plan_on, task, backend, overrides, content, note=note, among=chosen, only=only)
        if check:
            return _planned((await fit(0.0))[0])
        while True:
            limit = options.patience.limit if options.patience.waits else attempts.patience(time.time()) or 0.0
            try:
                plan, client = await until_interrupted(fit(limit), screen)
            except asyncio.CancelledError:
                raise left_queue(name) from None
            plan = replace(plan, run=replace(plan.run, dev=of_dev, attempt=attempts.as_job() if task.retry else None))
            ref = await submit_run(client, plan)
            async with taken_back_where_forbidden(client, ref.job_name, ref.uid, plan.run.run_id):
                result, status = await _Attempt(backend, ref, plan, options, screen, note).run()
            if status is None or not await until_interrupted(rest(client, attempts, status, note), screen):
                break
        if status is not None and (left := await backend.find(status.run_id)) is not None:
            await clean_up(left.client, left.view)
        return result


class _Attempt:
    """A run that has its Job: brought to its start, and followed to its end."""

    def __init__(
        self, backend: KubernetesBackend, ref: KubeRef, plan: KubePlan, options: TaskOptions, screen: Screen, note: Note
    ) -> None:
        self.backend, self.ref, self.plan = backend, ref, plan
        self.options, self.screen, self.note = options, screen, note
        self.name = plan.run.run_name

    async def run(self) -> tuple[dict[str, Any], RunStatus | None]:
        """The result, and the status when the run's end was seen."""
        places = ", ".join(node.name for node in self.plan.places)
        self.note(f"{self.name} is submitted to {self.plan.target.name}, where it fits on {places}.")
        result = {**_planned(self.plan), "started": True, "state": "running"}
        async with self.backend.session(self.ref) as session:
            starter = Starter(session, wait=self.options.patience.waits, notify=self.note, bring=self._bring())
            if not self.options.wait:
                await until_interrupted(starter.run(), self.screen)
                return result, None
            if message := await self._followed(session, starter):
                self.screen.finish()
                self.note(message)
                return {**result, "message": message}, None
            self.screen.finish()
            status = session.view.status()
        ended = ended_result(status, range(self.plan.run.nodes), self.options.log_dir)
        return {**result, **ended}, status if status is not None and status.final else None

    def _bring(self) -> Bring | None:
        content = self.plan.run.content
        if not content.blobs:
            return None

        async def bring(client: Client, pods: list[str]) -> None:
            run = self.plan.run
            await deliver(
                client, pods, content, run.image, files=run.files_volume, on_progress=lambda _: None, notify=self.note
            )

        return bring

    async def _followed(self, session: RunSession, starter: Starter) -> str:
        """Empty when the run has ended; a sentence when this process only leaves it."""
        every = list(range(self.plan.run.nodes))
        shown = [] if not self.options.show_log else every if self.options.all_ranks else [0]
        rest_of_them = [rank for rank in every if rank not in shown] if self.options.log_dir else []
        outputs = [
            LogOutput(shown, stream=cast(BinaryIO, self.screen), directory=self.options.log_dir),
            LogOutput(rest_of_them, stream=cast(BinaryIO, Nowhere()), directory=self.options.log_dir),
        ]
        followers = [KubeFollower(session, outputs[0], show=shown, notify=self.note, starter=starter)]
        if rest_of_them:
            followers.append(KubeFollower(session, outputs[1], show=rest_of_them, notify=self.note))
        try:
            return await self._to_its_end(session, followers)
        finally:
            for output in outputs:
                output.close()

    async def _to_its_end(self, session: RunSession, followers: list[KubeFollower]) -> str:
        async def follow() -> None:
            async with asyncio.TaskGroup() as group:
                for follower in followers:
                    group.create_task(follower.run())

        logs, up = asyncio.ensure_future(follow()), asyncio.ensure_future(self._until_up(session))
        with interruptions(self.screen) as queue:
            event = asyncio.ensure_future(queue.get())
            try:
                await asyncio.wait((logs, event, up), return_when=asyncio.FIRST_COMPLETED)
                if logs.done():
                    _raise(logs)
                    return ""
                if up.done():
                    return up.result()
                if event.result() == "orphaned" or self.options.on_interrupt == "detach":
                    return f"Interrupted; {self.name} goes on."
                await self.backend.stop(self.ref)
                await session.until(lambda view: view.final, timeout=AFTER_INTERRUPTION)
                return ""
            finally:
                for task in (logs, event, up):
                    task.cancel()
                await asyncio.gather(logs, event, up, return_exceptions=True)

    async def _until_up(self, session: RunSession) -> str:
        """Never ends for a task; for a dev environment a sentence once it is up, which is all that a play waits for."""
        if self.plan.run.dev is None:
            await asyncio.Event().wait()
        await session.until(lambda view: dev.is_up(view) or view.final)
        if session.view.final:
            await asyncio.Event().wait()  # the log's end tells it
        return f"{self.name} is up; `lambdactl attach {self.name}` leads to it."


def _raise(logs: asyncio.Future[None]) -> None:
    """The one error of the followers, which a task group has put into a group of errors."""
    error = logs.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error


def _planned(plan: KubePlan) -> dict[str, Any]:
    nodes = [{"rank": None, "name": node.name, "ip": node.internal_ip, "gpus": plan.run.gpus} for node in plan.places]
    return {
        "run_id": plan.run.run_id, "run_name": plan.run.run_name, "nodes": nodes, "started": False,
        "state": "planned", "exit_code": None, "message": "", "log_files": [], "run": None,
    }  # fmt: skip


async def stop_play(task_vars: TaskVars, run: str, *, abort: bool, check: bool) -> dict[str, Any]:
    """As `lambdactl.provision.runs.stop_play`, for runs, schedules and services of the cluster's namespace."""
    fleet, _, _ = play_cluster(task_vars)
    async with open_backend(fleet) as backend:
        scheduled = await _unscheduled(backend, run, check=check)
        ref = await backend.find(run)
        if ref is None or (ref.status.final and scheduled is not None):
            outcome = scheduled or await _stop_service(backend, run, check=check)
            if outcome is None:
                raise SpecError(f"no run or service named {run} is in the cluster; `lambdactl ps -a` lists them.")
            return outcome
        status, over = ref.status, ref.status.final and ref.view.retry is None
        result = {"run_id": status.run_id, "run_name": status.name, "state": status.state, "stopped": not over}
        if over or check:
            return {**result, "message": f"{status.name} has ended before." if over else "would be stopped."}
        await backend.stop(ref, abort=abort)
        if not await backend.ended(ref, patience=PATIENCE + float(ref.view.facts.get("stop_grace") or 0)):
            raise LambdactlError(f"{status.name} has not ended yet; stop it again with -e run_abort=true to kill it.")
        return {**result, "state": "stopped", "message": f"{status.name} is stopped."}


async def _unscheduled(backend: KubernetesBackend, name: str, *, check: bool) -> dict[str, Any] | None:
    for _target, client in backend.clients:
        for status in await schedules.fetch(client, name):
            if not check:
                await schedules.remove(client, status.name)
            text = "would be removed." if check else f"the schedule of {status.name} is removed."
            return {
                "run_id": status.run_id, "run_name": status.name, "state": "scheduled", "stopped": True,
                "message": text,
            }  # fmt: skip
    return None


async def _stop_service(backend: KubernetesBackend, name: str, *, check: bool) -> dict[str, Any] | None:
    for _target, client in backend.clients:
        for status in await services.fetch(client, name):
            result = {"run_id": None, "run_name": name, "state": status.state, "stopped": True}
            if check:
                return {**result, "message": "would be stopped."}
            grace = float(status.data.get("stop_grace") or 0)
            if not await services.stop(client, name, patience=services.STOP_PATIENCE + grace):
                raise LambdactlError(f"{name} has not ended yet; it goes on stopping.")
            return {**result, "state": "stopped", "message": f"{name} is stopped."}
    return None
