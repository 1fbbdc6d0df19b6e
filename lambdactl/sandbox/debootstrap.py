"""A base image from the machine's own Debian or Ubuntu mirror, for where no registry answers."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lambdactl.sandbox.docker import LABEL
from lambdactl.sandbox.model import Progress, SandboxError

REPOSITORY = "lambdactl-sandbox-base"
TIMEOUT = 900.0

# Where a distribution's archive lives when the machine's own sources do not say.
DEFAULT_MIRROR = {"debian": "http://deb.debian.org/debian", "ubuntu": "http://archive.ubuntu.com/ubuntu"}
# The last part of an archive's address; other vendors' repositories use the same suite names.
ARCHIVES = ("debian", "debian-security", "ubuntu", "ubuntu-ports", "raspbian")
COMPONENTS = ("main", "universe")
# Needed at build time only, or remade by the package manager.
LEFT_OUT = ("./dev/*", "./proc/*", "./sys/*", "./run/*", "./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*")


@dataclass(frozen=True)
class Release:
    """What debootstrap makes.

    Attributes:
        suite: the release's code name, e.g. ``bookworm``.
        mirror: the archive's address.
        sources: the lines of its sources.list.
    """

    suite: str
    mirror: str
    sources: tuple[str, ...]


@cache
def release() -> Release:
    """This machine's own release and mirror, as its apt configuration names them (Debian 12 where there is no apt)."""
    facts = _os_release()
    distribution = facts.get("ID", "")
    suite = facts.get("VERSION_CODENAME", "")
    if distribution not in DEFAULT_MIRROR or not suite:
        distribution, suite = "debian", "bookworm"
    return parse_targets(_apt_targets(), suite, DEFAULT_MIRROR[distribution])


def parse_targets(targets: str, suite: str, default_mirror: str) -> Release:
    """Picks the distribution's own archive out of apt's index targets.

    Args:
        targets: lines of ``address suite component``, as ``apt-get indextargets`` prints them.
        suite: the release's code name.
        default_mirror: taken when no line names the release.
    """
    components: dict[tuple[str, str], list[str]] = {}
    for line in targets.splitlines():
        address, found, component = (*line.split(), "", "", "")[:3]
        address = address.rstrip("/")
        ours = found in (suite, f"{suite}-updates", f"{suite}-security") and component in COMPONENTS
        if ours and address.startswith(("http://", "https://")) and address.rsplit("/", 1)[-1] in ARCHIVES:
            known = components.setdefault((address, found), [])
            if component not in known:
                known.append(component)
    mirrors = [address for address, found in components if found == suite]
    if not mirrors:
        return Release(suite, default_mirror, (f"deb {default_mirror} {suite} main",))
    lines = (f"deb {address} {found} {' '.join(names)}" for (address, found), names in components.items())
    return Release(suite, mirrors[0], tuple(lines))


def tag() -> str:
    """The base image's tag: the same machine release and mirrors give the same tag."""
    made_of = "\n".join([platform.machine(), *release().sources])
    return f"{REPOSITORY}:{release().suite}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def make(progress: Progress) -> None:
    """Makes the base image.

    Raises:
        SandboxError: debootstrap is missing, or fails; the message holds its last line.
    """
    what = release()
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise SandboxError(
            "No image registry answers, and debootstrap is not installed to make the base image without one.",
            remedy="Install debootstrap (sudo apt install debootstrap), or run scripts/bootstrap demo.",
        )
    progress(f"making the base image: debootstrap {what.suite} from {what.mirror}")
    # Not in /tmp: it may be a small tmpfs, or mounted without devices, which debootstrap refuses.
    scratch = "/var/tmp"  # noqa: S108 (mkdtemp makes the folder)
    with tempfile.TemporaryDirectory(prefix="lambdactl-debootstrap-", dir=scratch, ignore_cleanup_errors=True) as top:
        root = Path(top) / "root"
        try:
            options = ["--variant=minbase", "--include=ca-certificates"]
            _as_root(program, *options, what.suite, str(root), what.mirror, why=f"debootstrap of {what.suite}")
            _as_root("tee", str(root / "etc/apt/sources.list"), stdin="".join(f"{line}\n" for line in what.sources))
            _import(root)
        finally:
            _as_root("rm", "-rf", "--one-file-system", str(root))


def _import(root: Path) -> None:
    """``tar | docker import``: the tree becomes an image of one layer."""
    excluded = [f"--exclude={pattern}" for pattern in LEFT_OUT]
    tar = [*_sudo(), "tar", "--create", "--numeric-owner", "--directory", str(root), *excluded, "."]
    # CMD, as every base image has one; the label lets a user find and remove what the sandbox made.
    changes = ["--change", 'CMD ["/bin/bash"]', "--change", f"LABEL {LABEL}.image=base"]
    with subprocess.Popen(tar, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as packing:
        done = subprocess.run(
            ["docker", "import", *changes, "-", tag()],
            stdin=packing.stdout,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    if done.returncode != 0 or packing.returncode != 0:
        raise SandboxError(f"The base image cannot be imported: {done.stderr.strip() or 'tar failed'}.")


def _sudo() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]


def _as_root(*argv: str, stdin: str = "", why: str = "") -> None:
    try:
        done = subprocess.run(
            [*_sudo(), *argv], input=stdin, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"{why or argv[0]} failed: {error}.") from None
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise SandboxError(
            f"{why or argv[0]} failed: {lines[-1] if lines else f'exit code {done.returncode}'}.",
            remedy="It needs root (or sudo without a password) and the machine's Debian or Ubuntu mirror.",
        )


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _apt_targets() -> str:
    """``address suite component`` of every package list that the machine's apt reads; empty without apt."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    try:
        done = subprocess.run(
            ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
