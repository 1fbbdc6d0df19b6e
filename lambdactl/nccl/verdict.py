"""PASS, WARN, FAIL or no verdict: measured bandwidth against what this hardware allows, with the reason.

The rule: best of the halves at sizes of at least 1 GiB, two sizes within 5 % of each other (the plateau); below the
floor is FAIL, below the target WARN (see bounds.thresholds). Whatever shows that not everything took part fails first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lambdactl.nccl import bounds, stats
from lambdactl.nccl.baselines import Baseline, neighbours
from lambdactl.nccl.hardware import GPUModel, Hardware, gpu_model, gpus_per_node, known_gpus
from lambdactl.nccl.model import Result, Row
from lambdactl.nccl.participation import Participation, participation


class Status(StrEnum):
    """The outcome."""

    PASS = "PASS"  # noqa: S105 (a verdict, no password)
    WARN = "WARN"
    FAIL = "FAIL"
    NONE = "no verdict"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome and all that it rests on. Bandwidths are GB/s of busbw; `percent` is of the bound.

    Attributes:
        reasons: why, the deciding one first; whole sentences' parts, without a full stop.
        notes: what else a reader should know, such as outliers; never decides.
    """

    status: Status
    reasons: tuple[str, ...]
    hardware: Hardware
    participation: Participation
    measured: float | None = None
    size: int | None = None
    bound: bounds.Bound | None = None
    percent: float | None = None
    nic_gbps: float | None = None
    thresholds: bounds.Thresholds | None = None
    peak: stats.Peak | None = None
    neighbours: tuple[Baseline, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        return f"{self.status}: {self.reasons[0]}."

    def as_json(self) -> dict[str, Any]:
        """For `--json`, reports and history."""
        from lambdactl.nccl.render import verdict_json

        return verdict_json(self)


def judge(measured: float, hardware: Hardware, model: GPUModel) -> tuple[Status, str]:
    """The rule on one plateau value, in GB/s; the reason names the threshold."""
    limits = bounds.thresholds(hardware, model)
    if limits is None:
        return Status.NONE, "no threshold is published for NCCL_ALGO=Ring within one node"
    if measured < limits.floor:
        return Status.FAIL, f"{measured:.4g} GB/s is below the floor of {limits.floor:.4g} ({limits.floor_reason})"
    if limits.target is not None and measured < limits.target:
        return Status.WARN, f"{measured:.4g} GB/s is below the target of {limits.target:.4g} ({limits.target_reason})"
    if limits.target is None:
        return Status.PASS, f"{measured:.4g} GB/s reaches the floor of {limits.floor:.4g} ({limits.floor_reason})"
    return Status.PASS, f"{measured:.4g} GB/s reaches the target of {limits.target:.4g} ({limits.target_reason})"


def verdict(result: Result, hardware: Hardware) -> Verdict:
    """Judges one run of all_reduce on the hardware given. Raises nothing: what cannot be judged gets no verdict."""
    took_part = participation(result, hardware)
    rows = list(result.rows())
    flat = stats.plateau(rows)
    peak = stats.peak(rows)
    model = gpu_model(hardware.gpu)
    measured = flat.busbw if flat else None
    bound = _bound(hardware, model, measured) if not result.cpu else None
    status, reasons = _decide(result, hardware, model, took_part, flat)
    return Verdict(
        status, tuple(reasons), hardware, took_part,
        measured=measured, size=flat.size if flat else None, bound=bound,
        percent=measured / bound.busbw * 100 if measured is not None and bound else None,
        nic_gbps=bounds.nic_gbps(hardware, bound, measured) if measured is not None and bound else None,
        thresholds=bounds.thresholds(hardware, model) if bound and model else None,
        peak=peak, neighbours=() if result.cpu else tuple(neighbours(hardware)), notes=_notes(result, rows, took_part),
    )  # fmt: skip


def _bound(hardware: Hardware, model: GPUModel | None, measured: float | None) -> bounds.Bound | None:
    if model is None or _hardware_gap(hardware, model):
        return None
    return bounds.bound_for(hardware, model, measured or 0.0)


def _hardware_gap(hardware: Hardware, model: GPUModel | None) -> str | None:
    """Why there is no rule for this hardware, or None when there is one."""
    if model is None:
        known = ", ".join(known_gpus())
        return f"no rule is proven for the GPU {hardware.gpu!r} (known: {known}, as SXM modules)"
    if hardware.gpus_per_node != gpus_per_node():
        return (
            f"no rule is proven for {hardware.gpus_per_node} GPUs a node: the published results have {gpus_per_node()}"
        )
    if hardware.nodes > 1 and not (hardware.nics and hardware.nic_gbps):
        return "the number of NICs a node and their rate are not known"
    return None


def _decide(
    result: Result, hardware: Hardware, model: GPUModel | None, took_part: Participation, flat: stats.Plateau | None
) -> tuple[Status, list[str]]:
    if took_part.failures:
        return Status.FAIL, list(took_part.failures)
    if not any(table.rows for table in result.tables):
        return Status.FAIL, ["the test ended without a single measurement"]
    if result.cpu:
        return Status.NONE, [
            "this is lambdactl's CPU benchmark: it says nothing about GPUs or the network between them"
        ]
    if (gap := _hardware_gap(hardware, model) or _other_test(result, hardware, model, took_part)) or model is None:
        return Status.NONE, [gap or ""]
    if flat is None:
        return Status.NONE, ["no size of at least 1 GiB was measured; run with -e 4G or more"]
    if bounds.bound_for(hardware, model, flat.busbw) is None:
        return Status.NONE, [
            f"{flat.busbw:.4g} GB/s is more than this hardware can give: other hardware ran than was given"
        ]
    if flat.sizes == 1:
        return Status.NONE, [
            "only one size of at least 1 GiB was measured, so a plateau is not proven; run with -e 4G or more"
        ]
    status, reason = judge(flat.busbw, hardware, model)
    if not flat.reached and flat.rising:
        return Status.NONE, [
            f"the bandwidth still rises by over 5 % at the largest size ({reason}); run with a larger -e"
        ]
    if status is Status.PASS and not flat.reached:
        return Status.WARN, [f"unstable: no two sizes of at least 1 GiB are within 5 % of each other, though {reason}"]
    if status is Status.PASS and not all(table.complete for table in result.tables if table.rows):
        return Status.WARN, [f"the output is cut off before its end, though {reason}"]
    return status, [reason]


def _other_test(result: Result, hardware: Hardware, model: GPUModel | None, took_part: Participation) -> str | None:
    """Why this is no all-reduce of just the GPUs given, or None."""
    for seen, asked, what in (
        (took_part.hosts_seen, took_part.hosts_asked, "hosts"),
        (took_part.ranks_seen, took_part.ranks_asked, "ranks"),
    ):
        if seen is not None and seen > asked:
            return f"{seen} {what} took part where {asked} were given"
    if len({rank.group for rank in result.ranks}) > 1:
        return "the ranks were split into groups (NCCL_TESTS_SPLIT), and the output shows one group's bandwidth only"
    for table in result.tables:
        name = table.collective
        if table.rows and name and not name.startswith("all_reduce"):
            return f"the rule is for all_reduce, and this is {name}"
    if not any(table.collective for table in result.tables) and not _reduces(result):
        return "the rule is for all_reduce, and these rows are of another collective"
    for name in result.gpus:
        if gpu_model(name) != model:
            return f"the rank lines name {name!r}, not {hardware.gpu!r}"
    return None


def _reduces(result: Result) -> bool:
    """All-reduce alone has a redop and a busbw of at least its algbw."""
    return all(
        row.redop not in (None, "none") and all((half.busbw or 0) >= (half.algbw or 0) for half in row.halves)
        for row in result.rows()
    )


def _notes(result: Result, rows: list[Row], took_part: Participation) -> tuple[str, ...]:
    notes = [*took_part.notes, *result.notes]
    for outlier in stats.outliers(rows)[:5]:
        half = "in-place" if outlier.in_place else "out-of-place"
        notes.append(
            f"outlier: {outlier.size} bytes {half} took {outlier.time_us:.2f} us, "
            f"about {outlier.expected_us:.0f} expected from its neighbours"
        )
    if result.reduced_max_bytes is not None:
        notes.append(f"the test reduced its largest size to {result.reduced_max_bytes} bytes for lack of GPU memory")
    for table in result.tables:
        if table.nccl_headers and table.nccl_library and table.nccl_headers != table.nccl_library:
            notes.append(f"built with NCCL {table.nccl_headers}, running with {table.nccl_library}")
        if table.average_ok is False:
            notes.append("the test's own check NCCL_TESTS_MIN_BW failed")
    return tuple(dict.fromkeys(notes))
