"""Labels of everything that lambdactl makes in a cluster, and the labels of nodes that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "lambdactl"
COMPONENT = "app.kubernetes.io/component"
RUN = "lambdactl.dev/run"
RUN_ID = "lambdactl.dev/run-id"
RANK = "batch.kubernetes.io/job-completion-index"
"""Kubernetes' own, on each pod of an Indexed Job; here it is the rank."""

FIRST_RANK = "lambdactl.dev/first-rank"
"""An annotation of the Jobs and pods of a run of several Jobs: the rank of index 0."""

SERVICE = "lambdactl.dev/service"
REVISION = "lambdactl.dev/revision"
"""On all of a service, in the place of RUN: its name; on its pods and what they mount: what they are made from."""

RUN_FACTS = "lambdactl.dev/run-facts"
"""An annotation of a run's Job: what any machine needs to go on with the run, as JSON."""

HOSTNAME = "kubernetes.io/hostname"
GPU_PRODUCT = "nvidia.com/gpu.product"
GPU_COUNT = "nvidia.com/gpu.count"
GPU_MEMORY = "nvidia.com/gpu.memory"
GPU_MAJOR = "nvidia.com/gpu.compute.major"
GPU_MINOR = "nvidia.com/gpu.compute.minor"
DRIVER = "nvidia.com/cuda.driver-version.full"
"""Node labels of NVIDIA's GPU feature discovery (part of the GPU operator); memory is in MiB."""

POD_SECURITY = "pod-security.kubernetes.io/enforce"

SERVICE_FACTS = "lambdactl.dev/service-facts"
SERVICE_UPDATE = "lambdactl.dev/service-update"
"""Annotations of a service's Deployment: what any machine needs to know of it, and how its last update went (JSON)."""

SCHEDULE = "lambdactl.dev/schedule"
"""On the CronJobs of a schedule, and on all that they make but the runs themselves: its name."""
SCHEDULE_FACTS = "lambdactl.dev/schedule-facts"
SCHEDULE_LAST = "lambdactl.dev/schedule-last"
"""Annotations of a schedule's first CronJob: what is to be known of it, and what became of its last time (JSON)."""

KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_GATE = "kueue.x-k8s.io/admission"
"""Kueue's: the LocalQueue of a Job or a Deployment (and of the Deployment's pods), and what holds such a pod back.
Source: https://kueue.sigs.k8s.io/docs/tasks/run/deployment/ and plain_pods/."""

MANAGED = f"{MANAGED_BY}={MANAGER}"
"""Selects all that lambdactl has made."""


def rank_of(pod: Mapping[str, Any]) -> int | None:
    """The completion index, counted on from the first rank of its Job (parts.py)."""
    meta = pod["metadata"]
    annotations = meta.get("annotations") or {}
    text = annotations.get(RANK) or (meta.get("labels") or {}).get(RANK)
    first = str(annotations.get(FIRST_RANK) or "0")
    return int(str(text)) + int(first) if str(text or "").isdigit() and first.isdigit() else None


def is_part(job: Mapping[str, Any]) -> bool:
    """Whether a Job is of a run that another Job stands for."""
    return bool(job["metadata"].get("ownerReferences")) and FIRST_RANK in (job["metadata"].get("annotations") or {})


def first_rank(item: Mapping[str, Any]) -> int:
    """The rank of index 0 of a Job, or of a pod's Job."""
    text = str((item["metadata"].get("annotations") or {}).get(FIRST_RANK) or "0")
    return int(text) if text.isdigit() else 0
