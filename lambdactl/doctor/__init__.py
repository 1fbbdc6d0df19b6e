"""Is this fleet healthy: checks as data, judged from evidence that each node collects in one round trip.

report = await examine(fleet, transport)
report.exit_code, report.findings, report.as_json()
"""

from __future__ import annotations

from lambdactl.doctor.catalogue import checks
from lambdactl.doctor.examine import examine, judge
from lambdactl.doctor.model import Check, Finding, Outcome, Report, Status

__all__ = [
    "Check",
    "Finding",
    "Outcome",
    "Report",
    "Status",
    "checks",
    "examine",
    "judge",
]
