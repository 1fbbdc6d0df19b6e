"""One job of a validation as an ordinary run: submitted, followed, parsed, and stopped cleanly when interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from lambdactl import spec
from lambdactl.fleet import Fleet
from lambdactl.nccl.catalogue import Explanation
from lambdactl.nccl.model import Result
from lambdactl.run.control import stop_run, wait_ended
from lambdactl.run.follow import Follower
from lambdactl.run.nodes import call_all, same
from lambdactl.run.plan import NodeView, Overrides, RunPlan, job_specs, make_plan
from lambdactl.run.screen import LogOutput
from lambdactl.run.submit import submit
from lambdactl.validate.steps import Job, script
from lambdactl.validate.watch import LogWatch

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport

_BUSY_ATTEMPTS = 20  # the run before this one gives its GPUs back within a moment
_END_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job did. `problem` says in one clause why it failed, None when it was done."""

    run_name: str
    result: Result | None
    exit_code: int | None
    problem: str | None
    explanations: tuple[Explanation, ...]
    seconds: float
    addresses: tuple[str, ...]


class _Nowhere(io.RawIOBase):
    """A stream without a reader: the log stays on the node, what counts of it goes to the watch."""

    def write(self, data: Any, /) -> int:
        return len(data)


async def execute(
    transport: Transport, fleet: Fleet, views: Mapping[str, NodeView], job: Job, name: str, limit: int,
    env: Mapping[str, str],
) -> Outcome:  # fmt: skip
    """Run a job to its end, at most `limit` seconds. A cancellation stops the run on its nodes first."""
    plan = _plan(fleet, views, job, name, limit, env)
    started = time.monotonic()
    addresses = tuple(node.ip for node in plan.nodes)
    hosts = {node.rank: node.name for node in plan.nodes}
    watch = LogWatch()
    submitting = asyncio.ensure_future(_submit(transport, plan))
    try:
        refused = await asyncio.shield(submitting)
        if refused:
            return Outcome(name, None, None, refused, (), time.monotonic() - started, addresses)
        output = LogOutput([0], stream=_Nowhere(), watch=watch.feed)  # type: ignore[arg-type]  # only write is used
        await Follower(transport, plan.run_id, hosts, output, show=[0]).run()
        status = await wait_ended(transport, plan.run_id, hosts.values(), patience=_END_PATIENCE)
    except BaseException:
        # A stop that overtakes the start would find nothing to stop.
        await _finish(submitting)
        await _finish(asyncio.ensure_future(_stop(transport, plan, list(hosts.values()))))
        raise
    explanations = tuple(watch.explanations())
    result = watch.result()
    seconds = time.monotonic() - started
    if status is None or not status.final:
        return Outcome(name, result, None, "no node answers for the run any more", explanations, seconds, addresses)
    problem = None
    if status.state != "done":
        problem = (status.message or status.reason or f"exit code {status.exit_code}").rstrip(".")
    elif result is not None:
        # A node keeps its last 50 runs: a validation of many steps must not push the user's own logs out.
        await call_all(transport, same(hosts.values(), op="forget", run=plan.run_id))
    return Outcome(name, result, status.exit_code, problem, explanations, seconds, addresses)


def task_text(job: Job, name: str, limit: int) -> str:
    """The job as a task file, which anyone may run by hand."""
    return yaml.safe_dump(
        {
            "type": "task", "name": name, "nodes": len(job.nodes), "commands": [script(job)],
            "startup_order": "workers-first", "stop_criteria": "master-done", "max_duration": f"{limit}s",
        },
        sort_keys=False,
    )  # fmt: skip


def _plan(
    fleet: Fleet, views: Mapping[str, NodeView], job: Job, name: str, limit: int, env: Mapping[str, str]
) -> RunPlan:
    task = spec.loads(task_text(job, name, limit), filename=name, kind="task")
    if not isinstance(task, spec.TaskSpec):
        raise TypeError(f"{name} is no task")
    chosen = set(job.nodes)
    mine = {
        host: view if host in chosen else NodeView(host, problem="takes no part in this step")
        for host, view in views.items()
    }
    variables = tuple(spec.parse_env_item(f"{key}={value}") for key, value in env.items())
    return make_plan(task, fleet, mine, Overrides(env=variables, whole=True))


async def _submit(transport: Transport, plan: RunPlan) -> str | None:
    """Start the run; the clause why it could not be."""
    outcome: dict[str, Any] = {}
    for _ in range(_BUSY_ATTEMPTS):
        outcome = await submit(plan.run_id, plan.run_name, plan.owner, job_specs(plan), transport)
        if outcome["ok"]:
            return None
        if outcome["code"] != "busy":
            break
        await asyncio.sleep(0.5)
    return str(outcome["error"]).rstrip(".")


async def _finish(task: asyncio.Future[Any]) -> None:
    """Wait for a task whatever happens to this one: several cancellations may arrive while it cleans up."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # the first error is what is raised; this one is only marked as seen


async def _stop(transport: Transport, plan: RunPlan, hosts: list[str]) -> None:
    await stop_run(transport, plan.run_id, hosts)
    await wait_ended(transport, plan.run_id, hosts, patience=_END_PATIENCE)
