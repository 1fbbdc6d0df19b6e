"""Labels of everything that lambdactl makes in a cluster, and the labels of nodes that it reads."""

from __future__ import annotations

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

MANAGED = f"{MANAGED_BY}={MANAGER}"
"""Selects all that lambdactl has made."""
