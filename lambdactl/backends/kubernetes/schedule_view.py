"""What a schedule's CronJobs, their Jobs and pods say of its next and its last time, in one sentence. Pure."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lambdactl.node.cron import Cron, last_of, next_of
from lambdactl.node.errors import NodeError
from lambdactl.run.status import RunStatus

from .labels import SCHEDULE_FACTS, SCHEDULE_LAST
from .podstate import condition, container, moment, running, waiting_for

SETTLED = 60.0
"""Seconds after a time in which the CronJob controller may still serve it (it looks at least every 10 s)."""
_NO_PROGRAM = re.compile(r"executable file not found|no such file or directory|exec: lambdactl: not found")
_DIGEST = re.compile(r"[0-9a-f]{64}")
Object = dict[str, Any]


@dataclass(slots=True)
class Schedule:
    """One schedule, as it is put together from lists.

    Attributes:
        cron_jobs: one for each expression, the first one first.
        jobs, pods: what they have made; a Job starts one run.
        refusal: why the newest Job may not make its pod, as far as that is known.
    """

    name: str
    cron_jobs: list[Object] = field(default_factory=list)
    jobs: list[Object] = field(default_factory=list)
    pods: list[Object] = field(default_factory=list)
    refusal: str | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was handed over; empty where that was not finished."""
        return _annotation(self.cron_jobs, SCHEDULE_FACTS)

    @property
    def trees(self) -> list[str]:
        """The names of what its runs take from the files volume."""
        return [tree for tree in map(str, self.facts.get("trees") or ()) if _DIGEST.fullmatch(tree)]

    @property
    def id(self) -> str:
        """Its id, as runs have one."""
        return str(self.facts.get("id") or self.cron_jobs[0]["metadata"]["uid"])

    @property
    def newest(self) -> Object | None:
        """The Job of the last time that the cluster has served; on some days only Kubernetes takes it to be due."""
        crons = self.crons
        due = (job for job in self.jobs if _by_hand(job) or any(cron.matches(scheduled_at(job)) for cron in crons))
        return max(due, key=scheduled_at, default=None)

    @property
    def crons(self) -> list[Cron]:
        """Its expressions; what somebody else has written there and is none, is never due."""
        found = []
        for text in self.facts.get("cron") or ():
            with suppress(NodeError):
                found.append(Cron(text))
        return found

    def waits_for_its_pod(self) -> bool:
        """Whether the newest Job is active, and has no pod."""
        return self.newest is not None and not _ended(self.newest) and self._pod() is None

    def status(self, now: float) -> RunStatus:
        """As a run that has rank 0 only, in the state `scheduled`."""
        facts = self.facts
        crons = self.crons
        paused = any((one.get("spec") or {}).get("suspend") for one in self.cron_jobs)
        due = None if paused else next_of(crons, now)
        born = facts.get("submitted_at") or moment(self.cron_jobs[0]["metadata"].get("creationTimestamp")) or now
        text = self._sentence(crons, due, float(born), now)
        rank = {
            "rank": 0, "node": "-", "state": "scheduled", "message": text, "next_at": due, "exit_code": None,
            "cron": list(facts.get("cron") or ()),
        }  # fmt: skip
        return RunStatus(
            self.id, self.name, "scheduled", (rank,), int(facts.get("nodes") or 1), float(born),
            str(facts.get("owner") or "-"), message=text,
        )  # fmt: skip

    def _sentence(self, crons: list[Cron], due: float | None, born: float, now: float) -> str:
        if not self.facts:
            return f"was not handed over whole; `lambdactl stop {self.name}` removes it"
        if any((one.get("spec") or {}).get("suspend") for one in self.cron_jobs):
            text = "is suspended in the cluster (`kubectl patch cronjob`)"
        else:
            text = "is never due" if due is None else f"next at {_utc(due)}"
        last = self._last(crons, born, now)
        return text if last is None else f"{text}; {last}"

    def _last(self, crons: list[Cron], born: float, now: float) -> str | None:
        said = _annotation(self.cron_jobs, SCHEDULE_LAST)
        job = self.newest
        at = max(float(said.get("at") or 0.0), 0.0 if job is None else scheduled_at(job))
        skipped = last_of(crons, now - SETTLED)
        if skipped is not None and skipped > max(at, born):
            return f"was missed at {_utc(skipped)}: {self._why_skipped(job, skipped)}"
        if job is not None and scheduled_at(job) > float(said.get("at") or 0.0):
            return self._unsaid(job)
        return _told(said, at) if said else None

    def _why_skipped(self, job: Object | None, at: float) -> str:
        busy = job is not None and (not _ended(job) or _end(job) > at)
        if not busy:
            return "the cluster did not serve that time (its CronJob controller was away, or the CronJob suspended)"
        return "the run before had not ended" if job and self._trouble(job) is None else f"{self._trouble(job or {})}"

    def _unsaid(self, job: Object) -> str | None:
        """What became of a time of which the pod has written nothing down: yet, or for ever."""
        at, trouble = scheduled_at(job), self._trouble(job)
        if trouble is not None:
            return f"was missed at {_utc(at)}: {trouble}"
        pod = self._pod()
        if pod is None or not (running(pod) or _ended(job)):
            return f"is being started since {_utc(at)}"
        words = _words(pod)
        return _told(words, at) if words is not None else f"was started at {_utc(at)}"

    def _trouble(self, job: Object) -> str | None:
        """Why the pod that should start the run cannot, or could not."""
        if self.refusal is not None:
            return f"the pod that starts it cannot be made: {self.refusal.rstrip('.')}"
        pod = self._pod()
        if pod is None:
            return "the pod that started it is gone" if _ended(job) and condition(job, "Failed") else None
        ended = (container(pod).get("state") or {}).get("terminated")
        if not ended:
            why = None if running(pod) or not _blocked(pod) else waiting_for(pod)
            return None if why is None else f"the pod that starts it does not start: {why}{_hint(why)}"
        if not ended.get("exitCode") or _words(pod) is not None:
            return None
        text = " ".join(str(ended.get("message") or "").split())
        if ended.get("exitCode") == 127 or _NO_PROGRAM.search(text):
            image = container(pod).get("image") or (pod["spec"]["containers"] or [{}])[0].get("image")
            return (
                f"the image {image} has no lambdactl in it; build it from images/Dockerfile, or name one that has as "
                "`controller_image` in the configuration"
            )
        if condition(pod, "DisruptionTarget") is not None:
            return "the pod that started it was taken away (drain, eviction)"
        return f"the pod that starts it ended with code {ended.get('exitCode')}: {text[-300:] or 'without a word'}"

    def _pod(self) -> Object | None:
        job = self.newest
        uid = None if job is None else job["metadata"]["uid"]
        mine = [pod for pod in self.pods if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences") or ())]
        return mine[0] if mine else None


def scheduled_at(job: Mapping[str, Any]) -> float:
    """The time that a Job stands for: the CronJob controller writes its minute behind the CronJob's name."""
    return minute_of(str(job["metadata"]["name"])) or moment(job["metadata"].get("creationTimestamp")) or 0.0


def minute_of(job_name: str) -> float | None:
    """The time of a Job's name; None for one that a person has made (`kubectl create job --from`)."""
    match = re.search(r"-cron(?:-\d{1,3})?-(\d{7,10})$", job_name)
    return int(match[1]) * 60.0 if match else None


def _by_hand(job: Mapping[str, Any]) -> bool:
    return minute_of(str(job["metadata"]["name"])) is None


def _told(said: Mapping[str, Any], at: float) -> str:
    if said.get("started"):
        return f"was started at {_utc(at)}"
    return f"was missed at {_utc(at)}: {str(said.get('message') or 'no reason given').rstrip('.')}"


def _words(pod: Object) -> Mapping[str, Any] | None:
    """The last words of the pod, as `lambdactl scheduled` writes them."""
    text = str(((container(pod).get("state") or {}).get("terminated") or {}).get("message") or "")
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "started" in found else None


def _blocked(pod: Object) -> bool:
    """Whether it is more than young: it has no place, or its container waits for something that went wrong."""
    waiting = (container(pod).get("state") or {}).get("waiting") or {}
    return condition(pod, "PodScheduled", "False") is not None or waiting.get("reason") not in (
        None, "ContainerCreating", "PodInitializing",
    )  # fmt: skip


def _hint(why: str) -> str:
    return "; name one that the nodes can pull as `controller_image`" if why.startswith("its image") else ""


def _annotation(cron_jobs: list[Object], name: str) -> Mapping[str, Any]:
    text = (cron_jobs[0]["metadata"].get("annotations") or {}).get(name) if cron_jobs else None
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _ended(job: Mapping[str, Any]) -> bool:
    return bool(condition(job, "Complete") or condition(job, "Failed"))


def _end(job: Mapping[str, Any]) -> float:
    found = condition(job, "Complete") or condition(job, "Failed") or {}
    return moment(found.get("lastTransitionTime")) or 0.0


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
