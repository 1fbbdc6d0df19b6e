"""`lambdactl backend check`: what of a cluster works, each failure with its remedy. Nothing is made or changed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambdactl.errors import EXIT_CAPACITY, EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE, LambdactlError

from .client import open_client
from .errors import RBAC_FILE, APIError, Forbidden, NamespaceMissing
from .filesvolume import claim_problem
from .labels import GPU_PRODUCT, MANAGED_BY, MANAGER, POD_SECURITY
from .nodes import ClusterView, KubeNode, find_rdma, look
from .resources import NAMESPACES, PODS
from .rights import RIGHTS, Right

if TYPE_CHECKING:
    from .client import Client
    from .config import Target

PASS, WARN, FAIL = "pass", "warn", "fail"
OLDEST = (1, 31)
"""Job success policies (beta, on by default) and pod failure policies (stable) are there since this version."""
PROBE_IMAGE = "registry.k8s.io/pause:3.10"
KUEUE, JOBSET = "kueue.x-k8s.io", "jobset.x-k8s.io"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what.
        status: pass, warn or fail.
        value: what was found.
        remedy: what to do about it; empty where nothing is wrong.
        exit_code: what the command ends with because of a failure.
    """

    check: str
    status: str
    value: str
    remedy: str = ""
    exit_code: int = EXIT_FAILED


