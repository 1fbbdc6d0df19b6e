"""What one pod says of its rank, in the words of a RankState. Pure; where words are Kubernetes' own, it says whose."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .labels import KUEUE_GATE, KUEUE_QUEUE
from .model import GO
from .podspec import CONTAINER

Pod = Mapping[str, Any]

# Reasons of a container that waits which no patience cures (pkg/kubelet/images/types.go, kuberuntime_container.go).
_HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "ImagePullBackOff"})
_IMAGE = frozenset({"ErrImagePull", "RegistryUnavailable", *_HOPELESS})
_CREATION = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_REFUSED = re.compile(r"not found|manifest unknown|denied|unauthorized|not authorized|does not exist|invalid", re.I)

# Why a pod was taken away (pkg/apis/core/types.go, PodCondition DisruptionTarget), as people say it.
_DISRUPTIONS = {
    "EvictionByEvictionAPI": "its node was drained",
    "PreemptionByScheduler": "a run of higher priority took its place",
    "DeletionByTaintManager": "its node does not answer, or was tainted",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node had to end it",
}
IDLE = "utilization-policy: "
"""Begins the message of a rank that was ended because its GPUs idled."""
WAITS_FOR_OTHERS = "waits for the other ranks"
NODE_LOST = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})


def moment(text: str | None) -> float | None:
    """Seconds since the epoch of the API's times."""
    return None if not text else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def condition(pod: Pod, kind: str, status: str = "True") -> Mapping[str, Any] | None:
    """The condition of that type, where it has that status."""
    for found in (pod.get("status") or {}).get("conditions") or ():
        if found.get("type") == kind and found.get("status") == status:
            return dict(found)
    return None


def container(pod: Pod) -> Mapping[str, Any]:
    """The status of the rank's container; empty before there is one."""
    for found in (pod.get("status") or {}).get("containerStatuses") or ():
        if found.get("name") == CONTAINER:
            return dict(found)
    return {}


def running(pod: Pod) -> bool:
    """Whether the container's first process runs."""
    return "running" in (container(pod).get("state") or {})


def begun(pod: Pod) -> bool:
    """Whether there is, or was, a container to read a log of."""
    state = container(pod).get("state") or {}
    return "running" in state or "terminated" in state


def told_to_go(pod: Pod) -> bool:
    """Whether the rank was told to start its commands."""
    return bool((pod["metadata"].get("annotations") or {}).get(GO))


def commands_started(pod: Pod) -> bool:
    """Whether the commands have started: as its start-up probe saw, where there is one."""
    status = container(pod)
    if "terminated" in (status.get("state") or {}):
        return True
    return told_to_go(pod) and running(pod) and status.get("started") is not False


def up_at(pod: Pod) -> float | None:
    """Since when a dev environment is up; None while it is not."""
    ready = condition(pod, "Ready")
    return moment(str(ready.get("lastTransitionTime") or "")) if ready is not None and running(pod) else None


def given_up(pod: Pod) -> bool:
    """Whether the pod is on a node that is lost, so that nobody will ever say how it ended."""
    disrupted = condition(pod, "DisruptionTarget")
    return bool(disrupted and disrupted.get("reason") in NODE_LOST and pod["metadata"].get("deletionTimestamp"))


def unplaced(pod: Pod) -> str | None:
    """Why no node takes the pod: the scheduler's words, without what it says of preemption."""
    found = condition(pod, "PodScheduled", "False")
    if found is None:
        return None
    text = _short(found.get("message") or found.get("reason"))
    return re.split(r",? preemption: |,? no new claims to deallocate", text)[0].rstrip(". ")


def waiting_for(pod: Pod, remark: str | None = None) -> str | None:
    """What a rank that has not started waits for, in one clause; `remark` is what its last event said."""
    if any(gate.get("name") == KUEUE_GATE for gate in (pod.get("spec") or {}).get("schedulingGates") or ()):
        return f"waits for Kueue's queue {(pod['metadata'].get('labels') or {}).get(KUEUE_QUEUE, '')}".rstrip()
    if (why := unplaced(pod)) is not None:
        return f"waits for a node: {why}"
    waiting = (container(pod).get("state") or {}).get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    if reason in _IMAGE:
        return f"its image cannot be pulled ({reason}: {pull_cause(waiting.get('message'))})"
    if reason in _CREATION:
        return f"its container cannot be made ({reason}: {_short(waiting.get('message'))})"
    if running(pod):
        return None if told_to_go(pod) else WAITS_FOR_OTHERS
    node = (pod.get("spec") or {}).get("nodeName")
    return (remark or f"is being prepared on {node}") if node else "waits for a node"


