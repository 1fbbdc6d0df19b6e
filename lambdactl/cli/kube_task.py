"""`lambdactl apply -f TASK` on a Kubernetes fleet: plan, confirm, create, start, follow, exit with the run's code."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from lambdactl.backends.kubernetes.backend import KubeRef, KubernetesBackend, open_backend
from lambdactl.backends.kubernetes.nodes import ClusterView, look
from lambdactl.backends.kubernetes.plan import KubePlan, make_plan, refuse_unsupported
from lambdactl.backends.kubernetes.start import Starter, submit, take_back
from lambdactl.backends.kubernetes.view import view_of
from lambdactl.cli import delivery, kube_runs
from lambdactl.cli.console import confirm, duration, err, note, print_table
from lambdactl.errors import EXIT_OK, CapacityError, Interrupted
from lambdactl.run import extras
from lambdactl.state import RunRecord, State
from lambdactl.validate.hardware import hardware

if TYPE_CHECKING:
    from lambdactl.backends.kubernetes.client import Client
    from lambdactl.backends.kubernetes.config import Target
    from lambdactl.backends.kubernetes.fleet import KubeFleet
    from lambdactl.cli.apply import Options
    from lambdactl.nccl.hardware import Hardware
    from lambdactl.run.content import RunContent
    from lambdactl.run.plan import Overrides
    from lambdactl.run.ports import Port
    from lambdactl.spec import TaskSpec

_LOOK_AGAIN = 5.0


def run(task: TaskSpec, fleet: KubeFleet, overrides: Overrides, options: Options) -> int:
    """Run a task on a cluster."""
    refuse_unsupported(task)
    return asyncio.run(_apply(task, fleet, overrides, options))


async def _apply(task: TaskSpec, fleet: KubeFleet, overrides: Overrides, options: Options) -> int:
    content = await delivery.collect_content(task)
    async with open_backend(fleet) as backend:
        await _refuse_same_name(backend, overrides.name or task.name)
        plan, client = await _plan(task, backend, overrides, options, content)
        _show(plan)
        local = _local_ports(plan, options)  # one that is taken is told before anything is started
        if not confirm(f"Run {plan.run.run_name} on {fleet.name}?", yes=options.yes):
            return EXIT_OK
        ref = await _submit(client, plan)
        _remember(plan, fleet, state="submitted")
        name = plan.run.run_name
        note(f"{name} is submitted to {plan.run.nodes} node{'s' if plan.run.nodes > 1 else ''} of {plan.target.name}.")
        if options.detach:
            return await _start_only(backend, ref, plan, options)
        code = await kube_runs.follow_to_end(
            backend,
            ref,
            ranks=list(range(plan.run.nodes)) if options.all_ranks else [0],
            log_dir=options.log_dir,
            stop_when_interrupted=True,
            hardware=_hardware(plan),
            wait=bool(options.wait),
            ports=local,
            bring=delivery.bring_to_ranks(plan.run),
        )
    _remember(plan, fleet, state="ended", exit_code=code)
    return code


async def _refuse_same_name(backend: KubernetesBackend, name: str | None) -> None:
    if name is None:
        return
    ref = await backend.find(name)
    if ref is not None and not ref.view.ended:
        where = ", ".join(str(rank["node"]) for rank in ref.status.ranks if rank["node"] != "-")
        raise CapacityError(
            f"a run named {name} is {ref.status.state}{f' on {where}' if where else ''}; "
            f"stop it with `lambdactl stop {name}`, or choose another name with -n."
        )


async def _plan(
    task: TaskSpec, backend: KubernetesBackend, overrides: Overrides, options: Options, content: RunContent
) -> tuple[KubePlan, Client]:
    """A plan on the first cluster that it fits on; with --wait, the first moment that it does."""
    told = False
    while True:
        problem: CapacityError | None = None
        seen: list[tuple[Target, Client, ClusterView]] = []
        for target, client in backend.clients:
            view = await look(client)
            seen.append((target, client, view))
            try:
                plan = make_plan(task, backend.fleet, target, view, overrides, keep=options.keep, content=content)
            except CapacityError as error:
                problem = problem or error
            else:
                return plan, client
        if problem is None or not options.wait:
            raise problem or CapacityError(f"the fleet {backend.name} has no cluster.")
        if not told:
            note(f"waiting for free nodes: {problem.message.partition('. Nothing was started')[0]}")
            told = True
        await asyncio.sleep(_LOOK_AGAIN)


async def _submit(client: Client, plan: KubePlan) -> KubeRef:
    try:
        job = await submit(client, plan.run)
    except asyncio.CancelledError:
        raise Interrupted(f"interrupted; {plan.run.run_name} was not started.") from None
    view = view_of({"apiVersion": "batch/v1", "kind": "Job", **job}, [])
    status = view.status()
    assert status is not None  # noqa: S101 - a view of a Job always has one
    return KubeRef(client, view, status)


async def _start_only(backend: KubernetesBackend, ref: KubeRef, plan: KubePlan, options: Options) -> int:
    """`-d`: stay until the ranks' commands have been told to start; then nobody is needed any more."""
    name = plan.run.run_name
    try:
        async with backend.session(ref) as session:
            bring = delivery.bring_to_ranks(plan.run)
            await Starter(session, wait=bool(options.wait), notify=note, bring=bring).run()
    except (asyncio.CancelledError, Interrupted):
        await take_back(ref.client, ref.job_name, ref.uid)
        raise Interrupted(f"interrupted; {name} was not started.") from None
    note(f"Follow it with: lambdactl attach {name}")
    return EXIT_OK


def _local_ports(plan: KubePlan, options: Options) -> list[Port]:
    """The ports to forward while this command is attached."""
    if options.detach:
        return []
    ranks = [{"rank": rank, "ports": extras.ports(plan.run.task, rank)} for rank in range(plan.run.nodes)]
    return kube_runs.local_ports(plan.run.run_name, ranks, options.ports)


def _hardware(plan: KubePlan) -> Hardware | str:
    """What a run of nccl-tests on these nodes is judged by."""
    ring = any(re.search(r"\bNCCL_ALGO=[\"']?ring\b", text, re.I) for text in plan.run.task.commands)
    ring = ring or plan.run.env.get("NCCL_ALGO", "").lower() == "ring"
    return hardware([node.facts for node in plan.places], algorithm="ring" if ring else "default")


def _remember(plan: KubePlan, fleet: KubeFleet, *, state: str, exit_code: int | None = None) -> None:
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


def _show(plan: KubePlan) -> None:
    run = plan.run
    rows: list[tuple[str, object]] = [
        ("Run", run.run_name),
        ("Type", f"task (nodes={run.nodes})"),
        ("Fleet", run.fleet),
        ("Cluster", f"{plan.target.name}, namespace {plan.target.namespace}"),
        ("Image", run.image),
        ("GPUs", f"{run.gpus} a node" if run.gpus else "none"),
        ("RDMA", run.rdma or "none"),
        ("Startup order", run.task.startup_order),
        ("Stop criteria", run.task.stop_criteria),
        ("Max duration", "off" if run.max_duration is None else duration(run.max_duration)),
        *delivery.rows(run.content),
    ]
    print_table(("FIELD", "VALUE"), rows, to=err())
    print_table(
        ("NODE", "ADDRESS", "GPUS FREE"),
        [(node.name, node.internal_ip or "-", node.gpus_free) for node in plan.places],
        to=err(),
    )
    for node, why in plan.excluded.items():
        note(f"left out: {node} {why}")
