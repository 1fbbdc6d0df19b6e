"""The docker command line: argv lists in, text or parsed JSON out, one sentence when it fails."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from lambdactl.errors import LambdactlError

LABEL = "lambdactl.sandbox"
"""The label of everything that a sandbox makes; its value is the sandbox's name."""

ROLE_LABEL = f"{LABEL}.role"
"""``jump``, ``worker`` or ``network``."""

SUBNET_LABEL = f"{LABEL}.subnet"
"""The subnet that a container's fixed address is in; it outlives the network."""


class DockerError(LambdactlError):
    """A docker command failed, or no Docker engine answers."""


def docker(
    *argv: str,
    stdin: str | None = None,
    timeout: float = 120,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs ``docker ARGV`` and returns its result.

    Args:
        argv: the words after ``docker``.
        stdin: text for its standard input; nothing is inherited from the caller.
        timeout: seconds until the command is given up.
        check: raise when it exits non-zero.
        env: the whole environment, when not the caller's.

    Raises:
        DockerError: docker is not installed, took too long, or (with ``check``) failed.
    """
    feed: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        done = subprocess.run(
            ["docker", *argv], capture_output=True, text=True, errors="replace", timeout=timeout, env=env, **feed
        )
    except FileNotFoundError:
        raise DockerError(
            "The docker command is not installed.", remedy="Install Docker, or run scripts/bootstrap demo."
        ) from None
    except subprocess.TimeoutExpired:
        raise DockerError(
            f"docker {argv[0]} did not end within {timeout:g} s.",
            remedy="Is the Docker engine healthy? Try: docker info.",
        ) from None
    if check and done.returncode != 0:
        raise DockerError(f"docker {' '.join(argv[:2])} failed: {last_line(done.stderr) or last_line(done.stdout)}")
    return done


def last_line(text: str) -> str:
    """The last line that says something; Docker puts the reason there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error response from daemon: ") if lines else ""


def require_engine() -> None:
    """Raises DockerError, with what to do, unless a Docker engine answers."""
    done = docker("version", "--format", "{{.Server.Version}}", timeout=20, check=False)
    if done.returncode == 0:
        return
    reason = last_line(done.stderr)
    if "permission denied" in reason.lower():
        remedy = "Add yourself to the group docker (sudo usermod -aG docker $USER, then log in again), or use sudo."
    else:
        remedy = "Start it (sudo systemctl start docker), or run scripts/bootstrap demo, which installs and starts one."
    raise DockerError(f"No Docker engine answers: {reason}.", remedy=remedy)


def inspect(kind: str, names: Iterable[str]) -> list[dict[str, Any]]:
    """``docker KIND inspect`` of those that exist; the others are left out."""
    names = list(names)
    if not names:
        return []
    done = docker(kind, "inspect", *names, check=False)
    found = json.loads(done.stdout or "[]")
    return [item for item in found if isinstance(item, dict)]


def labelled(kind: str, sandbox: str) -> list[dict[str, Any]]:
    """Every container or network of a sandbox, as ``docker inspect`` shows it.

    Args:
        kind: ``container`` or ``network``.
        sandbox: the sandbox's name.
    """
    everything = ["--all"] if kind == "container" else []
    listed = docker(kind, "ls", *everything, "--quiet", "--no-trunc", "--filter", f"label={LABEL}={sandbox}")
    return inspect(kind, listed.stdout.split())


def label_args(labels: Mapping[str, str]) -> list[str]:
    """``--label k=v`` for each label."""
    return [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
