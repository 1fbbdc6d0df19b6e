"""The fake's native sidecars in the process mode: init containers with restartPolicy Always.

They start before the pod's own containers, are started again whenever they end, are probed, count for the pod's
readiness, and end after its own containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

from .kubelet import container_status
from .store import Object, now

if TYPE_CHECKING:
    from .process import ProcessKubelet

GRACE = 5.0


def sidecars(pod: Object) -> list[Object]:
    """A pod's sidecars."""
    return [item for item in pod["spec"].get("initContainers") or [] if item.get("restartPolicy") == "Always"]


class Sidecars:
    """Those of one pod."""

    def __init__(self, kubelet: ProcessKubelet, pod: Object, mine: Any) -> None:
        self._kubelet, self._pod, self._mine = kubelet, pod, mine
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, container: Object) -> None:
        """It runs when this returns; the next container may start."""
        await self._kubelet._launch(self._pod, self._mine, container)
        self._running(container, 0)
        self._tasks.append(asyncio.ensure_future(self._keep(container)))

    async def _keep(self, container: Object) -> None:
        restarts = 0
        while True:
            probing = asyncio.ensure_future(self._kubelet._prober.watch_sidecar(self._pod, self._mine, container))
            code = await self._kubelet._reap(self._pod, self._mine, container["name"])
            probing.cancel()
            if self._over:
                return
            self._ended(container, code, restarts)
            restarts += 1
            await asyncio.sleep(min(0.1 * 2**restarts, 5))
            if self._over:
                return
            await self._kubelet._launch(self._pod, self._mine, container)
            self._running(container, restarts)

    def _running(self, container: Object, restarts: int) -> None:
        ready = "readinessProbe" not in container
        state = {"running": {"startedAt": now()}}
        self._set(container, {"state": state, "ready": ready, "started": True, "restartCount": restarts})

    def _ended(self, container: Object, code: int, restarts: int) -> None:
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": now()}
        if text := self._kubelet.message(self._pod, container["name"]):
            ended["message"] = text
        waits = {"reason": "CrashLoopBackOff", "message": f"back-off restarting failed container {container['name']}"}
        changes = {"state": {"waiting": waits}, "ready": False, "started": False, "restartCount": restarts}
        self._set(container, changes | {"lastState": {"terminated": ended}})

    def _set(self, container: Object, changes: Object) -> None:
        with contextlib.suppress(Exception):  # the pod may be gone
            fresh = self._kubelet._fresh(self._pod)
            held = {status["name"]: status for status in fresh["status"].get("initContainerStatuses") or []}
            status = held.setdefault(container["name"], container_status(container, {}))
            status |= changes
            fresh["status"]["initContainerStatuses"] = list(held.values())
            self._kubelet.tell_ready(fresh)
            self._kubelet.store.update("pods", fresh)

    async def end(self) -> None:
        """After the pod's own containers have ended."""
        self._over = True
        for container in sidecars(self._pod):
            one = self._mine.containers.get(container["name"])
            if one is not None and one.process.returncode is None:
                one.kill(signal.SIGTERM)
                asyncio.get_running_loop().call_later(GRACE, one.kill, signal.SIGKILL)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * GRACE)
