"""The table of all checks: the words of `data/checks.yaml` beside the functions of `checks/` and `compare.py`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lambdactl.doctor import compare
from lambdactl.doctor.checks import fabric, gpu, kernel, system
from lambdactl.doctor.model import REACHABLE, Check, FleetJudge, Judge, Status

NODE_JUDGES: Mapping[str, Judge] = {**gpu.JUDGES, **kernel.JUDGES, **fabric.JUDGES, **system.JUDGES}
FLEET_JUDGES: Mapping[str, FleetJudge] = compare.JUDGES


def _check(name: str, words: Mapping[str, Any]) -> Check:
    return Check(
        id=name,
        title=words["title"],
        scope=words.get("scope", "node"),
        severity=Status(words["severity"]),
        threshold=words["threshold"],
        source=words["source"],
        remedy=words["remedy"],
        needs=tuple(words.get("needs", ())),
    )


@functools.cache
def checks() -> Mapping[str, Check]:
    """Every check by its id, in the order in which they are shown.

    Raises ValueError where words and functions do not belong together, which a test would have shown.
    """
    text = (Path(__file__).parent / "data" / "checks.yaml").read_text(encoding="utf-8")
    found = {name: _check(name, words) for name, words in yaml.safe_load(text).items()}
    judged = {REACHABLE, *NODE_JUDGES, *FLEET_JUDGES}
    if judged != set(found):
        raise ValueError(f"checks.yaml and the judges differ: {sorted(judged ^ set(found))}")
    return found
