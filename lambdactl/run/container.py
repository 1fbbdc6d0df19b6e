"""Tasks in containers on SSH hosts: the job's `container` key, and why a host cannot take such a run.

`image`, or one of `python`, `nvcc`, `docker` with a default image (`LAMBDACTL_IMAGE`, `LAMBDACTL_DOCKER_IMAGE`), makes
a run one in a container. Everything else runs on the hosts themselves.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from lambdactl.errors import SpecError
from lambdactl.fleet.facts import GIB, NodeFacts
from lambdactl.run import groups, interpolate, secrets
from lambdactl.spec import TaskSpec, line_in

ENGINES = ("auto", "docker", "podman")
IMAGE_VARIABLE, DOCKER_IMAGE_VARIABLE = "LAMBDACTL_IMAGE", "LAMBDACTL_DOCKER_IMAGE"
_IMAGE = re.compile(r"[A-Za-z0-9][\w./:@+-]{0,511}", re.ASCII)
# The image is the default one, whose tools are known: as dstack does, a virtual environment by uv.
_DOCKER_SOCKET = "/var/run/docker.sock"


def check_engine(text: str, *, name: str) -> str:
    """The engine's name. Raises SpecError, which calls it `name`, when there is no such engine."""
    if text not in ENGINES:
        raise SpecError(f"{name} is {text!r}; it must be auto, docker or podman.")
    return text


def image_of(task: TaskSpec, environ: Mapping[str, str] = os.environ) -> str | None:
    """The image that a task runs in; None where it runs on the hosts themselves."""
    if task.image:
        return task.image
    if task.docker:
        return environ.get(DOCKER_IMAGE_VARIABLE) or None
    if task.python or task.nvcc:
        return environ.get(IMAGE_VARIABLE) or None
    return None


def container_key(
    task: TaskSpec, env: Mapping[str, str], *, engine: str = "auto", pull_timeout: float | None = None
) -> dict[str, Any] | None:
    """The `container` of a JobSpec (docs/architecture.md), or None.

    Raises:
        SpecError: an image's name, an entrypoint or a login that cannot be.
    """
    image = image_of(task)
    if image is None:
        return None
    _check(task, image)
    auth = interpolate.login(task, env, secrets.get)
    return {
        "engine": engine,
        "image": image,
        "entrypoint": shlex.split(task.entrypoint) if task.entrypoint else None,
        "arguments": list(task.commands) if task.entrypoint else [],
        "user": task.user,
        "working_dir": task.working_dir,
        "privileged": task.privileged or bool(task.docker),
        "socket": bool(task.docker),
        "shm_size": _bytes(task.resources.shm_size),
        "pull_timeout": pull_timeout,
        "registry_auth": auth and {"username": auth.username, "password": auth.password},
    }


def container_of(task: TaskSpec, rank: int, container: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The run's container as one rank has it: a group's nodes have what the group asks for."""
    found = groups.of_rank(task, rank)
    if container is None or found is None:
        return container
    return {**container, "shm_size": _bytes(found[0].resources.shm_size)}


def _bytes(size: float | None) -> int | None:
    return int(size * GIB) if size else None


def _check(task: TaskSpec, image: str) -> None:
    if not _IMAGE.fullmatch(image):
        raise _problem(
            task, "image", f"{image!r} is not the name of an image, such as nvcr.io/nvidia/pytorch:25.01-py3"
        )
    if not check_entrypoint(task):
        return
    if task.working_dir and not task.working_dir.startswith("/"):
        raise _problem(task, "working_dir", "with 'entrypoint' it must be absolute, as there is no shell to know ~")
    if task.repos and task.repos[0].path.startswith("~"):
        raise _problem(
            task, "repos", "with 'entrypoint' its path must not begin with ~, as there is no shell to know it"
        )


def check_entrypoint(task: TaskSpec) -> bool:
    """Whether there is an entrypoint. Raises SpecError when it is no command."""
    if not task.entrypoint:
        return False
    try:
        words = shlex.split(task.entrypoint)
    except ValueError as error:
        raise _problem(task, "entrypoint", f"it cannot be split into words ({error})") from None
    if not words:
        raise _problem(task, "entrypoint", "it is empty; remove it to use the image's own")
    return True


def _problem(task: TaskSpec, name: str, text: str) -> SpecError:
    return SpecError(f"'{name}': {text}.", filename=task.source.filename, line=line_in(task, name))


def choose_engine(task: TaskSpec, facts: Iterable[NodeFacts], wanted: str) -> str:
    """The engine of all nodes of a run. `auto` takes Docker, unless only Podman works on enough hosts."""
    if wanted != "auto":
        return wanted
    working = [{found.engine for found in one.container_engines if found.problem is None} for one in facts]
    counts = {name: sum(name in names for names in working) for name in ENGINES[1:]}
    return "podman" if counts["docker"] < task.nodes <= counts["podman"] else "docker"


def container_reason(task: TaskSpec, facts: NodeFacts, engine: str = "auto") -> str | None:
    """Why a host cannot take this run in a container, with the remedy; None where it can, or runs no container."""
    if image_of(task) is None:
        return None
    engines = [found for found in facts.container_engines if engine in ("auto", found.engine)]
    if not engines:
        any_engine = {found.engine for found in facts.container_engines}
        what = f"no {engine.capitalize()}" if any_engine or engine == "podman" else "neither Docker nor Podman"
        return f"has {what}, which a container needs; put 'container_engine: auto' into the fleet file and apply it"
    working = [found for found in engines if found.problem is None]
    if not working:
        return f"cannot run containers: {engines[0].problem}"
    if facts.gpus and working[0].gpus is None:
        return (
            f"has GPUs, but its {working[0].engine} cannot give them to containers (no NVIDIA container toolkit, no CDI"
            " description); put 'container_engine: auto' into the fleet file and apply it"
        )
    return None
