"""What the kernel has logged since it started: Xid and SXid of NVIDIA's driver, and other signs of broken hardware."""

from __future__ import annotations

import errno
import os
import re

from . import paths, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

XID = re.compile(r"NVRM: Xid \((?:PCI:)?([^)]*)\): (\d+)")
SXID = re.compile(r"nvidia-nvswitch\S*: SXid \((?:PCI:)?([^)]*)\): (\d+)")
KINDS = {
    "pcie-limited": re.compile(r"mlx5_core.*limited by|PCIe bandwidth.*limited", re.IGNORECASE),
    "hardware": re.compile(
        r"\[Hardware Error\]|Machine check|AER: (?:Multiple )?Uncorrect|I/O error, dev (?!loop|sr|fd)"
        r"|EXT4-fs error|XFS .*(?:Corruption|metadata I/O error)",
        re.IGNORECASE,
    ),
    "hung": re.compile(r"task \S+:\d+ blocked for more than|soft lockup|hard LOCKUP", re.IGNORECASE),
    "oom": re.compile(r"Out of memory: Kill|oom-kill:constraint=CONSTRAINT_NONE"),
    "link-down": re.compile(r"mlx5_core.*(?:link down|Link down)|\bib\w*: .*link is not ready", re.IGNORECASE),
}
DMESG = re.compile(r"^(?:<\d+>)?\[\s*([0-9]+\.[0-9]+)\]\s*(.*)$")
KEEP = 20
LENGTH = 200


def evidence() -> dict[str, Any]:
    """The matching lines of the kernel's log, newest last; `available` is False where it cannot be read."""
    lines = _kmsg()
    if lines is None:
        lines = _dmesg()
    return collect(lines or (), _uptime(), available=lines is not None)


def collect(lines: Iterable[tuple[float, str]], uptime: float, *, available: bool = True) -> dict[str, Any]:
    """Sort (seconds after boot, message) lines by what they are signs of; ages are in seconds."""
    found: dict[str, Any] = {"available": available, "xid": [], "sxid": [], "lines": {kind: [] for kind in KINDS}}
    for moment, text in lines:
        age = max(0.0, round(uptime - moment, 1))
        for name, pattern in (("xid", XID), ("sxid", SXID)):
            match = pattern.search(text)
            if match:
                event = {"code": int(match.group(2)), "pci": match.group(1)[:40], "age": age, "text": text[:LENGTH]}
                found[name].append(event)
        for kind, pattern in KINDS.items():
            if pattern.search(text):
                found["lines"][kind].append({"age": age, "text": text[:LENGTH]})
    for name in ("xid", "sxid"):
        found[name] = _newest_of_each(found[name])
    found["lines"] = {kind: events[-KEEP:] for kind, events in found["lines"].items()}
    return found


def _newest_of_each(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One event for each code and device, its newest, with how often it came: a storm must not hide the rest."""
    kept: dict[tuple[int, str], dict[str, Any]] = {}
    for event in events:
        key = (event["code"], event["pci"])
        kept[key] = {**event, "count": kept.get(key, {"count": 0})["count"] + 1}
    return sorted(kept.values(), key=lambda event: -event["age"])[-KEEP:]


def _uptime() -> float:
    words = paths.read_text("/proc/uptime").split()
    return float(words[0]) if words else 0.0


def _kmsg() -> list[tuple[float, str]] | None:
    """All records of /dev/kmsg, or None where it cannot be read."""
    try:
        descriptor = os.open(paths.ROOT + "/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    lines = []
    try:
        for record in _records(descriptor):
            head, _, text = record.partition(";")
            fields = head.split(",")
            if len(fields) > 2 and fields[2].isdigit():
                lines.append((int(fields[2]) / 1e6, text.split("\n", 1)[0]))
    finally:
        os.close(descriptor)
    return lines


def _records(descriptor: int) -> Iterator[str]:
    while True:
        try:
            data = os.read(descriptor, 1 << 14)
        except OSError as error:
            if error.errno == errno.EPIPE:  # records were overwritten while we read: go on with the next
                continue
            return
        if not data:
            return
        yield data.decode("utf-8", "replace")


def _dmesg() -> list[tuple[float, str]] | None:
    program = programs.find("dmesg")
    code, text = programs.Program([program, "--raw"], 10.0).result([]) if program else (1, "")
    if code != 0:
        return None
    matches = (DMESG.match(line) for line in text.splitlines())
    return [(float(match.group(1)), match.group(2)) for match in matches if match]
