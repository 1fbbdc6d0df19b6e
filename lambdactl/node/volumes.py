"""Instance mounts of a host-native rank: paths of the node bound to other paths, seen by the run's processes only.

The job's first process gets a mount namespace of its own and binds there; SSH sessions from peers (mpirun's daemons)
enter that namespace. Nobody else on the node sees the mounts, and they end with the run's last process.
"""

from __future__ import annotations

import os

from .errors import NodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .spec import Job

# mount(2) and unshare(2)
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 1 << 19
CLONE_NEWNS = 0x20000
# Mounting over these would break the node's own view of itself, or the run's record.
FORBIDDEN = ("/", "/proc", "/sys", "/dev", "/run", "/var/lib/lambdactl", "/opt/lambdactl")


class Volume:
    """One mount: `source` on the node is seen at `target`; an optional one is left out where it cannot be had."""

    def __init__(self, raw: object, index: int) -> None:
        where = f"volumes[{index}]"
        if not isinstance(raw, dict):
            raise NodeError("bad-request", f"job: {where} is no object")
        self.source = _path(raw.get("source"), f"{where}.source")
        self.target = _path(raw.get("target"), f"{where}.target")
        self.optional = raw.get("optional") is True
        if self.target in FORBIDDEN:
            raise NodeError("bad-request", f"job: {where}.target is {self.target}, which cannot be mounted over")


def _path(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise NodeError("bad-request", f"job: {where} is {str(value)[:80]!r}, allowed is an absolute path without '..'")
    return os.path.normpath(value).replace("//", "/")


def parse(raw: Any) -> list[Volume]:
    """JobSpec's `volumes`: [{"source", "target", "optional"}]."""
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise NodeError("bad-request", "job: volumes is a list of {source, target, optional}")
    return [Volume(item, index) for index, item in enumerate(raw)]


def mounted(job: Job) -> bool:
    """Whether this rank's commands see another file system than the node's (a container mounts by its own means)."""
    return job.raw.get("container") is None and any(item.source != item.target for item in job.volumes)


def make_sources(job: Job) -> None:
    """Create what is missing on the node: dstack makes a source that everybody may write. Raises NodeError."""
    for volume in job.volumes:
        if os.path.exists(volume.source):
            continue
        try:
            os.makedirs(volume.source)
            os.chmod(volume.source, 0o777)  # noqa: S103 (dstack's mode; the run's user need not be the one who made it)
        except OSError as error:
            if not volume.optional:
                raise NodeError("start-failed", f"volume {volume.source} cannot be made: {error.strerror}") from None


def enter_own(job: Job) -> None:
    """Give this process a mount namespace with the job's volumes in it. Raises NodeError (start-failed)."""
    if not mounted(job):
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None) != 0:
        reason = os.strerror(ctypes.get_errno())
        if all(volume.optional for volume in job.volumes):
            return
        raise NodeError("start-failed", f"volumes need a mount namespace, which this node does not give: {reason}")
    for volume in job.volumes:
        if volume.source == volume.target:
            continue
        problem = _bind(libc, volume)
        if problem and not volume.optional:
            raise NodeError("start-failed", f"volume {volume.source}:{volume.target} cannot be mounted: {problem}")


def _bind(libc: Any, volume: Volume) -> str | None:
    import ctypes

    try:
        if os.path.isdir(volume.source):
            os.makedirs(volume.target, exist_ok=True)
        elif not os.path.exists(volume.target):
            os.makedirs(os.path.dirname(volume.target), exist_ok=True)
            os.close(os.open(volume.target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    except OSError as error:
        return f"{error.strerror} ({error.filename})"
    if libc.mount(os.fsencode(volume.source), os.fsencode(volume.target), None, MS_BIND | MS_REC, None) != 0:
        return os.strerror(ctypes.get_errno())
    return None


def join(pid: int) -> None:
    """Move this process into the mount namespace of another one. Raises OSError."""
    import ctypes

    descriptor = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)
