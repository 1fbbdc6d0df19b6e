"""Bringing a run's files and repository to its ranks, which wait for their start meanwhile.

Each tree is one tar archive, in pieces that the API's `exec` hands to a shell script in the rank
(container/receive.sh). A piece counts when its size and its sha256 are right there, and is sent again when the
connection was cut, so that a transfer goes on where it was. Every rank gets every piece from here: fresh pods have
nothing yet, and no way to one another that every image has.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lambdactl.errors import CapacityError, LambdactlError
from lambdactl.run.deliver import Progress
from lambdactl.transport.base import gather_all

from .archive import Item, archive, items, pieces
from .errors import Unavailable
from .payload import BASE

if TYPE_CHECKING:
    from lambdactl.run.content import RunContent

    from .client import Client
    from .sockets import Completed

PIECE = 16 << 20
"""Bytes of a piece, which is held in memory once for all ranks."""
AT_ONCE = 8
"""Ranks that are sent to at the same time: all bytes pass the API server."""
ATTEMPTS = 6
_TIMEOUT = 600.0
_DAMAGED = 3


async def deliver(
    client: Client, pods: Sequence[str], content: RunContent, image: str, *, on_progress: Callable[[Progress], None]
) -> Progress:
    """Bring everything to all of these pods.

    Raises:
        LambdactlError: the image has no tar, a rank cannot place something, or the API stays out of reach.
        CapacityError: a node's disk is full.
    """
    delivery = _Delivery(client, pods, items(content), image, on_progress)
    await delivery.run()
    return delivery.progress


class _Delivery:
    def __init__(
        self,
        client: Client,
        pods: Sequence[str],
        found: Sequence[Item],
        image: str,
        tell: Callable[[Progress], None],
    ) -> None:
        self._client, self._pods, self._items, self._image = client, pods, found, image
        self._tell = tell
        self._gate = asyncio.Semaphore(AT_ONCE)
        self.progress = Progress(len(pods) * sum(item.tree.size for item in found))

    async def run(self) -> None:
        owners = await self._all(self._begin)
        uid, gid = owners[0]
        for index, item in enumerate(self._items):
            made = pieces(archive(item, uid=uid, gid=gid), PIECE)
            number = 0
            while (data := await asyncio.to_thread(_next, made)) is not None:
                await self._send(f"{index}.{number:08}", data)
                number += 1
        await self._all(self._place)

    async def _all(self, one: Callable[[str], Coroutine[Any, Any, Any]]) -> list[Any]:
        async def gated(pod: str) -> Any:
            async with self._gate:
                return await one(pod)

        return list((await gather_all({pod: gated(pod) for pod in self._pods})).values())

    async def _begin(self, pod: str) -> tuple[int, int]:
        done = await self._receive(pod, "begin")
        said = done.stdout.decode("utf-8", "replace").split()
        if said[:1] == ["lacks"]:
            raise LambdactlError(
                f"the image {self._image} has no {said[1]}, which 'files' and 'repos' need; use an image that has it."
            )
        if done.rc or len(said) != 3:
            raise _refused(pod, done)
        return int(said[1]), int(said[2])

    async def _send(self, name: str, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()

        async def one(pod: str) -> None:
            done = await self._receive(pod, "part", name, str(len(data)), digest, data=data)
            if done.rc:
                raise _refused(pod, done)
            # The archive is a little larger than what it holds.
            self.progress.sent = min(self.progress.sent + len(data), self.progress.total)
            self._tell(self.progress)

        await self._all(one)

    async def _place(self, pod: str) -> None:
        done = await self._receive(pod, "place")
        if done.rc:
            raise _refused(pod, done)

    async def _receive(self, pod: str, *words: str, data: bytes = b"") -> Completed:
        """Execute the script; again where a piece was damaged on its way, or the connection was cut."""
        command = ["/bin/sh", f"{BASE}/bin/receive", *words]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                done = await self._client.exec(pod, command, stdin=data, timeout=_TIMEOUT)
            except (Unavailable, TimeoutError) as error:
                # `place` is not for a second time: what it has placed is there.
                if attempt == ATTEMPTS or words[0] == "place":
                    raise LambdactlError(f"{pod}: the run's files cannot be brought there ({error}).") from None
            else:
                if done.rc != _DAMAGED or attempt == ATTEMPTS:
                    return done
            await asyncio.sleep(0.5 * attempt)
        raise AssertionError


def _next(made: Iterator[bytes]) -> bytes | None:
    return next(made, None)


def _refused(pod: str, done: Completed) -> LambdactlError:
    said = " ".join(done.stderr.decode("utf-8", "replace").split())[-400:].rstrip(".")
    if re.search(r"no space left|disk quota exceeded", said, re.I):
        return CapacityError(f"{pod}: its node's disk has no room for the run's files ({said}); bring less.")
    return LambdactlError(f"{pod}: {said or f'the run files cannot be placed there (exit code {done.rc})'}.")