# What the kubelet and the container runtime put around the cause; each says the image's name again.
_AROUND = re.compile(
    r'(?:^|(?<=: ))(?:Back-off pulling image "[^"]*"|ErrImagePull|rpc error: code = \w+ desc = '
    r'failed to pull and unpack image "[^"]*"|failed to pull and unpack image "[^"]*"|'
    r'failed to resolve (?:reference|image) "[^"]*"|failed to do request): '
)


def pull_cause(text: object) -> str:
    """Why an image cannot be pulled, without the layers around the cause."""
    return _short(_AROUND.sub("", " ".join(str(text or "").split())))


def hopeless(pod: Pod) -> str | None:
    """Why the container will never start, as a sentence without its end; None while there is hope."""
    waiting = (container(pod).get("state") or {}).get("waiting") or {}
    reason, text = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    image = container(pod).get("image") or _image(pod)
    if reason in _HOPELESS or (reason in _IMAGE and _REFUSED.search(text)):
        return f"the image {image} cannot be pulled on {_node(pod)} ({reason}: {pull_cause(text) or 'no reason given'})"
    if reason in _CREATION and reason != "CreateContainerConfigError":
        return f"the container of the image {image} cannot be started on {_node(pod)} ({reason}: {_short(text)})"
    return None


def outcome(pod: Pod) -> dict[str, Any]:
    """The end of a rank whose pod has ended: state, reason, exit_code, message, finished_at."""
    ended = (container(pod).get("state") or {}).get("terminated") or {}
    status = pod.get("status") or {}
    finished = moment(ended.get("finishedAt"))
    code = ended.get("exitCode")
    if status.get("phase") == "Succeeded" or code == 0:
        if (said := str(ended.get("message") or "")).startswith("inactivity: "):
            return _end("stopped", "inactivity", 0, said.removeprefix("inactivity: ").rstrip("."), finished)
        return _end("done", "exited", 0, None, finished)
    if (disrupted := condition(pod, "DisruptionTarget")) is not None or status.get("reason") == "Evicted":
        why = _disruption(disrupted or {}, status)
        reason = "node-unreachable" if (disrupted or {}).get("reason") in NODE_LOST else "disrupted"
        return _end("failed", reason, code, why, finished)
    said = str(ended.get("message") or "")
    if said.startswith("start-failed: "):
        return _end("failed", "start-failed", None, said.removeprefix("start-failed: ").rstrip("."), finished)
    if said.startswith(IDLE):
        return _end("stopped", "utilization-policy", code, said.removeprefix(IDLE).rstrip("."), finished)
    if ended.get("reason") == "OOMKilled":
        text = "the kernel killed a process of the job for lack of memory"
        return _end("failed", "oom", code, text, finished)
    if code is None:
        text = str(status.get("message") or status.get("reason") or "its pod failed")
        return _end("failed", "start-failed", None, text.rstrip("."), finished)
    if code > 128 and (name := _signal(code - 128)):
        return _end("failed", "signalled", code, f"the commands were killed by {name}", finished)
    return _end("failed", "exited", code, f"the commands exited with code {code}", finished)


def _end(state: str, reason: str, code: int | None, message: str | None, finished: float | None) -> dict[str, Any]:
    return {"state": state, "reason": reason, "exit_code": code, "message": message, "finished_at": finished}


def _disruption(found: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    text = _short(found.get("message") or status.get("message"))
    words = _DISRUPTIONS.get(str(found.get("reason")), "it was evicted")
    return f"{words} ({text})" if text else words


def _signal(number: int) -> str | None:
    return signal.Signals(number).name if number in set(signal.Signals) else None


def _short(text: object) -> str:
    return " ".join(str(text or "").split())[:300].rstrip(".")


def _node(pod: Pod) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "its node")


def _image(pod: Pod) -> str:
    containers = (pod.get("spec") or {}).get("containers") or [{}]
    return str(containers[0].get("image"))
