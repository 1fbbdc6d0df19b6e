"""Typed facts, internal addresses and the matching of resources: tables of what goes in and what comes out."""

from __future__ import annotations

from typing import Any

import pytest

from lambdactl.fleet.facts import GIB, NodeFacts, gpu_name, gpu_vendor
from lambdactl.fleet.match import reasons
from lambdactl.fleet.model import Fleet, FleetHost, Hop, Route
from lambdactl.fleet.network import common_cidr, internal_ips
from lambdactl.spec import TaskSpec, loads

MIB = 1024**2


@pytest.mark.parametrize(
    ("full_name", "name", "vendor"),
    [
        ("NVIDIA B200", "B200", "nvidia"),
        ("NVIDIA B300 SXM6 AC", "B300", "nvidia"),
        ("NVIDIA GB200", "GB200", "nvidia"),
        ("NVIDIA GH200 480GB", "GH200", "nvidia"),
        ("NVIDIA H100 80GB HBM3", "H100", "nvidia"),
        ("NVIDIA H100 PCIe", "H100", "nvidia"),
        ("NVIDIA H100 NVL", "H100NVL", "nvidia"),
        ("NVIDIA H200", "H200", "nvidia"),
        ("NVIDIA A100-SXM4-80GB", "A100", "nvidia"),
        ("NVIDIA A100 80GB PCIe", "A100", "nvidia"),
        ("A100-PCIE-40GB", "A100", "nvidia"),
        ("NVIDIA A10", "A10", "nvidia"),
        ("NVIDIA A10G", "A10G", "nvidia"),
        ("NVIDIA L40S", "L40S", "nvidia"),
        ("NVIDIA L4", "L4", "nvidia"),
        ("Tesla T4", "T4", "nvidia"),
        ("Tesla V100-SXM2-16GB", "V100", "nvidia"),
        ("NVIDIA RTX A6000", "A6000", "nvidia"),
        ("Quadro RTX 6000", "RTX6000", "nvidia"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000Ada", "nvidia"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTXPRO6000", "nvidia"),
        ("NVIDIA GeForce RTX 4090", "RTX4090", "nvidia"),
        ("NVIDIA GeForce RTX 3060 Ti", "RTX3060Ti", "nvidia"),
        ("AMD Instinct MI300X OAM", "MI300X", "amd"),
        ("AMD Instinct MI300X", "MI300X", "amd"),
        ("MI250X", "MI250X", "amd"),
        ("", "", "nvidia"),
    ],
)
def test_gpu_names(full_name: str, name: str, vendor: str) -> None:
    assert (gpu_name(full_name), gpu_vendor(full_name)) == (name, vendor)


def gpu(name: str, mib: int, capability: object = None) -> dict[str, Any]:
    return {"name": name, "memory": mib * MIB, "compute_capability": capability}


def node(
    *gpus: dict[str, Any], cpus: int = 208, memory: float = 2267, disk: float = 19000, arch: str = "x86_64"
) -> Any:
    return NodeFacts.from_probe(
        {
            "cpus": cpus,
            "memory": int(memory * GIB),
            "arch": arch,
            "disk": {"path": "/var/lib/lambdactl", "total": int(disk * 1.2 * GIB), "free": int(disk * GIB)},
            "gpus": list(gpus),
        }
    )


B200 = node(*[gpu("NVIDIA B200", 183359, "10.0")] * 8)
H100 = node(*[gpu("NVIDIA H100 80GB HBM3", 81559, "9.0")] * 8)
A100 = node(*[gpu("NVIDIA A100-SXM4-40GB", 40960, 8.0)] * 4)
A10 = node(gpu("NVIDIA A10", 23028, [8, 6]), cpus=30, memory=196.6, disk=1300)
L40S = node(*[gpu("NVIDIA L40S", 46068, "8.9")] * 2)
B300 = node(*[gpu("NVIDIA B300 SXM6 AC", 275040, "10.3")] * 8)
GH200 = node(gpu("NVIDIA GH200 480GB", 97871, "9.0"), arch="aarch64", cpus=64)
MI300X = node(*[gpu("AMD Instinct MI300X", 196592)] * 8)
MIXED = node(*[gpu("NVIDIA H100 80GB HBM3", 81559, "9.0")] * 4, *[gpu("NVIDIA A100-SXM4-80GB", 81920, "8.0")] * 4)
PLAIN = node(cpus=4, memory=7.76, disk=40)
EMPTY = NodeFacts.from_probe({})

