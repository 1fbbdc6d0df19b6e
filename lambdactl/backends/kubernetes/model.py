"""A run on Kubernetes as data: all that its objects are made from."""

from __future__ import annotations

import json
import re
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambdactl.errors import SpecError
from lambdactl.run import extras
from lambdactl.run.content import RunContent

from . import labels

if TYPE_CHECKING:
    from lambdactl.spec import TaskSpec

    from .parts import Part
    from .settings import FilesVolume

# Annotations. The first two are the kubelet's to deliver into the containers (see container/entrypoint.sh).
PEERS = "lambdactl.dev/peers"
GO = "lambdactl.dev/go"
STOP = "lambdactl.dev/stop"
RETRY = "lambdactl.dev/retry"
PRESENT = "lambdactl.dev/present"
INACTIVITY = "lambdactl.dev/inactivity"
"""Of a dev environment's pod: changes while somebody's command is attached; the seconds after which it ends unused."""
OWNER = "lambdactl.dev/owner"
FLEET = "lambdactl.dev/fleet"

PATIENCE = 1800
"""Seconds that a rank waits for the others' addresses before it gives up."""
DELIVERY = 86400
"""Seconds that bringing files may take, for Kubernetes' own limit on the run; each piece renews the ranks' patience."""
LEFTOVER_TTL = 86400
"""Seconds that Kubernetes keeps a finished run that nobody has followed to its end."""

