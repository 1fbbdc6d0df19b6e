"""A run's objects: one Indexed Job, which owns a headless Service, a ConfigMap and Secrets. Pure functions.

The Job carries the run's semantics, so that a started run needs no controller: `successPolicy` on index 0 is
master-done, a pod failure policy with `backoffLimit: 0` stops all ranks at the first that fails or is disrupted,
`activeDeadlineSeconds` is max_duration, and a TTL removes what nobody has followed to its end.
Source: https://kubernetes.io/docs/concepts/workloads/controllers/job/ (1.31 and newer has all of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import parts
from .labels import FIRST_RANK, KUEUE_QUEUE, RUN_FACTS
from .model import DELIVERY, LEFTOVER_TTL, PATIENCE, KubeRun, metadata
from .payload import config_map, secrets
from .podspec import CONTAINER, pod_template


def job(run: KubeRun, owner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The Job of a run or of a part of it, suspended until what its pods mount is there, and until Kueue admits it."""
    task = run.task
    nodes = run.parts[run.part].nodes if run.parts else run.nodes
    spec: dict[str, Any] = {
        "suspend": True,
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "template": pod_template(run),
    }
    spec |= _failure(run)
    if run.nodes > 1 and task.stop_criteria == "master-done" and not run.part:
        spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    if run.max_duration is not None:
        # Until the run has started; then it counts from the start (see start.py).
        spec["activeDeadlineSeconds"] = run.max_duration + PATIENCE + (DELIVERY if run.content.blobs else 0)
    if not run.keep and not run.parts:  # the first of several may end days before the others, which it owns
        spec["ttlSecondsAfterFinished"] = LEFTOVER_TTL
    meta = metadata(run, parts.job_name(run), owner)
    meta["annotations"] = {FIRST_RANK: str(run.parts[run.part].first)} if run.part else {RUN_FACTS: run.facts}
    if run.queue is not None:
        meta["labels"] = meta["labels"] | {KUEUE_QUEUE: run.queue}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


def other_jobs(run: KubeRun, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The Jobs of the parts after the first; `owner` is the metadata of the first part's Job."""
    return [job(one, owner) for one in parts.of_run(run) if one.part]


def _failure(run: KubeRun) -> dict[str, Any]:
    """`on_node_failure`: stop at the first rank that fails or is disrupted, or let each fail for itself."""
    if run.task.on_node_failure == "ignore":
        return {"backoffLimitPerIndex": 0}
    disrupted = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    failed = {
        "action": "FailJob",
        "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]},
    }
    return {"backoffLimit": 0, "podFailurePolicy": {"rules": [disrupted, failed]}}


def service(run: KubeRun, owner: Mapping[str, Any]) -> dict[str, Any]:
    """The headless Service: names of the ranks for clusters that have DNS."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(run, run.run_name, owner),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"lambdactl.dev/run-id": run.run_id},
            "ports": [{"name": "ssh", "port": run.ssh_port, "protocol": "TCP"}],
        },
    }


def owned(run: KubeRun, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Everything but the Job; `owner` is the created Job's metadata."""
    return [config_map(run, owner), *secrets(run, owner), service(run, owner)]
