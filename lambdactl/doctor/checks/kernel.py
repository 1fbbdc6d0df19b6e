"""What the kernel has logged since the node was started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdactl.doctor.evidence import breaches, items, number, text
from lambdactl.doctor.model import Evidence, Judge, Outcome, Status

DAY = 86400.0
# Xids that mean hardware, driver or firmware: Imbue's list (github.com/imbue-ai/cluster-health). The others, such as
# 13, 31, 43 and 45, are mostly an application's own faults (docs.nvidia.com/deploy/xid-errors).
HARDWARE_XIDS = frozenset(
    {48, *range(56, 59), *range(62, 65), *range(68, 78), *range(79, 87), 88, 89, 92, *range(94, 106)}
    | {*range(110, 121), *range(122, 126)}
)
APPLICATION_XIDS = frozenset({13, 31, 43, 45})
MEANINGS = {
    48: "double-bit ECC error", 63: "row remapping recorded", 64: "row remapping failed", 74: "NVLink error",
    79: "GPU has fallen off the bus", 92: "high rate of single-bit ECC errors", 94: "contained memory error",
    95: "uncontained memory error", 119: "GSP does not answer", 120: "GSP error", 13: "application: graphics exception",
    31: "application: memory page fault", 43: "application: GPU stopped", 45: "application: preemptive cleanup",
}  # fmt: skip


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "at an unknown time"
    return f"{seconds / 3600:.1f} h ago" if seconds >= 3600 else f"{seconds / 60:.0f} min ago"


def _event(event: Mapping[str, Any], name: str) -> str:
    code = int(number(event, "code") or 0)
    meaning = MEANINGS.get(code) if name == "Xid" else None
    often = int(number(event, "count") or 1)
    times = f", {often} times" if often > 1 else ""
    shown = f"{name} {code}{f' ({meaning})' if meaning else ''} on {text(event, 'pci') or 'a GPU'}"
    return f"{shown}, {_age(number(event, 'age'))}{times}"


def _xid(evidence: Evidence) -> Outcome:
    events = items(evidence, "kernel_log", "xid")
    bad = [event for event in events if event.get("code") in HARDWARE_XIDS]
    recent = [event for event in bad if (number(event, "age") or 0.0) <= DAY]
    unknown = [event for event in events if event.get("code") not in HARDWARE_XIDS | APPLICATION_XIDS]
    if recent:
        return breaches([_event(event, "Xid") for event in recent], "")
    applications = f"{len(events)} of applications only" if events else "none"
    return breaches([_event(event, "Xid") for event in (*bad, *unknown)], applications, Status.WARN)


def _sxid(evidence: Evidence) -> Outcome:
    return breaches([_event(event, "SXid") for event in items(evidence, "kernel_log", "sxid")], "none")


def _lines(kind: str) -> Judge:
    """The lines of one kind, newest first, each with its age."""

    def judge(evidence: Evidence) -> Outcome:
        found = items(evidence, "kernel_log", "lines", kind)
        lines = [f"{text(line, 'text')} ({_age(number(line, 'age'))})" for line in reversed(found)]
        return breaches(lines, "none")

    return judge


JUDGES: dict[str, Judge] = {
    "xid": _xid,
    "sxid": _sxid,
    "pcie-limited": _lines("pcie-limited"),
    "kernel-hardware": _lines("hardware"),
    "kernel-hung": _lines("hung"),
    "kernel-oom": _lines("oom"),
    "ib-flaps": _lines("link-down"),
}
