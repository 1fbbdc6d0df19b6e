"""The GPUs and their driver, from nvidia-smi, the PCI bus and DCGM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lambdactl.doctor.evidence import (
    breaches,
    gpu_name,
    gpus,
    items,
    number,
    passed,
    program,
    section,
    skipped,
    text,
    words,
)
from lambdactl.doctor.model import Evidence, Judge, Outcome, Status

SRAM_CORRECTABLE, DRAM_CORRECTABLE = 10_000, 20_000_000
HOT_MARGIN = 5.0  # degrees Celsius below the slowdown
HOT = 85.0
HARD_REASONS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
SOFT_REASONS = ("sw_thermal_slowdown",)
# CUDA major version -> first driver branch that runs it.
DRIVER_FOR_CUDA = {11: 450, 12: 525, 13: 580}


def _each(judge: Callable[[Mapping[str, Any]], str | None]) -> Callable[[Evidence], list[str]]:
    """A line for each GPU of which `judge` says something."""
    return lambda evidence: [f"{gpu_name(gpu)} {said}" for gpu in gpus(evidence) if (said := judge(gpu))]


def _every(judge: Callable[[Mapping[str, Any]], str | None], good: str) -> Judge:
    return lambda evidence: breaches(_each(judge)(evidence), good)


def _smi(evidence: Evidence) -> Outcome:
    states = {name: program(evidence, name) for name in ("nvidia-smi -q", "nvidia-smi nvlink -s")}
    problems = [p for p in words(evidence, "facts", "problems") if "nvidia-smi" in p or "NVIDIA" in p]
    if "hung" in states.values():
        return Outcome(Status.FAIL, "hangs: it gave no answer within its time limit")
    if states["nvidia-smi -q"] == "missing":
        return Outcome(Status.FAIL, "is not installed, but the bus has NVIDIA GPUs")
    if states["nvidia-smi -q"] == "failed":
        message = text(section(evidence, "programs", "nvidia-smi -q"), "message")
        return Outcome(Status.FAIL, f"fails: {message or 'no message'}")
    return breaches(problems, f"answers, {len(gpus(evidence))} GPUs")


def _on_bus(evidence: Evidence) -> Outcome:
    on_bus, known = int(number(section(evidence, "pci"), "gpus") or 0), len(gpus(evidence))
    if known < on_bus:
        return Outcome(Status.FAIL, f"{known} of the {on_bus} GPUs on the PCI bus answer")
    return passed(f"{known} GPUs")


def _readable(gpu: Mapping[str, Any]) -> str | None:
    if text(gpu, "reset_required") == "Yes":
        return "requires a reset"
    unreadable = gpu.get("unreadable")
    return f"gives errors in place of values ({', '.join(map(str, unreadable[:3]))})" if unreadable else None


def _uncorrectable(gpu: Mapping[str, Any]) -> str | None:
    errors = section(gpu, "ecc_errors")
    found = {kind: int(number(errors, f"{kind}_uncorrectable") or 0) for kind in ("sram", "dram")}
    return ", ".join(f"{count} {kind.upper()}" for kind, count in found.items() if count) or None


def _correctable(gpu: Mapping[str, Any]) -> str | None:
    errors = section(gpu, "ecc_errors")
    limits = {"sram": SRAM_CORRECTABLE, "dram": DRAM_CORRECTABLE}
    found = {kind: int(number(errors, f"{kind}_correctable") or 0) for kind in limits}
    return ", ".join(f"{count} {kind.upper()}" for kind, count in found.items() if count > limits[kind]) or None


def _ecc_mode(gpu: Mapping[str, Any]) -> str | None:
    return f"has ECC {text(gpu, 'ecc').lower()}" if text(gpu, "ecc") == "Disabled" else None


def _remapped(gpu: Mapping[str, Any]) -> str | None:
    rows = section(gpu, "remapped")
    found = [name for name in ("failure", "pending") if text(rows, name) == "Yes"]
    return f"row remapping: {', '.join(found)}" if found else None


def _retired(gpu: Mapping[str, Any]) -> str | None:
    return "has pages pending retirement" if text(gpu, "retired_pending") == "Yes" else None


def _reasons(gpu: Mapping[str, Any], wanted: tuple[str, ...]) -> str | None:
    active = gpu.get("throttle")
    return ", ".join(name for name in wanted if isinstance(active, list) and name in active) or None


def _throttle(evidence: Evidence) -> Outcome:
    hard = _each(lambda gpu: _reasons(gpu, HARD_REASONS))(evidence)
    soft = _each(lambda gpu: _reasons(gpu, SOFT_REASONS))(evidence)
    return breaches(hard or soft, "no clock is held back", Status.FAIL if hard else Status.WARN)


def _heat(gpu: Mapping[str, Any]) -> tuple[Status, str] | None:
    """How near a GPU is to slowing down: newer drivers give the margin itself, older ones the threshold."""
    now, margin = number(gpu, "temperature"), number(gpu, "temperature_margin")
    limit = number(gpu, "temperature_slowdown")
    if margin is None and now is not None:
        margin = (limit if limit is not None else HOT + HOT_MARGIN) - now
    if margin is None or margin > HOT_MARGIN:
        return None
    shown = f"{now:g} °C, {margin:g} °C below its slowdown" if now is not None else f"{margin:g} °C below its slowdown"
    return (Status.FAIL if margin <= 0 else Status.WARN), shown


def _temperature(evidence: Evidence) -> Outcome:
    hot = [(found, f"{gpu_name(gpu)} {found[1]}") for gpu in gpus(evidence) if (found := _heat(gpu))]
    values = [value for gpu in gpus(evidence) if (value := number(gpu, "temperature")) is not None]
    worst = Status.FAIL if any(found[0] is Status.FAIL for found, _ in hot) else Status.WARN
    return breaches([line for _, line in hot], f"at most {max(values):g} °C" if values else "not told", worst)


def _persistence(gpu: Mapping[str, Any]) -> str | None:
    return "has persistence mode off" if text(gpu, "persistence") == "Disabled" else None


def _pcie(gpu: Mapping[str, Any]) -> str | None:
    """Lanes only: an idle GPU lowers the generation of its link to save power."""
    width, most = number(section(gpu, "pcie"), "width"), number(section(gpu, "pcie"), "width_max")
    return f"has x{width:g} of x{most:g}" if width is not None and most is not None and width < most else None


def _processes(evidence: Evidence) -> Outcome:
    if items(evidence, "facts", "leases"):
        return passed("a run of this project uses the GPUs")
    busy = _each(
        lambda gpu: ", ".join(f"{p.get('name') or 'process'} (pid {p.get('pid')})" for p in items(gpu, "processes"))
    )
    return breaches(busy(evidence), "no process")


def _mig(gpu: Mapping[str, Any]) -> str | None:
    return "has MIG enabled" if text(gpu, "mig") == "Enabled" else None


def _compute_mode(gpu: Mapping[str, Any]) -> str | None:
    mode = text(gpu, "compute_mode")
    return f"is in mode {mode}" if mode and mode != "Default" else None


def _driver_for_cuda(evidence: Evidence) -> Outcome:
    facts = section(evidence, "facts")
    driver, cuda = text(facts, "driver"), text(facts, "cuda")
    if not driver or not cuda:
        return skipped("no CUDA toolkit" if driver else "no NVIDIA driver")
    found, wanted = driver.partition(".")[0], DRIVER_FOR_CUDA.get(int(cuda.partition(".")[0]), 0)
    value = f"driver {driver}, CUDA {cuda}"
    return Outcome(Status.FAIL, f"{value} needs {wanted}") if int(found) < wanted else passed(value)


def _nouveau(evidence: Evidence) -> Outcome:
    return breaches(["the module nouveau is loaded"] if "nouveau" in words(evidence, "modules") else [], "not loaded")


def _dcgm(evidence: Evidence) -> Outcome:
    if program(evidence, "dcgmi") == "hung":
        return Outcome(Status.FAIL, "dcgmi hangs: it gave no answer within its time limit")
    count = number(evidence, "dcgm_gpus")
    if count is None:
        return Outcome(Status.WARN, "dcgmi reaches no DCGM host engine")
    if count < len(gpus(evidence)):
        return Outcome(Status.FAIL, f"DCGM sees {count:g} of {len(gpus(evidence))} GPUs")
    return passed(f"DCGM sees {count:g} GPUs")


def _diag(evidence: Evidence) -> Outcome:
    result = section(evidence, "deep", "diag")
    failed = words(result, "failed")
    if text(result, "state") == "hung":
        return Outcome(Status.FAIL, "dcgmi diag gave no answer within its time limit")
    return breaches(failed or ([] if text(result, "state") == "ok" else ["dcgmi diag failed"]), "passed")


JUDGES: dict[str, Judge] = {
    "nvidia-smi": _smi,
    "gpu-bus": _on_bus,
    "gpu-readable": _every(_readable, "all readable"),
    "ecc-mode": _every(_ecc_mode, "enabled"),
    "ecc-uncorrectable": _every(_uncorrectable, "0"),
    "ecc-correctable": _every(_correctable, "below the limits"),
    "row-remap": _every(_remapped, "none"),
    "retired-pages": _every(_retired, "none"),
    "gpu-throttle": _throttle,
    "gpu-temperature": _temperature,
    "gpu-persistence": _every(_persistence, "enabled"),
    "gpu-pcie": _every(_pcie, "all lanes"),
    "gpu-processes": _processes,
    "gpu-mig": _every(_mig, "disabled"),
    "gpu-compute-mode": _every(_compute_mode, "Default"),
    "driver-cuda": _driver_for_cuda,
    "nouveau": _nouveau,
    "dcgm": _dcgm,
    "dcgm-diag": _diag,
}
