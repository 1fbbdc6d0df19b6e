"""The operating system around a job: limits, memory, clocks, file systems, processes, kernel settings."""

from __future__ import annotations

import glob
import os
import re

from . import doctor_fabric, programs
from .gpus import sysfs
from .paths import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NETWORK_FILESYSTEMS = (
    "nfs",
    "nfs4",
    "lustre",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.glusterfs",
    "fuse.s3fs",
    "gpfs",
    "wekafs",
    "virtiofs",
)
SPACES = ("/", "/tmp", "/dev/shm", "/var")  # noqa: S108 (asked for their free space, nothing is put there)
LIMITS = {"memlock": "Max locked memory", "nofile": "Max open files"}
MODULES = ("nvidia", "nvidia_peermem", "nv_peer_mem", "gdrdrv", "nouveau", "mlx5_ib", "ib_umad", "ib_core")
STAT_LIMIT = 5.0
KEEP = 20


def evidence() -> dict[str, Any]:
    """All of it; what this kernel does not tell is null."""
    return {
        "limits": login_limits(),
        "swap": _swap(),
        "settings": _settings(),
        "isolation": doctor_fabric.pci_isolation(),
        "spaces": _spaces(),
        "network_mounts": _network_mounts(),
        "nvme": [
            {"name": os.path.basename(path), "state": read_text(path + "/state").strip()}
            for path in sorted(glob.glob(sysfs() + "/class/nvme/nvme*"))
        ],
        "memory_errors": _memory_errors(),
        "zombies": _zombies(),
        "modules": sorted(name for name in MODULES if os.path.isdir(f"{sysfs()}/module/{name}")),
    }


def _settings() -> dict[str, Any]:
    root = sysfs()
    clock = read_text(root + "/devices/system/clocksource/clocksource0/current_clocksource").strip()
    pages = re.search(r"\[(\w+)\]", read_text(root + "/kernel/mm/transparent_hugepage/enabled"))
    governors = {
        read_text(path).strip() for path in glob.glob(root + "/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    }
    balancing = read_text("/proc/sys/kernel/numa_balancing").strip()
    return {
        "clocksource": clock or None,
        "transparent_hugepages": pages.group(1) if pages else None,
        "governors": sorted(governors),
        "numa_balancing": int(balancing) if balancing.isdigit() else None,
        "virtual_machine": re.search(r"^flags\s.*\bhypervisor\b", read_text("/proc/cpuinfo"), re.MULTILINE) is not None,
        "bios": read_text(root + "/class/dmi/id/bios_version").strip() or None,
        "driver_open": "Open Kernel Module" in read_text("/proc/driver/nvidia/version"),
    }


def login_limits() -> dict[str, Any]:
    """Limits of the login that this process came from: its nearest ancestor that is not root, else its parent.

    sudo and root's own session have limits of their own, which a user's MPI daemons never see.
    """
    process = os.getppid()
    chosen = process
    for _ in range(16):
        status = read_text(f"/proc/{process}/status")
        users = re.search(r"^Uid:\s+(.*)$", status, re.MULTILINE)
        parent = re.search(r"^PPid:\s+(\d+)$", status, re.MULTILINE)
        if users and "0" not in users.group(1).split():
            chosen = process
            break
        if not parent or parent.group(1) == "0":
            break
        process = int(parent.group(1))
    text = read_text(f"/proc/{chosen}/limits")
    return {name: _limit(text, title) for name, title in LIMITS.items()}


def _limit(text: str, title: str) -> dict[str, int | None] | None:
    """Soft and hard; null means unlimited."""
    found = re.search(rf"^{title}\s+(\S+)\s+(\S+)", text, re.MULTILINE)
    if not found:
        return None
    values = [int(value) if value.isdigit() else None for value in found.groups()]
    return {"soft": values[0], "hard": values[1]}


def _swap() -> dict[str, int]:
    text = read_text("/proc/meminfo")
    values = {name: int(size) * 1024 for name, size in re.findall(r"^(Swap\w+):\s+(\d+) kB", text, re.MULTILINE)}
    total = values.get("SwapTotal", 0)
    return {"total": total, "used": total - values.get("SwapFree", total)}


def _spaces() -> list[dict[str, Any]]:
    found = []
    for path in SPACES:
        try:
            if path == "/var" and os.stat(path).st_dev == os.stat("/").st_dev:
                continue
            space = os.statvfs(path)
        except OSError:
            continue
        found.append(
            {
                "path": path,
                "total": space.f_blocks * space.f_frsize,
                "free": space.f_bavail * space.f_frsize,
                "inodes": space.f_files,
                "inodes_free": space.f_favail,
                "read_only": bool(space.f_flag & os.ST_RDONLY),
            }
        )
    return found


def _network_mounts() -> list[dict[str, Any]]:
    """Mounted network file systems and whether each answers; one that does not would hang whoever asks directly."""
    entries = [line.split() for line in read_text("/proc/mounts").splitlines()]
    mounts = [(words[1], words[2]) for words in entries if len(words) > 2 and words[2] in NETWORK_FILESYSTEMS][:KEEP]
    stat = programs.find("stat")
    asked = [(path, kind, programs.Program([stat, "--file-system", path], STAT_LIMIT)) for path, kind in mounts if stat]
    return [{"path": path, "type": kind, "answers": program.result([])[0] == 0} for path, kind, program in asked]


def _memory_errors() -> dict[str, int] | None:
    """Corrected and uncorrected errors of the main memory since boot, as EDAC counts them."""
    controllers = glob.glob(sysfs() + "/devices/system/edac/mc/mc[0-9]*")
    if not controllers:
        return None
    counts = {}
    for name in ("ce_count", "ue_count"):
        values = [read_text(f"{path}/{name}").strip() for path in controllers]
        counts[name] = sum(int(value) for value in values if value.isdigit())
    return {"corrected": counts["ce_count"], "uncorrected": counts["ue_count"]}


def _zombies() -> list[str]:
    """Names of processes that ended and were not waited for; those of this process are about to be."""
    names = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        name, _, rest = read_text(path).rpartition(")")
        if rest.split()[:1] == ["Z"] and rest.split()[1] != str(os.getpid()):
            names.append(name.partition("(")[2][:40])
    return sorted(names)[:KEEP]
