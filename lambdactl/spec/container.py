# ruff: noqa: RUF009 - key() makes a dataclass field, and the other calls make frozen values
"""What every run takes besides its policies: image and user, environment, ports, files, repositories, volumes.

Source: dstack's reference pages of the task, dev environment and service files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from . import values
from .engine import At, ListOf, Struct, key
from .fields import NAME, PORT, SWITCH, TEXT, TEXTS, PolicyFields
from .kinds import Choice, Duration, Read, Text, Whole
from .mappings import Variables
from .nodes import Problem, show
from .resources import RESOURCES, Resources
from .values import EnvVar

PYTHON = Choice("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
_STRING = {"type": "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """A port of the run that is forwarded; ``local_port`` None means any free one."""

    local_port: int | None = key(PORT, "The port on your machine.", default_text="any free one")
    container_port: int = key(PORT, "The port that the application listens on.", required=True)


PORTS = Read(
    lambda text: dict(zip(("local_port", "container_port"), values.read_ports(text), strict=True)),
    "`8501`, `80:8080` or `*:8080`",
    "a port, local:remote, or *:remote",
    {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 65535},
            {"type": "string", "pattern": r"^(?:(?:\d+|\*):)?\d+$"},
        ]
    },
)
PORT_MAPPING = Struct(PortMapping, "ports", shorthand=PORTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAuth:
    """The login of a private image registry."""

    username: str = key(Text(secret=True), "User name.", required=True)
    password: str = key(Text(secret=True), "Password or token.", required=True, secret=True)


def _split_local(text: str) -> list[str]:
    """``local[:remote]`` at its colons; a Windows drive keeps its own."""
    parts = text.split(":")
    if len(parts) > 1 and re.fullmatch(r"[a-zA-Z]", parts[0]) and parts[1][:1] in ("\\", "/"):
        parts = [f"{parts[0]}:{parts[1]}", *parts[2:]]
    return parts


def _unix_path(text: str) -> str:
    if not text:
        raise ValueError("must be a path, not empty")
    if PureWindowsPath(text).is_absolute():
        raise ValueError(f"must be a Unix path, not {show(text)}")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMapping:
    """A file or folder that is uploaded. Relative paths: to the file's folder here, to the working directory there."""

    local_path: str = key(Text(r"(?s:.+)", "a path"), "The path on your machine.", required=True)
    path: str = key(Text(check=_unix_path, wanted="a path"), "The path on the node.", required=True)


def _file(text: str) -> dict[str, Any]:
    parts = _split_local(text)
    if len(parts) > 2 or not all(parts):
        raise ValueError(f"must be local-path or local-path:path, not {show(text)}")
    return {"local_path": parts[0], "path": _unix_path(parts[-1])}


FILE = Struct(FileMapping, "files", shorthand=Read(_file, "`local[:path]`", "local-path or local-path:path", _STRING))


def _repo_path(text: str) -> str:
    if text.startswith("~") and PurePosixPath(text).parts[0] != "~":
        raise ValueError(f"must not use another user's home folder, as {show(text)} does")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Repo:
    """A Git repository that is checked out on every node."""

    local_path: str | None = key(TEXT, "The repository's path on your machine.")
    url: str | None = key(TEXT, "The repository's URL.")
    branch: str | None = key(TEXT, "The branch.", default_text="the active or the default one")
    hash: str | None = key(TEXT, "The commit.")
    path: str = key(Text(check=_repo_path), "Where it is checked out.", default=".")
    if_exists: str = key(Choice("error", "skip"), "What to do when the path exists and is not empty.", default="error")


def _repo(text: str) -> dict[str, Any]:
    parts = text.split(":")
    is_url = len(parts) > 1 and ("@" in parts[0] or parts[1].startswith("//"))
    parts = [f"{parts[0]}:{parts[1]}", *parts[2:]] if is_url else _split_local(text)
    if len(parts) > 2 or not all(parts):
        shown = show(re.sub(r"//[^/@]*@", "//...@", text))  # a password is not repeated
        raise ValueError(f"must be a path or a URL, with ':path' after it where wanted, not {shown}")
    found = {"url" if is_url else "local_path": parts[0]}
    return found if len(parts) == 1 else found | {"path": _repo_path(parts[1])}


def _one_origin(repo: Repo, at: At) -> Repo:
    if repo.local_path and repo.url:
        raise at.problem("url", "cannot be used together with 'local_path'; remove one")
    if not repo.local_path and not repo.url:
        raise Problem(at.node, "must have 'local_path' or 'url'")
    return repo


REPO = Struct(
    Repo,
    "repos",
    shorthand=Read(_repo, "`path or URL[:path]`", "a path or a URL of a repository", _STRING),
    check=_one_origin,
)


