"""A sandbox's containers: made, brought to run, and asked whether they are ready."""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdactl.sandbox.docker import DockerError, docker, inspect, label_args, last_line
from lambdactl.sandbox.model import JUMP, SandboxError
from lambdactl.sandbox.network import Network

JUMP_ADDRESS = "127.0.0.1"
# Below the range from which systems take the ports of outgoing connections.
FIRST_PORT, PORTS = 20000, 10000
PORT_TRIES = 20

# systemd mounts and makes cgroups (SYS_ADMIN), the worker's firewall and MPI's interfaces want NET_ADMIN, debuggers and
# Open MPI's single-copy transfers SYS_PTRACE. Not --privileged: the machine's devices stay out of reach.
RUN_OPTIONS = (
    "--tty",  # systemd's boot messages are then in `docker logs`
    "--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE",
    "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
    "--cgroupns", "private",
    "--tmpfs", "/run:mode=755", "--tmpfs", "/run/lock",
    "--shm-size", "1g",  # Docker's 64 MB are too little for MPI between the ranks of one node
    "--stop-timeout", "20",
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """A container as it should be.

    Attributes:
        node: ``jump`` or ``worker-N``.
        container: its name in Docker.
        image: what it is made from.
        network: where it lives.
        labels: its labels.
    """

    node: str
    container: str
    image: str
    network: Network
    labels: Mapping[str, str]


def container_name(sandbox: str, node: str) -> str:
    """A node's container's name in Docker."""
    return f"lambdactl-{sandbox}-{node}"


def find(container: str) -> dict[str, Any] | None:
    """A container as ``docker inspect`` shows it."""
    found = inspect("container", [container])
    return found[0] if found else None


def published_port(inspected: Mapping[str, Any]) -> int | None:
    """The port of this machine that leads to the container's sshd."""
    bound = (inspected["HostConfig"].get("PortBindings") or {}).get("22/tcp") or []
    return int(bound[0]["HostPort"]) if bound else None


def create(wanted: Wanted, files: Mapping[str, Path]) -> None:
    """Makes a container, with its files, and starts it."""
    if wanted.node != JUMP:
        _create(wanted, [])
        copy_files(wanted.container, files)
        docker("start", wanted.container)
        return
    failure: DockerError | None = None
    first = zlib.crc32(wanted.container.encode())
    for port in (FIRST_PORT + (first + attempt) % PORTS for attempt in range(PORTS)):
        if not _port_is_free(port):
            continue
        _create(wanted, ["--publish", f"{JUMP_ADDRESS}:{port}:22"])
        try:
            docker("start", wanted.container)
        except DockerError as error:
            docker("rm", "--force", "--volumes", wanted.container)
            if not any(word in str(error) for word in ("already allocated", "already in use")):
                raise
            failure = error  # somebody took the port meanwhile
            continue
        return
    raise failure or SandboxError(f"No port between {FIRST_PORT} and {FIRST_PORT + PORTS} is free for the jump host.")


def _create(wanted: Wanted, publish: list[str]) -> None:
    docker(
        "create", "--name", wanted.container, "--hostname", wanted.node,
        "--network", wanted.network.name, "--network-alias", wanted.node, "--ip", wanted.network.address(wanted.node),
        *label_args(wanted.labels), *RUN_OPTIONS, *publish, wanted.image,
    )  # fmt: skip


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Docker's own proxy does: a port whose last connections are still fading away counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((JUMP_ADDRESS, port))
        except OSError:
            return False
    return True


def copy_files(container: str, files: Mapping[str, Path]) -> None:
    """Copies files into a container, with their modes."""
    for target, source in files.items():
        docker("cp", "--follow-link", str(source), f"{container}:{target}")


def revive(wanted: Wanted, inspected: Mapping[str, Any]) -> str:
    """Brings an existing container to run in its network; returns what was done, empty when nothing had to be."""
    state = inspected["State"]["Status"]
    attached = (inspected["NetworkSettings"]["Networks"] or {}).get(wanted.network.name) or {}
    # A stopped container keeps the id of the network that it was last in.
    if attached.get("NetworkID", "") not in ("", wanted.network.id) or not attached:
        _reconnect(wanted)
        docker("restart" if state == "running" else "start", wanted.container)
        return "connected to the network again"
    if state == "paused":
        docker("unpause", wanted.container)
        return "unpaused"
    if state in ("exited", "created"):
        docker("start", wanted.container)
        return "started"
    return ""


def _reconnect(wanted: Wanted) -> None:
    docker("network", "disconnect", "--force", wanted.network.name, wanted.container, check=False)
    address = wanted.network.address(wanted.node)
    docker("network", "connect", "--alias", wanted.node, "--ip", address, wanted.network.name, wanted.container)


def trouble(container: str, public_key: str, timeout: float) -> str:
    """Waits until a node's systemd is up and its sshd answers; returns why not, empty when it does.

    Installs the sandbox's public key for the user when it is not there.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            left = max(1.0, deadline - time.monotonic())
            argv = ["exec", "--interactive", container, "/usr/local/sbin/sandbox-ready", f"{left:.0f}"]
            done = docker(*argv, stdin=public_key + "\n", timeout=timeout + 10, check=False)
        except DockerError as error:
            return str(error)
        if done.returncode == 0:
            return ""
        reason = last_line(done.stderr) or last_line(done.stdout) or f"exit code {done.returncode}"
        found = find(container)
        if found is None:
            return "its container is gone"
        if found["State"]["Status"] != "running":
            return f"its container is {found['State']['Status']} (exit code {found['State']['ExitCode']})"
        if time.monotonic() >= deadline or done.returncode == 1:
            return reason
        time.sleep(0.2)


def journal(container: str, lines: int = 15) -> str:
    """The last lines that a node said: its journal, or the console when it has none any more."""
    said = docker(
        "exec", container, "journalctl", "--no-pager", "--quiet", "--lines", str(lines), check=False, timeout=20
    )
    if said.returncode == 0 and said.stdout.strip():
        return said.stdout.rstrip()
    console = docker("logs", "--tail", str(lines), container, check=False, timeout=20)
    return (console.stdout + console.stderr).rstrip()


def sshd_answers(port: int, timeout: float) -> bool:
    """True when an sshd's greeting comes through the jump host's published port within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((JUMP_ADDRESS, port), timeout=2) as connection:
                if connection.recv(4) == b"SSH-":
                    return True
        except OSError:
            pass
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
