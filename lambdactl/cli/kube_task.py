"""`lambdactl apply -f TASK` on a Kubernetes fleet: plan, confirm, create, start, follow, exit with the run's code."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lambdactl.backends.kubernetes.attempts import rest
from lambdactl.backends.kubernetes.backend import KubeRef, KubernetesBackend, open_backend
from lambdactl.backends.kubernetes.control import clean_up
from lambdactl.backends.kubernetes.fitting import plan_on, refuse_same_name, submit_run
from lambdactl.backends.kubernetes.plan import KubePlan, refuse_unsupported
from lambdactl.backends.kubernetes.start import Starter, take_back, taken_back_where_forbidden
from lambdactl.cli import delivery, kube_runs, kube_schedule, waiting
from lambdactl.cli.console import confirm, duration, err, note, print_table
from lambdactl.errors import EXIT_FAILED, EXIT_OK, CapacityError, Interrupted, LambdactlError
from lambdactl.run import extras
from lambdactl.run.plan import random_name
from lambdactl.run.retry import Attempts
from lambdactl.run.status import RunStatus
from lambdactl.state import RunRecord, State
from lambdactl.validate.hardware import hardware

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.client import Client
    from lambdactl.backends.kubernetes.fleet import KubeFleet
    from lambdactl.backends.kubernetes.model import KubeRun
    from lambdactl.cli.apply import Options
    from lambdactl.nccl.hardware import Hardware
    from lambdactl.run.admission import Patience
    from lambdactl.run.content import RunContent
    from lambdactl.run.plan import Overrides
    from lambdactl.run.ports import Port
    from lambdactl.spec import TaskSpec


def run(task: TaskSpec, fleet: KubeFleet, overrides: Overrides, options: Options) -> int:
    """Run a task on a cluster."""
    refuse_unsupported(task)
    return asyncio.run(_apply(task, fleet, overrides, options))


async def _apply(task: TaskSpec, fleet: KubeFleet, overrides: Overrides, options: Options) -> int:
    return await perform(task, fleet, overrides, options, await delivery.collect_content(task))


async def perform(task: TaskSpec, fleet: KubeFleet, overrides: Overrides, options: Options, content: RunContent) -> int:
    """Run a task with what it takes with it; its exit code. One with a schedule is left with the cluster."""
    name = overrides.name or task.name or random_name()
    overrides = replace(overrides, name=name)
    attempts = Attempts(task.retry, time.time())
    patience = waiting.patience(None, options.wait, options.max_wait)
    async with open_backend(fleet) as backend:
        await refuse_same_name(backend, name, scheduled=not options.fired)
        make = partial(plan_on, task, backend, overrides, content, note=note, keep=options.keep)
        plan, client = await make(allowance(patience, attempts))
        show(plan)
        local_ports(plan, options)  # one that is taken is told before anything is started
        if not confirm(f"Run {name} on {fleet.name}?", yes=options.yes):
            return EXIT_OK
        if task.schedule is not None:
            return await kube_schedule.hand_over(client, fleet, plan, task, content, options, overrides)
        # Who tries again, or ends the Jobs of other parts, has to stay.
        if options.detach and (task.retry is not None or plan.run.parts) and not waiting.background():
            does = "tries again as its file says" if task.retry is not None else "ends all groups when one has failed"
            return await waiting.wait_in_background(partial(_seen, backend, name), name, task.source.text, does)
        while True:
            plan = replace(plan, run=replace(plan.run, attempt=attempts.as_job() if task.retry else None))
            try:
                code, status = await _attempt(backend, client, fleet, plan, options, wait=patience.waits)
            except CapacityError as error:  # somebody was quicker
                if (limit := allowance(patience, attempts)) == 0:
                    raise
                note(str(error))
            else:
                if status is None or not await rest(client, attempts, status, note):
                    break
                limit = allowance(patience, attempts)
            plan, client = await make(limit)
        if (
            _tidies_late(task, options)
            and status is not None
            and (ref := await backend.find(status.run_id)) is not None
        ):
            await clean_up(ref.client, ref.view)
    return code


def _tidies_late(task: TaskSpec, options: Options) -> bool:
    """Whether the objects of the last attempt go now: those of a scheduled run stay for a day, for their log."""
    return task.retry is not None and not options.fired


def allowance(patience: Patience, attempts: Attempts) -> float | None:
    """Seconds that the next attempt may wait for nodes; None without end."""
    if patience.waits:
        return patience.limit
    return 0.0 if (limit := attempts.patience(time.time())) is None or patience.never else limit


async def _attempt(
    backend: KubernetesBackend, client: Client, fleet: KubeFleet, plan: KubePlan, options: Options, *, wait: bool
) -> tuple[int, RunStatus | None]:
    """Submit the run once, and follow it; its exit code, and its status when its end was seen.

    Raises:
        CapacityError: it did not find its nodes, and was taken back.
        LambdactlError: it could not start, and may not be tried again.
    """
    name = plan.run.run_name
    ref = await submit_run(client, plan)
    remember(plan, fleet, state="submitted")
    note(f"{name} is submitted to {plan.run.nodes} node{'s' if plan.run.nodes > 1 else ''} of {plan.target.name}.")
    async with taken_back_where_forbidden(ref.client, ref.job_name, ref.uid, plan.run.run_id):
        if options.detach and not waiting.background():
            return await _start_only(backend, ref, plan, wait=wait), None
        return await _follow(backend, ref, fleet, plan, options, wait=wait)


async def _follow(
    backend: KubernetesBackend, ref: KubeRef, fleet: KubeFleet, plan: KubePlan, options: Options, *, wait: bool
) -> tuple[int, RunStatus | None]:
    ranks = list(range(plan.run.nodes)) if options.all_ranks else [0]
    try:
        code, status = await kube_runs.follow(
            backend,
            ref,
            ranks=[] if waiting.background() else ranks,
            log_dir=options.log_dir,
            stop_when_interrupted=not options.fired,
            hardware=_hardware(plan),
            wait=wait,
            ports=local_ports(plan, options),
            bring=delivery.bring_to_ranks(plan.run),
            tidy=plan.run.task.retry is None and not options.fired,
        )
    except LambdactlError as error:
        if plan.run.task.retry is None or type(error) is not LambdactlError:
            raise
        code, status = EXIT_FAILED, never_started(plan, str(error))
        note(str(error))
    if status is not None:
        remember(plan, fleet, state="ended", exit_code=code)
    return code, status


def never_started(plan: KubePlan, why: str) -> RunStatus:
    """The end of a run that was taken back, as the event that `retry` knows."""
    run, now = plan.run, time.time()
    return RunStatus(
        run.run_id, run.run_name, "failed", (), run.nodes, run.submitted_at, run.owner, reason="start-failed",
        message=why, exit_code=EXIT_FAILED, finished_at=now,
    )  # fmt: skip


async def _seen(backend: KubernetesBackend, name: str) -> list[RunStatus]:
    return (await backend.runs(name))[0]


async def _start_only(backend: KubernetesBackend, ref: KubeRef, plan: KubePlan, *, wait: bool) -> int:
    """`-d`: stay until the ranks' commands have been told to start; then nobody is needed any more."""
    name = plan.run.run_name
    try:
        async with backend.session(ref) as session:
            bring = delivery.bring_to_ranks(plan.run)
            await Starter(session, wait=wait, notify=note, bring=bring).run()
    except (asyncio.CancelledError, Interrupted):
        await take_back(ref.client, ref.job_name, ref.uid)
        raise Interrupted(f"interrupted; {name} was not started.") from None
    note(f"Follow it with: lambdactl attach {name}")
    return EXIT_OK


