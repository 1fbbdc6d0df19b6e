"""The roles, a digest of what each would install, and why a node needs one of them.

A role's digest covers the role's own files and the inputs that it uses. The role writes it into its manifest on the
node as its last step; a node whose manifest holds the same digest, without drift, is left alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lambdactl import content

if TYPE_CHECKING:
    from lambdactl.fleet import Fleet

Facts = Mapping[str, Any]

_PARTS = ("defaults", "files", "filter_plugins", "handlers", "library", "lookup_plugins", "tasks", "templates", "vars")
_DIGEST_LENGTH = 32  # hex digits; 128 bits tell contents apart, and the probe stays small
_NAME_LENGTH, _PEER_LENGTH = 6, 8


@dataclass(frozen=True)
class Role:
    """A role and how a user is told that a node needs it.

    Attributes:
        inputs: the role's variables that decide what is installed (time limits and the like do not).
        missing: why a node without it needs it.
        outdated: why a node with another digest needs it.
        optional: only for hosts that ask for it by `<role>_state: present`, and those that have it.
    """

    name: str
    inputs: tuple[str, ...]
    missing: str
    outdated: str
    optional: bool = False


_TABLE = (
    Role("runner", (), "the runner is missing", "the runner is another version"),
    Role("node_ssh", (), "node-to-node SSH is missing", "the set-up of node-to-node SSH is another version"),
    Role(
        "openmpi",
        ("openmpi_packages", "openmpi_search"),
        "Open MPI has not been checked",
        "the role openmpi or its settings changed",
    ),
    Role(
        "nccl_tests",
        ("nccl_tests_version", "nccl_tests_commit", "nccl_tests_repository", "nccl_tests_url", "nccl_tests_sha256",
         "nccl_tests_archive", "nccl_tests_gencode", "nccl_tests_cuda_home", "nccl_tests_nccl_home",
         "nccl_tests_mpi_home"),
        "the NCCL tests have not been checked",
        "the role nccl_tests, its settings or the GPUs changed",
    ),
    Role(
        "mpi_bench",
        ("mpi_bench_flags", "mpi_bench_on_gpu_nodes"),
        "the CPU benchmark is missing",
        "the role mpi_bench or its settings changed",
    ),
    Role(
        "container_engine",
        ("container_engine_name", "container_engine_docker_packages", "container_engine_podman_packages",
         "container_engine_toolkit", "container_engine_toolkit_packages"),
        "a container engine is asked for",
        "the role container_engine, its settings or the GPUs changed",
        optional=True,
    ),
)  # fmt: skip
ROLES: tuple[str, ...] = tuple(role.name for role in _TABLE)

# Roles that not every node needs: installed where something asks for them, removed by a teardown like the others.
_OPTIONAL = (
    Role(
        "ingress",
        ("ingress_bind", "ingress_port", "ingress_timeout", "ingress_drain_timeout", "ingress_body_bytes",
         "ingress_packages"),
        "the ingress is missing",
        "the role ingress or its settings changed",
    ),
)  # fmt: skip
OPTIONAL_ROLES: tuple[str, ...] = tuple(role.name for role in _OPTIONAL)
_BY_NAME = {role.name: role for role in (*_TABLE, *_OPTIONAL)}


@dataclass(frozen=True)
class Change:
    """A role that a node needs, and why in words."""

    role: str
    why: str


@dataclass(frozen=True)
class Peer:
    """What the other nodes must know of a node to log in to it.

    Attributes:
        address: the address that runs use, from the common subnet.
        addresses: every address that the node may call from (authorized_keys `from=`).
        host_keys: lines of its sshd's public keys, without a host name.
        public_key: the node's own key for node-to-node SSH, one line.
    """

    name: str
    address: str
    addresses: tuple[str, ...]
    user: str
    port: int
    host_keys: tuple[str, ...]
    public_key: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Peer:
        """Of the keys that a node or the inventory reports; unknown ones are ignored."""
        values = {field.name: data[field.name] for field in fields(cls)}
        values["addresses"] = tuple(sorted(values["addresses"]))
        values["host_keys"] = tuple(sorted(values["host_keys"]))
        values["port"] = int(values["port"])
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, as the role's files keep it."""
        return {**asdict(self), "addresses": list(self.addresses), "host_keys": list(self.host_keys)}


