"""The fake's Job controller: Indexed and plain Jobs, failure and success policies, deadlines, suspension, TTL.

Source: the API reference of batch/v1 Job. As the real one does since 1.31, it names a failed or succeeded Job first
(FailureTarget, SuccessCriteriaMet), ends the pods, and gives the last word (Failed, Complete) when none is left.
"""

from __future__ import annotations

import copy
import time
import uuid
from calendar import timegm
from typing import Any

from lambdactl.backends.kubernetes.resources import JOBS, PODS

from .events import Events
from .server import ApiServer, owners
from .store import Object, Refused, now

INDEX = "batch.kubernetes.io/job-completion-index"
ENDED = ("Succeeded", "Failed")


class Jobs:
    """Reconciles all Jobs."""

    def __init__(self, server: ApiServer, events: Events) -> None:
        self.server, self.store, self.events = server, server.store, events
        self._retry: dict[str, float] = {}
        self._deadlines: dict[str, float] = {}
        # Pods that were deleted still count, as the real one's finalizer on pods sees to.
        self._lost: dict[str, list[Object]] = {}
        self.store.listeners.append(self._hear)

    def _hear(self, kind: str, plural: str, item: Object) -> None:
        if kind != "DELETED" or plural != "pods":
            return
        for reference in owners(item):
            job = self.store.find("jobs", item["metadata"]["namespace"], reference["name"])
            if job is None or job["metadata"]["uid"] != reference["uid"] or job["spec"].get("suspend"):
                continue
            if item["status"].get("phase") not in ENDED:
                item = {**item, "status": {**item["status"], "phase": "Failed"}}
            self._lost.setdefault(reference["uid"], []).append(item)

    def _pods(self, job: Object) -> list[Object]:
        """The Job's pods, those that were deleted among them."""
        present = [p for p in self.store.all("pods", job["metadata"]["namespace"]) if _owned(p, job)]
        return present + self._lost.get(job["metadata"]["uid"], [])

    def step(self) -> None:
        for job in self.store.all("jobs"):
            if "deletionTimestamp" not in job["metadata"]:
                self._sync(copy.deepcopy(job))

    def _sync(self, job: Object) -> None:
        if has(job, "Complete") or has(job, "Failed"):
            self._expire(job)
            return
        pods = self._pods(job)
        active = [p for p in pods if p["status"].get("phase") not in ENDED]
        if job["spec"].get("suspend"):
            self._suspend(job, active)
        else:
            self._start(job)
            if not has(job, "FailureTarget") and not has(job, "SuccessCriteriaMet"):
                self._judge(job, pods)
            if has(job, "FailureTarget") or has(job, "SuccessCriteriaMet"):
                self._finish(job, active)
            else:
                self._create(job, pods)
        self._count(job)
        self.store.update("jobs", job)

    def _start(self, job: Object) -> None:
        if has(job, "Suspended"):
            condition(job, "Suspended", "JobResumed", "Job resumed", status="False")
        if "startTime" not in job["status"]:
            job["status"]["startTime"] = now()
            self._deadlines[job["metadata"]["uid"]] = time.monotonic()

    def _suspend(self, job: Object, active: list[Object]) -> None:
        condition(job, "Suspended", "JobSuspended", "Job suspended")
        job["status"].pop("startTime", None)
        self._end(active)

    def _judge(self, job: Object, pods: list[Object]) -> None:
        """Whether the Job has failed or succeeded."""
        spec = job["spec"]
        failed = [p for p in pods if p["status"].get("phase") == "Failed"]
        started = self._deadlines.get(job["metadata"]["uid"])
        limit = spec.get("activeDeadlineSeconds")
        if limit and started is not None and time.monotonic() - started >= limit:
            condition(job, "FailureTarget", "DeadlineExceeded", "Job was active longer than specified deadline")
            return
        counted = 0
        for pod in failed:
            action, message = self._policy(job, pod)
            if action == "FailJob":
                condition(job, "FailureTarget", "PodFailurePolicy", message)
                return
            counted += action == "Count"
        if counted > spec.get("backoffLimit", 6):
            condition(job, "FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
            return
        done = _indexes(p for p in pods if p["status"].get("phase") == "Succeeded")
        for rule in (spec.get("successPolicy") or {}).get("rules") or []:
            wanted = (
                _range(rule["succeededIndexes"]) if rule.get("succeededIndexes") else set(range(spec["completions"]))
            )
            if len(done & wanted) >= (rule.get("succeededCount") or len(wanted)):
                condition(job, "SuccessCriteriaMet", "SuccessPolicy", "Matched rules at index 0")
                return
        total = len([p for p in pods if p["status"].get("phase") == "Succeeded"])
        if (len(done) if _indexed(job) else total) >= spec.get("completions", 1):
            condition(job, "SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods")

    def _policy(self, job: Object, pod: Object) -> tuple[str, str]:
        rules = (job["spec"].get("podFailurePolicy") or {}).get("rules") or []
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for number, rule in enumerate(rules):
            if codes := rule.get("onExitCodes"):
                for status in pod["status"].get("containerStatuses") or []:
                    code = ((status.get("state") or {}).get("terminated") or {}).get("exitCode", 0)
                    if codes.get("containerName") not in (None, status["name"]) or code == 0:
                        continue
                    if (code in codes["values"]) == (codes["operator"] == "In"):
                        what = f"Container {status['name']} for pod {name} failed with exit code {code}"
                        return rule["action"], f"{what} matching {rule['action']} rule at index {number}"
            wanted = {(c["type"], c.get("status", "True")) for c in rule.get("onPodConditions") or []}
            for found in pod["status"].get("conditions") or []:
                if (found["type"], found["status"]) in wanted:
                    what = f"Pod {name} has condition {found['type']}"
                    return rule["action"], f"{what} matching {rule['action']} rule at index {number}"
        return "Count", ""

    def _finish(self, job: Object, active: list[Object]) -> None:
        self._end(active)
        if active:
            return
        met = next(c for c in job["status"]["conditions"] if c["type"] in ("FailureTarget", "SuccessCriteriaMet"))
        kind = "Failed" if met["type"] == "FailureTarget" else "Complete"
        condition(job, kind, met["reason"], met["message"])
        if kind == "Complete":
            job["status"]["completionTime"] = now()
        name = met["reason"] if kind == "Failed" else "Completed"
        text = met["message"] if kind == "Failed" else "Job completed"
        self.events.tell(job, name, text, "job-controller", warning=kind == "Failed")

    def _end(self, pods: list[Object]) -> None:
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                self.server.delete(PODS, pod, {})

    def _create(self, job: Object, pods: list[Object]) -> None:
        spec, uid = job["spec"], job["metadata"]["uid"]
        if time.monotonic() < self._retry.get(uid, 0):
            return
        active = [p for p in pods if p["status"].get("phase") not in ENDED]
        done = [p for p in pods if p["status"].get("phase") == "Succeeded"]
        completions = spec.get("completions") or spec["parallelism"]
        taken = _indexes([*active, *done])
        free = (
            [index for index in range(completions) if index not in taken]
            if _indexed(job)
            else [None] * (completions - len(active) - len(done))
        )
        for index in free[: max(0, spec["parallelism"] - len(active))]:
            try:
                made = self.server.create(PODS, job["metadata"]["namespace"], _pod(job, index))
            except Refused as refused:
                self.events.tell(
                    job, "FailedCreate", f"Error creating: {refused.message}", "job-controller", warning=True
                )
                self._retry[uid] = time.monotonic() + 1.0
                return
            self.events.tell(job, "SuccessfulCreate", f"Created pod: {made['metadata']['name']}", "job-controller")

    def _count(self, job: Object) -> None:
        pods = self._pods(job)
        phases = [p["status"].get("phase") for p in pods]
        status = job["status"]
        status["active"] = sum(phase not in ENDED for phase in phases)
        status["ready"] = sum(
            c["type"] == "Ready" and c["status"] == "True" for p in pods for c in p["status"].get("conditions") or []
        )
        status["succeeded"] = max(phases.count("Succeeded"), status.get("succeeded", 0))
        status["failed"] = max(phases.count("Failed"), status.get("failed", 0))
        done = _indexes(p for p in pods if p["status"].get("phase") == "Succeeded")
        if _indexed(job) and done:
            status["completedIndexes"] = ",".join(str(index) for index in sorted(done))

    def _expire(self, job: Object) -> None:
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None:
            return
        last = next(c for c in job["status"]["conditions"] if c["type"] in ("Complete", "Failed"))
        ended = timegm(time.strptime(last["lastTransitionTime"], "%Y-%m-%dT%H:%M:%SZ"))
        if time.time() >= ended + ttl:
            self.server.delete(JOBS, job, {"propagationPolicy": "Background"})


def has(item: Object, kind: str) -> bool:
    conditions = (item.get("status") or {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def condition(item: Object, kind: str, reason: str, message: str, *, status: str = "True") -> None:
    conditions = item.setdefault("status", {}).setdefault("conditions", [])
    for old in conditions:
        if old["type"] == kind:
            if old["status"] == status:
                return
            conditions.remove(old)
            break
    conditions.append(
        {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now(),
         "lastProbeTime": now()}
    )  # fmt: skip


def _indexed(job: Object) -> bool:
    return job["spec"].get("completionMode") == "Indexed"


def _owned(pod: Object, job: Object) -> bool:
    return any(reference["uid"] == job["metadata"]["uid"] for reference in owners(pod))


def _indexes(pods: Any) -> set[int]:
    return {int(p["metadata"]["labels"][INDEX]) for p in pods if INDEX in (p["metadata"].get("labels") or {})}


def _range(text: str) -> set[int]:
    """``0,2-4``."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


def _pod(job: Object, index: int | None) -> Object:
    metadata, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
    labels = {
        **((template.get("metadata") or {}).get("labels") or {}), "batch.kubernetes.io/job-name": metadata["name"],
        "batch.kubernetes.io/controller-uid": metadata["uid"], "job-name": metadata["name"],
        "controller-uid": metadata["uid"],
    }  # fmt: skip
    annotations = dict((template.get("metadata") or {}).get("annotations") or {})
    spec, name = template["spec"], f"{metadata['name']}-{uuid.uuid4().hex[:5]}"
    if index is not None:
        labels[INDEX] = annotations[INDEX] = str(index)
        name = f"{metadata['name']}-{index}-{uuid.uuid4().hex[:5]}"
        spec.setdefault("hostname", f"{metadata['name']}-{index}")
        for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
            container.setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "value": str(index)})
    owner = {
        "apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"], "controller": True,
        "blockOwnerDeletion": True,
    }  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": name, "labels": labels, "annotations": annotations, "ownerReferences": [owner]},
    }  # fmt: skip
