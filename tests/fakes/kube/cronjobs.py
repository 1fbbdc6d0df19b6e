"""The fake's CronJob controller: Jobs at set times, one after another (Forbid), with deadlines and a short history.

Source: the API reference of batch/v1 CronJob, and pkg/controller/cronjob of Kubernetes. Nothing is due by the clock: a
test says when a CronJob is (`FakeCluster.fire`).
"""

from __future__ import annotations

import copy
import time

from lambdactl.backends.kubernetes.resources import JOBS

from .events import Events
from .jobs import has
from .server import ApiServer, owners
from .store import Object, Refused, now


class CronJobs:
    """Makes the Jobs that are due, and removes old ones."""

    def __init__(self, server: ApiServer, events: Events) -> None:
        self.server, self.store, self.events = server, server.store, events

    def fire(self, name: str, namespace: str, at: float | None = None) -> str | None:
        """Let a CronJob be due in the minute of `at` (now); the Job's name, None where it is skipped."""
        item = self.store.find("cronjobs", namespace, name)
        if item is None or item["spec"].get("suspend") or "deletionTimestamp" in item["metadata"]:
            return None
        minute = int((time.time() if at is None else at) // 60)
        if item["spec"].get("concurrencyPolicy") == "Forbid" and any(_active(job) for job in self._jobs(item)):
            self.events.tell(
                item, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy "
                "is Forbid", "cronjob-controller",
            )  # fmt: skip
            return None
        template = copy.deepcopy(item["spec"]["jobTemplate"])
        owner = {
            "apiVersion": "batch/v1", "kind": "CronJob", "name": name, "uid": item["metadata"]["uid"],
            "controller": True, "blockOwnerDeletion": True,
        }  # fmt: skip
        metadata = {**(template.get("metadata") or {}), "name": f"{name}-{minute}", "ownerReferences": [owner]}
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(minute * 60))
        metadata["annotations"] = {"batch.kubernetes.io/cronjob-scheduled-timestamp": stamp}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]}
        try:
            made = self.server.create(JOBS, namespace, job)
        except Refused as refused:
            self.events.tell(item, "FailedCreate", f"Error creating job: {refused.message}", "cronjob-controller")
            return None
        changed = copy.deepcopy(item)
        changed.setdefault("status", {})["lastScheduleTime"] = stamp
        self.store.update("cronjobs", changed)
        return str(made["metadata"]["name"])

    def step(self) -> None:
        """What is active, and which Jobs are too old to be kept."""
        for item in self.store.all("cronjobs"):
            jobs = self._jobs(item)
            active = [{"kind": "Job", "name": job["metadata"]["name"]} for job in jobs if _active(job)]
            if active != (item.get("status") or {}).get("active", []):
                changed = copy.deepcopy(item)
                changed.setdefault("status", {})["active"] = active
                if not active:
                    changed["status"]["lastSuccessfulTime"] = now()
                self.store.update("cronjobs", changed)
            for kind, limit in (("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")):
                ended = sorted((job for job in jobs if has(job, kind)), key=lambda job: str(job["metadata"]["name"]))
                for job in ended[: max(0, len(ended) - item["spec"].get(limit, 1))]:
                    self.server.delete(JOBS, job, {"propagationPolicy": "Background"})

    def _jobs(self, item: Object) -> list[Object]:
        uid = item["metadata"]["uid"]
        every = self.store.all("jobs", item["metadata"]["namespace"])
        return [job for job in every if any(reference["uid"] == uid for reference in owners(job))]


def _active(job: Object) -> bool:
    return not has(job, "Complete") and not has(job, "Failed")