def peers(fleet: Fleet, facts: Mapping[str, Facts], addresses: Mapping[str, str]) -> list[Peer]:
    """The nodes in rank order that are known well enough for the others to log in to them."""
    found = []
    for host in fleet.hosts:
        known = facts.get(host.name)
        if known is None or host.name not in addresses or not known.get("node_ssh_key"):
            continue
        found.append(
            Peer.from_dict(
                {
                    "name": host.name,
                    "address": addresses[host.name],
                    "addresses": callers(known.get("addresses", ()), addresses[host.name]),
                    "user": host.route.target.user or "root",
                    "port": host.route.target.port,
                    "host_keys": [_key_body(line) for line in known.get("ssh_host_keys", ())],
                    "public_key": known["node_ssh_key"],
                }
            )
        )
    return found


# Interfaces that exist inside of one machine only; the same list as in roles/node_ssh/library/lambdactl_node_key.py.
_VIRTUAL = re.compile(r"lo|docker|br-|virbr|lxc|veth|vnet|cni|flannel|cali|cilium|kube|podman|tun|tap")


def callers(addresses: Iterable[Mapping[str, Any]], main: str) -> list[str]:
    """A node's IPv4 addresses that may stand in `from=`: no loopback, link-local, or bridge that every node has.

    IPv6 is left out: nodes call each other by the hostfile's IPv4 addresses, and temporary addresses come and go.
    """
    candidates = (str(entry["address"]) for entry in addresses if not _VIRTUAL.match(str(entry["interface"])))
    return sorted(
        {main} | {text for text in candidates if ":" not in text and not text.startswith(("127.", "169.254."))}
    )


def _key_body(line: str) -> str:
    """`type base64` of a public key line: the comment names the host where it was made, which is no part of the key."""
    return " ".join(line.split()[:2])


def role_digests(facts: Facts, variables: Mapping[str, Any], *, fleet_id: str, nodes: Sequence[Peer]) -> dict[str, str]:
    """The digest of each role on one node.

    Args:
        facts: what the probe said of the node; the GPUs decide what nccl_tests and mpi_bench do.
        variables: role variables that the user set (inventory, extra variables); defaults need not be in it.
        fleet_id: the fleet's id, which marks the node's lines of node-to-node SSH.
        nodes: all known nodes of the fleet.
    """
    digests = {name: role_digest(name, variables, facts=facts) for name in ROLES}
    digests["node_ssh"] = node_ssh_digest(variables, fleet_id=fleet_id, nodes=nodes)
    return digests


def role_digest(name: str, variables: Mapping[str, Any], *, facts: Facts | None = None, **more: Any) -> str:
    """The digest of one role: its files, the inputs that differ from its defaults, and what it takes from the node."""
    role, defaults = _BY_NAME[name], _defaults(name)
    inputs = {key: variables[key] for key in role.inputs if key in variables and variables[key] != defaults.get(key)}
    taken = {**_from_node(name, facts or {}), **more}
    return _digest({"files": _files_digest(name), "inputs": inputs, "node": taken})


def role_inputs(name: str) -> tuple[str, ...]:
    """The variables of a role that its digest covers."""
    return _BY_NAME[name].inputs


def node_ssh_digest(variables: Mapping[str, Any], *, fleet_id: str, nodes: Sequence[Peer]) -> str:
    """`<digest>~<node>,<node>...`: one short token a node, so that one that is down now does not count as removed."""
    tokens = (_token(node.name, _digest(node.as_dict())) for node in nodes)
    return f"{role_digest('node_ssh', variables, fleet=fleet_id)}~{','.join(tokens)}"


def needed(
    fleet: Fleet,
    facts: Mapping[str, Facts],
    variables: Mapping[str, Mapping[str, Any]],
    addresses: Mapping[str, str],
    *,
    force: bool = False,
) -> dict[str, list[Change]]:
    """For each probed host the roles that it needs, in order, each with the reason.

    Args:
        facts: the probe's answer of each host that gave one.
        variables: role variables of each host.
        addresses: each host's address among the nodes.
        force: name every role.
    """
    nodes, names = peers(fleet, facts, addresses), [host.name for host in fleet.hosts]
    keyless = [host for host in addresses if host in facts and not facts[host].get("node_ssh_key")]
    return {
        host: changes(
            known, variables.get(host, {}), fleet_id=fleet.id, nodes=nodes, names=names, keyless=keyless, force=force
        )
        for host, known in facts.items()
    }


