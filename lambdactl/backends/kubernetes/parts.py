"""`groups` whose `resources` differ: one run as several Jobs, because all pods of a Job have one template.

Each part is an Indexed Job of neighbouring groups with equal resources; its pods' rank is their index, counted on from
the part's first rank. The first part's Job is the run's: it has its name and its facts, and owns the others, so that
nothing stays when it goes. What one Job tells its own pods (a failure, the end of rank 0) the others have to be told:
the machine that follows the run ends them, by a deadline that has passed, which keeps their pods and logs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lambdactl.errors import CapacityError
from lambdactl.run import groups

from .podstate import condition

if TYPE_CHECKING:
    from lambdactl.spec import Resources, TaskSpec

    from .model import KubeRun

_FAILED, _DONE = ("Failed", "FailureTarget"), ("Complete", "SuccessCriteriaMet")
_OUT_OF_TIME = "DeadlineExceeded"
NO_TIME = 1
"""Seconds: the deadline of a Job that shall end."""


DELETED: dict[str, Any] = {
    "type": "Failed",
    "status": "True",
    "reason": "Deleted",
    "message": "one of its Jobs was deleted",
}
"""Stands for the end of a Job that somebody has deleted."""


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring ranks that have the same needs.

    Attributes:
        places: the nodes that it fits on when the others have theirs.
    """

    first: int
    nodes: int
    resources: Resources
    gpus: int = 0
    gpu_resource: str | None = None
    gpu_products: tuple[str, ...] = ()
    rdma: str | None = None
    places: tuple[str, ...] = ()


def unlike(task: TaskSpec) -> bool:
    """Whether the groups of a task differ in what they need."""
    found = task.groups or ()
    return any(group.resources != found[0].resources for group in found)


def needs(task: TaskSpec) -> list[tuple[TaskSpec, int]]:
    """The parts of a task: the task as its nodes are chosen for it, and how many there are."""
    found: list[tuple[TaskSpec, int]] = []
    for group in task.groups or ():
        if found and found[-1][0].resources == group.resources:
            found[-1] = (found[-1][0], found[-1][1] + group.nodes)
        else:
            found.append((groups.as_task(task, group), group.nodes))
    return found


def seats(
    name: str,
    fits: Sequence[Sequence[str]],
    sizes: Sequence[int],
    reasons: Sequence[Mapping[str, str]],
) -> list[list[str]]:
    """Nodes for each part.

    Args:
        fits: the nodes that each part fits on.
        reasons: of each part, why nodes do not take it.

    Raises:
        CapacityError: there is no choice by which all find theirs.
    """
    found = groups.assign(fits, sizes)
    if found is not None:
        return found
    for index, (names, size) in enumerate(zip(fits, sizes, strict=True)):
        if len(names) < size:
            against = [f"{node} {reason}" for node, reason in reasons[index].items() if reason]
            why = "; ".join(against[:8])
            ranks = sum(sizes[:index])
            clause = f"ranks {ranks} to {ranks + size - 1} want {size} nodes, and {len(names)} can take them"
            break
    else:
        why, clause = "", "its groups want the same nodes, and each node takes one rank"
    raise CapacityError(
        f"{name} does not fit: {clause}{f': {why}' if why else ''}. Nothing was started; pass --wait to queue for free "
        "nodes."
    )


def of_run(run: KubeRun) -> Iterator[KubeRun]:
    """The run as each of its parts is made from it; itself where all ranks are alike."""
    for index, part in enumerate(run.parts):
        yield replace(
            run,
            part=index,
            task=replace(run.task, resources=part.resources),
            gpus=part.gpus,
            gpu_resource=part.gpu_resource,
            gpu_products=part.gpu_products,
            rdma=part.rdma,
        )
    if not run.parts:
        yield run


def job_name(run: KubeRun) -> str:
    """The name of the Job of the part that this run is made for; no run of another id can have it."""
    return run.run_name if not run.part else f"{run.run_name}-{run.run_id[:8]}-g{run.part}"


# The Jobs of a run as one.


def _end(job: Mapping[str, Any], kinds: Sequence[str]) -> Mapping[str, Any] | None:
    return next((found for kind in kinds if (found := condition(job, kind)) is not None), None)


def finished(job: Mapping[str, Any]) -> bool:
    """Whether Kubernetes is done with a Job."""
    return _end(job, ("Complete", "Failed")) is not None


def combined(job: dict[str, Any], others: Sequence[Mapping[str, Any]], *, ignore: bool) -> dict[str, Any]:
    """The run's Job with the end of the whole run for its conditions.

    Args:
        others: the Jobs of the other parts.
        ignore: a rank that fails is no reason for the others to end (`on_node_failure: ignore`).
    """
    if not others:
        return job
    conditions = _conditions([job, *others], ignore=ignore)
    return job | {"status": (job.get("status") or {}) | {"conditions": conditions}}


def _conditions(jobs: Sequence[Mapping[str, Any]], *, ignore: bool) -> list[dict[str, Any]]:
    over = all(finished(job) for job in jobs)
    first = _end(jobs[0], _DONE)
    by_master = first is not None and first.get("reason") == "SuccessPolicy"
    failures = [found for job in jobs if (found := _end(job, _FAILED)) is not None]
    # Who was ended by a deadline may have been ended because of the others.
    failures.sort(key=lambda end: (end.get("reason") == _OUT_OF_TIME, str(end.get("lastTransitionTime") or "")))
    if by_master and (not failures or failures[0].get("reason") == _OUT_OF_TIME):
        return [dict(first or {}) | {"type": "Complete" if over else "SuccessCriteriaMet"}]
    if failures and (over or not ignore):
        return [dict(failures[0]) | {"type": "Failed" if over else "FailureTarget"}]
    if over:
        last = max((_end(job, _DONE) or {} for job in jobs), key=lambda end: str(end.get("lastTransitionTime") or ""))
        return [dict(last) | {"type": "Complete"}]
    return []


def lagging(job: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The Jobs that go on although the run's end is decided, and have not been told."""
    if len(jobs) < 2 or _end(job, (*_FAILED, *_DONE)) is None:
        return []
    return [
        str(one["metadata"]["name"])
        for one in jobs
        if _end(one, (*_FAILED, *_DONE)) is None and (one.get("spec") or {}).get("activeDeadlineSeconds") != NO_TIME
    ]
