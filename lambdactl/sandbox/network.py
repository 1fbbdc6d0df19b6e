"""A sandbox's network: Docker chooses the subnet, the nodes' addresses in it are fixed."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lambdactl.sandbox.docker import DockerError, docker, label_args, labelled
from lambdactl.sandbox.model import JUMP, SandboxError

TRIES = 5


@dataclass(frozen=True)
class Network:
    """A Docker network.

    Attributes:
        name: its name in Docker.
        id: its id in Docker; a network made again has another one.
        subnet: e.g. ``172.18.0.0/16``.
    """

    name: str
    id: str
    subnet: str

    def address(self, node: str) -> str:
        """A node's fixed address: the gateway has the first one, the jump host the second, then the workers follow.

        Fixed, because Docker otherwise gives the addresses anew in the order of starting, and no real node changes
        its address when it reboots.
        """
        offset = 2 if node == JUMP else 3 + int(node.removeprefix("worker-"))
        subnet = ipaddress.ip_network(self.subnet)
        if offset >= subnet.num_addresses - 1:
            raise SandboxError(
                f"The network that Docker chose, {self.subnet}, has no room for {node}.",
                remedy="Use fewer workers, or larger default-address-pools in Docker's daemon.json.",
            )
        return str(subnet[offset])


def network_name(sandbox: str) -> str:
    """The name of a sandbox's network in Docker."""
    return f"lambdactl-{sandbox}"


def find(sandbox: str) -> Network | None:
    """The sandbox's network, None when there is none."""
    found = labelled("network", sandbox)
    return parse(found[0]) if found else None


def parse(inspected: Mapping[str, Any]) -> Network:
    """A network as ``docker network inspect`` shows it."""
    return Network(inspected["Name"], inspected["Id"], inspected["IPAM"]["Config"][0]["Subnet"])


def create(sandbox: str, labels: Mapping[str, str], *, subnet: str | None = None) -> Network:
    """Makes the network.

    Docker takes fixed addresses only in a network whose subnet was given. So Docker is asked for a network of its own
    choice, which is then made again with that subnet.

    Args:
        sandbox: the sandbox's name.
        labels: the labels that it gets.
        subnet: tried first: that of the lost network of containers that are still there.
    """
    name = network_name(sandbox)
    failure: DockerError | None = None
    for wanted in (subnet, *[None] * TRIES):
        try:
            chosen = wanted or _docker_choice(name, labels)
            docker("network", "create", *label_args(labels), "--subnet", chosen, name)
        except DockerError as error:  # another network took the subnet meanwhile
            failure = error
            continue
        made = find(sandbox)
        if made is not None:
            return made
    raise failure or SandboxError(f"Docker made no network for the sandbox {sandbox}.")


def _docker_choice(name: str, labels: Mapping[str, str]) -> str:
    docker("network", "create", *label_args(labels), name)
    try:
        chosen = docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Subnet}}", name)
    finally:
        docker("network", "rm", name)
    return chosen.stdout.strip()
