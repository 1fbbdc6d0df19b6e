"""Stopping runs: tell every node at once, then wait until none has anything left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from lambdactl.run.nodes import Problem, call, call_all, same
from lambdactl.run.status import FINAL, RunStatus, fetch_runs
from lambdactl.transport.api import Runner

# The nodes enforce the grace time; this is only how often they are asked whether they have done so.
_POLL = 0.2
_POLL_UP = 0.5


async def stop_run(
    transport: Runner, run: str, hosts: Iterable[str], *, abort: bool = False, reason: str = "stopped-by-user"
) -> dict[str, Problem]:
    """Send the stop to every node (each is told directly, so a lost rank 0 cannot hinder it).

    Returns:
        The hosts that could not be told.
    """
    answers = await call_all(transport, same(hosts, op="stop", run=run, abort=abort, reason=reason, grace=None))
    return {host: answer for host, answer in answers.items() if isinstance(answer, Problem)}


async def take_back(transport: Runner, run: str, hosts: Iterable[str]) -> None:
    """Undo a submission that was interrupted half-way: kill what was started, give back what was only reserved."""
    requests = [{"op": "stop", "run": run, "abort": True, "reason": "stopped-by-user", "grace": 0}]
    requests += [{"op": "release", "run_id": run}]
    await call(transport, dict.fromkeys(hosts, requests))


async def wait_ended(transport: Runner, run: str, hosts: Iterable[str], *, patience: float) -> RunStatus | None:
    """Wait until every rank that answers has ended, at most `patience` seconds; the last status seen."""
    hosts = list(hosts)
    deadline = time.monotonic() + patience
    while True:
        runs, _problems = await fetch_runs(transport, hosts, run)
        status = runs[0] if runs else None
        if status is None or all(rank["state"] in FINAL for rank in status.ranks) or time.monotonic() > deadline:
            return status
        await asyncio.sleep(_POLL)


async def wait_up(transport: Runner, run: str, host: str) -> RunStatus | None:
    """Wait until a dev environment is up (its `init` has ended) or has ended.

    Returns:
        Its status then; None when its node does not know it any more. A node that does not answer is asked again.
    """
    while True:
        runs, problems = await fetch_runs(transport, [host], run)
        if runs and (runs[0].final or (runs[0].dev or {}).get("up_at")):
            return runs[0]
        if not runs and not problems:
            return None
        await asyncio.sleep(_POLL_UP)
