"""NVLink, InfiniBand, PCIe between them, and what lets GPUs and NICs talk directly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lambdactl.doctor.evidence import (
    active,
    breaches,
    gpus,
    infiniband,
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

# GPU -> (links, GB/s each way and link) of SXM modules, as OCI's health checks expect them.
NVLINKS = {
    "A100": (12, 25.0), "H100": (18, 25.0), "H200": (18, 25.0), "B200": (18, 50.0), "B300": (18, 50.0),
    "GB200": (18, 50.0), "GB300": (18, 50.0),
}  # fmt: skip
NVLINK_ERRORS = 5  # Imbue warns at five
FLAPS = 5  # Azure fails at more than five a day; the counter has no times
BAD_COUNTERS = (
    "symbol_error", "link_error_recovery", "local_link_integrity_errors", "excessive_buffer_overrun_errors",
    "port_rcv_errors",
)  # fmt: skip
LOOPBACK_SHARE = 0.9  # of the port's rate: OCI and Azure ask for 360 to 380 of 400 Gb/s
DMA_BUF_KERNEL = (5, 12)


def _port(port: Mapping[str, Any]) -> str:
    return f"{text(port, 'device')} port {port.get('port', '?')}"


def _model(evidence: Evidence) -> str | None:
    name = text(gpus(evidence)[0], "name") if gpus(evidence) else ""
    found = re.search(r"\b(GB\d+|[ABH]\d+)\b", name.replace("-", " "))
    return found.group(1) if found and "PCIe" not in name and "NVL" not in name else None


def _nvlink(evidence: Evidence) -> Outcome:
    wanted = NVLINKS.get(_model(evidence) or "")
    found = []
    for gpu in items(evidence, "nvlink"):
        links = [speed for speed in gpu.get("links") or () if speed is None or isinstance(speed, int | float)]
        up = [speed for speed in links if speed]
        if wanted is not None and (len(up) < wanted[0] or min(up) < wanted[1]):
            found.append(f"GPU {gpu.get('gpu')}: {len(up)} of {wanted[0]} links at {min(up, default=0):g} GB/s")
        elif wanted is None and len(up) < len(links):
            found.append(f"GPU {gpu.get('gpu')}: {len(links) - len(up)} of {len(links)} links inactive")
    first = items(evidence, "nvlink")[0].get("links") or [0]
    return breaches(found, f"{len(first)} links a GPU at {first[0] or 0:g} GB/s")


def _nvlink_errors(evidence: Evidence) -> Outcome:
    counts = [(gpu.get("gpu"), number(gpu, "errors") or 0) for gpu in items(evidence, "nvlink")]
    found = [f"GPU {gpu}: {count:g} errors" for gpu, count in counts if count >= NVLINK_ERRORS]
    return breaches(found, f"at most {max((count for _, count in counts), default=0):g} a GPU")


def _fabric_manager(evidence: Evidence) -> Outcome:
    states = [section(gpu, "fabric") for gpu in gpus(evidence)]
    known = [(text(state, "state"), text(state, "status")) for state in states if text(state, "state")]
    found = [
        f"GPU {number_}: fabric {state}, {status or 'no status'}"
        for number_, (state, status) in enumerate(known)
        if state != "Completed" or status not in ("", "Success")
    ]
    service = text(section(evidence, "services"), "nvidia-fabricmanager")
    switches = int(number(section(evidence, "pci"), "nvswitches") or 0)
    if not known and not switches and not service:
        return skipped("no NVSwitch")
    if not known and service != "active":
        found.append(f"nvidia-fabricmanager is {service or 'not installed'}, {switches} NVSwitches")
    return breaches(found, "registered with the fabric" if known else "nvidia-fabricmanager is active")


def _gpudirect(evidence: Evidence) -> Outcome:
    modules = words(evidence, "modules")
    peermem = [name for name in ("nvidia_peermem", "nv_peer_mem") if name in modules]
    if peermem:
        return passed(f"{peermem[0]} is loaded")
    release = re.match(r"(\d+)\.(\d+)", text(section(evidence, "facts"), "kernel"))
    kernel = (int(release.group(1)), int(release.group(2))) if release else (0, 0)
    if section(evidence, "settings").get("driver_open") is True and kernel >= DMA_BUF_KERNEL:
        return passed("DMA-BUF: open kernel modules of NVIDIA")
    return Outcome(Status.FAIL, "neither nvidia_peermem nor DMA-BUF")


def _ports(evidence: Evidence) -> Outcome:
    ports = infiniband(evidence)
    found = [
        f"{_port(port)} is {text(port, 'state') or 'unknown'}/{text(port, 'physical') or 'unknown'}"
        for port in ports
        if port.get("state") != "ACTIVE" or text(port, "physical") not in ("LinkUp", "")
    ]
    return breaches(found, f"{len(ports)} ports ACTIVE/LinkUp")


def _rate(evidence: Evidence) -> Outcome:
    rates = [(port, number(port, "rate_gbps") or 0.0) for port in active(infiniband(evidence))]
    most = max((rate for _, rate in rates), default=0.0)
    found = [f"{_port(port)} at {rate:g} of {most:g} Gb/s" for port, rate in rates if rate < most]
    return breaches(found, f"{len(rates)} x {most:g} Gb/s") if rates else skipped("no active InfiniBand port")


def _ib_errors(evidence: Evidence) -> Outcome:
    found = []
    for port in infiniband(evidence):
        counters = section(port, "counters")
        bad = {name: count for name in BAD_COUNTERS if (count := number(counters, name) or 0) > 0}
        downed = number(counters, "link_downed") or 0
        bad |= {"link_downed": downed} if downed > FLAPS else {}
        if bad:
            found.append(f"{_port(port)}: {', '.join(f'{name} {count:g}' for name, count in bad.items())}")
    return breaches(found, "no errors")


def _subnet_manager(evidence: Evidence) -> Outcome:
    missing = ("0x0", "0x0000", "0", "0xffff", "")
    ports = active(infiniband(evidence))
    found = [f"{_port(port)} has no LID" for port in ports if text(port, "lid") in missing]
    return breaches(found, f"{len(ports)} ports have a LID") if ports else skipped("no active InfiniBand port")


def _ibstat(evidence: Evidence) -> Outcome:
    state = program(evidence, "ibstat")
    if state != "ok":
        return Outcome(Status.FAIL, "ibstat hangs" if state == "hung" else "ibstat fails: is ib_umad loaded?")
    seen = [port for port in items(evidence, "ibstat") if port.get("link_layer") == "InfiniBand"]
    up = [port for port in seen if port.get("state") == "Active" and port.get("physical_state") == "LinkUp"]
    expected = len(active(infiniband(evidence)))
    if len(up) < expected:
        return Outcome(Status.FAIL, f"{len(up)} Active/LinkUp, the kernel says {expected}")
    return passed(f"{len(up)} Active/LinkUp")


def _verbs(evidence: Evidence) -> Outcome:
    devices = {text(port, "device") for port in items(evidence, "ib")}
    missing = sorted(devices - set(words(evidence, "verbs")))
    if program(evidence, "ibv_devinfo") == "hung":
        return Outcome(Status.FAIL, "ibv_devinfo hangs")
    return breaches([f"{', '.join(missing)} cannot be opened"] if missing else [], f"{len(devices)} devices open")


def _nic_pcie(evidence: Evidence) -> Outcome:
    narrow: list[str] = []
    slow: list[str] = []
    for port in items(evidence, "ib"):
        link = section(port, "pcie")
        for name, unit, target in (("width", "lanes", narrow), ("speed", "GT/s", slow)):
            now, most = number(link, f"{name}_current"), number(link, f"{name}_max")
            if now is not None and most is not None and now < most:
                target.append(f"{text(port, 'device')} has {now:g} of {most:g} {unit}")
    return breaches(narrow + slow, "full width and speed", Status.FAIL if narrow else Status.WARN)


def _acs(evidence: Evidence) -> Outcome:
    isolation = section(evidence, "isolation")
    redirecting = words(isolation, "acs_redirecting")
    if not number(isolation, "acs_bridges"):
        return skipped("no PCI bridge with ACS")
    found = [f"{len(redirecting)} bridges redirect peer traffic: {', '.join(redirecting[:3])}"] if redirecting else []
    return breaches(found, f"off on {number(isolation, 'acs_bridges'):g} bridges")


def _iommu(evidence: Evidence) -> Outcome:
    domains = section(evidence, "isolation", "iommu")
    translated = sorted(device for device, kind in domains.items() if str(kind).startswith("DMA"))
    found = [f"translates for {len(translated)} devices: {', '.join(translated[:3])}"] if translated else []
    return breaches(found, "off, or passes through")


def _loopback(evidence: Evidence) -> Outcome:
    found = []
    results = items(evidence, "deep", "loopback")
    for result in results:
        rate, gbps = number(result, "rate_gbps") or 0.0, number(result, "gbps")
        if gbps is None:
            found.append(f"{text(result, 'device')}: ib_write_bw gave no result")
        elif gbps < LOOPBACK_SHARE * rate:
            found.append(f"{text(result, 'device')}: {gbps:g} of {rate:g} Gb/s")
    slowest = min((number(result, "gbps") or 0.0 for result in results), default=0.0)
    return breaches(found, f"{len(results)} devices, slowest {slowest:g} Gb/s")


JUDGES: dict[str, Judge] = {
    "nvlink": _nvlink,
    "nvlink-errors": _nvlink_errors,
    "fabric-manager": _fabric_manager,
    "gpudirect-rdma": _gpudirect,
    "ib-ports": _ports,
    "ib-rate": _rate,
    "ib-errors": _ib_errors,
    "ib-subnet-manager": _subnet_manager,
    "ibstat": _ibstat,
    "verbs": _verbs,
    "nic-pcie": _nic_pcie,
    "acs": _acs,
    "iommu": _iommu,
    "ib-loopback": _loopback,
}
