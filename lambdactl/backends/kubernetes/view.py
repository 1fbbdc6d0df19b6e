"""One run as the API has told it so far: its Job, the newest pod of each rank, and their ends. No requests here."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lambdactl.run.placement import clock
from lambdactl.run.status import RunStatus, exit_code

from . import labels, parts
from .labels import RUN_FACTS
from .model import OWNER, RETRY, STOP
from .podstate import (
    WAITS_FOR_OTHERS,
    Pod,
    begun,
    commands_started,
    condition,
    given_up,
    moment,
    outcome,
    up_at,
    waiting_for,
)

_ENDED = ("Succeeded", "Failed")
# Of a pod that is gone when somebody looks: the Job only says that its end was a disruption.
TAKEN_AWAY = "its pod was taken away from its node (drained, preempted, or deleted)"


class RunView:
    """Fed by watches (`see_job`, `see_pod`, `lose_job`, `lose_pod`); answers with the words of runs on SSH hosts."""

    def __init__(self) -> None:
        self.job: dict[str, Any] | None = None
        self.jobs: dict[str, dict[str, Any]] = {}
        self.job_gone = False
        self.pods: dict[int, dict[str, Any]] = {}
        self.gone: set[int] = set()
        self.remarks: dict[int, str] = {}
        self._deleted_alive: set[str] = set()

    # What the watches say

    def see_job(self, job: dict[str, Any]) -> None:
        """The Job, or one of the run's several, is there, in this state."""
        self.jobs[job["metadata"]["name"]] = job
        if not labels.is_part(job):
            self.job, self.job_gone = job, False
        self._combine()

    def lose_job(self, job: Mapping[str, Any] | None = None) -> None:
        """The Job was deleted; its last state is kept. One of several that is gone before the others is a failure."""
        known = None if job is None else self.jobs.get(job["metadata"]["name"])
        if known is None or not labels.is_part(known):
            self.job_gone = True
        elif not parts.finished(known):
            known["status"] = (known.get("status") or {}) | {"conditions": [parts.DELETED]}
            self._combine()

    def _combine(self) -> None:
        own = next((job for job in self.jobs.values() if not labels.is_part(job)), None)
        if own is not None:
            self.job = own
            ignore = self.facts.get("on_node_failure") == "ignore"
            self.job = parts.combined(own, [job for job in self.jobs.values() if job is not own], ignore=ignore)

    @property
    def job_names(self) -> list[str]:
        """The run's Jobs, that of rank 0 last."""
        return sorted(self.jobs, key=lambda name: -labels.first_rank(self.jobs[name]))

    @property
    def lagging(self) -> list[str]:
        """The Jobs that the machine which follows the run has to end (parts.py)."""
        return [] if self.job is None or self.job_gone else parts.lagging(self.job, list(self.jobs.values()))

    def rank_named(self, pod: str) -> int | None:
        """The rank of a pod of that name; None where it is not of this run."""
        for name, job in self.jobs.items():
            if match := re.fullmatch(rf"{re.escape(name)}-(\d+)-[a-z0-9]{{5}}", pod):
                return labels.first_rank(job) + int(match.group(1))
        return None

    def see_pod(self, pod: dict[str, Any]) -> None:
        """A pod of the run is there, in this state."""
        rank = labels.rank_of(pod)
        if rank is None:
            return
        if pod["metadata"].get("deletionTimestamp") and (pod.get("status") or {}).get("phase") not in _ENDED:
            self._deleted_alive.add(pod["metadata"]["uid"])
        known = self.pods.get(rank)
        if known is None or known["metadata"]["uid"] == pod["metadata"]["uid"] or rank in self.gone:
            self.pods[rank] = pod
            self.gone.discard(rank)

    def lose_pod(self, pod: Mapping[str, Any]) -> None:
        """A pod was deleted; its last state is kept."""
        for rank, known in self.pods.items():
            if known["metadata"]["uid"] == pod["metadata"]["uid"]:
                self.gone.add(rank)
                if (pod.get("status") or {}).get("phase") in _ENDED:
                    self.pods[rank] = dict(pod)

    # What the run is

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that the submitting machine left in the Job."""
        text = self._annotations.get(RUN_FACTS)
        try:
            found = json.loads(text or "{}")
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    @property
    def _annotations(self) -> Mapping[str, str]:
        return ((self.job or {}).get("metadata") or {}).get("annotations") or {}

    @property
    def nodes(self) -> int:
        """How many ranks there shall be."""
        told = self.facts.get("nodes") or ((self.job or {}).get("spec") or {}).get("completions")
        return int(told or len(self.pods) or 1)

    @property
    def suspended(self) -> bool:
        """Whether nobody has let the Job's pods be made."""
        return bool(((self.job or {}).get("spec") or {}).get("suspend"))

    @property
    def stop_order(self) -> dict[str, Any] | None:
        """Why somebody wants it to end, once somebody does."""
        if text := self._annotations.get(STOP):
            try:
                found = json.loads(text)
            except ValueError:
                found = {}
            return found if isinstance(found, dict) else {}
        deleted = self.job_gone or ((self.job or {}).get("metadata") or {}).get("deletionTimestamp")
        if deleted and not self.ended:
            return {"reason": "stopped-by-user", "message": "its Job was deleted"}
        return None

    def _job_condition(self, *kinds: str) -> Mapping[str, Any] | None:
        found = (condition(self.job or {}, kind) for kind in kinds)
        return next((one for one in found if one is not None), None)

    @property
    def ended(self) -> bool:
        """Whether Kubernetes calls the Job finished."""
        return self._job_condition("Complete", "Failed") is not None

    @property
    def active(self) -> list[int]:
        """Ranks whose pods may still execute something."""
        return [
            rank
            for rank, pod in sorted(self.pods.items())
            if rank not in self.gone and (pod.get("status") or {}).get("phase") not in _ENDED and not given_up(pod)
        ]

    @property
    def final(self) -> bool:
        """Whether the run is over and nothing of it executes any more."""
        return (self.ended or self.job_gone) and not self.active

    def pod_of(self, rank: int) -> dict[str, Any] | None:
        """The rank's newest pod that is there."""
        return None if rank in self.gone else self.pods.get(rank)

    def log_readable(self, rank: int) -> bool:
        """Whether the rank has something that can be read as a log."""
        pod = self.pods.get(rank)
        return pod is not None and begun(pod)

    # In the words of runs

    def _outcome(self, rank: int) -> dict[str, Any]:
        """How a rank has ended; commands that our own stop signal ended did so because somebody deleted the pod."""
        pod = self.pods[rank]
        end = outcome(pod)
        deleted = pod["metadata"]["uid"] in self._deleted_alive
        if deleted and end["exit_code"] and end["reason"] in ("signalled", "exited"):
            return end | {"reason": "disrupted", "message": "its pod was deleted"}
        return end

    def rank_state(self, rank: int) -> dict[str, Any]:
        """The RankState of a rank (docs/architecture.md), as far as Kubernetes knows it."""
        pod = self.pods.get(rank)
        value: dict[str, Any] = {
            "run_id": self.run_id, "run_name": self.run_name, "rank": rank, "nodes_num": self.nodes, "node": "-",
            "state": "waiting", "reason": None, "message": self.remarks.get(rank), "exit_code": None,
            "started_at": None, "ready_at": None, "finished_at": None,
            "ports": (self.facts.get("ports") or {}).get(str(rank)) or [],
        }  # fmt: skip
        if (dev := self.facts.get("dev")) is not None:
            value["dev"] = dev | {"up_at": None if pod is None else up_at(pod)}
        if pod is None:
            return value | self._without_pod(rank)
        status = pod.get("status") or {}
        state = ((status.get("containerStatuses") or [{}])[0].get("state")) or {}
        value["node"] = (pod.get("spec") or {}).get("nodeName") or "-"
        value["pod"] = pod["metadata"]["name"]
        value["ip"] = status.get("podIP")
        value["started_at"] = moment(
            (state.get("running") or {}).get("startedAt") or (state.get("terminated") or {}).get("startedAt")
        )
        value["ready_at"] = value["started_at"] if commands_started(pod) else None
        if status.get("phase") in _ENDED or "terminated" in state:
            return value | self._ended_as(rank, self._outcome(rank))
        if rank in self.gone:
            return value | self._ended_as(rank, self._vanished())
        if pod["metadata"].get("deletionTimestamp"):
            return value | {"state": "stopping", "message": self._order_message()}
        if commands_started(pod):
            return value | {"state": "running", "message": None}
        return value | {"message": waiting_for(pod, self.remarks.get(rank))}

    def _without_pod(self, rank: int) -> dict[str, Any]:
        """A rank that has no pod: none was made, or its pod went with its node, or with the end of the run."""
        if rank == self.first_failed:
            return {"state": "failed", "reason": "disrupted", "message": TAKEN_AWAY}
        if self.ended or self.job_gone or self.stop_order is not None:
            if ((self.job or {}).get("status") or {}).get("startTime"):
                return self._order() or {"state": "stopped", "reason": "gang-failed", "message": None}
            return {"state": "stopped", "reason": "gang-failed", "message": "was not started"}
        if self.suspended:
            queue = ((self.job or {}).get("metadata") or {}).get("labels", {}).get(labels.KUEUE_QUEUE)
            return {"message": f"waits for Kueue's queue {queue}" if queue else "is not released yet"}
        return {}

    def _ended_as(self, rank: int, found: dict[str, Any]) -> dict[str, Any]:
        """A rank that was ended because the whole run was is no failure of its own."""
        if found["state"] != "failed" or rank == self.first_failed:
            return found
        order = self._order()
        if order is None or not self.pods[rank]["metadata"].get("deletionTimestamp"):
            return found
        return found | order

    def _order(self) -> dict[str, Any] | None:
        """What ends ranks that have not ended by themselves."""
        if (order := self.stop_order) is not None:
            return {"state": "stopped", "reason": order.get("reason"), "message": order.get("message")}
        if self._job_condition("SuccessCriteriaMet", "Complete") is not None:
            return {"state": "done", "reason": "master-done", "message": None}
        if (failure := self._job_condition("Failed", "FailureTarget")) is not None:
            if failure.get("reason") == "DeadlineExceeded":
                return {"state": "failed", "reason": "max-duration", "exit_code": 124, "message": self._out_of_time()}
            return {"state": "stopped", "reason": "gang-failed", "message": None}
        return None

    def _order_message(self) -> str | None:
        return (self._order() or {}).get("message")

    def _vanished(self) -> dict[str, Any]:
        blank = {"exit_code": None, "finished_at": None}
        return blank | (self._order() or {"state": "failed", "reason": "disrupted", "message": "its pod was deleted"})

    @property
    def first_failed(self) -> int | None:
        """The rank whose end made the Job fail: the one that its condition names, else the first in time."""
        failure = self._job_condition("Failed", "FailureTarget")
        if failure is None or failure.get("reason") == "DeadlineExceeded":
            return None
        words = re.findall(r"[a-z0-9-]+", str(failure.get("message") or ""))
        named = next((rank for word in words if (rank := self.rank_named(word)) is not None), None)
        if named is not None:
            return named
        failed = []
        for rank, pod in self.pods.items():
            if (pod.get("status") or {}).get("phase") == "Failed":
                end = outcome(pod)
                failed.append((bool(pod["metadata"].get("deletionTimestamp")), end["finished_at"] or 0.0, rank))
        return min(failed)[2] if failed else None

    def _out_of_time(self) -> str:
        seconds = self.facts.get("max_duration")
        return "max_duration is over" if seconds is None else f"max_duration of {seconds:g} s is over"

    @property
    def run_id(self) -> str:
        """The run's UUID."""
        return str(((self.job or {}).get("metadata") or {}).get("labels", {}).get(labels.RUN_ID, ""))

    @property
    def run_name(self) -> str:
        """The run's name."""
        return str(((self.job or {}).get("metadata") or {}).get("labels", {}).get(labels.RUN, ""))

    def _gang(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        blank = {"reason": None, "message": None, "exit_code": None, "first_failed_rank": None}
        if (order := self.stop_order) is not None:
            state = str(order.get("state") or "stopped") if self.final else "stopping"
            more = {key: order[key] for key in ("first_failed_rank", "exit_code") if key in order}
            return blank | more | {"state": state, "reason": order.get("reason"), "message": order.get("message")}
        if (failure := self._job_condition("Failed", "FailureTarget")) is not None:
            return blank | self._failed_gang(failure) | ({} if self.final else {"state": "stopping"})
        if (success := self._job_condition("Complete", "SuccessCriteriaMet")) is not None:
            by_master = success.get("reason") == "SuccessPolicy"
            if ranks and ranks[0]["reason"] == "inactivity":
                return (
                    blank
                    | {key: ranks[0][key] for key in ("reason", "message", "exit_code")}
                    | {"state": "stopped" if self.final else "stopping"}
                )
            state = "done" if self.final else "stopping"
            return blank | {"state": state, "reason": "master-done" if by_master else "exited", "exit_code": 0}
        if all(rank["state"] in ("running", "done", "failed", "stopping") for rank in ranks):
            return blank | {"state": "running"}
        waiting = [rank for rank in ranks if rank["state"] == "waiting" and rank["message"]]
        # Who only waits for the others is not what the run waits for.
        waits = min(waiting, key=lambda rank: rank["message"] == WAITS_FOR_OTHERS, default=None)
        text = None if waits is None else f"rank {waits['rank']} {waits['message']}"
        return blank | {"state": "starting", "message": text}

    def _failed_gang(self, failure: Mapping[str, Any]) -> dict[str, Any]:
        if failure.get("reason") == "DeadlineExceeded":
            return {"state": "failed", "reason": "max-duration", "message": self._out_of_time(), "exit_code": 124}
        rank = self.first_failed
        if rank is None or rank not in self.pods:
            text = failure.get("message") if rank is None else f"rank {rank}: {TAKEN_AWAY}"
            return {"state": "failed", "reason": "disrupted", "message": text, "first_failed_rank": rank}
        end = self._outcome(rank)
        if end["state"] == "done":
            end = self._vanished()
        node = (self.pods[rank].get("spec") or {}).get("nodeName")
        text = f"rank {rank} on {node}: {end['message']}"
        return {
            "state": "stopped" if end["reason"] == "utilization-policy" else "failed",
            "reason": end["reason"],
            "message": text,
            "exit_code": end["exit_code"],
            "first_failed_rank": rank,
        }

    @property
    def retry(self) -> dict[str, Any] | None:
        """The next attempt of a run that has failed: its number and when it begins; None: there is none."""
        try:
            found = json.loads(self._annotations.get(RETRY) or "null")
        except ValueError:
            return None
        # A machine that was to make it, and did not, has gone away.
        return found if isinstance(found, dict) and float(found.get("at") or 0) > time.time() - 60 else None

    def _with_retry(self, message: str | None) -> str | None:
        if (retry := self.retry) is None:
            return message
        text = f"attempt {retry.get('attempt')} begins at {clock(float(retry['at']))}"
        return f"{message}; {text}" if message else text

    def status(self) -> RunStatus | None:
        """The run's status; None when there is nothing to say."""
        if self.job is None:
            return None
        ranks = [self.rank_state(rank) for rank in range(self.nodes)]
        gang = self._gang(ranks)
        final = gang["state"] in ("done", "failed", "stopped")
        facts = self.facts
        annotations = self._annotations
        ends = [rank["finished_at"] for rank in ranks if rank["finished_at"]]
        finished = self._job_condition("Complete", "Failed") or {}
        return RunStatus(
            run_id=self.run_id,
            name=self.run_name,
            state=gang["state"],
            ranks=tuple(ranks),
            nodes_num=self.nodes,
            submitted_at=float(facts.get("submitted_at") or moment(self.job["metadata"].get("creationTimestamp")) or 0),
            owner=str(facts.get("owner") or annotations.get(OWNER) or ""),
            reason=gang["reason"],
            message=self._with_retry(gang["message"]) if final else gang["message"],
            exit_code=exit_code(gang) if final else None,
            first_failed_rank=gang["first_failed_rank"],
            attempt=int((facts.get("attempt") or {}).get("number") or 1),
            attempts=tuple((facts.get("attempt") or {}).get("earlier") or ()),
            finished_at=(moment(finished.get("lastTransitionTime")) or max(ends, default=None)) if final else None,
        )


def view_of(job: dict[str, Any], pods: Sequence[Pod], others: Sequence[dict[str, Any]] = ()) -> RunView:
    """A run from one look at the API; `others` are the further Jobs of a run that has several."""
    view = RunView()
    for one in (job, *others):
        view.see_job(one)
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp") or "")):
        rank = labels.rank_of(pod)
        if rank is not None:
            view.pods[rank] = dict(pod)
    return view
