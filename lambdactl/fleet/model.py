"""A fleet: its hosts in rank order, and the route to each of them.

``Fleet`` comes from a fleet file (`Fleet.load`, `Fleet.from_spec`) or, inside of Ansible, from the frozen variables
that the inventory gave each host (`Fleet.from_hostvars`). How a route is spelled for OpenSSH and Ansible is in `ssh`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdactl.errors import SpecError
from lambdactl.fleet import checks

if TYPE_CHECKING:
    from lambdactl.spec import EnvVar, FleetSpec

HOST_KEY_POLICIES = ("accept-new", "yes", "no")
"""Values of OpenSSH's ``StrictHostKeyChecking`` that a fleet can have; only the user's own word makes it ``no``."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One SSH server on the way: a jump host or the node itself.

    ``identity_file`` is a path (``~/`` stays as it is), ``$NAME`` for an environment variable that holds the path when
    the connection is made, or None: then ssh's own defaults and the agent decide.
    """

    hostname: str
    port: int = 22
    user: str | None = None
    identity_file: str | None = None

    @property
    def address(self) -> str:
        """``user@host:port``, which tells one login from another."""
        return f"{self.user or ''}@{self.hostname}:{self.port}"

    def key_path(self) -> str | None:
        """The private key's absolute path on this machine, or None when no key is named.

        Raises:
            SpecError: the key is ``$NAME``, and there is no such environment variable.
        """
        if self.identity_file is None:
            return None
        if not checks.is_variable(self.identity_file):
            return os.path.expanduser(self.identity_file)  # noqa: PTH111 (Path drops a trailing dot component)
        name = self.identity_file[1:]
        if not os.environ.get(name):
            raise SpecError(
                f"The environment variable {name}, which holds the path of {self.hostname}'s key, is not set."
            )
        return os.path.expanduser(os.environ[name])  # noqa: PTH111 (text of an environment, not yet a path)


@dataclass(frozen=True, slots=True)
class Route:
    """The way to a node: ``hops`` in order from the controller, then ``target``, the node itself."""

    hops: tuple[Hop, ...]
    target: Hop


@dataclass(frozen=True, slots=True)
class FleetHost:
    """A machine of the fleet. ``index`` is its place in the fleet file; ranks follow it.

    ``host_key_alias`` is set only when another host of the fleet has the same host name and port behind another jump
    host: then known_hosts and control sockets go by this name.
    """

    name: str
    index: int
    route: Route
    internal_ip: str | None = None
    blocks: int | str | None = None
    line: int | None = None
    host_key_alias: str | None = None


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user's environment, or the inventory plugin's options, put in place of the fleet file's values.

    A key may be a path, ``$NAME`` (looked up when the connection is made) or ``none`` (no key file, the agent decides).
    """

    identity_file: str | None = None
    jump_identity_file: str | None = None
    host_key_policy: str | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Overrides:
        """Overrides from LAMBDACTL_SSH_KEY, LAMBDACTL_JUMP_KEY and LAMBDACTL_HOST_KEY_POLICY.

        A key variable is not read here but named (``$LAMBDACTL_JUMP_KEY``): AWX puts a credential at another path for
        each job, and the inventory is frozen before that.
        """
        environ = os.environ if environ is None else environ

        def key(variable: str) -> str | None:
            value = environ.get(variable)
            return value if value in (None, "", checks.NO_KEY) else f"${variable}"

        return cls(
            identity_file=key("LAMBDACTL_SSH_KEY") or None,
            jump_identity_file=key("LAMBDACTL_JUMP_KEY") or None,
            host_key_policy=environ.get("LAMBDACTL_HOST_KEY_POLICY") or None,
        )


@dataclass(frozen=True, slots=True)
class Fleet:
    """The hosts of one cluster, in rank order, with all that is needed to reach them.

    ``id`` tells fleets apart that reuse the same private addresses: sockets and host keys go by it.
    """

    name: str
    id: str
    hosts: tuple[FleetHost, ...]
    network: str | None = None
    env: tuple[EnvVar, ...] = ()
    placement: str | None = None
    path: str | None = None
    host_key_policy: str = "accept-new"
    container_engine: str | None = None
    blocks: int | str = 1
    when_full: str = "refuse"

    def blocks_of(self, host: FleetHost) -> int | str:
        """How many blocks a host is divided into: its own setting, else the fleet's; a number or ``auto``."""
        return self.blocks if host.blocks is None else host.blocks

    @property
    def role_variables(self) -> dict[str, str]:
        """Variables of roles that the fleet file sets, for every host."""
        engine = self.container_engine
        return {} if engine is None else {"container_engine_state": "present", "container_engine_name": engine}

    @property
    def group(self) -> str:
        """The name of its Ansible group."""
        return self.name.replace("-", "_")

    @property
    def control_dir(self) -> str:
        """The folder of its control sockets; short, because a socket's path has at most 104 bytes."""
        return f"~/.ansible/cp/{self.id}"

    @property
    def known_hosts(self) -> str:
        """Its known_hosts file, shared by Ansible, the generated ssh_config and the transport."""
        return f"~/.ssh/known_hosts.lambdactl-{self.id}"

    def host(self, name: str) -> FleetHost:
        """The host with this inventory name. Raises SpecError when there is none."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise SpecError(f"There is no host '{name}' in the fleet '{self.name}'.", filename=self.path)

    @classmethod
    def load(cls, path: str | Path, *, overrides: Overrides | None = None) -> Fleet:
        """The fleet of a fleet file. Raises SpecError with file and line."""
        from lambdactl.fleet.build import fleet_from_spec
        from lambdactl.spec import FleetSpec, load

        spec = load(path, kind="fleet")
        assert isinstance(spec, FleetSpec)  # noqa: S101 (what kind="fleet" means)
        return fleet_from_spec(spec, path=str(path), overrides=overrides)

    @classmethod
    def from_spec(cls, spec: FleetSpec, *, path: str | None, overrides: Overrides | None = None) -> Fleet:
        """The fleet of a parsed fleet file; without ``overrides`` the environment's count.

        Raises:
            SpecError: a backend fleet, two hosts that are one, a name or a path that is not safe to hand to ssh.
        """
        from lambdactl.fleet.build import fleet_from_spec

        return fleet_from_spec(spec, path=path, overrides=overrides)

    @classmethod
    def from_hostvars(cls, hostvars: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> Fleet:
        """The fleet as Ansible knows it: from the variables of the hosts in ``order``, sorted as in the fleet file.

        ``ansible_host``, ``ansible_user``, ``ansible_port`` and ``ansible_ssh_private_key_file`` win over the route.

        Raises:
            SpecError: a host that the lambda_fleet inventory did not make, or hosts of two fleets.
        """
        from lambdactl.fleet.frozen import fleet_from_hostvars

        return fleet_from_hostvars(hostvars, order)


def chain_id(hops: Sequence[Hop]) -> str:
    """Six hex digits that tell one jump chain from another, whichever hosts of the fleet are looked at."""
    return sha256(">".join(hop.address for hop in hops).encode()).hexdigest()[:6]


def fleet_id(name: str, chains: Sequence[Sequence[Hop]]) -> str:
    """The first 8 hex digits of sha256 over the fleet's name and its jump chains (sorted, each once)."""
    spelled = sorted({">".join(hop.address for hop in hops) for hops in chains})
    return sha256("\n".join([name, *spelled]).encode()).hexdigest()[:8]
