"""What lambdactl has left in a namespace and nobody needs any more: found by its label, each with the reason.

Kubernetes removes most of it by itself: what a Job owns goes with the Job, and a finished Job after a day. What stays
is what was kept (`--keep`), what nobody has followed, and what a machine that died in the middle has left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .client import open_client
from .errors import Forbidden
from .labels import KUEUE_QUEUE, MANAGED, RUN, RUN_ID, SCHEDULE, SCHEDULE_FACTS, SERVICE, SERVICE_FACTS, is_part
from .podstate import condition, moment
from .proxy_objects import SELECTOR as PROXIES
from .resources import CONFIGMAPS, CRONJOBS, DEPLOYMENTS, JOBS, PODS, SECRETS, SERVICES, Resource
from .service_model import annotation
from .view import RunView, view_of

if TYPE_CHECKING:
    from .client import Client
    from .fleet import KubeFleet

KINDS = (SERVICES, CONFIGMAPS, SECRETS, PODS)
"""Besides Jobs and the services' proxy. The jump pod's objects belong to its Deployment, which goes with the last
user's key (`jump`)."""
NEVER_RELEASED = 3600.0
"""Seconds after which a Job that nobody has released counts as left by a machine that went away."""


@dataclass(frozen=True, slots=True)
class Stray:
    """Something that nobody looks after.

    Attributes:
        cluster: the target's name.
        why: a clause such as "its run has ended (3 h ago)".
    """

    cluster: str
    resource: Resource
    name: str
    uid: str
    why: str

    @property
    def title(self) -> str:
        """As kubectl writes it."""
        return f"{self.resource.full_name}/{self.name}"


@dataclass(slots=True)
class Strays:
    """What was found: the strays, the runs and services that are active, and the ids of all runs that are there."""

    objects: list[Stray] = field(default_factory=list)
    active: list[str] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)


async def strays(fleet: KubeFleet, *, older_than: float | None = None, now: float | None = None) -> Strays:
    """What is left in the fleet's namespaces.

    Args:
        older_than: only what is left for so many seconds, and nothing that was kept; None: everything that is not
            active, as before the fleet is forgotten.

    Raises:
        APIError: a cluster refuses, or cannot be reached.
    """
    found = Strays()
    for target in fleet.targets:
        async with open_client(target) as client:
            await _Look(target.name, found, older_than, time.time() if now is None else now).run(client)
    found.active = sorted(set(found.active))
    return found


class _Look:
    def __init__(self, cluster: str, found: Strays, older_than: float | None, now: float) -> None:
        self._cluster, self._found, self._older_than, self._now = cluster, found, older_than, now

    async def run(self, client: Client) -> None:
        cron_jobs = await _scheduled(client)
        # The first of a schedule's CronJobs has its facts, as soon as all is made.
        whole = {
            _label(one, SCHEDULE) for one in cron_jobs if SCHEDULE_FACTS in (one["metadata"].get("annotations") or {})
        }
        for cron_job in cron_jobs:
            # Before the fleet is forgotten it goes with the rest; else it is at work until it is stopped.
            born = moment(cron_job["metadata"].get("creationTimestamp"))
            if self._older_than is None:
                self._add(CRONJOBS, cron_job, f"is a schedule of {_label(cron_job, SCHEDULE)}", born)
            elif _label(cron_job, SCHEDULE) not in whole:
                self._add(CRONJOBS, cron_job, "was not handed over whole", born)
        deployments = await _list(client, DEPLOYMENTS, f"{MANAGED},{SERVICE}")
        services = {_label(item, SERVICE) for item in deployments}
        if not any(annotation(item, SERVICE_FACTS).get("proxy") for item in deployments):
            for item in await _list(client, DEPLOYMENTS, PROXIES):
                born = moment(item["metadata"].get("creationTimestamp"))
                self._add(DEPLOYMENTS, item, "no service needs it any more", born)
        self._found.active += services
        jobs = await _list(client, JOBS, MANAGED)
        self._found.runs |= {_label(job, RUN_ID) for job in jobs}
        for job in jobs:
            if not _label(job, SCHEDULE) and not is_part(job):  # those go with their CronJob, or with the first part
                others = [one for one in jobs if is_part(one) and _label(one, RUN_ID) == _label(job, RUN_ID)]
                self._job(job, view_of(job, [], others))
        for resource in KINDS:
            for item in await _list(client, resource, MANAGED):
                meta = item["metadata"]
                # What is owned goes with its owner.
                if meta.get("ownerReferences") or meta.get("deletionTimestamp") or _label(item, SERVICE) in services:
                    continue
                run = _label(item, RUN) or _label(item, SERVICE) or _label(item, SCHEDULE)
                why = f"is of {run}, which is gone" if run else "belongs to no run"
                self._add(resource, item, why, moment(meta.get("creationTimestamp")))

    def _job(self, job: dict[str, Any], view: RunView) -> None:
        meta = job["metadata"]
        if meta.get("deletionTimestamp"):
            return
        whole = view.job or job
        ended = condition(whole, "Complete") or condition(whole, "Failed")
        if ended is not None:
            since = moment(ended.get("lastTransitionTime"))
            if self._older_than is None or (not view.facts.get("keep") and view.retry is None):
                self._add(JOBS, job, "its run has ended", since)
            return
        born = moment(meta.get("creationTimestamp"))
        queued = KUEUE_QUEUE in (meta.get("labels") or {})
        if view.suspended and not queued and self._now - (born or self._now) > NEVER_RELEASED:
            self._add(JOBS, job, "its controller died before the start", born)
        else:
            self._found.active.append(_label(job, RUN) or str(meta["name"]))

    def _add(self, resource: Resource, item: dict[str, Any], why: str, since: float | None) -> None:
        age = self._now - (since or self._now)
        if self._older_than is not None and age < self._older_than:
            return
        meta = item["metadata"]
        self._found.objects.append(
            Stray(self._cluster, resource, str(meta["name"]), str(meta["uid"]), f"{why} ({_ago(age)})")
        )


async def _scheduled(client: Client) -> list[dict[str, Any]]:
    """The CronJobs; none where the user has not got the right to them."""
    try:
        return await _list(client, CRONJOBS, f"{MANAGED},{SCHEDULE}")
    except Forbidden:
        return []


async def _list(client: Client, resource: Resource, labels: str) -> list[dict[str, Any]]:
    return (await client.list(resource, labels=labels)).items


def _label(item: dict[str, Any], name: str) -> str:
    return str((item["metadata"].get("labels") or {}).get(name, ""))


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{int(max(0, seconds))} s ago"


async def remove(fleet: KubeFleet, found: Strays) -> None:
    """Delete these very objects (by uid), and no later ones of their names."""
    for target in fleet.targets:
        async with open_client(target) as client:
            for stray in found.objects:
                if stray.cluster == target.name:
                    await client.delete(stray.resource, stray.name, uid=stray.uid)
