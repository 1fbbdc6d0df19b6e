"""Runs that exist: list them, stop one, remove one that has ended."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import Any

from lambdactl.run.status import RunStatus

from . import labels
from .client import Client
from .model import STOP
from .parts import NO_TIME
from .resources import JOBS, PODS
from .session import RunSession
from .view import RunView, view_of

_RUNS = f"{labels.MANAGED},{labels.RUN_ID}"


async def fetch(client: Client, run: str | None = None) -> list[RunView]:
    """The runs of the namespace (or one, by name or id), newest first."""
    listing = await client.list(JOBS, labels=_RUNS)
    jobs = [job for job in listing.items if (run is None or run in _names(job)) and not labels.is_part(job)]
    others: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in listing.items:
        if labels.is_part(job):
            others[_label(job, labels.RUN_ID)].append({"apiVersion": "batch/v1", "kind": "Job", **job})
    if not jobs:
        return []
    chosen = _RUNS if len(jobs) > 1 else f"{labels.RUN_ID}={_label(jobs[0], labels.RUN_ID)}"
    pods: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for pod in (await client.list(PODS, labels=chosen)).items:
        pods[_label(pod, labels.RUN_ID)].append(pod)
    views = [
        view_of({"apiVersion": "batch/v1", "kind": "Job", **job}, pods[run_id], others[run_id])
        for job in jobs
        for run_id in [_label(job, labels.RUN_ID)]
    ]
    return sorted(views, key=lambda view: _submitted(view.status()), reverse=True)


def _submitted(status: RunStatus | None) -> float:
    return 0.0 if status is None else status.submitted_at


def _label(item: dict[str, Any], name: str) -> str:
    return str((item["metadata"].get("labels") or {}).get(name, ""))


def _names(job: dict[str, Any]) -> tuple[str, str]:
    return _label(job, labels.RUN), _label(job, labels.RUN_ID)


async def stop(
    client: Client,
    name: str,
    uid: str,
    *,
    abort: bool = False,
    reason: str = "stopped-by-user",
    message: str | None = None,
    state: str = "stopped",
    rank: int | None = None,
    exit_code: int | None = None,
) -> None:
    """End a run: leave the reason in its Job, and delete it, which deletes the pods (stop signal, grace, SIGKILL).

    Args:
        abort: kill within a second instead of after the grace time.
        state: what the run's state shall be in the end: ``stopped``, or ``failed`` with the reason.
        rank: the rank that is the cause.
    """
    order: dict[str, Any] = {"reason": reason, "message": message, "state": state, "at": time.time()}
    if rank is not None:
        order |= {"first_failed_rank": rank, "exit_code": exit_code}
    if await client.find(JOBS, name) is not None:
        await client.patch(JOBS, name, {"metadata": {"annotations": {STOP: json.dumps(order)}}})
        await client.delete(JOBS, name, propagation="Foreground", uid=uid)
    if abort:
        # Not 0: that removes the pod from the API while its processes may still run.
        for pod in (await client.list(PODS, labels=f"{labels.RUN}={name}")).items:
            await client.delete(PODS, pod["metadata"]["name"], grace=1, uid=pod["metadata"]["uid"])


async def lose(session: RunSession, rank: int, message: str) -> None:
    """End a run whose node is lost: Kubernetes would wait for a pod there that nobody can end."""
    view = session.view
    uid = str(((view.job or {}).get("metadata") or {}).get("uid"))
    why = {"reason": "node-unreachable", "message": message, "state": "failed"}
    await stop(session.client, session.job_name, uid, rank=rank, **why)  # type: ignore[arg-type]  # the words of `why` are stop's own
    pod = view.pods[rank]["metadata"]
    await session.client.delete(PODS, pod["name"], grace=0, uid=pod["uid"])


async def view_whole(client: Client, job: dict[str, Any]) -> RunView:
    """A run by its Job, with its further Jobs where it has several; without pods."""
    others: list[dict[str, Any]] = []
    if view_of(job, []).facts.get("parts"):
        found = (await client.list(JOBS, labels=f"{labels.RUN_ID}={_label(job, labels.RUN_ID)}")).items
        others = [one for one in found if labels.is_part(one)]
    return view_of(job, [], others)


async def end_others(client: Client, names: list[str]) -> None:
    """End Jobs of a run whose end another of its Jobs has brought; their pods and logs stay."""
    for name in names:
        if await client.find(JOBS, name) is not None:
            await client.patch(JOBS, name, {"spec": {"activeDeadlineSeconds": NO_TIME}})


async def clean_up(client: Client, view: RunView) -> None:
    """Remove a run that has ended, with all that it made; what shall be kept is kept."""
    if view.job is None or view.job_gone or view.facts.get("keep"):
        return
    meta = view.job["metadata"]
    await client.delete(JOBS, meta["name"], propagation="Background", uid=meta["uid"])


__all__ = ["clean_up", "fetch", "lose", "stop"]
