"""Telling how far the images of a run are, beside its log, which is empty until all nodes have theirs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from lambdactl.cli.console import note
from lambdactl.errors import LambdactlError
from lambdactl.run.status import RunStatus, fetch_runs, pull_text
from lambdactl.transport.api import Runner

_INTERVAL = 1.0
_STEP = 0.1


@contextlib.asynccontextmanager
async def pull_progress(transport: Runner, run_id: str, hosts: Mapping[int, str], *, on: bool) -> AsyncIterator[None]:
    """While inside, say how far the images are, until every node has its own; nothing when not `on`."""
    task = asyncio.ensure_future(_tell(transport, run_id, hosts)) if on else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _tell(transport: Runner, run_id: str, hosts: Mapping[int, str]) -> None:
    said: tuple[int, int] | None = None
    while True:
        await asyncio.sleep(_INTERVAL)
        with contextlib.suppress(LambdactlError, OSError):
            runs, _problems = await fetch_runs(transport, hosts.values(), run_id)
            if not runs or runs[0].state not in ("reserved", "pulling"):
                return
            if (now := _mark(runs[0])) != said:
                said = now
                note(pull_text(runs[0]))


def _mark(status: RunStatus) -> tuple[int, int]:
    """What must change before it is told again: a node got its image, or a tenth of all bytes has come."""
    amounts = status.pull or {"done": 0, "total": 0}
    share = amounts["done"] / amounts["total"] if amounts["total"] else 0.0
    return sum(rank["state"] != "pulling" for rank in status.ranks), int(share / _STEP)
