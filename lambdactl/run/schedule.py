"""`schedule`: handing a planned run to a timer on rank 0's node, and taking it back (lambdactl/node/schedule.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from lambdactl.run.nodes import Problem, call_all, same
from lambdactl.run.plan import NodeView, RunPlan, job_specs
from lambdactl.transport.api import Runner


def idle(views: Mapping[str, NodeView]) -> dict[str, NodeView]:
    """The hosts as if nothing ran on them: what is in use now says nothing about the times of a schedule."""
    return {name: replace(view, leases=()) for name, view in views.items()}


async def add(transport: Runner, plan: RunPlan) -> float | None:
    """Schedule a run; a schedule of the same name is replaced.

    Returns:
        When it is due first (seconds since the epoch); None when it never is.

    Raises:
        LambdactlError: rank 0's node refuses, or cannot be asked.
    """
    jobs = job_specs(plan)
    request = {
        "op": "schedule",
        "name": plan.run_name,
        "cron": list(plan.task.schedule.cron) if plan.task.schedule else [],
        "owner": plan.owner,
        "reserve": {node.name: node.want.request() for node in plan.nodes},
        "jobs": [jobs[node.name] for node in plan.nodes],
    }
    master = plan.nodes[0].name
    answer = (await call_all(transport, {master: request}))[master]
    if isinstance(answer, Problem):
        raise answer.error()
    due = answer.get("next")
    return None if due is None else float(due)


async def remove(transport: Runner, hosts: Iterable[str], name: str) -> bool:
    """Remove a schedule from whichever node has it; what it has started goes on. True when there was one."""
    answers = await call_all(transport, same(hosts, op="unschedule", name=name))
    return any(not isinstance(answer, Problem) and answer.get("removed") for answer in answers.values())
