"""The operating system: limits, clocks, memory, disks, kernel settings."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from lambdactl.doctor.evidence import (
    breaches,
    has_gpu,
    infiniband,
    items,
    number,
    passed,
    section,
    size,
    skipped,
    text,
    words,
)
from lambdactl.doctor.model import Evidence, Judge, Outcome, Status

TMP, SHM = "/tmp", "/dev/shm"  # noqa: S108 (names in the evidence, nothing is put there)
GIB, MIB = 1 << 30, 1 << 20
MEMLOCK_LEAST, MEMLOCK_WANTED = 64 * MIB, 16 * GIB
OPEN_FILES = 65536
GOOD_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "hyperv_clocksource_msr", "xen")
TIME_SERVICES = ("chrony", "chronyd", "systemd-timesyncd", "ntp", "ntpsec", "ptp4l")
SKEW_WARN, SKEW_FAIL = 0.5, 5.0
DISK_WARN, DISK_FAIL = 0.90, 0.95
TMP_LEAST, SHM_LEAST, SHM_WANTED = GIB, 128 * MIB, GIB
ZOMBIES = 5
CORRECTED = 100


def _limit(evidence: Evidence, name: str, which: str) -> float | None:
    """The limit, infinite where there is none, None where it is not known."""
    limits = section(evidence, "limits", name)
    if which not in limits:
        return None
    value = number(limits, which)
    return float("inf") if value is None else value


def _shown(limit: float) -> str:
    return "unlimited" if limit == float("inf") else size(limit)


def _memlock(evidence: Evidence) -> Outcome:
    limit = _limit(evidence, "memlock", "soft")
    if limit is None:
        return skipped("the login's limits cannot be read")
    worst = Status.FAIL if limit < MEMLOCK_LEAST and infiniband(evidence) else Status.WARN
    return Outcome(worst if limit < MEMLOCK_WANTED else Status.PASS, _shown(limit))


def _nofile(evidence: Evidence) -> Outcome:
    limit = _limit(evidence, "nofile", "hard")
    if limit is None:
        return skipped("the login's limits cannot be read")
    shown = "unlimited" if limit == float("inf") else f"{limit:g}"
    return Outcome(Status.WARN if limit < OPEN_FILES else Status.PASS, f"hard limit {shown}")


def _swap(evidence: Evidence) -> Outcome:
    used = number(section(evidence, "swap"), "used") or 0
    return Outcome(Status.WARN if used > 64 * MIB else Status.PASS, f"{size(used)} in use")


def _huge_pages(evidence: Evidence) -> Outcome:
    value = text(section(evidence, "settings"), "transparent_hugepages")
    if not value:
        return skipped("the kernel has no transparent huge pages")
    return Outcome(Status.WARN if value == "never" else Status.PASS, value)


def _clocksource(evidence: Evidence) -> Outcome:
    value = text(section(evidence, "settings"), "clocksource")
    if not value:
        return skipped("the kernel does not tell its clock source")
    return Outcome(Status.PASS if value in GOOD_CLOCKS else Status.WARN, value)


def _governor(evidence: Evidence) -> Outcome:
    values = words(evidence, "settings", "governors")
    if not values:
        return skipped("the CPU's frequency is not the kernel's to set")
    return breaches([value for value in values if value != "performance"], "performance")


def _numa(evidence: Evidence) -> Outcome:
    value = number(section(evidence, "settings"), "numa_balancing")
    if value is None or (number(section(evidence, "facts"), "numa_nodes") or 1) < 2:
        return skipped("one NUMA node")
    return Outcome(Status.WARN if value else Status.PASS, "on" if value else "off")


def _clock_sync(evidence: Evidence) -> Outcome:
    services = section(evidence, "services")
    running = [name for name in TIME_SERVICES if services.get(name) == "active"]
    synchronized = evidence.get("ntp_synchronized")
    if synchronized is True:
        return passed(f"synchronized{f' by {running[0]}' if running else ''}")
    if synchronized is None and not services:
        return skipped("systemd does not tell")
    return Outcome(Status.WARN, f"not synchronized, {running[0] if running else 'no time service'} is running")


def _skew(evidence: Evidence) -> Outcome:
    clock = section(evidence, "clock")
    offset, uncertain = number(clock, "offset"), number(clock, "uncertainty") or 0.0
    if offset is None:
        return skipped("not measured")
    least = max(0.0, abs(offset) - uncertain)
    status = Status.FAIL if least > SKEW_FAIL else Status.WARN if least > SKEW_WARN else Status.PASS
    return Outcome(status, f"{offset:+.2f} s ± {uncertain:.2f} s")


def _space(evidence: Evidence, path: str) -> Mapping[str, Any]:
    return next((space for space in items(evidence, "spaces") if space.get("path") == path), {})


def _disks(evidence: Evidence) -> Outcome:
    found, worst = [], Status.WARN
    for space in items(evidence, "spaces"):
        total, inodes = number(space, "total") or 0, number(space, "inodes") or 0
        shares = {
            "space": 1 - (number(space, "free") or 0) / total if total else 0.0,
            "inodes": 1 - (number(space, "inodes_free") or 0) / inodes if inodes else 0.0,
        }
        for kind, share in shares.items():
            if share >= DISK_WARN and text(space, "path") in ("/", "/var"):
                found.append(f"{text(space, 'path')}: {share:.0%} of its {kind} used")
                worst = Status.FAIL if share >= DISK_FAIL else worst
    return breaches(found, f"{size(number(_space(evidence, '/'), 'free') or 0)} free on /", worst)


def _tmp(evidence: Evidence) -> Outcome:
    free = number(_space(evidence, TMP), "free")
    if free is None:
        return skipped(f"{TMP} cannot be read")
    return Outcome(Status.WARN if free < TMP_LEAST else Status.PASS, f"{size(free)} free")


def _shared_memory(evidence: Evidence) -> Outcome:
    space = _space(evidence, SHM)
    total, free = number(space, "total"), number(space, "free")
    if total is None or free is None:
        return Outcome(Status.FAIL, f"{SHM} is not mounted")
    if free < SHM_LEAST:
        return Outcome(Status.FAIL if has_gpu(evidence) else Status.WARN, f"{size(free)} of {size(total)} free")
    return Outcome(Status.WARN if total < SHM_WANTED else Status.PASS, f"{size(total)}, {size(free)} free")


def _read_only(evidence: Evidence) -> Outcome:
    found = [text(space, "path") for space in items(evidence, "spaces") if space.get("read_only") is True]
    return breaches([f"{path} is read-only" for path in found], "writable")


def _network_mounts(evidence: Evidence) -> Outcome:
    mounts = items(evidence, "network_mounts")
    dead = [f"{text(m, 'path')} ({text(m, 'type')}) does not answer" for m in mounts if m.get("answers") is not True]
    return breaches(dead, f"{len(mounts)} answer") if mounts else skipped("no network file system")


def _nvme(evidence: Evidence) -> Outcome:
    drives = items(evidence, "nvme")
    dead = [f"{text(d, 'name')} is {text(d, 'state')}" for d in drives if text(d, "state") not in ("live", "")]
    return breaches(dead, f"{len(drives)} live") if drives else skipped("no NVMe drive")


def _memory_errors(evidence: Evidence) -> Outcome:
    counts = section(evidence, "memory_errors")
    if not counts:
        return skipped("the kernel counts no memory errors (EDAC)")
    bad, mild = number(counts, "uncorrected") or 0, number(counts, "corrected") or 0
    status = Status.FAIL if bad else Status.WARN if mild > CORRECTED else Status.PASS
    return Outcome(status, f"{bad:g} uncorrected, {mild:g} corrected")


def _zombies(evidence: Evidence) -> Outcome:
    names = words(evidence, "zombies")
    return Outcome(
        Status.WARN if len(names) > ZOMBIES else Status.PASS,
        f"{len(names)}: {', '.join(names[:3])}" if names else "none",
    )


def _hostname(evidence: Evidence) -> Outcome:
    name, addresses = text(section(evidence, "facts"), "hostname"), words(evidence, "hostname_addresses")
    if not addresses:
        return Outcome(Status.FAIL, f"{name} does not resolve")
    known = [address for address in addresses if _is_address(address)]
    return passed(f"{name} is {', '.join(known[:2]) or addresses[0]}")


def _is_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True


def _containers(evidence: Evidence) -> Outcome:
    engines = items(evidence, "facts", "container_engines")
    working = next((engine for engine in engines if not text(engine, "problem")), None)
    if working is None:
        return Outcome(Status.WARN, text(engines[0], "problem"))
    shown = f"{text(working, 'engine')} {text(working, 'version')}".rstrip()
    if not has_gpu(evidence):
        return passed(shown)
    way = text(working, "gpus")
    return passed(f"{shown}, GPUs by {way}") if way else Outcome(Status.WARN, f"{shown} gives containers no GPUs")


JUDGES: dict[str, Judge] = {
    "memlock": _memlock,
    "nofile": _nofile,
    "swap": _swap,
    "huge-pages": _huge_pages,
    "clocksource": _clocksource,
    "cpu-governor": _governor,
    "numa-balancing": _numa,
    "clock-sync": _clock_sync,
    "clock-skew": _skew,
    "disk-space": _disks,
    "tmp-space": _tmp,
    "containers": _containers,
    "shared-memory": _shared_memory,
    "read-only": _read_only,
    "network-mounts": _network_mounts,
    "nvme": _nvme,
    "memory-errors": _memory_errors,
    "zombies": _zombies,
    "hostname": _hostname,
}
