"""Reading evidence: what a check needs, and the few shapes that several checks share.

A node's answer is not to be trusted, and an older runner leaves things out: the readers give empty values for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lambdactl.doctor.model import Evidence, Outcome, Status

SHOWN = 4


def section(evidence: Evidence, *path: str) -> Mapping[str, Any]:
    """A mapping inside of the evidence, empty where there is none."""
    value: Any = evidence
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def items(evidence: Evidence, *path: str) -> list[Mapping[str, Any]]:
    """The mappings of a list inside of the evidence."""
    *parents, last = path
    value = section(evidence, *parents).get(last)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def words(evidence: Evidence, *path: str) -> list[str]:
    """The texts of a list inside of the evidence."""
    *parents, last = path
    value = section(evidence, *parents).get(last)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def number(mapping: Mapping[str, Any], name: str) -> float | None:
    """A number, or None."""
    value = mapping.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def text(mapping: Mapping[str, Any], name: str) -> str:
    """A text, or the empty one."""
    value = mapping.get(name)
    return value if isinstance(value, str) else ""


def gpus(evidence: Evidence) -> list[Mapping[str, Any]]:
    """The GPUs as `nvidia-smi -q` describes them."""
    return items(evidence, "gpus")


def gpu_name(gpu: Mapping[str, Any]) -> str:
    """How findings call a GPU: index and PCI address, both of which nvidia-smi takes."""
    return f"GPU {gpu.get('index', '?')} ({text(gpu, 'pci') or 'no address'})"


def infiniband(evidence: Evidence) -> list[Mapping[str, Any]]:
    """The RDMA ports whose link layer is InfiniBand; a 1-Click Cluster's mlx5_0 is Ethernet, and not among them."""
    return [port for port in items(evidence, "ib") if port.get("link_layer") == "InfiniBand"]


def active(ports: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that carry traffic."""
    return [port for port in ports if port.get("state") == "ACTIVE"]


def program(evidence: Evidence, name: str) -> str:
    """How a program ended on the node: ok, failed, hung or missing."""
    return text(section(evidence, "programs", name), "state") or "missing"


def shortened(parts: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(parts) - SHOWN
    return "; ".join(parts[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def breaches(found: Sequence[str], good: str, worst: Status = Status.FAIL) -> Outcome:
    """`worst` with what was found, or a pass."""
    return Outcome(worst, shortened(found)) if found else Outcome(Status.PASS, good)


def passed(value: str) -> Outcome:
    """A pass."""
    return Outcome(Status.PASS, value)


def skipped(reason: str) -> Outcome:
    """A skip with its reason."""
    return Outcome(Status.SKIP, reason)


def size(amount: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} TiB"


def has_gpu(evidence: Evidence) -> bool:
    """Whether the bus or nvidia-smi shows an NVIDIA GPU."""
    return bool(number(section(evidence, "pci"), "gpus") or gpus(evidence) or items(evidence, "facts", "gpus"))


NEEDS: dict[str, tuple[Callable[[Evidence], bool], str]] = {
    "gpu": (has_gpu, "no NVIDIA GPU"),
    "nvidia-smi": (lambda e: bool(gpus(e)), "nvidia-smi describes no GPU"),
    "nvlink": (lambda e: any(gpu.get("links") for gpu in items(e, "nvlink")), "no NVLink"),
    "rdma": (lambda e: bool(items(e, "ib")), "no RDMA device"),
    "infiniband": (lambda e: bool(infiniband(e)), "no InfiniBand port"),
    "ibstat": (lambda e: program(e, "ibstat") != "missing", "ibstat is not installed"),
    "ibv_devinfo": (lambda e: program(e, "ibv_devinfo") != "missing", "ibv_devinfo is not installed"),
    "dcgmi": (lambda e: program(e, "dcgmi") != "missing", "dcgmi is not installed"),
    "container-engine": (
        lambda e: bool(items(e, "facts", "container_engines")),
        "neither Docker nor Podman is installed",
    ),
    "deep": (lambda e: bool(section(e, "deep")), "only with --deep"),
    "perftest": (lambda e: bool(items(e, "deep", "loopback")), "no ib_write_bw, or no active InfiniBand port"),
    "kernel-log": (lambda e: section(e, "kernel_log").get("available") is True, "the kernel's log cannot be read"),
    "bare-metal": (lambda e: section(e, "settings").get("virtual_machine") is False, "a virtual machine"),
}


def unmet(evidence: Evidence, needs: Iterable[str]) -> str | None:
    """The reason why a check does not apply, or None where it does."""
    return next((NEEDS[name][1] for name in needs if not NEEDS[name][0](evidence)), None)
