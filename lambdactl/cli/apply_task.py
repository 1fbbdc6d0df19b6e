"""`lambdactl apply -f TASK`: plan, confirm, submit through ansible-runner, follow the log, exit with the run's code."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from lambdactl import spec
from lambdactl.cli import delivery, kube_runs, scheduling, waiting
from lambdactl.cli.apply import Options
from lambdactl.cli.console import confirm, duration, err, note, print_table
from lambdactl.cli.following import follow_to_end, report_end
from lambdactl.cli.run_options import seconds_of
from lambdactl.cli.select import choose_fleet
from lambdactl.cli.submission import Refused, Submission
from lambdactl.errors import EXIT_OK, CapacityError, Interrupted, LambdactlError, SpecError
from lambdactl.fleet import Fleet
from lambdactl.playbook import preload
from lambdactl.run import ports, schedule
from lambdactl.run.container import check_engine
from lambdactl.run.control import take_back
from lambdactl.run.launch import Launch, Wishes, left_queue
from lambdactl.run.plan import NodeView, Overrides, RunPlan, Shortage, job_specs
from lambdactl.run.ports import forwarded
from lambdactl.run.sessions import ServeSessions
from lambdactl.run.status import RunStatus, fetch_runs
from lambdactl.run.survey import Survey, survey
from lambdactl.state import RunRecord, State
from lambdactl.validate.hardware import hardware

if TYPE_CHECKING:
    from lambdactl.cli.apply_dev import DevRun
    from lambdactl.nccl.hardware import Hardware
    from lambdactl.transport.api import Transport


def run(task: spec.TaskSpec, options: Options, *, dev: DevRun | None = None) -> int:
    """Run a task, or what `dev` makes of it, on a fleet."""
    overrides = _overrides(options)
    with State() as state:
        if cluster := kube_runs.chosen_fleet(options.fleet, state, wanted=task.fleets or ()):
            if dev is not None:
                from lambdactl.cli import kube_dev

                return kube_dev.run(dev.spec, cluster, overrides, options)
            from lambdactl.cli import kube_task

            return kube_task.run(task, cluster, overrides, options)
        fleet = choose_fleet(options.fleet, state, wanted=task.fleets or ())
    return asyncio.run(_apply(task, fleet, overrides, options, dev))


def _overrides(options: Options) -> Overrides:
    if options.name is not None:
        spec.parse_name(options.name, name="--name")
    node_timeout = spec.parse_duration(options.node_timeout, name="--node-timeout")
    if not node_timeout:
        raise SpecError("--node-timeout must be a length of time such as 30s or 2m.")
    return Overrides(
        name=options.name,
        env=tuple(spec.parse_env_item(item) for item in options.env),
        max_duration=seconds_of("--max-duration", options.max_duration),
        node_timeout=float(node_timeout),
        container_engine=check_engine(options.engine, name="--engine"),
        pull_timeout=seconds_of("--pull-timeout", options.pull_timeout),
        args=options.arguments,
    )


async def _apply(task: spec.TaskSpec, fleet: Fleet, overrides: Overrides, options: Options, dev: DevRun | None) -> int:
    from lambdactl.transport import open_transport

    content = await delivery.collect_content(task)
    patience = waiting.patience(fleet, options.wait, options.max_wait)
    async with (
        open_transport(fleet) as connections,
        Submission(fleet, transport := ServeSessions(connections)) as submission,
    ):
        asyncio.get_running_loop().run_in_executor(None, preload)
        if options.yes and not (dev or task.schedule or patience.waits or waiting.background()):
            await submission.begin()
        seen = await survey(transport, fleet, task=task)
        if len(seen.problems) == len(fleet.hosts):
            raise next(iter(seen.problems.values())).error()
        if dev is not None and (status := dev.running(overrides.name or task.name, seen)) is not None:
            return await dev.again(status, fleet, seen, transport)
        _refuse_same_name(overrides.name or task.name, seen)
        finish = (lambda plan: plan) if dev is None else dev.planned
        launch = Launch(transport, fleet, Wishes(task, overrides, patience, finish, content), notify=note)
        views: Mapping[str, NodeView] = schedule.idle(seen.views) if task.schedule else seen.views
        planned = _preview(launch, views, [] if dev is None else dev.rows)
        if planned is not None:
            _local_ports(planned, options)  # one that is taken is told before anything is started
        if not confirm(f"Run {launch.name} on {fleet.name}?", yes=options.yes):
            return EXIT_OK
        if task.schedule is not None and planned is not None:
            return await scheduling.hand_over(planned, transport)
        if dev is not None:
            dev.ready(fleet, seen)
            return await _dev_attempts(launch, views, (fleet, submission), dev, options)
        if options.detach and not waiting.background() and (planned is None or task.retry is not None):
            look = partial(_seen, transport, fleet, launch.name)
            return await waiting.wait_in_background(look, launch.name, task.source.text)
        while True:
            plan = await _start(launch, views, fleet, submission)
            if options.detach and task.retry is None:
                note(f"Follow it with: lambdactl attach {plan.run_name}")
                return EXIT_OK
            async with forwarded(transport, _local_ports(plan, options), note):
                code, status = await _to_its_end(plan, seen, transport, options)
            if not await _again(launch, status):
                break
            views = await launch.look()
    if status is not None and status.final:
        _remember(plan, state="ended", exit_code=code)
    return code


async def _seen(transport: Transport, fleet: Fleet, name: str) -> list[RunStatus]:
    return (await fetch_runs(transport, [host.name for host in fleet.hosts], name))[0]


def _local_ports(plan: RunPlan, options: Options) -> list[ports.Port]:
    """The ports to forward while this command is attached, and where they are here."""
    if options.detach or waiting.background():
        return []
    jobs = job_specs(plan)
    ranks = [{"rank": n.rank, "node": n.name, "ports": jobs[n.name]["ports"]} for n in plan.nodes]
    return ports.choose(ports.wanted(ranks, options.ports))


def _preview(launch: Launch, views: Mapping[str, NodeView], more: list[tuple[str, object]]) -> RunPlan | None:
    """Show where the run will go; None when it has to wait for its nodes. Raises Shortage when it may not wait."""
    try:
        plan = launch.make(views, {})
    except Shortage as short:
        waits = launch.waits.waits and short.passes
        waiting.show_holders(views, short, waits=launch.waits.waits)
        if not waits:
            raise
        note(f"{launch.name} will wait for its turn: {short.because}.")
        return None
    _show(plan, more)
    return plan


async def _start(launch: Launch, views: Mapping[str, NodeView], fleet: Fleet, submission: Submission) -> RunPlan:
    """Reserve the nodes, as soon as they can be had, and start the run; an interruption leaves nothing behind."""
    with waiting.ended_by_sigterm():
        try:
            _remember_waiting(launch, fleet)
            plan = await launch.nodes(views)
        except asyncio.CancelledError:
            raise left_queue(launch.name) from None
    try:
        await delivery.deliver_content(submission.transport, plan.places(), plan.content)
        _remember(plan, state="submitted")
        await submission.submit(plan)
    except Refused as refused:
        _remember(plan, state="refused")
        await take_back(submission.transport, plan.run_id, [node.name for node in plan.nodes])
        raise refused.error from None
    except (asyncio.CancelledError, Interrupted):
        await take_back(submission.transport, plan.run_id, [node.name for node in plan.nodes])
        raise Interrupted(f"interrupted; {plan.run_name} was not started.") from None
    except LambdactlError:
        await take_back(submission.transport, plan.run_id, [node.name for node in plan.nodes])
        raise
    note(f"{plan.run_name} is submitted to {len(plan.nodes)} node{'s' if len(plan.nodes) > 1 else ''}.")
    return plan


async def _dev_attempts(
    launch: Launch, views: Mapping[str, NodeView], place: tuple[Fleet, Submission], dev: DevRun, options: Options
) -> int:
    """Every attempt of a dev environment (the file's `retry`), until it is left, or ends for good; the exit code."""
    fleet, submission = place
    transport = submission.transport
    while True:
        plan = await _start(launch, views, fleet, submission)
        async with forwarded(transport, _local_ports(plan, options), note):
            code = await dev.stay(plan, fleet, transport)
        runs, _ = await fetch_runs(transport, [plan.nodes[0].name], plan.run_id)
        if not await _again(launch, runs[0] if runs else None):
            return code
        dev.once_more()
        views = await launch.look()


async def _again(launch: Launch, status: RunStatus | None) -> bool:
    with waiting.ended_by_sigterm():
        try:
            return await launch.again(status)
        except asyncio.CancelledError:
            raise left_queue(launch.name) from None


async def _to_its_end(
    plan: RunPlan, seen: Survey, transport: Transport, options: Options
) -> tuple[int, RunStatus | None]:
    """Follow the run (the waiter in the background only watches it); its exit code, and its last status."""
    hosts = {node.rank: node.name for node in plan.nodes}
    if waiting.background():
        status = await waiting.watch(transport, plan.run_id, hosts.values())
        return report_end(status, plan.run_name), status
    code = await follow_to_end(
        transport,
        plan.run_id,
        plan.run_name,
        hosts,
        ranks=sorted(hosts) if options.all_ranks else [0],
        log_dir=options.log_dir,
        stop_when_interrupted=True,
        hardware=_hardware(plan, seen),
        images=plan.container is not None,
    )
    runs, _problems = await fetch_runs(transport, hosts.values(), plan.run_id)
    return code, runs[0] if runs else None


def _hardware(plan: RunPlan, seen: Survey) -> Hardware | str:
    """What a run of nccl-tests on these nodes is judged by."""
    ring = any(re.search(r"\bNCCL_ALGO=[\"']?ring\b", text, re.I) for text in plan.task.commands)
    ring = ring or plan.env.get("NCCL_ALGO", "").lower() == "ring"
    facts = [view.facts for node in plan.nodes if (view := seen.views[node.name]).facts is not None]
    return hardware(facts, algorithm="ring" if ring else "default")


def _remember(plan: RunPlan, *, state: str, exit_code: int | None = None) -> None:
    record = RunRecord(
        run_id=plan.run_id,
        name=plan.run_name,
        fleet_id=plan.fleet_id,
        hosts=tuple(node.name for node in plan.nodes),
        submitted_at=plan.submitted_at,
        state=state,
        exit_code=exit_code,
    )
    with State() as database:
        database.remember_run(record)


def _remember_waiting(launch: Launch, fleet: Fleet) -> None:
    """Any host may come to have it, so that `stop` and `attach` by name ask all of them."""
    hosts = tuple(host.name for host in fleet.hosts)
    record = RunRecord(launch.run_id, launch.name, fleet.id, hosts, launch.submitted_at, "waiting")
    with State() as database:
        database.remember_run(record)


def _refuse_same_name(name: str | None, seen: Survey) -> None:
    for status in seen.runs:
        if status.name == name:
            raise CapacityError(
                f"a run named {name} is {status.state}{_on(status)}; "
                f"stop it with `lambdactl stop {name}`, or choose another name with -n."
            )


def _on(status: RunStatus) -> str:
    return f" on {', '.join(status.hosts.values())}" if status.hosts else ""


def _show(plan: RunPlan, more: list[tuple[str, object]]) -> None:
    task = plan.task
    rows: list[tuple[str, object]] = [
        ("Run", plan.run_name),
        ("Type", f"task (nodes={len(plan.nodes)})" if not more else "dev environment"),
        ("Fleet", plan.fleet_name),
        *([("Image", plan.container["image"])] if plan.container else []),
        ("Startup order", task.startup_order),
        ("Stop criteria", task.stop_criteria),
        ("Max duration", "off" if plan.max_duration is None else duration(plan.max_duration)),
        *delivery.rows(plan.content),
        *more,
    ]
    print_table(("FIELD", "VALUE"), rows, to=err())
    shared = any(not node.want.whole for node in plan.nodes)
    print_table(
        ("RANK", "HOST", "ADDRESS", "GPUS", *(("BLOCKS",) if shared else ())),
        [
            (node.rank, node.name, node.ip, node.gpus, *((f"{node.want.blocks}/{node.want.of}",) if shared else ()))
            for node in plan.nodes
        ],
        to=err(),
    )
    for host, why in plan.excluded.items():
        if why:
            note(f"left out: {host} {why}")
