"""The nodes compared with each other: what most of them have is right, and the odd one out is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median

from lambdactl.doctor.evidence import active, gpus, infiniband, items, number, section, size, skipped, text
from lambdactl.doctor.model import Evidence, FleetJudge, Outcome, Status

NONE = "none"
MEMORY_SHARE = 0.03
SPREAD_WARN, SPREAD_FAIL = 0.5, 5.0
SHOWN = 3

Fleet = Mapping[str, Evidence]


def _hosts(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def majority(values: Mapping[str, str]) -> dict[str, Outcome]:
    """A pass for hosts with the value that more than half of them have, a fail for the others.

    Where no value has such a majority, every host fails, and is told who has what.
    """
    if len(values) < 2:
        return dict.fromkeys(values, skipped("one host: nothing to compare"))
    if set(values.values()) == {NONE}:
        return dict.fromkeys(values, skipped("no host has it"))
    counted = Counter(values.values())
    most, count = counted.most_common(1)[0]
    if len(counted) == 1:
        return {host: Outcome(Status.PASS, value) for host, value in values.items()}
    if count * 2 <= len(values):
        groups = (f"{value} on {_hosts([h for h, v in values.items() if v == value])}" for value in counted)
        told = f"no majority: {'; '.join(list(groups)[:SHOWN])}"
        return {host: Outcome(Status.FAIL, f"{value} ({told})") for host, value in values.items()}
    return {
        host: Outcome(Status.PASS, value)
        if value == most
        else Outcome(Status.FAIL, f"{value}, but {most} on {count} of {len(values)} hosts")
        for host, value in values.items()
    }


def _same(read: Callable[[Evidence], str]) -> FleetJudge:
    return lambda fleet: majority({host: read(evidence) or NONE for host, evidence in fleet.items()})


def _fact(name: str) -> Callable[[Evidence], str]:
    return lambda evidence: text(section(evidence, "facts"), name)


def _counted(values: list[str]) -> str:
    """Equal values counted, in a fixed order: "8 x NVIDIA B200"."""
    return ", ".join(f"{count} x {value}" for value, count in sorted(Counter(values).items()))


def _model(evidence: Evidence) -> str:
    return ", ".join(sorted({text(gpu, "name") for gpu in items(evidence, "facts", "gpus")}))


def _count(evidence: Evidence) -> str:
    known = items(evidence, "facts", "gpus")
    return f"{len(known)} GPUs" if known else ""


def _distinct(values: list[str]) -> str:
    return ", ".join(sorted({value for value in values if value}))


def _ports(evidence: Evidence) -> str:
    ports = active(infiniband(evidence))
    return f"{len(ports)} active ports" if ports else ""


def _rates(evidence: Evidence) -> str:
    return _distinct([f"{number(port, 'rate_gbps') or 0:g} Gb/s" for port in active(infiniband(evidence))])


def _firmware(evidence: Evidence) -> str:
    versions = {
        (text(port, "board"), text(port, "firmware")) for port in items(evidence, "ib") if text(port, "firmware")
    }
    return ", ".join(f"{version} ({board or 'unknown board'})" for board, version in sorted(versions))


def _cpus(evidence: Evidence) -> str:
    count = number(section(evidence, "facts"), "cpus")
    return f"{count:g}" if count else ""


def _mounts(evidence: Evidence) -> str:
    return _distinct([text(mount, "path") for mount in items(evidence, "network_mounts")])


def _mtu(evidence: Evidence) -> str:
    """The MTU of the interface that the nodes reach each other by, as the controller worked it out."""
    interface = section(evidence, "interfaces", text(evidence, "shared_interface"))
    value = number(interface, "mtu")
    return f"{value:g}" if value else ""


def _memory(fleet: Fleet) -> Mapping[str, Outcome]:
    amounts = {host: number(section(evidence, "facts"), "memory") or 0.0 for host, evidence in fleet.items()}
    if len(amounts) < 2:
        return dict.fromkeys(amounts, skipped("one host: nothing to compare"))
    middle = median(amounts.values())
    return {
        host: Outcome(Status.PASS, size(amount))
        if abs(amount - middle) <= MEMORY_SHARE * middle
        else Outcome(Status.FAIL, f"{size(amount)}, the median is {size(middle)}")
        for host, amount in amounts.items()
    }


def _clocks(fleet: Fleet) -> Mapping[str, Outcome]:
    clocks = {host: section(evidence, "clock") for host, evidence in fleet.items()}
    offsets = {host: value for host, clock in clocks.items() if (value := number(clock, "offset")) is not None}
    if len(offsets) < 2:
        return dict.fromkeys(fleet, skipped("fewer than two clocks are known"))
    middle = median(offsets.values())
    return {
        host: _clock(offsets[host] - middle, number(clocks[host], "uncertainty") or 0.0)
        for host in fleet
        if host in offsets
    }


def _clock(apart: float, uncertain: float) -> Outcome:
    least = max(0.0, abs(apart) - uncertain)
    status = Status.FAIL if least > SPREAD_FAIL else Status.WARN if least > SPREAD_WARN else Status.PASS
    return Outcome(status, f"{apart:+.2f} s from the median, ± {uncertain:.2f} s")


JUDGES: dict[str, FleetJudge] = {
    "same-driver": _same(_fact("driver")),
    "same-cuda": _same(_fact("cuda")),
    "same-gpu-model": _same(_model),
    "same-gpu-count": _same(_count),
    "same-vbios": _same(lambda evidence: _distinct([text(gpu, "vbios") for gpu in gpus(evidence)])),
    "same-ib-ports": _same(_ports),
    "same-ib-rate": _same(_rates),
    "same-ib-firmware": _same(_firmware),
    "same-kernel": _same(_fact("kernel")),
    "same-os": _same(lambda evidence: text(section(evidence, "facts", "os"), "pretty")),
    "same-bios": _same(lambda evidence: text(section(evidence, "settings"), "bios")),
    "same-cpus": _same(_cpus),
    "same-memory": _memory,
    "same-openmpi": _same(lambda evidence: text(section(evidence, "facts", "openmpi"), "version")),
    "same-nvme": _same(lambda evidence: _counted(["NVMe drive"] * len(items(evidence, "nvme")))),
    "same-mounts": _same(_mounts),
    "same-mtu": _same(_mtu),
    "clock-spread": _clocks,
}
