"""What all formats of a report say about a validation, as plain rows."""

from __future__ import annotations

import time

from lambdactl.validate.record import JobRecord, StepRecord, Validation

_LABELS = {
    "driver": "NVIDIA driver", "cuda": "CUDA", "openmpi": "Open MPI", "nccl": "NCCL", "nccl_tests": "nccl-tests",
    "tests_sha256": "all_reduce_perf sha256", "nic_firmware": "NIC firmware", "kernel": "kernel",
}  # fmt: skip
STEP_COLUMNS = ("Step", "Verdict", "busbw GB/s", "bound", "reached", "Gb/s per NIC")


def when(found: Validation) -> str:
    """The beginning, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(found.started_at))


def slowest(step: StepRecord) -> JobRecord | None:
    """The job that stands for a step."""
    measured = [job for job in step.jobs if job.value is not None]
    return min(measured, key=lambda job: job.value or 0.0, default=None)


def step_row(step: StepRecord) -> tuple[str, ...]:
    """One line of the table of steps."""
    job = slowest(step)
    if job is None:
        return (step.title, step.status, "-", "-", "-", "-")
    return (
        step.title, step.status, f"{job.value:.4g}", "-" if job.bound is None else f"{job.bound:.4g}",
        "-" if job.percent is None else f"{job.percent:.1f} %", "-" if job.nic_gbps is None else f"{job.nic_gbps:.0f}",
    )  # fmt: skip


def provenance_rows(found: Validation) -> list[tuple[str, str]]:
    """Where, when and with what it was measured."""
    rows = [("Fleet", found.fleet), ("Topology", found.topology), ("Started", when(found)), ("Validation", found.id)]
    rows += [(_LABELS.get(name, name), text) for name, text in found.versions.items()]
    rows.append(("Hostfile order", ", ".join(found.provenance.get("hostfile_order", []))))
    if devices := sorted(set(found.provenance.get("nccl_ib_hca", {}).values())):
        rows.append(("NCCL_IB_HCA of the nodes", " or ".join(devices)))
    if names := found.provenance.get("environment_names"):
        rows.append(("Variables set (names)", ", ".join(names)))
    return rows


def commands(found: Validation) -> list[tuple[str, str]]:
    """Each step's title and the command of its rank 0; the rails differ in CUDA_VISIBLE_DEVICES only, so one stands."""
    rails = [step for step in found.steps if step.kind == "rail"]
    last = rails[-1].name.removeprefix("rail-") if rails else ""
    return [
        (
            step.title + (f"; likewise up to GPU {last}" if step.kind == "rail" and len(rails) > 1 else ""),
            step.jobs[0].command,
        )
        for step in found.steps
        if step.jobs and (step.kind != "rail" or step is rails[0])
    ]


def hostfile(found: Validation) -> list[str]:
    """The addresses of the largest run, in rank order."""
    return max((job.hostfile for step in found.steps for job in step.jobs), key=len, default=[])


def size(amount: int) -> str:
    """8 B, 1 KiB, 2 GiB."""
    value = float(amount)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:g} {unit}"
        value /= 1024
    return f"{value:g} GiB"
