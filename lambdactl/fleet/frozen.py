"""From the variables that Ansible has of each host back to a `Fleet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lambdactl.errors import SpecError
from lambdactl.fleet.model import Fleet, FleetHost, Hop, Route

_OVERRIDES = {
    "ansible_host": ("hostname", str),
    "ansible_user": ("user", str),
    "ansible_port": ("port", int),
    "ansible_ssh_private_key_file": ("identity_file", str),
}
"""Ansible's connection variables, which users may set on top of the inventory, and what they change of the target."""


def fleet_from_hostvars(hostvars: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> Fleet:
    """See `Fleet.from_hostvars`."""
    if not order:
        raise SpecError("The play has no hosts; name the fleet's group or a pattern that matches some of its hosts.")
    for name in order:
        if "lambdactl_route" not in hostvars[name]:
            raise SpecError(f"The host '{name}' does not come from a fleet file; give ansible the fleet file with -i.")
    first = hostvars[order[0]]
    for name in order:
        if hostvars[name]["lambdactl_fleet_id"] != first["lambdactl_fleet_id"]:
            raise SpecError(
                f"The hosts '{order[0]}' and '{name}' belong to two fleets; limit the play to one with --limit."
            )
    hosts = sorted((_host(name, hostvars[name]) for name in order), key=lambda host: host.index)
    network = first.get("lambdactl_network")
    return Fleet(
        name=str(first["lambdactl_fleet"]),
        id=str(first["lambdactl_fleet_id"]),
        hosts=tuple(hosts),
        network=None if network is None else str(network),
        host_key_policy=str(first["lambdactl_route"]["host_key_policy"]),
        when_full=str(first.get("lambdactl_when_full") or "refuse"),
    )


def _host(name: str, variables: Mapping[str, Any]) -> FleetHost:
    route = variables["lambdactl_route"]
    changes = {
        field: convert(variables[variable])
        for variable, (field, convert) in _OVERRIDES.items()
        if variables.get(variable) not in (None, "")
    }
    internal_ip = variables.get("lambdactl_internal_ip")
    alias = route["host_key_alias"]
    return FleetHost(
        name=str(name),
        index=int(variables["lambdactl_rank_order"]),
        route=Route(tuple(_hop(hop) for hop in route["hops"]), replace(_hop(route["target"]), **changes)),
        internal_ip=None if internal_ip is None else str(internal_ip),
        blocks=variables.get("lambdactl_blocks"),
        host_key_alias=None if alias is None else str(alias),
    )


def _hop(data: Mapping[str, Any]) -> Hop:
    user, key = data["user"], data["identity_file"]
    return Hop(
        hostname=str(data["hostname"]),
        port=int(data["port"]),
        user=None if user is None else str(user),
        identity_file=None if key is None else str(key),
    )
