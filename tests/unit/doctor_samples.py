"""Evidence of healthy nodes, and how fixtures change it: `gpus.2.ecc: Disabled` sets one value."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "data" / "doctor"
GIB = 1 << 30
BUSES = ("19", "2A", "3B", "4B", "9B", "AB", "BB", "CB")


def _gpu(index: int) -> dict[str, Any]:
    return {
        "index": index,
        "pci": f"00000000:{BUSES[index]}:00.0",
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": f"GPU-{index}",
        "vbios": "96.00.74.00.01",
        "memory": 80 * GIB,
        "unreadable": [],
        "reset_required": "No",
        "ecc": "Enabled",
        "ecc_errors": dict.fromkeys(
            ("sram_correctable", "sram_uncorrectable", "dram_correctable", "dram_uncorrectable"), 0
        ),
        "remapped": {"correctable": 0.0, "uncorrectable": 0.0, "pending": "No", "failure": "No"},
        "retired_pending": None,
        "temperature": 31.0,
        "temperature_slowdown": 87.0,
        "temperature_margin": None,
        "throttle": ["gpu_idle"],
        "persistence": "Enabled",
        "mig": "Disabled",
        "compute_mode": "Default",
        "pcie": {"width": 16.0, "width_max": 16.0},
        "fabric": {"state": "Completed", "status": "Success"},
        "processes": [],
    }


def _port(number: int) -> dict[str, Any]:
    """mlx5_0 is a 1-Click Cluster's Ethernet port, the others are InfiniBand."""
    link = {"width_current": 16.0, "width_max": 16.0, "speed_current": 32.0, "speed_max": 32.0}
    return {
        "device": f"mlx5_{number}",
        "port": 1,
        "state": "ACTIVE",
        "physical": "LinkUp",
        "rate_gbps": 400.0 if number else 100.0,
        "link_layer": "InfiniBand" if number else "Ethernet",
        "lid": f"0x{number + 16:x}" if number else "0x0",
        "firmware": "28.39.1002",
        "board": "MT_0000000838",
        "counters": {"link_downed": 0, "symbol_error": 0},
        "pcie": link,
    }


def _space(path: str) -> dict[str, Any]:
    return {
        "path": path,
        "total": 1000 * GIB,
        "free": 900 * GIB,
        "inodes": 1000,
        "inodes_free": 900,
        "read_only": False,
    }


def _facts() -> dict[str, Any]:
    return {
        "container_engines": [{"engine": "docker", "version": "27.3.1", "gpus": "toolkit"}],
        "hostname": "gpu-node",
        "driver": "570.148.08",
        "cuda": "12.8",
        "kernel": "5.15.0-130-generic",
        "numa_nodes": 2,
        "os": {"id": "ubuntu", "version_id": "22.04", "pretty": "Ubuntu 22.04.5 LTS"},
        "cpus": 208,
        "memory": 2_100_000_000_000,
        "gpus": [{"index": index, "name": "NVIDIA H100 80GB HBM3"} for index in range(8)],
        "problems": [],
        "leases": [],
        "openmpi": {"version": "4.1.4", "path": "/usr/bin/mpirun"},
        "addresses": [{"interface": "eth0", "address": "10.0.0.1", "prefix": 24}],
    }


