"""What a validation leaves behind, as plain data: the same in the state database, in reports and in `--json`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lambdactl.nccl import stats
from lambdactl.nccl.model import Result
from lambdactl.nccl.verdict import Status
from lambdactl.validate.steps import Kind

# From the worst to the best; what has no verdict neither helps nor hurts.
_ORDER = (Status.FAIL, Status.WARN, Status.PASS, Status.NONE)


@dataclass(slots=True)
class Point:
    """One message size of a curve: bytes, the shorter time in microseconds, the better bus bandwidth in GB/s."""

    size: int
    time_us: float | None
    busbw: float | None


@dataclass(slots=True)
class JobRecord:
    """One run of a step.

    Attributes:
        value: GB/s that stand for the job: the plateau, or the peak where there is none.
        bound: GB/s, with its reason; None without a rule for the hardware.
    """

    nodes: list[str]
    hostfile: list[str]
    command: str
    run: str
    status: str
    sentence: str
    seconds: float
    value: float | None = None
    bound: float | None = None
    bound_reason: str | None = None
    percent: float | None = None
    nic_gbps: float | None = None
    curve: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class StepRecord:
    """One step: its jobs ran at the same time."""

    name: str
    title: str
    kind: Kind
    status: str
    sentence: str
    jobs: list[JobRecord]

    @property
    def value(self) -> float | None:
        """GB/s of its slowest job."""
        return min((job.value for job in self.jobs if job.value is not None), default=None)


@dataclass(slots=True)
class Validation:
    """A whole validation. `topology` and `versions` are the keys of comparisons with the past."""

    id: str
    fleet_id: str
    fleet: str
    started_at: float
    seconds: float
    status: str
    sentence: str
    topology: str
    versions: dict[str, str]
    provenance: dict[str, Any]
    steps: list[StepRecord]
    pairs: list[tuple[str, str, list[float]]] = field(default_factory=list)
    typical_pair: float | None = None
    finding: str | None = None
    blames: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    doctor: list[dict[str, Any]] | None = None

    def as_json(self) -> dict[str, Any]:
        """One JSON document."""
        units = {"bandwidth": "GB/s (10^9 bytes) of busbw", "time": "s", "time_us": "us", "size": "bytes"}
        return {**asdict(self), "units": units}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Validation:
        """The inverse of `as_json`."""
        steps = [
            StepRecord(**{**step, "jobs": [_job(job) for job in step["jobs"]]})
            for step in data["steps"]
        ]  # fmt: skip
        fields = {key: value for key, value in data.items() if key != "units"}
        pairs = [(a, b, list(values)) for a, b, values in data["pairs"]]
        return cls(**{**fields, "steps": steps, "pairs": pairs})


def _job(data: Mapping[str, Any]) -> JobRecord:
    return JobRecord(**{**data, "curve": [Point(**point) for point in data["curve"]]})


def curve(result: Result) -> list[Point]:
    """The better half of every size."""
    points = []
    for row in result.rows():
        times = [half.time_us for half in row.halves if half.time_us is not None]
        points.append(Point(row.size, min(times, default=None), row.best_busbw))
    return points


def value(result: Result) -> float | None:
    """GB/s that stand for a run: the plateau of at least 1 GiB, or the peak."""
    rows = list(result.rows())
    flat, best = stats.plateau(rows), stats.peak(rows)
    return flat.busbw if flat else best.busbw if best else None


def worst(statuses: Iterable[str]) -> str:
    """The status of several together."""
    found = set(statuses)
    return next((str(status) for status in _ORDER if str(status) in found), str(Status.NONE))


def versions_key(versions: Mapping[str, str]) -> str:
    """A short key of all versions, equal when all of them are."""
    text = "\n".join(f"{name}={versions[name]}" for name in sorted(versions))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
