"""What the actions lambdactl_run and lambdactl_stop do: a run's whole life from Ansible, without Ansible in it.

The same plan, gang reservation and log channels as the command line's. The task file is read here, on the controller;
nothing of it ever is an Ansible variable, so nothing of it is templated.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from lambdactl.errors import EXIT_FAILED, EXIT_LOST, CapacityError, LambdactlError, SpecError
from lambdactl.provision.actions import TaskVars, play_fleet
from lambdactl.provision.interrupts import Screen, interruptions
from lambdactl.provision.probe import reach
from lambdactl.provision.services import stop_service_play
from lambdactl.provision.task_options import TaskOptions
from lambdactl.run.admission import Patience
from lambdactl.run.content import collect
from lambdactl.run.control import stop_run, take_back, wait_ended, wait_up
from lambdactl.run.deliver import deliver
from lambdactl.run.dev import UP, as_task, job_key
from lambdactl.run.follow import Follower
from lambdactl.run.launch import Launch, Wishes, left_queue
from lambdactl.run.plan import NodeView, RunPlan, job_specs
from lambdactl.run.screen import LogOutput
from lambdactl.run.status import FINAL, RunStatus, fetch_runs
from lambdactl.run.submit import submit
from lambdactl.run.survey import survey
from lambdactl.spec import DevEnvironmentSpec, TaskSpec, load
from lambdactl.transport.base import gather_all

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport

# After an interruption the nodes stop the run by themselves; so long is waited to see it. ansible-playbook ends its
# workers 5 s after Ctrl-C.
AFTER_INTERRUPTION = 4.0
_PATIENCE = 60.0

T = TypeVar("T")


async def run_task(
    task_vars: TaskVars, options: TaskOptions, *, check: bool, screen: Screen, note: Callable[[str], None]
) -> dict[str, Any]:
    """Plan a run on the hosts of a play, start it and follow it to its end.

    Args:
        check: plan only.
        screen: where rank 0's log (or all logs) goes while it is written.
        note: gets one sentence at each event.

    Returns:
        `run_id, run_name, nodes, started, state, exit_code, message, log_files, run` (the last is `run get --json`'s
        document; null unless the run was waited for). Never the run's environment: Ansible stores results.

    Raises:
        LambdactlError: the run was not started; one sentence.
    """
    from lambdactl.transport import open_transport

    task, dev = read_run(options.task_file)
    fleet, chosen = play_fleet(task_vars)
    content = await asyncio.to_thread(collect, task)
    async with open_transport(fleet) as transport:
        seen = await survey(transport, fleet, task=task)
        asked = [seen.problems[name] for name in chosen if name in seen.problems]
        if len(asked) == len(chosen):
            raise asked[0].error()
        _refuse_same_name(options.overrides.name or task.name, seen.runs)
        patience = options.patience if options.patience.waits else Patience(waits=fleet.when_full == "wait")
        wishes = Wishes(task, options.overrides, patience, lambda plan: replace(plan, dev=dev), content)
        launch = Launch(transport, fleet, wishes, only=chosen, notify=note)
        if check:
            return _planned(launch.make(seen.views, {}))
        try:
            return await _attempts(launch, seen.views, options, transport, screen, note)
        except asyncio.CancelledError:
            raise left_queue(launch.name) from None


async def _attempts(
    launch: Launch,
    views: Mapping[str, NodeView],
    options: TaskOptions,
    transport: Transport,
    screen: Screen,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Every attempt of a run (the file's `retry`); the last one's result."""
    while True:
        plan = await _nodes(launch, views, screen)
        try:
            await deliver(transport, plan.places(), plan.content.blobs)
        except LambdactlError:
            await take_back(transport, plan.run_id, [node.name for node in plan.nodes])
            raise
        await _start(plan, transport)
        note(f"{plan.run_name} is started on {', '.join(node.name for node in plan.nodes)}.")
        result = {**_planned(plan), "started": True, "state": "running"}
        if not options.wait:
            return result
        result |= await _follow(plan, options, transport, screen, note)
        runs, _ = await fetch_runs(transport, [node.name for node in plan.nodes], plan.run_id)
        if not await until_interrupted(launch.again(runs[0] if runs else None), screen):
            return result
        views = await launch.look()


