"""From a planned run to one that executes without a controller: make its objects, wait until all have a place, say go.

The addresses reach the ranks as annotations of their pods, which the kubelet writes into a downward API volume. It does
so when the pod changes, not at its next periodic sync (60 to 90 s, which is what a changed ConfigMap waits for), and
the controller needs neither `exec` nor a server in the pods. See docs/kubernetes.md, "How a run starts".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from lambdactl.errors import CapacityError, LambdactlError

from . import parts
from .client import Client
from .control import end_others, view_whole
from .errors import AlreadyExists, APIError, Forbidden, NotFound
from .labels import RUN_ID
from .model import GO, PEERS, KubeRun
from .objects import job, other_jobs, owned
from .podstate import commands_started, condition, hopeless, moment, running, told_to_go, unplaced
from .resources import BY_KIND, JOBS, PODS
from .session import RunSession
from .view import RunView

UNSCHEDULABLE_PATIENCE = 15.0
"""Seconds that a rank may be without a node before a run that shall not wait is taken back."""
_AT_ONCE = 32
Bring = Callable[[Client, list[str]], Awaitable[None]]


async def submit(client: Client, run: KubeRun) -> dict[str, Any]:
    """Make the run's objects; the created Job.

    A Job of the same name is the lock: the API makes one of them only. A finished one gives way.

    Raises:
        CapacityError: a run of that name is active.
        APIError: the API refuses; nothing is left.
    """
    created = await _create_job(client, run)
    try:
        for item in owned(run, created["metadata"]):
            await _create_owned(client, item)
        others = [await client.create(JOBS, item) for item in other_jobs(run, created["metadata"])]
        if run.queue is None:
            # The first last: what it says of the run is true of all then.
            for other in others:
                await client.patch(JOBS, other["metadata"]["name"], {"spec": {"suspend": False}})
            return await client.patch(JOBS, run.run_name, {"spec": {"suspend": False}})
    except BaseException:
        await asyncio.shield(take_back(client, run.run_name, created["metadata"]["uid"]))
        raise
    return created


async def _create_job(client: Client, run: KubeRun) -> dict[str, Any]:
    for _attempt in range(2):
        try:
            return await client.create(JOBS, job(next(parts.of_run(run))))
        except AlreadyExists:
            await _make_room(client, run.run_name)
    raise CapacityError(f"a Job named {run.run_name} appears again and again; choose another name with -n.")


async def _make_room(client: Client, name: str) -> None:
    """Remove a finished run of this name, with all that it left.

    Raises:
        CapacityError: it is active, or is not ours.
    """
    found = await client.find(JOBS, name)
    if found is None:
        return
    view = await view_whole(client, found)
    if not view.run_id:
        raise CapacityError(
            f"the namespace {client.namespace} has a Job named {name} that is not of lambdactl; use -n."
        )
    if not view.ended:
        facts = view.facts
        raise CapacityError(
            f"a run named {name} of {facts.get('owner') or 'somebody'} is active in the namespace {client.namespace}; "
            f"stop it with `lambdactl stop {name}`, or choose another name with -n."
        )
    await client.delete(JOBS, name, propagation="Foreground", uid=found["metadata"]["uid"])
    deadline = time.monotonic() + 60
    while (left := await client.find(JOBS, name)) is not None and left["metadata"]["uid"] == found["metadata"]["uid"]:
        if time.monotonic() > deadline:
            raise CapacityError(f"the finished run {name} is still being removed; try again, or use -n.")
        await asyncio.sleep(0.2)


async def _create_owned(client: Client, item: dict[str, Any]) -> None:
    """Create an object; one of that name which an earlier run has left is replaced."""
    resource = BY_KIND[item["kind"]]
    name = item["metadata"]["name"]
    for _attempt in range(50):
        try:
            await client.create(resource, item)
        except AlreadyExists:
            old = await client.find(resource, name)
            if old is not None and "lambdactl.dev/run-id" not in (old["metadata"].get("labels") or {}):
                raise
            if old is not None:
                await client.delete(resource, name, uid=old["metadata"]["uid"])
            await asyncio.sleep(0.1)
        else:
            return
    raise LambdactlError(f"{item['kind']} {name} of an earlier run does not go away; use another name with -n.")


async def take_back(client: Client, name: str, uid: str | None = None) -> None:
    """Remove a run that shall not be: its Job, and by its owner references everything else."""
    await client.delete(JOBS, name, propagation="Background", uid=uid)


@asynccontextmanager
async def taken_back_where_forbidden(client: Client, name: str, uid: str, run_id: str) -> AsyncIterator[None]:
    """Remove a run that this login may make but not start or follow, unless a rank was told to go; as far as it can."""
    try:
        yield
    except Forbidden:
        with suppress(APIError):
            pods = (await client.list(PODS, labels=f"{RUN_ID}={run_id}")).items
            if not any(told_to_go(pod) for pod in pods):
                await take_back(client, name, uid)
        raise


class Starter:
    """Brings one run from its objects to its commands; any machine can go on where another one went away.

    Args:
        wait: patience without end for nodes (`--wait`), instead of taking the run back.
        notify: gets a sentence when what the run waits for changes.
        bring: brings its files to its pods, by their names in rank order; None: another machine does.
    """

    def __init__(
        self,
        session: RunSession,
        *,
        wait: bool = False,
        notify: Callable[[str], None] = lambda _text: None,
        bring: Bring | None = None,
    ) -> None:
        self.session = session
        self.client = session.client
        self._wait = wait
        self._notify = notify
        self._bring = bring
        self._said = ""
        self._without_node: float | None = None
        self._deadline_set = False

    async def run(self) -> bool:
        """Return when all ranks' commands have started (True), or the run has ended before (False).

        Raises:
            CapacityError: it does not fit; it was taken back.
            LambdactlError: it can never start (its image, a quota, a policy); it was taken back.
        """
        while True:
            view = self.session.view
            if view.job_gone or view.stop_order is not None or view.ended:
                return False
            if (problem := self._problem(view)) is not None:
                await take_back(self.client, self.session.job_name, (view.job or {}).get("metadata", {}).get("uid"))
                raise problem
            if view.lagging:
                await end_others(self.client, view.lagging)
            if await self._advance(view):
                return True
            self._tell(view)
            await self.session.change(timeout=1.0)

    def _problem(self, view: RunView) -> LambdactlError | None:
        """Why the run will not start; None while it may."""
        if self.session.refusal is not None and len(view.pods) < view.nodes:
            return self.session.refusal
        name = view.run_name
        for rank, pod in sorted(view.pods.items()):
            if (why := hopeless(pod)) is not None:
                return LambdactlError(f"{name} cannot start: {why}; it was taken back.")
            if rank in view.gone and not told_to_go(pod):
                return LambdactlError(f"{name} did not start: the pod of rank {rank} was deleted; it was taken back.")
        return None if self._wait else self._no_node(view)

    def _no_node(self, view: RunView) -> CapacityError | None:
        without = {rank: text for rank, pod in view.pods.items() if (text := _unscheduled(pod)) is not None}
        if not without:
            self._without_node = None
            return None
        now = time.monotonic()
        self._without_node = self._without_node or now
        if now - self._without_node < UNSCHEDULABLE_PATIENCE:
            return None
        rank, text = min(without.items())
        placed = view.nodes - len(without)
        return CapacityError(
            f"{view.run_name} does not fit: {placed} of {view.nodes} ranks found a node; rank {rank}: {text}. "
            "It was taken back; pass --wait to queue for free nodes."
        )

    async def _advance(self, view: RunView) -> bool:
        """Tell the ranks that may start; whether all have been told and have started."""
        pods = view.pods
        if len(pods) < view.nodes or any(rank in view.gone for rank in pods):
            return False
        if all(told_to_go(pod) for pod in pods.values()):
            order = view.facts.get("startup_order", "any")
            return order == "any" or all(commands_started(pod) for pod in pods.values())
        if not all(running(pod) and (pod.get("status") or {}).get("podIP") for pod in pods.values()):
            return False
        begun = any(told_to_go(pod) for pod in pods.values())
        if view.facts.get("content") and not begun and not await self._deliver(view):
            return False
        ready = [rank for rank in self._may_start(view) if not told_to_go(pods[rank])]
        if ready:
            await self._set_deadline(view)
            await self._say_go(view, ready)
        return False

    async def _deliver(self, view: RunView) -> bool:
        """Bring the run's files to all ranks; False where another machine has to, or the run ends meanwhile."""
        if self._bring is None:
            self._say(f"{view.run_name} waits for its files, which {view.facts.get('owner')} brings.")
            return False
        names = [view.pods[rank]["metadata"]["name"] for rank in range(view.nodes)]
        task = asyncio.ensure_future(self._bring(self.client, names))
        try:
            while not task.done():
                await asyncio.wait([task], timeout=0.5)
                if view.job_gone or view.stop_order is not None or view.ended:
                    return False
            try:
                task.result()
            except LambdactlError as error:
                await take_back(self.client, self.session.job_name, (view.job or {}).get("metadata", {}).get("uid"))
                raise type(error)(f"{view.run_name} did not start: {error} It was taken back.") from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._bring = None
        return True

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._notify(text)

    def _may_start(self, view: RunView) -> Iterable[int]:
        order = view.facts.get("startup_order", "any")
        others = range(1, view.nodes)
        if order == "master-first" and not commands_started(view.pods[0]):
            return [0]
        if order == "workers-first" and not all(commands_started(view.pods[rank]) for rank in others):
            return others
        return range(view.nodes)

    async def _set_deadline(self, view: RunView) -> None:
        """max_duration counts from the start of the commands, and Kubernetes' limit from the start of the Job."""
        limit = view.facts.get("max_duration")
        if limit is None or self._deadline_set:
            return
        began = moment(((view.job or {}).get("status") or {}).get("startTime"))
        starts = [moment(_started_at(pod)) for pod in view.pods.values()]
        last = max((start for start in starts if start is not None), default=None)
        waited = 0.0 if began is None or last is None else max(0.0, last - began)
        if began is not None and time.time() - began > waited + 60:
            waited = time.time() - began  # another machine goes on with it, long after the containers had started
        spec = {"activeDeadlineSeconds": int(waited + limit + 1)}
        for name in self.session.view.job_names:
            await self.client.patch(JOBS, name, {"spec": spec})
        self._deadline_set = True

    async def _say_go(self, view: RunView, ranks: list[int]) -> None:
        peers = "".join(f"{view.pods[rank]['status']['podIP']}\n" for rank in range(view.nodes))
        gate = asyncio.Semaphore(_AT_ONCE)

        async def tell(rank: int) -> None:
            pod = view.pods[rank]["metadata"]
            annotations = {PEERS: peers, GO: "1"}
            async with gate:
                try:
                    changed = await self.client.patch(PODS, pod["name"], {"metadata": {"annotations": annotations}})
                except NotFound:
                    return  # the watch will say so
            if rank in view.pods and changed["metadata"]["uid"] == view.pods[rank]["metadata"]["uid"]:
                view.pods[rank]["metadata"] = changed["metadata"]

        await asyncio.gather(*(tell(rank) for rank in ranks))

    def _tell(self, view: RunView) -> None:
        """Say what the run waits for, once for each thing."""
        status = view.status()
        text = "" if status is None or status.state != "starting" else status.message or ""
        if text:
            self._say(f"{view.run_name}: {text}")


def _unscheduled(pod: dict[str, Any]) -> str | None:
    found = condition(pod, "PodScheduled", "False")
    if found is None or found.get("reason") not in ("Unschedulable", "SchedulingGated"):
        return None
    return unplaced(pod)


def _started_at(pod: dict[str, Any]) -> str | None:
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    return ((statuses[0].get("state") or {}).get("running") or {}).get("startedAt")