MATCHES: list[tuple[str, NodeFacts, list[str]]] = [
    # what the file does not say excludes nothing
    ("{}", EMPTY, []),
    ("{shm_size: 4GB}", PLAIN, []),
    ("{shm_size: 16GB}", PLAIN, ["has 8 GB of memory, 16 GB of shared memory wanted"]),
    # GPUs: count
    ("{gpu: 'nvidia:B200:8'}", B200, []),
    ("{gpu: 8}", B200, []),
    ("{gpu: 1..8}", B200, []),
    ("{gpu: 4}", B200, []),
    ("{gpu: 1..4}", B200, []),
    ("{gpu: 8}", A100, ["has 4 GPUs, 8 wanted"]),
    ("{gpu: 8}", A10, ["has 1 GPU, 8 wanted"]),
    ("{gpu: 'B200:8'}", PLAIN, ["has no GPU, 8 B200 wanted"]),
    ("{gpu: 1}", PLAIN, ["has no GPU, 1 wanted"]),
    ("{gpu: B200}", PLAIN, ["has no GPU, 1 B200 wanted"]),
    ("{gpu: 0}", PLAIN, []),
    ("{gpu: 0..}", PLAIN, []),
    ("{gpu: 0}", B200, []),
    # GPUs: kind
    ("{gpu: 'H100:8'}", B200, ["has B200, H100 wanted"]),
    ("{gpu: 'h100:8'}", H100, []),
    ("{gpu: 'A100,H100:8'}", H100, []),
    ("{gpu: 'A100,H100:8'}", B200, ["has B200, A100 or H100 wanted"]),
    ("{gpu: 'B300:8'}", B300, []),
    ("{gpu: 'amd:MI300X:8'}", MI300X, []),
    ("{gpu: 'nvidia:8'}", MI300X, ["has amd GPUs, nvidia wanted"]),
    ("{gpu: 'H100:4'}", MIXED, []),
    ("{gpu: 'H100:8'}", MIXED, ["has A100, H100 wanted"]),
    ("{gpu: 'L4:1'}", MIXED, ["has H100 and A100, L4 wanted"]),
    (
        "{gpu: {name: A100, memory: 80GB, compute_capability: 9.0, count: 2}}",
        MIXED,
        ["has no GPU meeting all conditions, 2 wanted"],
    ),
    # GPUs: memory, nominal against real
    ("{gpu: 'H100:80GB:8'}", H100, []),
    ("{gpu: '80GB..:8'}", H100, []),
    ("{gpu: 'B200:180GB:8'}", B200, []),
    ("{gpu: 'B200:192GB..:8'}", B200, []),
    ("{gpu: 'B300:288GB:8'}", B300, []),
    ("{gpu: 'A10:24GB'}", A10, []),
    ("{gpu: 'L40S:48GB:2'}", L40S, []),
    ("{gpu: 'GH200:96GB'}", GH200, []),
    ("{gpu: 'MI300X:192GB:8', }", MI300X, []),
    ("{gpu: 'A100:80GB:4'}", A100, ["has GPUs of 40 GB, 80GB wanted"]),
    ("{gpu: 'H100:40GB:8'}", H100, ["has GPUs of 80 GB, 40GB wanted"]),
    ("{gpu: 40GB..80GB}", H100, []),
    ("{gpu: ..48GB}", H100, ["has GPUs of 80 GB, ..48GB wanted"]),
    ("{gpu: {total_memory: 640GB.., count: 8}}", H100, []),
    ("{gpu: {total_memory: 1TB.., count: 8}}", H100, ["has 637 GB of GPU memory in all, 1024 GB wanted"]),
    # GPUs: compute capability
    ("{gpu: {compute_capability: '9.0', count: 8}}", B200, []),
    ("{gpu: {compute_capability: '10.0', count: 8}}", H100, ["has compute capability 9.0, 10.0 wanted"]),
    ("{gpu: {compute_capability: '9.0', count: 8}}", MI300X, ["has compute capability unknown, 9.0 wanted"]),
    # the rest
    ("{cpu: 4}", PLAIN, []),
    ("{cpu: 2..}", PLAIN, []),
    ("{cpu: 8..}", PLAIN, ["has 4 CPUs, 8 wanted"]),
    ("{cpu: 8..}", EMPTY, ["has no CPU, 8 wanted"]),
    ("{cpu: 'arm:8..'}", B200, ["has x86 CPUs, arm wanted"]),
    ("{cpu: 'arm:8..'}", GH200, []),
    ("{memory: 8GB}", PLAIN, []),
    ("{memory: 16GB..}", PLAIN, ["has 8 GB of memory, 16 GB wanted"]),
    ("{disk: 40GB..}", PLAIN, []),
    ("{disk: 100GB..}", PLAIN, ["has 40 GB of free disk, 100 GB wanted"]),
    ("{disk: {size: 100GB..}}", EMPTY, ["has 0 GB of free disk, 100 GB wanted"]),
    (
        "{cpu: 8.., memory: 64GB.., disk: 1TB.., gpu: 'H100:8'}",
        PLAIN,
        [
            "has 4 CPUs, 8 wanted",
            "has 8 GB of memory, 64 GB wanted",
            "has 40 GB of free disk, 1024 GB wanted",
            "has no GPU, 8 H100 wanted",
        ],
    ),
]