_NEEDS_SSH = re.compile(r"\b(mpirun|mpiexec|orterun|prterun|prun|ssh|scp|pdsh|deepspeed|horovodrun)\b")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 key pair in OpenSSH's form."""

    private: str = field(repr=False)
    public: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeRun:
    """One run.

    Attributes:
        env: the user's variables, resolved.
        image: the container image.
        gpus: GPUs of each rank.
        gpu_resource: the nodes' resource that they are.
        gpu_products: values of the nodes' product label that will do; empty: any.
        rdma: the nodes' RDMA resource, one of which each rank takes; None: there is none.
        login: the key by which ranks reach each other and `lambdactl ssh` reaches them; None on one node.
        host: the ranks' own host key, one for all ranks of the run.
        max_duration: seconds, or None.
        submitted_at: seconds since the epoch.
        keep: the objects are kept when the run has ended.
        content: the files and the repository that its ranks get before they start (delivery.py).
        files_volume: the volume through which they get them, where there is one.
        parts: of `groups` that differ in what they need; the fields above are those of the first; empty: all are alike.
        part: the part that this is made for (parts.py).
        hostnames: the nodes that it is bound to, by their label; none: any.
        attempt: of a run that is tried again: its number, and how those before it ended.
        priority_class: the PriorityClass of its pods, for the file's `priority`.
        node_timeout: seconds that a node may be away before Kubernetes gives its rank up.
        alone: it is a service's replica: one rank that waits for nobody.
        dev: what is to be known of a dev environment (lambdactl/run/dev.py); None for other runs.
    """

    run_id: str
    run_name: str
    task: TaskSpec
    image: str
    owner: str
    fleet: str
    submitted_at: float
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_duration: int | None = None
    gpus: int = 0
    gpu_resource: str | None = None
    gpu_products: tuple[str, ...] = ()
    rdma: str | None = None
    queue: str | None = None
    login: KeyPair | None = None
    host: KeyPair | None = None
    keep: bool = False
    node_timeout: int = 120
    content: RunContent = field(default_factory=RunContent, repr=False)
    files_volume: FilesVolume | None = None
    parts: tuple[Part, ...] = ()
    part: int = 0
    hostnames: tuple[str, ...] = ()
    attempt: Mapping[str, Any] | None = None
    priority_class: str | None = None
    alone: bool = False
    dev: Mapping[str, Any] | None = None

    @property
    def nodes(self) -> int:
        """How many ranks."""
        return self.task.nodes

    def gpus_of(self, rank: int) -> int:
        """GPUs of a rank."""
        return next((part.gpus for part in reversed(self.parts) if part.first <= rank), self.gpus)

    @property
    def stop_grace(self) -> int:
        """Seconds between the stop signal and SIGKILL; a shorter stop_duration shortens it."""
        limit = self.task.stop_duration
        return self.task.stop_grace if limit is None else min(self.task.stop_grace, limit)

    @property
    def gated(self) -> bool:
        """Whether some ranks start only after others have started."""
        return self.nodes > 1 and self.task.startup_order != "any"

    @property
    def ssh_port(self) -> int:
        """Where the ranks' sshd listens: below the ports that Linux and Kubernetes give out, and another one a run."""
        return 10240 + zlib.crc32(self.run_id.encode()) % 19000

    @property
    def ssh(self) -> str:
        """``need`` when the commands reach other ranks by SSH, ``use`` when they may, ``login`` when people come by
        it, "" on one node without a key."""
        if self.login is None:
            return ""
        if self.dev is not None:
            return "login"
        commands = [command for group in self.task.groups or (self.task,) for command in group.commands]
        wanted = self.nodes > 1 and any(_NEEDS_SSH.search(command) for command in commands)
        return "need" if wanted else "use"

    def job_id(self, rank: int) -> str:
        """DSTACK_JOB_ID, as on SSH hosts."""
        return str(uuid.uuid5(uuid.UUID(self.run_id), str(rank)))

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every object of the run; the file's tags too, where a label can hold them."""
        tags = {name: value for name, value in (self.task.tags or {}).items() if _is_label(name, value)}
        return tags | {
            labels.MANAGED_BY: labels.MANAGER,
            labels.RUN: self.run_name,
            labels.RUN_ID: self.run_id,
            OWNER: label_value(self.owner),
            FLEET: label_value(self.fleet),
        }

    @property
    def facts(self) -> str:
        """What any machine needs to go on with the run, as JSON in an annotation of the Job."""
        task = self.task
        return json.dumps(
            {
                "nodes": self.nodes,
                "gpus": self.gpus,
                "startup_order": task.startup_order,
                "stop_criteria": task.stop_criteria,
                "on_node_failure": task.on_node_failure,
                "stop_grace": self.stop_grace,
                "max_duration": self.max_duration,
                "submitted_at": self.submitted_at,
                "owner": self.owner,
                "fleet": self.fleet,
                "ssh_port": self.ssh_port if self.login is not None else None,
                "keep": self.keep,
                "attempt": self.attempt,
                **({"dev": dict(self.dev)} if self.dev is not None else {}),
                **({"parts": len(self.parts)} if self.parts else {}),
                "content": bool(self.content.blobs),
                "ports": {str(rank): found for rank in range(self.nodes) if (found := extras.ports(task, rank))},
            },
            sort_keys=True,
        )


def label_value(text: str) -> str:
    """The text as a label can hold it: at most 63 letters, digits and ``-_.``, none but the first two at the ends."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:63].strip("._-")


def _is_label(name: str, value: str) -> bool:
    return bool(_LABEL_VALUE.fullmatch(name)) and (not value or bool(_LABEL_VALUE.fullmatch(value)))


def metadata(run: KubeRun, name: str, owner: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata of an object that goes when its owner (the Job) goes."""
    result: dict[str, Any] = {"name": name, "labels": run.labels}
    if owner is not None:
        # Without blockOwnerDeletion, which some clusters let only those set who may change the owner's finalizers.
        reference = {"apiVersion": "batch/v1", "kind": "Job", "name": owner["name"], "uid": owner["uid"]}
        result["ownerReferences"] = [reference]
    return result


def too_large(what: str, size: int, run: KubeRun) -> SpecError:
    """Kubernetes keeps at most 1 MiB in a ConfigMap or a Secret."""
    return SpecError(
        f"{what} are {size} bytes, and Kubernetes takes at most 1 MiB in one object; "
        "put them into the image or a volume.",
        filename=run.task.source.filename,
    )
