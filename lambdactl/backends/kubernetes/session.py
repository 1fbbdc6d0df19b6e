"""One run under watch: its Job, its pods and their events, each by one watch, put together in a RunView."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from . import labels
from .client import Client
from .errors import APIError, explain_event
from .resources import EVENTS, JOBS, PODS
from .view import RunView
from .watched import Watch, Watched
from .watching import DELETED

# Events that say what a rank waits for, in our words; other warnings are shown as they are.
_PROGRESS = {
    "Pulling": "pulls its image",
    "Pulled": "has its image",
    "Scheduled": "is being prepared",
}
_NOTHING_NEW = frozenset(
    {"Created", "Started", "Killing", "BackOff", "Failed", "FailedScheduling", "Unhealthy", "MissingClusterDNS"}
)


class RunSession(Watched):
    """A run that is watched; `view` is always what was heard last."""

    def __init__(self, client: Client, run_id: str, job_name: str) -> None:
        super().__init__(client)
        self.run_id = run_id
        self.job_name = job_name
        self.view = RunView()
        self.refusal: APIError | None = None

    async def until(self, condition: Callable[[RunView], Any], *, timeout: float | None = None) -> bool:
        """Wait until the view meets a condition; False when `timeout` seconds were not enough.

        Raises:
            APIError: a watch has failed for good.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition(self.view):
                    await self._next_change()
                return True
        return False

    def _take_job(self, kind: str, job: dict[str, Any]) -> None:
        if kind == DELETED:
            self.view.lose_job(job)
        else:
            self.view.see_job(job)

    def _take_pod(self, kind: str, pod: dict[str, Any]) -> None:
        if kind == DELETED:
            self.view.lose_pod(pod)
        else:
            self.view.see_pod(_trimmed(pod))

    def _take_event(self, kind: str, event: dict[str, Any]) -> None:
        about = event.get("involvedObject") or {}
        name, reason, text = str(about.get("name")), str(event.get("reason")), str(event.get("message") or "")
        if kind == DELETED:
            return
        if about.get("kind") == "Job" and reason == "FailedCreate":
            if (job := self.view.jobs.get(name)) is not None and about.get("uid") in (None, "", job["metadata"]["uid"]):
                self.refusal = explain_event(text, self.client.namespace) or self.refusal
        elif about.get("kind") == "Pod" and (rank := self._rank_named(name)) is not None:
            pod = self.view.pods.get(rank)
            if pod is not None and pod["metadata"]["uid"] != about.get("uid"):
                return
            if reason in _PROGRESS:
                self.view.remarks[rank] = _PROGRESS[reason]
            elif event.get("type") == "Warning" and reason not in _NOTHING_NEW:
                self.view.remarks[rank] = f"{reason}: {' '.join(text.split())[:300]}"

    def _rank_named(self, pod: str) -> int | None:
        """Also before the Job has been seen."""
        match = re.fullmatch(rf"{re.escape(self.job_name)}-(\d+)-\w+", pod)
        return int(match.group(1)) if match else self.view.rank_named(pod)


@asynccontextmanager
async def open_session(client: Client, run_id: str, job_name: str) -> AsyncIterator[RunSession]:
    """Watch a run; what exists already has been seen when this enters.

    Raises:
        APIError: the API refuses, or cannot be reached.
    """
    session = RunSession(client, run_id, job_name)
    run = f"{labels.RUN_ID}={run_id}"
    watches = [
        Watch(JOBS, session._take_job, labels=run, first=True),
        Watch(PODS, session._take_pod, labels=run, first=True),
        Watch(EVENTS, session._take_event, fields="involvedObject.kind=Pod"),
        Watch(EVENTS, session._take_event, fields="involvedObject.kind=Job"),
    ]
    async with session.watching(watches):
        yield session


def _trimmed(pod: dict[str, Any]) -> dict[str, Any]:
    """Without what nobody asks of a pod, because a large run has hundreds of them."""
    spec = pod.get("spec") or {}
    kept = {
        "nodeName": spec.get("nodeName"),
        "containers": [{key: c.get(key) for key in ("name", "image")} for c in spec.get("containers") or ()],
    }
    if labels.rank_of(pod) is None:
        return pod
    return {"metadata": pod["metadata"], "spec": kept, "status": pod.get("status") or {}}
