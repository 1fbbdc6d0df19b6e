"""SSH from inside a container to the run's other nodes: the node's own key and known hosts, as files to be mounted.

The image needs an ssh client for it, never a server: on the peer, the key's forced command enters the peer's container
of the same run (shell.py).
"""

from __future__ import annotations

import os

from . import paths
from .env import RUN_VARIABLE
from .errors import NodeError
from .launch import find_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .spec import Job

FOLDER = "/dstack/ssh"
CONFIG, KEY, KNOWN_HOSTS = f"{FOLDER}/config", f"{FOLDER}/key", f"{FOLDER}/known_hosts"
# Read by the stock client of Debian and Ubuntu, so that a plain `ssh ADDRESS` works, too.
SYSTEM_CONFIG = "/etc/ssh/ssh_config.d/50-lambdactl.conf"
# ssh refuses a private key that others may read if it is the caller's own; that of a stranger it just reads. So one
# file serves whatever user the container has.
STRANGER = 0x7FFF_FFF0


def config(job: Job) -> str:
    """The client's configuration: every node of the run by its address and its name."""
    lines = []
    for node in job.nodes:
        lines += [
            f"Host {node.ip} {node.name}" if node.name != node.ip else f"Host {node.ip}",
            f"    HostName {node.ip}",
            f"    User {node.ssh_user}",
            f"    Port {node.ssh_port}",
            f"    IdentityFile {KEY}",
            "    IdentitiesOnly yes",
            f"    UserKnownHostsFile {KNOWN_HOSTS}",
            f"    GlobalKnownHostsFile {KNOWN_HOSTS}",
            "    StrictHostKeyChecking yes",
            "    UpdateHostKeys no",
            f"    SendEnv {RUN_VARIABLE}",
        ]
    return "\n".join(lines) + "\n"


def _private_key(job: Job) -> bytes:
    try:
        path = f"{find_user(job.node.ssh_user).home}/.ssh/lambdactl_ed25519"
        with open(path, "rb") as file:
            return file.read()
    except (NodeError, OSError):  # no node-to-node SSH here: ssh in the container will say so
        return b""


def prepare(job: Job, folder: str) -> list[tuple[str, str]]:
    """Write the files into a private folder of the run: [(path here, path in the container)], nothing for one node."""
    if not job.multi_node:
        return []
    os.makedirs(folder, mode=0o700, exist_ok=True)
    known_hosts = paths.read_text(paths.ROOT + "/etc/lambdactl/known_hosts")
    files = {"config": config(job).encode(), "known_hosts": known_hosts.encode(), "key": _private_key(job)}
    for name, data in files.items():
        paths.write_atomic(f"{folder}/{name}", data, 0o444)
    if os.geteuid() == 0:
        os.chown(f"{folder}/key", STRANGER, STRANGER)
    targets = (("config", CONFIG), ("config", SYSTEM_CONFIG), ("known_hosts", KNOWN_HOSTS), ("key", KEY))
    return [(f"{folder}/{name}", target) for name, target in targets]
