# ruff: noqa: RUF009 - key() makes a dataclass field, and the other calls make frozen values
"""``type: fleet``: hosts behind SSH, or the nodes of a backend such as Kubernetes.

Exactly one of ``ssh_config`` and ``nodes`` says which of the two it is. Source: dstack's reference page of the fleet
file; what is ours stays optional: ``proxy_jump`` as a list (several hops), key files and the jump host's user left out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .engine import At, Kind, ListOf, Struct, key
from .fields import BLOCKS, IDLE_FLEET, NAME, PORT, RETRY, OfferFields, Retry, Source
from .kinds import Choice, OffDuration, Read, Text, Whole
from .mappings import Variables
from .nodes import Problem, show
from .resources import RESOURCES, Resources
from .values import EnvVar

HOSTNAME = Text(
    r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,254}", "a host name or an IP address, without user, port or spaces", label="host"
)
USER = Text(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}\$?", "a login name", label="login name")
KEY_FILE = Text(r"[^\x00-\x1f\x7f]+", "the path of a private key", label="path")


def _private_address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"must be an IP address, not {show(text)}") from None
    if not address.is_private:
        raise ValueError(f"must be a private IP address; {show(text)} is public")
    return str(address)


def _private_network(text: str) -> str:
    """The network with its host bits cleared: ``10.0.0.5/24`` is ``10.0.0.0/24``."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"must be a network such as 10.0.0.0/24, not {show(text)}") from None
    if not network.is_private:
        raise ValueError(f"must be a private network; {show(text)} is public")
    return str(network)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyJump:
    """A jump host."""

    hostname: str = key(HOSTNAME, "The jump host.", required=True)
    port: int = key(PORT, "Its SSH port.", default=22, nullable=True)
    user: str | None = key(USER, "Its login name.", default_text="the hosts' user")
    identity_file: str | None = key(KEY_FILE, "Private key for it.", default_text="the SSH agent and your usual keys")


PROXY_JUMP = Struct(ProxyJump, "proxy_jump")


class _Hops(Kind[tuple[ProxyJump, ...]]):
    """One jump host, or a list of them in the order in which they are passed."""

    label = f"{PROXY_JUMP.label}, or a list"
    wanted = "a mapping with a 'hostname', or a list of such mappings"

    def __init__(self) -> None:
        self._list = ListOf(PROXY_JUMP, single=True)

    def read(self, node: Any) -> tuple[ProxyJump, ...]:
        if node.id == "scalar":
            raise self.wrong(node)
        return self._list.read(node)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return self._list.schema(definitions)

    def structs(self) -> Sequence[Struct[Any]]:
        return (PROXY_JUMP,)


HOPS = _Hops()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """One host; what it leaves out comes from ``ssh_config``. ``line`` is where it stands in the file."""

    hostname: str = key(HOSTNAME, "The host, as the last jump host (or your machine) resolves it.", required=True)
    port: int | None = key(PORT, "Its SSH port.", default_text="that of `ssh_config`")
    user: str | None = key(USER, "Its login name.", default_text="that of `ssh_config`")
    identity_file: str | None = key(KEY_FILE, "Private key for it.", default_text="that of `ssh_config`")
    proxy_jump: tuple[ProxyJump, ...] | None = key(
        HOPS, "Its jump host; an empty list is none.", default_text="that of `ssh_config`"
    )
    internal_ip: str | None = key(
        Text(check=_private_address, wanted="an IP address", label="IP address"),
        "Its address inside the cluster; on all hosts or on none.",
        default_text="detected",
    )
    blocks: int | str | None = key(BLOCKS, "Blocks that the host is divided into.", default_text="that of the fleet")
    line: int = 0


class _HostKind(Struct[HostSpec]):
    """A bare host name is held to the same rule as ``hostname``."""

    def read(self, node: Any, **extra: Any) -> HostSpec:
        if node.id == "scalar":
            return HostSpec(hostname=HOSTNAME.read(node), line=node.start_mark.line + 1)
        return super().read(node, **extra)


