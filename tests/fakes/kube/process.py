"""The fake's kubelets in the process mode: a pod's containers really run, as processes of this machine.

Each pod has a network namespace and an address of its own; each container a mount, PID, UTS and IPC namespace, so
that its first process is PID 1 and everything dies with it, as in a real one. Needs root, ``unshare``, ``nsenter`` and
``ip``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import shutil
import signal
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import downward, terminal
from .accounts import Accounts, Share
from .clusterips import ClusterIPs
from .events import Events
from .jobs import ENDED
from .kubelet import Kubelet, container_status
from .nodeports import NodePorts
from .podnet import NetworkTrouble, PodNetwork, localhost, run
from .podprobes import SPEED, Prober, probed
from .podroot import NotYet, Volumes, environment, prepare_volumes, refresh, script
from .server import ApiServer
from .sidecars import Sidecars, sidecars
from .store import Object, now
from .usable import usable as usable

UNSHARE = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "sh")


@dataclass
class _Container:
    process: asyncio.subprocess.Process
    output: asyncio.StreamReader | None = None
    inside: int | None = None
    """The PID of its first process, as this machine sees it."""
    env: dict[str, str] = field(default_factory=dict)

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first() or self.process.pid, number)

    def entered(self) -> bool:
        """Whether the first process has its root folder, and so is the container's own."""
        with contextlib.suppress(OSError):
            return self.first() is not None and os.readlink(f"/proc/{self.inside}/root") != "/"
        return False

    def first(self) -> int | None:
        if self.inside is None:
            with contextlib.suppress(OSError, ValueError, IndexError):
                path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
                self.inside = int(path.read_text().split()[0])
        return self.inside


@dataclass
class _Pod:
    folder: Path
    space: str = ""
    volumes: Volumes | None = None
    containers: dict[str, _Container] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    stopping: asyncio.Task[None] | None = None
    grace_ends: float = 0.0
    sidecars: Sidecars | None = None


