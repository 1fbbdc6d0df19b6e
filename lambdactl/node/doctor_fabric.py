"""RDMA devices, their ports and counters, PCIe links and IOMMU, network interfaces: from sysfs alone."""

from __future__ import annotations

import os
import re

from . import network
from .gpus import sysfs
from .paths import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COUNTERS = (
    "link_downed", "link_error_recovery", "symbol_error", "port_rcv_errors", "local_link_integrity_errors",
    "excessive_buffer_overrun_errors", "port_rcv_remote_physical_errors",
)  # fmt: skip
SPEED = re.compile(r"([0-9.]+) GT/s")
ACS_CAPABILITY, EXTENDED = 0x000D, 0x100
# Bits of the ACS control register that redirect peer-to-peer traffic to the root complex (PCIe 6.0, 7.7.8.3).
ACS_REDIRECT = 0x01 | 0x04 | 0x08 | 0x10
PCI_VENDORS = ("0x10de", "0x15b3")  # NVIDIA, Mellanox


def _value(path: str) -> str:
    return read_text(path).strip()


def _count(path: str) -> int | None:
    text = _value(path)
    return int(text) if text.isdigit() else None


def link(folder: str) -> dict[str, float | None]:
    """The PCIe link of a device's sysfs folder: lanes and GT/s, now and at most."""
    found: dict[str, float | None] = {}
    for name in ("width", "speed"):
        for which in ("current", "max"):
            text = _value(f"{folder}/{which}_link_{name}")
            match = SPEED.match(text) if name == "speed" else re.match(r"(\d+)$", text)
            found[f"{name}_{which}"] = float(match.group(1)) if match else None
    return found


def ports() -> list[dict[str, Any]]:
    """Every port of every RDMA device, with its device's firmware and PCIe link."""
    found = []
    for port in network.infiniband():
        folder = f"{sysfs()}/class/infiniband/{port['device']}"
        place = f"{folder}/ports/{port['port']}"
        counters = {name: _count(f"{place}/counters/{name}") for name in COUNTERS}
        found.append(
            {
                **port,
                "physical": _value(place + "/phys_state").partition(":")[2].strip(),
                "lid": _value(place + "/lid"),
                "subnet_manager_lid": _value(place + "/sm_lid"),
                "netdev": _value(place + "/gid_attrs/ndevs/0") or None,
                "firmware": _value(folder + "/fw_ver") or None,
                "board": _value(folder + "/board_id") or None,
                "pci": os.path.basename(os.path.realpath(folder + "/device")) if os.path.exists(folder) else None,
                "numa_node": _value(folder + "/device/numa_node"),
                "counters": {name: count for name, count in counters.items() if count is not None},
                "pcie": link(folder + "/device"),
            }
        )
    return found


def interfaces() -> dict[str, dict[str, Any]]:
    """The network interfaces that have hardware behind them: MTU, speed in Mb/s, state."""
    root = sysfs() + "/class/net"
    found = {}
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        folder = f"{root}/{name}"
        if os.path.exists(folder + "/device"):
            found[name] = {
                "mtu": _count(folder + "/mtu"),
                "speed": _count(folder + "/speed"),
                "state": _value(folder + "/operstate"),
            }
    return found


def acs_control(config: bytes) -> int | None:
    """The ACS control register in a device's PCI configuration space, or None where it has none or it is cut off."""
    offset, seen = EXTENDED, 0
    while offset and len(config) >= offset + 8 and seen < 64:
        header = int.from_bytes(config[offset : offset + 4], "little")
        if header & 0xFFFF == ACS_CAPABILITY:
            return int.from_bytes(config[offset + 6 : offset + 8], "little")
        offset, seen = header >> 20, seen + 1
    return None


def pci_isolation() -> dict[str, Any]:
    """PCI bridges on which ACS redirects peer traffic, and how the IOMMU treats GPUs and NICs."""
    root = sysfs() + "/bus/pci/devices"
    bridges, redirecting, domains = 0, [], {}
    for device in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        folder = f"{root}/{device}"
        if _value(folder + "/class").startswith("0x0604"):
            control = acs_control(_config(folder))
            bridges += control is not None
            if control is not None and control & ACS_REDIRECT:
                redirecting.append(device)
        elif _value(folder + "/vendor") in PCI_VENDORS and os.path.exists(folder + "/iommu_group/type"):
            domains[device] = _value(folder + "/iommu_group/type")
    return {"acs_bridges": bridges, "acs_redirecting": redirecting[:32], "iommu": domains}


def _config(folder: str) -> bytes:
    try:
        with open(folder + "/config", "rb") as file:
            return file.read(4096)
    except OSError:
        return b""