HOST = _HostKind(
    HostSpec, "hosts", shorthand=Read(lambda text: {"hostname": text}, "host", "a host name", {"type": "string"})
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SSHConfig:
    """How to reach the hosts of an SSH fleet."""

    user: str | None = key(USER, "Login name on all hosts.", default_text="each host must have one")
    port: int | None = key(PORT, "SSH port of all hosts.", default_text="22")
    identity_file: str | None = key(
        KEY_FILE, "Private key for all hosts.", default_text="the SSH agent and your usual keys"
    )
    proxy_jump: tuple[ProxyJump, ...] = key(
        HOPS, "The jump host in front of them.", default=(), nullable=True, default_text="none"
    )
    hosts: tuple[HostSpec, ...] = key(ListOf(HOST), "The hosts; their order is the order of ranks.", required=True)
    network: str | None = key(
        Text(check=_private_network, wanted="a network such as 10.0.0.0/24", label="`ip/mask`"),
        "The private network that the nodes talk over.",
        default_text="detected",
    )


def _check_hosts(config: SSHConfig, at: At) -> SSHConfig:
    for index, host in enumerate(config.hosts):
        if host.user is None and config.user is None:
            text = f"gives no user for the host {show(host.hostname)}; set 'user' in ssh_config, or on the host"
            raise _at_host(at, index, text)
    with_address = sum(host.internal_ip is not None for host in config.hosts)
    if 0 < with_address < len(config.hosts):
        index = next(i for i, host in enumerate(config.hosts) if host.internal_ip is None)
        raise _at_host(at, index, "must have an 'internal_ip' as other hosts have one; set it on all hosts or on none")
    if with_address and config.network is not None:
        raise at.problem("network", "cannot be used together with 'internal_ip' of hosts; remove one of them")
    return config


def _at_host(at: At, index: int, text: str) -> Problem:
    return Problem(at.keys["hosts"].value[index], text).under(index).under("hosts")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesRange:
    """How many nodes a backend fleet has: ``min`` always, ``target`` at first, ``max`` at most (None: no limit)."""

    min: int = key(Whole(0), "The fewest.", default=0, nullable=True)
    target: int = key(Whole(0), "How many at first.", default=-1, nullable=True, default_text="`min`")
    max: int | None = key(Whole(0), "The most.", default_text="no limit")


def _nodes(text: str) -> dict[str, Any]:
    low, dots, high = text.replace(" ", "").partition("..")
    sides = [low, high] if dots else [low, low]
    if not all(side == "" or (side.isascii() and side.isdigit() and len(side) < 10) for side in sides) or not (
        low or dots
    ):
        raise ValueError(f"must be a number or a range such as 2, 0..2, 2.., ..2 or .., not {show(text)}")
    return {name: int(side) for name, side in zip(("min", "max"), sides, strict=True) if side}


def _check_nodes(nodes: NodesRange, at: At) -> NodesRange:
    if nodes.target == -1:
        nodes = replace(nodes, target=nodes.min)
    if nodes.target < nodes.min:
        raise at.problem("target", f"({nodes.target}) must not be below 'min' ({nodes.min})")
    if nodes.max is not None and nodes.max < nodes.min:
        raise (
            at.problem("max", f"({nodes.max}) must not be below 'min' ({nodes.min})")
            if "max" in at.keys
            else Problem(at.node, f"has its bounds in the wrong order: {nodes.min}..{nodes.max}")
        )
    if nodes.max is not None and nodes.max < nodes.target:
        raise at.problem("max", f"({nodes.max}) must not be below 'target' ({nodes.target})")
    return nodes


NODES = Struct(
    NodesRange,
    "nodes",
    shorthand=Read(
        _nodes, "number or range", "a number or a range such as 2, 0..2, 2.. or ..", {"type": ["integer", "string"]}
    ),
    check=_check_nodes,
)

BACKEND_ONLY = (
    *(
        "reservation",
        "resources",
        "backends",
        "regions",
        "availability_zones",
        "instance_types",
        "spot_policy",
        "retry",
    ),
    *("max_price", "idle_duration", "tags", "backend_options"),
)
"""Fields of backend fleets that are an error in an SSH fleet."""


@dataclass(frozen=True, kw_only=True)
class FleetSpec(OfferFields):
    """A fleet file."""

    type: str = key(Choice("fleet"), "The kind of file.", required=True)
    name: str | None = key(NAME, "The fleet's name.", default_text="the file's name")
    placement: str | None = key(
        Choice("any", "cluster"), "`cluster` where the nodes share a fast network.", default_text="`any`"
    )
    blocks: int | str = key(BLOCKS, "Blocks that a host is divided into; `auto` is as many as possible.", default=1)
    ssh_config: SSHConfig | None = key(
        Struct(SSHConfig, "ssh_config", check=_check_hosts), "The hosts, and how to reach them."
    )
    env: tuple[EnvVar, ...] = key(
        Variables(), "Environment variables of every run on the hosts; SSH fleets only.", default=()
    )
    when_full: str = key(
        Choice("refuse", "wait"),
        "Whether runs on a full fleet are refused, or wait in its queue; SSH fleets only.",
        default="refuse",
        ours=True,
    )
    nodes: NodesRange | None = key(NODES, "How many nodes; backend fleets only.")
    resources: Resources | None = key(RESOURCES, "Which nodes; backend fleets only.")
    retry: Retry | None = key(RETRY, "Whether provisioning is tried again; backend fleets only.", default_text="false")
    idle_duration: int | None = key(
        OffDuration(IDLE_FLEET, negative=True),
        "How long a node stays idle; backend fleets only.",
        default=IDLE_FLEET,
        nullable=True,
        default_text="3d",
    )
    container_engine: str | None = key(
        Choice("auto", "docker", "podman"),
        "The container engine that every host gets where it is missing, with a way for GPUs into containers (`auto`:"
        " Docker, where none is there); SSH fleets only.",
        default_text="hosts stay as they are",
        ours=True,
    )
    source: Source = Source("", "")


def _check_fleet(fleet: FleetSpec, at: At) -> FleetSpec:
    if fleet.ssh_config is None and fleet.nodes is None:
        raise Problem(
            at.node, "the fleet has neither 'ssh_config' (hosts behind SSH) nor 'nodes' (a backend's); give one of them"
        )
    if fleet.ssh_config is not None and fleet.nodes is not None:
        raise at.problem("nodes", "cannot be used together with 'ssh_config'; remove one")
    if fleet.ssh_config is None:
        if fleet.container_engine:
            raise at.problem("container_engine", "is for SSH fleets ('ssh_config') only; remove it")
        if fleet.env:
            raise at.problem("env", "is for SSH fleets ('ssh_config') only; remove it")
        if fleet.when_full != "refuse":
            raise at.problem("when_full", "is for SSH fleets ('ssh_config') only; remove it")
        return fleet
    wrong = [name for name in at.keys if name in BACKEND_ONLY and at.has(name)]
    if wrong:
        text = (
            f"an SSH fleet ('ssh_config') does not take {', '.join(wrong)}; remove what is for backend fleets ('nodes')"
        )
        raise Problem(at.keys[wrong[0]], text)
    return fleet


FLEET = Struct(FleetSpec, "fleet", check=_check_fleet)
