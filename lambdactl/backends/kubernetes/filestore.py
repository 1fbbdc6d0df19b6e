"""The files volume: a store in the cluster, on a volume that all pods mount, which outlives them.

Opt-in by `files_volume` in the configuration. Its files are named by the sha256 of what is in them: pieces of tar
archives (archive.py), and trees, which list a tree's pieces. So what is there is never sent again, whoever brought it,
and a changed file costs its own piece. Whoever may run pods in the namespace can write the volume: every reader checks
what it reads (container/receive.sh, `fetch`), on a copy of its own.

For a run, one of its own ranks writes the store. For what has no rank that waits (a service, a schedule), `open_store`
makes a pod for the while, and a pod takes the trees by itself when its ConfigMap has `trees` (one digest a line, in the
order of `content`), `receive` and `content`, and its template what filesvolume.py says: the entrypoint sees to that.

Who stores something also removes what nobody uses. What is needed later is used meanwhile: by the replicas of a service
themselves, and for schedules, of which nothing runs between two times, by whoever is about to remove something.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from lambdactl.errors import LambdactlError

from . import labels, schedules
from .archive import LIST, PIECE, Item, Piece, archive, bundle, digest, listed, pieces
from .filesvolume import claim_problem, mount, volume
from .payload import BASE, container_file
from .podstate import condition, hopeless, running, unplaced
from .receiver import Receiver, refused
from .resources import PODS

if TYPE_CHECKING:
    from .client import Client
    from .settings import FilesVolume

COMPONENT = "files"
_START_PATIENCE = 120.0
_LIFE = 3600
_KEPT_FOR = 1200.0
"""Seconds; what was used within the last hour is never removed (container/receive.sh)."""


class StoreClosed(LambdactlError):
    """The volume cannot be used; files can be sent without it."""


class FileStore:
    """The store, as one pod that mounts it reaches it.

    Args:
        on_sent: hears how many bytes have been sent more.
    """

    def __init__(
        self, receiver: Receiver, pod: str, files: FilesVolume, on_sent: Callable[[int], None] = lambda _bytes: None
    ) -> None:
        self._receiver, self._pod, self._files = receiver, pod, files
        self._on_sent = on_sent
        self._limits = (str(files.unused // 60), str(int((files.size or 0) * (1 << 30))))
        self._kept_at = -math.inf
        self._removes = True

    async def put(self, item: Item, known: Sequence[Piece] | None = None) -> str:
        """See that all of a tree is there; its name. What is there already is not sent.

        Args:
            known: the pieces of its archive, where they have been worked out; that reads all of it.

        Raises:
            StoreClosed: the pod cannot write the volume.
            LambdactlError: files have changed meanwhile, or the pod says why not.
        """
        found = known if known is not None else await asyncio.to_thread(pieces, item)
        await self._keep()
        tree = digest(found)
        lacking = await self._have(tree)
        if lacking is None:
            await self._receiver.lines(self._pod, "learn", tree, data=listed(found))
            lacking = await self._have(tree)
        if lacking is None:
            raise StoreClosed("the files volume does not keep what is written there.")
        if lacking:
            await self._send(item, lacking)
        return tree

    async def _keep(self) -> None:
        """Count what schedules need as used now, because the pods that store something also remove what is unused."""
        if time.monotonic() - self._kept_at < _KEPT_FOR:
            return
        trees = await schedules.trees(self._receiver.client)
        self._removes = trees is not None
        if trees:
            await self._receiver.lines(self._pod, "keep", *trees)
        self._kept_at = time.monotonic()

    async def _have(self, tree: str) -> set[str] | None:
        """The sha256 of the pieces that it lacks; None where it does not know the tree."""
        answer = await self._receiver.lines(self._pod, "have", tree, *self._limits if self._removes else ())
        if ["closed"] in answer:
            raise StoreClosed("the run's user cannot write the files volume.")
        return {line[1] for line in answer if line[0] == "lacks"} if ["known"] in answer else None

    async def _send(self, item: Item, lacking: set[str]) -> None:
        held: list[tuple[Piece, bytes]] = []
        made = archive(item)
        while (found := await asyncio.to_thread(next, made, None)) is not None:
            piece, data = found
            if piece.sha256 not in lacking:
                continue
            lacking.discard(piece.sha256)
            if held and sum(one.size for one, _ in held) + piece.size > PIECE:
                await self._keep()
                await self._store(held)
                held = []
            held.append((piece, data))
        if held:
            await self._store(held)
        if lacking:
            raise LambdactlError("some of the run's files were changed while they were sent; submit the run again.")

    async def _store(self, held: Sequence[tuple[Piece, bytes]]) -> None:
        words = () if self._removes else ("all",)
        await self._receiver.lines(self._pod, "store", LIST, *words, data=await asyncio.to_thread(bundle, held))
        self._on_sent(sum(piece.size for piece, _ in held))


@asynccontextmanager
async def open_store(
    client: Client,
    files: FilesVolume,
    image: str,
    *,
    on_sent: Callable[[int], None] = lambda _bytes: None,
    security: dict[str, Any] | None = None,
) -> AsyncIterator[FileStore]:
    """The store by a pod of its own, which is there only meanwhile.

    Args:
        image: any that has tar and sha256sum; the one that will take the files is there on some node already.
        security: the container's securityContext.

    Raises:
        LambdactlError: the claim is not usable, or the pod does not start.
    """
    if (problem := await claim_problem(client, files)) is not None:
        raise LambdactlError(f"{problem}.")
    name = f"lambdactl-files-{uuid.uuid4().hex[:8]}"
    pod = await client.create(PODS, _loader(name, files, image, security))
    try:
        await _running(client, name)
        script = f"{BASE}/data/receive"
        command = ["/bin/sh", "-c", f"mkdir -p {BASE}/data/parts {BASE}/data/run && cat >{script}"]
        done = await client.exec(name, command, stdin=container_file("receive.sh").encode(), timeout=60)
        if done.rc:
            raise refused(name, done)
        yield FileStore(Receiver(client, script), name, files, on_sent)
    finally:
        await asyncio.shield(client.delete(PODS, name, grace=0, uid=pod["metadata"]["uid"]))


async def fill(
    client: Client,
    files: FilesVolume,
    image: str,
    found: Iterable[tuple[Item, Sequence[Piece]]],
    *,
    security: dict[str, Any] | None = None,
) -> int:
    """Bring to the files volume what it lacks of these trees, by a pod that is there only meanwhile; bytes sent.

    Args:
        found: the trees, each with the pieces of its archive.
        image, security: as for `open_store`.

    Raises:
        LambdactlError: the volume cannot be used.
    """
    sent: list[int] = []
    async with open_store(client, files, image, on_sent=sent.append, security=security) as store:
        for item, known in found:
            await store.put(item, known)
    return sum(sent)


def _loader(name: str, files: FilesVolume, image: str, security: dict[str, Any] | None) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", f"trap 'exit 0' TERM; sleep {_LIFE} & wait"],
        "volumeMounts": [mount(), {"name": "data", "mountPath": f"{BASE}/data"}],
        "resources": {},
    }
    if security:
        container["securityContext"] = security
    marks = {labels.MANAGED_BY: labels.MANAGER, labels.COMPONENT: COMPONENT}
    return {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        "metadata": {"name": name, "labels": marks},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "activeDeadlineSeconds": _LIFE,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [volume(files), {"name": "data", "emptyDir": {}}],
        },
    }


async def _running(client: Client, name: str) -> None:
    try:
        async with asyncio.timeout(_START_PATIENCE):
            why = await _hindrance(client, name)
    except TimeoutError:
        pod = await client.find(PODS, name) or {"metadata": {}}
        why = hopeless(pod) or (unplaced(pod) if condition(pod, "PodScheduled", "False") else "it does not get ready")
    if why is not None:
        raise LambdactlError(f"the pod that brings files to the files volume does not start: {why}.")


async def _hindrance(client: Client, name: str) -> str | None:
    """Wait until the pod runs (None), or cannot (why)."""
    async for event in client.watch(PODS, fields=f"metadata.name={name}"):
        if event.type in ("ADDED", "MODIFIED"):
            if running(event.object):
                return None
            if (why := hopeless(event.object)) is not None:
                return why
    return "it was not seen"
