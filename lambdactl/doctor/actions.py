"""What the action plugin lambdactl_doctor does, without Ansible in it: task variables in, plain data out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambdactl.doctor import render
from lambdactl.doctor.examine import examine
from lambdactl.doctor.model import Report, Status
from lambdactl.provision import reach
from lambdactl.provision.actions import play_fleet


async def doctor_play(task_vars: Mapping[str, Any], *, deep: bool, json_file: str, junit_file: str) -> dict[str, Any]:
    """Examine the hosts of a play.

    Returns:
        `hosts` ({name: {status, failures, warnings, msg}}), `report` (the document of `--json`), `lines` (for people),
        `status` and `exit_code` of the whole.
    """
    fleet, names = play_fleet(task_vars)
    async with reach(fleet) as runner:
        report = await examine(fleet, runner, names=names, deep=deep)
    save(report, json_file=json_file, junit_file=junit_file)
    return {
        "hosts": {name: _host(report, name) for name in names},
        "report": report.as_json(),
        "lines": render.lines(report),
        "status": report.status.value,
        "exit_code": report.exit_code,
    }


def save(report: Report, *, json_file: str | Path | None = None, junit_file: str | Path | None = None) -> None:
    """Write the files that were asked for, each in one step: a reader never sees half a report.

    Raises OSError.
    """
    if json_file:
        _write(Path(json_file), json.dumps(report.as_json(), indent=2).encode() + b"\n")
    if junit_file:
        _write(Path(junit_file), render.junit(report))


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _host(report: Report, name: str) -> dict[str, Any]:
    found = report.of(name)
    failures = [f for f in found if f.status is Status.FAIL]
    warnings = [f for f in found if f.status is Status.WARN]
    status = Status.FAIL if failures else Status.WARN if warnings else Status.PASS
    said = "; ".join(f"{f.check}: {f.value}" for f in failures)
    remedy = failures[0].remedy if failures else ""
    return {
        "status": status.value,
        "failures": [f.check for f in failures],
        "warnings": [f.check for f in warnings],
        "msg": f"{name} is not healthy: {said}. Remedy: {remedy}" if failures else f"{name}: no failure",
    }