async def _nodes(launch: Launch, views: Mapping[str, NodeView], screen: Screen) -> RunPlan:
    return await until_interrupted(launch.nodes(views), screen)


async def until_interrupted(work: Coroutine[Any, Any, T], screen: Screen) -> T:
    """What work returns; an interruption cancels it, so that it gives its place in the queue back."""
    waiting = asyncio.ensure_future(work)
    with interruptions(screen) as queue:
        event = asyncio.ensure_future(queue.get())
        await asyncio.wait((waiting, event), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
        event.cancel()
        return await waiting


def read_run(file: str, *, up: str = UP) -> tuple[TaskSpec, dict[str, Any] | None]:
    """The task of a task file, or that of a dev environment with what its node is told.

    Args:
        up: the command by which a dev environment tells that it is up.

    Raises:
        SpecError: the file is neither, or has a schedule.
    """
    parsed = load(file)
    if isinstance(parsed, DevEnvironmentSpec):
        return as_task(parsed, up=up), job_key(parsed)
    if not isinstance(parsed, TaskSpec):
        raise SpecError("this is neither a task nor a dev environment.", filename=file)
    if parsed.schedule is not None:
        raise SpecError(
            "the file has a 'schedule'; hand it over by `lambdactl apply`, or remove it and make a schedule of the AWX "
            "job template.",
            filename=file,
        )
    return parsed, None


def _planned(plan: RunPlan) -> dict[str, Any]:
    nodes = [{"rank": node.rank, "name": node.name, "ip": node.ip, "gpus": node.gpus} for node in plan.nodes]
    return {
        "run_id": plan.run_id,
        "run_name": plan.run_name,
        "nodes": nodes,
        "started": False,
        "state": "planned",
        "exit_code": None,
        "message": "",
        "log_files": [],
        "run": None,
    }


def _refuse_same_name(name: str | None, runs: Sequence[RunStatus]) -> None:
    for status in runs:
        if status.name == name:
            raise CapacityError(
                f"a run named {name} is {status.state} on {', '.join(status.hosts.values()) or 'no node yet'}; "
                "stop it with playbooks/stop_run.yml, or choose another run_name."
            )


async def _start(plan: RunPlan, transport: Transport) -> None:
    outcome = await submit(plan.run_id, plan.run_name, plan.owner, job_specs(plan), transport)
    if not outcome["ok"]:
        raise LambdactlError(outcome["error"])


async def _follow(
    plan: RunPlan, options: TaskOptions, transport: Transport, screen: Screen, note: Callable[[str], None]
) -> dict[str, Any]:
    """Until the run has ended, or this process is interrupted; returns what that adds to the result."""
    hosts = {node.rank: node.name for node in plan.nodes}
    shown = [] if not options.show_log else sorted(hosts) if options.all_ranks else [0]
    # Rank 0's stream ends with the run, so it is followed even where nobody wants its log.
    wanted = sorted(hosts) if options.log_dir else [0]
    outputs = [(shown, screen), ([rank for rank in wanted if rank not in shown], Nowhere())]
    logs = [
        (ranks, LogOutput(ranks, stream=cast(BinaryIO, to), directory=options.log_dir))
        for ranks, to in outputs
        if ranks
    ]
    followers = [Follower(transport, plan.run_id, hosts, log, show=ranks, notify=note) for ranks, log in logs]
    try:
        detached = await _to_its_end(followers, plan, options, transport, screen)
    finally:
        for _, log in logs:
            log.close()
    screen.finish()
    if detached:
        note(detached)
        return {"message": detached}
    return ended_result(await followers[0].status(), [node.rank for node in plan.nodes], options.log_dir)


async def _to_its_end(
    followers: list[Follower], plan: RunPlan, options: TaskOptions, transport: Transport, screen: Screen
) -> str:
    """Empty when the run has ended; a sentence when this process only detached from it."""
    logs = asyncio.ensure_future(_all(followers))
    up = asyncio.ensure_future(_until_up(plan, followers, transport))
    with interruptions(screen) as queue:
        event = asyncio.ensure_future(queue.get())
        try:
            await asyncio.wait((logs, event, up), return_when=asyncio.FIRST_COMPLETED)
            if logs.done():
                logs.result()
                return ""
            if up.done():
                return up.result()
            if event.result() == "orphaned" or options.on_interrupt == "detach":
                return f"Interrupted; {plan.run_name} goes on."
            names = [node.name for node in plan.nodes]
            await stop_run(transport, plan.run_id, names)
            await wait_ended(transport, plan.run_id, names, patience=AFTER_INTERRUPTION)
            return ""
        finally:
            for task in (logs, event, up):
                task.cancel()
            await asyncio.gather(logs, event, up, return_exceptions=True)


async def _until_up(plan: RunPlan, followers: list[Follower], transport: Transport) -> str:
    """Never ends for a task; for a dev environment a sentence once it is up, which is all that a play waits for."""
    if plan.dev is None:
        await asyncio.Event().wait()
    host = plan.nodes[0].name
    status = await wait_up(transport, plan.run_id, host)
    if status is None or status.final:
        await asyncio.Event().wait()  # the log's end tells it
    else:
        await asyncio.gather(*(each.reach(0, int(status.ranks[0].get("log_size") or 0)) for each in followers))
    return f"{plan.run_name} is up on {host}; `lambdactl attach {plan.run_name} --fleet FILE` leads to it."


async def _all(followers: list[Follower]) -> None:
    await gather_all({str(number): follower.run() for number, follower in enumerate(followers)})


class Nowhere:
    """A stream for logs that only go into files."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def ended_result(status: RunStatus | None, ranks: Iterable[int], log_dir: Path | None) -> dict[str, Any]:
    """The result of a run that was waited for; also written to `run.json` beside the logs."""
    if status is None or not status.final:
        return {"state": "unknown", "exit_code": EXIT_LOST, "message": "No node says how the run ended."}
    code = status.exit_code if status.exit_code is not None else EXIT_FAILED
    files = []
    if log_dir is not None:
        (log_dir / "run.json").write_text(json.dumps(status.as_json(), indent=2) + "\n", encoding="utf-8")
        files = [str(path) for path in (log_dir / f"rank-{rank}.log" for rank in ranks) if path.is_file()]
    return {
        "state": status.state,
        "exit_code": code,
        "message": status.message or status.reason or "",
        "log_files": files,
        "run": status.as_json(),
    }


async def stop_play(task_vars: TaskVars, run: str, *, abort: bool, check: bool) -> dict[str, Any]:
    """Stop a run, by name or id, or a service on the hosts of a play, and wait until nothing of it is left.

    Returns:
        `run_id, run_name, state, stopped` (false when it had ended before), `message`.

    Raises:
        LambdactlError: no host knows the run, one could not be told, or it does not end.
    """
    fleet, chosen = play_fleet(task_vars)
    async with reach(fleet) as transport:
        runs, problems = await fetch_runs(transport, chosen, run)
        if not runs:
            if (outcome := await stop_service_play(transport, chosen, run, check=check)) is not None:
                return outcome
            if problems:
                raise next(iter(problems.values())).error()
            raise SpecError(f"no run named {run} is known on the hosts of this play; `lambdactl ps -a` lists them.")
        status = runs[0]
        result = {"run_id": status.run_id, "run_name": status.name, "state": status.state, "stopped": not status.final}
        if status.final or check:
            return {**result, "message": f"{status.name} has ended before." if status.final else "would be stopped."}
        untold = await stop_run(transport, status.run_id, chosen, abort=abort)
        ended = await wait_ended(transport, status.run_id, chosen, patience=_PATIENCE)
    if ended is not None and not all(rank["state"] in FINAL for rank in ended.ranks):
        raise LambdactlError(f"{status.name} has not ended yet; stop it again with -e run_abort=true to kill it.")
    if untold:
        raise next(iter(untold.values())).error()
    return {**result, "state": ended.state if ended else "stopped", "message": f"{status.name} is stopped."}