class ProcessKubelet(Kubelet):
    """Runs pods. ``images`` maps image names to root folders; None: every image is this machine's root."""

    def __init__(
        self, server: ApiServer, events: Events, *, images: dict[str, Path] | None, root: Path | None = None
    ) -> None:
        super().__init__(server, events)
        self.images = images
        self.shares: Mapping[str, Sequence[Share]] = {}
        self.root = root or Path(tempfile.mkdtemp(prefix="fake-kube-"))
        self._own_root = root is None
        self.network = PodNetwork()
        self.accounts = Accounts(server, self.network.gateway)
        self.pods: dict[str, _Pod] = {}
        self._node_ports = NodePorts(self.store, self.connect)
        self._cluster_ips = ClusterIPs(server, self.network, self.connect)
        self._tasks: set[asyncio.Future[None]] = set()
        self._stale = False
        self.store.listeners.append(self._hear)
        self._prober = Prober(self)

    def _hear(self, kind: str, plural: str, item: Object) -> None:
        self._stale = self._stale or (kind == "MODIFIED" and plural in ("secrets", "configmaps"))
        if kind == "DELETED" and plural == "pods" and item["metadata"]["uid"] in self.pods:
            # Deleted without a grace time: the object is gone at once, and the kubelet kills what it has of it.
            self.terminate({**item, "metadata": {**item["metadata"], "deletionGracePeriodSeconds": 0}})

    def step(self) -> None:
        super().step()
        if self._stale:
            self._stale = False
            for pod in self.store.all("pods"):
                mine = self.pods.get(pod["metadata"]["uid"])
                if mine is not None and mine.volumes is not None:
                    refresh(self.store, pod, mine.volumes)
        for pod in self.store.all("pods"):
            if (mine := self.pods.get(pod["metadata"]["uid"])) is not None and mine.volumes is not None:
                for volume in pod["spec"].get("volumes") or []:
                    if "downwardAPI" in volume:
                        downward.write(pod, volume, mine.volumes.paths[volume["name"]])
        self._node_ports.step()
        self._cluster_ips.step()

    def start(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        self.creating(pod)
        self.store.update("pods", pod)
        self.pods[uid] = mine = _Pod(self.root / "pods" / uid)
        mine.task = asyncio.ensure_future(self._life(pod, mine))

    def terminate(self, pod: Object) -> None:
        mine = self.pods.get(pod["metadata"]["uid"])
        if mine is None:
            super().terminate(pod)
            return
        grace = pod["metadata"].get("deletionGracePeriodSeconds", 30)
        ends = asyncio.get_running_loop().time() + grace
        if mine.stopping is None:
            mine.grace_ends = ends
            mine.stopping = asyncio.ensure_future(self._stop(pod, mine))
        else:
            mine.grace_ends = min(mine.grace_ends, ends)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # A pod's life.

    async def _life(self, pod: Object, mine: _Pod) -> None:
        uid = pod["metadata"]["uid"]
        try:
            mine.space, address = await self.network.add(uid)
            pod["status"]["podIP"] = address
            if not await self._prepared(pod, mine) or not await self._inits(pod, mine):
                return
            always = pod["spec"].get("restartPolicy") == "Always"
            for container in pod["spec"]["containers"]:
                await self._launch(pod, mine, container)
            self.run(self._merged(pod), address, ready=not probed(pod["spec"]["containers"][0]))
            probing = asyncio.ensure_future(self._prober.watch(pod, mine))
            self._tasks.add(probing)
            restarts = 0
            while True:
                codes = await asyncio.gather(*(self._reap(pod, mine, c["name"]) for c in pod["spec"]["containers"]))
                probing.cancel()
                if not always or mine.stopping is not None:
                    break
                restarts += 1
                self._again(pod, codes, restarts)
                # The kubelet's back-off (10 s, 20 s ... 5 minutes), sped up; a container's first restart comes at once.
                await asyncio.sleep(min(0.1 * 2**restarts, 5))
                if mine.stopping is not None:
                    break
                for container in pod["spec"]["containers"]:
                    await self._launch(pod, mine, container)
                self._runs_again(pod, restarts)
                probing = asyncio.ensure_future(self._prober.watch(pod, mine))
                self._tasks.add(probing)
            if uid in self.pods and self.store.find("pods", pod["metadata"]["namespace"], pod["metadata"]["name"]):
                self._ended(self._fresh(pod), codes)
        except (NetworkTrouble, OSError) as error:
            self.events.tell(
                pod, "FailedCreatePodSandBox", f"Failed to create pod sandbox: {error}", "kubelet", warning=True
            )
        finally:
            await self._clean(uid, mine)

    async def _prepared(self, pod: Object, mine: _Pod) -> bool:
        """Images and volumes, tried until they are there."""
        while mine.stopping is None:
            try:
                missing = [
                    c["image"]
                    for c in [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
                    if self.images is not None and c["image"] not in self.images
                ]
                if missing:
                    await self._no_image(pod, missing[0])
                    continue
                node = self.root / "nodes" / pod["spec"]["nodeName"]
                node.mkdir(parents=True, exist_ok=True)
                mine.volumes = prepare_volumes(self.store, pod, mine.folder, node)
                for name, size in mine.volumes.sizes.items():
                    path = mine.volumes.paths[name]
                    await run(
                        "mount", "-t", "tmpfs", "-o", f"mode=1777{',size=' + size if size else ''}", "none", str(path)
                    )
                    mine.volumes.mounted.append(path)
            except NotYet as why:
                self.events.tell(pod, "FailedMount", str(why), "kubelet", warning=True)
                await asyncio.sleep(0.3)
            else:
                return True
        return False

    async def _no_image(self, pod: Object, image: str) -> None:
        never = pod["spec"]["containers"][0].get("imagePullPolicy") == "Never"
        reason = "ErrImageNeverPull" if never else "ErrImagePull"
        message = f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": not found'
        self.waiting(self._merged(pod), reason, message)
        await asyncio.sleep(0.5)
        if not never and pod["metadata"]["uid"] in self.pods:
            with contextlib.suppress(Exception):
                self.waiting(
                    self._merged(pod), "ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {message}'
                )
        await asyncio.sleep(0.5)

    async def _inits(self, pod: Object, mine: _Pod) -> bool:
        mine.sidecars = Sidecars(self, pod, mine)
        for container in pod["spec"].get("initContainers") or []:
            if container in sidecars(pod):
                await mine.sidecars.start(container)
                continue
            await self._launch(pod, mine, container)
            code = await self._reap(pod, mine, container["name"])
            if code:
                fresh = self._fresh(pod)
                state = {"terminated": {"exitCode": code, "reason": "Error", "finishedAt": now(), "startedAt": now()}}
                fresh["status"]["initContainerStatuses"] = [container_status(container, state)]
                self.end(fresh, code)
                return False
        return True

    async def _launch(self, pod: Object, mine: _Pod, container: Object) -> None:
        assert mine.volumes is not None
        env = environment(self.store, pod, container)
        account = await self.accounts.of(pod, mine.folder, env)
        folder = mine.folder / container["name"]
        folder.mkdir(parents=True, exist_ok=True)
        image = (self.images or {}).get(container["image"], Path("/"))
        text = script(
            pod, container, image, folder, mine.volumes, env, [*self.shares.get(container["image"], ()), *account]
        )
        file = mine.folder / f"{container['name']}.sh"
        file.write_text(text)
        reader, theirs, _ = await terminal.open_terminal() if container.get("tty") else (None, None, None)
        process = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", mine.space, *UNSHARE, str(file),
            stdin=asyncio.subprocess.DEVNULL if theirs is None else theirs,
            stdout=asyncio.subprocess.PIPE if theirs is None else theirs,
            stderr=asyncio.subprocess.DEVNULL,  # unshare's own words; the script joins the container's two streams
            start_new_session=True,
        )  # fmt: skip
        if theirs is not None:
            os.close(theirs)
        mine.containers[container["name"]] = one = _Container(process, env=env, output=reader or process.stdout)
        while process.returncode is None and not one.entered():  # noqa: ASYNC110 - /proc tells nobody
            await asyncio.sleep(0.005)

    async def _reap(self, pod: Object, mine: _Pod, name: str) -> int:
        """Keep what a container writes, until its end; its exit code."""
        process, output, log = mine.containers[name].process, mine.containers[name].output, self.log(pod, name)
        assert output is not None
        while data := await terminal.read(output):
            log.write(data)
        code = await process.wait()
        return 128 - code if code < 0 else code

    def _ended(self, pod: Object, codes: list[int]) -> None:
        code = next((code for code in codes if code), 0)
        self.end(pod, code)
        pod = self._fresh(pod)
        for status, own in zip(pod["status"]["containerStatuses"], codes, strict=True):
            status["state"]["terminated"] |= {"exitCode": own, "reason": "Error" if own else "Completed"}
            if text := self.message(pod, status["name"]):
                status["state"]["terminated"]["message"] = text
        self.store.update("pods", pod)

    def message(self, pod: Object, container: str) -> str:
        """What a container has written as its last word."""
        file = self.root / "pods" / pod["metadata"]["uid"] / f"{container}.message"
        return file.read_text(errors="replace")[:4096] if file.is_file() else ""

    async def _stop(self, pod: Object, mine: _Pod) -> None:
        """preStop, SIGTERM, the grace time, SIGKILL, and the pod is gone."""
        loop = asyncio.get_running_loop()
        for container in pod["spec"]["containers"]:
            before = (container.get("lifecycle") or {}).get("preStop") or {}
            if nap := (before.get("sleep") or {}).get("seconds"):
                await asyncio.sleep(nap * SPEED)
            hook = before.get("exec")
            if hook and container["name"] in mine.containers:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        self.execute(pod, hook["command"], b""), max(0.1, mine.grace_ends - loop.time())
                    )
        own = [one for name, one in mine.containers.items() if name in {c["name"] for c in pod["spec"]["containers"]}]
        for one in own:
            one.kill(signal.SIGTERM)
        while mine.task is not None and not mine.task.done():
            if loop.time() >= mine.grace_ends:
                for one in own:
                    one.kill(signal.SIGKILL)
            await asyncio.wait({mine.task}, timeout=0.05)
        self.pods.pop(pod["metadata"]["uid"], None)
        current = self.store.find("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        if current is not None and current["metadata"]["uid"] == pod["metadata"]["uid"]:
            if current["status"].get("phase") not in ENDED:
                self.end(copy.deepcopy(current), 137)
            self.forget(pod)

    async def _clean(self, uid: str, mine: _Pod) -> None:
        if mine.sidecars is not None:
            await mine.sidecars.end()
        for one in mine.containers.values():
            if one.process.returncode is None:
                one.kill(signal.SIGKILL)
                await one.process.wait()
        for path in mine.volumes.mounted if mine.volumes else []:
            await run("umount", "-l", str(path), check=False)
        await self.network.remove(uid)
        shutil.rmtree(mine.folder, ignore_errors=True)

    def _merged(self, pod: Object) -> Object:
        """The stored pod with the status fields that were set here."""
        fresh = self._fresh(pod)
        fresh["status"] = {**fresh["status"], "podIP": pod["status"].get("podIP", "")}
        return fresh

    def _again(self, pod: Object, codes: list[int], restarts: int) -> None:
        """Its containers have ended, and wait to be started again."""
        fresh = self._fresh(pod)
        for status, code in zip(fresh["status"]["containerStatuses"], codes, strict=True):
            ended = {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": now()}
            ended["startedAt"] = (status["state"].get("running") or {}).get("startedAt", now())
            if text := self.message(pod, status["name"]):
                ended["message"] = text
            status["lastState"] = {"terminated": ended}
            waits = {"reason": "CrashLoopBackOff", "message": f"back-off restarting failed container {status['name']}"}
            status["state"] = {"waiting": waits}
            status |= {"ready": False, "started": False, "restartCount": restarts - 1}
        self.tell_ready(fresh)
        self.store.update("pods", fresh)

    def _runs_again(self, pod: Object, restarts: int) -> None:
        fresh = self._fresh(pod)
        ready = not probed(pod["spec"]["containers"][0])
        for status in fresh["status"]["containerStatuses"]:
            status["state"] = {"running": {"startedAt": now()}}
            status |= {"ready": ready, "started": ready, "restartCount": restarts}
        self.tell_ready(fresh)
        self.store.update("pods", fresh)

    # Doors.

    async def execute(
        self, pod: Object, command: list[str], stdin: bytes, container: str | None = None
    ) -> tuple[int, bytes, bytes]:
        mine = self.pods.get(pod["metadata"]["uid"])
        one = mine.containers.get(container or pod["spec"]["containers"][0]["name"]) if mine else None
        if one is None or (first := one.first()) is None:
            return 1, b"", b"the container does not run"
        process = await asyncio.create_subprocess_exec(
            "nsenter", f"--target={first}", "--mount", "--pid", "--uts", "--ipc", "--net", "--root", "--wd",
            "/usr/bin/env", "-i", *(f"{k}={v}" for k, v in one.env.items()), *command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate(stdin)
        return process.returncode or 0, out, err

    async def connect(self, pod: Object, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._fresh(pod)["status"].get("podIP") or "0.0.0.0", port)

    async def forward(self, pod: Object, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As container runtimes do it: to the pod's own localhost."""
        mine = self.pods.get(pod["metadata"]["uid"])
        first = next((one.first() for one in mine.containers.values()), None) if mine else None
        return await localhost(first or -1, port)

    async def close(self) -> None:
        for mine in list(self.pods.values()):
            for one in mine.containers.values():
                one.kill(signal.SIGKILL)
            for task in (mine.stopping, mine.task):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await task
        self._node_ports.close()
        self.accounts.close()
        self._cluster_ips.close()
        await self.network.close()
        if self._own_root:
            shutil.rmtree(self.root, ignore_errors=True)
