"""Gang submission: reserve every node of a plan or none, then start every rank or none."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambdactl.errors import LambdactlError
from lambdactl.run.nodes import Problem, Reply, call_all, same
from lambdactl.run.plan import RunPlan, job_specs
from lambdactl.transport.api import Runner
from lambdactl.transport.broker import VARIABLE, answers

RESERVATION_TTL = 60
_ATTEMPTS = 3
_LOOK = 0.02  # seconds between two looks for a plan
# A run with max_duration holds its nodes so much longer at most: its start, and the kill after its grace time.
_LEASE_SLACK = 60.0


def write_plan_file(plan: RunPlan, path: Path) -> None:
    """Write what `submit_plan_file` needs; it holds the user's environment, so it is private from its first byte."""
    jobs = job_specs(plan)
    content = {"run_id": plan.run_id, "run_name": plan.run_name, "owner": plan.owner, "jobs": jobs}
    unfinished = path.with_name(path.name + ".new")
    with os.fdopen(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        json.dump(content, file)
    unfinished.rename(path)  # whoever waits for the plan sees the whole of it


async def submit_plan_file(path: str | Path, transport: Runner) -> dict[str, Any]:
    """Submit a written plan; one that is not there yet is waited for, while the command that plans it lives.

    Returns:
        `{"run_id", "run_name", "ok", "error": str|None, "code": str|None, "hosts": {name: {"state"}|{"error"}}}`; never
        the user's environment, because Ansible prints and stores results.
    """
    await _planned(Path(path))
    content = _read_plan(Path(path))
    return await submit(content["run_id"], content["run_name"], content["owner"], content["jobs"], transport)


async def _planned(path: Path) -> None:
    """Wait for a plan that a command is making: it starts the playbook first, because that takes a while."""
    broker = os.environ.get(VARIABLE)
    while broker and not path.exists() and await answers(broker):  # noqa: ASYNC240, ASYNC110 (another process's file)
        await asyncio.sleep(_LOOK)


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict) and {"run_id", "run_name", "owner", "jobs"} <= content.keys():
            return content
        reason = "it is not a plan"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise LambdactlError(f"the plan file {path} cannot be read ({reason}); submit the run again.")


async def submit(
    run_id: str, run_name: str, owner: str, jobs: Mapping[str, Mapping[str, Any]], transport: Runner
) -> dict[str, Any]:
    """Reserve and start; on any refusal everything is given back. The result is that of `submit_plan_file`."""
    outcome: dict[str, Any] = {"run_id": run_id, "run_name": run_name, "ok": False, "error": None, "code": None}
    reserved = await _reserve(run_id, run_name, owner, jobs, transport)
    refusals = _problems(reserved)
    if not refusals:
        started = await call_all(
            transport,
            {host: {"op": "start", "job": {**job, **_lease(reserved[host])}} for host, job in jobs.items()},
        )
        refusals = _problems(started)
        outcome["hosts"] = {
            host: {"error": reply.sentence} if isinstance(reply, Problem) else {"state": reply.get("state")}
            for host, reply in started.items()
        }
        if refusals:
            await call_all(
                transport,
                same(jobs, op="stop", run=run_id, abort=True, reason="start-failed", grace=0),
            )
    if refusals:
        await call_all(transport, same(jobs, op="release", run_id=run_id))
        outcome.setdefault("hosts", {p.host: {"error": p.sentence} for p in refusals})
        outcome["code"] = refusals[0].code
        outcome["error"] = f"{run_name} was not started: {_sentence(refusals)}"
        return outcome
    outcome["ok"] = True
    return outcome


def reservations(
    run_id: str, run_name: str, owner: str, jobs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The `reserve` request of every host: the whole host, or the blocks that the job names."""
    common = {"op": "reserve", "run_id": run_id, "run_name": run_name, "owner": owner, "ttl": RESERVATION_TTL}
    return {
        host: {
            **common,
            **(job.get("share") or {"gpus": "all"}),
            "priority": job.get("priority") or 0,
            "limit": lease_limit(job.get("max_duration"), job.get("stop_grace")),
        }
        for host, job in jobs.items()
    }


def lease_limit(max_duration: float | None, stop_grace: float | None) -> float | None:
    """How long a run may hold its nodes at most, in seconds; None without a limit."""
    return None if max_duration is None else max_duration + (stop_grace or 0) + _LEASE_SLACK


async def reserve(
    run_id: str, run_name: str, owner: str, jobs: Mapping[str, Mapping[str, Any]], transport: Runner
) -> list[Problem]:
    """Reserve all nodes of a run for a minute; the refusals, of which one is enough to give the others back."""
    return _problems(await _reserve(run_id, run_name, owner, jobs, transport))


def _lease(reply: Reply | Problem) -> dict[str, Any]:
    """What the node has given: GPU indices, and the share that its blocks come to."""
    assert not isinstance(reply, Problem)  # noqa: S101 (the caller starts a run only when every node has given it)
    return {"gpus": reply["gpus"], "share": reply.get("share")}


async def _reserve(
    run_id: str, run_name: str, owner: str, jobs: Mapping[str, Mapping[str, Any]], transport: Runner
) -> dict[str, Reply | Problem]:
    """Ask all nodes at once; two controllers that cross each other give back and try again after a random pause."""
    requests = reservations(run_id, run_name, owner, jobs)
    answers: dict[str, Reply | Problem] = {}
    for attempt in range(_ATTEMPTS):
        answers = await call_all(transport, requests)
        refusals = _problems(answers)
        only_crossed = all(p.code == "busy" and (p.data or {}).get("reserved") for p in refusals)
        if not refusals or not only_crossed or attempt == _ATTEMPTS - 1:
            break
        await call_all(transport, same(jobs, op="release", run_id=run_id))
        await asyncio.sleep(random.uniform(0.1, 0.4) * (attempt + 1))  # noqa: S311 (jitter)
    return answers


def _problems(answers: Mapping[str, Reply | Problem]) -> list[Problem]:
    return [answer for answer in answers.values() if isinstance(answer, Problem)]


def _sentence(refusals: list[Problem]) -> str:
    shown = "; ".join(problem.sentence.rstrip(".") for problem in refusals[:4])
    return shown + (f"; and {len(refusals) - 4} more." if len(refusals) > 4 else ".")
