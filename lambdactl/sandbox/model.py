"""What a sandbox is: its nodes, its files, and what can be done to a node."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lambdactl.errors import LambdactlError
from lambdactl.sandbox.docker import docker

Progress = Callable[[str], None]
"""Called with one line per step; the command line prints them, tests ignore them."""

JUMP = "jump"
USER = "ubuntu"


class SandboxError(LambdactlError):
    """The sandbox cannot be made, repaired or used; the message names the node and the reason."""


@dataclass(frozen=True)
class Node:
    """A container of the sandbox.

    Attributes:
        name: the host name inside the sandbox: ``jump``, ``worker-0``, ...
        container: the container's name in Docker.
        id: the container's id in Docker.
        address: its address in the sandbox's network, the same over restarts.
    """

    name: str
    container: str
    id: str
    address: str


@dataclass(frozen=True)
class Sandbox:
    """A sandbox that is up.

    Attributes:
        name: the sandbox's name.
        jump: the jump host.
        jump_address: where this machine reaches the jump host's sshd.
        jump_port: and the port.
        workers: the workers in rank order.
        network: the Docker network's name.
        subnet: its subnet, as Docker chose it.
        state_dir: the sandbox's own folder (0700): key pair and fleet file.
        fleet_file: the fleet file for ``lambdactl apply -f``.
        identity_file: the private key that every node accepts for the user ``ubuntu``.
    """

    name: str
    jump: Node
    jump_address: str
    jump_port: int
    workers: tuple[Node, ...]
    network: str
    subnet: str
    state_dir: Path
    fleet_file: Path
    identity_file: Path

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The jump host and the workers."""
        return (self.jump, *self.workers)

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            SandboxError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise SandboxError(f"Sandbox {self.name} has no node {name}; it has {known}.")

    def exec(
        self,
        node: str,
        command: str | Sequence[str],
        *,
        user: str = "root",
        stdin: str | None = None,
        timeout: float = 120,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in a node past SSH, through Docker.

        Args:
            node: ``jump``, ``worker-0``, ...
            command: an argv list, or a line for ``sh -c``.
            user: who runs it.
            stdin: text for its standard input.
            timeout: seconds until it is given up; the command itself is not killed by that.
            check: raise DockerError when it exits non-zero.
        """
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        interactive = [] if stdin is None else ["--interactive"]
        container = self.node(node).container
        return docker("exec", *interactive, "--user", user, container, *argv, stdin=stdin, timeout=timeout, check=check)

    def stop(self, node: str) -> None:
        """Shuts a node down in order; ``start`` boots it again."""
        docker("stop", self.node(node).container)

    def start(self, node: str) -> None:
        """Boots a node that is down; does not wait for its sshd (``sandbox.up`` does)."""
        docker("start", self.node(node).container)

    def restart(self, node: str) -> None:
        """Reboots a node; does not wait for its sshd."""
        docker("restart", self.node(node).container)

    def kill(self, node: str) -> None:
        """Pulls a node's plug: SIGKILL to everything in it."""
        docker("kill", "--signal", "KILL", self.node(node).container)

    def pause(self, node: str) -> None:
        """Freezes a node: connections stay open, nothing answers."""
        docker("pause", self.node(node).container)

    def unpause(self, node: str) -> None:
        """Thaws a paused node."""
        docker("unpause", self.node(node).container)


@dataclass(frozen=True)
class NodeStatus:
    """How a node is.

    Attributes:
        name: ``jump``, ``worker-0``, ...
        state: ``ready``, or what Docker says (``exited``, ``paused``, ...), ``missing``, or ``not ready``.
        address: its address in the sandbox's network, when it has one.
        reason: why it is not ready; empty when it is.
    """

    name: str
    state: str
    address: str
    reason: str


@dataclass(frozen=True)
class SandboxStatus:
    """How a sandbox is; ``exists`` is False when Docker knows nothing of it."""

    name: str
    exists: bool
    nodes: tuple[NodeStatus, ...]
    jump_port: int | None
    subnet: str
    fleet_file: Path | None

    @property
    def ready(self) -> bool:
        """True when every node is ready and the fleet file is there."""
        return self.exists and self.fleet_file is not None and all(node.state == "ready" for node in self.nodes)
