"""The fake cluster as tests hold it: a thread with the API server and all controllers, and handles to drive them."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from aiohttp import web

from lambdactl.backends.kubernetes.resources import BY_KIND, BY_NAME, NAMESPACES, NODES, PODS, Resource

from . import admission
from .accounts import Share
from .cronjobs import CronJobs
from .events import Events
from .handles import NodeHandle, PodHandle
from .jobs import Jobs
from .kubelet import Kubelet
from .nodes import FakeNode
from .process import ProcessKubelet
from .rbac import EVERYTHING, Rule, User
from .scheduler import Scheduler
from .server import ApiServer, Fault, Seen
from .store import Object, Store
from .streams import Streams
from .tls import Authority
from .watches import Watches
from .workloads import Deployments, GarbageCollector

T = TypeVar("T")
ADMIN = "admin-token"


class FakeCluster:
    """A FAKE cluster; use it as a context manager.

    Args:
        nodes: its nodes.
        mode: ``scripted`` (the test drives each pod by `pod`) or ``process`` (pods are real processes; needs root).
        auto: in the scripted mode, pods run as soon as they are placed.
        tls: serve HTTPS, with certificates of an authority of its own.
        images: in the process mode, image names to root folders ("/" is this machine); None: every image is "/".
        root: in the process mode, the folder of the pods.
        shares: in the process mode, by image, folders of this machine that its containers see, read-only.
        bookmarks: seconds between a watch's bookmarks.
    """

    def __init__(
        self,
        nodes: Iterable[FakeNode] = (),
        *,
        mode: str = "scripted",
        auto: bool = False,
        tls: bool = False,
        images: dict[str, Path] | None = None,
        root: Path | None = None,
        shares: Mapping[str, Sequence[Share]] | None = None,
        bookmarks: float = 1.0,
    ) -> None:
        self.store = Store()
        self.server = ApiServer(self.store, {ADMIN: User("admin")})
        self.watches = Watches(self.server, bookmarks=bookmarks)
        self.events = Events(self.store)
        self.kubelet: Kubelet = (
            ProcessKubelet(self.server, self.events, images=images, root=root)
            if mode == "process"
            else Kubelet(self.server, self.events, auto=auto)
        )
        Streams(self.server, self.kubelet)
        self.scheduler = Scheduler(self.store, self.events)
        self.jobs = Jobs(self.server, self.events)
        self.cron_jobs = CronJobs(self.server, self.events)
        self.deployments = Deployments(self.server, self.events)
        self.collector = GarbageCollector(self.server)
        accounts = None
        if isinstance(self.kubelet, ProcessKubelet):
            accounts, self.kubelet.shares = self.kubelet.accounts, shares or {}
        self.authority = Authority(addresses=(accounts.gateway,) if accounts else ()) if tls else None
        if accounts is not None and self.authority is not None:
            accounts.ca, accounts.port = self.authority.ca_pem().decode(), lambda: self.port
        self.port = 0
        self.trouble: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fake-kube", daemon=True)
        self._started = threading.Event()
        self._changed = asyncio.Event()
        self._stopping = False
        self.store.listeners.append(lambda *_: self._changed.set())
        for name in ("default", "kube-system"):
            self.store.create(NAMESPACES, "", {"metadata": {"name": name}, "status": {"phase": "Active"}})
        for index, node in enumerate(nodes):
            self.store.create(NODES, "", node.manifest(index))

    def __enter__(self) -> FakeCluster:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(30)
        if self.trouble is not None:
            raise self.trouble

    # The thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        runner = web.AppRunner(self.server.app(), shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        self._runner = runner
        await self._listen()
        self._started.set()
        try:
            await self._manage()
        except BaseException as error:
            self.trouble = error
            raise
        finally:
            await self.kubelet.close()
            self._abort()
            await runner.cleanup()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

    async def _listen(self) -> None:
        context = self.authority.server_context() if self.authority else None
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def _manage(self) -> None:
        """Controllers look whenever something changes, and four times a second for what is due."""
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.25)
            self._changed.clear()
            self.collector.step()
            self.cron_jobs.step()
            self.jobs.step()
            self.deployments.step()
            self.scheduler.step()
            self.kubelet.step()

    def _stop(self) -> None:
        self._stopping = True
        self._changed.set()

    def _abort(self) -> None:
        for transport in list(self.server.open):
            transport.abort()

    def call(self, function: Callable[[], T]) -> T:
        """Run something in the cluster's thread."""

        async def inside() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result(30)

    def wait(self, condition: Callable[[], T], *, timeout: float = 30) -> T:
        """Until ``condition`` gives something true."""
        deadline = time.monotonic() + timeout
        while not (found := self.call(condition)):
            assert time.monotonic() < deadline, "the cluster did not come to that"
            time.sleep(0.01)
        return found

    # Who and where.

    @property
    def url(self) -> str:
        return f"{'https' if self.authority else 'http'}://127.0.0.1:{self.port}"

    def user(self, name: str, rules: Sequence[Rule] = (EVERYTHING,), *, token: str | None = None) -> str:
        """Make a user; its token."""
        token = token or f"{name}-token"
        self.server.users[token] = User(name, tuple(rules))
        return token

    def kubeconfig(
        self, path: Path, *, token: str = ADMIN, namespace: str | None = "default", context: str = "fake", **user: Any
    ) -> Path:
        """Write a kubeconfig; a folder gets the file ``kubeconfig``. ``user`` replaces the user's entry."""
        path = path / "kubeconfig" if path.is_dir() else path
        cluster: dict[str, Any] = {"server": self.url}
        if self.authority:
            cluster["certificate-authority-data"] = self.authority.ca_data()
        entry = {"cluster": context, "user": context} | ({"namespace": namespace} if namespace else {})
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": context,
            "clusters": [{"name": context, "cluster": cluster}],
            "contexts": [{"name": context, "context": entry}],
            "users": [{"name": context, "user": user or {"token": token}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(document))
        return path

    def target(self, folder: Path, **options: Any) -> Any:
        """A Target of a new kubeconfig in ``folder``."""
        from lambdactl.backends.kubernetes.config import targets

        return targets(str(self.kubeconfig(folder, **options)), environ={})[0]

    # Objects, behind the API's back.

    def put(self, item: Object, namespace: str = "default", *, status: Object | None = None) -> Object:
        """Create an object (checked by the schema), without rights or quotas."""
        resource = BY_KIND.get(item["kind"]) or self._extra(item)
        space = (item["metadata"].get("namespace") or namespace) if resource.namespaced else ""
        admission.validate(item)

        def make() -> Object:
            made = copy.deepcopy(item)
            admission.default(resource.plural, made)
            if status is not None:
                made["status"] = status
            return self.store.create(resource, space, made)

        return self.call(make)

    def claim(self, name: str, mode: str = "ReadWriteMany", phase: str = "Bound", namespace: str = "default") -> Object:
        """A PersistentVolumeClaim; in the process mode, a folder that the pods of all nodes see."""
        spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}
        item = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
        return self.put(item, namespace, status={"phase": phase})

    def _extra(self, item: Object) -> Resource:
        group, _, version = item["apiVersion"].rpartition("/")
        resource = Resource(group, version, item["kind"].lower() + "s", item["kind"])
        self.server.extra[resource.plural] = resource
        self.server.groups.add(group)
        return resource

    def objects(self, resource: Resource = PODS, namespace: str | None = None) -> list[Object]:
        return self.call(lambda: copy.deepcopy(self.store.all(resource.plural, namespace)))

    def get(self, resource: Resource, name: str, namespace: str = "default") -> Object | None:
        space = namespace if resource.namespaced else ""
        return self.call(lambda: copy.deepcopy(self.store.find(resource.plural, space, name)))

    def change(
        self, resource: Resource, name: str, change: Callable[[Object], object], namespace: str = "default"
    ) -> None:
        """Change an object by a function."""
        space = namespace if resource.namespaced else ""

        def inside() -> None:
            item = copy.deepcopy(self.store.get(resource, space, name))
            change(item)
            self.store.update(resource.plural, item)

        self.call(inside)

    def remove(self, resource: Resource, name: str, namespace: str = "default", **options: Any) -> None:
        """What a DELETE does."""
        space = namespace if resource.namespaced else ""
        self.call(lambda: self.server.delete(resource, self.store.get(resource, space, name), options))

    def left(self, *plurals: str, namespace: str = "default") -> list[str]:
        """What exists in the namespace, as kind/name, events left out: for tests that nothing is left."""
        kinds = set(plurals) or set(BY_NAME) - {"events"}
        keys = self.call(lambda: list(self.store.objects))
        return sorted(f"{plural}/{name}" for plural, space, name in keys if plural in kinds and space == namespace)

    def messages(self, reason: str | None = None) -> list[str]:
        """The texts of events."""
        return [e["message"] for e in self.objects(BY_NAME["events"]) if reason in (None, e["reason"])]

    def pod(self, name: str, namespace: str = "default") -> PodHandle:
        """A handle to a pod, by its name or a beginning of it that is enough."""
        return PodHandle(self, name, namespace)

    def rank(self, job: str, index: int) -> PodHandle:
        """A handle to an Indexed Job's newest pod of an index, once it is there."""
        label = "batch.kubernetes.io/job-completion-index"

        def find() -> str | None:
            for pod in reversed(self.store.all("pods")):
                labels = pod["metadata"].get("labels") or {}
                if labels.get("job-name") == job and labels.get(label) == str(index):
                    return str(pod["metadata"]["name"])
            return None

        return PodHandle(self, self.wait(find), "default")

    def node(self, name: str) -> NodeHandle:
        """A handle to a node."""
        return NodeHandle(self, name)

    def fire(self, cron_job: str, namespace: str = "default", *, at: float | None = None) -> str | None:
        """Let a CronJob be due, now or in another minute; its new Job's name, None where that time is skipped."""
        return self.call(lambda: self.cron_jobs.fire(cron_job, namespace, at))

    # Bad days.

    @property
    def requests(self) -> list[Seen]:
        """Every request that was let in, in order."""
        return self.server.requests

    def fail_next(
        self, verb: str, resource: str, status: int, *, times: int = 1, message: str = "told to fail"
    ) -> None:
        """The next matching requests fail; ``*`` matches all, the status 0 cuts the connection."""
        self.server.faults.append(Fault(verb, resource, status, times, message))

    def cut_connections(self) -> None:
        """Every open connection is reset."""
        self.call(self._abort)

    def expire_watches(self) -> None:
        """Every watch gets 410, and what was known before is too old."""
        self.call(self.watches.expire)

    def end_watches(self) -> None:
        """Every watch ends in good order."""
        self.call(self.watches.end)

    def down(self) -> None:
        """Nothing listens any more, until `up`."""

        async def inside() -> None:
            await self._site.stop()
            self._abort()

        asyncio.run_coroutine_threadsafe(inside(), self._loop).result(30)

    def up(self, warm_up: float = 0.3) -> None:
        """Listen again, on the same port.

        As the real one, it refuses limited users (403) for the first moments, in which it has not read the roles yet.
        """
        self.server.warm_at = time.monotonic() + warm_up
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)

    def restart(self, down: float = 0.2, warm_up: float = 0.3) -> None:
        """The API server is away for a moment."""
        self.down()
        time.sleep(down)
        self.up(warm_up)

    def client_context(self) -> ssl.SSLContext | None:
        return self.authority.client_context() if self.authority else None
