"""A service as the API tells it, in the words of services on SSH fleets (docs/services.md, JSON). No requests here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lambdactl.run.service_control import ServiceStatus

from . import labels
from .podspec import CONTAINER
from .podstate import IDLE, Pod, condition, container, given_up, hopeless, moment, running, waiting_for
from .proxy_config import PORT, service_path
from .proxy_objects import NAME as PROXY
from .service_model import PROBER, annotation

GIVE_UP = 3
"""Failures in a row of a replica after which nobody waits for it any more."""


def revision_of(item: Mapping[str, Any]) -> str:
    """What a Deployment's template, or a pod, is made from."""
    template = (item.get("spec") or {}).get("template")
    meta = (template or item).get("metadata") or {}
    return str((meta.get("labels") or {}).get(labels.REVISION, ""))


def replica_state(pod: Pod) -> str:
    """starting, unready, ready, draining, stopping or lost."""
    ready = condition(pod, "Ready") is not None
    if given_up(pod) or condition(pod, "Ready", "Unknown") is not None:
        return "lost"
    if pod["metadata"].get("deletionTimestamp"):
        return "draining" if ready else "stopping"
    if ready:
        return "ready"
    # Kubernetes keeps a pod's node unreachable for some time before it deletes the pod.
    return "unready" if running(pod) and container(pod).get("started") else "starting"


def failures(pod: Pod) -> int:
    """How often its container has ended."""
    status = container(pod)
    again = int(status.get("restartCount") or 0)
    return again + (0 if running(pod) else 1 if status.get("lastState") or "terminated" in _state(pod) else 0)


def _state(pod: Pod) -> Mapping[str, Any]:
    return container(pod).get("state") or {}


def last_end(pod: Pod) -> str | None:
    """How its container ended the last time, in one clause."""
    status = container(pod)
    ended = _state(pod).get("terminated") or (status.get("lastState") or {}).get("terminated")
    if not ended:
        return None
    said = str(ended.get("message") or "")
    if said.startswith("start-failed: "):
        return said.removeprefix("start-failed: ").rstrip(".")
    if said.startswith(IDLE):
        return said.removeprefix(IDLE).rstrip(".")
    if ended.get("reason") == "OOMKilled":
        return "the kernel killed it for lack of memory"
    return f"the commands exited with code {ended.get('exitCode')}"


def replica_message(pod: Pod, remark: str | None = None) -> str | None:
    """What keeps a replica from being ready, in one clause; `remark` is what its last event said."""
    state = replica_state(pod)
    if state in ("ready", "draining", "stopping"):
        return None
    if state == "lost":
        return "its node does not answer"
    if (why := hopeless(pod) or prober_trouble(pod)) is not None:
        return why
    end = last_end(pod)
    if not running(pod):
        if end is not None:
            times = failures(pod)
            return f"{end}{f', {times} times' if times > 1 else ''}; it is started again after a pause"
        return waiting_for(pod, remark)
    # That nothing listens yet is what starting is.
    if remark and "probe failed" in remark and not (state == "starting" and "connection refused" in remark.lower()):
        return " ".join(remark.partition(": ")[2].split())[:200].rstrip(".")
    return end if state == "starting" and end else None


def prober_trouble(pod: Pod) -> str | None:
    """Why the container that asks the probes cannot; None while it can, or there is none."""
    found = (pod.get("status") or {}).get("initContainerStatuses") or ()
    status: Mapping[str, Any] = next((item for item in found if item["name"] == PROBER), {})
    ended = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    if (said := str(ended.get("message") or "")).startswith("start-failed: "):
        return said.removeprefix("start-failed: ").rstrip(".")
    if (times := int(status.get("restartCount") or 0)) >= GIVE_UP and "running" not in (status.get("state") or {}):
        return f"the container that asks its probes has failed {times} times (exit code {ended.get('exitCode')})"
    return hopeless({**pod, "status": {"containerStatuses": [{**status, "name": CONTAINER}]}}) if status else None


def beyond_hope(pods: Iterable[Pod], revision: str) -> str | None:
    """Why a revision's replicas will not become ready, as far as they have shown; None while they may."""
    for pod in pods:
        if revision_of(pod) != revision or pod["metadata"].get("deletionTimestamp"):
            continue
        if (why := hopeless(pod) or prober_trouble(pod)) is not None:
            return why
        if failures(pod) >= GIVE_UP and replica_state(pod) != "ready":
            node = (pod.get("spec") or {}).get("nodeName") or "its node"
            return f"a replica on {node} has failed {failures(pod)} times ({last_end(pod) or 'its probe failed'})"
    return None