def changes(
    facts: Facts,
    variables: Mapping[str, Any],
    *,
    fleet_id: str,
    nodes: Sequence[Peer],
    names: Sequence[str],
    keyless: Sequence[str] = (),
    force: bool = False,
) -> list[Change]:
    """The roles that one node needs.

    Args:
        names: all hosts of the fleet, reachable or not.
        keyless: hosts that answered and have no key of their own yet; the others will have to learn it.
    """
    wanted = role_digests(facts, variables, fleet_id=fleet_id, nodes=nodes)
    provisioned: Mapping[str, Any] = facts.get("provisioned") or {}
    found = []
    for role in _TABLE:
        if role.optional and role.name not in provisioned and variables.get(f"{role.name}_state") != "present":
            continue
        why = _why(role, provisioned.get(role.name), wanted[role.name], new=not provisioned, names=names)
        if variables.get(f"{role.name}_state") == "absent":
            why = f"{role.name} is to be removed" if role.name in provisioned else None
        elif why is None and role.name == "node_ssh" and keyless:
            why = f"hosts changed: {keyless[0]} was added"
        elif why is None and role.name == "runner" and facts.get("runner") != content.runner_sha256():
            why = role.outdated
        elif why is None and force:
            why = "asked for"
        if why is not None:
            found.append(Change(role.name, why))
    return found


def _why(role: Role, entry: Mapping[str, Any] | None, wanted: str, *, new: bool, names: Sequence[str]) -> str | None:
    """Why a role is needed, or None where the node has it as wanted."""
    if entry is None:
        return "new host" if new else role.missing
    if not entry.get("digest"):
        return "an earlier run was interrupted"
    if entry.get("drift"):
        return f"changed on the node: {entry['drift'][0]}"
    if role.name == "node_ssh":
        return _why_node_ssh(role, str(entry["digest"]), wanted, names)
    return role.outdated if entry["digest"] != wanted else None


def _why_node_ssh(role: Role, have: str, want: str, names: Sequence[str]) -> str | None:
    (have_base, _, have_list), (want_base, _, want_list) = have.partition("~"), want.partition("~")
    if have_base != want_base:
        return role.outdated
    installed, wanted = _tokens(have_list), _tokens(want_list)
    by_token = {_name_token(name): name for name in names}
    for token, digest in wanted.items():
        if token not in installed:
            return f"hosts changed: {by_token.get(token, 'a host')} was added"
        if installed[token] != digest:
            return f"hosts changed: {by_token.get(token, 'a host')} has another address or key"
    gone = [token for token in installed if token not in by_token]
    return f"hosts changed: {len(gone)} removed" if gone else None


def _name_token(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:_NAME_LENGTH]


def _token(name: str, digest: str) -> str:
    return _name_token(name) + digest[:_PEER_LENGTH]


def _tokens(text: str) -> dict[str, str]:
    return {token[:_NAME_LENGTH]: token[_NAME_LENGTH:] for token in text.split(",") if token}


def _from_node(name: str, facts: Facts) -> dict[str, Any]:
    """What a role's result depends on besides its files and variables."""
    if name == "runner":
        return {"sha256": content.runner_sha256()}
    gpus = facts.get("gpus") or []
    if name == "nccl_tests":
        return {"compute_capabilities": sorted({str(gpu.get("compute_capability") or "") for gpu in gpus})}
    return {"gpus": bool(gpus)} if name in ("mpi_bench", "container_engine") else {}


@functools.cache
def _defaults(name: str) -> dict[str, Any]:
    text = (_folder(name) / "defaults" / "main.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text) or {})


@functools.cache
def _files_digest(name: str) -> str:
    """Over the role's files that decide what it does; documentation and metadata do not."""
    hashed, folder = hashlib.sha256(), _folder(name)
    for path in sorted(path for part in _PARTS for path in (folder / part).rglob("*") if path.is_file()):
        if "__pycache__" not in path.parts:
            body = hashlib.sha256(path.read_bytes()).hexdigest()
            hashed.update(f"{path.relative_to(folder).as_posix()}\0{body}\n".encode())
    return hashed.hexdigest()


def _folder(name: str) -> Path:
    return content.path("roles", name)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:_DIGEST_LENGTH]
