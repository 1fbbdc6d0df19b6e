"""SSH to a running rank: which pod, by which key, and through what.

Through the jump pod where `proxy_jump` is configured, else through the API's port-forward, which
``python -m lambdactl.backends.kubernetes.forward`` gives to OpenSSH as a ProxyCommand.
"""

from __future__ import annotations

import base64
import getpass
import ipaddress
import json
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdactl.errors import CapacityError, SpecError

from . import jump
from .labels import RUN, RUN_FACTS, RUN_ID, is_part, rank_of
from .resources import JOBS, PODS, SECRETS

if TYPE_CHECKING:
    from .client import Client
    from .config import Target

OWN_KEY = "jump_ed25519"
STRICT = ("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes")


@dataclass(frozen=True, slots=True)
class RankAddress:
    """A rank that can be logged in to: its pod, its sshd's address, and the run's keys."""

    run: str
    run_id: str
    rank: int
    pod: str
    ip: str
    port: int
    private_key: str
    host_key: str


async def find_rank(client: Client, key: str, rank: int) -> RankAddress | None:
    """A run's rank by the run's name or id; None where this cluster has no such run.

    Raises:
        SpecError: the run has no such rank.
        CapacityError: the rank does not run, or has no sshd.
    """
    jobs = [job for job in (await client.list(JOBS, labels=RUN)).items if not is_part(job)]
    found = [job for job in jobs if key in (job["metadata"]["labels"].get(RUN), job["metadata"]["labels"].get(RUN_ID))]
    if not found:
        return None
    job = max(found, key=lambda item: str(item["metadata"].get("creationTimestamp")))
    marks = job["metadata"]["labels"]
    nodes = int(_facts(job).get("nodes") or 1)
    if not 0 <= rank < nodes:
        raise SpecError(f"the run {marks[RUN]} has no rank {rank}; its ranks are 0 to {nodes - 1}.")
    pod = await _pod(client, marks[RUN], marks[RUN_ID], rank)
    keys = await run_keys(client, job)
    if keys is None:
        raise CapacityError(f"the run {marks[RUN]} takes no SSH: it was started without keys for it.")
    port, private_key, host_key = keys
    name, ip = pod["metadata"]["name"], str(ipaddress.ip_address(pod["status"]["podIP"]))
    return RankAddress(marks[RUN], marks[RUN_ID], rank, name, ip, port, private_key, host_key)


async def run_keys(client: Client, job: dict[str, Any]) -> tuple[int, str, str] | None:
    """The port of a run's sshds, its private key and its public host key; None where it takes no SSH."""
    port = int(_facts(job).get("ssh_port") or 0)
    secret = await client.find(SECRETS, f"{job['metadata']['labels'][RUN]}-ssh") if port else None
    if secret is None:
        return None
    data = {name: base64.b64decode(text).decode() for name, text in (secret.get("data") or {}).items()}
    return port, data["id_ed25519"], " ".join(data["host_ed25519.pub"].split()[:2])