def complete(deployment: Mapping[str, Any], pods: Iterable[Pod]) -> bool:
    """Whether all replicas are of the present template and ready, and no others are left in the rotation."""
    spec, status = deployment.get("spec") or {}, deployment.get("status") or {}
    wanted = int(spec.get("replicas") or 0)
    if int(status.get("observedGeneration") or 0) < int(deployment["metadata"].get("generation") or 0):
        return False
    revision = revision_of(deployment)
    live = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp") and replica_state(pod) != "lost"]
    return (
        int(status.get("updatedReplicas") or 0) == wanted
        and int(status.get("replicas") or 0) == wanted
        and int(status.get("availableReplicas") or 0) == wanted
        and all(revision_of(pod) == revision for pod in live)
        and sum(replica_state(pod) == "ready" for pod in live) >= wanted
    )


def status_of(
    deployment: Mapping[str, Any], pods: Iterable[Pod], remarks: Mapping[str, str], *, cluster: str, proxy: str = ""
) -> ServiceStatus:
    """A service's status.

    Args:
        remarks: what the last event of a pod said, by its name.
        cluster: what people call the cluster.
        proxy: what is wrong with the proxy.
    """
    facts, update = annotation(deployment, labels.SERVICE_FACTS), annotation(deployment, labels.SERVICE_UPDATE)
    pods = sorted(pods, key=lambda pod: (str(pod["metadata"].get("creationTimestamp")), pod["metadata"]["name"]))
    name = str(deployment["metadata"]["name"])
    wanted = int((deployment.get("spec") or {}).get("replicas") or 0)
    replicas = [_replica(number, pod, remarks, facts) for number, pod in enumerate(pods)]
    ready = sum(replica["state"] == "ready" for replica in replicas)
    whole = complete(deployment, pods)
    if update.get("state") == "running" and whole:
        update = update | {"state": "done", "message": None}
    meta = deployment["metadata"]
    proxied = bool(facts.get("proxy"))
    data = {
        "name": name,
        "state": _state_of(deployment, update, ready, wanted, whole),
        "revision": revision_of(deployment),
        "wanted_revision": revision_of(deployment),
        "replicas_wanted": wanted,
        "replicas_ready": ready,
        "replicas": replicas,
        "waiting": _waiting(deployment, len(pods), wanted),
        "failures": {
            str(number): {"count": failures(pod), "reason": last_end(pod)}
            for number, pod in enumerate(pods)
            if failures(pod) and replicas[number]["state"] != "ready"
        },
        "update": {"state": update.get("state") or "none", "message": update.get("message")},
        "ingress": cluster,
        "ingress_port": PORT if proxied else facts.get("port"),
        "path": service_path(name) if proxied else "/",
        "port": facts.get("port"),
        "auth": bool(facts.get("auth")),
        "model": facts.get("model"),
        "proxy": proxy if proxied else "",
        "owner": facts.get("owner"),
        "submitted_at": facts.get("submitted_at") or moment(meta.get("creationTimestamp")),
        "supervised": True,
        "stop_grace": facts.get("stop_grace"),
    }
    return ServiceStatus(f"{PROXY if proxied else name}.{meta.get('namespace') or 'default'}.svc", data)


def _state_of(deployment: Mapping[str, Any], update: Mapping[str, Any], ready: int, wanted: int, whole: bool) -> str:
    if deployment["metadata"].get("deletionTimestamp"):
        return "stopping"
    if update.get("state") == "running":
        return "updating"
    if whole or (ready >= wanted and wanted):
        return "running"
    return "degraded" if ready else "starting"


def _replica(number: int, pod: Pod, remarks: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    meta = pod["metadata"]
    state = replica_state(pod)
    probes = int(facts.get("probes") or 0)
    return {
        "replica": number,
        "run_id": meta.get("uid"),
        "run_name": meta["name"],
        "host": (pod.get("spec") or {}).get("nodeName") or "-",
        "state": state,
        "probes": f"{probes if state in ('ready', 'draining') else 0}/{probes}" if probes else "-",
        "message": replica_message(pod, remarks.get(meta["name"])) or "",
        "since": moment(meta.get("creationTimestamp")),
        "revision": revision_of(pod),
    }


def _waiting(deployment: Mapping[str, Any], there: int, wanted: int) -> list[dict[str, Any]]:
    """Replicas that Kubernetes could not even make a pod for."""
    refused = condition(deployment, "ReplicaFailure")
    if refused is None:
        return []
    text = " ".join(str(refused.get("message") or refused.get("reason")).split())[:300].rstrip(".")
    return [{"replica": number, "message": text} for number in range(there, max(wanted, there + 1))][:1]
