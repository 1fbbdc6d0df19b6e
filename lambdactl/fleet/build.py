"""From a parsed fleet file to a `Fleet`.

`lambdactl.spec` has checked what dstack checks; here are the checks of what OpenSSH and Ansible are given: safe names
and paths, and one inventory name for each host.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING

from lambdactl.errors import SpecError
from lambdactl.fleet import checks
from lambdactl.fleet.model import HOST_KEY_POLICIES, Fleet, FleetHost, Hop, Overrides, Route, chain_id, fleet_id

if TYPE_CHECKING:
    from lambdactl.spec import FleetSpec, HostSpec, ProxyJump, SSHConfig

_SUFFIXES = re.compile(r"(\.(dstack|fleet|lambda_fleet))?\.ya?ml$")


def fleet_from_spec(spec: FleetSpec, *, path: str | None, overrides: Overrides | None) -> Fleet:
    """See `Fleet.from_spec`."""
    filename = spec.source.filename
    if spec.ssh_config is None:
        raise SpecError(
            "This is the fleet of a backend (Kubernetes): it has no hosts behind SSH, which are needed here; "
            "name a fleet file with ssh_config.",
            filename=filename,
        )
    overrides = Overrides.from_environment() if overrides is None else overrides
    hosts = _Builder(filename, spec.ssh_config, overrides).hosts()
    name = spec.name or name_of_file(path or filename)
    return Fleet(
        name=name,
        id=fleet_id(name, [host.route.hops for host in hosts]),
        hosts=hosts,
        network=spec.ssh_config.network,
        env=spec.env,
        placement=spec.placement,
        path=path,
        host_key_policy=_policy(overrides),
        container_engine=spec.container_engine,
        blocks=spec.blocks,
        when_full=spec.when_full,
    )


def _policy(overrides: Overrides) -> str:
    policy = overrides.host_key_policy or "accept-new"
    if policy not in HOST_KEY_POLICIES:
        allowed = ", ".join(HOST_KEY_POLICIES)
        raise SpecError(f"The host key policy '{policy}' is unknown; use one of {allowed}.")
    return policy


def name_of_file(path: str) -> str:
    """A fleet without a name is named after its file, in the characters that a fleet's name may have."""
    stem = _SUFFIXES.sub("", PurePath(path).name).lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-").lstrip("0123456789-")[:41] or "fleet"


class _Builder:
    """Builds the hosts of one fleet file; what they share (the keys, the default jump chain) is checked once."""

    def __init__(self, filename: str, config: SSHConfig, overrides: Overrides) -> None:
        self.filename = filename
        self.config = config
        self.keys: dict[tuple[str | None, str | None], str | None] = {}
        self.overrides = overrides
        self.shared_hops = self._chain(config.proxy_jump, None)

    def hosts(self) -> tuple[FleetHost, ...]:
        specs = self.config.hosts
        routes = [self._route(spec) for spec in specs]
        self._check_duplicates(specs, routes)
        names = _inventory_names(routes)
        self._check_names(specs, names)
        shared_addresses = Counter((route.target.hostname, route.target.port) for route in routes)
        return tuple(
            FleetHost(
                name=name,
                index=index,
                route=route,
                internal_ip=spec.internal_ip,
                blocks=spec.blocks,
                line=spec.line,
                host_key_alias=name if shared_addresses[route.target.hostname, route.target.port] > 1 else None,
            )
            for index, (name, route, spec) in enumerate(zip(names, routes, specs, strict=True))
        )

    def error(self, message: str, line: int | None) -> SpecError:
        return SpecError(message, filename=self.filename, line=line)

    def _route(self, spec: HostSpec) -> Route:
        target = Hop(
            hostname=spec.hostname,
            port=spec.port or self.config.port or 22,
            user=spec.user or self.config.user,
            identity_file=self._key(
                spec.identity_file or self.config.identity_file, self.overrides.identity_file, spec.line
            ),
        )
        self._check_hop(target, "host", spec.line)
        hops = self.shared_hops if spec.proxy_jump is None else self._chain(spec.proxy_jump, spec.line)
        return Route(hops, target)

    def _chain(self, jumps: tuple[ProxyJump, ...], line: int | None) -> tuple[Hop, ...]:
        hops = tuple(
            Hop(
                jump.hostname,
                jump.port,
                jump.user or self.config.user,
                self._key(jump.identity_file, self.overrides.jump_identity_file, line),
            )
            for jump in jumps
        )
        for hop in hops:
            self._check_hop(hop, "jump host", line)
        return hops

    def _check_hop(self, hop: Hop, what: str, line: int | None) -> None:
        if problem := checks.hostname_problem(hop.hostname):
            raise self.error(f"The {what} {hop.hostname!r} {problem}.", line)
        if hop.user is not None and (problem := checks.user_problem(hop.user)):
            raise self.error(f"The user {hop.user!r} of the {what} '{hop.hostname}' {problem}.", line)

    def _key(self, written: str | None, override: str | None, line: int | None) -> str | None:
        """The key to use; checked and made absolute once for all hosts that share it."""
        if (written, override) in self.keys:
            return self.keys[written, override]
        key = override or written
        if key is not None and not (override and checks.is_variable(key)) and (problem := checks.key_path_problem(key)):
            raise self.error(f"The identity_file {key!r} {problem}.", line)
        key = None if key is None or key == checks.NO_KEY else checks.absolute_key_path(key)
        self.keys[written, override] = key
        return key

    def _check_duplicates(self, specs: tuple[HostSpec, ...], routes: list[Route]) -> None:
        seen: dict[tuple[str, int, tuple[str, ...]], int] = {}
        for spec, route in zip(specs, routes, strict=True):
            identity = (route.target.hostname, route.target.port, tuple(hop.address for hop in route.hops))
            if identity in seen:
                raise self.error(
                    f"The host '{spec.hostname}' port {route.target.port} is listed twice, "
                    f"in line {seen[identity]} and in line {spec.line}; remove one of them.",
                    spec.line,
                )
            seen[identity] = spec.line

    def _check_names(self, specs: tuple[HostSpec, ...], names: list[str]) -> None:
        seen: dict[str, int] = {}
        for spec, name in zip(specs, names, strict=True):
            if name in seen:
                raise self.error(
                    f"The hosts in line {seen[name]} and in line {spec.line} would both be called '{name}' "
                    "in the inventory; write one of them with another name for the same machine.",
                    spec.line,
                )
            seen[name] = spec.line


_LABELS: tuple[Callable[[Route], str], ...] = (
    lambda route: str(route.target.port),
    lambda route: "-".join(hop.hostname for hop in route.hops) or "direct",
    lambda route: chain_id(route.hops),
)
"""What is appended to a name that stands for several hosts, until it tells them apart."""


def _inventory_names(routes: list[Route]) -> list[str]:
    """A host's own name; with its port, then its jump hosts, where the name alone stands for several hosts."""
    names = [route.target.hostname for route in routes]
    for label in _LABELS:
        if len(set(names)) == len(names):
            break
        labels: dict[str, set[str]] = defaultdict(set)
        for name, route in zip(names, routes, strict=True):
            labels[name].add(label(route))
        names = [
            f"{name}-{label(route)}" if len(labels[name]) > 1 else name
            for name, route in zip(names, routes, strict=True)
        ]
    return names
