"""The node's GPUs, as nvidia-smi tells them."""

from __future__ import annotations

import os

from . import paths, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FIELDS = ("index", "name", "memory.total", "uuid", "pci.bus_id", "compute_cap", "driver_version")
QUERY = ["--query-gpu=" + ",".join(FIELDS), "--format=csv,noheader,nounits"]
MIB = 1 << 20
PCI_VENDOR_NVIDIA, PCI_CLASSES_GPU = "0x10de", ("0x0300", "0x0302")


def sysfs() -> str:
    """Where sysfs is mounted; tests put their own."""
    return os.environ.get("LAMBDACTL_SYSFS", "/sys") if paths.ROOT else "/sys"


def start_query() -> programs.Program | None:
    """Start nvidia-smi's query, or None where there is no nvidia-smi."""
    program = programs.find("nvidia-smi")
    return programs.Program([program, *QUERY]) if program else None


def _pci_gpus() -> int:
    folder = sysfs() + "/bus/pci/devices"
    try:
        devices = os.listdir(folder)
    except OSError:
        return 0
    return sum(
        paths.read_text(f"{folder}/{device}/vendor").strip() == PCI_VENDOR_NVIDIA
        and paths.read_text(f"{folder}/{device}/class").startswith(PCI_CLASSES_GPU)
        for device in devices
    )


def parse(text: str) -> tuple[list[dict[str, Any]], str | None]:
    """(GPUs, driver's version) from the query's output; lines that are no GPU's are left out."""
    gpus, driver = [], None
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(FIELDS) or not values[0].isdigit():
            continue
        index, name, memory, uuid, pci, capability, driver = values
        size = int(float(memory) * MIB) if memory.replace(".", "", 1).isdigit() else None
        gpus.append({"index": int(index), "name": name, "memory": size, "uuid": uuid, "pci": pci})
        gpus[-1]["compute_capability"] = capability if capability[:1].isdigit() else None
    return gpus, driver


def finish_query(query: programs.Program | None, problems: list[str]) -> tuple[list[dict[str, Any]], str | None]:
    """(GPUs, driver's version); whatever is wrong is appended to problems. The GPUs are kept for `known`."""
    on_bus = _pci_gpus()
    gpus: list[dict[str, Any]] = []
    driver = None
    if query is not None:
        code, text = query.result(problems)
        gpus, driver = parse(text)
        if code is None:
            problems[-1] += ": the NVIDIA driver hangs, look for Xid errors in `dmesg`"
        elif code != 0 and (gpus or on_bus):
            problems.append(f"nvidia-smi failed ({code}): {' '.join(text.split())[:200]}")
    elif on_bus:
        problems.append(f"{on_bus} NVIDIA GPUs are on the PCI bus, but there is no nvidia-smi: install the driver")
    if gpus and len(gpus) < on_bus:
        problems.append(
            f"nvidia-smi reports {len(gpus)} GPUs, {on_bus} are on the PCI bus: look for Xid errors in `dmesg`"
        )
    if os.access(paths.STATE, os.W_OK):
        kept = [{name: gpu[name] for name in ("index", "uuid", "pci")} for gpu in gpus]
        found = {"boot": paths.boot(), "gpus": kept}
        if (
            paths.read_json(paths.GPU_CACHE) != found
        ):  # to write it costs the file system more than the look its programs
            paths.write_json(paths.GPU_CACHE, found)
    return gpus, driver


def known() -> list[dict[str, Any]]:
    """The GPUs (`index, uuid, pci`), from the last probe since the node was started, else asked now."""
    cached = paths.read_json(paths.GPU_CACHE)
    if isinstance(cached, dict) and cached.get("boot") == paths.boot() and isinstance(cached.get("gpus"), list):
        return list(cached["gpus"])
    return finish_query(start_query(), [])[0]


def count() -> int:
    """How many GPUs the node has."""
    return len(known())
