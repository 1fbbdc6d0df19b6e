"""The fake's probes in the process mode: start-up, readiness and liveness of a pod's first container, really asked.

Periods pass five times as fast as they say, so that tests need not wait for what a kubelet does in its own time.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

from .nodeports import port_number
from .store import Object

if TYPE_CHECKING:
    from .process import ProcessKubelet

SPEED = 0.2


def probed(container: Object) -> bool:
    """Whether a container is not ready by merely running."""
    return "readinessProbe" in container or "startupProbe" in container


class Prober:
    """Asks the probes of pods; one `watch` for each start of a container."""

    def __init__(self, kubelet: ProcessKubelet) -> None:
        self.kubelet = kubelet

    async def watch(self, pod: Object, mine: Any) -> None:
        """Until it is cancelled, because the container has ended."""
        container = pod["spec"]["containers"][0]
        if probe := container.get("startupProbe"):
            self._set(pod, started=False)
            if not await self._start_up(pod, mine, probe):
                return
        self._set(pod, started=True)
        if "livenessProbe" in container:
            task = asyncio.ensure_future(self._live(pod, mine, container["livenessProbe"]))
        else:
            task = asyncio.ensure_future(asyncio.sleep(0))
        try:
            if "readinessProbe" in container:
                await self._ready(pod, mine, container["readinessProbe"])
            else:
                self._set(pod, ready=True)
            await task
        finally:
            task.cancel()

    async def watch_sidecar(self, pod: Object, mine: Any, container: Object) -> None:
        """A sidecar's readiness, until this is cancelled."""
        if "readinessProbe" in container:
            await self._ready(pod, mine, container["readinessProbe"], container["name"])

    async def _start_up(self, pod: Object, mine: Any, probe: Object) -> bool:
        failures = 0
        while mine.stopping is None:
            problem = await self._ask(pod, probe)
            if problem is None:
                return True
            failures += 1
            if failures >= probe.get("failureThreshold", 3):
                self._kill(pod, mine, "Startup", problem)
                return False
            await asyncio.sleep(probe.get("periodSeconds", 10) * SPEED)
        return False

    async def _ready(self, pod: Object, mine: Any, probe: Object, name: str | None = None) -> None:
        good = bad = 0
        while mine.stopping is None:
            problem = await self._ask(pod, probe, name)
            good, bad = (good + 1, 0) if problem is None else (0, bad + 1)
            if good >= probe.get("successThreshold", 1):
                self._set(pod, name, ready=True)
            elif bad >= probe.get("failureThreshold", 3):
                self._set(pod, name, ready=False)
                self._tell(pod, "Readiness", str(problem))
            await asyncio.sleep(probe.get("periodSeconds", 10) * SPEED)

    async def _live(self, pod: Object, mine: Any, probe: Object) -> None:
        bad = 0
        while mine.stopping is None:
            problem = await self._ask(pod, probe)
            bad = 0 if problem is None else bad + 1
            if bad >= probe.get("failureThreshold", 3):
                self._kill(pod, mine, "Liveness", str(problem))
                return
            await asyncio.sleep(probe.get("periodSeconds", 10) * SPEED)

    def _tell(self, pod: Object, kind: str, problem: str) -> None:
        self.kubelet.events.tell(pod, "Unhealthy", f"{kind} probe failed: {problem}", "kubelet", warning=True)

    def _kill(self, pod: Object, mine: Any, kind: str, problem: str) -> None:
        self._tell(pod, kind, problem)
        one = mine.containers[pod["spec"]["containers"][0]["name"]]
        one.kill(signal.SIGTERM)
        asyncio.get_running_loop().call_later(2, one.kill, signal.SIGKILL)

    def _set(
        self, pod: Object, name: str | None = None, *, started: bool | None = None, ready: bool | None = None
    ) -> None:
        meta = pod["metadata"]
        if self.kubelet.store.find("pods", meta["namespace"], meta["name"]) is None:
            return
        fresh = self.kubelet._fresh(pod)
        statuses = [*fresh["status"]["containerStatuses"], *(fresh["status"].get("initContainerStatuses") or [])]
        status = next(held for held in statuses if name in (None, held["name"]))
        if "running" not in status["state"]:
            return
        if started is not None:
            status["started"] = started
        if ready is not None and status["ready"] != ready:
            status["ready"] = ready
            self.kubelet.tell_ready(fresh)
        self.kubelet.store.update("pods", fresh)

    async def _ask(self, pod: Object, probe: Object, name: str | None = None) -> str | None:
        """One question; None when the answer is good."""
        try:
            async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
                if "exec" in probe:
                    code, out, err = await self.kubelet.execute(pod, probe["exec"]["command"], b"", name)
                    return None if code == 0 else (out + err).decode(errors="replace")
                where = probe.get("tcpSocket") or probe["httpGet"]
                reader, writer = await self.kubelet.connect(pod, port_number(pod, where["port"]))
                try:
                    return None if "tcpSocket" in probe else await _get(reader, writer, where)
                finally:
                    writer.close()
        except TimeoutError:
            return "context deadline exceeded"
        except OSError as error:
            return f"dial tcp: {error}"


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: Object) -> str | None:
    headers = "".join(f"{header['name']}: {header['value']}\r\n" for header in where.get("httpHeaders") or [])
    text = f"GET {where.get('path', '/')} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n{headers}\r\n"
    writer.write(text.encode())
    words = (await reader.readline()).split()
    with contextlib.suppress(OSError):
        await reader.read()
    code = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    return None if 200 <= code < 400 else f"HTTP probe failed with statuscode: {code}"
