"""The script that takes files in a pod (container/receive.sh), as the API's exec starts it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lambdactl.errors import CapacityError, LambdactlError

from .errors import Unavailable
from .payload import BASE

if TYPE_CHECKING:
    from .client import Client
    from .sockets import Completed

ATTEMPTS = 6
DAMAGED = 3
"""The script's exit code for what came damaged."""
_TIMEOUT = 600.0


class Receiver:
    """Executes the script.

    Attributes:
        client: the cluster of the pods.
        bytes: what has gone through the API as its standard input, every attempt counted.
    """

    def __init__(self, client: Client, script: str = f"{BASE}/bin/receive") -> None:
        self.client, self._script = client, script
        self.bytes = 0

    async def call(self, pod: str, *words: str, data: bytes = b"", once: bool = False) -> Completed:
        """Execute it, with these words and standard input.

        Args:
            once: not again where the connection was cut.

        Raises:
            LambdactlError: the pod stays out of reach.
        """
        command = ["/bin/sh", self._script, *words]
        for attempt in range(1, ATTEMPTS + 1):
            self.bytes += len(data)
            try:
                done = await self.client.exec(pod, command, stdin=data, timeout=_TIMEOUT)
            except (Unavailable, TimeoutError) as error:
                if attempt == ATTEMPTS or once:
                    raise LambdactlError(f"{pod}: the run's files cannot be brought there ({error}).") from None
            else:
                if done.rc != DAMAGED or attempt == ATTEMPTS or once:
                    return done
            await asyncio.sleep(0.5 * attempt)
        raise AssertionError

    async def lines(self, pod: str, *words: str, data: bytes = b"") -> list[list[str]]:
        """What it answers, in words.

        Raises:
            LambdactlError: it says why not, or is out of reach.
        """
        done = await self.call(pod, *words, data=data)
        if done.rc:
            raise refused(pod, done)
        return [line.split() for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]


def full(said: str) -> bool:
    """Whether a disk has no room."""
    return re.search(r"no space left|disk quota exceeded", said, re.I) is not None


def words_of(done: Completed) -> str:
    """What it said on standard error, on one line."""
    return " ".join(done.stderr.decode("utf-8", "replace").split())[-400:].rstrip(".")


def refused(pod: str, done: Completed) -> LambdactlError:
    """Why a pod did not do it, as a sentence."""
    said = words_of(done)
    if full(said):
        return CapacityError(f"{pod}: its node's disk has no room for the run's files ({said}); bring less.")
    return LambdactlError(f"{pod}: {said or f'the run files cannot be placed there (exit code {done.rc})'}.")


def batches(sizes: Sequence[int], most: int, number: int = 1000) -> list[slice]:
    """Neighbours that are at most so large together (or one alone), and at most so many."""
    found: list[slice] = []
    start = amount = 0
    for index, size in enumerate(sizes):
        if index > start and (amount + size > most or index - start >= number):
            found.append(slice(start, index))
            start, amount = index, 0
        amount += size
    return [*found, slice(start, len(sizes))] if sizes else []
