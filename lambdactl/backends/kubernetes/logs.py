"""A container's log as a stream that survives cut connections: no line is lost and none comes twice.

The API can only go on at a whole second (``sinceTime``), and gives every line again that is not older. So each line is
asked for with its time (nanoseconds, ``timestamps=true``), the times of the two newest seconds' lines are kept (the two
streams of a container may be a moment out of order), and that many lines of each time are left out when the stream is
opened again. Source: the kubelet filters every line by its own time (``kuberuntime/logs``), so what comes again is the
same lines in the same order.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from .errors import LogNotReady, NotFound, Unavailable, unreachable
from .resources import PODS

if TYPE_CHECKING:
    from .client import Client

Ended: TypeAlias = Callable[[], Awaitable[bool]]

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
LONGEST_LINE = 1 << 20
"""A longer line is passed on in pieces, so that memory stays bounded."""


async def follow_log(
    client: Client,
    pod: str,
    *,
    container: str | None = None,
    since: float | None = None,
    follow: bool = True,
    ended: Ended | None = None,
    namespace: str | None = None,
) -> AsyncGenerator[bytes, None]:
    """The log as it is written, in chunks of whole lines, until the container has ended and all has been read.

    Args:
        client: the cluster.
        pod: the pod's name.
        container: needed where the pod has several.
        since: seconds since the epoch; None is all that is kept.
        follow: go on until the container has ended; otherwise end at the log's present end.
        ended: whether the container has ended; asked when the stream does. By default the API is asked for the pod.
        namespace: the target's unless given.

    Raises:
        LogNotReady: the container has not started.
        NotFound: there is no such pod (any more), and nothing of its log was read.
        Unavailable: the server has not answered for ``client.patience`` seconds.
    """
    if ended is None:

        async def has_ended() -> bool:
            return await container_ended(client, pod, container, namespace)

        ended = has_ended
    reader = _Reader(client, pod, container, since, namespace)
    quiet_since: float | None = None
    delay = FIRST_DELAY
    last = not follow
    while True:
        try:
            async with aclosing(reader.round(follow=not last)) as chunks:
                async for chunk in chunks:
                    quiet_since, delay = None, FIRST_DELAY
                    yield chunk
            if last:
                break
            # The end of a stream is the container's end, or just the connection's: one more look tells.
            last = await ended()
            quiet_since = None
        except NotFound:
            if not reader.started:
                raise
            break
        except LogNotReady:
            if not reader.started:
                raise
        except Unavailable as error:
            if error.status is None:
                client.troubled()
            quiet_since = quiet_since or time.monotonic()
            if not client.answered or time.monotonic() - quiet_since > client.patience:
                raise
        if not last:
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
            delay = min(delay * 2, LONGEST_DELAY)
    if tail := reader.tail():
        yield tail


async def container_ended(client: Client, pod: str, container: str | None, namespace: str | None) -> bool:
    """Whether a pod's container will write no more."""
    found = await client.find(PODS, pod, namespace=namespace)
    if found is None or (found.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return True
    for status in (found.get("status") or {}).get("containerStatuses") or []:
        if container in (None, status.get("name")):
            never = (found.get("spec") or {}).get("restartPolicy") == "Never"
            return never and "terminated" in (status.get("state") or {})
    return False


_REMOVED = b"unable to retrieve container logs for "


class _Reader:
    """Where one log has been read to."""

    def __init__(
        self, client: Client, pod: str, container: str | None, since: float | None, namespace: str | None
    ) -> None:
        self.client, self.pod, self.container = client, pod, container
        self.since = since
        self.namespace = namespace or client.namespace
        self.started = False
        self._newest = 0
        self._seen: dict[int, array[int]] = {}  # by second, the nanoseconds of the lines that would come again
        self._rest = b""
        # Of a line longer than LONGEST_LINE: its time, and how much of it the caller has got (None: it is repeated).
        self._open: tuple[int, int | None] | None = None
        self._partial: tuple[int, int] = (0, 0)  # the same for a line that a cut interrupted

    async def round(self, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """One connection's worth."""
        import aiohttp

        asked = self.client.asked("get", PODS, self.pod, self.namespace, subresource="log")
        query = {"timestamps": "true", "follow": "true" if follow else "false"}
        if self.container:
            query["container"] = self.container
        since, again = self._reopened()
        if since is not None:
            query["sinceTime"] = _rfc3339(since)
        path = PODS.path(self.namespace, self.pod, "log")
        async with self.client.request("GET", path, asked, query=query) as response:
            self.started = True
            try:
                async for chunk in response.content.iter_any():
                    if lines := self._take(chunk, again):
                        yield lines
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise unreachable(error, asked) from None

    def _reopened(self) -> tuple[float | None, Counter[int]]:
        """From where to go on, and how many lines of each time will come again."""
        stamp, passed = self._open or (0, None)
        if passed:
            # What came of it again, and what the caller has had of it beyond that.
            self._partial = (stamp, passed + (self._partial[1] if self._partial[0] == stamp else 0))
        self._rest, self._open = b"", None
        again = Counter(stamp for stamps in self._seen.values() for stamp in stamps)
        return (self._newest - 1 if self._newest else self.since), again

    def tail(self) -> bytes:
        """What stands after the last line's end, once there will be no more."""
        rest, self._rest = self._rest, b""
        if self._open is not None:
            return b"" if self._open[1] is None else self._unpassed(self._open[0], rest)
        stamp, text = _stamp(rest)
        # The kubelet's own word, in the place of a log whose container it has removed meanwhile.
        return b"" if not stamp and text.startswith(_REMOVED) else self._unpassed(stamp, text)

    def _take(self, chunk: bytes, again: Counter[int]) -> bytes:
        """The new text of a chunk: whole lines without their times."""
        *whole, rest = (self._rest + chunk).split(b"\n")
        out = []
        for line in whole:
            if self._open is not None:
                stamp, passed = self._open
                self._open = None
                if passed is not None:
                    out.append(self._unpassed(stamp, line + b"\n"))
                    self._note(stamp)
                continue
            stamp, text = _stamp(line)
            if stamp and again.get(stamp, 0) > 0:
                again[stamp] -= 1
                continue
            out.append(self._unpassed(stamp, text + b"\n"))
            self._note(stamp)
        self._rest = rest
        if len(rest) > LONGEST_LINE:
            out.append(self._pass_on(rest, again))
            self._rest = b""
        return b"".join(out)

    def _pass_on(self, piece: bytes, again: Counter[int]) -> bytes:
        """A piece of a line without an end in sight."""
        if self._open is None:
            stamp, text = _stamp(piece)
            if stamp and again.get(stamp, 0) > 0:
                again[stamp] -= 1
                self._open = (stamp, None)
                return b""
            self._open = (stamp, len(text))
            return self._unpassed(stamp, text)
        stamp, passed = self._open
        if passed is None:
            return b""
        self._open = (stamp, passed + len(piece))
        return self._unpassed(stamp, piece)

    def _unpassed(self, stamp: int, text: bytes) -> bytes:
        """What the caller has not had of a line that a cut interrupted."""
        interrupted, passed = self._partial
        if not stamp or stamp != interrupted:
            return text
        self._partial = (stamp, passed - len(text)) if passed > len(text) else (0, 0)
        return text[passed:]

    def _note(self, stamp: int) -> None:
        second = stamp // 1_000_000_000
        if second > self._newest:
            self._newest = second
            self._seen = {kept: stamps for kept, stamps in self._seen.items() if kept >= second - 1}
        if stamp and second >= self._newest - 1:
            self._seen.setdefault(second, array("q")).append(stamp)


def _stamp(line: bytes) -> tuple[int, bytes]:
    """A line's time in nanoseconds since the epoch, and its text; 0 and the whole line where it has none."""
    head, space, text = line.partition(b" ")
    if not space or len(head) < 20 or head[4:5] != b"-" or head[10:11] != b"T":
        return 0, line
    fraction, zone = b"", head[19:]
    if zone[:1] == b".":
        zone = zone[1:].lstrip(b"0123456789")
        fraction = head[20 : len(head) - len(zone)]
    try:
        return _seconds(head[:19] + (b"+00:00" if zone == b"Z" else zone)) + int(fraction.ljust(9, b"0")[:9]), text
    except ValueError:
        return 0, line


@lru_cache(maxsize=16)
def _seconds(moment: bytes) -> int:
    """Nanoseconds since the epoch of a time to the second; most lines share it with the line before."""
    return int(datetime.fromisoformat(moment.decode("ascii")).timestamp()) * 1_000_000_000


def _rfc3339(moment: float) -> str:
    """To the second: the API's own precision."""
    return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
