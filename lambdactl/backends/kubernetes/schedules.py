"""Schedules that are in a cluster: hand one over, list them as runs in the state `scheduled`, take one back."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lambdactl.errors import CapacityError
from lambdactl.node.cron import Cron, next_of
from lambdactl.run.status import RunStatus

from . import labels
from .errors import AlreadyExists, Forbidden, explain_event
from .payload import LIMIT
from .resources import CRONJOBS, EVENTS, JOBS, PODS, SECRETS
from .schedule_objects import Handed, cron_jobs, cron_name, pod_spec, secrets
from .schedule_view import Schedule

if TYPE_CHECKING:
    from .client import Client
    from .config import Target

_ALL = f"{labels.MANAGED},{labels.SCHEDULE}"


async def admit(client: Client, handed: Handed, target: Target) -> None:
    """Whether the cluster would take a schedule; nothing is made.

    Raises:
        CapacityError: it does not fit into a Secret.
        APIError: the cluster refuses the pods that would start its runs: who makes them later can tell nobody.
    """
    size = sum(map(len, handed.texts.values()))
    if size > LIMIT - 4096:
        raise CapacityError(
            f"{handed.name} is {size} bytes with its variables, and Kubernetes takes at most 1 MiB in a Secret; bring "
            "less along."
        )
    meta = {"name": f"{cron_name(handed.name)}-trial", "labels": handed.labels}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod_spec(handed, target, 0)}
    await client.create(PODS, pod, dry_run=True)


async def add(client: Client, handed: Handed, target: Target) -> float | None:
    """Leave a schedule with the cluster.

    Returns:
        When it is due first (seconds since the epoch); None when it never is.

    Raises:
        CapacityError: there is one of that name.
        APIError: the cluster refuses its objects; nothing is left.
    """
    made: list[Mapping[str, Any]] = []
    try:
        for body in cron_jobs(handed, target):
            made.append((await client.create(CRONJOBS, body))["metadata"])
        for body in secrets(handed, made):
            await client.create(SECRETS, body)
        change: dict[str, Any] = {"spec": {"suspend": False}}
        for number, meta in enumerate(made):
            facts = {} if number else {"metadata": {"annotations": {labels.SCHEDULE_FACTS: handed.facts}}}
            await client.patch(CRONJOBS, meta["name"], change | facts)
    except BaseException as error:
        await asyncio.shield(_take_back(client, made))
        if isinstance(error, AlreadyExists):
            raise CapacityError(taken(handed.name)) from None
        raise
    return next_of(map(Cron, handed.cron), time.time())


def taken(name: str) -> str:
    """The sentence for a name that a schedule has."""
    return f"a run named {name} is scheduled; stop it with `lambdactl stop {name}`, or choose another name with -n."


async def _take_back(client: Client, made: list[Mapping[str, Any]]) -> None:
    for meta in made:
        await client.delete(CRONJOBS, meta["name"], uid=meta["uid"])


async def fetch(client: Client, key: str | None = None) -> list[RunStatus]:
    """The schedules of the namespace (or one, by name or id).

    Raises:
        APIError: the cluster cannot be asked. A user without the right to look at CronJobs has no schedules.
    """
    try:
        found = (await client.list(CRONJOBS, labels=_ALL)).items
    except Forbidden:
        return []
    groups: dict[str, Schedule] = {}
    for item in sorted(found, key=lambda item: len(item["metadata"]["name"])):
        name = _of(item)
        groups.setdefault(name, Schedule(name)).cron_jobs.append(item)
    chosen = [one for one in groups.values() if key in (None, one.name, one.id)]
    if not chosen:
        return []
    wanted = _ALL if len(chosen) > 1 else f"{labels.MANAGED},{labels.SCHEDULE}={chosen[0].name}"
    for resource, kept in ((JOBS, "jobs"), (PODS, "pods")):
        for item in (await client.list(resource, labels=wanted)).items:
            if _of(item) in groups:
                getattr(groups[_of(item)], kept).append(item)
    if any(one.waits_for_its_pod() for one in chosen):
        await _refusals(client, chosen)
    return [one.status(time.time()) for one in chosen]


async def _refusals(client: Client, schedules: list[Schedule]) -> None:
    """Why the Job controller may not make their pods."""
    said: dict[str, str] = defaultdict(str)
    for event in (await client.list(EVENTS, fields="involvedObject.kind=Job")).items:
        if event.get("reason") == "FailedCreate":
            said[str((event.get("involvedObject") or {}).get("name"))] = str(event.get("message") or "")
    for one in schedules:
        if one.newest is not None and (text := said.get(one.newest["metadata"]["name"])):
            refusal = explain_event(text, client.namespace)
            one.refusal = str(refusal) if refusal is not None else " ".join(text.split())[:300]


def _of(item: Mapping[str, Any]) -> str:
    return str((item["metadata"].get("labels") or {}).get(labels.SCHEDULE, ""))


async def remove(client: Client, name: str) -> bool:
    """Take a schedule back, with the pods that start its runs; the runs go on. True when there was one."""
    listing = await client.list(CRONJOBS, labels=f"{labels.MANAGED},{labels.SCHEDULE}={name}")
    for item in listing.items:
        meta = item["metadata"]
        await client.delete(CRONJOBS, meta["name"], uid=meta["uid"], propagation="Background")
    return bool(listing.items)


async def trees(client: Client) -> list[str] | None:
    """The names of what the namespace's schedules have in the files volume; None where that cannot be looked at."""
    try:
        found = (await client.list(CRONJOBS, labels=_ALL)).items
    except Forbidden:
        return None
    return sorted({tree for item in found for tree in Schedule(_of(item), [item]).trees})


async def tell(client: Client, name: str, at: float, message: str | None) -> None:
    """Write down what became of a time: None when a run was started, else why it was missed."""
    last = json.dumps({"at": at, "started": message is None, "message": message})
    with suppress(Forbidden):  # its pod's last words say the same
        await client.patch(CRONJOBS, cron_name(name), {"metadata": {"annotations": {labels.SCHEDULE_LAST: last}}})
