"""What nvidia-smi says of each GPU (`-q -x`) and of its NVLinks (`nvlink -s`, `nvlink -e`), as plain data.

Element names differ between drivers; what a driver does not report is null. The names are those of nvsmi_device_v11.dtd
to v13.dtd (drivers 450 to 580).
"""

from __future__ import annotations

import os
import re
from xml.etree import ElementTree

from .gpus import MIB, PCI_CLASSES_GPU, PCI_VENDOR_NVIDIA, sysfs
from .paths import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NVSWITCH_CLASS = "0x0680"
UNREADABLE = ("ERR!", "Unknown Error", "GPU is lost", "GPU requires reset", "Requires Reset", "No data")
PREFIXES = ("clocks_event_reason_", "clocks_throttle_reason_")
NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
MAX_NAMES = 16


def pci_counts() -> dict[str, int]:
    """How many NVIDIA GPUs and NVSwitches are on the PCI bus, whatever the driver says."""
    folder, found = sysfs() + "/bus/pci/devices", {"gpus": 0, "nvswitches": 0}
    for device in os.listdir(folder) if os.path.isdir(folder) else ():
        if read_text(f"{folder}/{device}/vendor").strip() != PCI_VENDOR_NVIDIA:
            continue
        kind = read_text(f"{folder}/{device}/class")
        found["gpus"] += kind.startswith(PCI_CLASSES_GPU)
        found["nvswitches"] += kind.startswith(NVSWITCH_CLASS)
    return found


def _text(gpu: ElementTree.Element, *names: str) -> str | None:
    """The first of these elements that has a value."""
    for name in names:
        value = (gpu.findtext(name) or "").strip()
        if value and value not in ("N/A", "[N/A]"):
            return value
    return None


def _number(gpu: ElementTree.Element, *names: str) -> float | None:
    found = NUMBER.match(_text(gpu, *names) or "")
    return float(found.group()) if found else None


def _sum(gpu: ElementTree.Element, parent: str, prefix: str) -> int | None:
    """The sum of the counters below `parent` whose names start with `prefix` (Hopper splits some)."""
    values = [_number(child, ".") for child in gpu.findall(f"{parent}/*") if child.tag.startswith(prefix)]
    known = [value for value in values if value is not None]
    return int(sum(known)) if known else None


def _throttle(gpu: ElementTree.Element) -> list[str]:
    """Names of the active reasons, without the prefix that differs between drivers."""
    active = []
    for child in (*gpu.findall("clocks_event_reasons/*"), *gpu.findall("clocks_throttle_reasons/*")):
        for prefix in PREFIXES:
            if child.tag.startswith(prefix) and (child.text or "").strip() == "Active":
                active.append(child.tag[len(prefix) :])
    return active


def _ecc(gpu: ElementTree.Element) -> dict[str, int | None]:
    kinds = ("sram_correctable", "sram_uncorrectable", "dram_correctable", "dram_uncorrectable")
    return {kind: _sum(gpu, "ecc_errors/volatile", kind) for kind in kinds}


def _pcie(gpu: ElementTree.Element) -> dict[str, float | None]:
    generation, width = "pci/pci_gpu_link_info/pcie_gen/", "pci/pci_gpu_link_info/link_widths/"
    return {
        "width": _number(gpu, width + "current_link_width"),
        "width_max": _number(gpu, width + "max_link_width"),
        "generation_max": _number(gpu, generation + "max_link_gen"),
        "generation_device_max": _number(gpu, generation + "max_device_link_gen"),
    }


def _processes(gpu: ElementTree.Element) -> list[dict[str, Any]]:
    found = gpu.findall("processes/process_info")[:MAX_NAMES]
    return [{"pid": int(_number(item, "pid") or 0), "name": _text(item, "process_name")} for item in found]


def _gpu(index: int, gpu: ElementTree.Element) -> dict[str, Any]:
    memory = _number(gpu, "fb_memory_usage/total")
    remapped = {
        "correctable": _number(gpu, "remapped_rows/remapped_row_corr"),
        "uncorrectable": _number(gpu, "remapped_rows/remapped_row_unc"),
        "pending": _text(gpu, "remapped_rows/remapped_row_pending"),
        "failure": _text(gpu, "remapped_rows/remapped_row_failure"),
    }
    broken = sorted({item.tag for item in gpu.iter() if any(word in (item.text or "") for word in UNREADABLE)})
    return {
        "index": index,
        "pci": gpu.get("id"),
        "name": _text(gpu, "product_name"),
        "uuid": _text(gpu, "uuid"),
        "serial": _text(gpu, "serial"),
        "vbios": _text(gpu, "vbios_version"),
        "memory": int(memory * MIB) if memory is not None else None,
        "unreadable": broken[:MAX_NAMES],
        "reset_required": _text(gpu, "gpu_reset_status/reset_required"),
        "ecc": _text(gpu, "ecc_mode/current_ecc"),
        "ecc_errors": _ecc(gpu),
        "remapped": remapped,
        "retired_pending": _text(gpu, "retired_pages/pending_retirement", "retired_pages/pending_blacklist"),
        "temperature": _number(gpu, "temperature/gpu_temp"),
        "temperature_slowdown": _number(gpu, "temperature/gpu_temp_slow_threshold"),
        "temperature_margin": _number(gpu, "temperature/gpu_temp_tlimit"),
        "throttle": _throttle(gpu),
        "persistence": _text(gpu, "persistence_mode"),
        "mig": _text(gpu, "mig_mode/current_mig"),
        "compute_mode": _text(gpu, "compute_mode"),
        "pcie": _pcie(gpu),
        "pcie_replays": _number(gpu, "pci/replay_counter"),
        "fabric": {"state": _text(gpu, "fabric/state"), "status": _text(gpu, "fabric/status")},
        "processes": _processes(gpu),
    }


def parse_query(text: str) -> list[dict[str, Any]]:
    """The GPUs in the output of `nvidia-smi -q -x`; empty where it is not that XML."""
    start = text.find("<nvidia_smi_log")
    try:
        root = ElementTree.fromstring(text[start:]) if start >= 0 else None  # noqa: S314 (the driver's own tool)
    except ElementTree.ParseError:
        root = None
    return [_gpu(index, gpu) for index, gpu in enumerate(root.findall("gpu"))] if root is not None else []


GPU_LINE = re.compile(r"GPU (\d+):")
SPEED = re.compile(r"Link (\d+): (?:([0-9.]+) GB/s|(<inactive>|inactive))", re.IGNORECASE)
ERRORS = re.compile(r"Link (\d+): .*?(?:Errors?|Error Count)\)?: (\d+)")


def parse_nvlink(status: str, errors: str) -> list[dict[str, Any]]:
    """Per GPU the speed of each link in GB/s (null: inactive) and the sum of its error counters."""
    found: dict[int, dict[str, Any]] = {}

    def gpu(line: str, current: int) -> int:
        match = GPU_LINE.match(line.strip())
        if match:
            found.setdefault(int(match.group(1)), {"gpu": int(match.group(1)), "links": [], "errors": 0})
        return int(match.group(1)) if match else current

    current = -1
    for line in status.splitlines():
        current, match = gpu(line, current), SPEED.search(line)
        if match and current in found:
            found[current]["links"].append(float(match.group(2)) if match.group(2) else None)
    current = -1
    for line in errors.splitlines():
        current, match = gpu(line, current), ERRORS.search(line)
        if match and current in found:
            found[current]["errors"] += int(match.group(2))
    return [found[index] for index in sorted(found)]
