"""A run's share of a node: which GPUs, CPUs and how much memory its blocks are, and how it is kept to them.

GPUs by CUDA_VISIBLE_DEVICES (UUIDs, which hold whatever the numbering) and by the device cgroup, where the driver tells
the device nodes; CPUs by the CPU set (cgroup v2) or a quota (v1), and by affinity everywhere; memory by MemoryMax. The
parts that are control groups' need systemd.
"""

from __future__ import annotations

import os

from . import blocks, gpus, light, paths, topology
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

UNIFIED = "/sys/fs/cgroup/cgroup.controllers"
MEMORY_PAGE = 4096
KIND = light.Pattern(r"^ *\d+ (\S+)$", "MULTILINE")
MINOR = light.Pattern(r"^Device Minor:\s*(\d+)", "MULTILINE")


class Share:
    """The `share` of a job. CPUs by number, memory in bytes, GPUs by UUID (where nvidia-smi tells them)."""

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, dict):
            raise NodeError("bad-request", "job: share is an object, or null")
        self.blocks, self.of = blocks.parse(raw.get("blocks"), raw.get("of"))
        self.cpus = self._numbers(raw.get("cpus"))
        self.gpus = raw.get("gpus") or []
        if not isinstance(self.gpus, list) or not all(isinstance(uuid, str) for uuid in self.gpus):
            raise NodeError("bad-request", "job: share.gpus is a list of UUIDs")
        memory = raw.get("memory")
        if type(memory) is not int or memory < 0:
            raise NodeError("bad-request", f"job: share.memory is {str(memory)[:40]!r}, allowed is bytes")
        self.memory = memory

    @staticmethod
    def _numbers(value: object) -> list[int]:
        if isinstance(value, list) and value and all(type(cpu) is int and 0 <= cpu < 1 << 16 for cpu in value):
            return value
        raise NodeError("bad-request", "job: share.cpus is a list of CPU numbers")


def parse(raw: Any) -> Share | None:
    """The share of a job, or None for a whole node. Raises NodeError (bad-request)."""
    return None if raw is None else Share(raw)


def of_lease(lease: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a lease on blocks comes to on this node; None for a lease on the whole node or on GPUs only."""
    of = lease.get("of")
    if not of:
        return None
    order = topology.cpus()
    cpus = sorted(order[place] for index in lease["blocks"] for place in blocks.part(len(order), index, of))
    memory = topology.memory() * len(lease["blocks"]) // of // MEMORY_PAGE * MEMORY_PAGE
    return {"blocks": len(lease["blocks"]), "of": of, "gpus": uuids(lease["gpus"]), "cpus": cpus, "memory": memory}


def uuids(indices: list[int]) -> list[str]:
    """The UUIDs of GPUs, by their places; empty where nvidia-smi does not tell one of them."""
    known = {gpu["index"]: gpu["uuid"] for gpu in gpus.known()}
    found = [known.get(index) for index in indices]
    return [uuid for uuid in found if uuid] if all(found) else []


def visible_devices(indices: list[int]) -> str:
    """CUDA_VISIBLE_DEVICES for these GPUs: UUIDs, or indices where there are none."""
    return ",".join(uuids(indices) or map(str, indices))


def affine(share: Share | None, pid: int) -> None:
    """Bind a process, and what it starts, to the share's CPUs; what is not there (hotplug) does not count."""
    if share is None:
        return
    try:
        os.sched_setaffinity(pid, share.cpus)
    except (OSError, ValueError):
        return


def adopting(share: Share | None, adopt: Callable[[int], bool]) -> Callable[[int], bool]:
    """Counts a process as the job's (`adopt`), and keeps it to the run's share of the CPUs."""

    def take_in(pid: int) -> bool:
        affine(share, pid)
        return adopt(pid)

    return take_in


def unit_properties(share: Share | None, indices: list[int] | None) -> dict[str, str]:
    """The systemd properties that keep a rank's unit to its share (MemoryMax is the unit's own matter).

    `indices` are its GPUs; None: somebody else keeps it to its devices.
    """
    if share is None:
        return {}
    found = {"CPUWeight": str(max(1, min(10000, 100 * share.blocks)))}
    if "cpuset" in paths.read_text(UNIFIED).split():
        found["AllowedCPUs"] = " ".join(map(str, share.cpus))
    else:
        found["CPUQuota"] = f"{100 * len(share.cpus)}%"
    return {**found, **(device_properties(indices) if indices is not None else {})}


def device_properties(indices: list[int]) -> dict[str, str]:
    """DevicePolicy and DeviceAllow: all devices but GPUs that are not ours; empty where the driver tells too little.

    systemd knows lists of what is allowed only, so all kinds of devices are named, less NVIDIA's, and of these the
    driver's own nodes (nvidiactl, nvidia-uvm, ...) and our GPUs.
    """
    minors = device_minors()
    if not minors or not all(index in minors for index in indices):
        return {}
    characters = paths.read_text("/proc/devices").partition("Block devices:")[0]
    kinds = KIND.findall(characters)
    allowed = ["block-*", *dict.fromkeys(f"char-{kind}" for kind in kinds if not kind.startswith("nvidia"))]
    mine = {f"/dev/nvidia{minors[index]}" for index in indices}
    nodes = [path for path in light.named("/dev", "nvidia") if not os.path.isdir(path)]
    nodes += light.named("/dev/nvidia-caps")
    allowed += sorted(path for path in nodes if not path[len("/dev/nvidia") :].isdigit() or path in mine)
    return {"DevicePolicy": "closed", "DeviceAllow": "\n".join(f"{name} rwm" for name in allowed)}


def device_minors() -> dict[int, int]:
    """{index: minor number of /dev/nvidiaN}, as the driver's /proc files tell it; empty where they do not."""
    found = {}
    for gpu in gpus.known():
        domain, _, rest = str(gpu.get("pci") or "").lower().partition(":")
        text = paths.read_text(f"/proc/driver/nvidia/gpus/{domain[-4:]}:{rest}/information")
        minor = MINOR.search(text)
        if minor is None:
            return {}
        found[gpu["index"]] = int(minor.group(1))
    return found
