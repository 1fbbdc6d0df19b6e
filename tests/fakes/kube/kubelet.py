"""The fake's kubelets: what both modes share (statuses, deletion, logs), and the scripted mode."""

from __future__ import annotations

import asyncio
import copy
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lambdactl.backends.kubernetes.resources import PODS

from .events import Events
from .jobs import ENDED
from .server import ApiServer
from .store import Object, now

KEPT = 64 << 20


@dataclass
class Log:
    """One container's log: lines with their times, and who waits for more."""

    lines: list[tuple[int, bytes]] = field(default_factory=list)
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    last: int = 0
    rest: bytes = b""

    def write(self, data: bytes) -> None:
        """Whole lines are kept with the time at which they came; times never repeat."""
        *whole, self.rest = (self.rest + data).split(b"\n")
        for line in whole:
            self.last = max(time.time_ns(), self.last + 1)
            self.lines.append((self.last, line + b"\n"))
        self._wake()

    def end(self) -> None:
        if self.rest:
            self.last = max(time.time_ns(), self.last + 1)
            self.lines.append((self.last, self.rest))
            self.rest = b""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


def stamped(moment: int, line: bytes) -> bytes:
    """A line as ``timestamps=true`` gives it."""
    text = datetime.fromtimestamp(moment // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{moment % 10**9:09d}Z ".encode() + line


class Kubelet:
    """All nodes' kubelets in the scripted mode: pods wait in ContainerCreating until the test says what happens.

    With ``auto`` they run at once.
    """

    def __init__(self, server: ApiServer, events: Events, *, auto: bool = False) -> None:
        self.server, self.store, self.events = server, server.store, events
        self.auto = auto
        self.logs: dict[tuple[str, str], Log] = {}  # by pod uid and container
        self.down: set[str] = set()
        self._addresses = 10
        self._known: set[str] = set()

    def step(self) -> None:
        """Look at all pods of nodes that are up."""
        for pod in self.store.all("pods"):
            if pod["spec"].get("nodeName") and pod["spec"]["nodeName"] not in self.down:
                self._look(pod)

    def _look(self, pod: Object) -> None:
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata:
            self.terminate(copy.deepcopy(pod))
        elif metadata["uid"] not in self._known:
            self._known.add(metadata["uid"])
            self.start(copy.deepcopy(pod))

    def start(self, pod: Object) -> None:
        """A pod has come to its node."""
        self.creating(pod)
        self.store.update("pods", pod)
        if self.auto:
            self.run(self._fresh(pod))

    def terminate(self, pod: Object) -> None:
        """A pod is being deleted: SIGTERM, then gone."""
        if pod["status"].get("phase") not in ENDED:
            self.end(pod, 143, "Error")
        self.forget(pod)

    def forget(self, pod: Object) -> None:
        metadata = pod["metadata"]
        self._known.discard(metadata["uid"])
        self.store.remove("pods", metadata["namespace"], metadata["name"])

    def log(self, pod: Object, container: str | None = None) -> Log:
        name = container or pod["spec"]["containers"][0]["name"]
        return self.logs.setdefault((pod["metadata"]["uid"], name), Log())

    def creating(self, pod: Object) -> None:
        """Scheduled, volumes and images being prepared."""
        self._addresses += 1
        status = pod["status"]
        status["hostIP"] = self._host_ip(pod)
        status["startTime"] = now()
        status["containerStatuses"] = [
            container_status(c, {"waiting": {"reason": "ContainerCreating"}}) for c in pod["spec"]["containers"]
        ]
        set_conditions(pod, Initialized="True", Ready="False", ContainersReady="False")

    def run(self, pod: Object, address: str | None = None, *, ready: bool = True) -> Object:
        """The containers have started."""
        status = pod["status"]
        status["phase"] = "Running"
        status["podIP"] = address or f"10.244.{self._addresses // 250}.{self._addresses % 250}"
        status["podIPs"] = [{"ip": status["podIP"]}]
        status["containerStatuses"] = [
            container_status(c, {"running": {"startedAt": now()}}, ready=ready) for c in pod["spec"]["containers"]
        ]
        for container in pod["spec"]["containers"]:
            self.log(pod, container["name"])
        self.tell_ready(pod)
        self.events.tell(pod, "Started", "Container started", "kubelet")
        return self.store.update("pods", pod)

    def waiting(self, pod: Object, reason: str, message: str) -> None:
        """The containers wait for a reason, such as ImagePullBackOff."""
        for status in pod["status"]["containerStatuses"]:
            status["state"] = {"waiting": {"reason": reason, "message": message}}
        self.store.update("pods", pod)
        self.events.tell(pod, "Failed", message, "kubelet", warning=True)

    def end(
        self, pod: Object, code: int, reason: str | None = None, *, pod_reason: str = "", message: str = ""
    ) -> None:
        """All containers have ended; the pod with them, by restartPolicy Never."""
        state: Object = {
            "exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error"), "finishedAt": now(),
            "startedAt": pod["status"].get("startTime", now()), "containerID": "fake://x",
        }  # fmt: skip
        status = pod["status"]
        status["containerStatuses"] = [container_status(c, {"terminated": state}) for c in pod["spec"]["containers"]]
        status["phase"] = "Succeeded" if code == 0 and not pod_reason else "Failed"
        if pod_reason:
            status["reason"], status["message"] = pod_reason, message
        set_conditions(pod, Ready="False", ContainersReady="False")
        for container in pod["spec"]["containers"]:
            self.log(pod, container["name"]).end()
        self.store.update("pods", pod)

    def tell_ready(self, pod: Object) -> None:
        """The pod is ready when all its containers are, and its sidecars (native ones have a status while they run)."""
        status = pod["status"]
        own = [held["ready"] for held in status.get("containerStatuses") or []]
        beside = [
            held["ready"] for held in status.get("initContainerStatuses") or [] if "terminated" not in held["state"]
        ]
        ready = str(bool(own) and all(own + beside))
        if any(c["type"] == "Ready" and c["status"] == ready for c in status.get("conditions") or []):
            return
        set_conditions(pod, Ready=ready, ContainersReady=ready)

    def _fresh(self, pod: Object) -> Object:
        return copy.deepcopy(self.store.get(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"]))

    def _host_ip(self, pod: Object) -> str:
        node = self.store.find("nodes", "", pod["spec"]["nodeName"]) or {}
        addresses = (node.get("status") or {}).get("addresses") or []
        return next((a["address"] for a in addresses if a["type"] == "InternalIP"), "127.0.0.1")

    async def close(self) -> None:
        """Nothing runs in the scripted mode."""

    async def execute(
        self, pod: Object, command: list[str], stdin: bytes, container: str | None = None
    ) -> tuple[int, bytes, bytes]:
        """What a command in a container does; tests may replace it."""
        return 0, b"", b""

    async def connect(self, pod: Object, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a pod's port."""
        return await asyncio.open_connection(pod["status"]["podIP"], port)

    async def forward(self, pod: Object, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """What a port-forward connects to."""
        return await self.connect(pod, port)


def container_status(container: Object, state: Object, *, ready: bool = False) -> Object:
    return {
        "name": container["name"], "image": container.get("image", ""), "imageID": "", "ready": ready,
        "restartCount": 0, "started": "running" in state, "state": state, "lastState": {},
    }  # fmt: skip


def set_conditions(pod: Object, **wanted: Any) -> None:
    conditions = [c for c in pod["status"].get("conditions") or [] if c["type"] not in wanted]
    new = [{"type": kind, "status": status, "lastTransitionTime": now()} for kind, status in wanted.items()]
    pod["status"]["conditions"] = [*conditions, *new]
