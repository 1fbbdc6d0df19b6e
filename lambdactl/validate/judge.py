"""From what a job printed to its status and sentence."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from lambdactl.nccl import bounds, stats
from lambdactl.nccl.hardware import Hardware, gpu_model
from lambdactl.nccl.model import Result
from lambdactl.nccl.participation import participation
from lambdactl.nccl.verdict import Status, Verdict, verdict
from lambdactl.validate import record
from lambdactl.validate.execute import Outcome
from lambdactl.validate.record import JobRecord, StepRecord
from lambdactl.validate.steps import Job, Step

# Nodes, and rails, of one fleet are alike: one that is this much below the middle one is not.
UNLIKE = 0.95


def job_record(job: Job, outcome: Outcome) -> JobRecord:
    """A finished job, judged."""
    found = JobRecord(
        nodes=list(job.nodes), hostfile=list(outcome.addresses), command=job.command, run=outcome.run_name,
        status=str(Status.NONE), sentence="", seconds=round(outcome.seconds, 1),
    )  # fmt: skip
    if outcome.result is not None:
        found.curve, found.value = record.curve(outcome.result), record.value(outcome.result)
    found.notes = [f"{item.cause} {item.remedy}" for item in outcome.explanations[:3]] if outcome.problem else []
    if outcome.problem is not None:
        found.status, found.sentence = str(Status.FAIL), f"the run failed: {outcome.problem}"
    elif outcome.result is None:
        found.status, found.sentence = str(Status.FAIL), "the run ended without a single measurement"
    else:
        _judge(found, job, outcome.result)
    return found


def _judge(found: JobRecord, job: Job, result: Result) -> None:
    if isinstance(job.hardware, str):
        found.sentence = job.hardware
        return
    decided = rail_verdict(result, job.hardware) if job.rail is not None else verdict(result, job.hardware)
    found.status, found.sentence = str(decided.status), decided.reasons[0]
    found.percent, found.nic_gbps = decided.percent, decided.nic_gbps
    if decided.bound is not None:
        found.bound, found.bound_reason = decided.bound.busbw, decided.bound.reason
    found.notes = list(decided.notes)


def rail_verdict(result: Result, whole: Hardware) -> Verdict:
    """One GPU of every node: only the NICs of that rail carry data, so the wire's rate is the bound of every algorithm.

    Tree, ring and in-network reduction agree there: b (n-1)/(k-1) = b where n = k. Floor and target are the ring's.
    """
    shared = max(1, (whole.nics or 0) // whole.gpus_per_node)
    rail = replace(whole, gpus_per_node=1, nics=shared if whole.nics else None, algorithm="ring")
    took_part = participation(result, rail)
    flat = stats.plateau(list(result.rows()))
    base = Verdict(Status.NONE, ("",), rail, took_part, measured=flat.busbw if flat else None)
    if took_part.failures:
        return replace(base, status=Status.FAIL, reasons=took_part.failures)
    if gpu_model(whole.gpu) is None or not (rail.nics and rail.nic_gbps):
        return replace(base, reasons=("the number of NICs a node and their rate are not known",))
    if flat is None:
        return replace(base, reasons=("no size of at least 1 GiB was measured",))
    wire = bounds.ring(rail)
    name = f"the rail's wire, {shared} x {rail.nic_gbps:g} Gb/s = {wire:.4g} GB/s"
    floor, target = bounds.FLOOR * wire, bounds.TARGET_RING * wire
    status, limit, share = (
        (Status.FAIL, floor, bounds.FLOOR) if flat.busbw < floor
        else (Status.WARN, target, bounds.TARGET_RING) if flat.busbw < target
        else (Status.PASS, target, bounds.TARGET_RING)
    )  # fmt: skip
    verb = "reaches" if status is Status.PASS else "is below"
    return replace(
        base, status=status, reasons=(f"{flat.busbw:.4g} GB/s {verb} {limit:.4g} ({share:.0%} of {name})",),
        bound=bounds.Bound(wire, "ring", name), percent=flat.busbw / wire * 100,
        nic_gbps=flat.busbw * 8 / shared,
    )  # fmt: skip


def step_record(step: Step, jobs: Sequence[JobRecord]) -> StepRecord:
    """A step's status is its worst job's; nodes that are unlike the others are named."""
    _compare(jobs)
    status = record.worst(job.status for job in jobs)
    return StepRecord(step.name, step.title, step.kind, status, _sentence(jobs, status), list(jobs))


def _compare(jobs: Sequence[JobRecord]) -> None:
    """A job clearly below the middle of its fellows passes no more."""
    values = [job.value for job in jobs if job.value]
    if len(values) < 3:
        return
    middle = statistics.median(values)
    for job in jobs:
        if job.value and job.value < UNLIKE * middle and job.status != str(Status.FAIL):
            job.status = str(Status.WARN)
            job.sentence = f"{job.value:.4g} GB/s is {1 - job.value / middle:.0%} below the middle node's {middle:.4g}"


def _sentence(jobs: Sequence[JobRecord], status: str) -> str:
    if len(jobs) == 1:
        return jobs[0].sentence
    values = sorted(job.value for job in jobs if job.value is not None)
    span = f"{values[0]:.4g} to {values[-1]:.4g} GB/s on {len(jobs)} nodes" if values else f"{len(jobs)} nodes"
    guilty = [job for job in jobs if job.status == status]
    if status in (str(Status.FAIL), str(Status.WARN)):
        return f"{', '.join(guilty[0].nodes)}: {guilty[0].sentence}" + (
            f"; and {len(guilty) - 1} more ({span})" if len(guilty) > 1 else f" ({span})"
        )
    return span if status == str(Status.PASS) else f"{span}; {guilty[0].sentence}"


def unlike_rails(steps: Sequence[StepRecord]) -> list[tuple[str, float]]:
    """The rails that are clearly slower than the middle one, with their share of it."""
    rails = [(step.name, step.value or 0.0) for step in steps if step.kind == "rail"]
    if len(rails) < 3:
        return []
    middle = statistics.median(value for _, value in rails)
    return [(name, value / middle) for name, value in rails if middle and value < UNLIKE * middle]