def local_ports(plan: KubePlan, options: Options) -> list[Port]:
    """The ports to forward while this command is attached."""
    if options.detach or options.fired or waiting.background():
        return []
    ranks = [{"rank": rank, "ports": extras.ports(plan.run.task, rank)} for rank in range(plan.run.nodes)]
    return kube_runs.local_ports(plan.run.run_name, ranks, options.ports)


def _hardware(plan: KubePlan) -> Hardware | str:
    """What a run of nccl-tests on these nodes is judged by."""
    ring = any(re.search(r"\bNCCL_ALGO=[\"']?ring\b", text, re.I) for text in plan.run.task.commands)
    ring = ring or plan.run.env.get("NCCL_ALGO", "").lower() == "ring"
    return hardware([node.facts for node in plan.places], algorithm="ring" if ring else "default")


def remember(plan: KubePlan, fleet: KubeFleet, *, state: str, exit_code: int | None = None) -> None:
    """Keep in this machine's state where the run is."""
    record = RunRecord(
        run_id=plan.run.run_id,
        name=plan.run.run_name,
        fleet_id=fleet.id,
        hosts=tuple(node.name for node in plan.places),
        submitted_at=plan.run.submitted_at,
        state=state,
        exit_code=exit_code,
    )
    with State() as database:
        database.remember_run(record)


def _gpus(run: KubeRun) -> str:
    if run.parts:
        return ", ".join(f"{part.gpus} a node on {part.nodes}" for part in run.parts if part.gpus) or "none"
    return f"{run.gpus} a node" if run.gpus else "none"


def show(plan: KubePlan, more: Sequence[tuple[str, object]] = ()) -> None:
    """The plan; `more` are lines that replace or follow a task's."""
    run = plan.run
    rows: list[tuple[str, object]] = [
        ("Run", run.run_name),
        ("Type", f"task (nodes={run.nodes})"),
        ("Fleet", run.fleet),
        ("Cluster", f"{plan.target.name}, namespace {plan.target.namespace}"),
        ("Image", run.image),
        ("GPUs", _gpus(run)),
        ("RDMA", run.rdma or "none"),
        ("Startup order", run.task.startup_order),
        ("Stop criteria", run.task.stop_criteria),
        ("Max duration", "off" if run.max_duration is None else duration(run.max_duration)),
        *delivery.rows(run.content),
    ]
    print_table(("FIELD", "VALUE"), list((dict(rows) | dict(more)).items()), to=err())
    print_table(
        ("NODE", "ADDRESS", "GPUS FREE"),
        [(node.name, node.internal_ip or "-", node.gpus_free) for node in plan.places],
        to=err(),
    )
    for node, why in plan.excluded.items():
        note(f"left out: {node} {why}")
