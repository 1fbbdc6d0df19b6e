"""`lambdactl validate -f FLEET`: show the plan, ask, measure, name what is slow, exit with the verdict's code."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lambdactl import spec
from lambdactl.cli.console import confirm, duration, err, note, print_json, print_table
from lambdactl.cli.nccl import EXIT_NO_VERDICT, EXIT_WARN
from lambdactl.cli.select import choose_fleet
from lambdactl.errors import EXIT_FAILED, EXIT_OK, Interrupted, SpecError
from lambdactl.fleet import Fleet
from lambdactl.nccl.verdict import Status
from lambdactl.run.survey import survey
from lambdactl.state import State
from lambdactl.validate import steps
from lambdactl.validate.flow import Flow, Watcher
from lambdactl.validate.hardware import Network
from lambdactl.validate.history import compare
from lambdactl.validate.record import StepRecord, Validation
from lambdactl.validate.tournament import most_rounds

if TYPE_CHECKING:
    from lambdactl.transport.api import Transport

CODES = {Status.PASS: EXIT_OK, Status.FAIL: EXIT_FAILED, Status.WARN: EXIT_WARN, Status.NONE: EXIT_NO_VERDICT}


@dataclass(frozen=True)
class Arguments:
    """The options of `validate`, as they were given."""

    cpu: bool = False
    pairs: bool = False
    rails: bool = True
    dry_run: bool = False
    yes: bool = False
    json: bool = False
    nics: int | None = None
    nic_gbps: float | None = None
    env: tuple[str, ...] = ()
    rounds: int = 3


def run(file: str | None, arguments: Arguments) -> int:
    """Validate a fleet."""
    options = _options(arguments)
    fleet = named_fleet(file)
    try:
        return asyncio.run(_validate(fleet, arguments, options))
    except asyncio.CancelledError:
        raise Interrupted("terminated; what ran on the nodes was stopped.") from None


def named_fleet(file: str | None) -> Fleet:
    """The fleet of a file or name, or the only one that is known."""
    with State() as state:
        return choose_fleet(file, state)


def _options(arguments: Arguments) -> steps.Options:
    if (arguments.nics is None) != (arguments.nic_gbps is None):
        raise SpecError("--nics and --nic-gbps belong together; give both, such as --nics 8 --nic-gbps 400.")
    network = None
    if arguments.nics is not None and arguments.nic_gbps is not None:
        if not 0 < arguments.nics <= 1024 or not 0 < arguments.nic_gbps <= 100_000:
            raise SpecError("--nics must be 1 to 1024, and --nic-gbps more than 0.")
        network = Network(arguments.nics, arguments.nic_gbps)
    if not 2 <= arguments.rounds <= 1023:
        raise SpecError("--rounds must be at least 2: one measurement cannot tell two nodes apart.")
    import os

    given = spec.resolve_env(tuple(spec.parse_env_item(item) for item in arguments.env), os.environ)
    return steps.Options(arguments.cpu, arguments.pairs, arguments.rails, network, given, arguments.rounds)


async def _validate(fleet: Fleet, arguments: Arguments, options: steps.Options) -> int:
    from lambdactl.transport import open_transport

    async with open_transport(fleet) as transport:
        seen = await survey(transport, fleet)
        if len(seen.problems) == len(fleet.hosts):
            raise next(iter(seen.problems.values())).error()
        plan = steps.make_plan(fleet, seen.views, options)
        _show(plan, options)
        if arguments.dry_run:
            _show_commands(plan)
            return EXIT_OK
        question = f"Measure {len(plan.nodes)} nodes of {fleet.name}? Nothing else can run on them meanwhile."
        if not confirm(question, yes=arguments.yes):
            return EXIT_OK
        flow = Flow(transport, fleet, seen.views, plan, options, Watcher(_begins, _ended))
        found = await _until_terminated(flow, await _doctor(fleet, transport, plan.nodes))
    _keep(found)
    if arguments.json:
        print_json(found.as_json())
    else:
        _tell(found)
    return CODES[Status(found.status)]


async def _doctor(fleet: Fleet, transport: Transport, nodes: Sequence[str]) -> list[dict[str, Any]]:
    """The doctor's findings; a sick node is measured all the same, because its bandwidth is part of the evidence.

    What passes or does not apply is kept without its texts, so that the record of a large fleet stays small.
    """
    from lambdactl.doctor import Status as Health
    from lambdactl.doctor import examine
    from lambdactl.doctor.render import remedies, rows, summary

    note("... doctor")
    report = await examine(fleet, transport, names=nodes)
    note(summary(report))
    for line in remedies(rows(report)):
        note(f"remedy: {line}")
    return [
        finding.as_json()
        if finding.status in (Health.WARN, Health.FAIL)
        else {"check": finding.check, "title": finding.title, "host": finding.host, "status": finding.status.value}
        for finding in report.findings
    ]


async def _until_terminated(flow: Flow, doctor: list[dict[str, Any]]) -> Validation:
    """SIGTERM stops what runs, as Ctrl-C does."""
    task = asyncio.ensure_future(flow.run(doctor))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        note("stopped: what ran on the nodes has ended.")
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _show(plan: steps.Plan, options: steps.Options) -> None:
    names = ", ".join(plan.nodes[:8]) + (", ..." if len(plan.nodes) > 8 else "")
    note(f"Validation of {plan.fleet}: {len(plan.nodes)} nodes ({names})")
    rows = [(1, "doctor", len(plan.nodes), "10s", "-")]
    rows += [
        (number, step.title, len(step.jobs), duration(step.seconds), duration(step.limit))
        for number, step in enumerate(plan.steps, 2)
    ]
    print_table(("STEP", "WHAT", "RUNS", "ABOUT", "AT MOST"), rows, to=err())
    if plan.pair is not None:
        rounds = most_rounds(len(plan.nodes))
        when = "always" if options.pairs else "only if the whole is slow"
        note(
            f"then pairs of nodes, {when}: {options.rounds} rounds of about {duration(plan.pair.seconds)}, "
            f"{rounds} at most with retests"
        )
    note(f"about {duration(plan.seconds)} in all")
    for host, why in plan.left_out.items():
        note(f"left out: {host} {why}")
    if plan.note:
        note(plan.note)


def _show_commands(plan: steps.Plan) -> None:
    for step in plan.steps:
        for job in step.jobs:
            print(f"# {step.title}: {', '.join(job.nodes)}; on {job.nodes[0]}:\n{job.command}")
    if plan.pair is not None:
        print(f"# {plan.pair.title}; on the first of each:\n{plan.pair.jobs[0].command}")


def _begins(title: str, seconds: int) -> None:
    note(f"... {title} (about {duration(seconds)})")


def _ended(step: StepRecord) -> None:
    note(f"{step.status}: {step.title}: {step.sentence}")


def _keep(found: Validation) -> None:
    with State() as state:
        earlier = [Validation.from_json(other) for other in state.validations(found.fleet_id)]
        state.remember_validation(found.id, found.fleet_id, found.started_at, found.as_json())
    comparison = compare(found, earlier)
    for change in comparison.flagged:
        note(
            f"slower than before: {change.step} {change.now:.4g} GB/s, {change.relative:+.1%} "
            f"against the last {change.runs} ({change.before:.4g})"
        )


def _tell(found: Validation) -> None:
    print_table(
        ("STEP", "STATUS", "BUSBW GB/s", "BOUND", "%", "Gb/s PER NIC"),
        [
            (
                step.title,
                step.status,
                "-" if step.value is None else f"{step.value:.4g}",
                *_of_bound(step),
            )
            for step in found.steps
        ],
    )
    for blame in found.blames:
        print(f"to blame: {blame['text']}")
        for line in blame["evidence"]:
            print(f"  {line}")
    print(found.sentence)
    note(f"Kept as validation {found.id}. Report: lambdactl report {found.id}")


def _of_bound(step: StepRecord) -> tuple[str, str, str]:
    jobs = [job for job in step.jobs if job.value is not None and job.value == step.value]
    if not jobs or jobs[0].bound is None:
        return ("-", "-", "-")
    job = jobs[0]
    percent = "-" if job.percent is None else f"{job.percent:.1f}"
    return (f"{job.bound:.4g}", percent, "-" if job.nic_gbps is None else f"{job.nic_gbps:.0f}")
