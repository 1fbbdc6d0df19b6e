"""Kubernetes' quantities (``500m``, ``2Gi``, ``1e3``) as numbers, and what a pod asks for in all.

Source: the API conventions' "Quantities", and the scheduler's rule for init containers (the largest of them, or the sum
of the others, whichever is more; sidecars count with the others).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([numkKMGTPE]?i?)")


def amount(text: object) -> float:
    """A quantity as a number (cores, bytes or pieces); 0 for what is none."""
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None or match[2] not in _UNITS:
        return 0.0
    return float(match[1]) * _UNITS[match[2]]


def amounts(quantities: object) -> dict[str, float]:
    """A mapping of quantities as numbers."""
    return {str(k): amount(v) for k, v in quantities.items()} if isinstance(quantities, Mapping) else {}


def pod_requests(spec: Mapping[str, Any]) -> dict[str, float]:
    """What a pod asks of its node in all."""
    total: dict[str, float] = {}
    largest: dict[str, float] = {}
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            _add(total, _requests(container))
        else:
            for name, value in _requests(container).items():
                largest[name] = max(largest.get(name, 0.0), value + total.get(name, 0.0))
    for container in spec.get("containers") or []:
        _add(total, _requests(container))
    result = {name: max(total.get(name, 0.0), largest.get(name, 0.0)) for name in total | largest}
    _add(result, amounts(spec.get("overhead")))
    return result


def _requests(container: Mapping[str, Any]) -> dict[str, float]:
    """A limit without a request is a request as well."""
    resources = container.get("resources") or {}
    return amounts(resources.get("limits")) | amounts(resources.get("requests"))


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value
