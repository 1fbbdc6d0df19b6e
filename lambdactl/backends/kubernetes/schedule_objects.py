"""A schedule's objects: a CronJob for each of its cron expressions, and the Secrets that they own. Pure functions.

The pods of the CronJobs run lambdactl itself (`lambdactl scheduled`), as the service account of the manifest of
rights: so a run that is started at its time is started, and followed, as one that is started by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambdactl import __version__
from lambdactl.node.cron import LAST, Cron
from lambdactl.run.container import DOCKER_IMAGE_VARIABLE, IMAGE_VARIABLE

from . import filesvolume, labels
from .model import FLEET, OWNER, label_value
from .packing import Parts, secret
from .podspec import CONTAINER

if TYPE_CHECKING:
    from .config import Target

ACCOUNT = "lambdactl"
"""The service account of docs/kubernetes/rbac.yaml."""
DEFAULT_IMAGE = f"lambdactl/base:{__version__}"
FOLDER, SCRATCH = "/lambdactl/schedule", "/lambdactl/scratch"
CONFIG, CONTENT = "config.yml", "content"
IN_TIME = 60
"""Seconds after which a time is missed that the cluster was not able to serve, as on SSH hosts."""
_ON_CPUS = {"matchExpressions": [{"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A schedule as it is handed over.

    Attributes:
        cron: dstack's expressions.
        id: a UUID, as runs have one.
        nodes: how many ranks its runs have.
        texts: file names and contents of the Secret.
        parts: what Secrets carry of its files (packing.py).
        trees: the names of its files in the files volume, where that has them.
        environ: what the pods' environment takes over from here.
    """

    name: str
    id: str
    owner: str
    fleet: str
    nodes: int
    cron: tuple[str, ...]
    submitted_at: float
    texts: Mapping[str, bytes] = field(repr=False)
    parts: Parts = field(default=(), repr=False)
    trees: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """Of every object."""
        return {
            labels.MANAGED_BY: labels.MANAGER,
            labels.SCHEDULE: self.name,
            OWNER: label_value(self.owner),
            FLEET: label_value(self.fleet),
        }

    @property
    def facts(self) -> str:
        """What any machine needs to tell of it, as JSON in an annotation of the first CronJob."""
        names = ("id", "owner", "fleet", "nodes", "cron", "submitted_at", "trees")
        return json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)


def cron_name(name: str, index: int = 0) -> str:
    """The CronJob of an expression; the first one's name is the Secret's as well."""
    return f"{name}-cron-{index}" if index else f"{name}-cron"


def _part_name(name: str, number: int) -> str:
    return f"{cron_name(name)}-content-{number}"


def in_kubernetes(cron: Cron) -> str:
    """The expression as Kubernetes has it: Sunday is 0, and with both kinds of days either of them will do.

    Where both are given, the rarer kind remains, and the pod looks at the other one itself; so it does for the last day
    of the month, which stands for itself from the 28th on. Source: robfig/cron, which the CronJob controller uses.
    """
    days = cron.days - {LAST} | (set(range(28, 32)) if LAST in cron.days else set())
    weekdays = {(day + 1) % 7 for day in cron.weekdays}
    if len(days) < 31 and len(weekdays) < 7:
        if len(days) <= 4 * len(weekdays):
            weekdays = set(range(7))
        else:
            days = set(range(1, 32))
    sets = ((cron.minutes, 60), (cron.hours, 24), (days, 31), (cron.months, 12), (weekdays, 7))
    return " ".join("*" if len(found) == whole else ",".join(map(str, sorted(found))) for found, whole in sets)


def image(target: Target) -> str:
    """The image of the pods that start the runs."""
    return target.controller_image or target.image or DEFAULT_IMAGE


def cron_jobs(handed: Handed, target: Target) -> list[dict[str, Any]]:
    """The CronJobs, suspended until their Secrets are there."""
    return [_cron_job(handed, target, index) for index in range(len(handed.cron))]


def _cron_job(handed: Handed, target: Target, index: int) -> dict[str, Any]:
    template = {"metadata": {"labels": handed.labels}, "spec": pod_spec(handed, target, index)}
    job = {"metadata": {"labels": handed.labels}, "spec": {"backoffLimit": 0, "template": template}}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": cron_name(handed.name, index), "labels": handed.labels},
        "spec": {
            "schedule": in_kubernetes(Cron(handed.cron[index])),
            "timeZone": "Etc/UTC",
            "suspend": True,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": IN_TIME,
            "successfulJobsHistoryLimit": 1,
            "failedJobsHistoryLimit": 1,
            "jobTemplate": job,
        },
    }


def pod_spec(handed: Handed, target: Target, index: int) -> dict[str, Any]:
    """The pod that starts a run and follows it."""
    folders = {f"XDG_{kind}_HOME": f"{SCRATCH}/{kind.lower()}" for kind in ("STATE", "CACHE", "DATA")}
    values = {**handed.environ, **folders, "XDG_CONFIG_HOME": FOLDER, "HOME": SCRATCH}
    env: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(values.items())]
    job_name = "metadata.labels['batch.kubernetes.io/job-name']"
    env.append({"name": "LAMBDACTL_SCHEDULED_BY", "valueFrom": {"fieldRef": {"fieldPath": job_name}}})
    # The configuration is where lambdactl looks for it below XDG_CONFIG_HOME.
    keys = [{"key": key, "path": f"lambdactl/{key}" if key == CONFIG else key} for key in sorted(handed.texts)]
    sources: list[dict[str, Any]] = [{"secret": {"name": cron_name(handed.name), "items": keys}}]
    for number, part in enumerate(handed.parts):
        keys = [{"key": key, "path": f"{CONTENT}/{key}"} for key in sorted(part)]
        sources.append({"secret": {"name": _part_name(handed.name, number), "items": keys}})
    files = target.files_volume if handed.trees else None
    container = {
        "name": CONTAINER,
        "image": image(target),
        "imagePullPolicy": "IfNotPresent",
        "command": ["lambdactl", "scheduled", FOLDER, str(index)],
        "workingDir": SCRATCH,
        "env": env,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "volumeMounts": [
            {"name": "schedule", "mountPath": FOLDER, "readOnly": True},
            {"name": "scratch", "mountPath": SCRATCH},
            *([] if files is None else [filesvolume.mount()]),
        ],
    }
    preferred = [{"weight": 100, "preference": _ON_CPUS}]
    return {
        "serviceAccountName": ACCOUNT,
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 10,
        "containers": [container],
        "volumes": [
            {"name": "schedule", "projected": {"sources": sources, "defaultMode": 0o400}},
            {"name": "scratch", "emptyDir": {}},
            *([] if files is None else [filesvolume.volume(files)]),
        ],
        # Rather not on a GPU node, but there where all are.
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
        "tolerations": [{"key": key, "operator": "Exists"} for key in ("nvidia.com/gpu", "amd.com/gpu")],
    }


def secrets(handed: Handed, owners: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the runs are made from; `owners` are the metadata of the created CronJobs."""
    references = [
        {"apiVersion": "batch/v1", "kind": "CronJob", "name": owner["name"], "uid": owner["uid"]} for owner in owners
    ]
    named = [(_part_name(handed.name, number), part) for number, part in enumerate(handed.parts)]
    return [
        secret({"name": name, "labels": handed.labels, "ownerReferences": references}, data)
        for name, data in [*named, (cron_name(handed.name), handed.texts)]
    ]


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of this machine that decide the image of a run."""
    return {name: environ[name] for name in (IMAGE_VARIABLE, DOCKER_IMAGE_VARIABLE) if environ.get(name)}