@pytest.mark.parametrize(("wanted", "facts", "expected"), MATCHES, ids=[f"{n}-{m[0]}" for n, m in enumerate(MATCHES)])
def test_reasons(wanted: str, facts: NodeFacts, expected: list[str]) -> None:
    image = "image: rocm\n" if "amd" in wanted or "MI300X" in wanted else ""
    task = loads(f"type: task\n{image}commands: [ls]\nresources: {wanted}\n", kind="task")
    assert isinstance(task, TaskSpec)
    assert reasons(task.resources, facts) == expected


def test_facts_of_a_whole_probe() -> None:
    facts = NodeFacts.from_probe(
        {
            "hostname": "n1",
            "os": {"id": "ubuntu", "version_id": "22.04", "pretty": "Ubuntu 22.04"},
            "systemd": True,
            "gpus": [{"index": 3, "name": "NVIDIA H100 80GB HBM3", "memory": 81559 * MIB, "uuid": "GPU-1"}],
            "infiniband": [{"device": "mlx5_0", "port": 1, "state": "ACTIVE", "rate_gbps": 400}],
            "addresses": [{"interface": "eth0", "address": "10.0.0.1", "prefix": 24}],
            "openmpi": {"version": "4.1.4", "path": "/usr"},
            "nccl_tests": None,
            "leases": [{"run_id": "x"}],
            "new": 1,
        }
    )
    assert (facts.hostname, facts.os_id, facts.systemd, facts.sudo) == ("n1", "ubuntu", True, False)
    assert (facts.gpus[0].index, facts.gpus[0].name, facts.gpus[0].compute_capability) == (3, "H100", None)
    assert (facts.infiniband[0].rate_gbps, facts.addresses[0].prefix) == (400.0, 24)
    assert facts.openmpi == {"version": "4.1.4", "path": "/usr"}
    assert facts.nccl_tests is None
    assert facts.raw["new"] == 1


HOSTILE: list[dict[str, Any]] = [
    {"os": "linux", "disk": [], "gpus": {"a": 1}, "addresses": [1, None], "leases": "x", "memory": "8GB", "cpus": None},
    {"gpus": [{"name": 7, "memory": "x", "compute_capability": "N/A"}, "y"], "infiniband": [{}], "time": True},
    {"addresses": [{"interface": "eth0", "address": "not an address", "prefix": 99}]},
]


@pytest.mark.parametrize("probe", HOSTILE)
def test_facts_never_raise(probe: dict[str, Any]) -> None:
    facts = NodeFacts.from_probe(probe)
    fleet = fleet_of(["a"])
    assert internal_ips(fleet, {"a": facts})[0] == {}


def fleet_of(names: list[str], *, network: str | None = None, ips: tuple[str | None, ...] = ()) -> Fleet:
    hosts = tuple(
        FleetHost(name, index, Route((), Hop(name)), internal_ip=ips[index] if ips else None)
        for index, name in enumerate(names)
    )
    return Fleet("f", "00000000", hosts, network=network)


def addresses(text: str) -> NodeFacts:
    """Facts from ``eth0 10.0.0.1/24, docker0 172.17.0.1/16``."""
    found = []
    for item in filter(None, text.split(", ")):
        interface, _, cidr = item.partition(" ")
        address, _, prefix = cidr.partition("/")
        found.append({"interface": interface, "address": address, "prefix": int(prefix)})
    return NodeFacts.from_probe({"addresses": found})