@dataclass(slots=True)
class Checked:
    """All that was found of one cluster."""

    target: Target
    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The worst of all."""
        found = {finding.status for finding in self.findings}
        return FAIL if FAIL in found else WARN if WARN in found else PASS

    @property
    def exit_code(self) -> int:
        """That of the first failure."""
        return next((finding.exit_code for finding in self.findings if finding.status == FAIL), EXIT_OK)

    def as_json(self) -> dict[str, Any]:
        """The schema of ``--json`` (docs/kubernetes.md)."""
        return {
            "cluster": self.target.name,
            "context": self.target.context,
            "namespace": self.target.namespace,
            "server": self.target.kubeconfig.server(self.target.context),
            "origin": self.target.origin,
            "status": self.status,
            "findings": [
                {"check": f.check, "status": f.status, "value": f.value, "remedy": f.remedy or None}
                for f in self.findings
            ],
        }

    def add(self, check: str, status: str, value: str, remedy: str = "", exit_code: int = EXIT_FAILED) -> None:
        """Note something."""
        self.findings.append(Finding(check, status, value, remedy, exit_code))

    def failed(self, check: str, error: LambdactlError, status: str = FAIL) -> None:
        """Note an error: its sentence is what is wrong and what to do."""
        wrong, _, remedy = str(error).partition("; ")
        self.add(check, status, wrong.rstrip("."), remedy, error.exit_code)


async def check(target: Target) -> Checked:
    """Look at a cluster; later checks are left out where an earlier one makes them pointless."""
    result = Checked(target)
    for note in target.notes:
        wrong, _, remedy = note.partition("; ")
        result.add("configuration", WARN, wrong, remedy)
    try:
        async with open_client(target, patience=5) as client:
            await _version(client, result)
            await _namespace(client, result)
            await _rights(client, result)
            view = await _nodes(client, result)
            if view is not None:
                _gpus(view, result)
                _rdma(view, result)
                _jump(view, result)
            await _policy(client, result)
            await _files_volume(client, result)
            await _extensions(client, result)
    except LambdactlError as error:
        result.failed("reachability", error)
    return result


async def _version(client: Client, result: Checked) -> None:
    """An error ends the whole: without an answer there is nothing more to find."""
    version = str((await client.version()).get("gitVersion", "unknown"))
    where = f"Kubernetes {version} at {client.login.server}"
    numbers = re.match(r"v(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        text = f"is too old: {OLDEST[0]}.{OLDEST[1]} is needed"
        result.add("reachability", FAIL, f"{where} {text}", "have the cluster upgraded.", EXIT_CAPACITY)
    else:
        result.add("reachability", PASS, where)


async def _namespace(client: Client, result: Checked) -> None:
    try:
        found = await client.get(NAMESPACES, client.namespace, namespace=client.namespace)
    except Forbidden as error:
        result.failed("namespace", error, WARN)
        return
    except APIError as error:
        if error.status != 404:
            raise
        name = client.namespace
        result.add(
            "namespace",
            FAIL,
            f"the namespace '{name}' does not exist",
            f"create it with `kubectl create namespace {name}`, or name another one in the configuration.",
            EXIT_USAGE,
        )
        return
    if (found.get("status") or {}).get("phase") == "Terminating":
        text = f"the namespace '{client.namespace}' is being deleted"
        result.add("namespace", FAIL, text, "wait for the end of that, or use another one.", EXIT_USAGE)
        return
    level = (found["metadata"].get("labels") or {}).get(POD_SECURITY, "privileged")
    shown = f"'{client.namespace}', pod security level '{level}'"
    if level == "restricted":
        remedy = f"have the label {POD_SECURITY} of the namespace set to 'privileged' (or 'baseline')."
        result.add("namespace", FAIL, f"{shown}: it refuses pods that run as root", remedy, EXIT_UNREACHABLE)
    elif level == "baseline":
        remedy = f"have the label {POD_SECURITY} of the namespace set to 'privileged' where runs need one of these."
        refused = "it refuses `privileged`, IPC_LOCK and instance volumes"
        result.add("namespace", WARN, f"{shown}: {refused}", remedy)
    else:
        result.add("namespace", PASS, shown)


async def _rights(client: Client, result: Checked) -> None:
    """Every verb of the table, all at once."""
    asked = [(right, verb) for right in RIGHTS for verb in right.verbs]
    answers = await asyncio.gather(
        *(
            client.can(verb, right.resource, right.subresource, namespace="" if right.everywhere else None)
            for right, verb in asked
        )
    )
    missing: dict[int, list[str]] = {}
    for (right, verb), (allowed, _) in zip(asked, answers, strict=True):
        if not allowed:
            missing.setdefault(RIGHTS.index(right), []).append(verb)
    for index, verbs in missing.items():
        _missing(result, RIGHTS[index], verbs)
    if not missing:
        result.add("permissions", PASS, f"all {len(asked)} verbs are allowed")


def _missing(result: Checked, right: Right, verbs: Iterable[str]) -> None:
    where = "in all namespaces" if right.everywhere and right.resource.namespaced else ""
    group = f".{right.resource.group}" if right.resource.group else ""
    what = " ".join(part for part in (f"{', '.join(verbs)} {right.plural}{group}", where) if part)
    result.add(
        "permissions",
        WARN if right.optional else FAIL,
        f"you may not {what}: lambdactl cannot {right.why}",
        f"have an administrator apply {RBAC_FILE}.",
        EXIT_UNREACHABLE,
    )


async def _nodes(client: Client, result: Checked) -> ClusterView | None:
    try:
        view = await look(client)
    except Forbidden as error:
        result.failed("nodes", error)
        return None
    usable = [node for node in view.nodes if not node.usable()]
    others = "; ".join(f"{node.name} {', '.join(node.usable())}" for node in view.nodes if node not in usable)
    text = f"{len(usable)} of {len(view.nodes)} take pods" + (f" ({others})" if others else "")
    remedy = "see `kubectl describe nodes`: uncordon, untaint or repair them." if others else "add nodes."
    if not usable:
        result.add("nodes", FAIL, text, remedy, EXIT_CAPACITY)
    else:
        result.add("nodes", WARN if others else PASS, text, remedy if others else "")
    return view


def _gpus(view: ClusterView, result: Checked) -> None:
    with_gpus = [node for node in view.nodes if node.gpus]
    hidden = [node.name for node in view.nodes if not node.gpus and _should_have_gpus(node)]
    if hidden:
        text = f"{', '.join(hidden)} have GPUs that Kubernetes does not count"
        remedy = "see that the device plugin of the GPU operator runs there (`kubectl get pods -A -o wide`)."
        result.add("GPUs", FAIL, text, remedy, EXIT_CAPACITY)
    if not with_gpus:
        if not hidden:
            result.add("GPUs", WARN, "no node has any", "runs on CPUs work; for GPUs, install the GPU operator.")
        return
    kinds: dict[str, list[KubeNode]] = {}
    for node in with_gpus:
        kinds.setdefault(node.facts.gpus[0].full_name or "unknown kind", []).append(node)
    text = "; ".join(_counted(kind, nodes) for kind, nodes in kinds.items())
    if "unknown kind" in kinds:
        remedy = (
            "install GPU feature discovery (it comes with the GPU operator), so that GPUs can be asked for by name."
        )
        result.add("GPUs", WARN, f"{text}: no label {GPU_PRODUCT}", remedy)
    else:
        result.add("GPUs", PASS, text)


def _counted(kind: str, nodes: list[KubeNode]) -> str:
    total, free = sum(node.gpus for node in nodes), sum(node.gpus_free for node in nodes)
    return f"{total} x {kind} on {len(nodes)} nodes, {free} free"


def _should_have_gpus(node: KubeNode) -> bool:
    marks = node.labels
    return marks.get("nvidia.com/gpu.present") == "true" or "feature.node.kubernetes.io/pci-10de.present" in marks


def _rdma(view: ClusterView, result: Checked) -> None:
    with_gpus = [node for node in view.nodes if node.gpus]
    configured = result.target.rdma_resource
    found = find_rdma(with_gpus or view.nodes, result.target)
    if configured and not any(node.allocatable.get(configured) for node in view.nodes):
        there = ", ".join(view.rdma) or "none"
        remedy = f"correct or remove `rdma_resource` in {result.target.origin} (nodes have: {there})."
        result.add("RDMA", FAIL, f"no node has the configured resource {configured}", remedy, EXIT_USAGE)
    elif found:
        nodes = sum(bool(node.allocatable.get(found)) for node in view.nodes)
        result.add("RDMA", PASS, f"{found} on {nodes} nodes" + (" (as configured)" if configured else ""))
    elif len(with_gpus) > 1:
        remedy = "multi-node runs then need `privileged: true` for /dev/infiniband; or name `rdma_resource`."
        result.add("RDMA", WARN, "no RDMA resource among the nodes' allocatable ones", remedy)


def _jump(view: ClusterView, result: Checked) -> None:
    jump = result.target.proxy_jump
    if jump is None:
        result.add("jump pod", PASS, "none is configured; SSH goes through the API's port-forward")
        return
    address = jump.hostname or next((node.external_ip for node in view.nodes if node.external_ip), None)
    if address is None:
        remedy = f"set `proxy_jump.hostname` in {result.target.origin} to the external address of a node."
        result.add("jump pod", WARN, "no node tells an external address", remedy)
    elif jump.port is not None and not 30000 <= jump.port <= 32767:
        remedy = "use one of 30000 to 32767 (30022 at Lambda), unless the cluster was set up for others."
        result.add("jump pod", WARN, f"port {jump.port} is outside of the usual NodePorts", remedy)
    else:
        result.add("jump pod", PASS, f"at {address}, port {jump.port or 'chosen by Kubernetes'}")


_POLICY: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("shared memory", {}, FAIL),
    ("IPC_LOCK", {"capabilities": {"add": ["IPC_LOCK"]}}, WARN),
    ("privileged", {"privileged": True}, WARN),
)
"""Pods that are only tried (dry run): the name, the container's securityContext, and how bad a refusal is."""


