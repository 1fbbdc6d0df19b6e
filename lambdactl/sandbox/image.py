"""The nodes' image: built once per content of its inputs, from a registry's base image or one made with debootstrap."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lambdactl import content
from lambdactl.errors import SpecError
from lambdactl.sandbox import debootstrap
from lambdactl.sandbox.docker import LABEL, DockerError, docker, last_line
from lambdactl.sandbox.model import Progress, SandboxError

BASES = ("auto", "registry", "debootstrap")
Base = str
"""One of BASES, or an image's name with its tag, such as ``ubuntu:24.04``."""

Source = tuple[str, Callable[[Progress], None]]
"""A base image's name, and what gets it."""

REGISTRY_IMAGE = "debian:12"
REPOSITORY = "lambdactl-sandbox"
BUILD_TIMEOUT = 900.0
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9_][A-Za-z0-9._-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def content_hash(folder: Path, base: str) -> str:
    """12 hex digits over every file's path, executable bit and bytes, and the base image's name."""
    digest = hashlib.sha256(base.encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        executable = os.access(path, os.X_OK)
        data = path.read_bytes()
        digest.update(f"\0{path.relative_to(folder).as_posix()}\0{executable}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:12]


def ensure(base: Base, progress: Progress) -> str:
    """Returns the image's tag, building what is missing.

    Args:
        base: where the base image comes from. ``auto`` takes what is built already, else the registry where one
            answers, else debootstrap. Another image is pulled by its name; Debian's and Ubuntu's serve.
        progress: called with one line per step.

    Raises:
        SandboxError, DockerError: it cannot be built; the message says why and what to do.
        SpecError: `base` is none of these.
    """
    sources: dict[str, Source] = {
        "registry": (REGISTRY_IMAGE, _pull(REGISTRY_IMAGE)),
        "debootstrap": (debootstrap.tag(), debootstrap.make),
    }
    if base not in BASES:
        if not _IMAGE.fullmatch(base):
            known = ", ".join(BASES)
            raise SpecError(f"--base {base!r} is neither {known}, nor an image with its tag, such as ubuntu:24.04.")
        sources = {base: (base, _pull(base))}
    folder = content.path("sandbox")
    wanted = {name: f"{REPOSITORY}:{content_hash(folder, sources[name][0])}" for name in sources}
    choices = list(sources) if base == "auto" else [base]
    with _image_lock():
        for name in choices:
            if exists(wanted[name]):
                return wanted[name]
        if base == "auto" and not exists(REGISTRY_IMAGE) and not registry_answers():
            choices = ["debootstrap"]
        name = _fetch_first({choice: sources[choice] for choice in choices}, progress)
        _build(folder, sources[name][0], wanted[name], progress)
    return wanted[name]


def with_packages(tag: str, packages: Sequence[str], progress: Progress) -> str:
    """The tag of the image `tag` with more Debian packages in it, built once; `tag` itself when there are none.

    A rented node seldom is bare: Lambda's images bring Open MPI and a compiler, for example.

    Raises:
        SpecError, DockerError: a word that is no package's name; the packages cannot be installed.
    """
    if not packages:
        return tag
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise SpecError(f"{package!r} is not the name of a Debian package.")
    names = " ".join(sorted(set(packages)))
    wanted = f"{tag}-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    recipe = (
        f"FROM {tag}\nRUN apt-get update"
        f" && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {names}"
        " && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb\n"
    )
    with _image_lock():
        if not exists(wanted):
            progress(f"building the node image {wanted} with {names}")
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "Dockerfile").write_text(recipe)
                _docker_build(Path(folder), [], wanted)
    return wanted


def _fetch_first(sources: Mapping[str, Source], progress: Progress) -> str:
    """Gets the first base image that can be had; returns its source's name. The last one's error is raised."""
    *others, last = sources
    for name in others:
        try:
            _fetch(sources[name], progress)
        except SandboxError as error:
            progress(f"{error.message} Trying {last}.")
        else:
            return name
    _fetch(sources[last], progress)
    return last


def _fetch(source: Source, progress: Progress) -> None:
    image, fetch = source
    if not exists(image):
        fetch(progress)


def exists(image: str) -> bool:
    """True when the engine has the image."""
    return docker("image", "inspect", "--format", "{{.Id}}", image, check=False).returncode == 0


def registry_answers(url: str = "https://registry-1.docker.io/v2/", timeout: float = 5) -> bool:
    """True when images can be pulled: the registry gives any HTTP answer, or the engine has a mirror of it."""
    mirrors = docker("info", "--format", "{{len .RegistryConfig.Mirrors}}", check=False).stdout.strip()
    if mirrors.isdigit() and int(mirrors) > 0:
        return True
    try:
        with urllib.request.urlopen(url, timeout=timeout):  # noqa: S310 (the URL is ours)
            return True
    except urllib.error.HTTPError:
        return True  # 401: it wants a token, so it is there
    except (OSError, ValueError):
        return False


def _pull(image: str) -> Callable[[Progress], None]:
    """What pulls this image."""

    def pull(progress: Progress) -> None:
        progress(f"pulling the base image {image}")
        done = docker("pull", "--quiet", image, timeout=300, check=False)
        if done.returncode != 0:
            raise SandboxError(
                f"The base image {image} cannot be pulled: {last_line(done.stderr)}.",
                remedy="Use --base debootstrap to make one from this machine's own mirror.",
            )

    return pull


def _build(folder: Path, base_image: str, tag: str, progress: Progress) -> None:
    """Builds with the classic builder: an engine from a distribution often comes without buildx."""
    progress(f"building the node image {tag} from {base_image}")
    proxies = [word for name in PROXY_VARIABLES if name in os.environ for word in ("--build-arg", name)]
    _docker_build(folder, ["--build-arg", f"BASE={base_image}", *proxies], tag)


def _docker_build(folder: Path, arguments: Sequence[str], tag: str) -> None:
    options = ["--label", f"{LABEL}.image=node", *arguments, "--tag", tag]
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    done = docker("build", *options, str(folder), timeout=BUILD_TIMEOUT, check=False, env=environment)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise DockerError("The node image cannot be built; docker build ended with:\n  " + "\n  ".join(lines[-12:]))


@contextlib.contextmanager
def _image_lock() -> Iterator[None]:
    """One build at a time for this user, whatever the state folder: the engine is shared by all of them."""
    path = Path(tempfile.gettempdir()) / f"lambdactl-sandbox-image-{os.getuid()}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
