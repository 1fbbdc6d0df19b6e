"""The node's container engines: which are there, do they answer, and can they hand out GPUs."""

from __future__ import annotations

import os

from . import light, paths, programs
from .docker_info import DockerInfo
from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMES = ("docker", "podman")
SOCKETS = {"docker": "/run/docker.sock", "podman": "/run/podman/podman.sock"}
CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")
CDI_KIND = "nvidia.com/gpu"
TOOLKIT = ("nvidia-container-runtime-hook", "nvidia-container-toolkit")
CDI_NAME = light.Pattern(r"""(?:^|[\s{,-])["']?name["']?\s*:\s*["']?([A-Za-z0-9][\w.:-]*)""", "MULTILINE")


class Engine:
    """One engine as it answers now. `problem` is why it cannot run anything, None where it can."""

    def __init__(self, name: str, path: str, info: dict[str, Any], problem: str | None = None) -> None:
        host, store = info.get("host") or {}, info.get("store") or {}
        version = info.get("ServerVersion") or (info.get("version") or {}).get("Version")
        self.name = name
        self.path = path
        self.problem = problem
        self.version = str(version) if version else None
        self.cgroup_driver = str(info.get("CgroupDriver") or host.get("cgroupManager") or "") or None
        self.cgroup_version = str(info.get("CgroupVersion") or host.get("cgroupVersion") or "").lstrip("v") or None
        self.root = str(info.get("DockerRootDir") or store.get("graphRoot") or "") or None
        # Docker names the folders of CDI files only where it reads them: from 25 on, with its feature "cdi" at first.
        self.reads_cdi = name == "podman" or bool(info.get("CDISpecDirs"))
        self.arch = str(info.get("Architecture") or host.get("arch") or os.uname().machine)
        self.gpus = self._gpus()

    def _gpus(self) -> str | None:
        """How GPUs get into its containers: "toolkit" (a hook of the engine), "cdi", or None where they cannot."""
        if self.name == "docker" and any(programs.find(program) for program in TOOLKIT):
            return "toolkit"
        return "cdi" if self.reads_cdi and cdi_text() else None

    def as_dict(self) -> dict[str, Any]:
        """For the probe's answer."""
        names = ("version", "path", "problem", "cgroup_driver", "cgroup_version", "root", "arch", "gpus")
        return {"engine": self.name, **{name: getattr(self, name) for name in names}}


def cdi_text() -> str:
    """The node's CDI files that describe NVIDIA GPUs, as one text."""
    files = (path for folder in CDI_FOLDERS for path in light.named(paths.ROOT + folder))
    return "\n".join(text for text in map(paths.read_text, files) if CDI_KIND in text)


def cdi_names(text: str) -> set[str]:
    """The names of devices in CDI files; NVIDIA's toolkit names UUIDs and indices, its first releases "gpu0"."""
    return set(CDI_NAME.findall(text))


def toolkit_present() -> bool:
    """Whether the NVIDIA container toolkit is installed, whichever engine uses it."""
    return any(programs.find(program) for program in (*TOOLKIT, "nvidia-ctk"))


def _info_argv(name: str, path: str) -> list[str]:
    return [path, "info", "--format", "{{json .}}" if name == "docker" else "json"]


def _finish(name: str, path: str, program: programs.Program | DockerInfo) -> Engine:
    problems: list[str] = []
    code, text = program.result(problems)
    start = text.find("{")
    try:
        info = light.loads(text[start : text.rfind("}") + 1]) if start >= 0 else {}
    except ValueError:
        info = {}
    errors = info.get("ServerErrors") or []
    if info.get("host"):  # a "docker" that is Podman's own stand-in
        name = "podman"
    if code == 0 and not errors and (info.get("ServerVersion") or info.get("host")):
        return Engine(name, path, info)
    words = [str(errors[0])] if errors else [line for line in text.splitlines() if line.strip()][-1:]
    why = problems[0] if problems else " ".join(words) or f"exit code {code}"
    return Engine(name, path, info, problem=_not_answering(name, why))


def _not_answering(name: str, why: str) -> str:
    said = why.replace("\n", " ").strip().rstrip(".")[:200]
    if name == "docker":
        return f"Docker is installed, but does not answer ({said}); start it: sudo systemctl start docker"
    return f"Podman is installed, but does not work ({said}); see: sudo podman info"


def _ask(name: str, path: str) -> programs.Program | DockerInfo:
    socket = os.path.realpath(SOCKETS["docker"])
    if name == "docker" and programs.is_binary(path) and "podman" not in socket and not _redirected():
        return DockerInfo(socket, _info_argv(name, path))
    return programs.Program(_info_argv(name, path))


def _redirected() -> bool:
    """Whether the docker command would ask another engine than the one at the usual socket."""
    config = paths.read_json(os.path.expanduser("~/.docker/config.json"))
    return (
        "DOCKER_HOST" in os.environ
        or "DOCKER_CONTEXT" in os.environ
        or (isinstance(config, dict) and bool(config.get("currentContext")))
    )


def start_query() -> list[tuple[str, str, programs.Program | DockerInfo]]:
    """Ask every engine that is installed about itself."""
    found = [(name, programs.find(name)) for name in NAMES]
    return [(name, path, _ask(name, path)) for name, path in found if path]


def finish_query(query: list[tuple[str, str, programs.Program | DockerInfo]]) -> list[Engine]:
    """The engines, Docker first."""
    return [_finish(*asked) for asked in query]


def choose(wanted: str, engines: list[Engine]) -> Engine:
    """The engine for a run: the one that is wanted, else the first that works.

    Raises NodeError (start-failed) naming what is missing.
    """
    named = [engine for engine in engines if wanted in ("auto", engine.name)]
    for engine in named:
        if engine.problem is None:
            return engine
    if named:
        raise NodeError("start-failed", str(named[0].problem))
    what = {"docker": "Docker is not", "podman": "Podman is not"}.get(wanted, "neither Docker nor Podman is")
    raise NodeError("start-failed", f"{what} installed, so a container cannot run here")
