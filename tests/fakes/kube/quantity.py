"""Kubernetes' quantities: 500m, 2Gi, 1e3."""

from __future__ import annotations

_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip


def amount(text: object) -> float:
    """A quantity as a number."""
    written = str(text)
    digits = written.rstrip("numkMGTPEi")
    return float(digits) * _UNITS[written[len(digits) :]]


def pod_requests(spec: dict) -> dict[str, float]:
    """What a pod asks for in all (init containers count by the largest)."""
    total: dict[str, float] = {}
    for container in spec.get("containers") or []:
        for name, value in requests(container).items():
            total[name] = total.get(name, 0) + value
    for container in spec.get("initContainers") or []:
        for name, value in requests(container).items():
            total[name] = max(total.get(name, 0), value)
    return total


def requests(container: dict) -> dict[str, float]:
    resources = container.get("resources") or {}
    return {n: amount(v) for n, v in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items()}


def shown(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{round(value * 1000)}m"