def _facts(job: dict[str, Any]) -> dict[str, Any]:
    try:
        facts = json.loads((job["metadata"].get("annotations") or {}).get(RUN_FACTS, "{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


async def _pod(client: Client, run: str, run_id: str, rank: int) -> dict[str, Any]:
    pods = [pod for pod in (await client.list(PODS, labels=f"{RUN_ID}={run_id}")).items if rank_of(pod) == rank]
    for pod in pods:
        if (pod.get("status") or {}).get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]:
            return pod
    phase = (pods[-1].get("status") or {}).get("phase", "Pending") if pods else "not there"
    raise CapacityError(f"rank {rank} of {run} does not run (its pod is {phase}); see `lambdactl ps`.")


@dataclass(frozen=True, slots=True)
class Files:
    """Private files that OpenSSH reads; they lie below the state folder, one folder a run."""

    folder: Path

    @property
    def identity(self) -> Path:
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"


def write_files(folder: Path, private_key: str, known: str) -> Files:
    """Write a key (mode 0600) and a known_hosts line; the folder's name comes from a label."""
    if not folder.name.replace("-", "").isalnum():
        raise SpecError(f"the run's id is '{folder.name}', which is none of lambdactl's.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = Files(folder)
    for path, text in ((files.identity, private_key), (files.known_hosts, known)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    return files


def own_key(folder: Path) -> tuple[Path, str]:
    """This user's key for jump pods (made at its first use): the private file, and the public text."""
    import asyncssh

    path = folder / OWN_KEY
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = asyncssh.generate_private_key("ssh-ed25519", comment=who())
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.export_private_key("openssh"))
    public = asyncssh.read_private_key(str(path)).export_public_key("openssh").decode()
    return path, " ".join(public.split()[:2])


def who() -> str:
    """The user, as lists of keys name them."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


async def ssh_argv(client: Client, rank: RankAddress, command: Sequence[str], folder: Path) -> list[str]:
    """OpenSSH's command line to a rank; makes the jump pod where one is configured.

    Args:
        client: the cluster.
        rank: the rank.
        command: what to run there; empty is a login.
        folder: where keys and known_hosts are kept.

    Raises:
        SpecError, CapacityError, APIError: the jump pod cannot be used.
    """
    files = write_files(folder / rank.run_id, rank.private_key, f"{rank.run_id} {rank.host_key}\n")
    proxy = await rank_proxy(client, rank, folder)
    host = ("-o", f"HostKeyAlias={rank.run_id}", "-o", f"UserKnownHostsFile={files.known_hosts}")
    argv = ["ssh", "-F", "none", "-i", str(files.identity), *STRICT, *host, "-o", f"ProxyCommand={proxy}"]
    return [*argv, "-p", str(rank.port), "-l", "root", rank.ip, *command]


async def rank_proxy(client: Client, rank: RankAddress, folder: Path) -> str:
    """The ProxyCommand to a rank; makes the jump pod where one is configured. Raises as `ssh_argv`."""
    if client.target.proxy_jump is None:
        return forward_command(client.target, rank.pod, rank.port)
    return await _through_jump(client, folder)


def forward_command(target: Target, pod: str, port: int) -> str:
    """The ProxyCommand that is the API's port-forward."""
    words = [
        sys.executable,
        "-m",
        "lambdactl.backends.kubernetes.forward",
        target.name,
        target.namespace,
        pod,
        str(port),
    ]
    return " ".join(shlex.quote(word).replace("%", "%%") for word in words)


async def _through_jump(client: Client, folder: Path) -> str:
    identity, public = own_key(folder)
    return _jump_command(client, await jump.reached(await jump.ensure(client, public, who())), identity)


async def existing_jump(client: Client, folder: Path) -> str | None:
    """The ProxyCommand through a jump pod that is there and knows this user; nothing is made."""
    import importlib.util

    if client.target.proxy_jump is None or importlib.util.find_spec("asyncssh") is None:
        return None
    if not (folder / OWN_KEY).exists():
        return None
    identity, public = own_key(folder)
    ready = await jump.existing(client, public)
    return None if ready is None else _jump_command(client, ready, identity)


def _jump_command(client: Client, ready: jump.Jump, identity: Path) -> str:
    folder = identity.parent
    alias = f"{jump.NAME}.{client.namespace}.{client.target.name}"
    known = folder / f"known_hosts.{''.join(c if c.isalnum() else '_' for c in alias)}"
    known.write_text(f"{alias} {' '.join(ready.host_key.split()[:2])}\n")
    host = ("-o", f"HostKeyAlias={alias}", "-o", f"UserKnownHostsFile={known}")
    argv = ["ssh", "-F", "none", "-i", str(identity), *STRICT, *host, "-p", str(ready.port), "-l", "root"]
    return " ".join(shlex.quote(word) for word in [*argv, "-W", "%h:%p", ready.hostname])
