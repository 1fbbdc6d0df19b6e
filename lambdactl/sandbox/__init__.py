"""The sandbox: a virtual cluster on this machine, a jump host and N workers as Docker containers.

    from lambdactl import sandbox

    cluster = sandbox.up("default", workers=2, progress=print)
    cluster.fleet_file              # a fleet file in dstack's format, ready for `lambdactl apply -f`
    cluster.exec("worker-0", ["systemctl", "is-system-running"]).stdout
    sandbox.down("default")

Everything that it makes carries the label ``lambdactl.sandbox=<name>``; what exists is always asked of Docker, so that
nothing here can disagree with it. Two sandboxes never share a network, a key or a port.
"""

from __future__ import annotations

from lambdactl.sandbox.cluster import down, status, up
from lambdactl.sandbox.docker import LABEL, DockerError
from lambdactl.sandbox.model import Node, NodeStatus, Sandbox, SandboxError, SandboxStatus

__all__ = [
    "LABEL",
    "DockerError",
    "Node",
    "NodeStatus",
    "Sandbox",
    "SandboxError",
    "SandboxStatus",
    "down",
    "status",
    "up",
]