def _mount_path(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute():
        raise ValueError(f"must be an absolute path, not {show(text)}")
    if ".." in path.parts:
        raise ValueError(f"must not contain '..', as {show(text)} does")
    return str(path)


MOUNT_PATH = Text(check=_mount_path, wanted="an absolute path", label="absolute path")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A volume: either a network volume (``name``, any of several) or a path of the node (``instance_path``)."""

    name: tuple[str, ...] | None = key(
        ListOf(TEXT, least=1, single=True), "Network volume, or several of which one is used."
    )
    instance_path: str | None = key(MOUNT_PATH, "The path on the node.")
    path: str = key(MOUNT_PATH, "Where it is mounted.", required=True)
    optional: bool = key(SWITCH, "Run without it where node paths cannot be mounted.", default=False)


def _mount(text: str) -> dict[str, Any]:
    parts = text.split(":")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"must be name:/path or /node/path:/path, not {show(text)}")
    source, path = parts
    if "/" in source:
        return {"instance_path": _mount_path(source), "path": _mount_path(path)}
    return {"name": (source,), "path": _mount_path(path)}


def _one_volume(mount: Mount, at: At) -> Mount:
    if (mount.name is None) == (mount.instance_path is None):
        raise Problem(at.node, "must have either 'name' (a network volume) or 'instance_path' (a path of the node)")
    if mount.name is not None and "optional" in at.keys:
        raise at.problem("optional", "can only be used with 'instance_path'")
    return mount


MOUNT = Struct(
    Mount,
    "volumes",
    shorthand=Read(_mount, "`name:/path` or `/node/path:/path`", "name:/path or /node/path:/path", _STRING),
    check=_one_volume,
)


def _user(text: str) -> str:
    parts = text.split(":")
    if len(parts) > 2 or not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*\$?", part, re.ASCII) for part in parts):
        raise ValueError(f"must be a user's name or number, with ':group' after it where wanted, not {show(text)}")
    return text


def _shell(text: str) -> str:
    if text not in ("sh", "bash") and not PurePosixPath(text).is_absolute():
        raise ValueError(f"must be sh, bash or an absolute path, not {show(text)}")
    return text


def _working_dir(text: str) -> str:
    if not (text.startswith("/") or text == "~" or text.startswith("~/")):
        raise ValueError(f"must be an absolute path, or one that starts with '~/', not {show(text)}")
    return text


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL")


@dataclass(frozen=True, kw_only=True)
class RunFields(PolicyFields):
    """What a task, a dev environment and a service have in common."""

    name: str | None = key(NAME, "The run's name.", default_text="a random one")
    env: tuple[EnvVar, ...] = key(
        Variables(), "Environment variables; a bare `NAME` takes its value from your environment or `-e`.", default=()
    )
    resources: Resources = key(RESOURCES, "What every node must have.", default=Resources())
    working_dir: str | None = key(
        Text(check=_working_dir, wanted="a path"),
        "Where commands run; absolute, or from `~`.",
        default_text="the home folder",
    )
    shell: str | None = key(
        Text(check=_shell, wanted="sh, bash or an absolute path"),
        "The shell of the commands: `sh`, `bash` or an absolute path.",
        default_text="`bash`; `sh` with `image`",
    )
    user: str | None = key(
        Text(check=_user, wanted="a user"), "The user, `name-or-id[:group]`.", default_text="the login user"
    )
    image: str | None = key(TEXT, "The container image.", default_text="none: runs on the node itself")
    python: str | None = key(PYTHON, "The Python version; not with `image` or `docker`.")
    nvcc: bool | None = key(SWITCH, "Have the CUDA compiler; not with `docker`.", default_text="false")
    docker: bool | None = key(
        SWITCH, "Docker inside the run; not with `image`, `python` or `nvcc`.", default_text="false"
    )
    privileged: bool = key(SWITCH, "Run the container in privileged mode.", default=False)
    entrypoint: str | None = key(TEXT, "The container's entrypoint.", default_text="the image's")
    registry_auth: RegistryAuth | None = key(Struct(RegistryAuth, "registry_auth"), "Login of the image's registry.")
    volumes: tuple[Mount, ...] = key(ListOf(MOUNT), "Volumes and node paths to mount.", default=())
    files: tuple[FileMapping, ...] = key(ListOf(FILE), "Files and folders to upload.", default=())
    repos: tuple[Repo, ...] = key(ListOf(REPO, most=1), "A Git repository to check out.", default=())
    priority: int = key(Whole(0, 100), "Higher runs go first.", default=0, nullable=True)
    stop_signal: str = key(
        Choice(*SIGNALS, aliases={name.removeprefix("SIG"): name for name in SIGNALS}),
        "The signal that asks the commands to stop.",
        default="SIGINT",
        ours=True,
    )
    stop_grace: int = key(
        Duration(), "How long they may take before they are killed.", default=10, default_text="10s", ours=True
    )
    single_branch: bool | None = key(SWITCH, "Clone only the branch that is used.")
    dstack: bool = key(SWITCH, "Give the run access to a dstack server; there is none here.", default=False)
    home_dir: str = key(TEXT, "Deprecated; has no effect.", default="/root")
    setup: tuple[str, ...] = key(TEXTS, "Deprecated; runs before `init` in a dev environment.", default=())


def check_image_sources(given: Any, at: At) -> None:
    """``image`` excludes ``python`` and ``docker``; ``docker`` excludes ``python`` and ``nvcc`` (dstack's rules)."""
    excluded = (("python", "image"), ("docker", "image"), ("docker", "python"), ("docker", "nvcc"))
    for name, other in excluded:
        if getattr(given, name) and getattr(given, other):
            later = max((name, other), key=lambda word: at.keys[word].start_mark.line)
            raise at.problem(later, f"cannot be used together with '{name if later == other else other}'; remove one")
