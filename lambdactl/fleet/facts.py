"""What a node said about itself, typed.

`NodeFacts.from_probe` takes what the runner's ``probe`` answers. A node may run an older runner, so a missing or odd
value becomes the empty one instead of an error. All sizes are in bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1024**3
"""dstack's "GB" is 1024**3 bytes, and so is ours (see its ``Memory`` type)."""


@dataclass(frozen=True, slots=True)
class GPU:
    """One GPU. ``name`` is the short one (`gpu_name`), ``full_name`` what the driver says."""

    index: int
    name: str
    full_name: str
    vendor: str
    memory: int
    uuid: str = ""
    pci: str = ""
    compute_capability: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that holds the runs."""

    path: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Address:
    """One IP address of a network interface."""

    interface: str
    address: str
    prefix: int


@dataclass(frozen=True, slots=True)
class InfiniBandPort:
    """One port of an RDMA device; ``link_layer`` is InfiniBand or Ethernet (RoCE)."""

    device: str
    port: int
    state: str
    link_layer: str
    rate_gbps: float


@dataclass(frozen=True, slots=True)
class ContainerEngine:
    """Docker or Podman. ``problem`` is why it cannot run anything now; ``gpus`` is toolkit, cdi or None."""

    engine: str
    version: str | None = None
    problem: str | None = None
    cgroup_driver: str | None = None
    gpus: str | None = None
    arch: str = ""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The facts of a node. ``raw`` is the probe's whole answer, for what has no field here."""

    hostname: str = ""
    boot_id: str = ""
    machine_id: str = ""
    time: float = 0.0
    os_id: str = ""
    os_version: str = ""
    os_pretty: str = ""
    kernel: str = ""
    arch: str = ""
    python: str = ""
    cpus: int = 0
    numa_nodes: int = 0
    memory: int = 0
    shared_memory: int = 0
    disk: Disk | None = None
    addresses: tuple[Address, ...] = ()
    gpus: tuple[GPU, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    infiniband: tuple[InfiniBandPort, ...] = ()
    openmpi: Mapping[str, Any] | None = None
    nccl_tests: Mapping[str, Any] | None = None
    container_engines: tuple[ContainerEngine, ...] = ()
    ssh_host_keys: tuple[str, ...] = ()
    node_ssh_key: str | None = None
    runner: str | None = None
    systemd: bool = False
    sudo: bool = False
    provisioned: Mapping[str, Any] = field(default_factory=dict)
    leases: tuple[Mapping[str, Any], ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_probe(cls, probe: Mapping[str, Any]) -> NodeFacts:
        """Facts from a probe's answer; never raises for what a node left out or got wrong."""
        system = _mapping(probe.get("os"))
        return cls(
            hostname=_text(probe.get("hostname")),
            boot_id=_text(probe.get("boot_id")),
            machine_id=_text(probe.get("machine_id")),
            time=_number(probe.get("time")),
            os_id=_text(system.get("id")),
            os_version=_text(system.get("version_id")),
            os_pretty=_text(system.get("pretty")),
            kernel=_text(probe.get("kernel")),
            arch=_text(probe.get("arch")),
            python=_text(probe.get("python")),
            cpus=_int(probe.get("cpus")),
            numa_nodes=_int(probe.get("numa_nodes")),
            memory=_int(probe.get("memory")),
            shared_memory=_int(probe.get("shared_memory")),
            disk=_disk(probe.get("disk")),
            addresses=tuple(_address(item) for item in _mappings(probe.get("addresses"))),
            gpus=tuple(_gpu(item, place) for place, item in enumerate(_mappings(probe.get("gpus")))),
            driver=_text(probe.get("driver")) or None,
            cuda=_text(probe.get("cuda")) or None,
            infiniband=tuple(_port(item) for item in _mappings(probe.get("infiniband"))),
            openmpi=_mapping(probe.get("openmpi")) or None,
            nccl_tests=_mapping(probe.get("nccl_tests")) or None,
            container_engines=tuple(_engine(item) for item in _mappings(probe.get("container_engines"))),
            ssh_host_keys=tuple(key for key in _list(probe.get("ssh_host_keys")) if isinstance(key, str)),
            node_ssh_key=_text(probe.get("node_ssh_key")) or None,
            runner=_text(probe.get("runner")) or None,
            systemd=probe.get("systemd") is True,
            sudo=probe.get("sudo") is True,
            provisioned=_mapping(probe.get("provisioned")),
            leases=tuple(_mappings(probe.get("leases"))),
            raw=probe,
        )


_MARKETING = re.compile(r"^(?:(?:NVIDIA|AMD|Intel|Tesla|Quadro|GeForce|Instinct)\s+)+", re.IGNORECASE)
_RTX_PRO = re.compile(r"RTX PRO \d+")
_DATA_CENTRE = re.compile(r"\b(?:GB|GH|MI|[ABHLPTV])\d+[A-Za-z]*")
_JOINED = (("RTX A", "A"), (" NVL", "NVL"), (" Ada Generation", "Ada"))
_VENDORS = (("amd", re.compile(r"AMD|Instinct|Radeon|\bMI\d", re.I)), ("intel", re.compile(r"Intel|Gaudi|\bHL-", re.I)))


def gpu_name(full_name: str) -> str:
    """The short name that people and dstack's files use: ``NVIDIA H100 80GB HBM3`` is ``H100``.

    The rules are dstack's (``utils/gpu.py``), except that B-series and RTX PRO names are cut like all others: dstack
    makes ``B300SXM6AC`` of ``NVIDIA B300 SXM6 AC``, which no file asks for.
    """
    name = _MARKETING.sub("", full_name.strip())
    for long, short in _JOINED:
        name = name.replace(long, short)
    match = _RTX_PRO.search(name) or _DATA_CENTRE.search(name)
    return (match.group() if match else name).replace(" ", "")


def gpu_vendor(full_name: str) -> str:
    """``nvidia``, ``amd`` or ``intel``, by the driver's name of the GPU."""
    return next((vendor for vendor, pattern in _VENDORS if pattern.search(full_name)), "nvidia")


def _gpu(data: Mapping[str, Any], place: int) -> GPU:
    full_name = _text(data.get("name"))
    return GPU(
        index=_int(data.get("index"), place),
        name=gpu_name(full_name),
        full_name=full_name,
        vendor=_text(data.get("vendor")).lower() or gpu_vendor(full_name),
        memory=_int(data.get("memory")),
        uuid=_text(data.get("uuid")),
        pci=_text(data.get("pci")),
        compute_capability=_capability(data.get("compute_capability")),
    )


def _engine(data: Mapping[str, Any]) -> ContainerEngine:
    return ContainerEngine(
        engine=_text(data.get("engine")),
        version=_text(data.get("version")) or None,
        problem=_text(data.get("problem")) or None,
        cgroup_driver=_text(data.get("cgroup_driver")) or None,
        gpus=_text(data.get("gpus")) or None,
        arch=_text(data.get("arch")),
    )


def _capability(value: object) -> tuple[int, int] | None:
    """``"9.0"``, ``9.0`` or ``[9, 0]``."""
    text = ".".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?", text.strip())
    return None if match is None else (int(match[1]), int(match[2] or 0))


def _disk(value: object) -> Disk | None:
    data = _mapping(value)
    return Disk(_text(data.get("path")), _int(data.get("total")), _int(data.get("free"))) if data else None


def _address(data: Mapping[str, Any]) -> Address:
    return Address(_text(data.get("interface")), _text(data.get("address")), _int(data.get("prefix")))


def _port(data: Mapping[str, Any]) -> InfiniBandPort:
    return InfiniBandPort(
        device=_text(data.get("device")),
        port=_int(data.get("port"), 1),
        state=_text(data.get("state")),
        link_layer=_text(data.get("link_layer")),
        rate_gbps=_number(data.get("rate_gbps")),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _int(value: object, default: int = 0) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in _list(value) if isinstance(item, Mapping)]