async def _policy(client: Client, result: Checked) -> None:
    for name, context, severity in _POLICY:
        try:
            await client.create(PODS, probe_pod(context), dry_run=True)
        except NamespaceMissing:
            return
        except APIError as error:
            if isinstance(error, Forbidden) and "may not create" in str(error):
                return  # told among the permissions
            result.failed(name, error, severity)
        else:
            result.add(name, PASS, "such a pod is allowed (dry run)")


def probe_pod(context: dict[str, Any]) -> dict[str, Any]:
    """A pod as small as runs' are large; it is never made."""
    container = {
        "name": "main",
        "image": PROBE_IMAGE,
        "securityContext": context,
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - a mount point of the container
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "10m", "memory": "16Mi"}},
    }
    return {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        "metadata": {"name": "lambdactl-check", "labels": {MANAGED_BY: MANAGER}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}],
        },
    }


async def _files_volume(client: Client, result: Checked) -> None:
    files = result.target.files_volume
    if files is None:
        return
    try:
        problem = await claim_problem(client, files)
    except APIError as error:
        result.failed("files volume", error)
        return
    if problem is not None:
        wrong, _, remedy = problem.partition("; ")
        result.add("files volume", FAIL, wrong, f"{remedy} ({result.target.origin}).", EXIT_USAGE)
    else:
        result.add("files volume", PASS, f"the claim {files.claim} is there, and nodes can share it")


async def _extensions(client: Client, result: Checked) -> None:
    try:
        groups = await client.groups()
    except APIError:
        return
    present = [name for name, group in (("Kueue", KUEUE), ("JobSet", JOBSET)) if group in groups]
    if result.target.queue and KUEUE not in groups:
        text = f"the configuration names the queue '{result.target.queue}', but the cluster has no Kueue"
        result.add("queues", FAIL, text, f"remove `queue` from {result.target.origin}, or install Kueue.", EXIT_USAGE)
    else:
        result.add(
            "queues", PASS, f"{' and '.join(present)} found" if present else "no Kueue, no JobSet; none is needed"
        )