DOCKER = "lo 127.0.0.1/8, docker0 172.17.0.1/16, br-1 172.18.0.1/16, virbr0 192.168.122.1/24"
COMMON: list[tuple[list[str], list[str] | None, str | None]] = [
    (["eth0 10.0.0.1/24", "eth0 10.0.0.2/24"], ["10.0.0.1", "10.0.0.2"], "10.0.0.0/24"),
    ([f"{DOCKER}, eth0 10.0.0.1/24", f"{DOCKER}, eth0 10.0.0.2/24"], ["10.0.0.1", "10.0.0.2"], "10.0.0.0/24"),
    # the first address is not one that the other can reach (what dstack takes)
    (["a0 10.9.1.1/24, b0 10.0.0.1/24", "a0 10.9.2.1/24, b0 10.0.0.2/24"], ["10.0.0.1", "10.0.0.2"], "10.0.0.0/24"),
    # private before public
    (["p0 8.8.8.1/24, e1 10.0.0.1/24", "p0 8.8.8.2/24, e1 10.0.0.2/24"], ["10.0.0.1", "10.0.0.2"], "10.0.0.0/24"),
    (["p0 8.8.8.1/24", "p0 8.8.8.2/24"], ["8.8.8.1", "8.8.8.2"], "8.8.8.0/24"),
    # the primary interface comes first; Ethernet before IP over InfiniBand
    (["e0 10.1.0.1/24, e1 10.2.0.1/24", "e0 10.1.0.2/24, e1 10.2.0.2/24"], ["10.1.0.1", "10.1.0.2"], "10.1.0.0/24"),
    (["ib0 10.1.0.1/24, e1 10.2.0.1/24", "ib0 10.1.0.2/24, e1 10.2.0.2/24"], ["10.2.0.1", "10.2.0.2"], "10.2.0.0/24"),
    # an unknown bridge with the same address everywhere is no network
    (["x0 10.9.0.1/24, e0 10.1.0.1/24", "x0 10.9.0.1/24, e0 10.1.0.2/24"], ["10.1.0.1", "10.1.0.2"], "10.1.0.0/24"),
    (["e0 169.254.0.1/16, e1 10.0.0.1/8", "e0 169.254.0.2/16, e1 10.2.0.2/8"], ["10.0.0.1", "10.2.0.2"], "10.0.0.0/8"),
    (["p0 8.8.8.1/24, e0 10.0.0.1/24"], ["10.0.0.1"], "10.0.0.0/24"),
    (["e0 10.0.0.1/32"], ["10.0.0.1"], "10.0.0.1/32"),
    (["e0 10.0.0.1/24", "e0 10.1.0.2/24"], None, None),
    (["e0 10.0.0.1/24", DOCKER], None, None),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "expected", "cidr"), COMMON)
def test_the_common_subnet(nodes: list[str], expected: list[str] | None, cidr: str | None) -> None:
    names = [f"n{index}" for index in range(len(nodes))]
    facts = {name: addresses(text) for name, text in zip(names, nodes, strict=True)}
    ips, why = internal_ips(fleet_of(names), facts)
    if expected is None:
        assert set(ips) | set(why) == set(names)
        assert why
    else:
        assert (list(ips.values()), why) == (expected, {})
        assert common_cidr(ips, facts) == cidr


def test_the_route_to_the_hosts_decides_between_two_networks() -> None:
    nodes = ["a0 10.1.0.1/24, b0 10.2.0.1/24", "a0 10.1.0.2/24, b0 10.2.0.2/24"]
    names = ["10.2.0.1", "10.2.0.2"]
    ips, _ = internal_ips(fleet_of(names), {n: addresses(t) for n, t in zip(names, nodes, strict=True)})
    assert list(ips.values()) == names


def test_one_host_outside_is_named() -> None:
    nodes = ["e0 10.0.0.1/24", "e0 10.0.0.2/24", "e0 10.7.0.3/24", "lo 127.0.0.1/8"]
    names = ["a", "b", "c", "d", "e"]
    facts = {name: addresses(text) for name, text in zip(names, nodes, strict=False)}
    ips, why = internal_ips(fleet_of(names), facts)
    assert ips == {"a": "10.0.0.1", "b": "10.0.0.2"}
    assert why == {
        "c": "shares no subnet with the other hosts (it has e0 10.7.0.3/24); set 'network' or 'internal_ip'",
        "d": "has no IPv4 address that other machines could reach (it has none)",
        "e": "its addresses are not known, because it was not reached",
    }


@pytest.mark.parametrize("network", ["10.0.0.0/24", "10.0.0.5/24"])
def test_a_named_network_may_have_host_bits(network: str) -> None:
    facts = {"a": addresses("e0 10.1.0.1/24, docker0 10.0.0.7/24"), "b": addresses("e0 10.1.0.2/24")}
    ips, why = internal_ips(fleet_of(["a", "b"], network=network), facts)
    assert ips == {"a": "10.0.0.7"}
    assert why == {"b": "has no address in the network 10.0.0.0/24 (it has e0 10.1.0.2/24)"}


def test_ipv6_where_the_file_names_it() -> None:
    facts = {"a": addresses("e0 10.0.0.1/24, e0 fd00::1/64")}
    assert internal_ips(fleet_of(["a"], network="fd00::/64"), facts)[0] == {"a": "fd00::1"}
    assert common_cidr({"a": "fd00::1"}, facts) == "fd00::/64"


def test_internal_ip_of_the_file() -> None:
    fleet = fleet_of(["a", "b", "c"], ips=("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    facts = {"a": addresses("e0 10.0.0.1/24"), "b": addresses("e0 10.0.9.9/24")}
    ips, why = internal_ips(fleet, facts)
    assert ips == {"a": "10.0.0.1", "c": "10.0.0.3"}
    assert why == {"b": "internal_ip 10.0.0.2 is on none of its interfaces (it has e0 10.0.9.9/24)"}
