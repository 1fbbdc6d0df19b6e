"""What the containers of a run find under /lambdactl, and their environment: a ConfigMap and Secrets."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from .archive import items, listing
from .model import PATIENCE, KubeRun, metadata, too_large
from .scripts import of_rank, scripts

BASE = "/lambdactl"
LIMIT = 1 << 20


def files_name(run_name: str) -> str:
    """The ConfigMap's name."""
    return f"{run_name}-files"


def env_name(run_name: str) -> str:
    """The name of the Secret that holds the user's variables."""
    return f"{run_name}-env"


def keys_name(run_name: str) -> str:
    """The name of the Secret that holds the run's SSH keys."""
    return f"{run_name}-ssh"


def registry_name(run_name: str) -> str:
    """The name of the Secret that holds the login of the image's registry."""
    return f"{run_name}-registry"


def prober_name(run_name: str) -> str:
    """The name of the Secret that holds what a service's probes ask."""
    return f"{run_name}-probes"


def settings(run: KubeRun) -> str:
    """The entrypoint's settings, as assignments of a POSIX shell."""
    task = run.task
    values = {
        "run_id": run.run_id,
        "run_name": run.run_name,
        "nodes": run.nodes,
        "signal": task.stop_signal.removeprefix("SIG"),
        "grace": run.stop_grace,
        "shell": _shell(run),
        "dir": task.working_dir or "",
        "user": named_user(run) or "",
        "ssh": run.ssh,
        "port": run.ssh_port,
        "image": run.image,
        "patience": PATIENCE,
        "repo": run.content.repo.path if run.content.repo is not None else "",
        "util_min": task.utilization_policy.min_gpu_utilization if task.utilization_policy else "",
        "util_window": task.utilization_policy.time_window if task.utilization_policy else "",
        "repo_id": run.content.repo.repo_id if run.content.repo is not None else "",
        **({"alone": "yes"} if run.alone else {}),
        **({"dev": "yes"} if run.dev is not None else {}),
    }
    return "".join(f"lambdactl_{name}={shlex.quote(str(value))}\n" for name, value in values.items())


def _shell(run: KubeRun) -> str:
    """dstack's rule: sh with an image of the user's, else bash where there is one (which only the container knows)."""
    shell = "sh" if run.task.entrypoint else run.task.shell or ("sh" if run.task.image else "")
    return {"sh": "/bin/sh", "bash": "bash"}.get(shell, shell)


def named_user(run: KubeRun) -> str | None:
    """The user where only the image can tell their number; None where numbers do, or none is asked for."""
    user = run.task.user
    if user is None or all(part.isdigit() or part == "root" for part in user.split(":")):
        return None
    return user


def numbered_user(run: KubeRun) -> dict[str, int]:
    """runAsUser and runAsGroup."""
    if named_user(run) is not None:
        return {"runAsUser": 0, "runAsGroup": 0}
    parts = [0 if part == "root" else int(part) for part in (run.task.user or "").split(":") if part]
    return dict(zip(("runAsUser", "runAsGroup"), parts, strict=False))


def ranks(run: KubeRun) -> str:
    """One line a rank: the job's id, the GPUs, and the file of its commands."""
    return "".join(f"{run.job_id(rank)} {run.gpus_of(rank)} {of_rank(run.task, rank)}\n" for rank in range(run.nodes))


def container_file(name: str) -> str:
    """A shell program of the container's side."""
    return files("lambdactl.backends.kubernetes").joinpath("container", name).read_text(encoding="utf-8")


def config_map(run: KubeRun, owner: Mapping[str, Any]) -> dict[str, Any]:
    """Entrypoint, settings and script.

    Raises:
        SpecError: the commands are too large for Kubernetes.
    """
    data = {
        "entrypoint": container_file("entrypoint.sh"),
        "login": container_file("login.sh"),
        "settings": settings(run),
        "ranks": ranks(run),
        **scripts(run.task),
    }
    if run.content.blobs:
        data |= {"receive": container_file("receive.sh"), "content": listing(items(run.content))}
    if (size := sum(len(text.encode()) for text in data.values())) > LIMIT - 4096:
        raise too_large("the commands", size, run)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(run, files_name(run.run_name), owner),
        "data": data,
    }


def secrets(run: KubeRun, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The user's variables, the SSH keys, the registry's login: each only where there is one.

    Raises:
        SpecError: the variables are too large for Kubernetes.
    """
    found = []
    if run.env:
        if (size := sum(len(name) + len(value.encode()) for name, value in run.env.items())) > LIMIT - 4096:
            raise too_large("the environment variables", size, run)
        found.append(_secret(run, env_name(run.run_name), "Opaque", run.env, owner))
    if run.login is not None and run.host is not None:
        keys = {
            "id_ed25519": run.login.private,
            "id_ed25519.pub": run.login.public,
            "host_ed25519": run.host.private,
            "host_ed25519.pub": run.host.public,
        }
        found.append(_secret(run, keys_name(run.run_name), "Opaque", keys, owner))
    if run.task.registry_auth is not None:
        kind = "kubernetes.io/dockerconfigjson"
        found.append(_secret(run, registry_name(run.run_name), kind, {".dockerconfigjson": _docker_config(run)}, owner))
    return found


def _secret(run: KubeRun, name: str, kind: str, values: Mapping[str, str], owner: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": kind,
        "immutable": True,
        "metadata": metadata(run, name, owner),
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    }


def _docker_config(run: KubeRun) -> str:
    auth = run.task.registry_auth
    assert auth is not None  # noqa: S101 - the caller's condition
    pair = base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()
    login = {"username": auth.username, "password": auth.password, "auth": pair}
    return json.dumps({"auths": {registry_of(run.image): login}})


def registry_of(image: str) -> str:
    """The registry's key in a Docker configuration: the image's host, or Docker Hub's old name."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first
    return "https://index.docker.io/v1/"
