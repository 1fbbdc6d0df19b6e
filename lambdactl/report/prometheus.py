"""A Prometheus textfile for node_exporter's textfile collector. Base units: bytes per second, seconds, ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lambdactl.nccl.verdict import Status
from lambdactl.validate.record import Validation

Sample = tuple[Mapping[str, str], float]
_PREFIX = "lambdactl_validation"


def textfile(found: Validation) -> str:
    """The last validation of a fleet, all metrics gauges."""
    return "".join(_metric(name, text, samples) for name, text, samples in _metrics(found) if samples)


def _metrics(found: Validation) -> Iterator[tuple[str, str, list[Sample]]]:
    fleet = {"fleet": found.fleet}
    yield (
        "timestamp_seconds",
        "When the last validation began, in seconds since the epoch.",
        [(fleet, found.started_at)],
    )
    yield "duration_seconds", "How long it took.", [(fleet, found.seconds)]
    yield (
        "status", "Its verdict: 1 for the one that holds, 0 for the others.",
        [({**fleet, "status": str(status)}, float(found.status == status)) for status in Status],
    )  # fmt: skip
    jobs = [
        (
            {**fleet, "step": step.name, "nodes": ",".join(job.nodes) if len(job.nodes) <= 2 else str(len(job.nodes))},
            job,
        )
        for step in found.steps
        for job in step.jobs
    ]
    yield (
        "busbw_bytes_per_second", "All-reduce bus bandwidth of one run, by step.",
        [(labels, job.value * 1e9) for labels, job in jobs if job.value is not None],
    )  # fmt: skip
    yield (
        "bound_bytes_per_second", "What the hardware allows in that run.",
        [(labels, job.bound * 1e9) for labels, job in jobs if job.bound is not None],
    )  # fmt: skip
    yield (
        "pair_busbw_bytes_per_second", "All-reduce bus bandwidth of two nodes, the last measurement.",
        [({**fleet, "node": a, "peer": b}, values[-1] * 1e9) for a, b, values in found.pairs if values],
    )  # fmt: skip
    yield (
        "blamed", "1 for each node that is to blame, or shares what is.",
        [({**fleet, "kind": blame["kind"], "node": node}, 1.0) for blame in found.blames for node in blame["nodes"]],
    )  # fmt: skip


def _metric(name: str, text: str, samples: list[Sample]) -> str:
    full = f"{_PREFIX}_{name}"
    lines = [f"# HELP {full} {text}", f"# TYPE {full} gauge"]
    unique = {_labels(labels): value for labels, value in samples}
    lines += [f"{full}{labels} {value!r}" for labels, value in unique.items()]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