def gpu_node() -> dict[str, Any]:
    """A healthy node of a 1-Click Cluster: eight H100, eight InfiniBand ports, all tools, deep tests done."""
    programs = (
        "nvidia-smi -q",
        "nvidia-smi nvlink -s",
        "nvidia-smi nvlink -e",
        "ibstat",
        "ibv_devinfo",
        "dcgmi",
        "systemctl",
        "timedatectl",
        "getent",
    )
    ports = [_port(number) for number in range(9)]
    return {
        "facts": _facts(),
        "programs": {name: {"state": "ok", "message": ""} for name in programs},
        "gpus": [_gpu(index) for index in range(8)],
        "nvlink": [{"gpu": index, "links": [26.562] * 18, "errors": 0} for index in range(8)],
        "pci": {"gpus": 8, "nvswitches": 4},
        "ib": ports,
        "ibstat": [
            {
                "device": port["device"],
                "port": 1,
                "state": "Active",
                "physical_state": "LinkUp",
                "link_layer": port["link_layer"],
            }
            for port in ports
        ],
        "verbs": [port["device"] for port in ports],
        "dcgm_gpus": 8,
        "services": {"nvidia-fabricmanager": "active", "nvidia-persistenced": "active", "chrony": "active"},
        "ntp_synchronized": True,
        "hostname_addresses": ["10.0.0.1"],
        "limits": {"memlock": {"soft": None, "hard": None}, "nofile": {"soft": 1024, "hard": 1048576}},
        "swap": {"total": 0, "used": 0},
        "settings": {
            "clocksource": "tsc",
            "transparent_hugepages": "madvise",
            "governors": ["performance"],
            "numa_balancing": 0,
            "virtual_machine": False,
            "bios": "1.1",
            "driver_open": False,
        },
        "isolation": {"acs_bridges": 8, "acs_redirecting": [], "iommu": {"0000:19:00.0": "identity"}},
        "spaces": [_space("/"), _space("/tmp"), _space("/dev/shm")],
        "network_mounts": [{"path": "/lambda/nfs/data", "type": "nfs4", "answers": True}],
        "nvme": [{"name": "nvme0", "state": "live"}, {"name": "nvme1", "state": "live"}],
        "memory_errors": {"corrected": 0, "uncorrected": 0},
        "zombies": [],
        "modules": ["ib_umad", "mlx5_ib", "nvidia", "nvidia_peermem"],
        "kernel_log": {
            "available": True,
            "xid": [],
            "sxid": [],
            "lines": {"pcie-limited": [], "hardware": [], "hung": [], "oom": [], "link-down": []},
        },
        "interfaces": {"eth0": {"mtu": 9000, "speed": 100000, "state": "up"}},
        "shared_interface": "eth0",
        "clock": {"offset": 0.01, "uncertainty": 0.02},
        "deep": {
            "loopback": [{"device": f"mlx5_{n}", "rate_gbps": 400.0, "gbps": 382.1} for n in range(1, 9)],
            "diag": {"state": "ok", "failed": []},
        },
    }


def cpu_node() -> dict[str, Any]:
    """A virtual machine without GPUs, fabric or any of the programs."""
    node = gpu_node()
    absent = ("nvidia-smi -q", "nvidia-smi nvlink -s", "nvidia-smi nvlink -e", "ibstat", "ibv_devinfo", "dcgmi")
    node["facts"] |= {
        "container_engines": [],
        "gpus": [],
        "driver": None,
        "cuda": None,
        "openmpi": None,
        "numa_nodes": 1,
    }
    node["programs"] |= {name: {"state": "missing", "message": ""} for name in absent}
    node["settings"] |= {"virtual_machine": True, "governors": [], "bios": None}
    node |= {
        "gpus": [],
        "nvlink": [],
        "pci": {"gpus": 0, "nvswitches": 0},
        "ib": [],
        "ibstat": [],
        "verbs": [],
        "dcgm_gpus": None,
        "services": {},
        "modules": [],
        "nvme": [],
        "network_mounts": [],
        "memory_errors": None,
        "deep": None,
        "isolation": {"acs_bridges": 0, "acs_redirecting": [], "iommu": {}},
    }
    return node


BASES = {"gpu": gpu_node, "cpu": cpu_node}


def changed(base: str, changes: dict[str, Any] | None) -> dict[str, Any]:
    """A base with single values replaced; a part of a path that is a number is a place in a list."""
    node = copy.deepcopy(BASES[base]())
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        target: Any = node
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        if isinstance(target, list):
            target[int(last)] = value
        else:
            target[last] = value
    return node
